"""DSEBM: a deep network's energy, learned by matching its gradient (Zhai et al., 2016)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import StrOptions
from torch import Tensor, nn

from invgan import networks
from invgan.estimators import Scorer, ScorerDetector, at_least_single
from invgan.gan import REGRESSION_BETAS
from invgan.training import Moved, Sample, Update

N_UNITS = 128
"""Units of the last layer by default."""
DENSE_STEPS = 4500
"""Steps by default without convolutions: after 1,500 the error on held-out rows still falls.

A step is one update; that of InvGAN is four.
"""
NOISE = 1.0
"""Standard deviation of the noise that training takes off rows, in scaled units."""


@dataclass(eq=False, repr=False, kw_only=True)
class DSEBM(ScorerDetector):
    r"""Deep structured energy-based model, scored by its energy or by its reconstruction error.

    .. math::
        E(x) = \tfrac12 \|x - b\|^2 - \sum_{j=1}^{K} \log(1 + e^{h_j(x)}), \qquad f(x) = x - \nabla E(x)

    with a network h and a centre b. It is learned by denoising,
    :math:`\min \mathrm{E}\,\|x - f(x + s\epsilon)\|^2`, which matches −∇E / s² to the gradient of
    the log-density of the rows with the noise.

    Parameters
    ----------
    latent_dim : int, optional
        Number K of hidden units that the energy has summed out; 128 by default.
    method : {"energy", "reconstruction"}
        Score by −E(x), DSEBM-e in the literature, or by −‖x − f(x)‖² = −‖∇E(x)‖², DSEBM-r.
    max_steps : int, optional
        Steps of the training: 4,500, or 4,000 for convolutional networks.
    batch_size, learning_rate, patience, false_positive_rate, random_state, device, processes, precision, \
    checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the denoising error of the held-out rows.

    Source
    ------
    Zhai et al. (2016), "Deep structured energy based models for anomaly detection", sections 3.1 (energy), 4
    (score matching) and 5 (both scores); Vincent (2011) for denoising. Open there: the noise, s = 1 here, in
    units in which a table's columns have variance 1 and pixels lie in [-1, 1]; and the networks, which have
    the shape of the other detectors' encoders. Some implementations train a
    separate decoder; its reconstruction is then no gradient, and the model has no energy.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> DSEBM(max_steps=100, random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ScorerDetector._parameter_constraints,
        "method": [StrOptions({"energy", "reconstruction"})],
    }
    _scoring_parameters: ClassVar[tuple[str, ...]] = (*ScorerDetector._scoring_parameters, "method")

    method: str = "energy"

    def _default_latent_dim(self) -> int:
        return N_UNITS

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        if self._is_convolutional():
            return super()._default_max_steps(n_training, batch_size)
        return DENSE_STEPS

    def _networks(self) -> "EnergyModel":
        encoder = networks.build(self.data_shape_, self.latent_dim_).inference
        return EnergyModel(encoder, self.data_shape_, method=self.method)


class EnergyModel(Scorer):
    """An energy on rows, and the map from noisy rows towards clean ones that its gradient makes.

    Parameters
    ----------
    encoder : nn.Module
        h: (n, \\*data_shape) → (n, K).
    data_shape : tuple of int
        Shape of one row.
    method : {"energy", "reconstruction"}
    """

    def __init__(self, encoder: nn.Module, data_shape: tuple[int, ...], *, method: str) -> None:
        super().__init__()
        self.encoder, self.method = encoder, method
        # The product of b and x is a linear layer, and so has its initial weights drawn with the others'.
        self.center = nn.Linear(math.prod(data_shape), 1, bias=False)

    def energy(self, rows: Tensor) -> Tensor:
        """Return E(x), shape (n,)."""
        summed_out = F.softplus(at_least_single(self.encoder(rows))).sum(1)
        return 0.5 * (rows.flatten(1) - self.center.weight).square().sum(1) - summed_out

    def slope(self, rows: Tensor) -> Tensor:
        """Return ∇E(x), in the shape of the rows."""
        with torch.enable_grad():
            rows = rows.detach().requires_grad_()
            return torch.autograd.grad(self.energy(rows).sum(), rows, create_graph=self.training)[0]

    def updates(self) -> Sequence[Update]:
        """List the one update: denoising."""
        modules = (Moved(self.encoder, betas=REGRESSION_BETAS), Moved(self.center, betas=REGRESSION_BETAS))
        return (Update("denoising", self.loss, modules),)

    def loss(self, sample: Sample) -> Tensor:
        """Return the squared distance of the reconstructed rows from the clean ones, summed over features."""
        rows = sample.rows()
        return self._denoising_error(rows, sample.normal(*rows.shape[1:]))

    def validation_score(self, rows: Tensor) -> Tensor:
        """Minus the denoising error of held-out rows, with noise that is always the same."""
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        return -self._denoising_error(rows, noise.to(rows))

    def _denoising_error(self, rows: Tensor, noise: Tensor) -> Tensor:
        noisy = rows + NOISE * noise
        reconstruction = noisy - self.slope(noisy)
        return (rows - reconstruction).flatten(1).square().sum(1).mean()

    def score(self, rows: Tensor) -> Tensor:
        """Return −E(x) or −‖∇E(x)‖², which is −‖x − f(x)‖²."""
        if self.method == "energy":
            return -self.energy(rows)
        return -self.slope(rows).flatten(1).square().sum(1)
