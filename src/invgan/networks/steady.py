"""Matrix products in which each row is rounded alike, wherever it stands in its block."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def steady_product(rows: Tensor, others: Tensor) -> Tensor:
    """Multiply rows (m, k) by others (n, k) transposed, (m, n), each row alike wherever it stands.

    Products of odd length round by a row's place in its block: a zero makes them even.
    """
    if rows.shape[-1] % 2:
        rows, others = F.pad(rows, (0, 1)), F.pad(others, (0, 1))
    return rows @ others.T


class SteadyProducts(TorchFunctionMode):
    """Make all linear layers within act as :func:`steady_product` does, in double precision.

    It is for networks of another library, whose layers are not ours to change; each operation costs about a
    microsecond more.

    Examples
    --------
    >>> rows, weight = torch.rand(1, 5).double().expand(128, 5).contiguous(), torch.rand(7, 5).double()
    >>> with SteadyProducts():
    ...     found = F.linear(rows, weight)
    >>> bool((found == found[:1]).all())
    True
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            rows, weight, *bias = args
            if rows.shape[-1] % 2 and rows.dtype == torch.float64:
                args = (F.pad(rows, (0, 1)), F.pad(weight, (0, 1)), *bias)
        elif func in _PRODUCTS:
            rows, others = args
            if rows.shape[-1] % 2 and rows.dtype == torch.float64 and others.ndim > 1:
                args = (F.pad(rows, (0, 1)), F.pad(others, (0, 0, 0, 1)))
        return func(*args, **(kwargs or {}))


_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
