"""How well scores separate anomalies from normal rows, and the paper's protocol for flagging rows.

Throughout, scores are higher = more *normal*, as `score_samples` gives them, and the anomalies are the
positive class, y = 1.
"""

import numbers

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from invgan.calibration import checked_vector


def detection_metrics(
    y: ArrayLike, scores: ArrayLike, *, flagged: ArrayLike | None = None
) -> dict[str, float]:
    """The area under the ROC curve, the average precision and, for decisions, precision, recall and F1.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 (or True) for an anomaly, 0 for a normal row; both must occur.
    scores : array-like of shape (n,)
        Higher = more normal; infinite values are allowed.
    flagged : array-like of bool of shape (n,), optional
        The rows that were declared anomalous.

    Returns
    -------
    dict of str to float
        "auroc" and "ap" and, with `flagged`, "precision" (0 when nothing is flagged), "recall" and "f1".

    Raises
    ------
    ValueError
        The lengths differ; `y` has one class only, or other values; `flagged` is not boolean; NaN.

    Examples
    --------
    >>> detection_metrics([0, 0, 1], [-1.0, -2.0, -9.0], flagged=[False, True, True])
    {'auroc': 1.0, 'ap': 1.0, 'precision': 0.5, 'recall': 1.0, 'f1': 0.666...}
    """
    owner = "detection_metrics"
    labels = checked_vector(y, name="y", owner=owner)
    values = checked_vector(scores, name="scores", owner=owner)
    _check_length("scores", values, labels)
    found = np.unique(labels)
    if not np.array_equal(found, [0, 1]):
        shown = ", ".join(f"{value:g}" for value in found[:5]) + (", …" if found.size > 5 else "")
        raise ValueError(
            f"The 'y' parameter of {owner} must be an array that has both 0 (normal) and 1 (anomaly), "
            f"and nothing else. Got the values {shown} instead."
        )
    # Ranks, because both areas depend on the order only and scikit-learn refuses infinite scores.
    anomaly_ranks = rankdata(-values)
    metrics = {
        "auroc": float(roc_auc_score(labels, anomaly_ranks)),
        "ap": float(average_precision_score(labels, anomaly_ranks)),
    }
    if flagged is not None:
        decisions = np.asarray(flagged)
        if decisions.dtype != np.bool_ or decisions.ndim != 1:
            raise ValueError(
                f"The 'flagged' parameter of {owner} must be a one-dimensional array of booleans. "
                f"Got an array of {decisions.dtype} of shape {decisions.shape} instead."
            )
        _check_length("flagged", decisions, labels)
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, decisions, average="binary", zero_division=0
        )
        metrics |= {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    return metrics


def flag_top(scores: ArrayLike, share: float) -> NDArray[np.bool_]:
    """Flag the most anomalous share of the rows: the protocol of the paper's table 4 (section 4.3.4).

    The number of rows is `share` · n rounded to the nearest whole number, halves to the even one. Of tied
    rows the earlier are flagged first. The paper does not print its share; 15 % is what the earlier work in
    that table used on Arrhythmia.

    Parameters
    ----------
    scores : array-like of shape (n,)
        Higher = more normal; the lowest are flagged.
    share : float
        In [0, 1].

    Returns
    -------
    numpy.ndarray of bool of shape (n,)
        True for the flagged rows.

    Raises
    ------
    ValueError
        The scores are empty, not one-dimensional, not numeric, or have NaN; the share is not in [0, 1].

    Examples
    --------
    >>> flag_top([0.5, -3.0, 0.1, -1.0], 0.5)
    array([False,  True, False,  True])
    """
    values = checked_vector(scores, name="scores", owner="flag_top")
    if not (isinstance(share, numbers.Real) and 0 <= share <= 1):
        raise ValueError(
            "The 'share' parameter of flag_top must be a float in the range [0.0, 1.0]. "
            f"Got {share!r} instead."
        )
    flagged = np.zeros(values.size, dtype=np.bool_)
    flagged[np.argsort(values, kind="stable")[: round(share * values.size)]] = True
    return flagged


def min_max_anomaly_score(log_likelihood: ArrayLike) -> NDArray[np.float64]:
    """The paper's anomaly score (section 4.3): log-likelihoods scaled to [0, 1] over the whole test set.

    s'_i = (s_i − min S) / (max S − min S), as printed, so 1 is the most *normal* row in spite of the name.
    It depends on all rows of the set: use it to reproduce the paper's tables, and `score_samples` elsewhere.
    The order of the rows, and so AUROC and AP, is that of the log-likelihoods.

    Parameters
    ----------
    log_likelihood : array-like of shape (n,)
        The log-likelihoods S of the test set in nats, finite and not all equal.

    Returns
    -------
    numpy.ndarray of shape (n,)
        Scores in [0, 1], higher = more normal.

    Raises
    ------
    ValueError
        The values are empty, not one-dimensional, not finite numbers, or all equal.

    Examples
    --------
    >>> min_max_anomaly_score([-30.0, -10.0, -20.0])
    array([0. , 1. , 0.5])
    """
    values = checked_vector(log_likelihood, name="log_likelihood", owner="min_max_anomaly_score")
    lowest, highest = values.min(), values.max()
    if not np.isfinite(lowest) or not np.isfinite(highest) or lowest == highest:
        raise ValueError(
            "The 'log_likelihood' parameter of min_max_anomaly_score must be an array of finite numbers that "
            f"are not all equal. Got values from {lowest} to {highest} instead."
        )
    return (values - lowest) / (highest - lowest)


def _check_length(name: str, values: NDArray, labels: NDArray) -> None:
    """Raise unless there is one value per label."""
    if values.size != labels.size:
        raise ValueError(
            f"The '{name}' parameter of detection_metrics must be an array as long as 'y' ({labels.size}). "
            f"Got {values.size} values instead."
        )
