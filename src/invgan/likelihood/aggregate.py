"""The density around encoded training rows: Gaussians along the generator and the rows, with tails."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from invgan.geometry import LatentMap, jacobian
from invgan.networks import steady_product

N_NEIGHBOURS = 10
"""Neighbouring rows that say how far, and in which directions, the data extend around a row."""
NEIGHBOUR_OF_SCALE = 5
"""The neighbour whose distance is the unit of a row's noise."""
SMALLEST_SCALE = 1e-4
"""Least squared unit of a row's noise, as a share of the median one: among duplicates it would be zero."""
TAIL_SHARE = 1e-3
"""The share of the tails: from a thousandth to a tenth little changes, as densities differ by far more."""
N_FOLDS = 5
"""Folds of the cross-validation that chooses the bandwidths."""
MAX_FOLDED = 5000
"""Reference rows that are dealt into folds, at most: the bandwidths are in units that rows bring along."""
MAX_QUERIES = 1000
"""Rows of which the cross-validated likelihood is taken, at most."""
MAX_GRID_QUERIES = 250
"""Of those, the ones by which a place to start from is chosen among the points of a grid."""
MAX_ALL = 5000
"""Components that every row is compared with; of more than that, only those near it."""
MAX_NEAR = 256
"""Components that count as near, the nearest: those further away add next to nothing."""
JACOBIAN_BLOCK, JACOBIAN_BLOCK_ACCELERATOR = 64, 1024
"""Rows whose Jacobian is computed at once, on a CPU and on an accelerator."""
MAX_ALONG_VALUES = 2**18
"""Steps along axes that are held at once where whole rows are scored: what a core's cache has room for."""
MAX_NEAR_VALUES = 2**26
"""Numbers in the axes of near components, which are fetched for some rows at a time."""
MAX_GRAM_VALUES = 2**24
"""Numbers in the Gram matrices of rows with missing features: components are taken in blocks."""


class Bandwidths(NamedTuple):
    """The squared widths of a :class:`TangentMixture`; they have no unit."""

    tangent: float
    """s²: along the tangents."""
    noise: float
    """τ²: across them, in units of ρ²."""
    round: float
    """κ²: of the round kernel, in units of ρ²."""
    tail: float
    """υ²: of the tails, in units of β²."""


