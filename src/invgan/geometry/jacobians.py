"""The Jacobian of each row, in blocks of bounded memory."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invgan.errors import InputError
from invgan.geometry.tangents import LatentMap, Stacked, per_row, push

MAX_BYTES = 2**24
"""Memory of one intermediate tensor on a CPU, by default: about what its caches hold."""

MAX_BYTES_ACCELERATOR = 2**29
"""The same on an accelerator, which only large batches keep busy."""


def jacobian(
    f: LatentMap, z: Tensor, *, directions: Tensor | None = None, max_bytes: int | None = None
) -> Tensor:
    r"""Compute each row's Jacobian, or its products with directions, by pushing tangents through ``f``.

    .. math:: J_f(z) = \partial f(z) / \partial z, \qquad \text{or} \quad J_f(z) \, V

    Costs about one forward pass per direction, d of them for the Jacobian itself; nothing is recorded for a
    backward pass. In ``nn.Sequential`` of the usual layers (linear, convolutions, activations, batch
    normalisation, upsampling, pooling, reshaping, this library's own) tangents are pushed layer by layer,
    several times faster than by automatic differentiation. Whatever else a map contains, subclasses and
    layers with forward hooks or parametrisations included, is left to ``torch.func``, all directions in one
    batch.

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Differentiable map that treats rows independently: a module in evaluation mode, or any function. A
        function hides the modules that it calls: give the module itself where there is one.
    z : Tensor, shape (n, d)
        Where to differentiate.
    directions : Tensor, shape (n, d, k), optional
        V: k tangent vectors at each row; the identity, unless given.
    max_bytes : int, optional
        Bound on the memory of one intermediate tensor; about three exist at a time, beside the result. By
        default 16 MiB on a CPU, 512 MiB on an accelerator. Rows are taken in blocks that keep to it, at the
        least one tangent of one row at a time. The blocks depend on shapes only.

    Returns
    -------
    Tensor, shape (n, D, d) or (n, D, k)
        D is the number of output values per row, flattened.

    Raises
    ------
    InputError
        If a shape is wrong, or f fails, has no forward-mode derivative, does not map each row to one row, or
        holds batch normalisation in training mode.

    Examples
    --------
    >>> jacobian(lambda z: z**2, torch.tensor([[1.0, 2.0]])).tolist()
    [[[2.0, 0.0], [0.0, 4.0]]]
    """
    blocks = map_jacobians(lambda block, rows: block, f, z, directions=directions, max_bytes=max_bytes)
    # In memory each tangent stays in one piece, as it was made and as factorisations read it.
    return blocks[0] if len(blocks) == 1 else torch.cat([block.mT for block in blocks]).mT


@torch.no_grad()
def map_jacobians(
    function: Callable[[Tensor, slice], Tensor],
    f: LatentMap,
    z: Tensor,
    *,
    directions: Tensor | None = None,
    max_bytes: int | None = None,
) -> list[Tensor]:
    """Apply a function to the Jacobians (block, D, k) of one block of rows after another, and to the rows."""
    check_map(f, z)
    n, d = z.shape
    if directions is not None and (directions.ndim != 3 or directions.shape[:2] != z.shape):
        raise InputError(
            f"The 'directions' parameter must have the shape (n, d, k) with n, d = {n}, {d}, as 'z'. "
            f"Got {tuple(directions.shape)} instead."
        )
    k = d if directions is None else directions.shape[2]
    per_tangent = z.element_size() * values_per_row(f, z)
    n_columns = min(k, max(1, bytes_for(z, max_bytes) // per_tangent))
    n_rows = rows_per_block(z, n_columns * per_tangent, max_bytes)
    results = []
    for start in range(0, n, n_rows):
        rows = slice(start, start + n_rows)
        at = _filled(z[rows], n_rows)
        if directions is None:  # the same for all rows
            tangents = torch.eye(d, dtype=z.dtype, device=z.device)[None]
        else:
            tangents = _filled(directions[rows], n_rows).mT.to(z.dtype)  # block×k×d
        pushed = [_push(f, at, part) for part in tangents.split(n_columns, dim=1)]
        results.append(function(torch.cat(pushed, 1)[: n - start].mT, rows))
    return results


def _push(f: LatentMap, z: Tensor, tangents: Tensor) -> Tensor:
    """Push tangents (n, k, d), or (1, k, d) for all rows, to (n, k, D)."""
    n, k = len(z), tangents.shape[1]
    try:
        values, pushed = push(f, z, tangents.flatten(0, 1), k)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise _explained(error, z) from error
    if len(values) != n:
        raise InputError(
            "The 'f' parameter must map each row to one row: "
            f"it made shape {tuple(values.shape)} of {n} rows."
        )
    return per_row(pushed, n, k).reshape(n, k, math.prod(values.shape[1:]))


def _explained(error: Exception, z: Tensor) -> Exception:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return error
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"The 'f' parameter fails on latents of shape {tuple(z.shape)}, or has no forward-mode derivative "
        f"there: {reason}"
    )


def check_map(f: LatentMap, z: Tensor) -> None:
    """Refuse latents of a wrong shape and batch normalisation that is not in evaluation mode."""
    if z.ndim != 2 or 0 in z.shape:
        raise InputError(
            f"The 'z' parameter must have the shape (n, d), neither of them 0. Got {tuple(z.shape)} instead."
        )
    for part in f.parts if isinstance(f, Stacked) else [f]:
        for name, layer in part.named_modules() if isinstance(part, nn.Module) else ():
            if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
                raise InputError(
                    "The 'f' parameter must treat rows independently, but its layer "
                    f"{name or type(layer).__name__!r} normalises over the batch at hand: give it running "
                    "statistics, and call eval()."
                )


def bytes_for(z: Tensor, max_bytes: int | None) -> int:
    """Return the bound, or the default of the device that ``z`` is on."""
    if max_bytes is not None:
        return max_bytes
    return MAX_BYTES if z.device.type == "cpu" else MAX_BYTES_ACCELERATOR


def rows_per_block(z: Tensor, bytes_per_row: int, max_bytes: int | None) -> int:
    """Return all rows, if the bound allows them, or else the largest power of two that it does.

    Other numbers leave matrix products with remainders, in which a row may round differently.
    """
    most = max(1, bytes_for(z, max_bytes) // bytes_per_row)
    return len(z) if len(z) <= most else 2 ** int(math.log2(most))


def _filled(rows: Tensor, size: int) -> Tensor:
    """Repeat the last row up to a block's size: at another size the same row would round differently."""
    return (
        torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])]) if len(rows) < size else rows
    )


class _OutputSizes(TorchDispatchMode):
    """Note how many numbers every operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = operation(*args, **(kwargs or {}))
        tensors = [output for output in tree_leaves(outputs) if isinstance(output, Tensor)]
        self.sizes.append(max((tensor.numel() for tensor in tensors), default=0))
        return outputs


def values_per_row(f: LatentMap, z: Tensor) -> int:
    """Count the numbers per row in f's largest intermediate; what does not grow with the rows is left out."""
    sizes = []
    for n in (1, 2):
        with _OutputSizes() as outputs:
            try:
                f(z[:1].expand(n, -1))
            except InputError:
                raise
            except (RuntimeError, ValueError) as error:
                raise _explained(error, z) from error
        sizes.append(outputs.sizes)
    return max([1, *(two - one for one, two in zip(*sizes, strict=False))])
