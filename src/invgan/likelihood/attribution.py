"""Which features make a row unlikely under the aggregate density, and what they should have been."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from invgan.likelihood.aggregate import TangentMixture, component_variances

MAX_SET_ASIDE = 16
"""Features that are set aside one after the other, at most; the others are judged where that ends."""


class Attribution(NamedTuple):
    """What each feature has to do with a row's density."""

    surprise: Tensor
    """Nats by which each feature lowers log p(x), m×D: they add up to −log p(x)."""
    mean: Tensor
    """What the features that are not set aside lead to expect of each, m×D."""
    std: Tensor
    """How far from that it may be, m×D."""


def attribute(
    mixture: TangentMixture, rows: Tensor, *, typical: Tensor | None = None, observed: Tensor | None = None
) -> Attribution:
    r"""Divide −log p(x) among the features, by the chain rule from the most surprising feature on.

    .. math::
        -\log p(x) = -\sum_t \log p(x_{j_t} \,|\, x_{S_t}) - \log p(x_{S_T}), \qquad
        S_t = S_{t-1} \setminus \{j_t\}

    where :math:`j_t` is the feature whose :math:`-\log p(x_j | x_{S_{t-1} \setminus j})` exceeds the typical
    one the most, as long as any does: an unusual value is neither held for what the others should be
    measured by, nor do they share its blame. Each of the rest :math:`S_T` has
    :math:`-\log p(x_j | x_{S_T \setminus j})` and an equal part of what these leave of the last term.

    A component's conditional needs no more than its precision: :math:`x_j | x_{S \setminus j}` is normal
    with precision :math:`\Lambda_{jj}` and mean :math:`x_j - (\Lambda (x - c))_j / \Lambda_{jj}`; to set j
    aside is to subtract :math:`\Lambda_{:j} \Lambda_{j:} / \Lambda_{jj}`.

    Parameters
    ----------
    mixture : TangentMixture
    rows : Tensor, shape (m, D)
        Scaled rows.
    typical : Tensor, shape (m, D), optional
        Nats of each feature, log p, in a row that is not unusual. Without it no feature is set aside.
    observed : Tensor, shape (m, D), bool, optional
        Which features are known: the others are integrated out first, and have surprise 0. What stands in
        them does not count, but has to be finite.

    Returns
    -------
    Attribution
        Of the scaled features, in float64.

    Examples
    --------
    >>> from invgan.likelihood import Bandwidths
    >>> flat = TangentMixture(torch.zeros(5, 2), torch.zeros(5, 1), lambda z: torch.cat([z, z], 1))
    >>> flat.set_bandwidths(Bandwidths(tangent=1.0, noise=1.0, round=1.0))  # N(0, I): all five are alike
    >>> found = attribute(flat, torch.tensor([[0.0, 3.0]]))
    >>> (found.surprise - 0.5 * math.log(2 * math.pi)).round(decimals=9)  # ½ x² each
    tensor([[0.0000, 4.5000]], dtype=torch.float64)
    >>> found.mean, found.std
    (tensor([[0., 0.]], dtype=torch.float64), tensor([[1., 1.]], dtype=torch.float64))
    """
    known = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
    parts = []
    for i, row in enumerate(rows.double()):
        conditionals = _Conditionals(mixture, row)
        for j in (~known[i]).nonzero()[:, 0].tolist():
            conditionals.set_aside(j)
        parts.append(_attribute_row(conditionals, None if typical is None else typical[i].double()))
    return Attribution(*(torch.stack(part) for part in zip(*parts, strict=True)))


