"""Tangents pushed through a map: layer by layer where a rule is known, by forward-mode autograd elsewhere.

A layer's tangents are a batch: k of them for each of n rows, flattened to (n·k, ...), so that a convolution
meets one large batch of images. As long as all rows have the same ones (up to the first activation) only
those k are carried. Weights act on tangents without their biases, and an activation's derivative is computed
once per row for all of its tangents.
"""

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vmap

from invgan.networks import RBFVariance
from invgan.networks.convolutional import CenterCrop
from invgan.preprocess import AffineScaling

LatentMap = Callable[[Tensor], Tensor]

_ONE_AT_A_TIME = threading.RLock()

Pushed = tuple[Tensor, Tensor]
"""Values (n, ...) and tangents (n·k, ...), or (k, ...) as long as they are the same for all rows."""


class Stacked:
    """Several maps of the same latents as one: (n, d) → (n, D_1 + ... + D_m), their outputs flattened.

    A function like any other, but one that shows its parts, so that each is differentiated in its own way.

    Examples
    --------
    >>> Stacked([nn.Identity(), torch.exp])(torch.zeros(1, 2)).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """

    def __init__(self, parts: Sequence[LatentMap]) -> None:
        self.parts = tuple(parts)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.cat([part(z).flatten(1) for part in self.parts], 1)


def derivative_along(f: LatentMap, x: Tensor, tangent: Tensor) -> Pushed:
    """Return f(x) and its derivative along a tangent, by ``torch.func.jvp``, in any thread.

    PyTorch counts nested forward derivatives in one variable of the process: two threads at a time get wrong
    numbers, or errors.

    Examples
    --------
    >>> derivative_along(torch.square, torch.tensor([3.0]), torch.tensor([1.0]))
    (tensor([9.]), tensor([6.]))
    """
    with _ONE_AT_A_TIME:
        _compile_rules()
        value, derivative, *_ = jvp(f, (x,), (tangent,))
    return value, derivative


@cache
def _compile_rules() -> None:
    """Have PyTorch make its rules, which it does at first use, without its warning about how it does."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        jvp(torch.tanh, (torch.zeros(1),), (torch.ones(1),))


def push(f: LatentMap, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    """Push k tangents per row through ``f``."""
    rule = None if isinstance(f, nn.Module) and _is_altered(f) else RULES.get(type(f))
    pushed = None if rule is None else rule(f, x, tangents, k)
    return _by_autograd(f, x, tangents, k) if pushed is None else pushed


def _is_altered(module: nn.Module) -> bool:
    """Tell whether the module may do something else than its type promises."""
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or nn.modules.module._global_forward_hooks
        or nn.modules.module._global_forward_pre_hooks
    )


def per_row(tangents: Tensor, n: int, k: int) -> Tensor:
    """View tangents as (n, k, ...); those that all rows share are repeated without a copy."""
    if len(tangents) == k:
        return tangents.expand(n, *tangents.shape)
    return tangents.unflatten(0, (n, k))


def _by_autograd(f: LatentMap, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    """Differentiate any function in forward mode, all tangents in one batch."""
    pushed = vmap(lambda tangent: derivative_along(f, x, tangent)[1])(
        per_row(tangents, len(x), k).transpose(0, 1)
    )
    return f(x), pushed.transpose(0, 1).flatten(0, 1)


# Rules. Each takes a layer, values, tangents and k; None where the layer's settings are beyond it.

Rule = Callable[[Any, Tensor, Tensor, int], Pushed | None]


def _sequential(layers: nn.Sequential, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    for layer in layers:
        x, tangents = push(layer, x, tangents, k)
    return x, tangents


def _stacked(f: Stacked, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    n = len(x)
    pushed = [push(part, x, tangents, k) for part in f.parts]
    values = [values.flatten(1) for values, _ in pushed]
    along = [per_row(along, n, k).flatten(2) for _, along in pushed]
    return torch.cat(values, 1), torch.cat(along, 2).flatten(0, 1)


def _linear_map(layer: nn.Module, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    """A layer that is linear and treats each row of a batch alike: it acts on tangents as on rows."""
    return layer(x), layer(tangents)


def _dropout(layer: nn.Module, x: Tensor, tangents: Tensor, k: int) -> Pushed | None:
    return None if layer.training else (x, tangents)


def _elementwise(layer: nn.Module, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    """A function of each value alone: one derivative per value, shared by the row's tangents."""
    at = x.clone() if getattr(layer, "inplace", False) else x
    y, slope = derivative_along(layer, at, torch.ones_like(x))
    return y, (slope[:, None] * per_row(tangents, len(x), k)).flatten(0, 1)


