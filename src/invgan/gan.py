"""Algorithm 1: a generator, its discriminator, its inverse and its variance, learned together."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invgan.likelihood import StochasticGenerator, joint
from invgan.training import Moved, Sample, Trainable, Update

CriticLoss = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss = Callable[[Tensor], Tensor]

ADVERSARIAL_LOSSES: dict[str, tuple[CriticLoss, GeneratorLoss]] = {
    # Lines 7 and 9 of Algorithm 1, with the sigmoid folded in: log d = −softplus(−logit).
    "saturating": (
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake: -F.softplus(fake).mean(),
    ),
    "non-saturating": (
        lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
        lambda fake: F.softplus(-fake).mean(),
    ),
    "hinge": (
        lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
        lambda fake: -fake.mean(),
    ),
    "wasserstein": (
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake: -fake.mean(),
    ),
}
"""Losses of the discriminator (of its logits for real and generated rows) and of the generator."""

GRADIENT_PENALTY = 10.0
"""Weight of the Wasserstein critic's gradient penalty (Gulrajani et al., 2017, Eq. 3)."""


REGRESSION_BETAS = (0.9, 0.999)
"""Adam's decay rates where nothing moves against the loss."""


class InvertedGenerator(Trainable):
    """A generator g with its inference network h and variance network σ, and the losses of the latter two.

    Parameters
    ----------
    generator, inference, variance : nn.Module
        g: (n, d) → (n, \\*data_shape); h: (n, \\*data_shape) → (n, d); σ: (n, d) → (n, D), positive.
    latent_dim : int
        Dimension d of the latent space, whose prior is N(0, I).
    """

    def __init__(
        self, generator: nn.Module, inference: nn.Module, variance: nn.Module, *, latent_dim: int
    ) -> None:
        super().__init__()
        self.generator, self.inference, self.variance = generator, inference, variance
        self.latent_dim = latent_dim

    @property
    def stochastic_generator(self) -> StochasticGenerator:
        """f(z) = g(z) + σ(z) ⊙ ε, with data rows flattened (Eq. 2)."""
        return StochasticGenerator(nn.Sequential(self.generator, nn.Flatten(1)), self.variance)

    def reconstruction_loss(self, sample: Sample) -> Tensor:
        r"""Line 11: L_{h,σ}, the negative log-likelihood of real rows plus the aggregated-posterior KL.

        .. math::
            \sum_i \Bigl[\frac{(g_i(h(x)) - x_i)^2}{2 \sigma_i^2(h(x))} + \log \sigma_i(h(x))\Bigr]
            + \mathrm{KL}\bigl(N(\bar h, s_h^2) \,\|\, N(0, I)\bigr)

        The paper's text has diag(σ) for the covariance; σ is a standard deviation, so its square divides.
        """
        rows = sample.rows()
        z = self.inference(rows)
        # Distances to the centres are differences of squares, which bfloat16 would drown in rounding.
        with torch.autocast(z.device.type, enabled=False):
            std = self.variance(z.float())
        residual = (self.generator(z).float() - rows).flatten(1)
        negative_log_likelihood = (0.5 * (residual / std).square() + std.log()).sum(1).mean()
        return negative_log_likelihood + aggregated_posterior_kl(z.float())

    def inversion_loss(self, sample: Sample) -> Tensor:
        """Line 13: ‖z − h(g(z))‖², which makes h invert g."""
        z = sample.normal(self.latent_dim)
        return (z - self.inference(self.generator(z)).float()).square().sum(1).mean()

    def validation_score(self, rows: Tensor) -> Tensor:
        """Mean of log p(x | h(x)) + log p(h(x)) over held-out rows, in nats of the scaled data."""
        return joint(self.stochastic_generator, rows, self.inference(rows)).mean()


