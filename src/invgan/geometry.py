r"""Geometry of the surface a generator spans: Jacobian, metric, volume, geodesics (paper, sections 1.1-1.2).

Every function takes a map ``f`` that sends each row of its input to its own row of output, ``(n, d)`` to
``(n, ...)``: a module in evaluation mode, or any differentiable function. A module that mixes the rows of a
batch (batch normalisation in training mode) has no Jacobian of this kind.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.func import jvp, vmap

from invgan.errors import InputError

LatentMap = Callable[[Tensor], Tensor]

JACOBIAN_BYTES = 2**28
"""Memory that the Jacobians of geodesics relaxed together may take; more pairs go one block after another."""


def jacobian(f: LatentMap, z: Tensor) -> Tensor:
    """Compute the Jacobian of each row by pushing all d unit tangents through ``f`` in one batch.

    Costs about d forward passes; nothing is recorded for a backward pass.

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Differentiable map that treats rows independently.
    z : Tensor, shape (n, d)
        Where to differentiate.

    Returns
    -------
    Tensor, shape (n, D, d)
        D is the number of output values per row, flattened.

    Examples
    --------
    >>> jacobian(lambda z: z**2, torch.tensor([[1.0, 2.0]])).tolist()
    [[[2.0, 0.0], [0.0, 4.0]]]
    """
    n, d = z.shape
    unit_tangents = torch.eye(d, dtype=z.dtype, device=z.device)[:, None, :].expand(d, n, d)
    with torch.no_grad():
        columns = vmap(lambda tangent: jvp(f, (z,), (tangent,))[1])(unit_tangents)  # d×n×...
    return columns.reshape(d, n, -1).permute(1, 2, 0)


def metric(f: LatentMap, z: Tensor) -> Tensor:
    r"""Compute the Riemannian metric that ``f`` pulls back to the latent space, in float64.

    .. math:: M(z) = J_f(z)^\top J_f(z)

    Parameters
    ----------
    f, z :
        As in :func:`jacobian`.

    Returns
    -------
    Tensor, shape (n, d, d), float64

    Source
    ------
    Paper, section 1.1.

    Examples
    --------
    >>> scale = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 4.0]])
    >>> metric(lambda z: z @ scale.T, torch.zeros(1, 2)).tolist()
    [[[4.0, 0.0], [0.0, 25.0]]]
    """
    tangents = jacobian(f, z).double()
    return tangents.mT @ tangents


class Volume(NamedTuple):
    """The volume element of each row and the singular values it was computed from."""

    log_volume: Tensor
    """½ log det JᵀJ, shape (n,), float64."""
    singular_values: Tensor
    """Of J, descending, shape (n, d), float64."""

    @property
    def rank(self) -> Tensor:
        """Numerical rank of each J, shape (n,): singular values above d·ε of the largest."""
        largest = self.singular_values[:, :1]
        tolerance = self.singular_values.shape[1] * torch.finfo(torch.float32).eps * largest
        return (self.singular_values > tolerance).sum(1)


def volume(f: LatentMap, z: Tensor) -> Volume:
    r"""Compute ½ log det JᵀJ of each row from the singular values of J, never from a determinant.

    J is reduced by QR in float64 before its singular values are taken, so a condition number of 1e5, at
    which a float32 Gram matrix has lost twenty nats, costs nothing.

    Parameters
    ----------
    f, z :
        As in :func:`jacobian`.

    Examples
    --------
    A sphere's area element is sin θ; at the pole the coordinates degenerate, and the rank says so.

    >>> def sphere(angles):
    ...     theta, phi = angles.double().unbind(1)
    ...     return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)
    >>> at = volume(sphere, torch.tensor([[torch.pi / 6, 1.0], [0.0, 1.0]]))
    >>> round(at.log_volume[0].exp().item(), 6), at.rank.tolist()
    (0.5, [2, 1])
    """
    triangle = torch.linalg.qr(jacobian(f, z).double(), mode="r").R
    singular_values = torch.linalg.svdvals(triangle)
    missing = z.shape[1] - singular_values.shape[1]
    if missing > 0:  # fewer outputs than latents: the remaining directions have no extent at all
        singular_values = torch.nn.functional.pad(singular_values, (0, missing))
    return Volume(singular_values.log().sum(1), singular_values)


def log_volume(f: LatentMap, z: Tensor) -> Tensor:
    r"""Compute the log volume element of the surface, the correction term of the paper's Eq. 1.

    .. math:: \tfrac12 \log\det J_f(z)^\top J_f(z)

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Differentiable map that treats rows independently.
    z : Tensor, shape (n, d)
        Where to evaluate.

    Returns
    -------
    Tensor, shape (n,), float64
        In nats; −inf where J has dropped in rank exactly.

    Source
    ------
    Paper, Eq. 1.

    Examples
    --------
    >>> log_volume(lambda z: torch.cat([3 * z, 4 * z], 1), torch.zeros(1, 1)).exp()
    tensor([5.0000], dtype=torch.float64)
    """
    return volume(f, z).log_volume


def inner_product(f: LatentMap, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    r"""Compute the inner product of two tangent vectors at each row, without forming the metric.

    .. math:: \langle u, v \rangle_z = u^\top M(z) v = (J_f(z) u)^\top (J_f(z) v)

    Costs two forward derivatives, whatever d is.

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Differentiable map that treats rows independently. For the metric of Eq. 3,
        ``StochasticGenerator.mean_and_std``.
    z : Tensor, shape (n, d)
        Base points.
    u, v : Tensor, shape (n, d)
        One tangent vector each at every base point, in latent coordinates.

    Returns
    -------
    Tensor, shape (n,), float64

    Raises
    ------
    InputError
        If ``u`` or ``v`` has another shape than ``z``.

    Source
    ------
    Paper, section 1.1.

    Examples
    --------
    >>> z = torch.tensor([[1.0, 2.0]])
    >>> inner_product(lambda z: z**2, z, torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])).item()
    4.0
    """
    for name, tangent in {"u": u, "v": v}.items():
        if tangent.shape != z.shape:
            raise InputError(
                f"The {name!r} parameter of inner_product must have the shape of 'z', {tuple(z.shape)}. "
                f"Got {tuple(tangent.shape)} instead."
            )
    with torch.no_grad():
        along_u, along_v = (jvp(f, (z,), (tangent,))[1].flatten(1).double() for tangent in (u, v))
    return (along_u * along_v).sum(1)


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
