"""The density around encoded training rows: a mixture of Gaussians along the generator's tangents."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from invgan.geometry import LatentMap, jacobian

N_NEIGHBOURS = 10
"""Neighbouring rows whose codes say how far, and in which latent directions, the data extend around a row."""
N_FOLDS = 5
"""Folds of the cross-validation that chooses the bandwidths."""
MAX_QUERIES = 1000
"""Rows of which the cross-validated likelihood is taken, at most."""
JACOBIAN_BLOCK = 64
"""Rows whose Jacobian is computed at once."""
MAX_GRAM_VALUES = 2**24
"""Numbers in the Gram matrices of rows with missing features: components are taken in blocks."""


class TangentMixture(nn.Module):
    r"""A normalised density with one Gaussian per training row, stretched along the learned tangents.

    .. math::
        p(x) = \frac1n \sum_i N\bigl(x;\, c_i,\, s^2 J_i \Sigma_i J_i^\top + \tau^2 I\bigr),
        \qquad J_i = J_g(h(c_i)), \qquad
        \Sigma_i = \frac1k \sum_{j \in \mathcal{N}(i)} (z_j - z_i)(z_j - z_i)^\top

    A manifold Parzen estimate (Vincent and Bengio, 2002) with the tangents of the generator's metric: the
    prior N(0, I) is replaced by the encoded training rows, over all of space and, by :math:`\Sigma_i`,
    around each row. With the decomposition
    :math:`J_i \Sigma_i J_i^\top = U S^2 U^\top` each component has the closed form

    .. math::
        -2 \log N = \frac{\|r\|^2 - \sum_k (u_k \cdot r)^2}{\tau^2}
        + \sum_k \Bigl[\frac{(u_k \cdot r)^2}{\tau^2 + s^2 S_k^2} + \log(\tau^2 + s^2 S_k^2)\Bigr]
        + (D - K) \log \tau^2 + D \log 2\pi, \qquad r = x - c_i, \quad k = 1, \dots, K.

    Parameters
    ----------
    centers : Tensor, shape (n, D)
        Scaled training rows c_i, flattened. Their precision is the precision of the computation.
    codes : Tensor, shape (n, d)
        Their latents h(c_i).
    generator : callable, (m, d) → (m, D)
        g, whose Jacobian at the codes gives the tangents.

    Examples
    --------
    >>> line = TangentMixture(
    ...     torch.tensor([[0.0, 0.0], [3.0, 0.0]]),
    ...     torch.tensor([[0.0], [1.0]]),
    ...     lambda z: torch.cat([3 * z, 0 * z], 1),
    ... )
    >>> line.set_bandwidths(tangent_variance=1.0, noise_variance=1.0)  # N(c, diag(10, 1)) around both
    >>> round(line.log_prob(torch.tensor([[1.5, 0.0]])).item(), 4)  # −log 2π − ½ log 10 − ½ 1.5²/10
    -3.1017
    """

    centers: Tensor
    codes: Tensor
    tangent_variance: Tensor
    noise_variance: Tensor
    _generator: LatentMap

    def __init__(self, centers: Tensor, codes: Tensor, generator: LatentMap) -> None:
        super().__init__()
        self.register_buffer("centers", centers)
        self.register_buffer("codes", codes)
        self.register_buffer("tangent_variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("noise_variance", torch.ones((), dtype=torch.float64))
        # What follows from the buffers and the generator is computed again on loading, not stored. If the
        # generator is a module it must not become a part of this one, as by an assignment it would.
        self.__dict__["_generator"] = generator
        self._tangents = self._all_tangents()

    @torch.no_grad()
    def _all_tangents(self) -> "_Tangents":
        everything = torch.arange(len(self.centers), device=self.centers.device)
        parts = []
        for block in everything.split(JACOBIAN_BLOCK):
            directions = _to_neighbours(block, everything, self.centers, self.codes)
            parts.append(_tangents(self._along(block, directions), self.centers[block]))
        basis, at_center, lengths = zip(*parts, strict=True)
        return _Tangents(torch.cat(basis, 1), torch.cat(at_center), torch.cat(lengths))

    def _along(self, which: Tensor, directions: Tensor) -> Tensor:
        """J V at the codes numbered ``which``, (b, d, k) → (b, D, k), in float64."""
        z = self.codes[which]
        if directions.shape[2] < z.shape[1]:
            return jacobian(self._generator, z, directions=directions).double()
        return jacobian(self._generator, z).double() @ directions.double()

    def set_bandwidths(self, *, tangent_variance: float, noise_variance: float) -> None:
        """Set s² (no unit) and τ² (in squared units of the scaled data)."""
        self.tangent_variance.fill_(tangent_variance)
        self.noise_variance.fill_(noise_variance)

    @torch.no_grad()
    def fit_bandwidths(self, *, seed: int) -> float:
        """Choose s² and τ² to maximise the cross-validated log-likelihood of the training rows.

        Each fold is scored under the components, and their neighbourhoods, of the other folds alone.

        Parameters
        ----------
        seed : int
            Deals the rows into folds.

        Returns
        -------
        float
            The likelihood reached: nats per row of the scaled data.
        """
        n = len(self.centers)
        if n < N_FOLDS:
            raise ValueError(f"bandwidths need at least {N_FOLDS} rows, got {n}.")
        order = torch.from_numpy(np.random.default_rng(seed).permutation(n)).to(self.centers.device)
        fold_of = torch.empty_like(order).index_copy_(0, order, torch.arange(n).to(order) % N_FOLDS)
        queries = [self.centers[order[fold::N_FOLDS][: MAX_QUERIES // N_FOLDS]] for fold in range(N_FOLDS)]
        parts: list[list[_Pairs]] = [[] for _ in range(N_FOLDS)]
        others = [(fold_of != fold).nonzero()[:, 0] for fold in range(N_FOLDS)]
        # Derivatives are the dear part: each row's are taken once, for all the folds that it is in.
        for block in torch.arange(n, device=order.device).split(JACOBIAN_BLOCK):
            directions = [_to_neighbours(block, rest, self.centers, self.codes) for rest in others]
            widths = [each.shape[2] for each in directions]
            along = self._along(block, torch.cat(directions, 2)).split(widths, dim=2)
            for fold in range(N_FOLDS):
                kept = fold_of[block] != fold
                tangents = _tangents(along[fold][kept], self.centers[block[kept]])
                parts[fold].append(_pairs(queries[fold], self.centers[block[kept]], tangents))
        pairs = [_joined(fold) for fold in parts]

        def loss(log_variances: np.ndarray) -> float:
            tangent, noise = np.exp(log_variances)
            return -torch.cat([_log_mixture(fold, tangent, noise) for fold in pairs]).mean().item()

        # τ² is bounded relative to the data's own variance: duplicate rows would draw it to zero for ever.
        spread = max(self.centers.var(0, correction=0).mean().item(), 1e-12)
        bounds = np.log([(1e-3, 10.0), (1e-3 * spread, 10 * spread)])
        grid = itertools.product(*(np.linspace(low, high, 6) for low, high in bounds))
        start = np.array(min(grid, key=lambda point: loss(np.array(point))))
        # Half a step of the grid, away from the nearer bound: SciPy's own first steps are a share of each
        # coordinate, which for a logarithm depends on the data's unit and may be next to nothing.
        towards_middle = np.where(start > bounds.mean(1), -0.1, 0.1) * (bounds[:, 1] - bounds[:, 0])
        simplex = np.stack([start, start + towards_middle * [1, 0], start + towards_middle * [0, 1]])
        options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 1e-2}
        found = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options)
        tangent, noise = np.exp(found.x)
        self.set_bandwidths(tangent_variance=tangent, noise_variance=noise)
        return -float(found.fun)

    @torch.no_grad()
    def log_prob(self, rows: Tensor, *, observed: Tensor | None = None) -> Tensor:
        r"""Log-density of scaled, flattened rows, shape (m, D) → (m,), in nats.

        Costs m·n·D·r multiplications, for n components of r tangents; with missing features, of which the
        axes that are left are no longer orthogonal, m·n·D·r² and r×r determinants:

        .. math::
            \log\det(U_o \Lambda U_o^\top + \tau^2 I) = |o| \log \tau^2 + \log\det A, \qquad
            A = I + \tau^{-2} \Lambda^{1/2} U_o^\top U_o \Lambda^{1/2}

        Parameters
        ----------
        rows : Tensor, shape (m, D)
        observed : Tensor, shape (m, D), bool, optional
            Which features are known; what stands in the others does not count, but has to be finite.

        Returns
        -------
        Tensor, shape (m,)
        """
        tangent, noise = self.tangent_variance.item(), self.noise_variance.item()
        if observed is None:
            return _log_mixture(_pairs(rows, self.centers, self._tangents), tangent, noise)
        n, rank = self._tangents.lengths.shape
        size = max(1, MAX_GRAM_VALUES // ((rows.shape[1] + len(rows)) * rank**2))
        parts = [
            _log_marginal_components(
                rows, observed.to(rows), self._tangents, self.centers, block, tangent, noise
            )
            for block in torch.arange(n, device=rows.device).split(size)
        ]
        return torch.logsumexp(torch.cat(parts, 1), 1) - math.log(n)


class _Tangents(NamedTuple):
    """Principal axes of J Σ Jᵀ at every centre."""

    basis: Tensor  # D×n·r: each centre's axes u, orthonormal, or zero where an axis has no length
    at_center: Tensor  # u·c, n×r
    lengths: Tensor  # S, n×r


class _Pairs(NamedTuple):
    """What the density of m rows under n components needs, whatever the bandwidths."""

    across: Tensor  # ‖r‖² − Σ (u·r)², m×n
    along: Tensor  # (u·r)², m×n×r
    lengths: Tensor  # S, n×r
    n_features: int


def _to_neighbours(which: Tensor, others: Tensor, centers: Tensor, codes: Tensor) -> Tensor:
    """Root of Σ_i, (b, d, k): the codes of each row's nearest neighbours among ``others``, from its own."""
    n_neighbours = min(N_NEIGHBOURS, len(others) - 1)
    squared = _squared_distances(centers[which], centers[others])
    squared[which[:, None] == others] = torch.inf  # no row is its own neighbour
    nearest = others[squared.topk(n_neighbours, largest=False).indices]  # b×k
    return ((codes[nearest] - codes[which, None]) / n_neighbours**0.5).mT


