"""What a report shows, as plain data: whoever has scores can have a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from invgan.calibration import checked_vector


@dataclass(frozen=True, eq=False, kw_only=True)
class ReportContent:
    """Everything that a report says about n rows.

    Attributes
    ----------
    title : str
        The heading of the page.
    rows : numpy.ndarray, shape (n, C, H, W) or (n, D)
        Images, uint8 or float in any range, or a table of numbers or text; NaN = missing.
    scores : numpy.ndarray of float, shape (n,)
        log p(x) in nats, higher = more normal; may be infinite, not NaN.
    p_values : numpy.ndarray of float, shape (n,)
    is_anomaly : numpy.ndarray of bool, shape (n,)
        The decisions: True for a flagged row.
    threshold : float
        The score below which rows are flagged, in nats; −∞ flags none.
    facts : sequence of (str, value)
        Named facts for the summary, in order.
    labels : numpy.ndarray of int, shape (n,), optional
        The truth where it is known: 1 = anomaly, 0 = normal.
    feature_names : sequence of str, length D, optional
        Names of a table's columns; by default x0, x1, …
    row_names : sequence of str, length n, optional
        By default the rows are numbered from 0.
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
    >>> ReportContent(
    ...     title="Two rows",
    ...     rows=np.array([[0.0], [9.0]]),
    ...     scores=np.array([-1.0, -41.0]),
    ...     p_values=np.array([0.5, 0.01, 0.2]),
    ...     is_anomaly=np.array([False, True]),
    ...     threshold=-3.0,
    ... )
    Traceback (most recent call last):
    ...
    ValueError: The 'p_values' parameter of ReportContent must have one value per row (2). Got 3 instead.
    """

    title: str
    rows: np.ndarray
    scores: np.ndarray
    p_values: np.ndarray
    is_anomaly: np.ndarray
    threshold: float
    facts: Sequence[tuple[str, Any]] = ()
    labels: np.ndarray | None = None
    feature_names: Sequence[str] | None = None
    row_names: Sequence[str] | None = None
    comparison: Mapping[str, Mapping[str, float]] | None = None
    history: Mapping[str, Any] | None = None
    model_card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.rows)
        if len(shape) not in (2, 4) or 0 in shape:
            self._fail("rows", "be a non-empty table (n, D) or images (n, C, H, W)", f"shape {shape}")
        for name in ("scores", "p_values", "is_anomaly", "labels", "row_names"):
            values = getattr(self, name)
            if values is not None and len(values) != shape[0]:
                self._fail(name, f"have one value per row ({shape[0]})", len(values))
        for name in ("scores", "p_values"):
            checked_vector(getattr(self, name), name=name, owner="ReportContent")
        if np.asarray(self.is_anomaly).dtype != np.bool_:
            self._fail("is_anomaly", "be an array of bool", f"dtype {np.asarray(self.is_anomaly).dtype}")
        if np.isnan(self.threshold):
            self._fail("threshold", "be a float other than NaN", self.threshold)
        if self.labels is not None and not np.isin(self.labels, [0, 1]).all():
            self._fail("labels", "hold 0 (normal) and 1 (anomaly) only", np.unique(self.labels)[:5].tolist())
        if self.feature_names is not None and len(self.feature_names) != shape[1]:
            self._fail("feature_names", f"have one name per column ({shape[1]})", len(self.feature_names))

    def _fail(self, name: str, requirement: str, found: object) -> None:
        """Raise in scikit-learn's wording."""
        raise ValueError(f"The '{name}' parameter of ReportContent must {requirement}. Got {found} instead.")

    @property
    def has_images(self) -> bool:
        """Whether the rows are images."""
        return self.rows.ndim == 4

    @property
    def has_both_classes(self) -> bool:
        """Whether known anomalies can be compared with known normal rows."""
        return self.labels is not None and np.unique(self.labels).size == 2
