"""EGBAD and ALAD: adversarial networks that learn the generator's inverse with it (Zenati et al., 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import StrOptions
from torch import Tensor, nn

from invgan import networks
from invgan.estimators import Scorer, ScorerDetector, at_least_single
from invgan.gan import ADVERSARIAL_LOSSES, energy_distance
from invgan.networks import Critic
from invgan.training import Sample, Update

RECONSTRUCTION_WEIGHT = 0.9
"""EGBAD's α."""
N_COMPARED = 512
"""Generated pairs that those of held-out rows are compared with."""


@dataclass(eq=False, repr=False, kw_only=True)
class EGBAD(ScorerDetector):
    r"""Bidirectional adversarial network, scored by its reconstruction and its discriminator.

    .. math::
        \text{score}(x) = -\bigl[\alpha \|x - g(h(x))\|_1 + (1 - \alpha) L_D(x)\bigr], \qquad \alpha = 0.9

    One discriminator D tells pairs (x, h(x)) from pairs (g(z), z); deceiving it makes h the inverse of g.

    Parameters
    ----------
    method : {"features", "cross-entropy"}
        :math:`L_D`: the distance between the discriminator's features of (x, h(x)) and of (g(h(x)), h(x)), or
        the cross-entropy −log D(x, h(x)).
    latent_dim, max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, \
    processes, precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the energy distance of generated pairs from those
        of held-out rows.

    Source
    ------
    Zenati et al. (2018), "Efficient GAN-based anomaly detection", section 3; Donahue et al. (2017) for the
    training. Open there: the loss of g and h. Ours is the discriminator's with its labels exchanged.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> EGBAD(max_steps=100, random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ScorerDetector._parameter_constraints,
        "method": [StrOptions({"features", "cross-entropy"})],
    }
    _scoring_parameters: ClassVar[tuple[str, ...]] = (*ScorerDetector._scoring_parameters, "method")

    method: str = "features"

    def _networks(self) -> "BiGAN":
        parts = networks.build(self.data_shape_, self.latent_dim_)
        critic = networks.build_critic(self.data_shape_, (self.latent_dim_,))
        return BiGAN(
            parts.generator, parts.inference, critic, latent_dim=self.latent_dim_, method=self.method
        )


class ALAD(ScorerDetector):
    r"""Adversarially learned anomaly detection: a bidirectional network with two more discriminators.

    .. math:: \text{score}(x) = -\|f(x, x) - f(x, g(h(x)))\|_1

    with the features f of a discriminator that tells (x, x) from (x, g(h(x))). A third one tells (z, z) from
    (z, h(g(z))), and the first, as in :class:`EGBAD`, (x, h(x)) from (g(z), z). All three, and h, are
    spectrally normalised.

    Parameters
    ----------
    latent_dim, max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, \
    processes, precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the energy distance of generated pairs from those
        of held-out rows.

    Source
    ------
    Zenati et al. (2018), "Adversarially learned anomaly detection", Eq. 3 (the three games) and Eq. 5 (the
    score). Open there: the loss of g and h; ours is the discriminators' with their labels exchanged. On
    images, (x, x') becomes one image with the channels of both.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> ALAD(max_steps=100, random_state=0).fit(X).score_samples(X).shape
    (200,)
    """

    def _networks(self) -> "CycleBiGAN":
        row, latent = self.data_shape_, (self.latent_dim_,)
        parts = networks.build(row, self.latent_dim_)
        critics = [networks.build_critic(*pair) for pair in ((row, latent), (row, row), (latent, latent))]
        for network in (parts.inference, *critics):
            networks.spectrally_normalized(network)
        return CycleBiGAN(parts.generator, parts.inference, *critics, latent_dim=self.latent_dim_)

    def _finish(self, training: Tensor) -> None:
        networks.settle(self.model_)


Game = tuple[Critic, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A discriminator, and the real and the generated pairs that it is to tell apart."""


class Bidirectional(Scorer):
    """A generator and its inverse, learned by games that their pairs play against discriminators.

    Parameters
    ----------
    generator, inference : nn.Module
        g: (n, d) → (n, \\*data_shape); h: (n, \\*data_shape) → (n, d).
    pair_critic : Critic
        Tells (x, h(x)) from (g(z), z).
    latent_dim : int
        Dimension d of the latent space, whose prior is N(0, I).
    """

    def __init__(
        self, generator: nn.Module, inference: nn.Module, pair_critic: Critic, *, latent_dim: int
    ) -> None:
        super().__init__()
        self.generator, self.inference, self.pair_critic = generator, inference, pair_critic
        self.latent_dim = latent_dim

    def critics(self) -> tuple[Critic, ...]:
        """List the discriminators."""
        return (self.pair_critic,)

    def games(self, rows: Tensor, z: Tensor) -> list[Game]:
        """Make the pairs of all games from rows and draws of the prior."""
        return [(self.pair_critic, (rows, self.inference(rows)), (self.generator(z), z))]

    def updates(self) -> Sequence[Update]:
        """List the discriminators' update and that of g and h."""
        return (
            Update("discriminator", self.discriminator_loss, self.critics()),
            Update("generator", self.generator_loss, (self.generator, self.inference)),
        )

    def discriminator_loss(self, sample: Sample) -> Tensor:
        """Tell real pairs from generated ones."""
        with torch.no_grad():
            games = self.games(sample.rows(), sample.normal(self.latent_dim))
        return _total_loss(games)

    def generator_loss(self, sample: Sample) -> Tensor:
        """Make generated pairs look real, and real ones generated."""
        games = self.games(sample.rows(), sample.normal(self.latent_dim))
        return _total_loss([(critic, generated, real) for critic, real, generated in games])

    def validation_score(self, rows: Tensor) -> Tensor:
        """Minus the energy distance of generated pairs from those of held-out rows."""
        z = torch.randn(N_COMPARED, self.latent_dim, generator=torch.Generator().manual_seed(0)).to(rows)
        _, *pairs = self.games(rows, z)[0]
        return -energy_distance(
            *(torch.cat([at_least_single(part).flatten(1) for part in pair], 1) for pair in pairs)
        )


class BiGAN(Bidirectional):
    """One game, and EGBAD's two scores.

    Parameters
    ----------
    generator, inference, pair_critic, latent_dim
        As in :class:`Bidirectional`.
    method : {"features", "cross-entropy"}
    """

    def __init__(
        self,
        generator: nn.Module,
        inference: nn.Module,
        pair_critic: Critic,
        *,
        latent_dim: int,
        method: str,
    ) -> None:
        super().__init__(generator, inference, pair_critic, latent_dim=latent_dim)
        self.method = method

    def score(self, rows: Tensor) -> Tensor:
        """Return minus the weighted sum of the reconstruction error and the discriminator's loss."""
        z = self.inference(rows)
        restored = self.generator(z)
        if self.method == "features":
            features = self.pair_critic.features(rows, z) - self.pair_critic.features(restored, z)
            discrimination = features.abs().sum(1)
        else:
            discrimination = F.softplus(-self.pair_critic(rows, z))[:, 0]
        reconstruction = (rows - restored).flatten(1).abs().sum(1)
        return -(RECONSTRUCTION_WEIGHT * reconstruction + (1 - RECONSTRUCTION_WEIGHT) * discrimination)


class CycleBiGAN(Bidirectional):
    """Three games, and ALAD's score.

    Parameters
    ----------
    generator, inference, pair_critic, latent_dim
        As in :class:`Bidirectional`.
    row_critic, latent_critic : Critic
        Tell (x, x) from (x, g(h(x))), and (z, z) from (z, h(g(z))).
    """

    def __init__(
        self,
        generator: nn.Module,
        inference: nn.Module,
        pair_critic: Critic,
        row_critic: Critic,
        latent_critic: Critic,
        *,
        latent_dim: int,
    ) -> None:
        super().__init__(generator, inference, pair_critic, latent_dim=latent_dim)
        self.row_critic, self.latent_critic = row_critic, latent_critic

    def critics(self) -> tuple[Critic, ...]:
        """List the discriminators."""
        return (self.pair_critic, self.row_critic, self.latent_critic)

    def games(self, rows: Tensor, z: Tensor) -> list[Game]:
        """Make the pairs of the three games."""
        codes, generated = self.inference(rows), self.generator(z)
        return [
            (self.pair_critic, (rows, codes), (generated, z)),
            (self.row_critic, (rows, rows), (rows, self.generator(codes))),
            (self.latent_critic, (z, z), (z, self.inference(generated))),
        ]

    def score(self, rows: Tensor) -> Tensor:
        """Return minus the distance between the features of (x, x) and of (x, g(h(x)))."""
        restored = self.generator(self.inference(rows))
        features = self.row_critic.features(rows, rows) - self.row_critic.features(rows, restored)
        return -features.abs().sum(1)


def _total_loss(games: list[Game]) -> Tensor:
    """Sum the discriminators' losses, the first pair of each being the one to be called real."""
    critic_loss, _ = ADVERSARIAL_LOSSES["non-saturating"]
    losses = [critic_loss(critic(*real).float(), critic(*fake).float()) for critic, real, fake in games]
    return torch.stack(losses).sum()