class GAN(InvertedGenerator):
    r"""The four networks of the paper and the four updates that train them.

    Parameters
    ----------
    generator, discriminator, inference : nn.Module
        g: (n, d) → (n, \*data_shape); logits (n, 1); h: (n, \*data_shape) → (n, d).
    variance : nn.Module
        σ: (n, d) → (n, D), positive.
    latent_dim : int
        Dimension d of the latent space, whose prior is N(0, I).
    loss : {"saturating", "non-saturating", "hinge", "wasserstein"}
        The adversarial loss; the paper's is the saturating one, and its section 3 allows any divergence.
    instance_noise : float
        Standard deviation of the noise on whatever the discriminator sees, in units of the scaled data: it
        gives real and generated rows a common support (Sønderby et al., 2017). The paper has none.

    Source
    ------
    Paper, Algorithm 1.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        inference: nn.Module,
        variance: nn.Module,
        *,
        latent_dim: int,
        loss: str = "non-saturating",
        instance_noise: float = 0.0,
    ) -> None:
        super().__init__(generator, inference, variance, latent_dim=latent_dim)
        self.recordable = True
        self.discriminator = discriminator
        self.loss = loss
        self.instance_noise = instance_noise

    def updates(self) -> Sequence[Update]:
        """List Algorithm 1's four updates in its order."""
        return (
            Update("discriminator", self.discriminator_loss, (self.discriminator,)),  # line 7
            Update("generator", self.generator_loss, (self.generator,)),  # line 9
            Update("reconstruction", self.reconstruction_loss, (self.inference, self.variance)),  # line 11
            Update("inversion", self.inversion_loss, (self.inference, self.generator)),  # line 13
        )

    def discriminator_loss(self, sample: Sample) -> Tensor:
        """Line 7: tell real rows from generated ones."""
        real = sample.rows()
        with torch.no_grad():
            fake = self.generator(sample.normal(self.latent_dim))
        critic_loss, _ = ADVERSARIAL_LOSSES[self.loss]
        loss = critic_loss(self._logits(real, sample), self._logits(fake, sample))
        if self.loss == "wasserstein":
            loss = loss + GRADIENT_PENALTY * self._gradient_penalty(real, fake.float(), sample)
        return loss

    def generator_loss(self, sample: Sample) -> Tensor:
        """Line 9: make generated rows look real."""
        _, generator_loss = ADVERSARIAL_LOSSES[self.loss]
        return generator_loss(self._logits(self.generator(sample.normal(self.latent_dim)), sample))

    def _logits(self, rows: Tensor, sample: Sample) -> Tensor:
        if self.instance_noise > 0:
            rows = rows + self.instance_noise * sample.normal(*rows.shape[1:])
        return self.discriminator(rows).float()

    def _gradient_penalty(self, real: Tensor, fake: Tensor, sample: Sample) -> Tensor:
        mix = sample.uniform(*[1] * (real.ndim - 1))
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        logits = self.discriminator(between)
        (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        return (gradient.float().flatten(1).norm(dim=1) - 1).square().mean()


class Inverse(InvertedGenerator):
    """Lines 11 and 13 of Algorithm 1 alone: h and σ for a generator that stays as it is.

    Source
    ------
    Not in the paper, where h chases a generator that moves at every step and never quite arrives.
    """

    def updates(self) -> Sequence[Update]:
        """List the one update: both losses by one Adam.

        With one each, the inversion loss, soon next to nothing, would still be given steps as large as the
        other's, and undo it.
        """
        inference = Moved(self.inference, betas=REGRESSION_BETAS)
        variance = Moved(self.variance, betas=REGRESSION_BETAS)
        return (Update("inverse", self.inverse_loss, (inference, variance)),)

    def inverse_loss(self, sample: Sample) -> Tensor:
        """Lines 11 and 13: the sum of their losses."""
        return self.reconstruction_loss(sample) + self.inversion_loss(sample)

    def train(self, mode: bool = True) -> "Inverse":
        """Switch h and σ to training mode; batch normalisation in g keeps its statistics."""
        super().train(mode)
        self.generator.eval()
        return self


def aggregated_posterior_kl(z: Tensor) -> Tensor:
    r"""Divergence of the encoded minibatch, taken as one Gaussian, from the prior.

    .. math:: \mathrm{KL}\bigl(N(\bar z, s_z^2) \,\|\, N(0, I)\bigr)
        = \tfrac12 \sum_k \bigl(s_k^2 + \bar z_k^2 - 1 - \log s_k^2\bigr)

    The paper models no variance per row: mean and standard deviation are those of h(x) over the rows.

    Parameters
    ----------
    z : Tensor, shape (m, d)

    Source
    ------
    Paper, section 2.2.

    Examples
    --------
    >>> aggregated_posterior_kl(torch.tensor([[-1.0], [1.0]])).item()  # mean 0, variance 1
    0.0
    """
    mean, variance = z.mean(0), z.var(0, correction=0).clamp_min(1e-8)
    return 0.5 * (variance + mean.square() - 1 - variance.log()).sum()


def energy_distance(rows: Tensor, others: Tensor) -> Tensor:
    r"""Measure how far two samples' distributions are apart, at least 0 and 0 only if they are the same.

    .. math:: 2\,\mathrm{E}\|x - y\| - \mathrm{E}\|x - x'\| - \mathrm{E}\|y - y'\|

    Parameters
    ----------
    rows, others : Tensor, shape (m, ...) and (n, ...)

    Source
    ------
    Székely and Rizzo (2013), "Energy statistics", Eq. 5: a generator's losses tell nothing of how good it is,
    since its discriminator moves with it; this does.

    Examples
    --------
    >>> energy_distance(torch.zeros(3, 1), torch.ones(2, 1)).item()
    2.0
    """
    x, y = rows.flatten(1), others.flatten(1)
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