def _linear(layer: nn.Linear, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    return layer(x), F.linear(tangents, layer.weight)


def _conv2d(layer: nn.Conv2d, x: Tensor, tangents: Tensor, k: int) -> Pushed | None:
    if layer.padding_mode != "zeros" or x.ndim != 4:
        return None
    x, tangents = _channels_last(x), _channels_last(tangents)
    along = F.conv2d(tangents, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return layer(x), along


def _conv_transpose2d(layer: nn.ConvTranspose2d, x: Tensor, tangents: Tensor, k: int) -> Pushed | None:
    if x.ndim != 4:
        return None
    x, tangents = _channels_last(x), _channels_last(tangents)
    y = layer(x)
    shape: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    n_taps = layer.out_channels * math.prod(layer.kernel_size)
    if n_taps <= layer.in_channels and layer.groups == 1 and not any(layer.output_padding):
        # Convolution kernels are made for many channels: into one to three, a matrix product is faster.
        pixels = tangents.permute(0, 2, 3, 1).flatten(1, 2)  # n·k×HW×channels
        columns = (pixels @ layer.weight.flatten(1)).mT  # n·k×taps×HW
        return y, F.fold(columns, y.shape[2:], layer.kernel_size, **shape)
    shape |= {"output_padding": layer.output_padding, "groups": layer.groups}
    return y, F.conv_transpose2d(tangents, layer.weight, None, **shape)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, tangents: Tensor, k: int) -> Pushed | None:
    if layer.training or layer.running_var is None:
        return None
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight
    return layer(x), tangents * scale.view(-1, *[1] * (x.ndim - 2))


def _rbf_variance(layer: RBFVariance, x: Tensor, tangents: Tensor, k: int) -> Pushed:
    y, kernels = layer(x), layer.kernels(x)
    along = per_row(tangents, len(x), k)  # n×k×d
    # ∂v = −2λ v (z − c)·∂z, and ∂σ = −½ σ³ W² ∂v.
    from_centers = along @ x[..., None] - along @ layer.centers.T
    in_kernels = from_centers * (-2 * layer.rates * kernels)[:, None]
    slope = -0.5 * y**3
    return y, ((in_kernels @ layer.weight.square().T) * slope[:, None]).flatten(0, 1)


RULES: dict[type, Rule] = {
    nn.Sequential: _sequential,
    Stacked: _stacked,
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.ConvTranspose2d: _conv_transpose2d,
    RBFVariance: _rbf_variance,
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d], _batch_norm),
    **dict.fromkeys([nn.Dropout, nn.Dropout2d, nn.AlphaDropout], _dropout),
    **dict.fromkeys(
        [
            nn.AvgPool2d,
            nn.AdaptiveAvgPool2d,
            nn.Flatten,
            nn.Identity,
            nn.PixelShuffle,
            nn.Unflatten,
            nn.Upsample,
            nn.UpsamplingBilinear2d,
            nn.UpsamplingNearest2d,
            nn.ZeroPad2d,
            CenterCrop,
        ],
        _linear_map,
    ),
    **dict.fromkeys(
        [
            nn.CELU,
            nn.ELU,
            nn.GELU,
            nn.Hardtanh,
            nn.LeakyReLU,
            nn.LogSigmoid,
            nn.Mish,
            nn.PReLU,
            nn.ReLU,
            nn.ReLU6,
            nn.SELU,
            nn.SiLU,
            nn.Sigmoid,
            nn.Softplus,
            nn.Softsign,
            nn.Tanh,
            AffineScaling,
        ],
        _elementwise,
    ),
}
"""By exact type: a subclass, or a layer with hooks or a parametrisation, may do something else."""
