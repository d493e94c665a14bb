"""DAGMM: a Gaussian mixture over an autoencoder's codes and errors, learned together (Zong et al., 2018)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from invgan import networks
from invgan.estimators import Scorer, ScorerDetector, at_least_single
from invgan.gan import REGRESSION_BETAS
from invgan.training import Moved, Sample, Update

ENERGY_WEIGHT, VARIANCE_PENALTY = 0.1, 0.005
"""The paper's λ₁ and λ₂."""
COVARIANCE_FLOOR = 1e-6
"""Added to the diagonal of every covariance, always and alike: codes are known to a thousandth, no better."""
SMALLEST_NORM = 0.1
"""Errors are relative to a row's norm, but to no less than this part of a typical row's."""
REMEMBERED = 0.9
"""Decay of the running mixture by which training is validated; the one that scores is fitted at the end."""


@dataclass(eq=False, repr=False, kw_only=True)
class DAGMM(ScorerDetector):
    r"""Deep autoencoding Gaussian mixture model, scored by the mixture's log-density.

    .. math::
        \text{score}(x) = \log \sum_{k=1}^{K} \phi_k\, N(z; \mu_k, \Sigma_k), \qquad
        z = \Bigl[h(x),\; \frac{\|x - x'\|}{\|x\|},\; \frac{x \cdot x'}{\|x\| \|x'\|}\Bigr],
        \quad x' = g(h(x))

    An estimation network assigns rows to components; φ, μ and Σ follow from its assignments in closed form:
    of each minibatch in training, of all training rows for the score.

    Parameters
    ----------
    latent_dim : int, optional
        Dimension of the code h(x), two less than that of z. By default chosen from the data's shape.
    n_components : int
        Number K of Gaussians.
    max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, processes, \
    precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the objective on the held-out rows.

    Source
    ------
    Zong et al. (2018), "Deep autoencoding Gaussian mixture model for unsupervised anomaly detection", Eq. 1-7
    and section 4.3 (codes of 1 or 2, K = 2 or 4, λ = 0.1 and 0.005, an estimation network of ten tanh
    units with dropout 0.5). Open there: how Σ is kept invertible beyond the penalty λ₂ Σ 1/Σ_jj. Ours
    has 1e-6 added to its diagonal. The penalty holds up coordinates, not directions: codes much wider than
    the paper's fold onto a few (docs/detectors.md). Relative errors explode next to x = 0, the mean of
    standardised rows: there ‖x‖ counts as a tenth of √D.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> DAGMM(max_steps=100, random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ScorerDetector._parameter_constraints,
        "n_components": [Interval(Integral, 1, None, closed="left")],
    }

    n_components: int = 4
    model_: "MixtureOfCodes" = field(init=False)

    def _networks(self) -> "MixtureOfCodes":
        parts = networks.build(self.data_shape_, self.latent_dim_)
        return MixtureOfCodes(parts.inference, parts.generator, self.latent_dim_, self.n_components)

    def _finish(self, training: Tensor) -> None:
        codes = self._blocks(lambda block: self.model_.represent(self._prepare(block))[0], training)
        self.model_.remember(GaussianMixture.fit(codes, self._blocks(self.model_.assign, codes)))


class GaussianMixture(NamedTuple):
    """Weights φ (K,), means μ (K, p) and the Cholesky factors of the covariances Σ (K, p, p)."""

    weights: Tensor
    means: Tensor
    factors: Tensor

    @classmethod
    def fit(cls, codes: Tensor, assignments: Tensor) -> "GaussianMixture":
        """Take the weighted moments of codes (n, p) under soft assignments (n, K): Eq. 5."""
        codes, assignments = codes.double(), assignments.double()
        # A component that no row is assigned to has no moments; one row in a million is enough to have some.
        members = assignments.sum(0).clamp_min(1e-6 * len(codes))
        means = (assignments.T @ codes) / members[:, None]
        deviations = codes - means[:, None]  # K×n×p
        weighted = assignments.T[:, :, None] * deviations
        covariances = deviations.mT @ weighted / members[:, None, None]
        floor = COVARIANCE_FLOOR * torch.ones_like(codes[0]).diag()
        factors, failed = torch.linalg.cholesky_ex(covariances + floor)
        # Of codes that are not finite any more: the loss will say so, with the step.
        return cls(members / members.sum(), means, factors.masked_fill(failed[:, None, None] > 0, torch.nan))

    def log_prob(self, codes: Tensor) -> Tensor:
        """Return the log-density, shape (n,), of codes (n, p): minus the energy of Eq. 6."""
        deviations = (codes.double() - self.means[:, None]).mT  # K×p×n
        whitened = torch.linalg.solve_triangular(self.factors, deviations, upper=False)
        log_normalizer = 0.5 * codes.shape[1] * math.log(2 * math.pi) + self.log_diagonal().sum(1)
        log_prob = -0.5 * whitened.square().sum(1) - log_normalizer[:, None]
        return torch.logsumexp(self.weights.log()[:, None] + log_prob, 0)

    def log_diagonal(self) -> Tensor:
        return self.factors.diagonal(dim1=1, dim2=2).log()

    def variances(self) -> Tensor:
        """Return the diagonals of Σ, shape (K, p)."""
        return self.factors.square().sum(2)


class MixtureOfCodes(Scorer):
    """A compression network and an estimation network, with the mixture that they make.

    Parameters
    ----------
    encoder, decoder : nn.Module
        h: (n, \\*data_shape) → (n, d); g: (n, d) → (n, \\*data_shape).
    latent_dim, n_components : int
        Dimension d of the codes; number K of Gaussians.
    """

    recordable = False  # for the factorisation

    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, n_components: int) -> None:
        super().__init__()
        size = latent_dim + 2
        self.encoder, self.decoder = encoder, decoder
        self.estimation = nn.Sequential(
            nn.Linear(size, 10), nn.Tanh(), nn.Dropout(0.5), nn.Linear(10, n_components)
        )
        self.register_buffer("weights", torch.zeros(n_components))
        self.register_buffer("means", torch.zeros(n_components, size))
        self.register_buffer("factors", torch.zeros(n_components, size, size))

    def updates(self) -> Sequence[Update]:
        """List the one update: everything at once."""
        parts = (self.encoder, self.decoder, self.estimation)
        return (Update("objective", self.loss, tuple(Moved(part, betas=REGRESSION_BETAS) for part in parts)),)

    def loss(self, sample: Sample) -> Tensor:
        """Eq. 7: squared reconstruction error, energy, and the penalty on small variances."""
        codes, errors = self.represent(sample.rows())
        mixture = GaussianMixture.fit(codes, self.assign(codes))
        self.remember(mixture, REMEMBERED)
        penalty = mixture.variances().reciprocal().sum()
        energy = -mixture.log_prob(codes).mean()
        return (errors.mean() + ENERGY_WEIGHT * energy + VARIANCE_PENALTY * penalty).float()

    def validation_score(self, rows: Tensor) -> Tensor:
        """Minus the error and weighted energy of held-out rows, under the mixture of recent minibatches."""
        codes, errors = self.represent(rows)
        return (ENERGY_WEIGHT * self.mixture.log_prob(codes) - errors).mean()

    def score(self, rows: Tensor) -> Tensor:
        """Return the mixture's log-density."""
        return self.mixture.log_prob(self.represent(rows)[0])

    def represent(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, shape (n, d + 2), of Eq. 3, and the squared error ‖x − x'‖², shape (n,)."""
        code = self.encoder(rows)
        rows, restored = rows.flatten(1), at_least_single(self.decoder(code)).flatten(1)
        errors = (rows - restored).square().sum(1)
        least = SMALLEST_NORM * math.sqrt(rows.shape[1])
        # The root of a zero error, in a row restored exactly, has no derivative.
        relative = errors.clamp_min(1e-12).sqrt() / rows.norm(dim=1).clamp_min(least)
        similarity = F.cosine_similarity(rows, restored, dim=1)
        return torch.cat([at_least_single(code), torch.stack([relative, similarity], 1)], 1), errors

    def assign(self, codes: Tensor) -> Tensor:
        """Return each row's soft assignment γ to the components, shape (n, K): Eq. 4."""
        return at_least_single(self.estimation(codes)).softmax(1)

    @property
    def mixture(self) -> GaussianMixture:
        """The remembered mixture."""
        return GaussianMixture(self.weights.double(), self.means.double(), self.factors.double())

    @torch.no_grad()
    def remember(self, mixture: GaussianMixture, decay: float = 0.0) -> None:
        """Move the remembered mixture to this one, or by a part of the way."""
        # A mean of Cholesky factors is one itself, of some covariance between those averaged.
        for kept, new in zip((self.weights, self.means, self.factors), mixture, strict=True):
            kept.lerp_(new.to(kept), 1 - decay)
