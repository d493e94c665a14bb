"""AnoGAN: how far the nearest row that a generator can make is from a given one (Schlegl et al., 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from invgan import networks
from invgan.estimators import Scorer, ScorerDetector, at_least_single
from invgan.gan import ADVERSARIAL_LOSSES, energy_distance
from invgan.networks import Critic
from invgan.training import Sample, Update

FEATURE_WEIGHT = 0.1
"""The paper's λ."""
N_STARTS = 64
"""Latents from which each row's search may start."""
STEP_SIZE = 0.1
"""Adam's learning rate of the search, for latents of variance 1, decaying to zero."""
N_COMPARED = 512
"""Generated rows that held-out ones are compared with."""


@dataclass(eq=False, repr=False, kw_only=True)
class AnoGAN(ScorerDetector):
    r"""Generative adversarial network, scored by a search for every row's latent.

    .. math::
        \text{score}(x) = -\min_z \Bigl[(1 - \lambda) \sum_i |x_i - g(z)_i|
        + \lambda \sum_j |f_j(x) - f_j(g(z))|\Bigr]

    with the features f of the discriminator's last hidden layer and λ = 0.1. The minimum is searched for by
    Adam, for each row by itself, with all weights frozen.

    Parameters
    ----------
    search_steps : int
        Steps of each search, the paper's Γ. Scoring takes time in proportion.
    latent_dim, max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, \
    processes, precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the energy distance of generated rows from the
        held-out ones.

    Source
    ------
    Schlegl et al. (2017), "Unsupervised anomaly detection with generative adversarial networks to guide
    marker discovery", Eq. 1-5. Open there: the optimiser of the search and its step. The paper starts at one
    random latent and takes 500 steps; ours starts at the best of 64 that are the same for every row, which
    leaves less to search for, and scores the best latent met, rather than the last. The discriminator's loss
    is the non-saturating one.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> AnoGAN(max_steps=100, random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ScorerDetector._parameter_constraints,
        "search_steps": [Interval(Integral, 0, None, closed="left")],
    }
    _scoring_parameters: ClassVar[tuple[str, ...]] = (*ScorerDetector._scoring_parameters, "search_steps")

    search_steps: int = 100

    def _networks(self) -> "SearchedGAN":
        generator = networks.build(self.data_shape_, self.latent_dim_).generator
        critic = networks.build_critic(self.data_shape_)
        return SearchedGAN(generator, critic, latent_dim=self.latent_dim_, search_steps=self.search_steps)


class SearchedGAN(Scorer):
    """A generator and its discriminator, with a search for the latent of a row.

    Parameters
    ----------
    generator : nn.Module
        g: (n, d) → (n, \\*data_shape).
    critic : Critic
        The discriminator.
    latent_dim, search_steps : int
        Dimension d of the latent space, whose prior is N(0, I); steps of a search.
    """

    def __init__(self, generator: nn.Module, critic: Critic, *, latent_dim: int, search_steps: int) -> None:
        super().__init__()
        self.generator, self.critic = generator, critic
        self.latent_dim, self.search_steps = latent_dim, search_steps

    def updates(self) -> Sequence[Update]:
        """List the two of every GAN: the discriminator and the generator."""
        return (
            Update("discriminator", self.discriminator_loss, (self.critic,)),
            Update("generator", self.generator_loss, (self.generator,)),
        )

    def discriminator_loss(self, sample: Sample) -> Tensor:
        """Tell real rows from generated ones: Eq. 1."""
        with torch.no_grad():
            generated = self.generator(sample.normal(self.latent_dim))
        critic_loss, _ = ADVERSARIAL_LOSSES["non-saturating"]
        return critic_loss(self.critic(sample.rows()).float(), self.critic(generated).float())

    def generator_loss(self, sample: Sample) -> Tensor:
        """Make generated rows look real."""
        _, generator_loss = ADVERSARIAL_LOSSES["non-saturating"]
        return generator_loss(self.critic(self.generator(sample.normal(self.latent_dim))).float())

    def validation_score(self, rows: Tensor) -> Tensor:
        """Minus the energy distance of generated rows from held-out ones."""
        return -energy_distance(rows, at_least_single(self.generator(self._fixed_latents(rows, N_COMPARED))))

    def score(self, rows: Tensor) -> Tensor:
        """Return minus the loss at the best latent found."""
        return -self.search(rows)[1]

    def search(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Find each row's latent of least loss, shape (n, d), and that loss, shape (n,)."""
        compared = self._compared(rows)
        latents = self._best_starts(compared)
        losses = torch.full_like(latents[:, 0], torch.inf)
        z = latents.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=STEP_SIZE)
        for step in range(self.search_steps):
            with torch.enable_grad():
                loss = (compared - self._compared(self.generator(z))).abs().sum(1)
                (z.grad,) = torch.autograd.grad(loss.sum(), z)
            latents, losses = _better(latents, losses, z.detach(), loss.detach())
            optimizer.param_groups[0]["lr"] = STEP_SIZE * (1 - step / self.search_steps)
            optimizer.step()
        last = (compared - self._compared(self.generator(z.detach()))).abs().sum(1)
        return _better(latents, losses, z.detach(), last)

    def _best_starts(self, compared: Tensor) -> Tensor:
        starts = self._fixed_latents(compared, N_STARTS)
        distances = torch.cdist(compared, self._compared(self.generator(starts)), p=1)  # n×starts
        return starts[distances.argmin(1)]

    def _compared(self, rows: Tensor) -> Tensor:
        """Return rows and their features, weighted: Eq. 4 is the L1 distance of two such vectors."""
        features = FEATURE_WEIGHT * self.critic.features(rows)
        return torch.cat([(1 - FEATURE_WEIGHT) * rows.flatten(1), features], 1)

    def _fixed_latents(self, like: Tensor, number: int) -> Tensor:
        """Draw latents that are always the same, so that a score is a function of its row."""
        return torch.randn(number, self.latent_dim, generator=torch.Generator().manual_seed(0)).to(like)


def _better(latents: Tensor, losses: Tensor, new: Tensor, new_losses: Tensor) -> tuple[Tensor, Tensor]:
    """Keep for each row the latent of smaller loss."""
    improved = new_losses < losses
    return torch.where(improved[:, None], new, latents), torch.where(improved, new_losses, losses)
