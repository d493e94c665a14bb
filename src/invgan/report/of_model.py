"""What a report says of a fitted model, and of the rows it judged."""

import inspect
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl

from invgan.calibration import conformal_p_values
from invgan.data import Columns
from invgan.data.scores import Scores
from invgan.detectors import AnomalyDetector, InvGAN
from invgan.detectors.latent import RATIO
from invgan.report.content import LatentMap, Pictures, ReportContent
from invgan.report.reasons import Reason, reasons

EXPLAINED_ROWS = 100
"""The most anomalous rows of a table, whose reasons a report gives."""
PICTURED_ROWS = 80
"""The most anomalous images, which a report shows with their reconstructions and heat maps."""
MAPPED_ROWS = 1000
"""Rows, and training rows, that the map of the latent space shows beside the explained ones."""


def likelihood_of(detector: InvGAN) -> str:
    """Name the likelihood that a fitted detector's ``score_samples`` returns.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> [likelihood_of(InvGAN(preset=preset, max_steps=1).fit(X)) for preset in (None, "paper")]
    ['aggregate', 'riemannian']
    """
    return str(detector._choice("method"))


def judge(
    detector: AnomalyDetector, log_prob: np.ndarray, typical_of_missing: np.ndarray | float = 0.0
) -> Scores:
    """Turn log-likelihoods into p-values and decisions, without scoring the rows again.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    log_prob : numpy.ndarray of shape (n,)
        ``detector.score_samples(X)``.
    typical_of_missing : numpy.ndarray of shape (n,), optional
        ``detector.typical_of_missing(X)``; by default nothing is missing.

    Returns
    -------
    Scores
        ``p_value`` equals ``detector.p_values(X)``, ``is_anomaly`` equals ``detector.predict(X) == -1``.
    """
    comparable = log_prob + typical_of_missing
    return Scores(
        log_prob=log_prob,
        p_value=conformal_p_values(comparable, detector.calibration_scores_),
        is_anomaly=comparable < detector.offset_,
        typical_of_missing=typical_of_missing,
    )


def model_card(detector: InvGAN) -> dict[str, dict[str, Any]]:
    """Describe a fitted model in groups of named values.

    Parameters
    ----------
    detector : InvGAN
        Fitted.

    Returns
    -------
    dict of str to dict
        "Model", "Decision" and "Training".
    """
    shape = detector.data_shape_
    names = [str(name) for name in getattr(detector, "feature_names_in_", [])]
    history = detector.history_
    return {
        "Model": {
            "detector": type(detector).__name__,
            "data": (
                f"table of {shape[0]} columns" if len(shape) == 1 else f"images, {'×'.join(map(str, shape))}"
            ),
            **({"resized": "from any size"} if detector.image_size_ is not None else {}),
            **({"columns": ", ".join(names[:20]) + (", …" if len(names) > 20 else "")} if names else {}),
            "preset": detector.preset or "default",
            "log-likelihood": likelihood_of(detector),
            "latent dimension": detector.latent_dim_,
            "network parameters": sum(parameter.numel() for parameter in detector.model_.parameters()),
        },
        "Decision": {
            "threshold": (
                f"{detector.offset_:.6g} nats"
                if math.isfinite(detector.offset_)
                else "none: nothing is flagged"
            ),
            "false-positive rate": f"{detector.false_positive_rate_:g} at most, on average",
            "calibration rows": len(detector.calibration_scores_),
        },
        "Training": {
            "steps": history.steps[-1],
            "best step": history.best_step,
            "seed": "none" if detector.random_state is None else detector.random_state,
        },
    }


def as_fitted(detector: AnomalyDetector, X: np.ndarray) -> Any:
    """Give rows the names of the columns that the detector was fitted on, if those had names."""
    names = getattr(detector, "feature_names_in_", None)
    return X if names is None else pl.DataFrame(X, schema=[str(name) for name in names])


def columns_of(detector: AnomalyDetector) -> Columns:
    """What the columns of the table hold that a detector was fitted on; numbers, where nobody said."""
    if detector.columns_ is not None:
        return detector.columns_
    names = getattr(detector, "feature_names_in_", [f"x{i}" for i in range(detector.data_shape_[0])])
    return Columns.of_numbers([str(name) for name in names])


def reasons_of(detector: InvGAN, X: np.ndarray) -> list[list[Reason]]:
    """Say of each row of a table what is unusual about it, column by column.

    Parameters
    ----------
    detector : InvGAN
        Fitted on a table.
    X : numpy.ndarray of shape (n, D)

    Returns
    -------
    list of n lists of Reason
        As :func:`invgan.report.reasons.reasons` gives them.
    """
    columns, known = columns_of(detector), as_fitted(detector, X)
    shares, mean, std = detector.explanation(known)
    learned = detector.scaling_.inverse(detector.mixture_.centers).cpu().numpy()
    lowest, highest = learned.min(0), learned.max(0)
    return [
        reasons(columns, *row, lowest=lowest, highest=highest)
        for row in zip(X, mean, std, shares, strict=True)
    ]


