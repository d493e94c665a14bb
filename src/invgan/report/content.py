"""What a report shows, as plain data: whoever has scores can have a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from invgan.calibration import checked_vector, conformal_p_values, threshold_at_false_positive_rate
from invgan.report.reasons import Reason

LISTED_ROWS = 20_000
"""Rows that the ranking lists, the lowest scores first; a page of more would be too large to send around."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pictures:
    """Images with what they were expected to be.

    Attributes
    ----------
    images : numpy.ndarray, shape (k, C, H, W)
        uint8 or float in any range; NaN = missing.
    expected : numpy.ndarray, shape (k, C, H, W)
        The reconstructions, in the images' range.
    shares : numpy.ndarray, shape (k, C, H, W)
        Each value's share of the deficit in nats.
    """

    images: np.ndarray
    expected: np.ndarray
    shares: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentMap:
    """Latents in the plane of their two widest directions.

    Attributes
    ----------
    training : numpy.ndarray, shape (t, 2)
        Of rows that the model was fitted on.
    rows : numpy.ndarray of int, shape (r,)
        Which of the report's rows are shown.
    points : numpy.ndarray, shape (r, 2)
        Theirs.
    variance : float
        The share of the training latents' variance that the plane holds.
    """

    training: np.ndarray
    rows: np.ndarray
    points: np.ndarray
    variance: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportContent:
    """Everything that a report says about n rows.

    p-values, the threshold and the flagged rows follow from the calibration scores, in the page for any
    other false-positive rate too.

    Attributes
    ----------
    title : str
        The heading of the page.
    scores : numpy.ndarray of float, shape (n,)
        In nats, higher = more normal; may be infinite, not NaN.
    calibration_scores : numpy.ndarray of float, shape (m,)
        Scores of held-out normal rows.
    false_positive_rate : float in [0, 1)
        Share of normal rows that may be flagged, to begin with.
    facts : sequence of (str, value)
        Named facts for the summary, in order.
    score_name : str
        What the scores are; by default log p(x).
    labels : numpy.ndarray of int, shape (n,), optional
        The truth where it is known: 1 = anomaly, 0 = normal.
    row_names : sequence of str, length n, optional
        By default the rows are numbered from 1.
    reasons : sequence of sequences of Reason
        Of the rows with the lowest scores, in the order of :attr:`order`: why they are unusual.
    pictures : Pictures, optional
        Of the rows with the lowest scores, in the same order.
    latent_map : LatentMap, optional
    comparison : mapping of str to mapping of str to float, optional
        Name of a score → its ``"auroc"``, ``"ap"``, ``"precision"``, ``"recall"`` or ``"f1"``, in order.
    history : mapping, optional
        The fields of `invgan.training.History`: ``steps``, ``losses`` by name, ``validation_steps``,
        ``validation_scores``, ``best_step``.
    model_card : mapping of str to (value or mapping of str to value)
        Groups of named values: data, settings, seed, versions.

    Raises
    ------
    ValueError
        A field does not fit the others.

    Examples
    --------
    >>> content = ReportContent(
    ...     title="Two rows",
    ...     scores=np.array([-1.0, -41.0]),
    ...     calibration_scores=np.array([-3.0, -2.0, -1.5, 0.0]),
    ...     false_positive_rate=0.2,
    ... )
    >>> content.threshold, content.is_anomaly.tolist(), content.p_values.tolist()
    (-3.0, [False, True], [0.8, 0.2])
    """

    title: str
    scores: np.ndarray
    calibration_scores: np.ndarray
    false_positive_rate: float
    facts: Sequence[tuple[str, Any]] = ()
    score_name: str = "log p(x)"
    labels: np.ndarray | None = None
    row_names: Sequence[str] | None = None
    reasons: Sequence[Sequence[Reason]] = ()
    pictures: Pictures | None = None
    latent_map: LatentMap | None = None
    comparison: Mapping[str, Mapping[str, float]] | None = None
    history: Mapping[str, Any] | None = None
    model_card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("scores", "calibration_scores"):
            checked_vector(getattr(self, name), name=name, owner="ReportContent")
        n_rows = len(self.scores)
        for name in ("labels", "row_names"):
            values = getattr(self, name)
            if values is not None and len(values) != n_rows:
                self._fail(name, f"have one value per row ({n_rows})", len(values))
        if not 0 <= self.false_positive_rate < 1:
            self._fail("false_positive_rate", "be a float in the range [0.0, 1.0)", self.false_positive_rate)
        if self.labels is not None and not np.isin(self.labels, [0, 1]).all():
            self._fail("labels", "hold 0 (normal) and 1 (anomaly) only", np.unique(self.labels)[:5].tolist())
        if len(self.reasons) > len(self.order):
            self._fail("reasons", f"be of {len(self.order)} rows at most", len(self.reasons))
        if self.pictures is not None:
            shape = np.shape(self.pictures.images)
            if len(shape) != 4 or 0 in shape or shape[0] > len(self.order):
                self._fail("pictures", f"have 1 to {len(self.order)} images (k, C, H, W)", f"shape {shape}")
            for name in ("expected", "shares"):
                if np.shape(getattr(self.pictures, name)) != shape:
                    found = f"shape {np.shape(getattr(self.pictures, name))}"
                    self._fail("pictures", f"have {name} of the images' shape {shape}", found)

    def _fail(self, name: str, requirement: str, found: object) -> None:
        """Raise in scikit-learn's wording."""
        raise ValueError(f"The '{name}' parameter of ReportContent must {requirement}. Got {found} instead.")

    @cached_property
    def p_values(self) -> np.ndarray:
        """Conformal p-values, shape (n,)."""
        return conformal_p_values(self.scores, self.calibration_scores)

    @cached_property
    def below(self) -> np.ndarray:
        """How many calibration scores are at or below each row's, shape (n,): p = (1 + below) / (m + 1)."""
        return np.rint(self.p_values * (len(self.calibration_scores) + 1)).astype(np.int64) - 1

    @cached_property
    def threshold(self) -> float:
        """The score below which rows are flagged, in nats; −∞ flags none."""
        return threshold_at_false_positive_rate(self.calibration_scores, self.false_positive_rate)

    @property
    def is_anomaly(self) -> np.ndarray:
        """True for a flagged row, shape (n,)."""
        return np.asarray(self.scores < self.threshold)

    @cached_property
    def order(self) -> np.ndarray:
        """The rows that are listed, the lowest score first, tied rows as they come."""
        return np.argsort(self.scores, kind="stable")[:LISTED_ROWS]

    @property
    def has_both_classes(self) -> bool:
        """Whether known anomalies can be compared with known normal rows."""
        return self.labels is not None and np.unique(self.labels).size == 2

    def name(self, row: int) -> str:
        """What a row is called."""
        if self.row_names is None:
            return f"row {row + 1}"
        # File names may hold bytes that are no characters; they must not keep the report from being written.
        return self.row_names[row].encode("utf-8", errors="backslashreplace").decode()
