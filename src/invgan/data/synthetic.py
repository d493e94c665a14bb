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
