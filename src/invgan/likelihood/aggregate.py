"""The density around encoded training rows: a mixture of Gaussians along the generator's tangents."""

import itertools
import math

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from invgan.geometry import LatentMap, jacobian

MAX_RANK = 32
"""Tangent directions kept per component; a generator's further singular values add nothing to τ²."""
MAX_QUERIES = 1000
"""Training rows whose left-out likelihood chooses the bandwidths."""
MAX_NEIGHBOURS = 256
"""Components that enter a left-out likelihood: the nearest, which carry its mass."""
JACOBIAN_BLOCK = 64
"""Rows whose Jacobian is computed at once."""


class TangentMixture(nn.Module):
    r"""A normalised density with one Gaussian per training row, stretched along the learned tangents.

    .. math::
        p(x) = \frac1n \sum_i N\bigl(x;\, c_i,\, s^2 J_i J_i^\top + \tau^2 I\bigr),
        \qquad J_i = J_g(h(c_i))

    A manifold Parzen estimate (Vincent and Bengio, 2002) with the tangents of the generator's metric: the
    prior N(0, I) is replaced by the encoded training rows. With the singular value decomposition
    :math:`J_i = U S V^\top`, each component has the closed form

    .. math::
        -2 \log N = \frac{\|r\|^2}{\tau^2} - \sum_k (u_k \cdot r)^2
        \frac{s^2 S_k^2}{\tau^2 (\tau^2 + s^2 S_k^2)} + \sum_k \log(\tau^2 + s^2 S_k^2)
        + (D - d) \log \tau^2 + D \log 2\pi, \qquad r = x - c_i.

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
    ...     torch.zeros(1, 2), torch.zeros(1, 1), lambda z: torch.cat([3 * z, 0 * z], 1)
    ... )
    >>> line.set_bandwidths(tangent_variance=1.0, noise_variance=1.0)  # N(0, diag(10, 1))
    >>> round(line.log_prob(torch.zeros(1, 2)).item(), 4)  # −log 2π − ½ log 10
    -2.9892
    """

    centers: Tensor
    codes: Tensor
    directions: Tensor
    lengths: Tensor
    tangent_variance: Tensor
    noise_variance: Tensor

    def __init__(self, centers: Tensor, codes: Tensor, generator: LatentMap) -> None:
        super().__init__()
        directions, lengths = _tangents(generator, codes, centers.dtype)
        self.register_buffer("centers", centers)
        self.register_buffer("codes", codes)
        # The tangents follow from the codes and the generator: they would only make the model file large.
        self.register_buffer("directions", directions, persistent=False)  # n×D×r
        self.register_buffer("lengths", lengths, persistent=False)  # n×r
        self.register_buffer("tangent_variance", torch.ones((), dtype=torch.float64))
        self.register_buffer("noise_variance", torch.ones((), dtype=torch.float64))

    def set_bandwidths(self, *, tangent_variance: float, noise_variance: float) -> None:
        """Set s² and τ², the variances along the tangents and around them, of the scaled data."""
        self.tangent_variance.fill_(tangent_variance)
        self.noise_variance.fill_(noise_variance)

    @torch.no_grad()
    def fit_bandwidths(self, *, seed: int) -> float:
        """Choose s² and τ² to maximise the mean leave-one-out log-likelihood of the training rows.

        Parameters
        ----------
        seed : int
            Chooses the rows that are left out, where there are more than ``MAX_QUERIES``.

        Returns
        -------
        float
            The likelihood reached: nats per row of the scaled data.
        """
        n = len(self.centers)
        chosen = np.random.default_rng(seed).permutation(n)[:MAX_QUERIES]
        queries = torch.from_numpy(np.sort(chosen))
        squared = _squared_distances(self.centers[queries], self.centers)
        squared[torch.arange(len(queries)), queries] = torch.inf
        squared, neighbours = squared.topk(min(MAX_NEIGHBOURS, n - 1), largest=False)  # q×k
        along = torch.stack(
            [
                torch.einsum(
                    "kdr,kd->kr",
                    self.directions[near],
                    self.centers[query] - self.centers[near],
                ).square()
                for query, near in zip(queries.tolist(), neighbours, strict=True)
            ]
        )  # q×k×r
        lengths = self.lengths[neighbours]

        def loss(log_variances: np.ndarray) -> float:
            tangent, noise = np.exp(log_variances)
            log_density = self._log_gaussian(squared, along, lengths, tangent, noise)
            return -(torch.logsumexp(log_density, 1).mean().item() - math.log(n - 1))

        # Variances are bounded relative to the data's own: duplicate rows would draw τ² to zero for ever.
        spread = max(self.centers.var(0, correction=0).mean().item(), 1e-12)
        tangent_unit = spread / max(self.lengths.square().mean().item(), 1e-12)
        bounds = np.log([(1e-6 * tangent_unit, 10 * tangent_unit), (1e-3 * spread, 10 * spread)])
        starts = itertools.product(*(np.linspace(low, high, 6)[1:-1] for low, high in bounds))
        start = min(starts, key=lambda point: loss(np.array(point)))
        found = minimize(loss, start, method="Nelder-Mead", bounds=bounds, options={"xatol": 0.02, "fatol": 1e-3})
        tangent, noise = np.exp(found.x)
        self.set_bandwidths(tangent_variance=tangent, noise_variance=noise)
        return -float(found.fun)

    def log_prob(self, rows: Tensor) -> Tensor:
        """Log-density of scaled, flattened rows, shape (m, D) → (m,), in nats.

        Costs m·n·D·r multiplications.
        """
        n, n_features, rank = self.directions.shape
        squared = _squared_distances(rows, self.centers)  # m×n
        basis = self.directions.permute(1, 0, 2).reshape(n_features, n * rank)
        at_center = torch.einsum("nd,ndr->nr", self.centers, self.directions)
        along = ((rows @ basis).view(len(rows), n, rank) - at_center).square()  # m×n×r
        log_density = self._log_gaussian(
            squared, along, self.lengths, self.tangent_variance.item(), self.noise_variance.item()
        )
        return torch.logsumexp(log_density, 1) - math.log(n)

    def _log_gaussian(
        self, squared: Tensor, along: Tensor, lengths: Tensor, tangent: float, noise: float
    ) -> Tensor:
        """log N(x; c, s²JJᵀ + τ²I) from ‖r‖², (u·r)² and S."""
        n_features, rank = self.directions.shape[1:]
        stretched = tangent * lengths.square()  # …×r
        shrinkage = stretched / (noise * (noise + stretched))
        quadratic = squared / noise - (along * shrinkage).sum(-1)
        log_det = torch.log(noise + stretched).sum(-1) + (n_features - rank) * math.log(noise)
        return -0.5 * (quadratic + log_det + n_features * math.log(2 * math.pi))


def _squared_distances(rows: Tensor, centers: Tensor) -> Tensor:
    """‖x − c‖² of every pair, by its expansion: one matrix product."""
    squared = rows.square().sum(1)[:, None] - 2 * rows @ centers.T + centers.square().sum(1)
    return squared.clamp_min(0)


@torch.no_grad()
def _tangents(generator: LatentMap, codes: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Left singular vectors n×D×r and singular values n×r of the generator's Jacobian at each code."""
    directions, lengths = [], []
    for block in codes.split(JACOBIAN_BLOCK):
        tangents = jacobian(generator, block).to(dtype)
        left, singular_values, _ = torch.linalg.svd(tangents, full_matrices=False)
        directions.append(left[:, :, :MAX_RANK])
        lengths.append(singular_values[:, :MAX_RANK])
    return torch.cat(directions), torch.cat(lengths)
