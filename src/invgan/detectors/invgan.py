"""InvGAN: the paper's method as an estimator."""

import copy
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from invgan import networks
from invgan.detectors.latent import MAX_STD, LatentDetector
from invgan.errors import InputError
from invgan.estimators import Split
from invgan.gan import ADVERSARIAL_LOSSES, GAN
from invgan.networks import RBFVariance
from invgan.preprocess import AffineScaling, UnskewedScaling

TABLE_BATCH = 64
"""Rows in a minibatch of a table: twice as many, for the same number of steps, detect no better."""
TABLE_EPOCHS, FEWEST_TABLE_STEPS, MOST_TABLE_STEPS = 20, 300, 1500
"""How often a table's rows are drawn, and in how many steps at least and at most."""
TABLE_RATE = 3e-3
"""Adam's rate for a table: so few steps have to be longer."""


class _Settings(NamedTuple):
    """What a preset decides."""

    method: str
    loss: str
    centers: str
    n_centers: int


_SETTINGS = {
    None: _Settings(method="aggregate", loss="non-saturating", centers="data", n_centers=256),
    "paper": _Settings(method="riemannian", loss="saturating", centers="prior", n_centers=64),
}


@dataclass(eq=False, repr=False, kw_only=True)
class InvGAN(LatentDetector):
    r"""Likelihoods under a generative adversarial network, and anomaly detection by them.

    A generator g is trained against a discriminator together with an inference network h ≈ g⁻¹ and a
    variance network σ (Algorithm 1). Three likelihoods follow; ``method`` names the one that
    ``score_samples`` returns:

    - ``"riemannian"``, the paper's: :math:`\log N(z; 0, I) - \tfrac12\log\det(J_g^\top J_g +
      J_\sigma^\top J_\sigma)` at z = h(x), a density on the generator's surface;
    - ``"joint"``: :math:`\log N(x; g(z), \mathrm{diag}\,\sigma^2(z)) + \log N(z; 0, I)` at z = h(x);
    - ``"aggregate"``, the default: a normalised density around the encoded training rows
      (:class:`~invgan.likelihood.TangentMixture`).

    Of images ``"ratio"`` is how much more probable ``"aggregate"`` has them than a smooth random field that
    is as rough as the image (:func:`~invgan.likelihood.smooth_field`). It is no density. It was made
    to detect by, as every density finds a simple image likely, and does so better on digits.

    Parameters
    ----------
    latent_dim : int, optional
        Dimension d of the latent space. By default chosen from the data's shape.
    preset : None or "paper"
        "paper": its networks (Tables 5-10 and section 4.1), saturating loss, σ centres from the prior, and
        score. None: what measured best, the same for all tables and for all images.
    method : {"aggregate", "joint", "riemannian", "ratio", "laplace", "importance", "ais"}, optional
        What ``score_samples`` returns; by default the preset's. "ratio" is for images. The last three search
        for each row's mode, and take seconds where the others take milliseconds.
    loss : {"saturating", "non-saturating", "hinge", "wasserstein"}, optional
        Adversarial loss; by default the preset's.
    centers : {"prior", "data"}, optional
        Where σ's centres lie: k-means of prior draws, or of the encoded training rows with W fitted again
        after training; by default the preset's.
    n_centers : int, optional
        Number K of σ's centres, at least d + 1 (Lemma 1). By default 256 ("paper": 64), but of the data's not
        more than one for 8 training rows.
    unskew : bool
        For tables: bring skewed and heavy-tailed columns nearer to a normal distribution before anything is
        learned (:class:`~invgan.preprocess.UnskewedScaling`). Scores stay densities in the data's own units.
    generator, discriminator, inference : nn.Module, optional
        Your own networks instead of the preset's, all three or none: (n, d) → (n, \*data_shape),
        (n, \*data_shape) → (n, 1), (n, \*data_shape) → (n, d). They are copied, not changed.
    max_steps : int, optional
        Steps of Algorithm 1: 1,500, or 4,000 for convolutional networks. For a table and the preset's own
        networks as many as draw each row 20 times, from 300 to 1,500: enough to detect by. 1,500 at a rate of
        1e-3 make better samples.
    batch_size : int, optional
        Rows per minibatch: 128, for such a table 64, or all training rows where there are fewer.
    learning_rate : float, optional
        Adam's, decayed to zero along a cosine: 1e-3, for such a table 3e-3.
    patience : int, optional
        Stop early when the validation likelihood has not risen in this many validations of 100 steps each;
        None trains to the end. Either way the best weights are kept.
    false_positive_rate : float in [0, 1)
        Share of normal rows that ``predict`` may flag; ``set_threshold`` changes it after fitting.
    trim : float in [0, 0.5)
        Share of the rows that are presumed anomalous, found in a first pass and left out; how, and what it
        does to the p-values, is said at :class:`~invgan.estimators.AnomalyDetector`.
    random_state : int, RandomState or None
        An integer makes the fit reproducible.
    device : {"auto", "cpu", "cuda"}
        Where to train and score.
    processes : int
        Devices (or CPU processes) to train on in parallel.
    precision : {"auto", "32-true", "bf16-mixed"}
        Of training. "auto": bfloat16 for convolutions where the hardware multiplies it natively.
    checkpoint : path, optional
        Folder to save training to, every ``checkpoint_every`` steps and on Ctrl-C. A fit with the same
        data, parameters and integer ``random_state`` continues from it, to the same weights bit for bit.
        It is left in place when the fit is done.
    checkpoint_every : int
        Steps between checkpoints.
    verbose : bool
        Show a progress bar with every loss and the time left.

    Attributes
    ----------
    model_ : GAN
        The trained networks.
    history_ : History
        Losses and validation likelihoods of the training.
    latent_dim_ : int
        Dimension of the latent space.
    offset_ : float
        Scores below it are anomalies.

    Source
    ------
    Paper, sections 2 and 4.3. Its anomaly score is min-max normalised over the test set, so it depends on
    the other rows; ``score_samples`` does not.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 4))
    >>> detector = InvGAN(max_steps=100, random_state=0).fit(X)
    >>> detector.predict(np.full((1, 4), 9.0)).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LatentDetector._parameter_constraints,
        "latent_dim": [None, Interval(Integral, 1, None, closed="left")],
        "learning_rate": [None, Interval(Real, 0, None, closed="neither")],
        "preset": [None, StrOptions({"paper"})],
        "loss": [None, StrOptions(set(ADVERSARIAL_LOSSES))],
        "centers": [None, StrOptions({"prior", "data"})],
        "unskew": ["boolean"],
        "generator": [None, nn.Module],
        "discriminator": [None, nn.Module],
        "inference": [None, nn.Module],
    }

    latent_dim: int | None = field(default=None, kw_only=False)
    preset: str | None = None
    loss: str | None = None
    centers: str | None = None
    unskew: bool = False
    generator: nn.Module | None = None
    discriminator: nn.Module | None = None
    inference: nn.Module | None = None
    learning_rate: float | None = None  # type: ignore[assignment]

    # ---------------------------------------------------------------- fitting

    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        n_training = len(split.training)
        self._check_consistency(n_training)
        self.latent_dim_ = self._choose_latent_dim(n_training)
        self.scaling_ = self._scale(rows, split.training)
        draws = torch.Generator().manual_seed(seed)
        self.model_ = gan = self._networks(self._choose_n_centers(n_training))
        if self.generator is None:
            for part in (gan.generator, gan.discriminator, gan.inference):
                networks.initialize(part.to_empty(device="cpu"), draws)
        self._initialize_variance(draws, seed)
        self._train_and_prepare(rows, split, seed)

    def _suits_tables(self) -> bool:
        """Tell whether a table meets the networks that the defaults for tables were chosen with."""
        return len(self.data_shape_) == 1 and self.preset is None and self.generator is None

    def _default_batch_size(self) -> int:
        return TABLE_BATCH if self._suits_tables() else super()._default_batch_size()

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        if not self._suits_tables():
            return super()._default_max_steps(n_training, batch_size)
        # More processes than rows leave a batch of none, which the training refuses.
        steps = TABLE_EPOCHS * n_training // max(batch_size, 1)
        return min(max(steps, FEWEST_TABLE_STEPS), MOST_TABLE_STEPS)

    def _default_learning_rate(self) -> float:
        return TABLE_RATE if self._suits_tables() else super()._default_learning_rate()

    def _scale(self, rows: Tensor, which: np.ndarray) -> AffineScaling:
        if self.unskew and len(self.data_shape_) == 1:
            return UnskewedScaling.standardize(rows[which])
        return super()._scale(rows, which)

    def _check_consistency(self, n_training: int) -> None:
        given = [self.generator is not None, self.discriminator is not None, self.inference is not None]
        if any(given) and not all(given):
            raise InputError("Give all of generator, discriminator and inference, or none of them.")
        if any(given) and self.latent_dim is None:
            raise InputError("With your own networks the 'latent_dim' parameter of InvGAN must be given.")
        self._check_method(self._choice("method"))
        self._check_batch_size(n_training)

    def _choose_latent_dim(self, n_training: int) -> int:
        if self.latent_dim is not None:
            return int(self.latent_dim)
        # K >= d + 1 centres need as many rows.
        return min(networks.default_latent_dim(self.data_shape_, self.preset), max(1, n_training - 1))

    def _choice(self, name: str) -> Any:
        own = self._fitted_parameters[name]
        return getattr(_SETTINGS[self._fitted_parameters["preset"]], name) if own is None else own

    def _networks(self, n_centers: int) -> GAN:
        """Construct the networks without memory."""
        with torch.device("meta"):
            if self.generator is None:
                parts = networks.build(self.data_shape_, self.latent_dim_, self.preset)
            variance = RBFVariance(self.latent_dim_, math.prod(self.data_shape_), n_centers, max_std=MAX_STD)
        if self.generator is not None and self.discriminator is not None and self.inference is not None:
            parts = networks.Networks(*copy.deepcopy((self.generator, self.discriminator, self.inference)))
        gan = GAN(*parts, variance, latent_dim=self.latent_dim_, loss=self._choice("loss"))
        gan.recordable = self.generator is None  # yours may do anything
        return gan

    # ---------------------------------------------------------------- model file

    def _build(self, tensors: dict[str, Tensor]) -> GAN:
        return self._networks(n_centers=tensors["model.variance.weight"].shape[1])

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self._fitted_parameters["generator"] is not None:
            raise InputError(
                "A model with networks of your own cannot be saved, because a model file holds no code; keep "
                "the state_dict of its model_ instead."
            )
        return super()._state()