def _attribute_row(conditionals: "_Conditionals", typical: Tensor | None) -> Attribution:
    surprise, (mean, std) = torch.zeros_like(conditionals.row), conditionals.expected()
    for _ in range(MAX_SET_ASIDE):
        rest = conditionals.rest
        if typical is None or not rest.any():
            break
        found = conditionals.surprises()
        excess = torch.where(rest, found + typical, -torch.inf)
        j = int(excess.argmax())
        if excess[j] <= 0:
            break
        surprise[j] = found[j]
        conditionals.set_aside(j)
        now, spread = conditionals.expected()
        # What is still in is expected from what is still in.
        mean, std = (torch.where(conditionals.rest, new, old) for new, old in ((now, mean), (spread, std)))
    rest = conditionals.rest
    if rest.any():
        found = conditionals.surprises()
        left = -conditionals.log_prob() - found[rest].sum()
        surprise = torch.where(rest, found + left / rest.sum(), surprise)
    return Attribution(surprise, mean, std)


class _Conditionals:
    """One row under every component: each feature given the others that have not been set aside."""

    def __init__(self, mixture: TangentMixture, row: Tensor) -> None:
        tangents = mixture.tangents
        along, across = component_variances(
            tangents.lengths.double(), tangents.scale.double(), mixture.bandwidths, mixture.round_share
        )
        n, rank = along.shape
        self.row, self.rest = row, torch.ones_like(row, dtype=torch.bool)
        # Λ = I/ν − U diag(1/ν − 1/α) Uᵀ, and of what is set aside a column each.
        self.inverse, self.axes = 1 / across[:, None], tangents.basis.double().view(len(row), n, rank)
        self.weighted = self.axes * (self.inverse - 1 / along)  # D×n×r
        self.columns: list[Tensor] = []
        steps = row - mixture.centers.double()  # n×D
        within = torch.einsum("nd,dnr->nr", steps, self.axes)
        self.pull = steps * self.inverse - torch.einsum("dnr,nr->nd", self.weighted, within)  # Λ (x − c)
        self.precision = self.inverse - (self.weighted * self.axes).sum(2).T  # its diagonal, n×D
        log_det = along.log().sum(1) + (len(row) - rank) * across.log()
        quadratic = (steps * self.pull).sum(1)
        self.log_density = -0.5 * (quadratic + log_det + len(row) * math.log(2 * math.pi))  # n

    def log_prob(self) -> Tensor:
        """Log-density of the features that are not set aside."""
        return torch.logsumexp(self.log_density, 0) - math.log(len(self.log_density))

    def surprises(self) -> Tensor:
        """−log p(x_j | the rest), (D,); 0 for what was set aside."""
        without = torch.logsumexp(self._without(), 0) - math.log(len(self.log_density))
        return torch.where(self.rest, without - self.log_prob(), 0)

    def expected(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_j | the rest, (D,) each."""
        share = torch.softmax(self._without(), 0)
        precision = torch.where(self.rest, self.precision, 1)
        means = self.row - self.pull / precision
        mean = (share * means).sum(0)
        return mean, (share * (1 / precision + (means - mean).square())).sum(0).sqrt()

    def set_aside(self, j: int) -> None:
        """Integrate feature j out."""
        self.log_density = self._without()[:, j]
        root = self.precision[:, j].sqrt()
        column = -torch.einsum("dnr,nr->nd", self.axes, self.weighted[j])
        column[:, j] += self.inverse[:, 0]
        for earlier in self.columns:
            column -= earlier * earlier[:, [j]]
        column /= root[:, None]
        self.pull = self.pull - column * (self.pull[:, j] / root)[:, None]
        # Not below what rounding leaves, where a feature follows from the others.
        self.precision = (self.precision - column.square()).clamp_min(1e-12 * self.inverse)
        self.columns.append(column)
        self.rest = self.rest.clone()
        self.rest[j] = False

    def _without(self) -> Tensor:
        """Log-density of the rest without each feature in turn, n×D."""
        precision = torch.where(self.rest, self.precision, 1)
        conditional = 0.5 * (precision / (2 * math.pi)).log() - 0.5 * self.pull.square() / precision
        return self.log_density[:, None] - torch.where(self.rest, conditional, 0)
