"""What the compared systems share: networks that score a row by themselves, once they are trained."""

from abc import abstractmethod
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from invgan import networks
from invgan.estimators.base import Split
from invgan.estimators.neural import NeuralDetector
from invgan.training import Trainable


class Scorer(Trainable):
    """Networks that know what is learned and how a row is scored."""

    recordable = True

    @abstractmethod
    def score(self, rows: Tensor) -> Tensor:
        """Score scaled rows, shape (n,), higher for more normal ones; each by itself, in evaluation mode."""


@dataclass(eq=False, repr=False, kw_only=True)
class ScorerDetector(NeuralDetector):
    """Base of the estimators that are a :class:`Scorer` on scaled rows.

    A subclass implements :meth:`_networks`, and where there is something left to do after the training,
    :meth:`_finish`. Parameters are those of :class:`~invgan.InvGAN`; one with more has an ``__init__`` of its
    own.

    Attributes
    ----------
    latent_dim_ : int
        Dimension of the latent space.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralDetector._parameter_constraints,
        "latent_dim": [None, Interval(Integral, 1, None, closed="left")],
    }

    latent_dim: int | None = field(default=None, kw_only=False)
    model_: Scorer = field(init=False)
    latent_dim_: int = field(init=False)

    @abstractmethod
    def _networks(self) -> Scorer:
        """Construct the networks for ``data_shape_`` and ``latent_dim_``."""

    def _default_latent_dim(self) -> int:
        return networks.default_latent_dim(self.data_shape_)

    def _finish(self, training: Tensor) -> None:
        """Complete the trained model, at scoring precision, from the raw training rows."""

    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        training = rows[split.training]
        self._check_batch_size(len(training))
        self.latent_dim_ = int(self.latent_dim or self._default_latent_dim())
        self.scaling_ = self._scale(rows, split.training)
        self.model_ = self._build({}).to_empty(device="cpu")
        for buffer in self.model_.buffers():
            buffer.zero_()
        networks.initialize(self.model_, torch.Generator().manual_seed(seed))
        if self._is_convolutional():
            self.model_.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._train(rows, split, seed)
        with self._scoring():
            self._finish(training)

    def _score_rows(self, rows: Tensor) -> np.ndarray:
        with self._scoring():
            scores = self._blocks(lambda block: self.model_.score(self._prepare(block)), rows)
        return scores.double().cpu().numpy()

    # ---------------------------------------------------------------- model file

    def _build(self, tensors: dict[str, Tensor]) -> Scorer:
        with torch.device("meta"):
            return self._networks()

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        metadata, tensors = super()._state()
        return metadata | {"latent_dim": self.latent_dim_}, tensors

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.latent_dim_ = int(metadata["latent_dim"])
        super()._restore(metadata, tensors)


def at_least_single(output: Tensor) -> Tensor:
    """Return a network's output in the precision of losses and scores: autocast may have made it bfloat16."""
    return output.to(torch.promote_types(output.dtype, torch.float32))