def _tangents(tangents: Tensor, centers: Tensor) -> _Tangents:
    """Principal axes of the given tangents (b, D, k) at their centres (b, D)."""
    # The k×k Gram matrix has the same spectrum; at D in the thousands it is the cheaper way to it.
    squared_lengths, axes = torch.linalg.eigh(tangents.mT @ tangents)
    length = squared_lengths.clamp_min(0).sqrt()
    present = length > 1e-6 * length[:, -1:]
    direction = tangents @ axes / torch.where(present, length, 1)[:, None] * present[:, None]  # b×D×k
    at_center = torch.einsum("bd,bdk->bk", centers.double(), direction)
    basis = direction.transpose(0, 1).flatten(1)
    return _Tangents(basis.to(centers), at_center.to(centers), (length * present).to(centers))


def _pairs(rows: Tensor, centers: Tensor, tangents: _Tangents) -> _Pairs:
    projected = (rows @ tangents.basis).view(len(rows), *tangents.at_center.shape)
    along = (projected - tangents.at_center).square()
    across = (_squared_distances(rows, centers) - along.sum(-1)).clamp_min(0)
    return _Pairs(across, along, tangents.lengths, centers.shape[1])


def _joined(parts: list[_Pairs]) -> _Pairs:
    """Pairs of the same rows with the components of all parts."""
    across, along, lengths, (n_features, *_) = zip(*parts, strict=True)
    return _Pairs(torch.cat(across, 1), torch.cat(along, 1), torch.cat(lengths), n_features)


