"""What every detector shares: checked input, held-out calibration, decisions, and the model file."""

import copy
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import polars as pl
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from invgan import artifact
from invgan.calibration import conformal_p_values, threshold_at_false_positive_rate
from invgan.data import Columns, mixed_frame, plain_frame
from invgan.data.columns import wanted
from invgan.errors import InputError
from invgan.estimators.completion import completed
from invgan.preprocess import AffineScaling, UnskewedScaling
from invgan.training import plain_torch

LARGEST_VALUE = 1e18
"""Values beyond this, squared, leave no digits for anything else."""
MIN_ROWS = 10
MIN_ROWS_TO_TRIM = 40
"""Rows of which each half still leaves enough to learn from."""
INFINITE = "inf"
"""Stands in a model file for a parameter that is infinite, which JSON has no number for."""
EXTREMES_BLOCK = 1024
"""Images whose extremes are looked for at once."""


@dataclass(frozen=True)
class Split:
    """Which rows a fit learns from, stops on, and is calibrated with; the three are disjoint."""

    training: np.ndarray
    validation: np.ndarray
    calibration: np.ndarray
    most: ClassVar[int] = 5000
    """Rows that are held out for validation, and for calibration."""

    @classmethod
    def draw(cls, n_rows: int, seed: int) -> "Split":
        """Hold out a tenth for validation and a tenth for calibration.

        The calibration part grows to 19 rows, the fewest with which a p-value can reach 0.05, as long as it
        stays within a third of all rows.
        """
        order = np.random.default_rng([seed, 0]).permutation(n_rows)
        n_calibration = min(max(round(0.1 * n_rows), min(19, n_rows // 3)), cls.most)
        n_validation = min(max(round(0.1 * n_rows), 1), cls.most)
        return cls(
            training=np.sort(order[n_calibration + n_validation :]),
            validation=np.sort(order[n_calibration : n_calibration + n_validation]),
            calibration=np.sort(order[:n_calibration]),
        )

    @property
    def learned(self) -> np.ndarray:
        """The rows that a model may know: those of training and validation."""
        return np.concatenate([self.training, self.validation])

    def halves(self, seed: int) -> tuple["Split", "Split"]:
        """Deal the rows of each part to two splits."""
        draws = np.random.default_rng([seed, 2])
        parts = [draws.permutation(part) for part in (self.training, self.validation, self.calibration)]
        first, second = (Split(*(np.sort(part[i::2]) for part in parts)) for i in (0, 1))
        return first, second

    def where(self, kept: np.ndarray) -> "Split":
        """Keep the rows that are marked."""
        return Split(
            self.training[kept[self.training]],
            self.validation[kept[self.validation]],
            self.calibration[kept[self.calibration]],
        )


@dataclass(eq=False, repr=False, kw_only=True)
class AnomalyDetector(OutlierMixin, BaseEstimator, ABC):
    r"""Base of all detectors: a subclass learns a score, the rest follows from it.

    A subclass implements :meth:`_fit_rows` and :meth:`_score_rows`, and for the model file :meth:`_state` and
    :meth:`_restore`.

    Parameters
    ----------
    false_positive_rate : float in [0, 1)
        Share of normal rows that ``predict`` may flag; ``set_threshold`` changes it after fitting.
    trim : float in [0, 0.5)
        Share of the rows that are presumed anomalous: so many are found in a first pass and left out. Those
        of a table are found by an isolation forest, since anomalies that are alike would hide each other from
        a density. Of images each half is scored by a model fitted to the other half. Calibration rows that
        score below all other rows that are kept are left out as well. If all that stay are normal, a new
        normal row has

        .. math:: P(p \le \alpha) \le \alpha + (1 - \alpha) q

        where q is the probability that it would have been left out itself: 0 if only anomalies are, and
        about the whole share if there are none.
    random_state : int, RandomState or None
        An integer makes the fit reproducible.

    Attributes
    ----------
    scaling_ : AffineScaling
        From the data's units to the model's.
    offset_ : float
        Scores below it are anomalies; it can be moved by :meth:`set_threshold`.
    calibration_scores_ : ndarray
        Scores of normal rows that had no part in the fit, or whose part is taken back.
    trimmed_ : ndarray of int
        The rows of X that were left out as presumed anomalies; a loaded model has none.
    columns_ : Columns, or None
        What the columns of the table hold, where not all are numbers: a table to score is encoded alike. For
        a file's, whoever read it sets this; it is saved as well.
    image_size_ : int, or None
        Height and width that images to score are to be resized to, if those of the fit were. Whoever read
        these sets it; it is saved as well.
    """

    _registry: ClassVar[dict[str, type["AnomalyDetector"]]] = {}
    _marginalises: ClassVar[bool] = False
    """Whether missing values may be scored, as NaN, and in tables fitted."""
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "false_positive_rate": [Interval(Real, 0, 1, closed="left")],
        "trim": [Interval(Real, 0, 0.5, closed="left")],
        "random_state": ["random_state"],
    }

    false_positive_rate: float = 0.05
    trim: float = 0.0
    random_state: Any = None
    scaling_: AffineScaling = field(init=False)
    columns_: Columns | None = field(init=False)
    image_size_: int | None = field(init=False)
    offset_: float = field(init=False)
    _fitted_parameters: dict[str, Any] = field(init=False)
    """What the model was fitted and calibrated with: parameters set later wait for the next fit."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        AnomalyDetector._registry[cls.__name__] = cls

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    @abstractmethod
    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        """Learn from raw rows, shape (n, \\*data_shape): those of calibration only so far as
        :meth:`_score_calibration` can take each one's part back."""

    @abstractmethod
    def _score_rows(self, rows: Tensor) -> np.ndarray:
        """Score raw rows, shape (n,), higher for more normal ones; each by itself alone."""

    def _score_calibration(self, rows: Tensor) -> np.ndarray:
        """Score the raw calibration rows as if each were new."""
        return self._score_rows(rows)

    def _fit_typical(self, rows: Tensor, filled: Tensor, split: Split) -> None:
        """Learn from raw rows, with gaps or with these filled, what :meth:`typical_of_missing` is to say."""

    def _typical_of_missing(self, rows: Tensor) -> np.ndarray:
        """What :meth:`typical_of_missing` says of raw rows."""
        return np.zeros(len(rows))

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what a fitted model is made of: plain JSON values, and tensors."""

    @abstractmethod
    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Rebuild the fitted model from what :meth:`_state` returned."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what normal rows look like.

        Parameters
        ----------
        X : array or table of shape (n, D), or images of shape (n, C, H, W)
            Normal rows; tables (NumPy, pandas, polars), images as integers or floats. Images in bytes may
            be a memory map (``np.load(path, mmap_mode="c")``), of which no copy is made. Text, categories
            and truth values of a pandas or polars table become numbers as in
            :class:`~invgan.data.Columns`, whose names are then in ``feature_names_in_``. Where the
            score is a likelihood that can marginalise, NaN stands for a value that is not known: to
            learn from the row it is taken from a training row of which the same is expected there, to score
            the row it is left out.
        y : ignored
            For scikit-learn's conventions.

        Returns
        -------
        self
        """
        with plain_torch():
            return self._fit(X)

    def _fit(self, X: Any) -> Self:
        self._validate_params()
        if hasattr(self, "offset_"):
            del self.offset_  # not fitted, until this fit is done
        self._fitted_parameters = self.get_params(deep=False)
        self.columns_ = self.image_size_ = None
        rows = self._check_rows(X, fitting=True, missing=self._marginalises)
        self._refuse_empty_columns(rows)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        split = Split.draw(len(rows), seed)
        kept = self._presumed_normal(rows, split, seed)
        self.trimmed_, split = np.flatnonzero(~kept), split.where(kept)
        filled = completed(rows, split.training, seed)
        self._fit_rows(filled, split, seed)
        self._fit_typical(rows, filled, split)
        calibration = rows[split.calibration]
        self.calibration_scores_ = self._score_calibration(calibration) + self._typical_of_missing(
            calibration
        )
        return self.set_threshold(self.false_positive_rate)

    def _presumed_normal(self, rows: Tensor, split: Split, seed: int) -> np.ndarray:
        """Mark the rows that do not look anomalous at first sight."""
        kept = np.ones(len(rows), dtype=bool)
        n_trimmed = int(self.trim * len(split.learned))
        if not n_trimmed:
            return kept
        if len(rows) < MIN_ROWS_TO_TRIM:
            raise InputError(
                f"With trim={self.trim:g} a fit needs at least {MIN_ROWS_TO_TRIM} rows, got {len(rows)}; "
                "add rows, or set trim=0."
            )
        if rows.ndim == 2:
            filled = completed(rows, split.training, seed)
            # The forest rounds to single precision: of a time stamp, to two minutes.
            values = AffineScaling.standardize(filled[split.learned])(filled).numpy()
            scores = IsolationForest(random_state=seed).fit(values).score_samples(values)
        else:
            scores = self._scores_by_halves(rows, split, seed)
        kept = scores >= np.sort(scores[split.learned])[n_trimmed]
        for part in (split.training, split.validation, split.calibration):
            kept[part[scores[part].argmax()]] = True  # a part of a few rows may have none otherwise
        return kept

    def _scores_by_halves(self, rows: Tensor, split: Split, seed: int) -> np.ndarray:
        """Score rows by models fitted to the other half of them: a row's own part in one would hide it."""
        scores, halves = np.empty(len(rows)), split.halves(seed)
        for half, other in (halves, halves[::-1]):
            model = self._copy_for_trimming()
            model._fit_rows(rows, replace(half, calibration=half.calibration[:0]), seed)
            unseen = np.concatenate([other.learned, other.calibration])
            scores[unseen] = model._score_rows(rows[unseen])
        return scores

    def _copy_for_trimming(self) -> Self:
        """Return an estimator of the same parameters, whose fit leaves nothing behind."""
        return copy.copy(self)

    def set_threshold(self, false_positive_rate: float) -> Self:
        """Choose the share of normal rows that may be flagged, without fitting again.

        Parameters
        ----------
        false_positive_rate : float in [0, 1)
            A new normal row is flagged with at most this probability. If the calibration rows are too few to
            promise it (fewer than 1 / rate − 1), nothing is flagged.

        Returns
        -------
        self
        """
        check_is_fitted(self, "calibration_scores_")
        self.offset_ = threshold_at_false_positive_rate(self.calibration_scores_, false_positive_rate)
        self.false_positive_rate_ = float(false_positive_rate)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return the score of each row, shape (n,), higher for more normal rows: a function of it alone."""
        check_is_fitted(self)
        return self._score_rows(self._check_rows(X, fitting=False, missing=self._marginalises))

    def typical_of_missing(self, X: Any) -> np.ndarray:
        """Return the nats that a row's missing values have in a typical row, shape (n,).

        A density of fewer features has another unit, and cannot be compared with one of all. Added to the
        score this makes rows with other gaps, or none, comparable: p-values and decisions are by the sum.
        """
        check_is_fitted(self)
        return self._typical_of_missing(self._check_rows(X, fitting=False, missing=self._marginalises))

    def _comparable_scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        rows = self._check_rows(X, fitting=False, missing=self._marginalises)
        return self._score_rows(rows) + self._typical_of_missing(rows)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return ``score_samples(X) - offset_``, shape (n,): negative for anomalies.

        With :meth:`typical_of_missing` added for rows with gaps. Where ``offset_`` is −inf, an increasing
        function of the score that is positive throughout.
        """
        scores = self._comparable_scores(X)
        if math.isfinite(self.offset_):
            return scores - self.offset_
        # With too few calibration rows nothing is flagged: all values are positive, in the scores' order.
        return np.where(scores < 0, 1 / (1 - np.minimum(scores, 0)), 1 + scores)

    def predict(self, X: Any) -> np.ndarray:
        """Return +1 for normal rows and -1 for anomalies, shape (n,)."""
        return np.where(self._comparable_scores(X) < self.offset_, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        r"""Return conformal p-values, shape (n,): small for anomalies.

        .. math:: p(x) = \frac{1 + \#\{j : s_j \le s(x)\}}{m + 1}

        with the scores :math:`s_j` of the m calibration rows. A new normal row has
        :math:`P(p \le \alpha) \le \alpha` for every :math:`\alpha`, if its values are missing as theirs
        are; other gaps are made up for by :meth:`typical_of_missing`, which is no guarantee.
        """
        return conformal_p_values(self._comparable_scores(X), self.calibration_scores_)

    def save(self, path: str | Path) -> None:
        """Write the fitted model to a folder of safetensors and JSON, atomically.

        Parameters
        ----------
        path : path
            A new folder, or one that holds a model, which is replaced.
        """
        check_is_fitted(self)
        metadata, tensors = self._state()
        fitted = {
            "detector": type(self).__name__,
            "parameters": self._plain_parameters(),
            "data_shape": list(self.data_shape_),
            "feature_names": [str(name) for name in getattr(self, "feature_names_in_", [])] or None,
            "false_positive_rate": self.false_positive_rate_,
            "columns": None if self.columns_ is None else self.columns_.to_json(),
            "image_size": self.image_size_,
        }
        calibration = {"calibration_scores": torch.from_numpy(self.calibration_scores_)}
        artifact.write(
            path, kind="model", metadata=fitted | {"model": metadata}, tensors=tensors | calibration
        )

    def _scale(self, rows: Tensor, which: np.ndarray) -> AffineScaling:
        """Choose the networks' units by the raw rows numbered ``which``."""
        if len(self.data_shape_) == 1:
            return AffineScaling.standardize(rows[which])
        # Of more images than memory holds, the extremes of each block's pixels stand for them.
        blocks = np.array_split(which, math.ceil(len(which) / EXTREMES_BLOCK))
        extremes = [extreme for block in blocks for extreme in rows[block].aminmax(dim=0)]
        return AffineScaling.to_unit_range(torch.stack(extremes))

    def _restore_scaling(self, tensors: dict[str, Tensor]) -> None:
        """Rebuild the scaling from a model file's tensors "scaling.*"."""
        shape = self.data_shape_ if len(self.data_shape_) == 1 else ()
        scaling = part_of(tensors, "scaling.")
        check_shapes(scaling, dict.fromkeys(scaling.keys() | {"shift", "scale"}, shape))
        kind = UnskewedScaling if "width" in scaling else AffineScaling
        self.scaling_ = kind(**scaling, data_shape=self.data_shape_)

    def _plain_parameters(self) -> dict[str, Any]:
        """Parameters that JSON can hold; a random generator or a module is not needed to score."""
        values = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self._fitted_parameters.items()
        }
        return {
            name: INFINITE if value == math.inf else value
            for name, value in values.items()
            if isinstance(value, bool | int | float | str | None)
        }

    def _check_rows(self, X: Any, *, fitting: bool, missing: bool = False) -> Tensor:
        """Turn X into a tensor of raw rows; with ``missing``, NaN may stand for a value that is not known."""
        X = _unmasked(X)
        if not fitting:
            self._check_images(X)
        checked = validate_data(
            self,
            self._encoded(X, fitting=fitting),
            reset=fitting,
            dtype="numeric",
            allow_nd=True,
            ensure_all_finite=False,  # checked below, by row and column
            ensure_min_samples=MIN_ROWS if fitting else 1,
        )
        shape = checked.shape[1:]
        if len(shape) not in (1, 3):
            raise InputError(
                f"Expected a table of shape (n, D) or images of shape (n, C, H, W), got an array of shape "
                f"{checked.shape}."
            )
        if len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
            raise InputError(
                f"X has images of shape {shape}, which looks like (H, W, C), expected (C, H, W); pass "
                "X.transpose(0, 3, 1, 2)."
            )
        if 0 in shape:
            raise InputError(
                f"Found array with rows of shape {shape} while a minimum of 1 value is required."
            )
        if fitting:
            self.data_shape_ = tuple(shape)
        elif shape != self.data_shape_:
            raise InputError(self._of_other_shape(shape))
        # Tables are scored in double precision; 8-bit images stay as they are until a batch is drawn.
        if len(shape) == 1 or checked.dtype not in (np.uint8, np.float32):
            checked = checked.astype(np.float64, copy=False)
        if checked.dtype.kind == "f":
            # Nobody fills gaps in images, which to learn from a row somebody would have to.
            self._check_values(checked, missing=missing and (not fitting or len(shape) == 1))
        return torch.from_numpy(np.require(checked, requirements=["C", "W"]))

    def _check_images(self, X: Any) -> None:
        """Refuse images of another shape, or for rows of a table: scikit-learn would count their channels."""
        shape = tuple(getattr(X, "shape", ()))[1:]
        if shape and shape != self.data_shape_ and 3 in (len(shape), len(self.data_shape_)):
            raise InputError(self._of_other_shape(shape))

    def _of_other_shape(self, shape: tuple[int, ...]) -> str:
        name = type(self).__name__
        return f"X has rows of shape {tuple(shape)}, but {name} is expecting {self.data_shape_} as in fit."

    def _encoded(self, X: Any, *, fitting: bool) -> Any:
        """Turn the text, categories and truth values of a table into numbers; leave all else as it is."""
        if fitting:
            frame = mixed_frame(X)
            if frame is None:
                return X
            self.columns_ = Columns.infer(frame, "X")
        elif self.columns_ is None:
            frame = mixed_frame(X)
            if frame is None:
                return X
            columns = Columns.of_numbers(frame.columns)  # names the cell that is none
            return pl.DataFrame(columns.encode(frame, _refuse_cell), schema=columns.features)
        else:
            frame = mixed_frame(X)
            # Numbers alone may be what a table was encoded to, or a table whose text is all missing.
            if frame is None and {*map(str, getattr(X, "columns", []))} != {*self.columns_.features}:
                frame = plain_frame(X)
            if frame is None:
                return X
            owner = type(self).__name__
            for column in self.columns_.columns:
                if column.is_used and column.name not in frame.columns:
                    raise InputError(f"X has no column {column.name!r}, which {owner} was fitted on; add it.")
            for name in frame.columns:
                if name not in self.columns_.names:
                    raise InputError(f"X has the column {name!r}, which {owner} was not fitted on; drop it.")
        return pl.DataFrame(self.columns_.encode(frame, _refuse_cell), schema=self.columns_.features)

    def _refuse_empty_columns(self, rows: Tensor) -> None:
        if not rows.is_floating_point() or rows.ndim != 2:
            return
        empty = rows.isnan().all(0)
        if empty.any():
            column = int(empty.int().argmax())
            names = getattr(self, "feature_names_in_", None)
            where = column if names is None else repr(str(names[column]))
            raise InputError(
                f"X has no value in column {where} of the rows to learn from; leave the column out."
            )

    def _check_values(self, rows: np.ndarray, *, missing: bool) -> None:
        usable = np.abs(rows) <= LARGEST_VALUE  # False for NaN
        if missing:
            usable |= np.isnan(rows)
        if usable.all():
            return
        row, *position = np.argwhere(~usable)[0].tolist()
        value = rows[(row, *position)]
        names = getattr(self, "feature_names_in_", None)
        if len(position) > 1:
            where = f"row {row}, channel {position[0]}, pixel ({position[1]}, {position[2]})"
        else:
            where = f"row {row}, column {position[0] if names is None else repr(str(names[position[0]]))}"
        if np.isnan(value):
            raise InputError(f"X has NaN in {where}: fill in missing values or leave the row out.")
        if np.isinf(value):
            raise InputError(f"X has the value {value} in {where}: replace infinities or leave the row out.")
        raise InputError(
            f"X has the value {value:g} in {where}; values beyond {LARGEST_VALUE:g} cannot be "
            "squared with any precision left: rescale them."
        )


def _unmasked(X: Any) -> Any:
    """Put NaN under the mask of a masked array, where any number may stand; refuse times."""
    if isinstance(X, np.ma.MaskedArray):
        return np.ma.filled(X.astype(np.float64), np.nan) if np.ma.is_masked(X) else X.data
    if isinstance(X, np.ndarray) and X.dtype.kind in "mM":
        raise InputError(f"X holds {X.dtype}, which has no density; turn it into numbers.")
    return X


def _refuse_cell(row: int, name: str, found: object, value: float) -> NoReturn:
    raise InputError(f"X has {found!r} in row {row}, column {name!r}: expected {wanted(value)}.")


def in_blocks(function: Callable[..., Tensor], *rows: Tensor, size: int) -> Tensor:
    """Apply a function to aligned tensors in blocks of one fixed size, the last one filled up.

    Matrix products round differently at different sizes: only so is a row's score the same, bit for bit,
    alone and in any company.
    """
    n_rows = len(rows[0])

    def apply(start: int) -> Tensor:
        number = min(size, n_rows - start)
        blocks = [tensor[start : start + number] for tensor in rows]
        filled = [torch.cat([b, b[-1:].expand(size - number, *b.shape[1:])]) for b in blocks]
        return function(*filled)[:number]

    first = apply(0)
    # Results kept one by one would lie among what the function has freed, and keep others from the room.
    results = first.new_empty(n_rows, *first.shape[1:])
    results[:size] = first
    for start in range(size, n_rows, size):
        results[start : start + size] = apply(start)
    return results


def load(path: str | Path) -> AnomalyDetector:
    """Load a saved model; nothing in the file is executed.

    Parameters
    ----------
    path : path
        A folder that :meth:`AnomalyDetector.save` wrote, on any machine.

    Returns
    -------
    AnomalyDetector
        Its scores are the saved model's, bit for bit on the same hardware.

    Raises
    ------
    InputError
        If the folder is missing, truncated, altered, or of a newer version.
    """
    saved = artifact.read(path, kind="model")
    metadata, tensors = saved.metadata, dict(saved.tensors)
    try:
        parameters = {
            name: math.inf if value == INFINITE else value for name, value in metadata["parameters"].items()
        }
        if metadata["detector"] not in AnomalyDetector._registry:
            # Its models enlist themselves; it stands above this module, and no other detector needs it.
            importlib.import_module("invgan.density")
        detector = AnomalyDetector._registry[metadata["detector"]](**parameters)
        detector._validate_params()
        detector._fitted_parameters = detector.get_params(deep=False)
        detector.data_shape_ = tuple(int(side) for side in metadata["data_shape"])
        detector.n_features_in_ = detector.data_shape_[0]
        names = metadata["feature_names"]
        if names is not None:
            if len(names) != detector.n_features_in_ or not all(isinstance(name, str) for name in names):
                raise ValueError(f"it has {detector.n_features_in_} columns, but not as many names")
            detector.feature_names_in_ = np.array(names, dtype=object)
        columns = metadata.get("columns")  # models of before have none
        detector.columns_ = None if columns is None else Columns.from_json(columns)
        if detector.columns_ is not None and len(detector.columns_.features) != detector.n_features_in_:
            raise ValueError(f"its columns make {len(detector.columns_.features)} numbers of a row")
        size = detector.image_size_ = metadata.get("image_size")
        if size is not None and detector.data_shape_[1:] != (size, size):
            raise ValueError(f"its images are resized to {size}×{size}, which is not their shape")
        detector.calibration_scores_ = tensors.pop("calibration_scores").numpy()
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ValueError(f"tensor '{name}' has values that are not finite")
        detector._restore(metadata["model"], tensors)
        return detector.set_threshold(metadata["false_positive_rate"])
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: this model file does not describe a model that fits it ({reason}). It may be another "
            "version's: fit the model again, and save it."
        ) from error


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, and take it off."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_shapes(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Compare a model file's tensors outside the networks, which check their own, with what must be."""
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f"tensor '{name}' has shape {tuple(tensors[name].shape)}, not {shape}")
