"""What estimators with a generator, its inverse and its variance share: training, likelihoods, latents."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from invgan.detectors.base import AnomalyDetector, Split
from invgan.errors import InputError
from invgan.gan import InvertedGenerator
from invgan.likelihood import (
    LogLikelihood,
    StochasticGenerator,
    TangentMixture,
    conditional,
    joint,
    riemannian,
)
from invgan.networks import RBFVariance
from invgan.preprocess import AffineScaling
from invgan.training import Checkpointing, History, Machine, Schedule, progress_bar, threads_for, train

METHODS = ("aggregate", "joint", "riemannian")
PRIOR_DRAWS = 10_000
"""Latents drawn from the prior for k-means (line 3 of Algorithm 1: "a fixed number")."""
MAX_COMPONENTS = 5000
"""Training rows that carry a component of the aggregate density, chosen at random where there are more."""
MAX_STD = 10.0
"""Largest σ, in units of the scaled data, whose own spread is about one."""


class LatentDetector(TransformerMixin, AnomalyDetector):
    """Base of the estimators that score by a generator's likelihood at z = h(x).

    A subclass implements ``_fit_rows``, which builds :attr:`_model` and calls :meth:`_train`, and the choices
    :meth:`_choice` of score, centres and their number.

    Attributes
    ----------
    history_ : History
        Losses and validation likelihoods of the training.
    latent_dim_ : int
        Dimension of the latent space.
    scaling_ : AffineScaling
        From the data's units to the networks'.
    mixture_ : TangentMixture
        The aggregate density.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **AnomalyDetector._parameter_constraints,
        "method": [None, StrOptions(set(METHODS))],
        "n_centers": [None, Interval(Integral, 2, None, closed="left")],
        "max_steps": [None, Interval(Integral, 1, None, closed="left")],
        "batch_size": [None, Interval(Integral, 2, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "patience": [None, Interval(Integral, 1, None, closed="left")],
        "device": [StrOptions({"auto", "cpu", "cuda"})],
        "processes": [Interval(Integral, 1, None, closed="left")],
        "precision": [StrOptions({"auto", "32-true", "bf16-mixed"})],
        "checkpoint": [None, str, Path],
        "checkpoint_every": [Interval(Integral, 1, None, closed="left")],
        "verbose": ["boolean"],
    }

    n_centers: int | None
    max_steps: int | None
    batch_size: int | None
    learning_rate: float
    patience: int | None
    device: str
    processes: int
    precision: str
    checkpoint: str | Path | None
    checkpoint_every: int
    verbose: bool
    latent_dim_: int
    scaling_: AffineScaling
    history_: History

    @property
    @abstractmethod
    def _model(self) -> InvertedGenerator:
        """The trained networks."""

    @abstractmethod
    def _choice(self, name: str) -> Any:
        """Return "method", "centers" or "n_centers" as given, or by default."""

    # ---------------------------------------------------------------- fitting

    def _scale(self, training: Tensor) -> AffineScaling:
        if len(self.data_shape_) == 1:
            return AffineScaling.standardize(training)
        return AffineScaling.to_unit_range(training)

    def _check_batch_size(self, n_training: int) -> None:
        if self.batch_size is not None and self.batch_size > n_training:
            raise InputError(
                f"The 'batch_size' parameter of {type(self).__name__} must be at most the number of training "
                f"rows, {n_training} after holding out rows for validation and calibration. "
                f"Got {self.batch_size} instead."
            )

    def _choose_n_centers(self, n_training: int) -> int:
        from_data = self._choice("centers") == "data"
        most, points = (n_training, "training rows") if from_data else (PRIOR_DRAWS, "draws from the prior")
        least, name = self.latent_dim_ + 1, type(self).__name__
        if least > most:
            raise InputError(
                f"The 'latent_dim' parameter of {name} must be less than {most}, the number of {points}: "
                f"σ needs latent_dim + 1 centres among them (Lemma 1). Got {self.latent_dim_} instead."
            )
        if self.n_centers is None:
            return max(min(self._choice("n_centers"), most), least)
        if self.n_centers > most:
            raise InputError(
                f"The 'n_centers' parameter of {name} must be at most {most}, the number of {points} that "
                f"the centres are the means of. Got {self.n_centers} instead."
            )
        if self.n_centers < least:
            raise InputError(
                f"The 'n_centers' parameter of {name} must be at least latent_dim + 1 = {least}, or the "
                f"metric can lose rank (Lemma 1). Got {self.n_centers} instead."
            )
        return int(self.n_centers)

    def _initialize_variance(self, draws: torch.Generator, seed: int) -> None:
        model = self._model
        model.variance = RBFVariance(*self._variance_shape(), max_std=MAX_STD)
        model.variance.weight.data.uniform_(generator=draws)
        prior = torch.randn(PRIOR_DRAWS, self.latent_dim_, generator=draws)
        model.variance.fit_centers(prior, seed=seed)
        if self._is_convolutional():
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _variance_shape(self) -> tuple[int, int, int]:
        n_features, n_centers = self._model.variance.get_parameter("weight").shape
        return self.latent_dim_, n_features, n_centers

    def _train(self, rows: Tensor, split: Split, seed: int) -> None:
        """Train the model on the split's rows and make it ready to score."""
        training, validation = rows[split.training], rows[split.validation]
        schedule = self._schedule(len(training))
        with progress_bar("training", schedule.max_steps, enabled=self.verbose) as on_log:
            self.history_ = train(
                self._model,
                training,
                validation,
                prepare=self.scaling_,
                schedule=schedule,
                seed=seed,
                machine=Machine(self._device().type, self.processes, self._choose_precision()),
                checkpointing=self._checkpointing(rows, seed),
                on_log=on_log,
            )
        self._prepare_scoring(torch.cat([training, validation]), seed)
        held_out = torch.cat([validation, rows[split.calibration]])
        self.typical_ = self._conditional(held_out).mean(0)

    def _schedule(self, n_training: int) -> Schedule:
        convolutional = self._is_convolutional()
        return Schedule(
            max_steps=self.max_steps or (4000 if convolutional else 1500),
            batch_size=self.batch_size or min(128, n_training) // self.processes * self.processes,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )

    def _is_convolutional(self) -> bool:
        return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in self._model.modules())

    def _choose_precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        native = (
            torch.cuda.is_bf16_supported()
            if self._device().type == "cuda"
            else getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        )
        return "bf16-mixed" if native and self._is_convolutional() else "32-true"

    def _device(self) -> torch.device:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device='cuda' was asked for, but PyTorch finds no CUDA device here.")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def _checkpointing(self, rows: Tensor, seed: int) -> Checkpointing | None:
        if self.checkpoint is None:
            return None
        irrelevant = ("checkpoint", "checkpoint_every", "verbose", "false_positive_rate", "method")
        settings = {name: v for name, v in self._plain_parameters().items() if name not in irrelevant}
        settings |= {"seed": seed, "precision": self._choose_precision(), "networks": repr(self._model)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(rows.numpy().tobytes())
        for tensor in self._model.state_dict().values():  # initial weights: yours, if the networks are
            digest.update(tensor.contiguous().numpy().tobytes())
        return Checkpointing(Path(self.checkpoint), self.checkpoint_every, digest.hexdigest())

    # ---------------------------------------------------------------- scoring

    def _prepare_scoring(self, rows: Tensor, seed: int) -> None:
        """Bring the trained networks to scoring precision, fit σ around the data, build the aggregate."""
        self._to_scoring_precision()
        gan = self._model
        with self._scoring():
            codes = self._encode(rows)
            if self._choice("centers") == "data":
                means = self._blocks(self._generate, codes)
                gan.variance = RBFVariance(*self._variance_shape(), max_std=MAX_STD).to(codes)
                gan.variance.requires_grad_(False)
                gan.variance.fit_centers(codes, seed=seed)
                scaled = self._blocks(lambda block: self._prepare(block).flatten(1), rows)
                gan.variance.fit_weights(codes, scaled - means)
            shuffled = np.random.default_rng([seed, 1]).permutation(len(rows))
            chosen = torch.from_numpy(np.sort(shuffled[:MAX_COMPONENTS]))
            centers = self._blocks(lambda block: self._prepare(block).flatten(1), rows[chosen])
            self.mixture_ = self._mixture(centers, codes[chosen])
            self.mixture_.fit_bandwidths(seed=seed)

    def _to_scoring_precision(self) -> None:
        # Dense networks cost nothing in double precision; convolutions would cost ten times as much.
        convolutional = self._is_convolutional()
        self._model.to(self._device(), torch.float32 if convolutional else torch.float64)
        if convolutional:  # a model file holds no memory format, on which rounding depends
            self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model.requires_grad_(False).eval()
        self.scaling_.to(self._device())

    def _mixture(self, centers: Tensor, codes: Tensor) -> TangentMixture:
        return TangentMixture(centers, codes, self._generate)

    def _generate(self, z: Tensor) -> Tensor:
        """Return g(z), flattened; a method, unlike a lambda, is pickled and copied with the estimator."""
        return self._model.generator(z).flatten(1)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        device = self._device()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), threads_for(self._model, device):
            yield

    def _prepare(self, rows: Tensor) -> Tensor:
        scaled = self.scaling_(rows.to(self._device())).to(next(self._model.parameters()).dtype)
        # Squares of larger values overflow in single precision, and scores would be NaN.
        return scaled.clamp(-1e9, 1e9) if scaled.dtype == torch.float32 else scaled

    def _encode(self, rows: Tensor) -> Tensor:
        return self._blocks(lambda block: self._model.inference(self._prepare(block)), rows)

    def _blocks(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Apply a function in blocks of one fixed size, the last one filled up.

        Matrix products round differently at different sizes: only so is a row's score the same, bit for
        bit, alone and in any company.
        """
        size = 32 if self._is_convolutional() else 128
        results = []
        for block in rows.split(size):
            filled = torch.cat([block, block[-1:].expand(size - len(block), *block.shape[1:])])
            results.append(function(filled)[: len(block)])
        return torch.cat(results)

    def _score_rows(self, rows: Tensor) -> np.ndarray:
        return self._log_likelihood(rows, self._choice("method")).values

    def _conditional(self, rows: Tensor) -> Tensor:
        def per_feature(block: Tensor) -> Tensor:
            scaled = self._prepare(block)
            z = self._model.inference(scaled)
            return conditional(self._model.stochastic_generator, scaled, z).double()

        with self._scoring():
            return self._blocks(per_feature, rows)

    def _log_likelihood(self, rows: Tensor, method: str) -> LogLikelihood:
        with self._scoring():
            if method == "riemannian":
                return self._riemannian(rows)

            def log_density(block: Tensor) -> Tensor:
                scaled = self._prepare(block)
                if method == "aggregate":
                    return self.mixture_.log_prob(scaled.flatten(1).to(self.mixture_.centers.dtype)).double()
                return joint(self._model.stochastic_generator, scaled, self._model.inference(scaled)).double()

            values = self._blocks(log_density, rows) + self.scaling_.log_abs_det
        return LogLikelihood(values.cpu().numpy(), None, {})

    def _riemannian(self, rows: Tensor) -> LogLikelihood:
        # A surface's volume in the data's units is not one factor away from that in scaled units: the
        # tangents themselves are returned to the data's units.
        scale = self.scaling_.scale.expand(self.data_shape_).flatten()
        scaled_f = self._model.stochastic_generator
        f = StochasticGenerator(
            lambda z: scaled_f.mean(z) * scale.to(z), lambda z: scaled_f.std(z) * scale.to(z)
        )

        def log_density(block: Tensor) -> Tensor:
            values, at = riemannian(f, self._model.inference(self._prepare(block)))
            condition = at.singular_values[:, 0] / at.singular_values[:, -1]
            return torch.stack([values, condition, at.rank.double()], 1)

        values, condition, rank = self._blocks(log_density, rows).cpu().numpy().T.copy()
        return LogLikelihood(
            values, None, {"condition_number": condition, "rank_deficient": rank < self.latent_dim_}
        )

    def log_likelihood(self, X: Any, method: str | None = None) -> LogLikelihood:
        """Estimate log p(x) of each row by a named method.

        Parameters
        ----------
        X : as in fit
        method : {"aggregate", "joint", "riemannian"}, optional
            By default the one that ``score_samples`` uses.

        Returns
        -------
        LogLikelihood
            ``values`` (n,) in nats, in the data's own units; ``standard_error``, None for these methods,
            which sample nothing; ``diagnostics``: for "riemannian" each row's ``condition_number`` of
            [J_g; J_σ] and whether it is ``rank_deficient``.

        Raises
        ------
        ValueError
            If the method is not one of these.

        Source
        ------
        Paper, Eq. 4 (riemannian).
        """
        check_is_fitted(self)
        method = method or self._choice("method")
        if method not in METHODS:
            raise InputError(
                f"The 'method' parameter of {type(self).__name__}.log_likelihood must be one of "
                f"{', '.join(METHODS)}. Got {method!r} instead."
            )
        return self._log_likelihood(self._check_rows(X, fitting=False), method)

    # ---------------------------------------------------- explanations and latents

    def explain(self, X: Any) -> np.ndarray:
        r"""Tell how much each feature adds to a row being unusual, given its latent.

        .. math:: \text{share}_i = \mathrm{E}_{\text{held out}}[\log p(x_i | z)] - \log p(x_i | h(x))

        Since p(x | z) is a product over features, the shares sum to the row's whole deficit in log p(x | z)
        against the typical held-out row.

        Returns
        -------
        ndarray, shape of X
            In nats; large where a feature is unlike what its latent predicts.
        """
        check_is_fitted(self)
        rows = self._check_rows(X, fitting=False)
        return (self.typical_ - self._conditional(rows)).cpu().numpy().reshape(rows.shape)

    def transform(self, X: Any) -> np.ndarray:
        """Return the latents h(x), shape (n, d)."""
        check_is_fitted(self)
        with self._scoring():
            return self._encode(self._check_rows(X, fitting=False)).cpu().numpy()

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Return the generator's mean g(z) in the data's units, shape (n, \\*data_shape)."""
        check_is_fitted(self)
        with self._scoring():
            return self._decode(self._check_latents(Z)).cpu().numpy()

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> np.ndarray:
        """Draw rows g(z) + σ(z) ⊙ ε in the data's units, shape (n_samples, \\*data_shape)."""
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise InputError(
                f"The 'n_samples' parameter of {type(self).__name__}.sample must be an int in the range "
                f"[1, inf). Got {n_samples!r} instead."
            )
        draws = check_random_state(random_state)
        z = self._check_latents(draws.standard_normal((n_samples, self.latent_dim_)))
        noise = torch.from_numpy(draws.standard_normal((n_samples, *self.data_shape_)))
        with self._scoring():
            std = self._blocks(self._model.variance, z).view_as(noise) * self.scaling_.scale
            return (self._decode(z) + std * noise.to(std)).cpu().numpy()

    def _decode(self, z: Tensor) -> Tensor:
        return self._blocks(lambda block: self.scaling_.inverse(self._model.generator(block)), z)

    def _check_latents(self, Z: Any) -> Tensor:
        latents = np.asarray(Z, dtype=np.float64)
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim_ or len(latents) == 0:
            raise InputError(
                f"Z must have shape (n, {self.latent_dim_}), one latent per row. Got {latents.shape} instead."
            )
        return torch.from_numpy(latents).to(next(self._model.parameters()))
