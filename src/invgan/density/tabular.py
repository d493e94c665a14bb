"""Layers for rows that are vectors, on zuko: autoregressive and coupling."""

import functools
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from invgan.density.bijections import Bijection
from invgan.errors import InputError

N_BINS, BOUND = 8, 3.0
"""Bins of a spline, and where it ends: beyond ±BOUND it is the identity."""
SMALLEST_SCALE = 0.3
"""What a layer scales a feature by before its spline, at least; the inverse at most. Of a row far outside,
where nothing was learned, each layer would otherwise make one a thousand times further outside."""


@functools.cache
def import_zuko() -> ModuleType:
    """Import zuko, which switches torch.distributions' checks of arguments off, and switch them on again.

    Raises
    ------
    InputError
        If it is not installed.
    """
    checking = Distribution._validate_args
    try:
        import zuko  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(
            "This model needs zuko, which is not installed: pip install 'invgan[density]'."
        ) from None
    finally:
        Distribution.set_default_validate_args(checking)
    return zuko


class ZukoLayer(Bijection):
    """A layer of zuko's, as a bijection."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # which would take log-determinants along
            z, log_abs_det = self.transform().call_and_ladj(x)
        return z, log_abs_det

    def inverse(self, z: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return self.transform().inv(z)

    def __repr__(self) -> str:  # zuko's draws from the global generator
        return f"{type(self.transform).__name__}({getattr(self.transform, 'hyper', '')})"


def autoregressive(n_features: int, index: int, hidden: list[int], *, spline: bool) -> ZukoLayer:
    r"""Build a masked autoregressive layer: :math:`z_i = f(x_i;\, \theta(x_{<i}))`.

    Parameters
    ----------
    n_features : int
        D. A single feature has no others to depend on: θ is then a constant.
    index : int
        Which layer of a stack it is: layers 0 and 1 go through the features forwards and backwards, the next
        two through a random order, the same in every model, and so on.
    hidden : list of int
        Widths of the network θ's hidden layers.
    spline : bool
        Whether f is a spline after scale and shift, or scale and shift alone.

    Source
    ------
    Germain et al. (2015), "MADE"; Papamakarios et al. (2017), "Masked autoregressive flow".
    """
    order = _order(n_features, index)
    if index % 2:
        order = n_features - 1 - order
    build = import_zuko().flows.MaskedAutoregressiveTransform
    transform = build(n_features, order=order, hidden_features=hidden, **_univariate(spline))
    if min(hidden) < n_features - 1:
        _spread_degrees(transform.hyper, order)
    return ZukoLayer(transform)


def coupling(n_features: int, index: int, hidden: list[int], *, spline: bool) -> ZukoLayer:
    r"""Build a coupling layer, :math:`z_b = f(x_b;\, \theta(x_a))`, a and b being halves of the features.

    Layers 0 and 1 of a stack have every other feature for a and b, and the reverse; the next two random
    halves, the same in every model, and so on. Parameters are those of :func:`autoregressive`.

    Source
    ------
    Dinh et al. (2017), "Density estimation using Real NVP"; Durkan et al. (2019), "Neural spline flows".
    """
    build = import_zuko().flows.GeneralCouplingTransform
    mask = _order(n_features, index) % 2 == index % 2
    layer = ZukoLayer(build(n_features, mask=mask, hidden_features=hidden, **_univariate(spline)))
    layer.recordable = False  # zuko's looks at its mask in every step
    return layer


def _spread_degrees(network: nn.Module, order: Tensor) -> None:
    """Let few hidden units stand for all numbers of features that come before: zuko's see the first only.

    A unit of degree m sees the first m features of the order; units of each layer have degrees from 1 to
    D - 1, evenly.
    """
    seen = order + 1
    layers = [layer for layer in network if hasattr(layer, "mask")]  # type: ignore[attr-defined]
    for layer in layers[:-1]:
        degrees = torch.linspace(1, len(order) - 1, len(layer.mask)).round().long()
        layer.mask.copy_(degrees[:, None] >= seen)
        seen = degrees
    mask = layers[-1].mask
    mask.copy_((order[:, None] >= seen).repeat_interleave(len(mask) // len(order), 0))


def _order(n_features: int, index: int) -> Tensor:
    if index < 2:
        return torch.arange(n_features)
    return torch.from_numpy(np.random.default_rng(index // 2).permutation(n_features))


def _univariate(spline: bool) -> dict[str, Any]:
    if not spline:
        return {}
    return {"univariate": _affine_and_spline, "shapes": ((), (), (N_BINS,), (N_BINS,), (N_BINS - 1,))}


def _affine_and_spline(
    shift: Tensor, log_scale: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor
) -> Transform:
    """Bring a feature to the spline's range by scale and shift, which reach where the spline does not."""
    transforms = import_zuko().transforms
    return transforms.ComposedTransform(
        transforms.MonotonicAffineTransform(shift, log_scale, slope=SMALLEST_SCALE),
        transforms.MonotonicRQSTransform(widths, heights, slopes, bound=BOUND),
    )
