"""GANomaly: how far a row's code is from the code of its reconstruction (Akcay et al., 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invgan import networks
from invgan.estimators import Scorer, ScorerDetector, at_least_single
from invgan.gan import ADVERSARIAL_LOSSES
from invgan.networks import Critic
from invgan.training import Sample, Update

ADVERSARIAL_WEIGHT, CONTEXTUAL_WEIGHT, ENCODER_WEIGHT = 1.0, 50.0, 1.0
"""The paper's weights of the three losses."""


class GANomaly(ScorerDetector):
    r"""Encoder, decoder and second encoder, trained against a discriminator.

    .. math:: \text{score}(x) = -\|h(x) - e(g(h(x)))\|_1

    The autoencoder g ∘ h is trained to restore rows and to deceive a discriminator, the second encoder e to
    find the code of what was restored.

    Parameters
    ----------
    latent_dim, max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, \
    processes, precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the two losses of the held-out rows that have no
        part in the game, contextual and encoder.

    Source
    ------
    Akcay et al. (2018), "GANomaly: semi-supervised anomaly detection via adversarial training", Eq. 1-5, for
    any number of channels. Each loss is a mean over values, as the weights 1, 50 and 1 were chosen for. The
    paper scales scores by the extremes of the test set; ours are as they are, each a function of its row.
    Open there: networks for tables.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> GANomaly(max_steps=100, random_state=0).fit(X).score_samples(X).shape
    (200,)
    """

    def _networks(self) -> "EncoderDecoderEncoder":
        first = networks.build(self.data_shape_, self.latent_dim_)
        second = networks.build(self.data_shape_, self.latent_dim_).inference
        critic = networks.build_critic(self.data_shape_)
        return EncoderDecoderEncoder(first.inference, first.generator, second, critic)


class EncoderDecoderEncoder(Scorer):
    """The three parts and the discriminator, with the three losses.

    Parameters
    ----------
    encoder, decoder, second_encoder : nn.Module
        h and e: (n, \\*data_shape) → (n, d); g: (n, d) → (n, \\*data_shape).
    critic : Critic
        The discriminator.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, second_encoder: nn.Module, critic: Critic
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.second_encoder = encoder, decoder, second_encoder
        self.critic = critic

    def updates(self) -> Sequence[Update]:
        """List the discriminator's update and that of the three parts together."""
        return (
            Update("discriminator", self.discriminator_loss, (self.critic,)),
            Update("generator", self.generator_loss, (self.encoder, self.decoder, self.second_encoder)),
        )

    def discriminator_loss(self, sample: Sample) -> Tensor:
        """Tell rows from their reconstructions."""
        rows = sample.rows()
        with torch.no_grad():
            restored = self.decoder(self.encoder(rows))
        critic_loss, _ = ADVERSARIAL_LOSSES["non-saturating"]
        return critic_loss(self.critic(rows).float(), self.critic(restored).float())

    def generator_loss(self, sample: Sample) -> Tensor:
        """Eq. 4: the weighted sum of the adversarial, the contextual and the encoder loss."""
        rows = sample.rows()
        adversarial, contextual, encoder = self.losses(rows)
        return ADVERSARIAL_WEIGHT * adversarial + CONTEXTUAL_WEIGHT * contextual + ENCODER_WEIGHT * encoder

    def losses(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return Eq. 1 and 3, squared distances of features and of codes, and between them Eq. 2, of rows."""
        code, restored, second_code = self.passed_through(rows)
        features = at_least_single(self.critic.features(rows) - self.critic.features(restored))
        return (
            features.square().mean(),
            (rows - restored).abs().mean(),
            (code - second_code).square().mean(),
        )

    def validation_score(self, rows: Tensor) -> Tensor:
        """Minus the weighted contextual and encoder losses of held-out rows."""
        _, contextual, encoder = self.losses(rows)
        return -(CONTEXTUAL_WEIGHT * contextual + ENCODER_WEIGHT * encoder)

    def score(self, rows: Tensor) -> Tensor:
        """Return minus the distance between the two codes: Eq. 5."""
        code, _, second_code = self.passed_through(rows)
        return -(code - second_code).abs().sum(1)

    def passed_through(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the code, the reconstruction and its code."""
        code = self.encoder(rows)
        restored = self.decoder(code)
        second_code = self.second_encoder(restored)
        return at_least_single(code), at_least_single(restored), at_least_single(second_code)