class TangentMixture(nn.Module):
    r"""A normalised density: around each training row a Gaussian along the generator and the rows, and tails.

    .. math::
        p(x) = \frac1n \sum_i \Bigl[(1 - \epsilon)\, N(x;\, c_i,\, \Sigma_i)
        + \epsilon \prod_j \frac{1}{2 b_i} e^{-|x_j - c_{ij}| / b_i}\Bigr], \qquad b_i = \upsilon \beta_i,

    .. math::
        \Sigma_i^{-1} = (1 - w) \bigl(s^2 T_i T_i^\top + \tau^2 \rho_i^2 I\bigr)^{-1}
        + w \bigl(\kappa^2 \rho_i^2 I\bigr)^{-1}, \qquad
        T_i = \frac{1}{\sqrt{2k}} \bigl[\,J_g(z_i)(z_j - z_i),\; c_j - c_i\,\bigr]_{j \in \mathcal{N}(i)}

    with :math:`z_i = h(c_i)` and the k rows nearest to :math:`c_i`. With the fifth of them
    :math:`\beta_i = \|c_i - c_j\|_1 / D` and :math:`\rho_i^2 = \delta_i^{3/4}\, \bar\delta^{1/4}`, where
    :math:`\delta_i = \|c_i - c_j\|^2 / D` and :math:`\bar\delta` is its geometric mean. A manifold Parzen
    estimate (Vincent and Bengio, 2002): the prior N(0, I) is replaced by the encoded training rows. Each
    component extends along the generator's surface, by the tangents of Eq. 3, and along the rows around it,
    where the generator does not reach; across both its noise is wide where rows are few (Breiman, Meisel and
    Purcell, 1977). The likelihood of held-out rows says nothing of what lies further out, where anomalies
    are: so a share w of the precision is that of a round kernel, which takes no direction for a likely one.
    Nor does a Gaussian expect a row that is far off in one feature and like the others in the rest, as tables
    have them: a small share :math:`\epsilon` is a product of Laplace kernels.
    With the decomposition :math:`T T^\top = U S^2 U^\top` the variance is :math:`\alpha_k` along axis k and
    :math:`\nu` across all of them, and the Gaussian has the closed form

    .. math::
        -2 \log N = \frac{\|r\|^2 - \sum_k (u_k \cdot r)^2}{\nu}
        + \sum_k \Bigl[\frac{(u_k \cdot r)^2}{\alpha_k} + \log \alpha_k\Bigr]
        + (D - K) \log \nu + D \log 2\pi, \qquad r = x - c_i, \quad k = 1, \dots, K.

    Parameters
    ----------
    centers : Tensor, shape (n, D)
        Scaled training rows c_i, flattened. Their precision is the precision of the computation.
    codes : Tensor, shape (n, d)
        Their latents h(c_i).
    generator : callable, (m, d) → (m, D)
        g, whose Jacobian at the codes gives the tangents.
    n_reference : int, optional
        How many of the rows, the first ones, are looked among for neighbours and choose the bandwidths; all
        by default. A further row has a component, which is made of nothing but itself and these: so its own
        density without that component, which :meth:`log_prob` can omit, is that of a new row.
    tail_share : float in [0, 1)
        ε. Images do without: under their tails all pixels count alike.

    Examples
    --------
    >>> line = TangentMixture(
    ...     torch.tensor([[0.0, 0.0], [2.0, 0.0]]),
    ...     torch.tensor([[0.0], [1.0]]),
    ...     lambda z: torch.cat([2 * z, 0 * z], 1),
    ... )
    >>> line.set_bandwidths(Bandwidths(tangent=1.0, noise=0.5, round=2.0, tail=9.0))
    >>> along, across = 1 / (0.7 / 5 + 0.3 / 4), 1 / (0.7 / 1 + 0.3 / 4)  # ρ² = 4 / 2, T Tᵀ = diag(4, 0)
    >>> gaussian = math.exp(-0.5 / along) / (2 * math.pi * math.sqrt(along * across))
    >>> tail = math.exp(-1 / 3) / (2 * 3) ** 2  # β = 2 / 2
    >>> expected = math.log(0.999 * gaussian + 0.001 * tail)
    >>> torch.allclose(line.log_prob(torch.tensor([[1.0, 0.0]])), torch.tensor(expected))
    True
    """

    round_share: ClassVar[float] = 0.3
    """w."""
    locality: ClassVar[float] = 0.75
    """The exponent of δ in ρ²: at 1 a row's own neighbours alone say how wide its noise is."""

    centers: Tensor
    codes: Tensor
    variances: Tensor
    n_reference: Tensor
    _origin: Tensor
    _around: Tensor
    _generator: LatentMap

    def __init__(
        self,
        centers: Tensor,
        codes: Tensor,
        generator: LatentMap,
        *,
        n_reference: int | None = None,
        tail_share: float = TAIL_SHARE,
    ) -> None:
        super().__init__()
        self.tail_share = tail_share
        self.register_buffer("centers", centers)
        self.register_buffer("codes", codes)
        self.register_buffer("variances", torch.ones(len(Bandwidths._fields), dtype=torch.float64))
        self.register_buffer(
            "n_reference", torch.tensor(len(centers) if n_reference is None else n_reference)
        )
        # If the generator is a module it must not become a part of this one, as by an assignment it would.
        self.__dict__["_generator"] = generator
        # What follows from the buffers and the generator is computed again on loading, not stored.
        # Distances are differences of squares, of which images that are all bright would leave few digits.
        self.register_buffer("_origin", centers[: int(self.n_reference)].mean(0), persistent=False)
        self.register_buffer("_around", centers - self._origin, persistent=False)
        for name, tensor in self._all_tangents()._asdict().items():
            self.register_buffer(f"_{name}", tensor, persistent=False)

    @property
    def tangents(self) -> "_Tangents":
        """The axes of all components, and their units."""
        return _Tangents(*(self.get_buffer(f"_{name}") for name in _Tangents._fields))

    @torch.no_grad()
    def _all_tangents(self) -> "_Tangents":
        everything = torch.arange(len(self.centers), device=self.centers.device)
        n_reference, parts = int(self.n_reference), []
        for block in everything.split(_jacobian_block(everything.device)):
            near = self._neighbours(block, everything[:n_reference])
            (vectors,) = self._vectors(block, [near])
            parts.append(_tangents(vectors, self._around[block], near))
        basis, *rest = zip(*parts, strict=True)
        at_center, lengths, scale, tail_scale = map(torch.cat, rest)
        return _Tangents(
            torch.cat(basis, 1),
            at_center,
            lengths,
            self._shrunk(_bounded(scale, n_reference), n_reference),
            _bounded(tail_scale, n_reference),
        )

    def _shrunk(self, scale: Tensor, n_reference: int | None = None) -> Tensor:
        """Draw the units of the noise to their geometric mean: ρ² from δ."""
        typical = scale[:n_reference].log().mean().exp()
        return scale**self.locality * typical ** (1 - self.locality)

    def _neighbours(self, which: Tensor, others: Tensor) -> "Neighbours":
        """Find the nearest of ``others`` to each row numbered ``which``, itself left out."""
        n_neighbours = min(N_NEIGHBOURS, len(others) - 1)
        squared = _squared_distances(self._around[which], self._around[others])
        squared[which[:, None] == others] = torch.inf
        nearest = others[squared.topk(n_neighbours, largest=False).indices]
        # Of duplicates the expansion leaves rounding errors where there is nothing.
        fifth = self.centers[nearest[:, min(NEIGHBOUR_OF_SCALE, n_neighbours) - 1]] - self.centers[which]
        return Neighbours(nearest, fifth.square().mean(1), fifth.abs().mean(1).square())

    def _vectors(self, which: Tensor, nears: "Sequence[Neighbours]") -> list[Tensor]:
        """T of the rows numbered ``which``, (b, D, 2k), in float64, for each choice of neighbours."""
        z = self.codes[which]
        steps = [_to(self.codes, which, near) for near in nears]
        widths = [each.shape[2] for each in steps]
        # Derivatives are the dear part: each row's are taken once, for all the choices.
        directions = torch.cat(steps, 2)
        if directions.shape[2] < z.shape[1]:
            along = jacobian(self._generator, z, directions=directions).double()
        else:
            along = jacobian(self._generator, z).double() @ directions.double()
        return [
            torch.cat([by_generator, _to(self.centers, which, near).double()], 2) / math.sqrt(2)
            for by_generator, near in zip(along.split(widths, dim=2), nears, strict=True)
        ]

    @property
    def bandwidths(self) -> Bandwidths:
        """s², τ², κ² and υ²."""
        return Bandwidths(*self.variances.tolist())

    def set_bandwidths(self, bandwidths: Bandwidths) -> None:
        """Set s², τ², κ² and υ²."""
        self.variances.copy_(torch.tensor(bandwidths, dtype=torch.float64))

    @torch.no_grad()
    def fit_bandwidths(self, *, seed: int) -> float:
        """Choose the bandwidths that maximise the cross-validated log-likelihood of the reference rows.

        Each fold is scored under the components, and their neighbourhoods, of the other folds alone: s² and
        τ² by the stretched kernel as if w and ε were 0, κ² by the round one as if w were 1, and υ² by the
        tails as if ε were 1.

        Parameters
        ----------
        seed : int
            Deals the rows into folds.

        Returns
        -------
        float
            The likelihood reached: nats per row of the scaled data.
        """
        if self.n_reference < N_FOLDS:
            raise ValueError(f"bandwidths need at least {N_FOLDS} rows, got {int(self.n_reference)}.")
        folds = self._folds(seed)

        def gaussians(bandwidths: Bandwidths, round_share: float, most: int = MAX_QUERIES) -> Tensor:
            return torch.cat([fold.gaussians(bandwidths, round_share, most // N_FOLDS) for fold in folds])

        tangent, noise = _maximized(lambda s, t, most: gaussians(Bandwidths(s, t, 1.0, 1.0), 0.0, most), 2)
        (rounded,) = _maximized(lambda k, most: gaussians(Bandwidths(1.0, 1.0, k, 1.0), 1.0, most), 1)
        found = Bandwidths(tangent, noise, rounded, 1.0)
        reached = gaussians(found, self.round_share)
        if self.tail_share > 0:
            absolutes = [_near_absolute_distances(fold.rows, fold.centers, fold.near) for fold in folds]

            def tails(bandwidths: Bandwidths, most: int = MAX_QUERIES) -> Tensor:
                pairs = zip(folds, absolutes, strict=True)
                return torch.cat([fold.tails(bandwidths, each[: most // N_FOLDS]) for fold, each in pairs])

            (tail,) = _maximized(lambda u, most: tails(found._replace(tail=u), most), 1)
            found = found._replace(tail=tail)
            reached = self._with_tails(reached, tails(found))
        self.set_bandwidths(found)
        return reached.mean().item()

    def _folds(self, seed: int) -> "list[_Fold]":
        """Deal reference rows into folds, each beside the components that the others' rows make."""
        n = int(self.n_reference)
        order = torch.from_numpy(np.random.default_rng(seed).permutation(n)).to(self.centers.device)
        order = order[:MAX_FOLDED]
        fold_of = order.new_full((n,), -1).index_copy_(0, order, torch.arange(len(order)).to(order) % N_FOLDS)
        dealt = (fold_of >= 0).nonzero()[:, 0]
        others = [dealt[fold_of[dealt] != fold] for fold in range(N_FOLDS)]
        queries = [self._around[order[fold::N_FOLDS][: MAX_QUERIES // N_FOLDS]] for fold in range(N_FOLDS)]
        parts: list[list[_Pairs]] = [[] for _ in range(N_FOLDS)]
        for block in dealt.split(_jacobian_block(dealt.device)):
            nears = [self._neighbours(block, rest) for rest in others]
            for fold, (near, vectors) in enumerate(zip(nears, self._vectors(block, nears), strict=True)):
                kept = fold_of[block] != fold
                centers = self._around[block[kept]]
                tangents = _tangents(vectors[kept], centers, near.take(kept))
                squared = _squared_distances(queries[fold], centers)
                along = _along(queries[fold], tangents)
                scales = (tangents.scale, tangents.tail_scale)
                parts[fold].append(_Pairs(squared, along, tangents.lengths, *scales))
        folds = []
        for rows, rest, part in zip(queries, others, parts, strict=True):
            numbers, pairs = _nearest(part)
            pairs = pairs._replace(scale=self._shrunk(pairs.scale))
            folds.append(_Fold(rows, self._around[rest], numbers, pairs))
        return folds

    @torch.no_grad()
    def log_prob(
        self, rows: Tensor, *, observed: Tensor | None = None, omitted: Tensor | None = None
    ) -> Tensor:
        r"""Log-density of scaled, flattened rows, shape (m, D) → (m,), in nats.

        Costs m·n·D·r multiplications, for n components of r axes, and m·n·D differences for the tails. Of
        more than 5,000 components only the 256 nearest to a row are summed up, which costs m·D·(n + 256 r):
        what is left out can but lower its density. With missing features, of which the axes that are left
        are no longer orthogonal, m·n·D·r² and r×r determinants:

        .. math::
            \log\det(U_o \Lambda U_o^\top + \nu I) = |o| \log \nu + \log\det A, \qquad
            A = I + \nu^{-1} \Lambda^{1/2} U_o^\top U_o \Lambda^{1/2}, \qquad \Lambda_k = \alpha_k - \nu

        Parameters
        ----------
        rows : Tensor, shape (m, D)
        observed : Tensor, shape (m, D), bool, optional
            Which features are known; what stands in the others does not count, but has to be finite.
        omitted : Tensor, shape (m,), int64, optional
            The component that is left out of each row's sum, whose factor stays 1/n; −1 for none.

        Returns
        -------
        Tensor, shape (m,)
        """
        n, near, rows = len(self.centers), None, rows - self._origin
        if observed is None and n > MAX_ALL:
            near = _squared_distances(rows, self._around).topk(MAX_NEAR, largest=False)  # m×K
        numbers = torch.arange(n, device=rows.device) if near is None else near.indices

        def mixed(log_components: Tensor) -> Tensor:
            if omitted is not None:
                log_components = log_components.masked_fill(numbers == omitted[:, None], -torch.inf)
            return torch.logsumexp(log_components, 1) - math.log(n)

        if near is not None:
            gaussians = self._near_gaussians(rows, near.values, near.indices)
        elif observed is None:
            gaussians = self._gaussians(rows)
        else:
            gaussians = self._marginal_gaussians(rows, observed)
        if self.tail_share == 0:
            return mixed(gaussians)
        return self._with_tails(mixed(gaussians), mixed(self._laplaces(rows, observed, numbers)))

    def _components(self) -> "_Components":
        lengths, scale = self.tangents.lengths, self.tangents.scale
        return _components(lengths, scale, self.bandwidths, self.round_share, self.centers.shape[1])

    def _gaussians(self, rows: Tensor) -> Tensor:
        """Log-densities under all Gaussians, m×n."""
        components = self._components()
        size = max(1, MAX_ALONG_VALUES // (len(rows) * self.tangents.lengths.shape[1]))
        blocks = zip(self.tangents.split(size), components.excess.split(size), strict=True)
        along = [_along(rows, tangents).mul_(excess).sum(2) for tangents, excess in blocks]
        return components.log_prob(_squared_distances(rows, self._around), torch.cat(along, 1))

    def _near_gaussians(self, rows: Tensor, squared: Tensor, near: Tensor) -> Tensor:
        """Log-densities under the Gaussians numbered ``near``, whose centres are so far off; all m×K."""
        (n, rank), components = self.tangents.lengths.shape, self._components()
        basis = self.tangents.basis.view(-1, n, rank)  # D×n×r
        excess = []
        at_once = max(1, MAX_NEAR_VALUES // (MAX_NEAR * rank * rows.shape[1]))
        for part, which in zip(rows.split(at_once), near.split(at_once), strict=True):
            axes = basis[:, which].transpose(0, 1).flatten(2)  # m×D×K·r
            projected = (part[:, None] @ axes).view(*which.shape, rank) - self.tangents.at_center[which]
            excess.append(projected.square_().mul_(components.excess[which]).sum(2))
        return components.log_prob(squared, torch.cat(excess), near)

    def _marginal_gaussians(self, rows: Tensor, observed: Tensor) -> Tensor:
        """Log-densities of the observed features under all Gaussians, m×n."""
        n, rank = self.tangents.lengths.shape
        size = max(1, MAX_GRAM_VALUES // ((rows.shape[1] + len(rows)) * rank**2))
        parts = [
            _log_marginal_components(
                rows,
                observed.to(rows),
                self.tangents,
                self._around,
                block,
                self.bandwidths,
                self.round_share,
            )
            for block in torch.arange(n, device=rows.device).split(size)
        ]
        return torch.cat(parts, 1)

    def _laplaces(self, rows: Tensor, observed: Tensor | None, numbers: Tensor) -> Tensor:
        """Log-densities of the observed features in the tails, m×n, or m×K of those numbered for each row."""
        n_features: int | Tensor = rows.shape[1]
        if numbers.ndim == 2:
            absolute = _near_absolute_distances(rows, self._around, numbers)
        elif observed is None:
            absolute = _absolute_distances(rows, self._around)
        else:
            known = observed.to(rows)
            n_features = known.sum(1, keepdim=True)
            # An unknown feature counts as 0, whose distance is then taken away again.
            unknown = steady_product(1 - known, self._around.abs())
            absolute = (_absolute_distances(rows * known, self._around) - unknown).clamp_min(0)
        return _tails(self.tangents.tail_scale, self.bandwidths).log_prob(absolute, n_features, numbers)

    def _with_tails(self, gaussians: Tensor, tails: Tensor) -> Tensor:
        """Mix the two log-densities of each row."""
        return torch.logaddexp(gaussians + math.log1p(-self.tail_share), tails + math.log(self.tail_share))


class Neighbours(NamedTuple):
    """The nearest of other rows, for b rows."""

    rows: Tensor  # their numbers, b×k, the nearest first
    scale: Tensor  # δ, b: what the fifth's squared distance is per feature
    tail_scale: Tensor  # β², b: the square of what its distance in absolute differences is per feature

    def take(self, which: Tensor) -> "Neighbours":
        """Keep those of some of the b rows."""
        return Neighbours(*(part[which] for part in self))


class _Tangents(NamedTuple):
    """Principal axes of T Tᵀ at every centre, and the units of the noise and of the tails there."""

    basis: Tensor  # D×n·r: each centre's r = min(2k, D) axes u, orthonormal, or zero where one has no length
    at_center: Tensor  # u·c from the origin, n×r
    lengths: Tensor  # S, n×r
    scale: Tensor  # ρ², n
    tail_scale: Tensor  # β², n

    def split(self, size: int) -> "Iterator[_Tangents]":
        """Take those of so many centres at a time."""
        bases = self.basis.split(size * self.lengths.shape[1], 1)
        return map(_Tangents, bases, *(part.split(size) for part in self[1:]))


class _Components(NamedTuple):
    """What tells a row's density under each of n Gaussians from how it lies to their centres."""

    precision: Tensor  # 1/ν
    excess: Tensor  # 1/ν − 1/α of each axis
    log_norm: Tensor  # log det Σ + D log 2π

    def log_prob(self, squared: Tensor, excess: Tensor, which: Tensor | slice = slice(None)) -> Tensor:
        """Log-density from ‖r‖² and Σ (u·r)² (1/ν − 1/α), m×n, or m×k for those numbered ``which``."""
        quadratic = (squared * self.precision[which]).sub_(excess).clamp_min_(0)
        return quadratic.add_(self.log_norm[which]).mul_(-0.5)


class _Tails(NamedTuple):
    """What tells a row's density under each of n products of Laplace kernels from its distance to them."""

    rate: Tensor  # 1/b
    log_norm: Tensor  # log 2b

    def log_prob(self, absolute: Tensor, n_features: int | Tensor, which: Tensor) -> Tensor:
        """Log-density from Σ |r| over so many features under those numbered ``which``, m×k."""
        return -(absolute * self.rate[which]).add_(n_features * self.log_norm[which])


class _Pairs(NamedTuple):
    """How m rows lie to n components, whatever the bandwidths."""

    squared: Tensor  # ‖r‖², m×n
    along: Tensor  # (u·r)², m×n×r
    lengths: Tensor  # S, n×r
    scale: Tensor  # ρ², n
    tail_scale: Tensor  # β², n


class _Fold(NamedTuple):
    """Held-out rows, m, and how they lie to the components near them, of n that are made without the fold."""

    rows: Tensor  # from the origin, m×D
    centers: Tensor  # from the origin, n×D
    near: Tensor  # the numbers of those near, m×k
    pairs: _Pairs  # m×k, m×k×r; n×r, n

    def gaussians(self, bandwidths: Bandwidths, round_share: float, most: int) -> Tensor:
        """Log-density of the first rows, under Gaussians alone."""
        squared, along, lengths, scale, _ = self.pairs
        components = _components(lengths, scale, bandwidths, round_share, self.rows.shape[1])
        which = self.near[:most]
        # A round kernel has no axes: its variance is the same along them as across.
        excess = squared.new_zeros(())
        if round_share < 1:
            excess = F.embedding(which, components.excess).mul_(along[:most]).sum(2)
        return self._mixed(components.log_prob(squared[:most], excess, which))

    def tails(self, bandwidths: Bandwidths, absolute: Tensor) -> Tensor:
        """Log-density of the first rows in the tails alone, from Σ |r| of those near them."""
        components = _tails(self.pairs.tail_scale, bandwidths)
        return self._mixed(components.log_prob(absolute, self.rows.shape[1], self.near[: len(absolute)]))

    def _mixed(self, log_components: Tensor) -> Tensor:
        # Of the components only those near a row are there; the others' share is nothing.
        return torch.logsumexp(log_components, 1) - math.log(len(self.centers))


def _jacobian_block(device: torch.device) -> int:
    return JACOBIAN_BLOCK if device.type == "cpu" else JACOBIAN_BLOCK_ACCELERATOR


def _to(points: Tensor, which: Tensor, near: Neighbours) -> Tensor:
    """The steps from each point to its neighbours, over √k, (b, D, k): a root of their covariance."""
    return ((points[near.rows] - points[which, None]) / near.rows.shape[1] ** 0.5).mT


def _tangents(tangents: Tensor, centers: Tensor, near: Neighbours) -> _Tangents:
    """Principal axes of the given tangents (b, D, k) at their centres (b, D), with the neighbours' units."""
    # The k×k Gram matrix has the same spectrum; at D in the thousands it is the cheaper way to it.
    squared_lengths, axes = torch.linalg.eigh(tangents.mT @ tangents)
    rank = min(tangents.shape[1:])
    length, axes = squared_lengths[:, -rank:].clamp_min(0).sqrt(), axes[..., -rank:]
    present = length > 1e-6 * length[:, -1:]
    direction = tangents @ axes / torch.where(present, length, 1)[:, None] * present[:, None]  # b×D×k
    at_center = torch.einsum("bd,bdk->bk", centers.double(), direction)
    basis = direction.transpose(0, 1).flatten(1)
    lengths = (length * present).to(centers)
    return _Tangents(basis.to(centers), at_center.to(centers), lengths, near.scale, near.tail_scale)


def _bounded(scale: Tensor, n_reference: int | None = None) -> Tensor:
    """Keep the units of the noise, or of the tails, from zero."""
    reference = scale[:n_reference]
    positive = reference[reference > 0]
    least = SMALLEST_SCALE * positive.median() if len(positive) else scale.new_ones(())
    return scale.clamp_min(least)


def _along(rows: Tensor, tangents: _Tangents) -> Tensor:
    """(u·r)² of every row and centre, m×n×r."""
    projected = (rows @ tangents.basis).view(len(rows), *tangents.at_center.shape)
    return projected.sub_(tangents.at_center).square_()  # the largest of all arrays: in its place


def _nearest(parts: Sequence[_Pairs]) -> tuple[Tensor, _Pairs]:
    """Number the components of all parts that are near each row, m×k, and tell how it lies to those."""
    squared, along, *rest = zip(*parts, strict=True)
    lengths, scale, tail_scale = map(torch.cat, rest)
    distances = torch.cat(squared, 1)
    near = distances.topk(min(MAX_NEAR, distances.shape[1]), largest=False)
    axes = near.indices[..., None].expand(-1, -1, along[0].shape[2])
    steps = torch.cat(along, 1).gather(1, axes)
    return near.indices, _Pairs(near.values, steps, lengths, _bounded(scale), _bounded(tail_scale))


def component_variances(
    lengths: Tensor, scale: Tensor, bandwidths: Bandwidths, round_share: float
) -> tuple[Tensor, Tensor]:
    """α, the variance along each axis, (…, n, r), and ν, that across them all, (…, n)."""
    noise, rounded = bandwidths.noise * scale, bandwidths.round * scale
    along = noise[..., None] + bandwidths.tangent * lengths.square()
    across = 1 / ((1 - round_share) / noise + round_share / rounded)
    return 1 / ((1 - round_share) / along + round_share / rounded[..., None]), across


def _components(
    lengths: Tensor, scale: Tensor, bandwidths: Bandwidths, round_share: float, n_features: int
) -> _Components:
    along, across = component_variances(lengths, scale, bandwidths, round_share)
    log_det = along.log().sum(1) + (n_features - along.shape[1]) * across.log()
    excess = 1 / across[:, None] - 1 / along
    return _Components(1 / across, excess, log_det + n_features * math.log(2 * math.pi))


def _tails(tail_scale: Tensor, bandwidths: Bandwidths) -> _Tails:
    width = tail_widths(tail_scale, bandwidths)
    return _Tails(1 / width, (2 * width).log())


def tail_widths(tail_scale: Tensor, bandwidths: Bandwidths) -> Tensor:
    """b, the scale of the Laplace kernels around each centre, (n,)."""
    return (bandwidths.tail * tail_scale).sqrt()


def _log_marginal_components(
    rows: Tensor,
    observed: Tensor,
    tangents: _Tangents,
    centers: Tensor,
    which: Tensor,
    bandwidths: Bandwidths,
    round_share: float,
) -> Tensor:
    """Log-density of the observed features under the components numbered ``which``, m×b."""
    along, noise = component_variances(
        tangents.lengths[which], tangents.scale[which], bandwidths, round_share
    )
    rank, centers = along.shape[1], centers[which]
    root = (along - noise[:, None]).clamp_min(0).sqrt()  # Λ^½, b×r
    basis = tangents.basis.view(rows.shape[1], -1, rank)[:, which] * root  # D×b×r
    given = rows * observed
    projected = given @ basis.flatten(1) - observed @ (basis * centers.T[..., None]).flatten(1)
    projected = projected.view(len(rows), -1, rank)  # Λ^½ U_oᵀ r, m×b×r
    gram = observed @ (basis[..., None] * basis[..., None, :]).flatten(1)
    gram = gram.view(len(rows), -1, rank, rank) / noise[:, None, None]
    factor = torch.linalg.cholesky(gram + torch.eye(rank, dtype=gram.dtype, device=gram.device))
    white = torch.linalg.solve_triangular(factor, projected[..., None], upper=False)[..., 0]
    squared = (
        given.square().sum(1)[:, None]
        - 2 * steady_product(given, centers)
        + steady_product(observed, centers.square())
    )
    quadratic = (squared.clamp_min(0) - white.square().sum(2) / noise).clamp_min(0) / noise
    log_det = 2 * factor.diagonal(dim1=2, dim2=3).log().sum(2)
    return -0.5 * (quadratic + log_det + observed.sum(1)[:, None] * (2 * math.pi * noise).log())


def _squared_distances(rows: Tensor, centers: Tensor) -> Tensor:
    """‖x − c‖² of every pair, by its expansion: one matrix product."""
    squared = rows.square().sum(1)[:, None] - 2 * steady_product(rows, centers) + centers.square().sum(1)
    return squared.clamp_min(0)


def _absolute_distances(rows: Tensor, centers: Tensor) -> Tensor:
    """Σ |x − c| of every pair."""
    return torch.cdist(rows, centers, p=1)


def _near_absolute_distances(rows: Tensor, centers: Tensor, near: Tensor) -> Tensor:
    """Σ |x − c| of each row and the centres numbered for it, m×K."""
    at_once = max(1, MAX_NEAR_VALUES // (near.shape[1] * rows.shape[1]))
    parts = zip(rows.split(at_once), near.split(at_once), strict=True)
    return torch.cat([centers[which].sub_(part[:, None]).abs_().sum(2) for part, which in parts])


def _maximized(log_prob: Callable[..., Tensor], n_variances: int) -> tuple[float, ...]:
    """Find the variances of the highest likelihood: from the best of a grid by Nelder and Mead's way.

    The log-densities are functions of the variances, and of how many rows at most to take.
    """

    def loss(log_variances: np.ndarray, most: int = MAX_QUERIES) -> float:
        return -log_prob(*np.exp(log_variances).tolist(), most).mean().item()

    # Bounded: duplicate rows, and rows that others are sums of, would draw τ² to zero for ever.
    bounds = np.log([(1e-3, 10.0)] * n_variances)
    grid = itertools.product(*(np.linspace(low, high, 6) for low, high in bounds))
    start = np.array(min(grid, key=lambda point: loss(np.array(point), MAX_GRID_QUERIES)))
    # Half a step of the grid, away from the nearer bound: SciPy's own first steps are a share of each
    # coordinate, which may be next to nothing.
    towards_middle = np.where(start > bounds.mean(1), -0.1, 0.1) * (bounds[:, 1] - bounds[:, 0])
    simplex = np.stack([start, *(start + towards_middle * axis for axis in np.eye(n_variances))])
    options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 1e-2}
    found = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options)
    return tuple(np.exp(found.x).tolist())
