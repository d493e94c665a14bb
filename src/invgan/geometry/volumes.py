r"""Metric and volume element of the surface that a map spans."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invgan.errors import InputError
from invgan.geometry.jacobians import jacobian, map_jacobians
from invgan.geometry.tangents import LatentMap, Stacked

WELL_CONDITIONED = 1e4
"""Condition number of J up to which single precision leaves less than 1e-3 nats of error."""


def metric(f: LatentMap, z: Tensor, *, max_bytes: int | None = None) -> Tensor:
    r"""Compute the Riemannian metric that ``f`` pulls back to the latent space, in float64.

    .. math:: M(z) = J_f(z)^\top J_f(z)

    Parameters
    ----------
    f, z, max_bytes :
        As in :func:`jacobian`. The Jacobians exist one block of rows at a time.

    Returns
    -------
    Tensor, shape (n, d, d), float64

    Raises
    ------
    InputError
        As :func:`jacobian` does.

    Source
    ------
    Paper, section 1.1.

    Examples
    --------
    >>> scale = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 4.0]])
    >>> metric(lambda z: z @ scale.T, torch.zeros(1, 2)).tolist()
    [[[4.0, 0.0], [0.0, 25.0]]]
    """

    def gram(tangents: Tensor, rows: slice) -> Tensor:
        tangents = tangents.double()
        return tangents.mT @ tangents

    return torch.cat(map_jacobians(gram, f, z, max_bytes=max_bytes))


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


def volume(f: LatentMap, z: Tensor, *, scale: Tensor | None = None, max_bytes: int | None = None) -> Volume:
    r"""Compute ½ log det JᵀJ of each row from the singular values of J, never from a determinant.

    J is reduced by QR in float64 before its singular values are taken: at a condition number of 1e5 a float32
    Gram matrix has lost twenty nats. There float32 tangents too are a few thousandths of a nat off, so rows
    with a condition number above 1e4 are evaluated again in float64, by a copy of f, if f is a module.

    Parameters
    ----------
    f, z, max_bytes :
        As in :func:`jacobian`. The Jacobians exist one block of rows at a time.
    scale : Tensor, shape (D,) or (n, D), optional
        Multiplies each output of f, for all rows or for each: other units, or 0 for outputs to be left out.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        As :func:`jacobian` does, and if a derivative is NaN or infinite.

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
    per_row = None if scale is None else scale.expand(len(z), -1)[..., None]  # n×D×1

    def singular_values_of(tangents: Tensor, rows: slice | Tensor, *, single: bool = False) -> Tensor:
        tangents = tangents.double()
        return _singular_values(tangents if per_row is None else tangents * per_row[rows], single=single)

    def first_look(tangents: Tensor, rows: slice) -> Tensor:
        return singular_values_of(tangents, rows, single=tangents.dtype == torch.float32)

    singular_values = torch.cat(map_jacobians(first_look, f, z, max_bytes=max_bytes))
    bad = singular_values.isnan().any(1).nonzero()
    if len(bad):
        raise InputError(
            "The 'f' parameter must have a finite derivative. "
            f"Got NaN or inf in row {int(bad[0])} of 'z' instead."
        )
    unclear = singular_values[:, 0] > WELL_CONDITIONED * singular_values[:, -1]
    if z.dtype == torch.float32 and unclear.any() and (precise := _in_double(f)) is not None:
        # One by one, so that none depends on how many there are; on an accelerator that would take minutes.
        for rows in unclear.nonzero()[:, 0].split(1 if z.device.type == "cpu" else len(z)):
            tangents = jacobian(precise, z[rows].double(), max_bytes=max_bytes)
            singular_values[rows] = singular_values_of(tangents, rows)
    missing = z.shape[1] - singular_values.shape[1]
    if missing > 0:  # fewer outputs than latents: the remaining directions have no extent at all
        singular_values = torch.nn.functional.pad(singular_values, (0, missing))
    return Volume(singular_values.log().sum(1), singular_values)


def _singular_values(tangents: Tensor, *, single: bool) -> Tensor:
    """Singular values (n, min(D, d)) of Jacobians (n, D, d), descending; NaN where one is not finite.

    An accelerator factorises matrices one after the other, and slowly: small ones go to the CPU, and those
    of Jacobians that are good to single precision alone come from a Gram matrix, which in float64 loses
    nothing of that.
    """
    finite = tangents.isfinite().flatten(1).all(1)[:, None, None]
    tangents = torch.where(finite, tangents, 0)
    if single and tangents.device.type != "cpu" and tangents.shape[1] >= tangents.shape[2]:
        squared = torch.linalg.eigvalsh((tangents.mT @ tangents).cpu()).flip(1)
        found = squared.clamp_min(0).sqrt()
    else:
        # Matrices of odd sides round by their place in the batch; zeros add nothing but zeros at the end.
        odd = (0, tangents.shape[2] % 2, 0, tangents.shape[1] % 2)
        triangle = torch.linalg.qr(torch.nn.functional.pad(tangents, odd), mode="r").R.cpu()
        found = torch.linalg.svdvals(triangle)[:, : min(tangents.shape[1:])]
    return torch.where(finite[..., 0], found.to(tangents.device), torch.nan)


def _in_double(f: LatentMap) -> LatentMap | None:
    """Return a copy in float64; None for functions, whose precision is their own."""
    if isinstance(f, Stacked):
        parts = [_in_double(part) for part in f.parts]
        known = [part for part in parts if part is not None]
        return Stacked(known) if len(known) == len(parts) else None
    return copy.deepcopy(f).double() if isinstance(f, nn.Module) else None


def log_volume(f: LatentMap, z: Tensor, *, max_bytes: int | None = None) -> Tensor:
    r"""Compute the log volume element of the surface, the correction term of the paper's Eq. 1.

    .. math:: \tfrac12 \log\det J_f(z)^\top J_f(z)

    Costs d forward passes and 2Dd² multiplications per row.

    Parameters
    ----------
    f : callable, (n, d) → (n, ...)
        Differentiable map that treats rows independently.
    z : Tensor, shape (n, d)
        Where to evaluate.
    max_bytes : int, optional
        Bound on the memory of one intermediate tensor, as in :func:`jacobian`.

    Returns
    -------
    Tensor, shape (n,), float64
        In nats; −inf where J has dropped in rank exactly.

    Raises
    ------
    InputError
        As :func:`volume` does.

    Source
    ------
    Paper, Eq. 1.

    Examples
    --------
    >>> log_volume(lambda z: torch.cat([3 * z, 4 * z], 1), torch.zeros(1, 1)).exp()
    tensor([5.0000], dtype=torch.float64)
    """
    return volume(f, z, max_bytes=max_bytes).log_volume


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
        If ``u`` or ``v`` has another shape than ``z``, and as :func:`jacobian` does.

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
    along = jacobian(f, z, directions=torch.stack([u, v], 2)).double()  # n×D×2
    return along.prod(2).sum(1)
