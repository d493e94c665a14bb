"""A smooth random field: what any image as rough as this one would have, for a likelihood ratio."""

import functools
import math

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

LEAST_VARIANCE = (2 / 255) ** 2 / 6
"""s², at least: the variance of a difference of two numbers that were rounded to 256 levels over [-1, 1]."""


def smooth_field(images: Tensor, *, observed: Tensor | None = None) -> Tensor:
    r"""Log-density of images under a smooth random field, each with the roughness that suits it best.

    .. math::
        \max_s \log q_s(x), \qquad
        q_s(x) = \prod_c \frac{1}{2 \sqrt P} \,
        \frac{|L|_*^{1/2}}{(2 \pi s^2)^{(P - 1) / 2}} \exp\Bigl(-\frac{x_c^\top L x_c}{2 s^2}\Bigr), \qquad
        x_c^\top L x_c = \sum_{i \sim j} (x_{ci} - x_{cj})^2

    over the P pixels of each channel c, and the pairs i ~ j of pixels that share an edge: an intrinsic
    Gaussian Markov random field. L is the Laplacian matrix of the grid, :math:`|L|_*` the product of its
    eigenvalues but the one that is zero. Along that one, the channel's mean, the density is uniform over
    [-1, 1]. A log-density of images less this one is a log-likelihood ratio, which does not call an image
    likely for being simple.

    Parameters
    ----------
    images : Tensor, shape (n, C, H, W)
        Scaled to [-1, 1].
    observed : Tensor, shape (n, C, H, W), bool, optional
        Which pixels are known. The others are integrated out at the s of the known ones; what stands there
        does not count, but has to be finite.

    Returns
    -------
    Tensor, shape (n,), float64
        In nats.

    Source
    ------
    Besag and Kooperberg (1995), "On conditional and intrinsic autoregressions". The ratio: Ren et al. (2019),
    "Likelihood ratios for out-of-distribution detection", and, with a code length in the field's place,
    Serrà et al. (2020), "Input complexity and out-of-distribution detection with likelihood-based generative
    models".

    Examples
    --------
    Two pixels, whose difference is normal and whose mean is uniform:

    >>> difference = 0.5
    >>> found = smooth_field(torch.tensor([[[[0.25, -0.25]]]]))
    >>> normal = -0.5 * math.log(2 * math.pi * difference**2) - 0.5
    >>> torch.allclose(found, torch.tensor(normal - math.log(2), dtype=torch.float64))
    True
    """
    images = images.double()
    n_channels, height, width = images.shape[1:]
    energy = images.diff(dim=2).square().sum((1, 2, 3)) + images.diff(dim=3).square().sum((1, 2, 3))
    rank = torch.full_like(energy, n_channels * (height * width - 1))
    log_constant = torch.full_like(energy, n_channels * _log_constant(height, width))
    if observed is not None:
        for row in (~observed.flatten(1).all(1)).nonzero()[:, 0].tolist():
            channels = zip(images[row].cpu().numpy(), observed[row].cpu().numpy(), strict=True)
            parts = [_marginal(channel, known) for channel, known in channels]
            marginal = images.new_tensor(parts).sum(0)
            energy[row], rank[row], log_constant[row] = marginal
    variance = (energy / rank.clamp_min(1)).clamp_min(LEAST_VARIANCE)
    return log_constant - 0.5 * (rank * (2 * math.pi * variance).log() + energy / variance)


def _log_constant(height: int, width: int) -> float:
    """What does not depend on a channel: ½ log |L|_* − log 2√P."""
    eigenvalues = [2 - 2 * np.cos(np.pi * np.arange(side) / side) for side in (height, width)]
    log_det = np.log(np.add.outer(*eigenvalues).ravel()[1:]).sum()
    return 0.5 * float(log_det) - math.log(2 * math.sqrt(height * width))


@functools.lru_cache(maxsize=8)
def _laplacian(height: int, width: int) -> sparse.csr_array:
    paths = [
        sparse.csgraph.laplacian(sparse.eye_array(side, k=1), symmetrized=True) for side in (height, width)
    ]
    return sparse.kronsum(paths[1], paths[0], format="csr")


def _marginal(channel: np.ndarray, known: np.ndarray) -> tuple[float, float, float]:
    """Integrate the unknown pixels of one channel out: the exponent, how many it is of, and the constant."""
    if not known.any():
        return 0.0, 0.0, 0.0
    laplacian, constant = _laplacian(*channel.shape), _log_constant(*channel.shape)
    gaps, values = np.flatnonzero(~known), np.where(known, channel, 0.0).ravel()
    if len(gaps):
        factors = splu(laplacian[gaps][:, gaps].tocsc())
        # The field's mean given what is known is where the exponent is least.
        values[gaps] = factors.solve(-(laplacian @ values)[gaps])
        constant -= 0.5 * float(np.log(np.abs(factors.U.diagonal())).sum())
    return float(values @ (laplacian @ values)), float(known.sum() - 1), constant
