"""Decisions with a guarantee: conformal p-values, thresholds by false-positive rate, false discovery control.

All of them compare scores, higher = more normal, with those of *calibration* rows: normal rows that had no
part in the model, or are scored without it. The guarantees hold for a finite number of calibration rows and
whatever the score is, as long as a new normal row is exchangeable with them.
"""

import numbers

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray


def conformal_p_values(scores: ArrayLike, calibration_scores: ArrayLike) -> NDArray[np.float64]:
    """The conformal p-value of each row: how unusual its score is among normal rows.

    p(s) = (1 + #{i : c_i ≤ s}) / (m + 1) for calibration scores c_1, …, c_m. For a normal row
    P(p ≤ α) ≤ α at every α, with equality at the multiples of 1 / (m + 1) when no scores are tied.

    Parameters
    ----------
    scores : array-like of shape (n,)
        Scores of the rows in question, higher = more normal; infinite values are allowed.
    calibration_scores : array-like of shape (m,)
        Scores of held-out normal rows.

    Returns
    -------
    numpy.ndarray of shape (n,)
        p-values in [1 / (m + 1), 1].

    Raises
    ------
    ValueError
        An argument is empty, not one-dimensional, not numeric, or has NaN.

    References
    ----------
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005.
    Bates, Candès, Lei, Romano and Sesia, "Testing for outliers with conformal p-values", 2023.

    Examples
    --------
    >>> conformal_p_values([-9.0, 2.5, 3.0], [1.0, 2.0, 3.0, 4.0])
    array([0.2, 0.6, 0.8])
    """
    values = checked_vector(scores, name="scores", owner="conformal_p_values")
    calibration = np.sort(
        checked_vector(calibration_scores, name="calibration_scores", owner="conformal_p_values")
    )
    at_most = np.searchsorted(calibration, values, side="right")
    return (1 + at_most) / (calibration.size + 1)


def threshold_at_false_positive_rate(calibration_scores: ArrayLike, false_positive_rate: float) -> float:
    """The largest threshold t such that flagging `score < t` has at most this false-positive rate.

    t is the k-th smallest calibration score, k = ⌊α (m + 1)⌋ for the rate α, and −∞ for k = 0. Then, ties
    included, score < t exactly when the conformal p-value is ≤ α: both say that fewer than k calibration
    scores are ≤ the score.

    Parameters
    ----------
    calibration_scores : array-like of shape (m,)
        Scores of held-out normal rows, higher = more normal.
    false_positive_rate : float
        α in [0, 1): the share of normal rows that may be flagged, on average over calibration sets. A rate
        below 1 / (m + 1) cannot be promised with m rows, so nothing is flagged then.

    Returns
    -------
    float
        The threshold, in the unit of the scores.

    Raises
    ------
    ValueError
        The scores are empty, not one-dimensional, not numeric, or have NaN; the rate is not in [0, 1).

    Examples
    --------
    >>> threshold_at_false_positive_rate([4.0, 3.0, 2.0, 1.0], 0.4)
    2.0
    >>> threshold_at_false_positive_rate([4.0, 3.0, 2.0, 1.0], 0.1)
    -inf
    """
    owner = "threshold_at_false_positive_rate"
    calibration = checked_vector(calibration_scores, name="calibration_scores", owner=owner)
    if not (isinstance(false_positive_rate, numbers.Real) and 0 <= false_positive_rate < 1):
        raise ValueError(
            f"The 'false_positive_rate' parameter of {owner} must be a float in the range [0.0, 1.0). "
            f"Got {false_positive_rate!r} instead."
        )
    # Counting the p-values that reach the rate, rather than taking ⌊α (m + 1)⌋, rounds as they do: in floats
    # 0.29 · 100 is below 29, while 29 / 100 = 0.29.
    p_values = np.arange(1, calibration.size + 1) / (calibration.size + 1)
    k = np.count_nonzero(p_values <= false_positive_rate)
    return float(np.partition(calibration, k - 1)[k - 1]) if k else -np.inf


def false_discovery_control(p_values: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """The rows to report so that at most a share `rate` of them is expected to be normal.

    Benjamini and Hochberg's step-up procedure: with p_(1) ≤ … ≤ p_(n), report the rows of the i smallest
    p-values for the largest i with p_(i) ≤ `rate` · i / n. It holds for conformal p-values that share one
    calibration set, because they are positively dependent (Bates et al., 2023); where calibration rows have a
    part in each other's scores, as in InvGAN's aggregate, that is only nearly so.

    Parameters
    ----------
    p_values : array-like of shape (n,)
        p-values in [0, 1].
    rate : float
        The false discovery rate, in (0, 1).

    Returns
    -------
    numpy.ndarray of bool of shape (n,)
        True for the rows to report.

    Raises
    ------
    ValueError
        The p-values are empty, not one-dimensional, or outside [0, 1]; the rate is not in (0, 1).

    Examples
    --------
    >>> false_discovery_control([0.01, 0.9, 0.03, 0.5], 0.1)
    array([ True, False,  True, False])
    """
    owner = "false_discovery_control"
    values = checked_vector(p_values, name="p_values", owner=owner)
    outside = np.flatnonzero((values < 0) | (values > 1))
    if outside.size:
        raise ValueError(
            f"The 'p_values' parameter of {owner} must be an array of values in the range [0.0, 1.0]. "
            f"Got {values[outside[0]]} at position {outside[0]} instead."
        )
    if not (isinstance(rate, numbers.Real) and 0 < rate < 1):
        raise ValueError(
            f"The 'rate' parameter of {owner} must be a float in the range (0.0, 1.0). Got {rate!r} instead."
        )
    return np.asarray(scipy.stats.false_discovery_control(values) <= rate)


def checked_vector(values: ArrayLike, *, name: str, owner: str) -> NDArray[np.float64]:
    """The parameter `name` of `owner` as a non-empty vector of float64 without NaN.

    Parameters
    ----------
    values : array-like of shape (n,)
        Numbers; infinite values are allowed.
    name, owner : str
        The parameter and the function, for the message.

    Returns
    -------
    numpy.ndarray of shape (n,)
        The values.

    Raises
    ------
    ValueError
        The values are empty, not one-dimensional, not numeric, or have NaN.

    Examples
    --------
    >>> checked_vector([1, 2], name="scores", owner="f")
    array([1., 2.])
    """
    requirement = (
        f"The '{name}' parameter of {owner} must be a non-empty one-dimensional array of numbers without NaN."
    )
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{requirement} Got values that are not numbers instead.") from None
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{requirement} Got an array of shape {vector.shape} instead.")
    missing = np.flatnonzero(np.isnan(vector))
    if missing.size:
        raise ValueError(f"{requirement} Got nan at position {missing[0]} instead.")
    return vector
