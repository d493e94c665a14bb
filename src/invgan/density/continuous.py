"""A continuous flow: rows move along a learned velocity field."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invgan.density.bijections import Bijection
from invgan.density.tabular import import_zuko
from invgan.networks import mlp

N_FREQUENCIES = 3
"""Sines and cosines of the time that the velocity sees."""
TOLERANCE, TRAINING_TOLERANCE = 1e-5, 1e-2
"""Largest error of a step, absolute and relative, in scaled units."""
SHORTEST_STEP = 1e-3
"""The time that a step takes at least, whatever its error: it bounds the time that scoring takes."""
EXACT_IN_TRAINING, EXACT_IN_SCORING = 4, 64
"""Dimensions up to which the trace is exact."""
N_PROBES = 16
"""Fixed random signs by which the trace is estimated while scoring, beyond that."""


class Velocity(nn.Module):
    """dx/dt as a function of x and t, which is shown to the network as further features or channels.

    Parameters
    ----------
    net : nn.Sequential
        Linear layers, or convolutions that keep an image's size, with tanh between them.
    """

    frequencies: Tensor

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("frequencies", math.pi * torch.arange(1, N_FREQUENCIES + 1))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """Return dx/dt at times t, shape (n, 1), and rows x."""
        return self.net(self._with_time(t, x))

    def pushed(self, t: Tensor, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return dx/dt and its derivatives along tangents, shape (k, n, \\*data_shape), by hand.

        That is several times faster than functional differentiation, whose bookkeeping outweighs such layers.
        """
        hidden = self._with_time(t, x)
        time = tangents.new_zeros(*tangents.shape[:2], 2 * N_FREQUENCIES, *tangents.shape[3:])
        tangents = torch.cat([tangents, time], 2)
        for layer in self.net:
            hidden = layer(hidden)
            if isinstance(layer, nn.Linear):
                tangents = F.linear(tangents, layer.weight)
            elif isinstance(layer, nn.Conv2d):
                images = F.conv2d(tangents.flatten(0, 1), layer.weight, padding=layer.padding)
                tangents = images.unflatten(0, tangents.shape[:2])
            else:
                tangents = tangents * (1 - hidden.square())
        return hidden, tangents

    def _with_time(self, t: Tensor, x: Tensor) -> Tensor:
        angles = t * self.frequencies  # n×F
        time = torch.cat([angles.cos(), angles.sin()], 1).view(len(x), -1, *[1] * (x.ndim - 2))
        return torch.cat([x, time.expand(-1, -1, *x.shape[2:])], 1)


def dense_velocity(n_features: int, hidden: list[int]) -> Velocity:
    """Build the velocity of rows that are vectors; bounded, so that a row far outside stays where it is."""
    return Velocity(mlp([n_features + 2 * N_FREQUENCIES, *hidden, n_features], activation="tanh"))


def conv_velocity(n_channels: int, width: int, n_layers: int) -> Velocity:
    """Build the velocity of images: convolutions that keep their size."""
    widths = [n_channels + 2 * N_FREQUENCIES, *[width] * n_layers]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.Tanh()]
    return Velocity(nn.Sequential(*layers, nn.Conv2d(width, n_channels, 3, padding=1)))