def _log_mixture(pairs: _Pairs, tangent_variance: float, noise_variance: float) -> Tensor:
    """Log of the equally weighted mixture, shape (m,)."""
    along_variance = noise_variance + tangent_variance * pairs.lengths.square()  # n×r
    n_components, rank = along_variance.shape
    quadratic = pairs.across / noise_variance + (pairs.along / along_variance).sum(-1)
    log_det = along_variance.log().sum(-1) + (pairs.n_features - rank) * math.log(noise_variance)
    log_density = -0.5 * (quadratic + log_det + pairs.n_features * math.log(2 * math.pi))  # m×n
    return torch.logsumexp(log_density, 1) - math.log(n_components)


def _log_marginal_components(
    rows: Tensor,
    observed: Tensor,
    tangents: _Tangents,
    centers: Tensor,
    which: Tensor,
    tangent_variance: float,
    noise_variance: float,
) -> Tensor:
    """Log-density of the observed features under the components numbered ``which``, m×b."""
    rank = tangents.lengths.shape[1]
    centers, root = centers[which], tangent_variance**0.5 * tangents.lengths[which]  # b×D, b×r
    basis = tangents.basis.view(rows.shape[1], -1, rank)[:, which] * root  # D×b×r
    given = rows * observed
    projected = given @ basis.flatten(1) - observed @ (basis * centers.T[..., None]).flatten(1)
    projected = projected.view(len(rows), -1, rank)  # Λ^½ U_oᵀ r, m×b×r
    gram = observed @ (basis[..., None] * basis[..., None, :]).flatten(1)
    gram = gram.view(len(rows), -1, rank, rank) / noise_variance
    factor = torch.linalg.cholesky(gram + torch.eye(rank, dtype=gram.dtype, device=gram.device))
    white = torch.linalg.solve_triangular(factor, projected[..., None], upper=False)[..., 0]
    squared = given.square().sum(1)[:, None] - 2 * given @ centers.T + observed @ centers.square().T
    quadratic = (squared.clamp_min(0) - white.square().sum(2) / noise_variance).clamp_min(0) / noise_variance
    log_det = 2 * factor.diagonal(dim1=2, dim2=3).log().sum(2)
    n_observed = observed.sum(1)[:, None]
    return -0.5 * (quadratic + log_det + n_observed * math.log(2 * math.pi * noise_variance))


def _squared_distances(rows: Tensor, centers: Tensor) -> Tensor:
    """‖x − c‖² of every pair, by its expansion: one matrix product."""
    squared = rows.square().sum(1)[:, None] - 2 * rows @ centers.T + centers.square().sum(1)
    return squared.clamp_min(0)
