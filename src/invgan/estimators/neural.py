"""What detectors made of networks share: scaling, training, scoring in blocks, and the model file."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from invgan.errors import InputError
from invgan.estimators.base import AnomalyDetector, Split, in_blocks, part_of
from invgan.training import (
    Checkpointing,
    History,
    Machine,
    Schedule,
    Trainable,
    convolution_precision,
    n_parameters,
    progress_bar,
    repeatable,
    single_precision,
    threads_for,
    train,
)

LEARNING_RATE = 1e-3
MOST_VALIDATIONS = 100
"""In a long training: more often, they would take more of its time than they tell."""
SCORED_AT_ONCE = 256
"""Rows that an accelerator scores at once: fewer leave it waiting for the next."""


@dataclass(eq=False, repr=False, kw_only=True)
class NeuralDetector(AnomalyDetector):
    """Base of the estimators that train networks on scaled rows.

    A subclass implements ``_build``, and ``_fit_rows``, which sets :attr:`scaling_` and :attr:`model_`, gives
    the networks their initial weights and calls :meth:`_train`. In the model file go the model's and the
    scaling's tensors and the history; a subclass with more than those extends ``_state`` and ``_restore``.

    Attributes
    ----------
    model_ : Trainable
        The networks, with the averaged weights that are scored.
    history_ : History
        Losses and validation scores of the training.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **AnomalyDetector._parameter_constraints,
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
    _scoring_parameters: ClassVar[tuple[str, ...]] = ("false_positive_rate",)
    """Parameters that training does not depend on: a checkpoint is continued whatever they are."""

    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float = LEARNING_RATE
    patience: int | None = None
    device: str = "auto"
    processes: int = 1
    precision: str = "auto"
    checkpoint: str | Path | None = None
    checkpoint_every: int = 500
    verbose: bool = False
    model_: Trainable = field(init=False)
    history_: History = field(init=False)

    @abstractmethod
    def _build(self, tensors: dict[str, Tensor]) -> Trainable:
        """Construct the networks that a model file's tensors, "model.*", are the weights of; none is read."""

    # ---------------------------------------------------------------- fitting

    def _copy_for_trimming(self) -> Self:
        model = super()._copy_for_trimming()
        model.checkpoint = None  # there is one, for the fit that follows
        return model

    def _check_batch_size(self, n_training: int) -> None:
        if self.batch_size is not None and self.batch_size > n_training:
            raise InputError(
                f"The 'batch_size' parameter of {type(self).__name__} must be at most the number of training "
                f"rows, {n_training} after holding out rows for validation and calibration. "
                f"Got {self.batch_size} instead."
            )

    def _train(self, rows: Tensor, split: Split, seed: int) -> None:
        """Train the model on the split's rows and bring it to scoring precision."""
        schedule = self._schedule(len(split.training))
        with progress_bar("training", schedule.max_steps, enabled=self.verbose) as on_log:
            self.history_ = train(
                self.model_,
                rows,
                rows[split.validation],
                numbers=split.training,
                prepare=self.scaling_,
                schedule=schedule,
                seed=seed,
                machine=Machine(self._device().type, self.processes, self._choose_precision()),
                checkpointing=self._checkpointing(rows, seed),
                on_log=on_log,
            )
        self._to_scoring_precision()

    def _schedule(self, n_training: int) -> Schedule:
        shared = min(self._default_batch_size(), n_training) // self.processes * self.processes
        batch_size = self.batch_size or shared
        max_steps = self.max_steps or self._default_max_steps(n_training, batch_size)
        return Schedule(
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=self.learning_rate or self._default_learning_rate(),
            validate_every=max(Schedule.validate_every, max_steps // MOST_VALIDATIONS),
            patience=self.patience,
        )

    def _default_batch_size(self) -> int:
        return 128

    def _default_max_steps(self, n_training: int, batch_size: int) -> int:
        return 4000 if self._is_convolutional() else 1500

    def _default_learning_rate(self) -> float:
        return LEARNING_RATE

    def _is_convolutional(self) -> bool:
        return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in self.model_.modules())

    def _choose_precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        return convolution_precision(self._device()) if self._is_convolutional() else "32-true"

    def _device(self) -> torch.device:
        """Where to train, as is asked for now."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device='cuda' was asked for, but PyTorch finds no CUDA device here.")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def _checkpointing(self, rows: Tensor, seed: int) -> Checkpointing | None:
        if self.checkpoint is None:
            return None
        irrelevant = ("checkpoint", "checkpoint_every", "verbose", *self._scoring_parameters)
        settings = {name: v for name, v in self._plain_parameters().items() if name not in irrelevant}
        settings |= {"seed": seed, "precision": self._choose_precision(), "networks": repr(self.model_)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(rows.numpy().data)
        for tensor in self.model_.state_dict().values():  # initial weights: yours, if the networks are
            digest.update(tensor.contiguous().numpy().tobytes())
        return Checkpointing(Path(self.checkpoint), self.checkpoint_every, digest.hexdigest())

    # ---------------------------------------------------------------- scoring

    def _to_scoring_precision(self) -> None:
        # Dense networks cost nothing in double precision; convolutions would cost ten times as much.
        convolutional = self._is_convolutional()
        self.model_.to(self._device(), torch.float32 if convolutional else torch.float64)
        if convolutional:  # a model file holds no memory format, on which rounding depends
            self.model_.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for layer in self.model_.modules():
            if isinstance(layer, nn.Linear) and layer.in_features % 2 and not layer.out_features % 2:
                # Gradients of odd length, where scores take any, would round by a row's place in its block;
                # with the weight transposed in memory they do not.
                layer.weight.data = layer.weight.data.mT.contiguous().mT
        self.model_.requires_grad_(False).eval()
        self.scaling_.to(self._device())

    @contextmanager
    def _scoring(self, size: int | None = None) -> Iterator[None]:
        """Score alike on any device; by how many parameters, if not the networks', decides on threads."""
        device = self._home()
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            repeatable(device),
            single_precision(device),
            threads_for(n_parameters(self.model_) if size is None else size, device),
        ):
            yield

    def _home(self) -> torch.device:
        """Where the fitted model is, whatever device was asked for since."""
        return next(self.model_.parameters()).device

    def _prepare(self, rows: Tensor) -> Tensor:
        """Scale rows for the networks, in the networks' precision and on their device."""
        scaled = self.scaling_(rows.to(self._home())).to(next(self.model_.parameters()).dtype)
        # Squares of larger values overflow in single precision, and scores would be NaN.
        return scaled.clamp(-1e9, 1e9) if scaled.dtype == torch.float32 else scaled

    def _blocks(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Apply a function to aligned tensors in blocks of the size that suits the networks."""
        on_cpu = 32 if self._is_convolutional() else 128
        return in_blocks(function, *rows, size=on_cpu if self._home().type == "cpu" else SCORED_AT_ONCE)

    # ---------------------------------------------------------------- model file

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model_.state_dict().items()}
        tensors |= {f"scaling.{name}": tensor for name, tensor in self.scaling_.state_dict().items()}
        return {"history": asdict(self.history_)}, tensors

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if self.device == "cuda":
            self.device = "auto"  # the machine that loads may have none
        self.history_ = History(**metadata["history"])
        # Shapes are compared with those of the architecture before anything is assigned.
        self.model_ = self._build(tensors)
        self.model_.load_state_dict(part_of(tensors, "model."), assign=True)
        self._restore_scaling(tensors)
        self._to_scoring_precision()
