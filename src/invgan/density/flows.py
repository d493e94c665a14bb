"""Flows, each learned by maximum likelihood: MADE, MAF, RealNVP, Glow, FFJORD."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invgan.density.base import DensityEstimator
from invgan.density.bijections import (
    ActNorm,
    Bijection,
    Chain,
    ConvCoupling,
    Flatten,
    InvertibleLinear,
    MultiScale,
    Squeeze,
    checkerboard,
    conv_net,
    half_of,
)
from invgan.density.continuous import Continuous, conv_velocity, dense_velocity
from invgan.density.tabular import autoregressive, coupling
from invgan.errors import InputError

MAX_SCALES = 3
"""Scales of a multi-scale flow, the image being halved from one to the next while its sides are even."""


@dataclass(eq=False, repr=False, kw_only=True)
class FeaturewiseFlow(DensityEstimator):
    """Base of the flows whose layers transform each feature given others.

    Parameters
    ----------
    spline : bool, optional
        What is done to a feature: scale, shift and a monotone rational-quadratic spline (Durkan et al.,
        2019), or scale and shift alone, as in the models' own papers. By default True for tables, False for
        images, whose convolutional couplings have no splines.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **DensityEstimator._parameter_constraints,
        "spline": [None, "boolean"],
    }

    spline: bool | None = None

    def _uses_splines(self) -> bool:
        return len(self.data_shape_) == 1 if self.spline is None else self.spline

    def _default_learning_rate(self) -> float:
        return 1e-2 if self._uses_splines() else 1e-3


class MADE(FeaturewiseFlow):
    r"""A masked autoencoder: one network gives the distribution of each feature given those before it.

    .. math:: p(x) = \prod_i p\bigl(x_i;\, \theta_i(x_{<i})\bigr)

    All :math:`\theta_i` come out of one network whose weights are masked. Without splines
    :math:`p(x_i;\, \theta_i)` is a Gaussian. Its limit: a conditional with two modes gets one over both.
    For images the features are the pixels, row by row.

    Parameters
    ----------
    n_layers : int, optional
        Hidden layers of the network, 2 by default.
    width : int, optional
        Units of each, 128 by default, 1,024 for images of 256 values or more.
    spline : bool, optional
        What takes a feature to a standard normal one: see :class:`FeaturewiseFlow`; False makes Gaussians.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`.

    Source
    ------
    Germain et al. (2015), "MADE: Masked autoencoder for distribution estimation", with real-valued features;
    the Gaussians are those of Papamakarios et al. (2017), section 4, the splines ours.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> model = MADE(max_steps=200, random_state=0).fit(X)
    >>> bool(abs(model.score_samples(np.zeros((1, 2)))[0] + np.log(2 * np.pi)) < 0.3)  # N(0, I) at 0
    True
    """

    def _layers(self) -> list[Bijection]:
        hidden = [self.width or (1024 if self._is_large_image() else 128)] * (self.n_layers or 2)
        return [*self._flattened(), autoregressive(self._size(), 0, hidden, spline=self._uses_splines())]


class MAF(FeaturewiseFlow):
    r"""Masked autoregressive flow: layers in which each feature is transformed given those before it.

    .. math:: z_i = f(x_i;\, \theta_i(x_{<i}))

    Layer after layer the order is reversed, or another. A density is one pass through the networks, a sample
    as many as there are features. For images the features are the pixels.

    Parameters
    ----------
    n_layers : int, optional
        Autoregressive layers: 4 by default, 5 for images.
    width : int, optional
        Units of both hidden layers of each network: 64 by default, 128 for images, 1,024 for those of 256
        values or more.
    spline : bool, optional
        f: see :class:`FeaturewiseFlow`; False is the original.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`.

    Source
    ------
    Papamakarios et al. (2017), "Masked autoregressive flow for density estimation", without its batch
    normalisation.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).uniform(size=(500, 2))
    >>> MAF(max_steps=10, random_state=0).fit(X).sample(3, random_state=0).shape
    (3, 2)
    """

    def _layers(self) -> list[Bijection]:
        image = len(self.data_shape_) == 3
        width = self.width or (1024 if self._is_large_image() else 128 if image else 64)
        n_layers, hidden = self.n_layers or (5 if image else 4), [width] * 2
        stack = [
            autoregressive(self._size(), i, hidden, spline=self._uses_splines()) for i in range(n_layers)
        ]
        return [*self._flattened(), *stack]


