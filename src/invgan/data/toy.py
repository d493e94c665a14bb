"""Densities in the plane that are known in closed form, or to rounding: what a density model must learn."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

MOON_STD = 0.1
RING_RADIUS, RING_STD = 4.0, 0.5
ARMS, ARM_RADIUS, ARM_STDS, TWIST = 5, 2.0, (0.6, 0.2), 0.5
SQUARES, SIDE = 4, 2.0
"""Squares along each side of the board, half of them filled, and their side."""
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(100)
"""Nodes along an arc of length π: many within one MOON_STD, so the quadrature is exact to rounding."""


class ToySample(NamedTuple):
    """Samples and their true log-density."""

    X: np.ndarray  # (n, 2) float64
    log_density: np.ndarray  # (n,) float64, nats


class _Toy(NamedTuple):
    draw: Callable[[int, np.random.Generator], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray]


def toy(name: str, n: int, *, random_state: int | np.random.Generator | None) -> ToySample:
    r"""Draw from one of four densities in the plane, and evaluate the density at the draws.

    - ``"two-moons"``: two half-circles of radius 1, with noise N(0, 0.1² I) around them;
    - ``"eight-gaussians"``: N(c, 0.5² I) around eight points c on a circle of radius 4;
    - ``"pinwheel"``: five ellipses around the origin, twisted into arms by an angle that grows with the
      radius. The twist keeps areas, so the density is a mixture of Gaussians at the point twisted back;
    - ``"checkerboard"``: uniform on the eight dark squares, of side 2, of a 4×4 board.

    Parameters
    ----------
    name : {"two-moons", "eight-gaussians", "pinwheel", "checkerboard"}
    n : int
        How many samples.
    random_state : int, numpy.random.Generator or None
        The seed; None draws a fresh one.

    Returns
    -------
    ToySample
        Named tuple of ``X`` (n, 2) and ``log_density`` (n,), in nats.

    Raises
    ------
    ValueError
        If the name is unknown or ``n`` is not positive.

    Examples
    --------
    >>> X, log_density = toy("checkerboard", 3, random_state=0)
    >>> X.shape, log_density.round(4).tolist()  # −log of eight squares of area 4
    ((3, 2), [-3.4657, -3.4657, -3.4657])
    """
    if n < 1:
        raise ValueError(f"The 'n' parameter of toy must be at least 1. Got {n} instead.")
    X = _find(name).draw(n, np.random.default_rng(random_state))
    return ToySample(X, toy_log_density(name, X))


def toy_log_density(name: str, X: np.ndarray) -> np.ndarray:
    """Return a toy set's true log-density at points X of shape (n, 2), in nats; −inf outside its support.

    Examples
    --------
    >>> toy_log_density("checkerboard", np.array([[1.0, 1.0], [1.0, 3.0]])).round(4).tolist()
    [-3.4657, -inf]
    """
    return _find(name).log_density(np.asarray(X, dtype=np.float64))


def _find(name: str) -> _Toy:
    if name not in _TOYS:
        raise ValueError(
            f"The 'name' parameter of toy must be one of {', '.join(_TOYS)}. Got {name!r} instead."
        )
    return _TOYS[name]


def _normal(offset: np.ndarray, std: float | tuple[float, float]) -> np.ndarray:
    """Log-density of N(0, diag std²) in the plane at offsets (..., 2)."""
    log_area = np.log(np.broadcast_to(std, 2)).sum()
    return -0.5 * np.square(offset / std).sum(-1) - log_area - math.log(2 * math.pi)


def _turn(X: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotate points (..., 2) around the origin, anticlockwise."""
    x, y, cos, sin = X[..., 0], X[..., 1], np.cos(angle), np.sin(angle)
    return np.stack([x * cos - y * sin, x * sin + y * cos], -1)


def _moons(t: np.ndarray) -> np.ndarray:
    """The points at t ∈ [0, π] of both half-circles, shape (2, ..., 2)."""
    upper = np.stack([np.cos(t), np.sin(t)], -1)
    return np.stack([upper, [1.0, 0.5] - upper])


def _draw_moons(n: int, rng: np.random.Generator) -> np.ndarray:
    points = _moons(rng.uniform(0, math.pi, n))[rng.integers(2, size=n), np.arange(n)]
    return points + MOON_STD * rng.standard_normal((n, 2))


def _moons_log_density(X: np.ndarray) -> np.ndarray:
    centers = _moons((_NODES + 1) * math.pi / 2).reshape(-1, 2)
    weights = np.tile(_NODE_WEIGHTS / 4, 2)  # the nodes' weights sum to 2, and there are two moons
    return logsumexp(_normal(X[:, None] - centers, MOON_STD), axis=1, b=weights)


def _ring() -> np.ndarray:
    angle = np.arange(8) * math.pi / 4
    return RING_RADIUS * np.stack([np.cos(angle), np.sin(angle)], -1)


def _draw_gaussians(n: int, rng: np.random.Generator) -> np.ndarray:
    return _ring()[rng.integers(8, size=n)] + RING_STD * rng.standard_normal((n, 2))


def _gaussians_log_density(X: np.ndarray) -> np.ndarray:
    return logsumexp(_normal(X[:, None] - _ring(), RING_STD), axis=1, b=1 / 8)


def _twist(X: np.ndarray) -> np.ndarray:
    return TWIST * np.linalg.norm(X, axis=-1)


def _draw_pinwheel(n: int, rng: np.random.Generator) -> np.ndarray:
    ellipse = rng.standard_normal((n, 2)) * ARM_STDS + [ARM_RADIUS, 0]
    return _turn(ellipse, 2 * math.pi / ARMS * rng.integers(ARMS, size=n) + _twist(ellipse))


def _pinwheel_log_density(X: np.ndarray) -> np.ndarray:
    angles = 2 * math.pi / ARMS * np.arange(ARMS)
    back = _turn(X[:, None], -(angles + _twist(X)[:, None]))
    return logsumexp(_normal(back - [ARM_RADIUS, 0], ARM_STDS), axis=1, b=1 / ARMS)


def _draw_board(n: int, rng: np.random.Generator) -> np.ndarray:
    column = rng.integers(SQUARES, size=n)
    row = 2 * rng.integers(SQUARES // 2, size=n) + column % 2
    return SIDE * (np.stack([column, row], -1) + rng.uniform(size=(n, 2)) - SQUARES / 2)


def _board_log_density(X: np.ndarray) -> np.ndarray:
    square = np.floor(X / SIDE + SQUARES / 2)
    filled = ((square >= 0) & (square < SQUARES)).all(-1) & (square.sum(-1) % 2 == 0)
    return np.where(filled, -math.log(SQUARES**2 / 2 * SIDE**2), -np.inf)


_TOYS = {
    "two-moons": _Toy(_draw_moons, _moons_log_density),
    "eight-gaussians": _Toy(_draw_gaussians, _gaussians_log_density),
    "pinwheel": _Toy(_draw_pinwheel, _pinwheel_log_density),
    "checkerboard": _Toy(_draw_board, _board_log_density),
}
TOYS = tuple(_TOYS)
"""Names of the sets."""
