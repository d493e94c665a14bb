"""The synthetic data of section 4.1, whose likelihood is known.

Two latent variables ``z ~ N(0, I_2)`` give six features,

    g(z) = (w₁ sin z₁, w₂ cos z₂, w₃ z₁², w₄ z₂, w₅ z₁³, w₆ (z₁ + z₂²)),    x = g(z) + ε.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class SyntheticSample(NamedTuple):
    """Samples and the latent variables that they came from."""

    X: np.ndarray  # (n, 6) float64
    z: np.ndarray  # (n, 2) float64


def synthetic(
    n: int,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    noise_variance: float = 0.01,
    random_state: int | np.random.Generator | None,
) -> SyntheticSample:
    """Draw ``x = g(z) + ε`` with ``z ~ N(0, I_2)`` and ``ε ~ N(0, noise_variance · I_6)``.

    Parameters
    ----------
    n : int
        How many samples.
    weights : sequence of 6 floats, optional
        The w of `generator`; ones by default, as for figure 2.
    noise_variance : float, default 0.01
        Variance, not standard deviation, of each entry of ε.
    random_state : int, numpy.random.Generator or None
        The seed; None draws a fresh one.

    Returns
    -------
    SyntheticSample
        Named tuple of ``X`` (n, 6) and ``z`` (n, 2), both float64.

    Raises
    ------
    ValueError
        If a parameter is out of range.

    References
    ----------
    Section 4.1 of the paper.

    Examples
    --------
    >>> X, z = synthetic(4, noise_variance=0.0, random_state=0)
    >>> X.shape, z.shape, bool((X[:, 3] == z[:, 1]).all())
    ((4, 6), (4, 2), True)
    """
    if n < 1:
        raise ValueError(f"The 'n' parameter of synthetic must be at least 1. Got {n} instead.")
    if not 0 <= noise_variance < math.inf:
        raise ValueError(
            f"The 'noise_variance' parameter of synthetic must be finite and not negative. "
            f"Got {noise_variance} instead."
        )
    w = np.ones(6) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (6,) or not np.isfinite(w).all():
        raise ValueError(
            f"The 'weights' parameter of synthetic must be six finite numbers. Got {weights} instead."
        )
    rng = np.random.default_rng(random_state)
    z = rng.standard_normal((n, 2))
    noise = rng.normal(scale=math.sqrt(noise_variance), size=(n, 6))
    return SyntheticSample(generator(torch.from_numpy(z), torch.from_numpy(w)).numpy() + noise, z)


def generator(z: Tensor, weights: Tensor) -> Tensor:
    """Map latent variables to noiseless features, g of section 4.1.

    Parameters
    ----------
    z : Tensor of shape (..., 2)
    weights : Tensor of shape (6,)

    Returns
    -------
    Tensor of shape (..., 6)

    Examples
    --------
    >>> generator(torch.tensor([0.0, 2.0]), torch.ones(6))[2:].tolist()
    [0.0, 2.0, 0.0, 4.0]
    """
    z1, z2 = z.unbind(-1)
    features = [torch.sin(z1), torch.cos(z2), z1**2, z2, z1**3, z1 + z2**2]
    return weights * torch.stack(features, dim=-1)


def true_log_likelihood(z: Tensor, weights: Tensor) -> Tensor:
    """Log-likelihood of g(z) on the two-dimensional surface that g spans, in nats.

    ``log N(z; 0, I) − ½ log det JᵀJ`` with J = ∂g/∂z (6×2). With ``A = w₁² cos² z₁ + 4 w₃² z₁² + 9 w₅² z₁⁴``
    and ``B = w₂² sin² z₂ + w₄²`` the determinant is the sum of positive terms

        det JᵀJ = A (B + 4 w₆² z₂²) + w₆² B  ≥  w₄² w₆²,

    so nothing cancels and the value is finite wherever w₄ and w₆ are not zero. With one of them zero, J can
    lose rank at single points, where the density on the surface, and the value returned, is +∞.

    Parameters
    ----------
    z : Tensor of shape (..., 2)
    weights : Tensor of shape (6,)

    Returns
    -------
    Tensor of shape (...)

    References
    ----------
    Equations 1 and 4 of the paper, for the known generator.

    Examples
    --------
    >>> value = true_log_likelihood(torch.zeros(2), torch.ones(6))  # det JᵀJ = 2 at the origin
    >>> round(value.item(), 4) == round(-math.log(2 * math.pi) - math.log(2) / 2, 4)
    True
    """
    z1, z2 = z.unbind(-1)
    w1, w2, w3, w4, w5, w6 = (weights**2).unbind(-1)
    a = w1 * torch.cos(z1) ** 2 + 4 * w3 * z1**2 + 9 * w5 * z1**4
    b = w2 * torch.sin(z2) ** 2 + w4
    determinant = a * (b + 4 * w6 * z2**2) + w6 * b
    return -0.5 * (z**2).sum(-1) - math.log(2 * math.pi) - 0.5 * torch.log(determinant)


def true_log_density(
    X: np.ndarray, z: np.ndarray, *, weights: Sequence[float] | np.ndarray, noise_variance: float = 0.01
) -> np.ndarray:
    r"""Log-density of the rows in the six-dimensional space, in nats: what a normalised density must learn.

    .. math:: \log p(x) = \log \int N(x; g(z), s^2 I_6)\, N(z; 0, I_2)\, dz

    By the trapezoidal rule on a grid around the latents the rows came from, whose axes are those of the
    Gaussian that the posterior p(z | x) nearly is: 33 points along each, up to 8 standard deviations. As g is
    injective (z₂ and z₁ + z₂² are among the features), there is no mass elsewhere. Right to 1e-4 nats.

    Parameters
    ----------
    X, z : ndarray, shape (n, 6) and (n, 2)
        Rows and their latents, as `synthetic` returns them.
    weights : sequence of 6 floats
        The w of `generator`, w₄ and w₆ not zero.
    noise_variance : float, default 0.01
        s².

    Returns
    -------
    ndarray, shape (n,)

    Examples
    --------
    >>> X, z = synthetic(1, random_state=0)
    >>> round(true_log_density(X, z, weights=np.ones(6)).item(), 3)
    2.159
    """
    w, axis = torch.as_tensor(weights, dtype=torch.float64), torch.linspace(-8, 8, 33, dtype=torch.float64)
    offsets = torch.cartesian_prod(axis, axis)
    log_cell = 2 * math.log(16 / 32) - 6 / 2 * math.log(2 * math.pi * noise_variance) - math.log(2 * math.pi)
    found = []
    for rows, latents in zip(torch.from_numpy(X).split(1000), torch.from_numpy(z).split(1000), strict=True):
        jacobian = torch.func.vmap(torch.func.jacfwd(lambda at: generator(at, w)))(latents)  # n×6×2
        precision = jacobian.mT @ jacobian / noise_variance + torch.eye(2)
        scale = torch.linalg.cholesky(precision.inverse())
        at = latents[:, None] + offsets @ scale.mT  # n×33²×2
        squares = (rows[:, None] - generator(at, w)).square().sum(-1) / noise_variance + at.square().sum(-1)
        found.append(torch.logsumexp(-squares / 2, 1) + scale.diagonal(dim1=1, dim2=2).log().sum(1))
    return (torch.cat(found) + log_cell).numpy()