class Continuous(Bijection):
    r"""Move rows along a velocity field for one unit of time.

    .. math::
        \frac{dx}{dt} = v(t, x), \qquad
        \log|\det \partial x(1) / \partial x(0)| = \int_0^1 \mathrm{tr}(\partial v / \partial x)\,dt

    **Time.** Dormand-Prince steps, as short as their error asks for. Training, which differentiates through
    them, takes a minibatch's rows together: with a fixed number of steps the field would learn to make errors
    that look like likelihood. In evaluation mode each row has steps of its own, or its density would depend
    on its company.

    **Trace.** Exact for few dimensions (4 in training, 64 in evaluation mode); beyond, Hutchinson's estimate,
    :math:`\mathrm{E}[\epsilon^\top (\partial v / \partial x) \epsilon]` with random signs ε: one draw per
    row and step in training; in evaluation mode the mean over 16 that are fixed, the same for all rows and
    calls.

    Parameters
    ----------
    velocity : Velocity
    data_shape : tuple of int
        Shape of one row.

    Source
    ------
    Grathwohl et al. (2019), "FFJORD"; Chen et al. (2018), "Neural ordinary differential equations".
    """

    recordable = False  # the rows' errors decide on the steps
    probes: Tensor

    def __init__(self, velocity: Velocity, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.velocity = velocity
        self.data_shape = data_shape
        self.n_features = math.prod(data_shape)
        if self.n_features <= EXACT_IN_SCORING:
            probes = torch.eye(self.n_features)
        else:
            fixed = torch.Generator().manual_seed(0)
            probes = _signs(torch.rand(N_PROBES, self.n_features, generator=fixed)) / math.sqrt(N_PROBES)
        self.register_buffer("probes", probes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        probes = self.probes.view(-1, 1, *self.data_shape)
        if self.training and self.n_features > EXACT_IN_TRAINING:
            # The run lends its own generator to the layers that draw, as to Dropout.
            probes = _signs(torch.rand_like(x))[None]

        def rates(t: Tensor, state: Tensor) -> Tensor:
            return self._velocity_and_trace(t, state[:, :-1].view(x.shape), probes)

        state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
        moved = self._integrate(rates, state, 0.0, 1.0)
        return moved[:, :-1].view(x.shape), moved[:, -1]

    def inverse(self, z: Tensor) -> Tensor:
        def rates(t: Tensor, state: Tensor) -> Tensor:
            return self.velocity(t, state.view(z.shape)).flatten(1).to(z.dtype)

        return self._integrate(rates, z.flatten(1), 1.0, 0.0).view(z.shape)

    def _velocity_and_trace(self, t: Tensor, x: Tensor, probes: Tensor) -> Tensor:
        tangents = probes.expand(-1, *x.shape)
        velocity, pushed = self.velocity.pushed(t, x, tangents)
        trace = (tangents * pushed).flatten(2).sum((0, 2))
        return torch.cat([velocity.flatten(1), trace[:, None]], 1).to(x.dtype)

    def _integrate(
        self, rates: Callable[[Tensor, Tensor], Tensor], state: Tensor, start: float, end: float
    ) -> Tensor:
        """Take steps of adapted size; in evaluation mode each row its own, in training all rows the same."""
        together, tolerance = self.training, TRAINING_TOLERANCE if self.training else TOLERANCE
        t = state.new_full((len(state), 1), start)
        dt = torch.full_like(t, (end - start) / 8)
        while (t != end).any():
            left = end - t
            last = dt.abs() >= left.abs()
            dt = torch.where(last, left, dt)
            proposed, error = import_zuko().utils.dopri45(rates, state, t, dt, error=True)
            with torch.no_grad():  # gradients pass through the steps, not through their sizes
                allowed = tolerance * (1 + torch.maximum(state.abs(), proposed.abs()))
                excess = (error / allowed).amax(1, keepdim=True).nan_to_num(torch.inf)
                if together:
                    excess = excess.max().expand_as(excess)
                accepted = (excess <= 1) | (dt.abs() <= SHORTEST_STEP)
                finite = torch.where(accepted, proposed, state).isfinite().all(1, keepdim=True)
            if not together:
                state = torch.where(accepted, proposed, state)
            elif accepted.all():
                state = proposed
            t = torch.where(accepted, torch.where(last, end, t + dt), t)
            # What is not finite stays so: no step is short enough for it.
            t = torch.where(accepted & ~finite, end, t)
            if together and (t == end).any():
                break
            factor = (0.9 * excess.clamp_min(1e-6) ** -0.2).clamp(0.2, 5)
            dt = math.copysign(1, end - start) * (dt.abs() * factor).clamp_min(SHORTEST_STEP)
        return state


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform)
