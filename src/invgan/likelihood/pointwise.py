"""Likelihoods evaluated at one latent per row: the paper's Eq. 4, and the joint density."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from invgan.geometry import LatentMap, Stacked, Volume, jacobian, volume


class LogLikelihood(NamedTuple):
    """Log-likelihoods of rows, with what is known of their error."""

    values: np.ndarray
    """log p(x) in nats, in the units of the data, shape (n,), float64."""
    standard_error: np.ndarray | None
    """Monte-Carlo standard error of each value, or None where nothing was sampled."""
    diagnostics: dict[str, np.ndarray]
    """Per row, what tells whether to trust the value."""


class StochasticGenerator(NamedTuple):
    """f(z) = g(z) + σ(z) ⊙ ε with ε ~ N(0, I_D): the paper's Eq. 2, on flattened rows.

    Give modules where there are any: functions hide the layers that make Jacobians fast.
    """

    mean: LatentMap
    """g: (n, d) → (n, D)."""
    std: LatentMap
    """σ: (n, d) → (n, D), positive."""

    @property
    def mean_and_std(self) -> Stacked:
        """[g; σ], (n, d) → (n, 2D), whose Jacobian J has JᵀJ = J_gᵀJ_g + J_σᵀJ_σ, the metric of Eq. 3."""
        return Stacked([self.mean, self.std])


def log_prior(z: Tensor) -> Tensor:
    """Log-density of the prior N(0, I) at each latent, shape (n,), in nats.

    Examples
    --------
    >>> round(log_prior(torch.zeros(1, 2)).item(), 4)  # −log 2π
    -1.8379
    """
    return -0.5 * z.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)


def conditional(f: StochasticGenerator, rows: Tensor, z: Tensor) -> Tensor:
    r"""Log-density of each feature given the latent; its sum over features is log p(x | z).

    .. math:: \log N\bigl(x_i; g_i(z), \sigma_i^2(z)\bigr)

    Parameters
    ----------
    f : StochasticGenerator
    rows : Tensor, shape (n, \*data_shape)
        Scaled data.
    z : Tensor, shape (n, d)

    Returns
    -------
    Tensor, shape (n, D)
    """
    std = f.std(z)
    standardized = (rows.flatten(1) - f.mean(z)) / std
    return -0.5 * standardized.square() - std.log() - 0.5 * math.log(2 * math.pi)


def joint(f: StochasticGenerator, rows: Tensor, z: Tensor, *, observed: Tensor | None = None) -> Tensor:
    """log p(x | z) + log p(z), shape (n,): the joint density at z, in nats of the scaled data.

    As a function of x at z = h(x) it is not normalised; it ranks rows. Features that ``observed``, a mask of
    shape (n, D), leaves out do not count.
    """
    terms = conditional(f, rows, z)
    if observed is not None:
        terms = torch.where(observed, terms, 0)
    return terms.sum(1) + log_prior(z)


def riemannian(f: StochasticGenerator, z: Tensor, *, scale: Tensor | None = None) -> tuple[Tensor, Volume]:
    r"""The paper's estimate, a density on the surface that the generator spans.

    .. math:: \log N(z; 0, I) - \tfrac12 \log\det\bigl(J_g^\top J_g + J_\sigma^\top J_\sigma\bigr)

    Parameters
    ----------
    f : StochasticGenerator
    z : Tensor, shape (n, d)
    scale : Tensor, shape (D,) or (n, D), optional
        Units of the data per unit of f's output, 0 for a feature that is missing: area in the data's units
        differs from that in f's by more than a factor.

    Returns
    -------
    values : Tensor, shape (n,), float64
    volume : Volume
        Its ``rank`` is below d where even σ's tangents leave a direction without extent.

    Source
    ------
    Paper, Eqs. 3 and 4.
    """
    of_both = None if scale is None else torch.cat([scale, scale], -1)
    at = volume(f.mean_and_std, z, scale=of_both)
    return log_prior(z.double()) - at.log_volume, at


def jensen_gap(
    f: StochasticGenerator, z: Tensor, *, n_samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Measure by Monte Carlo what Eq. 4 loses by exchanging expectation and log-determinant.

    .. math::
        \tfrac12 \log\det \mathbb{E}_\epsilon[J_f^\top J_f]
        - \mathbb{E}_\epsilon\bigl[\tfrac12 \log\det J_f^\top J_f\bigr] \ge 0, \qquad
        J_f = J_g + \mathrm{diag}(\epsilon) J_\sigma

    By Jensen's inequality Eq. 4 is a lower bound of the expected log-likelihood it is stated to equal.

    Parameters
    ----------
    f : StochasticGenerator
    z : Tensor, shape (n, d)
    n_samples : int
        Draws of ε.
    generator : torch.Generator
        Source of ε, on the CPU.

    Returns
    -------
    gap, standard_error : Tensor, shape (n,), float64
        In nats.

    Source
    ------
    Paper, proof of Lemma 1.
    """
    tangents_mean, tangents_std = jacobian(f.mean, z).double(), jacobian(f.std, z).double()  # n×D×d
    draws = []
    for _ in range(n_samples):
        noise = torch.randn(tangents_mean.shape[:2], generator=generator, dtype=torch.float64)
        tangents = tangents_mean + noise.to(z.device)[..., None] * tangents_std
        draws.append(torch.linalg.svdvals(tangents).log().sum(1))
    half_log_det = torch.stack(draws)  # n_samples×n
    gap = volume(f.mean_and_std, z).log_volume - half_log_det.mean(0)
    return gap, half_log_det.std(0) / n_samples**0.5
