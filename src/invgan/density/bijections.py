"""Invertible maps of rows whose log-determinant is known, and how they are put together."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MARGIN = 1e-4
"""What is left of a standard normal distribution beyond the lowest level, and beyond the highest."""
LOGIT_MARGINS = (0.05, 0.01, 1e-3, 1e-4, 1e-5)
"""How far from 0 and 1 the logit may be taken (at 0 and 1 themselves it is infinite): the first is that of
Dinh et al. (2017), the last nearly that of Papamakarios et al. (2017), of 1e-6."""
LARGEST_LOG_SCALE = 3.0
"""Bound on what one convolutional coupling multiplies by, as a logarithm."""
LARGEST_LOG_STRETCH = math.log(2)
"""Bound on what a linear map of a table multiplies by, as a logarithm: one after the other they would take a
row far outside, where nothing was learned, ever further."""


class Bijection(nn.Module, ABC):
    """An invertible map z = f(x), of rows to rows of the same size."""

    recordable: bool = True
    """Whether it is the same operations for any rows: see :class:`~invgan.training.Trainable`."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(x) and log |det ∂f/∂x|, shape (n,)."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """Return x with f(x) = z."""

    def initialize(self, x: Tensor) -> Tensor:
        """Set what depends on the data from a batch of rows; return f(x)."""
        return self(x)[0]


