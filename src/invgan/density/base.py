"""What the density models share: a flow and its training, scores in the data's units, samples."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from invgan.density.bijections import ActNorm, Bijection, Chain, Flatten, Gaussianization, first_failure
from invgan.errors import InputError, TrainingDivergedError
from invgan.estimators import NeuralDetector, Split, check_shapes, spread
from invgan.gan import REGRESSION_BETAS
from invgan.likelihood import log_prior
from invgan.networks import SteadyProducts
from invgan.networks.convolutional import SMALLEST_SIDE
from invgan.preprocess import AffineScaling, UnskewedScaling
from invgan.training import Moved, Sample, Schedule, Trainable, Update, own_global_noise

CPU = torch.device("cpu")
INITIAL_ROWS = 1024
"""Training rows that activation normalisation and the distribution of levels start from."""
VALIDATING = 0.1
"""Share of the training's time that validations take at most; a row costs a third as much to score as to
learn from."""
MOST_LEVELS = 256
"""Of 8 bits."""
LARGE_IMAGE = 256
"""Images of fewer values are treated as vectors, and by smaller networks."""


class FlowModel(Trainable):
    r"""A flow f with a standard normal base.

    .. math:: \log p(x) = \log N(f(x); 0, I) + \log|\det \partial f/\partial x|

    Parameters
    ----------
    flow : Bijection
        From scaled rows to latents, shape (n, D).
    level_width : float
        Width of one of the levels that scaled 8-bit images have; 0 for rows that have none.
    data_shape : tuple of int
        Shape of one row.
    """

    noise: Tensor
    level_width: Tensor

    def __init__(self, flow: Bijection, data_shape: tuple[int, ...], level_width: float) -> None:
        super().__init__()
        self.recordable = all(layer.recordable for layer in flow.modules() if isinstance(layer, Bijection))
        self.flow = flow
        self.data_shape = data_shape
        self.quantized = level_width > 0
        uniform = torch.rand(data_shape, generator=torch.Generator().manual_seed(0))
        self.register_buffer("level_width", torch.tensor(level_width))
        self.register_buffer("noise", level_width * uniform)
        """What is added to an 8-bit image that is scored: the same for all images and calls."""

    @property
    def n_features(self) -> int:
        """D."""
        return math.prod(self.data_shape)

    def updates(self) -> Sequence[Update]:
        """List the one update: maximum likelihood."""
        return (
            Update("negative log-likelihood", self.likelihood_loss, (Moved(self, betas=REGRESSION_BETAS),)),
        )

    def likelihood_loss(self, sample: Sample) -> Tensor:
        """−log p of a minibatch, in nats per row of the scaled data."""
        return -self.log_prob(self.rows(sample)).mean()

    def rows(self, sample: Sample) -> Tensor:
        """Draw a minibatch, levels spread over their cells."""
        rows = sample.rows()
        return rows + self.level_width * sample.uniform(*self.data_shape) if self.quantized else rows

    def validation_score(self, rows: Tensor) -> Tensor:
        """Mean log p of held-out rows."""
        return self.log_prob(rows + self.noise).mean()

    def log_prob(self, rows: Tensor) -> Tensor:
        """Return log p of scaled rows, shape (n,), in nats."""
        z, log_abs_det = self.flow(rows)
        return log_prior(z) + log_abs_det

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the standard normal noise that one sampled row is made from."""
        return (self.n_features,)

    def generate(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise, shape (n, \\*noise_shape), into scaled rows."""
        return self.flow.inverse(noise)


@dataclass(eq=False, repr=False, kw_only=True)
class DensityEstimator(NeuralDetector):
    r"""Base of the density models: ``score_samples`` is log p(x), a normalised density in the data's units.

    A subclass implements :meth:`_layers`, and one that is more than a flow :meth:`_model`.

    **Images** of 8-bit levels (integers from 0 to 255) are dequantised: p is a density of x + u, with u
    uniform on [0, 1) in every value, drawn afresh at every step of training. The values of each channel are
    taken to normal quantiles (:class:`~invgan.density.bijections.Gaussianization`), in a straight line beyond
    the lowest and the highest level of the training images; FlowVAE takes a logit there. Such an image is
    scored at x + u with one u that is the same for all images and calls; to average over u, score the floats
    of :func:`invgan.likelihood.dequantize`. Images of floats are scored, and learned from, as they are: if
    they are levels in disguise, their density has no bound, so pass the levels.
    :func:`invgan.likelihood.bits_per_dimension` turns either score into bits.

    **Tables.** Skewed and heavy-tailed columns are bent first (:class:`~invgan.preprocess.UnskewedScaling`),
    which brings rows far outside within reach; p stays a density in the data's units.

    Convolutions are for images of even sides of at least 8 pixels and 256 values or more; smaller ones are
    vectors.

    Parameters
    ----------
    n_layers : int, optional
        How many layers; each model says of what.
    width : int, optional
        Units (or channels) of the networks' hidden layers.
    max_steps, batch_size, learning_rate, patience, false_positive_rate, random_state, device, processes, \
    precision, checkpoint, checkpoint_every, verbose
        Those of :class:`~invgan.InvGAN`; ``max_steps`` is 4,000 by default (RealNVP and FlowVAE with splines
        6,000, Glow 8,000: edges take the coupling flows longer), ``batch_size`` 512,
        ``learning_rate`` 1e-3, or 1e-2 for splines, and ``patience`` 10: a flow that learns few rows by heart
        does so in the first tenth of the training.

    Attributes
    ----------
    model_ : FlowModel
        The trained density of scaled rows.
    quantized_ : bool
        Whether it learned from 8-bit images.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralDetector._parameter_constraints,
        "n_layers": [None, Interval(Integral, 1, None, closed="left")],
        "width": [None, Interval(Integral, 1, None, closed="left")],
        "learning_rate": [None, Interval(Real, 0, None, closed="neither")],
    }

    n_layers: int | None = field(default=None, kw_only=False)
    width: int | None = None
    learning_rate: float | None = None  # type: ignore[assignment]
    patience: int | None = 10
    model_: FlowModel = field(init=False)
    quantized_: bool = field(init=False)

    @abstractmethod
    def _layers(self) -> list[Bijection]:
        """Build the flow's layers, from scaled rows (or levels' normal quantiles) to latents (n, D)."""

    def _model(self, flow: Bijection, level_width: float) -> FlowModel:
        """Build the model around its flow."""
        return FlowModel(flow, self.data_shape_, level_width)

    def _default_batch_size(self) -> int:
        return 512

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        return 4000

    # ---------------------------------------------------------------- fitting

    def _schedule(self, n_training: int) -> Schedule:
        schedule = super()._schedule(n_training)
        n_validation = min(n_training // 8, Split.most)  # a tenth of the rows, where eight tenths train
        enough = math.ceil(n_validation / (3 * VALIDATING * schedule.batch_size))
        return replace(schedule, validate_every=max(schedule.validate_every, enough))

    def _check_rows(self, X: Any, *, fitting: bool, missing: bool = False) -> Tensor:
        if isinstance(X, list | tuple):
            X = np.asarray(X)
        levels = np.asarray(X) if getattr(X, "ndim", None) == 4 else None
        if levels is not None and levels.dtype.kind in "iub" and levels.dtype != np.uint8 and levels.size:
            if levels.min() < 0 or levels.max() > 255:
                raise InputError(
                    f"X has images of integers from {levels.min()} to {levels.max()}: {type(self).__name__} "
                    "takes 8-bit levels, from 0 to 255, or floats; rescale them."
                )
            X = levels.astype(np.uint8)
        return super()._check_rows(X, fitting=fitting, missing=missing)

    def _is_large_image(self) -> bool:
        return len(self.data_shape_) == 3 and self._size() >= LARGE_IMAGE

    def _uses_convolutions(self) -> bool:
        sides = self.data_shape_[1:]
        return self._is_large_image() and min(sides) >= SMALLEST_SIDE and not any(side % 2 for side in sides)

    def _size(self) -> int:
        return math.prod(self.data_shape_)

    def _flattened(self) -> list[Bijection]:
        """The layer that makes vectors of images, where rows are images."""
        return [Flatten(self.data_shape_)] if len(self.data_shape_) == 3 else []

    def _new_model(self, level_width: float) -> FlowModel:
        bent: list[Bijection] = []
        if level_width > 0:
            n_channels = self.data_shape_[0]
            bent = [self._bend(n_channels, round(2 / level_width)), ActNorm(n_channels)]
        return self._model(Chain([*bent, *self._layers()]), level_width)

    def _bend(self, n_channels: int, n_levels: int) -> Bijection:
        """What takes the scaled levels of images to a wide range."""
        return Gaussianization(n_channels, n_levels)

    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        training = rows[split.training]
        self._check_batch_size(len(training))
        self.quantized_ = rows.dtype == torch.uint8
        self.scaling_ = (
            _cells_to_unit_range(training) if self.quantized_ else self._scale(rows, split.training)
        )
        with own_global_noise(seed, CPU):  # which zuko's layers draw their weights from
            self.model_ = self._new_model(1 / self.scaling_.scale.item() if self.quantized_ else 0.0)
            if self._is_convolutional():
                self.model_.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            some = spread(np.arange(len(training)), INITIAL_ROWS)
            first = self.scaling_(training[some]).float()
            first = first + self.model_.level_width * torch.rand(first.shape)
            with torch.no_grad():
                self.model_.to(self._device()).flow.initialize(first.to(self._device()))
            self.model_.cpu()
        try:
            self._train(rows, split, seed)
        except TrainingDivergedError as error:
            where = first_failure(self.model_)
            raise TrainingDivergedError(f"{error} {where} failed first." if where else str(error)) from None

    def _scale(self, rows: Tensor, which: np.ndarray) -> AffineScaling:
        if len(self.data_shape_) == 1:
            return UnskewedScaling.standardize(rows[which])
        return super()._scale(rows, which)

    # ---------------------------------------------------------------- scoring

    def _score_rows(self, rows: Tensor) -> np.ndarray:
        noise = self.model_.noise if rows.dtype == torch.uint8 else 0
        with self._scoring(), SteadyProducts():
            scores = self._blocks(lambda block: self._log_prob(self._prepare(block) + noise), rows)
        log_abs_det = self.scaling_.log_derivative(rows.to(scores.device)).sum(-1)
        return (scores.double() + log_abs_det).cpu().numpy()

    def _log_prob(self, scaled: Tensor) -> Tensor:
        """Return log p of scaled rows; each by itself."""
        return self.model_.log_prob(scaled)

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> np.ndarray:
        """Draw rows from the density, in the data's units; 8-bit images if it learned from such.

        Parameters
        ----------
        n_samples : int
        random_state : int, RandomState or None
            An integer makes the draws reproducible.

        Returns
        -------
        ndarray, shape (n_samples, \\*data_shape)
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise InputError(
                f"The 'n_samples' parameter of {type(self).__name__}.sample must be an int in the range "
                f"[1, inf). Got {n_samples!r} instead."
            )
        draws = check_random_state(random_state)
        noise = torch.from_numpy(draws.standard_normal((n_samples, *self.model_.noise_shape)))
        with self._scoring():
            like = next(self.model_.parameters())
            scaled = self._blocks(lambda block: self.model_.generate(block.to(like)), noise)
            rows = self.scaling_.inverse(scaled).cpu()
        if self.quantized_:
            return rows.floor().clamp(0, 255).to(torch.uint8).numpy()
        return rows.numpy()

    # ---------------------------------------------------------------- model file

    def _build(self, tensors: dict[str, Tensor]) -> FlowModel:
        # The networks below are built in memory: no larger ones than the file has tensors for.
        check_shapes(tensors, {"model.noise": self.data_shape_, "model.level_width": ()})
        sides = {side for tensor in tensors.values() for side in tensor.shape}
        if (self.n_layers or 1) > len(tensors) or self.width not in {None, *sides}:
            raise ValueError("its layers are not those that the parameters ask for")
        level_width = tensors["model.level_width"].item()
        if level_width > 0 and 2 / level_width > MOST_LEVELS + 0.5:
            raise ValueError(f"its images have more than {MOST_LEVELS} levels")
        self.quantized_ = level_width > 0
        with own_global_noise(0, CPU):
            return self._new_model(level_width)


def _cells_to_unit_range(rows: Tensor) -> AffineScaling:
    """Bring 8-bit levels, each a cell of width 1, to [-1, 1]."""
    low, high = rows.min().double(), rows.max().double() + 1
    return AffineScaling((low + high) / 2, (high - low) / 2, tuple(rows.shape[1:]))