class CouplingFlow(FeaturewiseFlow):
    """Base of the flows that stack couplings, in which one half of the values is changed given the other."""

    @abstractmethod
    def _before_coupling(self, n_channels: int) -> list[Bijection]:
        """Build what comes before each coupling."""

    @abstractmethod
    def _one_scale(self, shape: tuple[int, int, int], *, last: bool) -> list[Bijection]:
        """Build one scale of an image's flow; unless it is the last, it halves the image."""

    @abstractmethod
    def _is_last(self, shape: tuple[int, int, int]) -> bool:
        """Tell whether images of this shape leave no scale after this one."""

    def _layers(self) -> list[Bijection]:
        if self._uses_convolutions():
            return [self._scales()]
        hidden = [self.width or 64] * 2
        stack: list[Bijection] = []
        for i in range(self.n_layers or 8):
            stack += self._before_coupling(self._size())
            stack.append(coupling(self._size(), i, hidden, spline=self._uses_splines()))
        return [*self._flattened(), *stack]

    def _scales(self) -> MultiScale:
        if self._uses_splines():
            raise InputError(
                f"The 'spline' parameter of {type(self).__name__} must be False for images of shape "
                f"{self.data_shape_}, whose couplings are convolutions. Got True instead."
            )
        channels, height, width = self.data_shape_
        scales, shapes, last = list[Chain](), list[tuple[int, int, int]](), False
        while not last:
            shape = (channels, height, width)
            last = len(scales) == MAX_SCALES - 1 or self._is_last(shape)
            scales.append(Chain(self._one_scale(shape, last=last)))
            with torch.no_grad():
                _, *after = scales[-1](torch.zeros(1, *shape))[0].shape
            shapes.append((after[0], after[1], after[2]))
            channels, height, width = after[0] // 2, after[1], after[2]
        return MultiScale(scales, shapes)

    def _couplings(self, shape: tuple[int, int, int], *, checkered: bool, n: int) -> list[Bijection]:
        """Build convolutional couplings whose masks alternate."""
        channels, height, width = shape
        layers: list[Bijection] = []
        for i in range(n):
            mask = checkerboard(height, width, i % 2) if checkered else half_of(channels, i % 2)
            net = conv_net(channels, 2 * channels, self.width or 64)
            layers += [*self._before_coupling(channels), ConvCoupling(mask, net)]
        return layers


