r"""Likelihoods of images on one scale: true bits per dimension, and the paper's revised metric beside it."""

import math

import numpy as np
from numpy.typing import ArrayLike

from invgan.errors import InputError


def bits_per_dimension(
    log_likelihood: ArrayLike, n_dimensions: int, *, level_width: float = 1.0
) -> np.ndarray:
    r"""Compute the bits that a density spends on each dimension of a row, the measure that flows report.

    .. math:: -\frac{\log p(x) + D \log \delta}{D \log 2}

    **Dequantisation.** A pixel is one of 256 levels, and a density of discrete values can be made as high as
    one likes. So uniform noise is added, x + u with u ~ U[0, 1)^D (:func:`dequantize`), and p is learnt from
    and evaluated at such rows. Then, by Jensen's inequality, the mean over u is never below the bits of the
    discrete model :math:`P(x) = \int p(x + u)\,du`, which is never below the data's entropy. Without the
    noise the figure is no code length and can have any sign.

    **Scaling.** δ is the width of one level in the units that p is a density in. It turns p into the mass of
    a cell, so that the figure does not depend on those units: a uniform density over 256 levels is 8 bits.

    ==================================  ==============
    data                                ``level_width``
    ==================================  ==============
    x + u, in [0, 256)                  1
    (x + u) / 256, in [0, 1)            1 / 256
    (x + u) / 128 − 1, in [−1, 1)       1 / 128
    ==================================  ==============

    Parameters
    ----------
    log_likelihood : array-like, any shape
        log p of each row in nats, a density in :math:`\mathbb{R}^D`. Eq. 4's value (``riemannian``) is a
        density on a d-dimensional surface instead: for it see :func:`revised_bits_per_dimension`.
    n_dimensions : int
        D, the number of values in a row: channels × height × width.
    level_width : float, default 1.0
        δ. ``InvGAN`` reports log p in the units of the data it was given, so 1 for levels of 0 to 255.

    Returns
    -------
    ndarray, float64, of the shape of ``log_likelihood``
        In bits. Rows are neither dropped nor averaged: NaN stays NaN, and log p = −∞ is ∞ bits.

    Raises
    ------
    InputError
        If ``n_dimensions`` or ``level_width`` is not positive.

    Examples
    --------
    Uniform noise over 256 levels, under the uniform density, in a 3×32×32 image:

    >>> bits_per_dimension(-3072 * math.log(256), 3072).item()
    8.0
    """
    _require_positive("bits_per_dimension", n_dimensions=n_dimensions, level_width=level_width)
    nats_per_dimension = -np.asarray(log_likelihood, np.float64) / n_dimensions - math.log(level_width)
    return nats_per_dimension / math.log(2)


def dequantize(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    r"""Spread each 8-bit level over a cell of width 1, so that a density can be fitted to it.

    .. math:: x + u, \qquad u \sim U[0, 1)

    The noise has 24 bits, so the sum is exact and its floor is always x again.

    Parameters
    ----------
    images : ndarray of uint8, any shape
        Levels of 0 to 255.
    generator : numpy.random.Generator
        Source of u.

    Returns
    -------
    ndarray, float64, of the shape of ``images``
        In [0, 256).

    Raises
    ------
    InputError
        If ``images`` is not uint8: rows that were scaled already have no levels of width 1.

    Examples
    --------
    >>> noisy = dequantize(np.array([0, 255], np.uint8), np.random.default_rng(0))
    >>> np.floor(noisy).tolist()
    [0.0, 255.0]
    """
    if images.dtype != np.uint8:
        raise InputError(
            f"The 'images' parameter of dequantize must be an array of uint8, levels of 0 to 255. "
            f"Got {images.dtype} instead."
        )
    return images + generator.random(images.shape, dtype=np.float32).astype(np.float64)


def revised_bits_per_dimension(
    log_prior: ArrayLike, log_volume: ArrayLike, latent_dim: int, n_dimensions: int
) -> np.ndarray:
    r"""Compute the metric that the paper calls revised bits per dimension; its values are in nats.

    .. math:: -\frac{\log p_Z(z)}{d} + \frac{1}{2D} \log\det J_g(z)^\top J_g(z)

    Each term of Eq. 4 is divided by a dimension of its own. Where d = D this is −log p(x) / D, in nats: ln 2
    times the bits per dimension of a flow. Where d < D it is the value of no density, and neither a code
    length nor comparable with one. Under z ~ N(0, I) the first term is ½ log 2π + ½ ≈ 1.42 on average
    whatever was learnt, and the second shrinks with d / D, so the constant dominates: for what a model spends
    on an image, use :func:`bits_per_dimension`.

    Parameters
    ----------
    log_prior : array-like, shape (n,)
        log N(z; 0, I) at each row's latent, in nats.
    log_volume : array-like, shape (n,)
        ½ log det JᵀJ there, as :func:`invgan.geometry.log_volume` gives it: the ½ is in it already.
    latent_dim : int
        d.
    n_dimensions : int
        D, the number of values in a row.

    Returns
    -------
    ndarray, shape (n,), float64
        In nats, as the paper prints it; it depends on the scaling of the data through ``log_volume``.

    Raises
    ------
    InputError
        If ``latent_dim`` or ``n_dimensions`` is not positive.

    Source
    ------
    Paper, section 4.2, Table 1 and Figure 3.

    Examples
    --------
    An isometry (log-volume 0) at a latent with z² = 1 in each of 50 dimensions:

    >>> log_prior = -0.5 * 50 * (1 + math.log(2 * math.pi))
    >>> round(revised_bits_per_dimension(log_prior, 0.0, 50, 3072).item(), 4)
    1.4189
    """
    _require_positive("revised_bits_per_dimension", latent_dim=latent_dim, n_dimensions=n_dimensions)
    return -np.asarray(log_prior, np.float64) / latent_dim + np.asarray(log_volume, np.float64) / n_dimensions


def _require_positive(owner: str, **values: float) -> None:
    """Refuse the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"The {name!r} parameter of {owner} must be positive. Got {value} instead.")
