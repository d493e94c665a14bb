"""The variance network: a radial basis function network for the generator's noise (section 2.1)."""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from invgan.networks.steady import steady_product

MAX_CLUSTERED = 12_800
"""Latents that k-means looks at, chosen at random where there are more: 50 for each of 256 centres."""


class RBFVariance(nn.Module):
    r"""Standard deviation of the generator's noise, large wherever no centre is near.

    .. math::
        \sigma(z) = (W^2 v(z) + \zeta)^{-1/2}, \qquad
        v_k(z) = \exp(-\lambda_k \|z - c_k\|^2), \qquad
        \lambda_k = \tfrac12 \bigl(a \cdot \mathrm{mean}_{z_j \in C_k} \|z_j - c_k\|\bigr)^{-2}

    The square of W is element-wise. The precision floor :math:`\zeta > 0` is this library's: without it
    :math:`\sigma` overflows away from the centres. Centres and rates are set by :meth:`fit_centers`; W is
    learned by gradient with the rest of Algorithm 1, or in closed steps by :meth:`fit_weights`.

    Parameters
    ----------
    latent_dim : int
        Dimension d of the latent space.
    n_features : int
        Number D of data coordinates: pixels times channels for images.
    n_centers : int
        Number K of centres; Lemma 1 asks for K >= d + 1.
    kernel_width : float
        The paper's a: a kernel's width in units of its cluster's mean distance to the centre.
    max_std : float
        The largest standard deviation, in the units of the scaled data: ``precision_floor = max_std**-2``.

    Source
    ------
    Paper, section 2.1; Que and Belkin (2016) for the network.

    Examples
    --------
    >>> sigma = RBFVariance(latent_dim=2, n_features=6, n_centers=3, max_std=10.0)
    >>> far_away = torch.full((1, 2), 1e3)
    >>> sigma(far_away).tolist() == [[10.0] * 6]
    True
    """

    centers: Tensor
    rates: Tensor
    precision_floor: Tensor

    def __init__(
        self,
        latent_dim: int,
        n_features: int,
        n_centers: int,
        *,
        kernel_width: float = 1.0,
        max_std: float = 10.0,
    ) -> None:
        super().__init__()
        self.kernel_width = kernel_width
        self.register_buffer("centers", torch.zeros(n_centers, latent_dim))
        self.register_buffer("rates", torch.ones(n_centers))
        self.register_buffer("precision_floor", torch.full((), max_std**-2))
        self.weight = nn.Parameter(torch.ones(n_features, n_centers))

    def kernels(self, z: Tensor) -> Tensor:
        """Return v(z), shape (n, K), each in (0, 1]."""
        # ‖z − c‖² by its expansion: it is a matrix product, and unlike cdist it has forward-mode derivatives.
        product = steady_product(z, self.centers)
        squared = z.square().sum(-1, keepdim=True) - 2 * product + self.centers.square().sum(-1)
        return torch.exp(-self.rates * squared.clamp_min(0))

    def precision(self, z: Tensor) -> Tensor:
        """Return 1/σ²(z), shape (n, D)."""
        return steady_product(self.kernels(z), self.weight.square()) + self.precision_floor

    def forward(self, z: Tensor) -> Tensor:
        """Return σ(z), shape (n, D), for latents of shape (n, d)."""
        return self.precision(z).rsqrt()

    @torch.no_grad()
    def fit_centers(self, latents: Tensor, *, seed: int) -> None:
        """Place the centres by k-means and set each kernel's rate from its cluster's spread.

        Parameters
        ----------
        latents : Tensor, shape (m, d)
            Draws from the prior (the paper), or encoded training rows; m >= K.
        seed : int
            Seeds k-means.
        """
        points = latents.detach().cpu().double().numpy()
        if len(points) > MAX_CLUSTERED:
            points = points[np.random.default_rng(seed).permutation(len(points))[:MAX_CLUSTERED]]
        n_centers = self.centers.shape[0]
        # Several threads add up a cluster's members in an order that changes from run to run.
        with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
            # Encoded rows may coincide (duplicates in the table); empty clusters are dealt with below.
            warnings.simplefilter("ignore", ConvergenceWarning)
            clusters = KMeans(n_centers, n_init=1, random_state=seed).fit(points)
        distance = np.linalg.norm(points - clusters.cluster_centers_[clusters.labels_], axis=1)
        members = np.bincount(clusters.labels_, minlength=n_centers)
        mean_distance = np.bincount(clusters.labels_, weights=distance, minlength=n_centers) / np.maximum(
            members, 1
        )
        # A cluster of one member has mean distance 0, hence an infinite rate: no kernel is narrower than a
        # third of the typical one.
        typical = distance.mean() if distance.mean() > 0 else 1.0
        spread = self.kernel_width * np.maximum(mean_distance, typical / 3)
        self.centers.copy_(torch.from_numpy(clusters.cluster_centers_))
        self.rates.copy_(torch.from_numpy(0.5 * spread**-2))

    @torch.no_grad()
    def fit_weights(self, latents: Tensor, residuals: Tensor, *, n_iterations: int = 300) -> None:
        r"""Fit W to residuals by steps that never lower the likelihood.

        The log-likelihood is concave in :math:`A = W^2`, and Jensen's inequality on :math:`\log\beta` gives a
        closed step in which, as in Lemma 3, W is multiplied element-wise:

        .. math::
            A_{ik} \leftarrow \frac{A_{ik} \sum_n v_{nk} / \beta_{ni} + 1}
            {\sum_n v_{nk} r_{ni}^2 + \bar r_i^2}, \qquad \beta = A v + \zeta

        The 1 and the mean squared residual :math:`\bar r_i^2` are one pseudo-observation per kernel: they
        keep a kernel without rows, or a feature without residuals, from running to infinite precision.

        Parameters
        ----------
        latents : Tensor, shape (n, d)
            Latents of the training rows.
        residuals : Tensor, shape (n, D)
            :math:`x - g(z)` of the same rows.
        """
        kernels = self.kernels(latents)  # n×K
        squared = residuals.square().flatten(1)  # n×D
        mean_squared = squared.mean(0).clamp_min(1e-4 * squared.mean() + 1e-12)  # D
        explained = squared.T @ kernels + mean_squared[:, None]  # D×K
        weights = (1 / mean_squared)[:, None].repeat(1, kernels.shape[1]) / kernels.sum(1).mean()
        for _ in range(n_iterations):
            precision = kernels @ weights.T + self.precision_floor  # n×D
            weights = (weights * (precision.reciprocal().T @ kernels) + 1) / explained
        self.weight.copy_(weights.sqrt())
