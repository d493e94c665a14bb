"""FlowGAN: a RealNVP generator, trained by a critic and by its own likelihood."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from invgan import networks
from invgan.density.base import FlowModel
from invgan.density.bijections import Bijection
from invgan.density.flows import RealNVP
from invgan.gan import ADVERSARIAL_LOSSES
from invgan.training import Moved, Sample, Schedule, Update

CRITIC_RATE = 0.1
"""The critic's learning rate, in units of the flow's: at the same rate it drives the flow in circles."""
LOSSES = {"saturating", "non-saturating", "hinge"}


class FlowGANModel(FlowModel):
    r"""A flow whose inverse is the generator of a GAN.

    .. math:: \frac{1}{1 + \lambda} L_{\text{adversarial}}
        + \frac{\lambda}{1 + \lambda} \cdot \frac{-\log p(x)}{D}

    At λ = ∞ only the second term is left, and the critic rests; at λ = 0 only the first.

    Parameters
    ----------
    flow, data_shape, level_width
        Those of :class:`~invgan.density.base.FlowModel`.
    critic : nn.Module
        (n, \*data_shape) → (n, 1), the logit of being real.
    likelihood_weight : float in [0, ∞]
        λ.
    loss : str
        Name of the adversarial loss.
    """

    def __init__(
        self,
        flow: Bijection,
        data_shape: tuple[int, ...],
        level_width: float,
        critic: nn.Module,
        *,
        likelihood_weight: float,
        loss: str,
    ) -> None:
        super().__init__(flow, data_shape, level_width)
        self.critic = critic
        self.share = 1 / (1 + 1 / likelihood_weight) if likelihood_weight > 0 else 0.0
        self.loss = loss

    def updates(self) -> Sequence[Update]:
        """List the critic's update and the generator's; maximum likelihood alone at λ = ∞."""
        if self.share == 1:
            return super().updates()
        return (
            Update("critic", self.critic_loss, (Moved(self.critic, rate=CRITIC_RATE),)),
            Update("generator", self.generator_loss, (self.flow,)),
        )

    def critic_loss(self, sample: Sample) -> Tensor:
        """Tell real rows from generated ones."""
        with torch.no_grad():
            fake = self.generate(sample.normal(*self.noise_shape))
        critic_loss, _ = ADVERSARIAL_LOSSES[self.loss]
        return critic_loss(self.critic(self.rows(sample)).float(), self.critic(fake).float())

    def generator_loss(self, sample: Sample) -> Tensor:
        """Make generated rows look real, and real rows likely."""
        _, generator_loss = ADVERSARIAL_LOSSES[self.loss]
        fake = self.generate(sample.normal(*self.noise_shape))
        loss = (1 - self.share) * generator_loss(self.critic(fake).float())
        if self.share > 0:
            loss = loss + self.share / self.n_features * self.likelihood_loss(sample)
        return loss


@dataclass(eq=False, repr=False, kw_only=True)
class FlowGAN(RealNVP):
    r"""A GAN whose generator is the inverse of a RealNVP, so that its likelihood is known and trained too.

    .. math:: L = L_{\text{adversarial}} + \lambda \cdot \frac{-\log p(x)}{D}

    Parameters
    ----------
    n_layers, width, spline
        Those of :class:`RealNVP`.
    likelihood_weight : float in [0, inf]
        λ: 0 is a GAN, and ``float("inf")`` maximum likelihood, that is a :class:`RealNVP`. A value of 1 gives
        a nat per dimension the weight of one of the adversarial loss.
    loss : {"non-saturating", "saturating", "hinge"}
        Adversarial loss of :data:`invgan.gan.ADVERSARIAL_LOSSES`.
    learning_rate, max_steps, ...
        Those of :class:`~invgan.density.base.DensityEstimator`. The weights that are kept are those of the
        best validation likelihood, but at λ = 0, where likelihood has no part, the last.

    Source
    ------
    Grover, Dhar and Ermon (2018), "Flow-GAN"; the paper's section 4.1, where the critic has the structure of
    InvGAN's discriminator, as here. The paper names neither λ nor the adversarial loss.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> model = FlowGAN(likelihood_weight=10.0, max_steps=10, random_state=0).fit(X)
    >>> sorted(model.history_.losses)
    ['critic', 'generator']
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **RealNVP._parameter_constraints,
        "likelihood_weight": [Interval(Real, 0, None, closed="both")],
        "loss": [StrOptions(LOSSES)],
    }

    likelihood_weight: float = 1.0
    loss: str = "non-saturating"

    def _model(self, flow: Bijection, level_width: float) -> FlowGANModel:
        critic = networks.build(self.data_shape_, 1).discriminator
        return FlowGANModel(
            flow,
            self.data_shape_,
            level_width,
            critic,
            likelihood_weight=self.likelihood_weight,
            loss=self.loss,
        )

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        return 4000

    def _schedule(self, n_training: int) -> Schedule:
        schedule = super()._schedule(n_training)
        if self.likelihood_weight > 0:
            return schedule
        return replace(schedule, validate_every=schedule.max_steps, patience=None)
