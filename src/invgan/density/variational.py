"""FlowVAE: a variational autoencoder whose decoder is FlowGAN's generator."""

import math

import torch
from torch import Tensor, nn

from invgan import networks
from invgan.density.base import FlowModel
from invgan.density.bijections import Bijection, Logit
from invgan.density.flows import RealNVP
from invgan.likelihood import log_prior
from invgan.training import Sample

FULL_COVARIANCE = 16
"""Dimensions up to which a row's posterior has correlations: a factor has D²/2 entries."""
N_DRAWS = 64
"""Fixed draws from the posterior by which a row is scored."""
N_VALIDATION_DRAWS = DRAWS_AT_ONCE = 8
IMAGES_AT_ONCE = 1024
"""Images times draws that go through g together: 64 times as many as are scored would fill a memory."""
INITIAL_LOG_STD = -4.0
"""Where log σ starts. It falls further while g learns edges, which takes too long from −1."""
LARGEST_LOG_DEVIATION = 10.0
"""Bound on the logarithm of a posterior's scale, which would overflow for a row far outside."""


class FlowVAEModel(FlowModel):
    r"""Latents z ~ N(0, I), rows x ~ N(g(z), σ² I), and an approximate posterior q(z | x).

    .. math::
        \log p(x) \ge \mathrm{E} \log \frac1K \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x | z_k)\, p(z_k)}{q(z_k | x)}, \qquad
        z_k = g^{-1}(y_k), \quad y_k = x + \sigma L(x) (m(x) + \epsilon_k), \quad \epsilon_k \sim N(0, I)

    Whatever g is, it takes a row's latents to about x: so q is a Gaussian there, taken to the latents by the
    inverse of g. With the Jacobian of that both densities of z become densities of y, and it cancels:

    .. math:: w_k = \frac{N(x; y_k, \sigma^2 I)\, p_g(y_k)}{q(y_k | x)}, \qquad
        p_g(y) = N(g^{-1}(y); 0, I)\, |\det \partial g^{-1} / \partial y|

    Trained with K = 1, the evidence lower bound. The encoder gives m, and L, which is lower triangular, and
    diagonal beyond 16 dimensions; it sees arsinh x, or it would put the y of a row far outside anywhere.

    Parameters
    ----------
    flow, data_shape, level_width
        Those of :class:`~invgan.density.base.FlowModel`; its inverse is g.
    encoder : nn.Module
        (n, \*data_shape) → (n, :func:`n_encoded`).
    """

    draws: Tensor

    def __init__(
        self, flow: Bijection, data_shape: tuple[int, ...], level_width: float, encoder: nn.Module
    ) -> None:
        super().__init__(flow, data_shape, level_width)
        self.encoder = encoder
        self.log_std = nn.Parameter(torch.tensor(INITIAL_LOG_STD))
        """log σ, in units of the scaled data."""
        self.register_buffer("draws", _fixed_draws(self.n_features)[:, None])

    def likelihood_loss(self, sample: Sample) -> Tensor:
        """The negative evidence lower bound, K = 1, of a minibatch, in nats per row of the scaled data."""
        return -self.log_weights(self.rows(sample), sample.normal(self.n_features)[None]).mean()

    def validation_score(self, rows: Tensor) -> Tensor:
        """Mean importance-weighted bound of held-out rows."""
        return self._bound(rows + self.noise, self.draws[:N_VALIDATION_DRAWS]).mean()

    def log_prob(self, rows: Tensor) -> Tensor:
        """Return the importance-weighted bound with K = 64 draws, the same for all rows and calls."""
        return self._bound(rows, self.draws)

    def _bound(self, rows: Tensor, draws: Tensor) -> Tensor:
        at_once = DRAWS_AT_ONCE if rows.ndim == 2 else max(1, IMAGES_AT_ONCE // len(rows))
        parts = draws.expand(-1, len(rows), -1).split(at_once)
        log_weights = torch.cat([self.log_weights(rows, part) for part in parts])
        return log_weights.logsumexp(0) - math.log(len(draws))

    def log_weights(self, rows: Tensor, draws: Tensor) -> Tensor:
        """Return log w, shape (K, n), for standard normal ε of shape (K, n, D)."""
        mean, log_diagonal, below = self._encode(rows)
        offsets = log_diagonal.exp() * (mean + draws)
        if below is not None:
            offsets = offsets + torch.einsum("nij,knj->kni", below, mean + draws)
        shifts = self.log_std.exp() * offsets.view(len(draws), *rows.shape)
        log_prob_of_points = super().log_prob((rows + shifts).flatten(0, 1))
        log_ratio = log_prior(offsets.flatten(0, 1)) - log_prior(draws.flatten(0, 1))
        return (log_prob_of_points + log_ratio).view(len(draws), -1) + log_diagonal.sum(1)

    def _encode(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return m (n, D), the logarithm of L's diagonal (n, D), and what is below it, if anything."""
        size = self.n_features
        mean, log_diagonal, rest = (
            self.encoder(rows.asinh()).to(rows.dtype).split([size, size, n_encoded(size) - 2 * size], 1)
        )
        log_diagonal = log_diagonal.clamp(-LARGEST_LOG_DEVIATION, LARGEST_LOG_DEVIATION)
        if size > FULL_COVARIANCE:
            return mean, log_diagonal, None
        below = rows.new_zeros(len(rows), size, size)
        row, column = torch.tril_indices(size, size, -1, device=rows.device)
        below[:, row, column] = rest
        return mean, log_diagonal, below

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one sampled row is made from: its latent, and ε."""
        return (2, self.n_features)

    def generate(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise into rows g(z) + σ ε."""
        mean = self.flow.inverse(noise[:, 0])
        return mean + self.log_std.exp() * noise[:, 1].view_as(mean)


def _fixed_draws(n_features: int) -> Tensor:
    """Standard normal draws, shape (64, D): spread evenly, by a scrambled Sobol sequence, if D is small."""
    if n_features > FULL_COVARIANCE:
        return torch.randn(N_DRAWS, n_features, generator=torch.Generator().manual_seed(0))
    sequence = torch.quasirandom.SobolEngine(n_features, scramble=True, seed=0)
    return torch.special.ndtri(sequence.draw(N_DRAWS))


def n_encoded(n_features: int) -> int:
    """Count what an encoder returns: a mean, and the entries of L.

    Examples
    --------
    >>> n_encoded(2), n_encoded(100)
    (5, 200)
    """
    below = n_features * (n_features - 1) // 2 if n_features <= FULL_COVARIANCE else 0
    return 2 * n_features + below


class FlowVAE(RealNVP):
    r"""A variational autoencoder whose decoder has the structure of :class:`FlowGAN`'s generator.

    .. math:: z \sim N(0, I_D), \qquad x \sim N(g(z), \sigma^2 I)

    g is the inverse of a RealNVP, σ one learned number. ``score_samples`` returns an importance-weighted
    bound on log p(x), with 64 draws from the approximate posterior q(z | x) that are fixed: the same for all
    rows and calls. Its exponential is p(x) on average over such draws.

    The paper says no more than that decoder and generator are of one structure. The rest is our choice: a q
    that is Gaussian where the data are, and taken to the latents by :math:`g^{-1}`, since there is one (a
    Gaussian among the latents would have to follow each bend of g); its offset and its scale from an encoder
    with the structure of InvGAN's inference network; correlations, and quasi-random draws, up to 16
    dimensions, neither beyond.

    Parameters
    ----------
    n_layers, width, spline
        Those of :class:`RealNVP`.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`.

    Source
    ------
    The paper's section 4.1; Kingma and Welling (2014) for the model, Burda et al. (2016) for the bound.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> FlowVAE(max_steps=10, random_state=0).fit(X).sample(3, random_state=0).shape
    (3, 2)
    """

    def _default_learning_rate(self) -> float:
        return min(3e-3, super()._default_learning_rate())

    def _bend(self, n_channels: int, n_levels: int) -> Bijection:
        # A normal quantile bends at every level, and what lies around a row would be anything but normal.
        return Logit()

    def _model(self, flow: Bijection, level_width: float) -> FlowVAEModel:
        encoder = networks.build(self.data_shape_, n_encoded(self._size())).inference
        return FlowVAEModel(flow, self.data_shape_, level_width, encoder)
