"""VAE: how probable a row's reconstruction by a variational autoencoder is (An and Cho, 2015)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions
from torch import Tensor, nn

from invgan import networks
from invgan.estimators import Scorer, ScorerDetector, at_least_single
from invgan.gan import REGRESSION_BETAS
from invgan.training import Moved, Sample, Update

N_DRAWS = 16
"""Latents per row, L, over which a score is averaged."""
DECODED_RANGE = 2.0
"""Deviations of rows lie between 1 / 2 and 2, in scaled units."""
ENCODED_RANGE = 20.0
"""Deviations of latents lie between 1 / 20 and 20; the prior's is 1."""


@dataclass(eq=False, repr=False, kw_only=True)
class VAE(ScorerDetector):
    r"""Variational autoencoder, scored by the reconstruction probability.

    .. math::
        \text{score}(x) = \frac1L \sum_{l=1}^{L}
        \log N\bigl(x; \mu_x(z_l), \mathrm{diag}\,\sigma_x^2(z_l)\bigr),
        \qquad z_l = \mu_z(x) + \sigma_z(x) \odot \epsilon_l

    the expectation of log p(x | z) under the encoder, in nats of the data's own units, with L = 16 draws that
    are the same for every row.

    Parameters
    ----------
    latent_dim : int, optional
        Dimension d of the latent space. By default chosen from the data's shape.
    method : {"reconstruction", "bound"}
        The paper's, or the bound on log p(x): the same minus KL(q(z | x) ‖ p(z)). The paper's says nothing
        of rows whose latents are unusual but which are well restored from them; the bound does.
    max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, processes, \
    precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`; ``patience`` watches the bound on the held-out rows.

    Source
    ------
    An and Cho (2015), "Variational autoencoder based anomaly detection using reconstruction probability",
    Algorithm 4; Kingma and Welling (2014), Eq. 10, for the bound. Open there: L, and what keeps σ_x from
    vanishing where a column hardly varies. Ours lies between a half and two in scaled units, in which a
    table's columns have variance 1 and pixels lie in [-1, 1]: with a smaller one, a single discrete column
    outweighs all others.

    Examples
    --------
    >>> X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).numpy()
    >>> VAE(max_steps=100, random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **ScorerDetector._parameter_constraints,
        "method": [StrOptions({"reconstruction", "bound"})],
    }
    _scoring_parameters: ClassVar[tuple[str, ...]] = (*ScorerDetector._scoring_parameters, "method")

    method: str = "reconstruction"

    def _networks(self) -> "Autoencoder":
        encoder = networks.build(self.data_shape_, 2 * self.latent_dim_).inference
        both = (2 * self.data_shape_[0], *self.data_shape_[1:])  # means and deviations
        decoder = networks.build(both, self.latent_dim_).generator
        return Autoencoder(encoder, decoder, self.latent_dim_, method=self.method)

    def _score_rows(self, rows: Tensor) -> np.ndarray:
        return super()._score_rows(rows) + self.scaling_.log_derivative(rows).sum(-1).cpu().numpy()


class Autoencoder(Scorer):
    """An encoder to a Gaussian over latents and a decoder to a Gaussian over rows.

    Parameters
    ----------
    encoder, decoder : nn.Module
        (n, \\*data_shape) → (n, 2d); (n, d) → (n, 2 C, ...): means, and what deviations are made from.
    latent_dim : int
        Dimension d of the latent space, whose prior is N(0, I).
    method : {"reconstruction", "bound"}
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int, *, method: str) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.method = latent_dim, method

    def updates(self) -> Sequence[Update]:
        """List the one update: the bound."""
        parts = (self.encoder, self.decoder)
        return (Update("bound", self.loss, tuple(Moved(part, betas=REGRESSION_BETAS) for part in parts)),)

    def loss(self, sample: Sample) -> Tensor:
        """Return minus the bound, with one draw per row."""
        return -self.bound(sample.rows(), sample.normal(self.latent_dim)).mean()

    def validation_score(self, rows: Tensor) -> Tensor:
        """Mean bound on log p of held-out rows, in nats of the scaled data, with draws always the same."""
        return self._averaged(self.bound, rows).mean()

    def score(self, rows: Tensor) -> Tensor:
        """Return the reconstruction probability or the bound, in nats of the scaled data."""
        return self._averaged(self.reconstruction if self.method == "reconstruction" else self.bound, rows)

    def _averaged(self, estimate: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
        """Average over L draws, the same for every row, so that a score is a function of its row."""
        draws = torch.randn(N_DRAWS, 1, self.latent_dim, generator=torch.Generator().manual_seed(0))
        return torch.stack([estimate(rows, noise) for noise in draws.to(rows)]).mean(0)

    def reconstruction(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return log p(x | z) at z = μ_z(x) + σ_z(x) ⊙ noise, shape (n,)."""
        mean, std = self.encode(rows)
        return self.log_conditional(rows, mean + std * noise)

    def bound(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return log p(x | z) − KL(q(z | x) ‖ p(z)): in expectation over the noise, at most log p(x)."""
        mean, std = self.encode(rows)
        divergence = 0.5 * (mean.square() + std.square() - 1).sum(1) - std.log().sum(1)
        return self.log_conditional(rows, mean + std * noise) - divergence

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z | x), each (n, d)."""
        return _mean_and_std(self.encoder(rows), ENCODED_RANGE)

    def log_conditional(self, rows: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z), shape (n,)."""
        mean, std = _mean_and_std(self.decoder(z), DECODED_RANGE)
        standardized = ((rows - mean) / std).flatten(1)
        log_normalizer = std.flatten(1).log().sum(1) + 0.5 * math.log(2 * math.pi) * standardized.shape[1]
        return -0.5 * standardized.square().sum(1) - log_normalizer


def _mean_and_std(output: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Split a network's output; deviations lie between 1 / largest and largest."""
    mean, raw = at_least_single(output).chunk(2, 1)
    return mean, (math.log(largest) * raw.tanh()).exp()