class RealNVP(CouplingFlow):
    r"""Real-valued non-volume-preserving flow: couplings.

    .. math:: z_a = x_a, \qquad z_b = f(x_b;\, \theta(x_a))

    For images f scales and shifts, :math:`\theta` is a residual convolutional network, and a and b are the
    two colours of a checkerboard, then halves of the channels that each 2x2 square of pixels has become; then
    half of the channels are done, up to three scales. Activation normalisation stands where the paper
    normalises over the batch: a density may not depend on other rows.

    Parameters
    ----------
    n_layers : int, optional
        Couplings: 8 by default. For images, couplings with each kind of mask at each scale: 4.
    width : int, optional
        Units of both hidden layers of each network, or channels of the convolutions: 64 by default.
    spline : bool, optional
        f: see :class:`FeaturewiseFlow`; False is the original.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`.

    Source
    ------
    Dinh et al. (2017), "Density estimation using Real NVP".

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> model = RealNVP(max_steps=20, random_state=0).fit(X)
    >>> bool(model.score_samples(np.zeros((1, 2))) > model.score_samples(np.full((1, 2), 5.0)))
    True
    """

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        return 6000 if self._uses_splines() else super()._default_max_steps(n_training, batch_size)

    def _before_coupling(self, n_channels: int) -> list[Bijection]:
        return [ActNorm(n_channels)]

    def _is_last(self, shape: tuple[int, int, int]) -> bool:
        return any(side % 2 for side in shape[1:])

    def _one_scale(self, shape: tuple[int, int, int], *, last: bool) -> list[Bijection]:
        n, (channels, height, width) = self.n_layers or 4, shape
        checkered = self._couplings(shape, checkered=True, n=n)
        if last:
            return checkered
        halved = (4 * channels, height // 2, width // 2)
        return [*checkered, Squeeze(), *self._couplings(halved, checkered=False, n=n)]


class Glow(CouplingFlow):
    """Generative flow: activation normalisation, an invertible linear map, a coupling, again and again.

    The linear maps start as random rotations, those of a table as permutations: edges along single columns,
    as those of a checkerboard, would be hard to find again in a rotated one. Activation normalisation starts
    from a batch of training rows, before the training. For images the linear map is a 1x1 convolution,
    couplings are between halves of the channels, and after each scale half of them are done.

    Parameters
    ----------
    n_layers : int, optional
        Such steps: 8 by default. For images, steps at each scale: 8.
    width : int, optional
        Units of both hidden layers of each coupling's network, or channels of the convolutions: 64.
    spline : bool, optional
        What a coupling does to a feature: see :class:`FeaturewiseFlow`; False is the original.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`.

    Source
    ------
    Kingma and Dhariwal (2018), "Glow: Generative flow with invertible 1x1 convolutions".

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 2)) @ [[1, 1], [0, 0.1]]
    >>> model = Glow(max_steps=20, random_state=0).fit(X)
    >>> bool(model.score_samples([[1.0, 1.0]]) > model.score_samples([[1.0, -1.0]]))
    True
    """

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        return 8000 if self._uses_splines() else super()._default_max_steps(n_training, batch_size)

    def _before_coupling(self, n_channels: int) -> list[Bijection]:
        return [ActNorm(n_channels), InvertibleLinear(n_channels, rotated=len(self.data_shape_) == 3)]

    def _is_last(self, shape: tuple[int, int, int]) -> bool:
        return any(side % 4 for side in shape[1:])

    def _one_scale(self, shape: tuple[int, int, int], *, last: bool) -> list[Bijection]:
        channels, height, width = shape
        halved = (4 * channels, height // 2, width // 2)
        return [Squeeze(), *self._couplings(halved, checkered=False, n=self.n_layers or 8)]


class FFJORD(DensityEstimator):
    """Free-form continuous flow: rows move along a learned velocity field, from the data to N(0, I).

    See :class:`~invgan.density.continuous.Continuous` for how the field is integrated and its divergence
    estimated. Densities are good to about 1e-4 nats, the error of the integration, up to 64 dimensions;
    beyond them the divergence is estimated with fixed random signs.

    Parameters
    ----------
    n_layers : int, optional
        Hidden layers of the velocity's network: 3 by default.
    width : int, optional
        Units of each, 64 by default, or channels of the convolutions.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`.

    Source
    ------
    Grathwohl et al. (2019), "FFJORD: Free-form continuous dynamics for scalable reversible generative
    models".

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> FFJORD(max_steps=5, random_state=0).fit(X).score_samples(X).shape
    (100,)
    """

    def _default_learning_rate(self) -> float:
        return 1e-3 if len(self.data_shape_) == 3 else 1e-2

    def _layers(self) -> list[Bijection]:
        n_layers, width = self.n_layers or 3, self.width or 64
        if self._uses_convolutions():
            channels, height, width_px = self.data_shape_
            shape = (4 * channels, height // 2, width_px // 2)
            return [Squeeze(), Continuous(conv_velocity(shape[0], width, n_layers), shape), Flatten(shape)]
        velocity = dense_velocity(self._size(), [width] * n_layers)
        return [*self._flattened(), Continuous(velocity, (self._size(),))]
