"""Which features make a row unlikely under the aggregate density, and what they should have been."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from invgan.likelihood.aggregate import TangentMixture, component_variances, tail_widths

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
    mixture: TangentMixture,
    rows: Tensor,
    *,
    typical: Tensor | None = None,
    observed: Tensor | None = None,
    omitted: Tensor | None = None,
) -> Attribution:
    r"""Divide −log p(x) among the features, by the chain rule from the most surprising feature on.

    .. math::
        -\log p(x) = -\sum_t \log p(x_{j_t} \,|\, x_{S_t}) - \log p(x_{S_T}), \qquad
        S_t = S_{t-1} \setminus \{j_t\}

    where :math:`j_t` is the feature whose :math:`-\log p(x_j | x_{S_{t-1} \setminus j})` exceeds the typical
    one the most, as long as any does: an unusual value is neither held for what the others should be
    measured by, nor do they share its blame. Each of the rest :math:`S_T` has
    :math:`-\log p(x_j | x_{S_T \setminus j})` and an equal part of what these leave of the last term.

    A Gaussian component's conditional needs no more than its precision: :math:`x_j | x_{S \setminus j}` is
    normal with precision :math:`\Lambda_{jj}` and mean :math:`x_j - (\Lambda (x - c))_j / \Lambda_{jj}`; to
    set j aside is to subtract :math:`\Lambda_{:j} \Lambda_{j:} / \Lambda_{jj}`. In the tails a feature does
    not depend on the others.

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
    omitted : Tensor, shape (m,), int, optional
        For each row the component that it carries and is judged without, as one of n - 1; -1 for none.

    Returns
    -------
    Attribution
        Of the scaled features, in float64.

    Examples
    --------
    >>> from invgan.likelihood import Bandwidths
    >>> zeros = torch.zeros(5, 2)
    >>> flat = TangentMixture(zeros, zeros, torch.zeros_like, tail_share=0.0)
    >>> flat.set_bandwidths(Bandwidths(tangent=1.0, noise=1.0, round=1.0, tail=1.0))  # N(0, I), five times
    >>> found = attribute(flat, torch.tensor([[0.0, 3.0]]))
    >>> (found.surprise - 0.5 * math.log(2 * math.pi)).round(decimals=9)  # ½ x² each
    tensor([[0.0000, 4.5000]], dtype=torch.float64)
    >>> found.mean, found.std
    (tensor([[0., 0.]], dtype=torch.float64), tensor([[1., 1.]], dtype=torch.float64))
    """
    known = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
    components, parts = _Components.of(mixture), []
    for i, row in enumerate(rows.double()):
        conditionals = _Conditionals(components, row, -1 if omitted is None else int(omitted[i]))
        for j in (~known[i]).nonzero()[:, 0].tolist():
            conditionals.set_aside(j)
        parts.append(_attribute_row(conditionals, None if typical is None else typical[i].double()))
    return Attribution(*(torch.stack(part) for part in zip(*parts, strict=True)))


def _attribute_row(conditionals: "_Conditionals", typical: Tensor | None) -> Attribution:
    surprise = torch.zeros_like(conditionals.row)
    mean, std = conditionals.expected()
    for _ in range(MAX_SET_ASIDE):
        rest = conditionals.rest
        if typical is None or not rest.any():
            break
        found = conditionals.surprises()
        excess = torch.where(rest, found + typical, -torch.inf)
        j = int(excess.argmax())
        if excess[j] <= 0:
            break
        surprise[j], mean[j], std[j] = conditionals.set_aside(j)
    rest = conditionals.rest
    if rest.any():
        found, (now, spread) = conditionals.surprises(), conditionals.expected()
        left = -conditionals.log_prob() - found[rest].sum()
        surprise = torch.where(rest, found + left / rest.sum(), surprise)
        mean, std = torch.where(rest, now, mean), torch.where(rest, spread, std)
    return Attribution(surprise, mean, std)


class _Components(NamedTuple):
    """Λ = I/ν − U diag(1/ν − 1/α) Uᵀ of every Gaussian, and what the tails around its centre are."""

    centers: Tensor  # n×D
    inverse: Tensor  # 1/ν, n×1
    axes: Tensor  # U, n×D×r
    weighted: Tensor  # U diag(1/ν − 1/α), n×D×r
    diagonal: Tensor  # n×D
    log_det: Tensor  # of Λ⁻¹, n
    tail_width: Tensor  # b, n×1
    log_shares: Tensor  # log (1 − ε) and log ε

    @classmethod
    def of(cls, mixture: TangentMixture) -> "_Components":
        tangents, centers = mixture.tangents, mixture.centers.double()
        along, across = component_variances(
            tangents.lengths.double(), tangents.scale.double(), mixture.bandwidths, mixture.round_share
        )
        (n, rank), n_features = along.shape, centers.shape[1]
        inverse = 1 / across[:, None]
        axes = tangents.basis.double().view(n_features, n, rank).transpose(0, 1).contiguous()
        weighted = axes * (inverse - 1 / along)[:, None]
        diagonal = inverse - (weighted * axes).sum(2)
        log_det = along.log().sum(1) + (n_features - rank) * across.log()
        width = tail_widths(tangents.tail_scale.double(), mixture.bandwidths)[:, None]
        log_shares = centers.new_tensor([1 - mixture.tail_share, mixture.tail_share]).log()
        return cls(centers, inverse, axes, weighted, diagonal, log_det, width, log_shares)


class _Conditionals:
    """One row under every component: each feature given the others that have not been set aside."""

    def __init__(self, components: _Components, row: Tensor, omitted: int) -> None:
        self.components, self.row, self.omitted = components, row, omitted
        self.n_components = len(components.centers) - (omitted >= 0)
        self.rest = torch.ones_like(row, dtype=torch.bool)
        self.steps = row - components.centers  # n×D
        within = components.axes.mT @ self.steps[..., None]
        self.pull = self.steps * components.inverse - (components.weighted @ within)[..., 0]  # Λ (x − c)
        self.precision = components.diagonal.clone()  # Λ's diagonal
        self.log_det = components.log_det  # of the covariance of the rest
        self.columns: list[Tensor] = []  # of what is set aside: Λ less its outer product with itself
        width = components.tail_width
        self.in_tails = -(self.steps.abs() / width + (2 * width).log())  # n×D
        self._judge()

    def _judge(self) -> None:
        """Work out the density of the rest under each component, and without each of its features."""
        rest = self.rest
        # Anew, and not what it was less one conditional: of a value far off only rounding would be left.
        quadratic = torch.where(rest, self.steps * self.pull, 0).sum(1)
        # A count times a number would be in single precision.
        n_rest = rest.sum(dtype=quadratic.dtype)
        gaussians = -0.5 * (quadratic + self.log_det + n_rest * math.log(2 * math.pi))
        tails = torch.where(rest, self.in_tails, 0).sum(1)
        self.log_density = torch.stack([gaussians, tails]) + self.components.log_shares[:, None]  # 2×n
        if self.omitted >= 0:
            self.log_density[:, self.omitted] = -torch.inf
        precision = torch.where(rest, self.precision, 1)
        gaussians = 0.5 * (precision / (2 * math.pi)).log() - 0.5 * self.pull.square() / precision
        conditional = torch.where(rest, torch.stack([gaussians, self.in_tails]), 0)
        self.without = self.log_density[..., None] - conditional  # 2×n×D: Gaussians, and their tails

    def log_prob(self) -> Tensor:
        """Log-density of the features that are not set aside."""
        return torch.logsumexp(self.log_density, (0, 1)) - math.log(self.n_components)

    def surprises(self) -> Tensor:
        """−log p(x_j | the rest), (D,); 0 for what was set aside."""
        without = torch.logsumexp(self.without, (0, 1)) - math.log(self.n_components)
        return torch.where(self.rest, without - self.log_prob(), 0)

    def expected(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature given the rest, (D,)."""
        return _moments(self.without.flatten(0, 1), *self._moments_by_component(slice(None)))

    def _moments_by_component(self, which: slice) -> tuple[Tensor, Tensor]:
        """Mean and variance of features given the rest, under each Gaussian and then in each one's tails."""
        components = self.components
        precision = torch.where(self.rest, self.precision, 1)[:, which]
        given = self.row[which] - self.pull[:, which] / precision
        in_tails = 2 * components.tail_width.square().expand_as(components.centers)[:, which]
        return torch.cat([given, components.centers[:, which]]), torch.cat([1 / precision, in_tails])

    def set_aside(self, j: int) -> tuple[Tensor, Tensor, Tensor]:
        """Integrate feature j out; return its surprise, mean and standard deviation given the rest."""
        before, moments = self.log_prob(), self._moments_by_component(slice(j, j + 1))
        components, root = self.components, self.precision[:, j].sqrt()
        column = -(components.axes @ components.weighted[:, j, :, None])[..., 0]
        column[:, j] += components.inverse[:, 0]
        for earlier in self.columns:
            column -= earlier * earlier[:, [j]]
        column /= root[:, None]
        self.log_det = self.log_det + self.precision[:, j].log()
        self.pull = self.pull - column * (self.pull[:, j] / root)[:, None]
        # Not below what rounding leaves, where a feature follows from the others.
        self.precision = (self.precision - column.square()).clamp_min(1e-12 * components.inverse)
        self.columns.append(column)
        self.rest = self.rest.clone()
        self.rest[j] = False
        self._judge()
        mean, std = _moments(self.log_density.flatten()[:, None], *moments)
        return self.log_prob() - before, mean[0], std[0]


def _moments(log_weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of mixtures, one in each column."""
    share = torch.softmax(log_weights, 0)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0).sqrt()
