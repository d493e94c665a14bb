"""Curves on the surface that a map spans: length, geodesics, geodesic distance."""

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from invgan.errors import InputError
from invgan.geometry.jacobians import jacobian
from invgan.geometry.tangents import LatentMap

JACOBIAN_BYTES = 2**28
"""Memory that the Jacobians of geodesics relaxed together may take; more pairs go one block after another."""


def curve_length(f: LatentMap, curve: Tensor) -> Tensor:
    r"""Measure the length of the image of a latent curve, as the length of the polyline in data space.

    .. math:: \sum_i \lVert f(\gamma_{i+1}) - f(\gamma_i) \rVert
        \;\to\; \int_a^b \sqrt{\dot\gamma^\top M(\gamma)\, \dot\gamma} \, dt

    The chords need no derivative and no parametrisation: only the image points count, in their order. The
    sum never exceeds the length of the image of any curve through the points, and grows to it as points are
    inserted; on an arc of length L and curvature κ, m even chords fall short by a share of (κL)² / 24m².

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Map that treats rows independently. For the metric of Eq. 3, ``StochasticGenerator.mean_and_std``.
    curve : Tensor, shape (n_points, d) or (n_curves, n_points, d)
        Latent points along each curve.

    Returns
    -------
    Tensor, shape () or (n_curves,), float64
        In the units of f's output.

    Raises
    ------
    InputError
        If ``curve`` has another shape.

    Source
    ------
    Paper, section 1.1.

    Examples
    --------
    The upper half of a circle of radius 2:

    >>> angles = torch.linspace(0, torch.pi, 1001)[:, None]
    >>> length = curve_length(lambda z: 2 * torch.cat([z.cos(), z.sin()], 1).double(), angles)
    >>> round(length.item(), 4)  # 2π
    6.2832
    """
    if curve.ndim not in (2, 3):
        raise InputError(
            "The 'curve' parameter of curve_length must have the shape (n_points, d) or "
            f"(n_curves, n_points, d). Got {tuple(curve.shape)} instead."
        )
    return _images(f, curve).diff(dim=-2).norm(dim=-1).sum(-1)