class Chain(Bijection):
    """Apply bijections one after the other, and remember while training which one first failed.

    Examples
    --------
    >>> chain = Chain([Gaussianization(1, 256), Flatten((1, 2, 2))])
    >>> z, log_abs_det = chain(torch.zeros(3, 1, 2, 2))
    >>> z.shape, log_abs_det.shape
    (torch.Size([3, 4]), torch.Size([3]))
    """

    first_bad: Tensor

    def __init__(self, layers: Sequence[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.register_buffer("first_bad", torch.tensor(len(layers)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        finite = []
        for layer in self.layers:
            x, log_abs_det = layer(x)
            total = total + log_abs_det
            if self.training:
                finite.append((x.detach().flatten(1).sum(1) + total.detach()).isfinite().all())
        if finite:
            self._remember(torch.stack(finite))
        return x, total

    def _remember(self, finite: Tensor) -> None:
        # Kept on the device: a look at it would make every step wait.
        first = torch.where(finite, len(self.layers), torch.arange(len(finite), device=finite.device)).min()
        self.first_bad.copy_(torch.where(self.first_bad == len(self.layers), first, self.first_bad))

    def inverse(self, z: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            assert isinstance(layer, Bijection)
            z = layer.inverse(z)
        return z

    def initialize(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert isinstance(layer, Bijection)
            x = layer.initialize(x)
        return x


def first_failure(flow: nn.Module) -> str | None:
    """Name the innermost layer whose values first stopped being finite while a flow was trained."""
    for chain in flow.modules():
        if isinstance(chain, Chain) and chain.first_bad < len(chain.layers):
            index = int(chain.first_bad)
            layer = chain.layers[index]
            name = f"layer {index + 1} of {len(chain.layers)} ({type(layer).__name__})"
            inner = first_failure(layer)
            return f"{inner} in {name}" if inner else name
    return None


class Flatten(Bijection):
    """Lay an image out as one vector."""

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.data_shape = data_shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z.unflatten(1, self.data_shape)


class Gaussianization(Bijection):
    r"""Map the pixels of each channel, [-1, 1] when scaled, to a standard normal variable.

    .. math:: f(x) = \Phi^{-1}\bigl(\alpha + (1 - 2\alpha) F(x)\bigr), \qquad |x| \le 1

    F is the distribution of a channel's dequantised levels in training images, a straight line within each
    level; α keeps f finite. Beyond ±1 it goes on in a straight line with the slope it has there: a density is
    then positive, and finite, for any value.

    A logit is the usual choice. On MNIST, where four pixels of five are black, it leaves the uniform noise of
    that one level distributed like the logarithm of a uniform variable, which costs a Gaussian 0.42 nats a
    pixel, and couplings of pixel with pixel hardly get rid of it; here 0.10 are left.

    Parameters
    ----------
    n_channels : int
    n_levels : int
        Levels between the lowest and the highest, both included.

    Source
    ------
    Chen and Gopinath (2000), "Gaussianization", its marginal step, for levels.
    """

    below: Tensor

    def __init__(self, n_channels: int, n_levels: int) -> None:
        super().__init__()
        uniform = torch.linspace(MARGIN, 1 - MARGIN, n_levels + 1)
        self.register_buffer("below", uniform.repeat(n_channels, 1))
        """α + (1 - 2α) F at the borders of each channel's levels, shape (C, L + 1)."""

    @property
    def _n_levels(self) -> int:
        return self.below.shape[1] - 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-1, 1)
        position = (inside + 1) * (self._n_levels / 2)
        level = position.detach().long().clamp(0, self._n_levels - 1)  # also of NaN, where training diverged
        left, right = self._borders(level)
        z = torch.special.ndtri(left + (position - level) * (right - left))
        log_slope = self._log_slope(z, left, right)
        return z + log_slope.exp() * (x - inside), log_slope.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        within = z.clamp(torch.special.ndtri(self.below[0, 0]), torch.special.ndtri(self.below[0, -1]))
        share = torch.special.ndtr(within)
        level = torch.searchsorted(self.below, share.movedim(1, 0).flatten(1), right=True) - 1
        level = level.clamp(0, self._n_levels - 1).view_as(share.movedim(1, 0)).movedim(0, 1)
        left, right = self._borders(level)
        inside = (level + (share - left) / (right - left)) * (2 / self._n_levels) - 1
        return inside + (z - within) * (-self._log_slope(within, left, right)).exp()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        level = ((x.double() + 1) * (self._n_levels / 2)).long().clamp(0, self._n_levels - 1)
        for below, of_channel in zip(self.below, level.unbind(1), strict=True):
            # One more of each: no level is impossible.
            counts = 1 + torch.bincount(of_channel.flatten(), minlength=self._n_levels).double()
            below.copy_(MARGIN + (1 - 2 * MARGIN) * F.pad(counts.cumsum(0), (1, 0)) / counts.sum())
        return self(x)[0]

    def _borders(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Look up the scaled F at the borders of each pixel's level."""
        channel = torch.arange(len(self.below), device=level.device)
        channel = channel.view(-1, *[1] * (level.ndim - 2)).expand_as(level)
        return self.below[channel, level], self.below[channel, level + 1]

    def _log_slope(self, z: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return log f', that of F over that of Φ at z."""
        of_level = ((right - left) * (self._n_levels / 2)).log()
        return of_level + (z.square() + math.log(2 * math.pi)) / 2


class Logit(Bijection):
    r"""Map [-1, 1], the range of scaled pixels, to a wide range, and what lies outside by a straight line.

    .. math:: f(x) = \mathrm{logit}\bigl(\tfrac12 + (\tfrac12 - \alpha) x\bigr), \qquad |x| \le 1

    continued beyond ±1 with the slope it has there: a density is then positive, and finite, for any value.

    :meth:`initialize` chooses the margin α by the likelihood of a Gaussian for each pixel of f(x). Where most
    pixels are black, a small one spreads that single level out, and one Gaussian covers it and the ink.

    Source
    ------
    Dinh et al. (2017), "Density estimation using Real NVP", section 4.1; the continuation and the choice of α
    are ours.
    """

    margin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("margin", torch.tensor(LOGIT_MARGINS[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-1, 1)
        below, above = self._parts(inside)
        slope = (0.5 - self.margin) / (below * above)
        return below.log() - above.log() + slope * (x - inside), slope.log().flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        edge = torch.logit(1 - self.margin)
        within = z.clamp(-edge, edge)
        inside = (torch.sigmoid(within) - 0.5) / (0.5 - self.margin)
        below, above = self._parts(inside)
        return inside + (z - within) * below * above / (0.5 - self.margin)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        likelihoods = []
        for margin in LOGIT_MARGINS:
            y, log_abs_det = self._with(margin)(x.double())
            likelihoods.append(log_abs_det.mean() - y.std(0, correction=0).log().sum())
        self._with(LOGIT_MARGINS[torch.stack(likelihoods).argmax()])
        return self(x)[0]

    def _with(self, margin: float) -> "Logit":
        self.margin.fill_(margin)
        return self

    def _parts(self, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shares of the interval from 0 to 1 below and above x, free of cancellation."""
        share = 0.5 - self.margin
        return self.margin + share * (1 + inside), self.margin + share * (1 - inside)


class ActNorm(Bijection):
    r"""Shift and scale each channel: :math:`z = (x - \mu) e^{-s}`.

    :meth:`initialize` sets μ and s so that the batch it is given leaves with mean 0 and variance 1; from then
    on they are learned.

    Source
    ------
    Kingma and Dhariwal (2018), "Glow", section 3.1.
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_channels))
        self.log_std = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n_pixels = math.prod(x.shape[2:])
        z = (x - _per_channel(self.mean, x)) * _per_channel(-self.log_std, x).exp()
        return z, (-n_pixels * self.log_std.sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z * _per_channel(self.log_std, z).exp() + _per_channel(self.mean, z)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        std = x.std(dims, correction=0)
        self.mean.copy_(x.mean(dims))
        self.log_std.copy_(torch.where(std > 1e-6, std, 1).log())
        return self(x)[0]


class InvertibleLinear(Bijection):
    r"""Mix the channels by a matrix :math:`W = P L (U + \mathrm{diag}(\pm e^s))`, at first a random rotation.

    P is a fixed permutation, L lower triangular with ones on its diagonal, U strictly upper triangular;
    :math:`\log|\det W| = \sum_i s_i`, times the number of pixels.

    Parameters
    ----------
    n_channels : int
    rotated : bool
        False: at first a random permutation, and :math:`|s_i|` stays below log 2.

    Source
    ------
    Kingma and Dhariwal (2018), "Glow", section 3.2; the permutation and the bound are ours.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, n_channels: int, *, rotated: bool = True) -> None:
        super().__init__()
        self.rotated = rotated
        if rotated:
            weight = torch.linalg.qr(torch.randn(n_channels, n_channels, dtype=torch.float64))[0]
        else:
            weight = torch.eye(n_channels, dtype=torch.float64)[torch.randperm(n_channels)]
        permutation, lower, upper = torch.linalg.lu(weight)
        diagonal = upper.diagonal()
        self.register_buffer("order", permutation.argmax(1))
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_stretch = nn.Parameter(diagonal.abs().log().float())

    def weight(self) -> Tensor:
        """Return W, shape (C, C)."""
        lower = self.lower.tril(-1) + torch.ones_like(self.log_stretch).diag()
        upper = self.upper.triu(1) + (self.sign * self._stretches().exp()).diag()
        columns = torch.arange(len(self.order), device=self.order.device)
        # A product, as the gradient of an index is added up entry by entry.
        return (self.order[:, None] == columns).to(lower) @ (lower @ upper)

    def _stretches(self) -> Tensor:
        """Return s; a random rotation's may be any numbers."""
        s = self.log_stretch
        return s if self.rotated else s / (1 + (s / LARGEST_LOG_STRETCH).abs())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n_pixels = math.prod(x.shape[2:])
        return self._mix(x, self.weight), (n_pixels * self._stretches().sum()).expand(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return self._mix(z, lambda: torch.linalg.inv(self.weight().double()).to(z))

    def _mix(self, x: Tensor, matrix: Callable[[], Tensor]) -> Tensor:
        # In bfloat16, or an accelerator's convolutions, the determinant would not be that of this map.
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, matrix()) if x.ndim == 2 else (matrix() @ x.flatten(2)).view(x.shape)


class Squeeze(Bijection):
    """Turn each 2x2 square of pixels into four channels."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


class ConvCoupling(Bijection):
    r"""Scale and shift the values outside a mask by functions of those inside it.

    .. math:: z = m x + (1 - m) (x e^{s(m x)} + t(m x)), \qquad |s| < 3

    Parameters
    ----------
    mask : Tensor of zeros and ones
        m, of a shape that broadcasts to that of one image: see :func:`checkerboard` and :func:`half_of`.
    net : nn.Module
        (n, C, H, W) → (n, 2C, H, W), s and t.

    Source
    ------
    Dinh et al. (2017), sections 3.2 and 3.4.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.net = net

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(x * self.mask).to(x.dtype).chunk(2, 1)
        bounded = LARGEST_LOG_SCALE * torch.tanh(log_scale / LARGEST_LOG_SCALE)
        return (1 - self.mask) * bounded, (1 - self.mask) * shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._scale_and_shift(x)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        log_scale, shift = self._scale_and_shift(z)
        return (z - shift) * (-log_scale).exp()


def checkerboard(height: int, width: int, parity: int) -> Tensor:
    """Mask every other pixel, shape (1, H, W).

    Examples
    --------
    >>> checkerboard(2, 3, 0).tolist()
    [[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]
    """
    ones = (torch.arange(height)[:, None] + torch.arange(width) + parity) % 2 == 0
    return ones.float()[None]


def half_of(n_channels: int, parity: int) -> Tensor:
    """Mask the first or the second half of the channels, shape (C, 1, 1).

    Examples
    --------
    >>> half_of(4, 1).flatten().tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    first = torch.arange(n_channels) < n_channels // 2
    return (first if parity == 0 else ~first).float()[:, None, None]


class MultiScale(Bijection):
    """Let half of the channels be done after each scale, and go on with the others; return them all, flat.

    Parameters
    ----------
    scales : sequence of Bijection
        Each maps images to images.
    shapes : sequence of (C, H, W)
        What each returns.

    Source
    ------
    Dinh et al. (2017), section 3.6.
    """

    def __init__(self, scales: Sequence[Bijection], shapes: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        self.shapes = tuple(shapes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total, done = x.new_zeros(len(x)), list[Tensor]()
        for index, scale in enumerate(self.scales):
            x, log_abs_det = scale(x)
            total = total + log_abs_det
            x = self._put_aside(index, x, done)
        return torch.cat([part.flatten(1) for part in done], 1), total

    def _put_aside(self, index: int, x: Tensor, done: list[Tensor]) -> Tensor:
        if index == len(self.scales) - 1:
            done.append(x)
            return x
        finished, x = x.chunk(2, 1)
        done.append(finished)
        return x

    def inverse(self, z: Tensor) -> Tensor:
        sizes = [math.prod(shape) // 2 for shape in self.shapes]
        sizes[-1] *= 2
        parts = list(z.split(sizes, 1))
        x = parts[-1].unflatten(1, self.shapes[-1])
        for index in reversed(range(len(self.scales))):
            scale, (channels, *sides) = self.scales[index], self.shapes[index]
            if index < len(self.scales) - 1:
                x = torch.cat([parts[index].unflatten(1, (channels // 2, *sides)), x], 1)
            assert isinstance(scale, Bijection)
            x = scale.inverse(x)
        return x

    def initialize(self, x: Tensor) -> Tensor:
        done: list[Tensor] = []
        for index, scale in enumerate(self.scales):
            assert isinstance(scale, Bijection)
            x = self._put_aside(index, scale.initialize(x), done)
        return torch.cat([part.flatten(1) for part in done], 1)


class ResidualBlock(nn.Module):
    """Add what two convolutions make of an image to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


def conv_net(channels_in: int, channels_out: int, width: int, n_blocks: int = 2) -> nn.Sequential:
    """Build a coupling's network; it returns zeros at first, so that a flow starts as the identity."""
    last = nn.Conv2d(width, channels_out, 3, padding=1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    blocks = [ResidualBlock(width) for _ in range(n_blocks)]
    return nn.Sequential(nn.Conv2d(channels_in, width, 3, padding=1), *blocks, nn.ReLU(), last)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 2))