def report_content(
    detector: InvGAN,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    title: str,
    source: str,
    labels: np.ndarray | None = None,
    row_names: Sequence[str] | None = None,
    comparison: Mapping[str, Mapping[str, float]] | None = None,
) -> ReportContent:
    """Gather what a report says about a model's view of some rows.

    Of rows that are neither among the most anomalous, which are explained, nor in the sample that the map
    shows, only the score is kept: memory grows by a few numbers per row.

    Parameters
    ----------
    detector : InvGAN
        Fitted.
    blocks : iterable of (rows (b, D) or (b, C, H, W), log_prob (b,))
        The n rows in order, and ``detector.score_samples`` of them, to which ``typical_of_missing`` is added.
    title, source : str
        The heading, and where the rows come from.
    labels : numpy.ndarray of shape (n,), optional
        1 where a row is known to be an anomaly, 0 where it is normal.
    row_names : sequence of n str, optional
        By default the rows are numbered from 1.
    comparison : mapping, optional
        As in :class:`invgan.report.ReportContent`.

    Returns
    -------
    ReportContent
    """
    is_table = len(detector.data_shape_) == 1
    lowest = _Lowest(EXPLAINED_ROWS if is_table else PICTURED_ROWS)
    sample = _Lowest(MAPPED_ROWS)
    draws = np.random.default_rng(0)
    scores = []
    for rows, log_prob in blocks:
        lowest.offer(log_prob, rows)
        sample.offer(draws.random(len(rows)), rows)
        scores.append(log_prob)
    explained: dict[str, Any] = {}
    if is_table:
        explained["reasons"] = reasons_of(detector, lowest.rows)
    else:
        found = detector.explanation(lowest.rows)
        explained["pictures"] = Pictures(images=lowest.rows, expected=found.mean, shares=found.shares)
    n_rows = sum(map(len, scores))
    return ReportContent(
        title=title,
        scores=np.concatenate(scores),
        calibration_scores=detector.calibration_scores_,
        false_positive_rate=detector.false_positive_rate_,
        facts=[
            ("data", source),
            ("rows", n_rows),
            ("log-likelihood", f"InvGAN {likelihood_of(detector)}"),
            ("calibration rows", len(detector.calibration_scores_)),
        ],
        score_name="log p(x)/q(x)" if likelihood_of(detector) == RATIO else "log p(x)",
        labels=labels,
        row_names=row_names,
        latent_map=_latent_map(detector, lowest, sample),
        comparison=comparison,
        history=asdict(detector.history_),
        model_card={
            "Data": {"file": source, "rows": n_rows, "labels": "none" if labels is None else "yes"},
            **model_card(detector),
            "Settings": settings(detector),
            "Versions": versions(),
        },
        **explained,
    )


def settings(detector: AnomalyDetector) -> dict[str, Any]:
    """The parameters that were not left at their defaults, the seed aside."""
    signature = inspect.signature(type(detector)).parameters
    changed = {
        name: value
        for name, value in detector._plain_parameters().items()
        if name != "random_state" and value != signature[name].default
    }
    return changed or {"all": "default"}


def versions() -> dict[str, str]:
    """What the report was made with."""
    found = {name: version(name) for name in ("invgan", "torch", "numpy", "scikit-learn")}
    return {**found, "python": platform.python_version()}


class _Lowest:
    """Of all rows that it was offered, those with the k lowest keys, the earlier ones where keys are tied."""

    def __init__(self, k: int) -> None:
        self.k = k
        self._n_before = 0
        self._keys = np.empty(0)
        self.numbers = np.empty(0, dtype=np.int64)
        self.rows = np.empty(0)

    def offer(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Take from a block what belongs to the lowest."""
        best = np.argsort(keys, kind="stable")[: self.k]
        found = [keys[best], self._n_before + best, rows[best]]
        if self._n_before:
            kept = [self._keys, self.numbers, self.rows]
            found = [np.concatenate(pair) for pair in zip(kept, found, strict=True)]
            order = np.argsort(found[0], kind="stable")[: self.k]
            found = [values[order] for values in found]
        self._keys, self.numbers, self.rows = found
        self._n_before += len(keys)


def _latent_map(detector: InvGAN, *chosen: _Lowest) -> LatentMap:
    """Lay the latents of known normal rows and of chosen ones into the plane of the widest directions."""
    training = detector.mixture_.codes.double().cpu().numpy()
    numbers, first = np.unique(np.concatenate([some.numbers for some in chosen]), return_index=True)
    rows = np.concatenate([some.rows for some in chosen])[first]
    latents = detector.transform(as_fitted(detector, rows)).astype(np.float64)
    center = training.mean(0)
    _, spread, directions = np.linalg.svd(training - center, full_matrices=False)
    plane = np.zeros((training.shape[1], 2))  # a latent space of one dimension is a line in it
    plane[:, : len(directions[:2])] = directions[:2].T
    total = float((spread**2).sum())
    some = np.random.default_rng(0).permutation(len(training))[:MAPPED_ROWS]
    return LatentMap(
        training=(training[some] - center) @ plane,
        rows=numbers,
        points=(latents - center) @ plane,
        variance=float((spread[:2] ** 2).sum()) / total if total else 1.0,
    )