def geodesic(f: LatentMap, start: Tensor, end: Tensor, *, n_points: int = 33, max_steps: int = 200) -> Tensor:
    r"""Find shortest curves on the surface between pairs of latents, by minimising the discrete energy.

    .. math:: E(\gamma) = \sum_i \lVert f(\gamma_{i+1}) - f(\gamma_i) \rVert^2

    with both ends held. Unlike the length, the energy also fixes the parametrisation: as points are added,
    its minimum comes to have constant speed in data space. Damped Gauss-Newton steps start from the straight
    latent line; a step costs about (d + 1) n_points forward passes per pair, and each pair stops on its own
    once a step promises less than 1e-12 of its energy (for latents in float32, 1e-7).

    The minimum is a local one, the line's own: where a surface closes upon itself, a shorter curve may run
    around the other way. The chords only see f at the points, so ``n_points`` must be enough to follow the
    surface; too few cut across a narrow fold.

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Differentiable map that treats rows independently. For the metric of Eq. 3,
        ``StochasticGenerator.mean_and_std``.
    start, end : Tensor, shape (n, d)
        The ends of each pair, in f's own dtype; float64 for exact work.
    n_points : int, default 33
        Points along each curve, both ends included; at least 3.
    max_steps : int, default 200
        Most Gauss-Newton steps to take. A ``ConvergenceWarning`` counts the curves that needed more.

    Returns
    -------
    Tensor, shape (n, n_points, d)
        Latent points along each curve, in the dtype of ``start``.

    Raises
    ------
    InputError
        If the shapes of ``start`` and ``end`` differ or are not (n, d), a number is too small, or f is not
        finite on the straight line.

    Source
    ------
    Paper, section 1.1; the geodesic distance is what it proposes for clustering.

    Examples
    --------
    Two points of a sphere on one circle of latitude: the great circle passes north of it.

    >>> def sphere(angles):
    ...     theta, phi = angles.unbind(1)
    ...     return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)
    >>> ends = torch.tensor([[torch.pi / 3, 0.0], [torch.pi / 3, torch.pi / 2]], dtype=torch.float64)
    >>> path = geodesic(sphere, ends[:1], ends[1:], n_points=3)
    >>> bool(path[0, 1, 0] < torch.pi / 3), round(path[0, 1, 1].item(), 4)
    (True, 0.7854)
    """
    if start.ndim != 2:
        raise InputError(
            f"The 'start' parameter of geodesic must have the shape (n, d). Got {tuple(start.shape)} instead."
        )
    if end.shape != start.shape:
        raise InputError(
            f"The 'end' parameter of geodesic must have the shape of 'start', {tuple(start.shape)}. "
            f"Got {tuple(end.shape)} instead."
        )
    for name, value, least in [("n_points", n_points, 3), ("max_steps", max_steps, 1)]:
        if value < least:
            raise InputError(
                f"The {name!r} parameter of geodesic must be an int of at least {least}. Got {value} instead."
            )
    n, d = start.shape
    if n == 0:
        return start.new_empty(0, n_points, d)
    fractions = torch.linspace(0, 1, n_points, dtype=start.dtype, device=start.device)
    lines = torch.lerp(start[:, None], end[:, None], fractions[:, None])  # n×n_points×d
    n_features = _images(f, start[:1]).shape[1]
    block = max(1, JACOBIAN_BYTES // (8 * n_points * n_features * d))
    relaxed = [
        _relax(f, curves, max_steps, first_row=i * block) for i, curves in enumerate(lines.split(block))
    ]
    unfinished = sum(left for _, left in relaxed)
    if unfinished:
        warnings.warn(
            f"{unfinished} of {n} geodesics were still changing after max_steps={max_steps}; raise it.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return torch.cat([curves for curves, _ in relaxed])


def geodesic_distance(
    f: LatentMap, start: Tensor, end: Tensor, *, n_points: int = 33, max_steps: int = 200
) -> Tensor:
    r"""Measure the distance between pairs of latents along the surface: the length of their geodesics.

    .. math:: \min_\gamma \int_a^b \sqrt{\dot\gamma^\top M(\gamma)\, \dot\gamma} \, dt, \qquad
        \gamma(a) = \text{start}, \; \gamma(b) = \text{end}

    By the chords of :func:`curve_length`. At the global minimum it is never above the true distance, and
    below it by a share that shrinks with the square of ``n_points``.

    Parameters
    ----------
    f, start, end, n_points, max_steps :
        As in :func:`geodesic`.

    Returns
    -------
    Tensor, shape (n,), float64
        In the units of f's output.

    Raises
    ------
    InputError
        As :func:`geodesic` does.

    Source
    ------
    Paper, section 1.1.

    Examples
    --------
    On a flat surface it is the Euclidean distance.

    >>> scale = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 4.0]])
    >>> start, end = torch.zeros(1, 2), torch.tensor([[6.0, 1.0]])
    >>> round(geodesic_distance(lambda z: z @ scale.T, start, end).item(), 4)
    13.0
    """
    return curve_length(f, geodesic(f, start, end, n_points=n_points, max_steps=max_steps))


def _images(f: LatentMap, curve: Tensor) -> Tensor:
    """Map (..., n_points, d) to (..., n_points, D), in float64."""
    with torch.no_grad():
        values = f(curve.reshape(-1, curve.shape[-1])).double()
    if values.ndim == 0 or values.shape[0] != curve.shape[:-1].numel():
        raise InputError(
            "The 'f' parameter must map each row to one row: "
            f"it made shape {tuple(values.shape)} of {curve.shape[:-1].numel()} rows."
        )
    return values.reshape(*curve.shape[:-1], -1)


def _energy(images: Tensor) -> Tensor:
    """Sum the squared chords of each curve, (n, n_points, D) → (n,)."""
    return images.diff(dim=1).square().sum((1, 2))


def _relax(f: LatentMap, curves: Tensor, max_steps: int, first_row: int) -> tuple[Tensor, int]:
    """Minimise each curve's energy between its ends; also count the curves that ran out of steps."""
    images = _images(f, curves)
    energy = _energy(images)
    if not energy.isfinite().all():
        row = first_row + int((~energy.isfinite()).nonzero()[0])
        raise InputError(
            f"The 'f' parameter of geodesic must be finite on the line from 'start' to 'end'. "
            f"Got NaN or inf in row {row} instead."
        )
    curves = curves.clone()
    damping = torch.full_like(energy, 1e-3)
    tolerance = max(1e-12, torch.finfo(curves.dtype).eps)
    active = torch.arange(len(curves), device=curves.device)
    for _ in range(max_steps):
        step, promised = _gauss_newton_step(f, curves[active], images[active], damping[active])
        moving = promised > tolerance * energy[active]
        active, step = active[moving], step[moving]
        if not len(active):
            return curves, 0
        trial = curves[active]
        trial[:, 1:-1] += step.to(curves.dtype)
        trial_images = _images(f, trial)
        trial_energy = _energy(trial_images)
        lower = trial_energy < energy[active]  # a step to where f is NaN is not lower either
        improved = active[lower]
        curves[improved], images[improved], energy[improved] = (
            values[lower] for values in (trial, trial_images, trial_energy)
        )
        damping[active] = (damping[active] * torch.where(lower, 0.1, 10.0)).clamp(min=1e-9)
    return curves, len(active)


def _gauss_newton_step(
    f: LatentMap, curves: Tensor, images: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor]:
    """Step of the inner points, (n, n_points − 2, d), and the decrease in energy that it promises, (n,)."""
    n, n_points, d = curves.shape
    inner = curves[:, 1:-1].reshape(-1, d)
    tangents = jacobian(f, inner).double().reshape(n, n_points - 2, -1, d)
    if not tangents.isfinite().all():
        raise InputError(
            "The 'f' parameter of geodesic must have a finite derivative along the curve. "
            "Got NaN or inf instead."
        )
    gram = tangents.mT @ tangents
    chords = images.diff(dim=1)
    downhill = (tangents.mT @ (chords[:, 1:] - chords[:, :-1])[..., None])[..., 0]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)  # n×(n_points − 2)
    # A point where f is flat in every direction still needs a positive pivot.
    scale = scale.clamp(min=1e-6 * scale.amax(1, keepdim=True)).clamp(min=torch.finfo(scale.dtype).tiny)
    identity = torch.eye(d, dtype=gram.dtype, device=gram.device)
    diagonal = 2 * gram + (damping[:, None] * scale)[..., None, None] * identity
    step = _solve_block_tridiagonal(diagonal, -tangents[:, :-1].mT @ tangents[:, 1:], downhill)
    return step, (step * downhill).sum((1, 2))


def _solve_block_tridiagonal(diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric positive definite systems of blocks: (n, m, d, d), (n, m − 1, d, d), (n, m, d)."""
    n_blocks = right.shape[1]
    gains: list[Tensor] = []  # what each unknown takes from the next one
    solved: list[Tensor] = []  # its value without that
    for i in range(n_blocks):
        pivot, value = diagonal[:, i], right[:, i, :, None]
        if i:
            pivot = pivot - upper[:, i - 1].mT @ gains[-1]
            value = value - upper[:, i - 1].mT @ solved[-1]
        factor = torch.linalg.cholesky(pivot)
        solved.append(torch.cholesky_solve(value, factor))
        if i < n_blocks - 1:
            gains.append(torch.cholesky_solve(upper[:, i], factor))
    for i in reversed(range(n_blocks - 1)):
        solved[i] = solved[i] - gains[i] @ solved[i + 1]
    return torch.stack(solved, 1)[..., 0]
