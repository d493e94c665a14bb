"""InvGAN: the paper's method as an estimator."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from invgan import networks
from invgan.detectors.base import AnomalyDetector, Split
from invgan.errors import InputError
from invgan.gan import ADVERSARIAL_LOSSES, GAN
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


class InvGAN(TransformerMixin, AnomalyDetector):
    r"""Likelihoods under a generative adversarial network, and anomaly detection by them.

    A generator g is trained against a discriminator together with an inference network h ≈ g⁻¹ and a
    variance network σ (Algorithm 1). Three likelihoods follow; ``method`` names the one that
    ``score_samples`` returns:

    - ``"riemannian"``, the paper's: :math:`\log N(z; 0, I) - \tfrac12\log\det(J_g^\top J_g +
      J_\sigma^\top J_\sigma)` at z = h(x), a density on the generator's surface;
    - ``"joint"``: :math:`\log N(x; g(z), \mathrm{diag}\,\sigma^2(z)) + \log N(z; 0, I)` at z = h(x);
    - ``"aggregate"``, the default: a normalised density around the encoded training rows
      (:class:`~invgan.likelihood.TangentMixture`).

    Parameters
    ----------
    latent_dim : int, optional
        Dimension d of the latent space. By default chosen from the data's shape.
    preset : None or "paper"
        "paper": its networks (Tables 5-10 and section 4.1), saturating loss, σ centres from the prior, and
        score. None: what measured best, the same for all data.
    method : {"aggregate", "joint", "riemannian"}, optional
        What ``score_samples`` returns; by default the preset's.
    loss : {"saturating", "non-saturating", "hinge", "wasserstein"}, optional
        Adversarial loss; by default the preset's.
    centers : {"prior", "data"}, optional
        Where σ's centres lie: k-means of prior draws, or of the encoded training rows with W fitted again
        after training; by default the preset's.
    n_centers : int, optional
        Number K of σ's centres, at least d + 1 (Lemma 1).
    generator, discriminator, inference : nn.Module, optional
        Your own networks instead of the preset's, all three or none: (n, d) → (n, \*data_shape),
        (n, \*data_shape) → (n, 1), (n, \*data_shape) → (n, d). They are copied, not changed.
    max_steps : int, optional
        Steps of Algorithm 1: 1,500, or 4,000 for convolutional networks.
    batch_size : int, optional
        Rows per minibatch: 128, or all training rows where there are fewer.
    learning_rate : float
        Adam's, decayed to zero along a cosine.
    patience : int, optional
        Stop early when the validation likelihood has not risen in this many validations of 100 steps each;
        None trains to the end. Either way the best weights are kept.
    false_positive_rate : float in [0, 1)
        Share of normal rows that ``predict`` may flag; ``set_threshold`` changes it after fitting.
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
    gan_ : GAN
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
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 4))
    >>> detector = InvGAN(max_steps=100, random_state=0).fit(X)
    >>> detector.predict(np.full((1, 4), 9.0)).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **AnomalyDetector._parameter_constraints,
        "latent_dim": [None, Interval(Integral, 1, None, closed="left")],
        "preset": [None, StrOptions({"paper"})],
        "method": [None, StrOptions(set(METHODS))],
        "loss": [None, StrOptions(set(ADVERSARIAL_LOSSES))],
        "centers": [None, StrOptions({"prior", "data"})],
        "n_centers": [None, Interval(Integral, 2, None, closed="left")],
        "generator": [None, nn.Module],
        "discriminator": [None, nn.Module],
        "inference": [None, nn.Module],
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

    def __init__(
        self,
        latent_dim: int | None = None,
        *,
        preset: str | None = None,
        method: str | None = None,
        loss: str | None = None,
        centers: str | None = None,
        n_centers: int | None = None,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        inference: nn.Module | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        patience: int | None = None,
        false_positive_rate: float = 0.05,
        random_state: Any = None,
        device: str = "auto",
        processes: int = 1,
        precision: str = "auto",
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
        verbose: bool = False,
    ) -> None:
        self.latent_dim = latent_dim
        self.preset = preset
        self.method = method
        self.loss = loss
        self.centers = centers
        self.n_centers = n_centers
        self.generator = generator
        self.discriminator = discriminator
        self.inference = inference
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.false_positive_rate = false_positive_rate
        self.random_state = random_state
        self.device = device
        self.processes = processes
        self.precision = precision
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.verbose = verbose

    # ---------------------------------------------------------------- fitting

    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        training, validation = rows[split.training], rows[split.validation]
        self._check_consistency(len(training))
        self.latent_dim_ = self._choose_latent_dim(len(training))
        self.scaling_ = self._scale(training)
        draws = torch.Generator().manual_seed(seed)
        self.gan_ = self._build(len(training))
        self._initialize(draws, seed)
        schedule = self._schedule(len(training))
        with progress_bar("training", schedule.max_steps, enabled=self.verbose) as on_log:
            self.history_ = train(
                self.gan_,
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

    def _check_consistency(self, n_training: int) -> None:
        given = [self.generator is not None, self.discriminator is not None, self.inference is not None]
        if any(given) and not all(given):
            raise InputError("Give all of generator, discriminator and inference, or none of them.")
        if any(given) and self.latent_dim is None:
            raise InputError("With your own networks the 'latent_dim' parameter of InvGAN must be given.")
        if self.batch_size is not None and self.batch_size > n_training:
            raise InputError(
                f"The 'batch_size' parameter of InvGAN must be at most the number of training rows, "
                f"{n_training} after holding out rows for validation and calibration. "
                f"Got {self.batch_size} instead."
            )

    def _choose_latent_dim(self, n_training: int) -> int:
        if self.latent_dim is not None:
            return int(self.latent_dim)
        # K >= d + 1 centres need as many rows.
        return min(networks.default_latent_dim(self.data_shape_, self.preset), max(1, n_training - 1))

    def _scale(self, training: Tensor) -> AffineScaling:
        if len(self.data_shape_) == 1:
            return AffineScaling.standardize(training)
        return AffineScaling.to_unit_range(training)

    def _setting(self, name: str) -> Any:
        own = getattr(self, name)
        return getattr(_SETTINGS[self.preset], name) if own is None else own

    def _build(self, n_training: int | None, n_centers: int | None = None) -> GAN:
        """Construct the networks without memory; n_centers is known when a model is loaded."""
        if n_centers is None:
            n_centers = self._choose_n_centers(n_training or 0)
        with torch.device("meta"):
            if self.generator is None:
                parts = networks.build(self.data_shape_, self.latent_dim_, self.preset)
            variance = RBFVariance(self.latent_dim_, math.prod(self.data_shape_), n_centers, max_std=MAX_STD)
        if self.generator is not None and self.discriminator is not None and self.inference is not None:
            parts = networks.Networks(*copy.deepcopy((self.generator, self.discriminator, self.inference)))
        return GAN(*parts, variance, latent_dim=self.latent_dim_, loss=self._setting("loss"))

    def _choose_n_centers(self, n_training: int) -> int:
        from_data = self._setting("centers") == "data"
        most, points = (n_training, "training rows") if from_data else (PRIOR_DRAWS, "draws from the prior")
        least = self.latent_dim_ + 1
        if least > most:
            raise InputError(
                f"The 'latent_dim' parameter of InvGAN must be less than {most}, the number of {points}: "
                f"σ needs latent_dim + 1 centres among them (Lemma 1). Got {self.latent_dim_} instead."
            )
        if self.n_centers is None:
            return max(min(_SETTINGS[self.preset].n_centers, most), least)
        if self.n_centers > most:
            raise InputError(
                f"The 'n_centers' parameter of InvGAN must be at most {most}, the number of {points} that "
                f"the centres are the means of. Got {self.n_centers} instead."
            )
        if self.n_centers < least:
            raise InputError(
                f"The 'n_centers' parameter of InvGAN must be at least latent_dim + 1 = {least}, or the "
                f"metric can lose rank (Lemma 1). Got {self.n_centers} instead."
            )
        return int(self.n_centers)

    def _initialize(self, draws: torch.Generator, seed: int) -> None:
        gan = self.gan_
        if self.generator is None:
            for part in (gan.generator, gan.discriminator, gan.inference):
                part.to_empty(device="cpu")
                networks.initialize(part, draws)
        gan.variance = RBFVariance(*self._variance_shape(), max_std=MAX_STD)
        gan.variance.weight.data.uniform_(generator=draws)
        prior = torch.randn(PRIOR_DRAWS, self.latent_dim_, generator=draws)
        gan.variance.fit_centers(prior, seed=seed)
        if self._is_convolutional():
            gan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _variance_shape(self) -> tuple[int, int, int]:
        n_features, n_centers = self.gan_.variance.get_parameter("weight").shape
        return self.latent_dim_, n_features, n_centers

    def _schedule(self, n_training: int) -> Schedule:
        convolutional = self._is_convolutional()
        return Schedule(
            max_steps=self.max_steps or (4000 if convolutional else 1500),
            batch_size=self.batch_size or min(128, n_training) // self.processes * self.processes,
            learning_rate=self.learning_rate,
            patience=self.patience,
        )

    def _is_convolutional(self) -> bool:
        return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in self.gan_.modules())

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
        settings |= {"seed": seed, "precision": self._choose_precision(), "networks": repr(self.gan_)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(rows.numpy().tobytes())
        for tensor in self.gan_.state_dict().values():  # initial weights: yours, if the networks are
            digest.update(tensor.contiguous().numpy().tobytes())
        return Checkpointing(Path(self.checkpoint), self.checkpoint_every, digest.hexdigest())

    # ---------------------------------------------------------------- scoring

    def _prepare_scoring(self, rows: Tensor, seed: int) -> None:
        """Bring the trained networks to scoring precision, fit σ around the data, build the aggregate."""
        self._to_scoring_precision()
        gan = self.gan_
        with self._scoring():
            codes = self._encode(rows)
            if self._setting("centers") == "data":
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
        self.gan_.to(self._device(), torch.float32 if convolutional else torch.float64)
        if convolutional:  # a model file holds no memory format, on which rounding depends
            self.gan_.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.gan_.requires_grad_(False).eval()
        self.scaling_.to(self._device())

    def _mixture(self, centers: Tensor, codes: Tensor) -> TangentMixture:
        return TangentMixture(centers, codes, self._generate)

    def _generate(self, z: Tensor) -> Tensor:
        """Return g(z), flattened; a method, unlike a lambda, is pickled and copied with the estimator."""
        return self.gan_.generator(z).flatten(1)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        device = self._device()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), threads_for(self.gan_, device):
            yield

    def _prepare(self, rows: Tensor) -> Tensor:
        scaled = self.scaling_(rows.to(self._device())).to(next(self.gan_.parameters()).dtype)
        # Squares of larger values overflow in single precision, and scores would be NaN.
        return scaled.clamp(-1e9, 1e9) if scaled.dtype == torch.float32 else scaled

    def _encode(self, rows: Tensor) -> Tensor:
        return self._blocks(lambda block: self.gan_.inference(self._prepare(block)), rows)

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
        return self._log_likelihood(rows, self._setting("method")).values

    def _conditional(self, rows: Tensor) -> Tensor:
        def per_feature(block: Tensor) -> Tensor:
            scaled = self._prepare(block)
            z = self.gan_.inference(scaled)
            return conditional(self.gan_.stochastic_generator, scaled, z).double()

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
                return joint(self.gan_.stochastic_generator, scaled, self.gan_.inference(scaled)).double()

            values = self._blocks(log_density, rows) + self.scaling_.log_abs_det
        return LogLikelihood(values.cpu().numpy(), None, {})

    def _riemannian(self, rows: Tensor) -> LogLikelihood:
        # A surface's volume in the data's units is not one factor away from that in scaled units: the
        # tangents themselves are returned to the data's units.
        scale = self.scaling_.scale.expand(self.data_shape_).flatten()
        scaled_f = self.gan_.stochastic_generator
        f = StochasticGenerator(
            lambda z: scaled_f.mean(z) * scale.to(z), lambda z: scaled_f.std(z) * scale.to(z)
        )

        def log_density(block: Tensor) -> Tensor:
            values, at = riemannian(f, self.gan_.inference(self._prepare(block)))
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
        method = method or self._setting("method")
        if method not in METHODS:
            raise InputError(
                f"The 'method' parameter of InvGAN.log_likelihood must be one of {', '.join(METHODS)}. "
                f"Got {method!r} instead."
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
                "The 'n_samples' parameter of InvGAN.sample must be an int in the range [1, inf). "
                f"Got {n_samples!r} instead."
            )
        draws = check_random_state(random_state)
        z = self._check_latents(draws.standard_normal((n_samples, self.latent_dim_)))
        noise = torch.from_numpy(draws.standard_normal((n_samples, *self.data_shape_)))
        with self._scoring():
            std = self._blocks(self.gan_.variance, z).view_as(noise) * self.scaling_.scale
            return (self._decode(z) + std * noise.to(std)).cpu().numpy()

    def _decode(self, z: Tensor) -> Tensor:
        return self._blocks(lambda block: self.scaling_.inverse(self.gan_.generator(block)), z)

    def _check_latents(self, Z: Any) -> Tensor:
        latents = np.asarray(Z, dtype=np.float64)
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim_ or len(latents) == 0:
            raise InputError(
                f"Z must have shape (n, {self.latent_dim_}), one latent per row. Got {latents.shape} instead."
            )
        return torch.from_numpy(latents).to(next(self.gan_.parameters()))

    # ---------------------------------------------------------------- model file

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self.generator is not None:
            raise InputError(
                "A model with networks of your own cannot be saved, because a model file holds no code; keep "
                "the state_dict of its gan_ instead."
            )
        tensors = {f"gan.{name}": tensor for name, tensor in self.gan_.state_dict().items()}
        tensors |= {f"scaling.{name}": tensor for name, tensor in self.scaling_.state_dict().items()}
        tensors |= {f"mixture.{name}": tensor for name, tensor in self.mixture_.state_dict().items()}
        metadata = {
            "latent_dim": self.latent_dim_,
            "history": asdict(self.history_),
        }
        return metadata, tensors | {"typical": self.typical_}

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if self.device == "cuda":
            self.device = "auto"  # the machine that loads may have none
        self.latent_dim_ = int(metadata["latent_dim"])
        self.history_ = History(**metadata["history"])
        self.gan_ = self._build(None, n_centers=tensors["gan.variance.weight"].shape[1])
        # Shapes are compared with those of the architecture before anything is assigned.
        self.gan_.load_state_dict(_part(tensors, "gan."), assign=True)
        self._check_shapes(tensors)
        scaling = _part(tensors, "scaling.")
        self.scaling_ = AffineScaling(scaling["shift"], scaling["scale"], self.data_shape_)
        self._to_scoring_precision()
        self.typical_ = tensors["typical"].to(self._device())
        mixture = _part(tensors, "mixture.")
        with self._scoring():
            self.mixture_ = self._mixture(
                mixture["centers"].to(self._device()), mixture["codes"].to(self._device())
            )
        self.mixture_.load_state_dict(mixture)

    def _check_shapes(self, tensors: dict[str, Tensor]) -> None:
        """Compare the tensors outside the networks, which check their own, with the shape of the data."""
        n_features, n_components = math.prod(self.data_shape_), len(tensors["mixture.codes"])
        expected = {
            "scaling.shift": self.data_shape_ if len(self.data_shape_) == 1 else (),
            "scaling.scale": self.data_shape_ if len(self.data_shape_) == 1 else (),
            "typical": (n_features,),
            "mixture.centers": (n_components, n_features),
            "mixture.codes": (n_components, self.latent_dim_),
        }
        for name, shape in expected.items():
            if tensors[name].shape != shape:
                raise ValueError(f"tensor '{name}' has shape {tuple(tensors[name].shape)}, not {shape}")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
