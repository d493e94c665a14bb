r"""Geometry of the surface that a generator spans: Jacobian, metric, volume (paper, sections 1.1 and 1.2).

Every function takes a map ``f`` that sends each row of its input to its own row of output, ``(n, d)`` to
``(n, ...)``: a module in evaluation mode, or any differentiable function. A module that mixes the rows of a
batch (batch normalisation in training mode) has no Jacobian of this kind.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

LatentMap = Callable[[Tensor], Tensor]


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
