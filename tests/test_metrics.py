"""Detection metrics against answers worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from invgan.metrics import detection_metrics, flag_top, min_max_anomaly_score

# From most anomalous to most normal: 1 0 1 0 0. Of the 6 pairs (anomaly, normal row) the anomaly has the
# lower score in 3 + 2 = 5. Precision is 1/1 at the first anomaly and 2/3 at the second.
Y = [0, 1, 0, 1, 0]
SCORES = [-1.0, -9.0, -5.0, -4.0, 2.0]


def message(function, *arguments, **parameters):
    """The text of the ValueError that the call raises."""
    with pytest.raises(ValueError, match="parameter of") as caught:
        function(*arguments, **parameters)
    return str(caught.value)


def test_areas_by_hand():
    metrics = detection_metrics(Y, SCORES)
    assert metrics == {"auroc": pytest.approx(5 / 6), "ap": pytest.approx((1 + 2 / 3) / 2)}
    assert all(type(value) is float for value in metrics.values())


def test_decisions_by_hand():
    metrics = detection_metrics(Y, SCORES, flagged=[False, True, True, False, True])
    assert metrics["precision"] == pytest.approx(1 / 3)
    assert metrics["recall"] == pytest.approx(1 / 2)
    assert metrics["f1"] == pytest.approx(2 / 5)
    assert list(metrics) == ["auroc", "ap", "precision", "recall", "f1"]


def test_flagging_nothing_has_precision_recall_and_f1_zero():
    metrics = detection_metrics(Y, SCORES, flagged=np.zeros(5, dtype=bool))
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0, 0, 0)


def test_a_tie_counts_half_and_a_constant_score_is_chance():
    assert detection_metrics([1, 0, 0], [1.0, 1.0, 2.0])["auroc"] == 0.75
    assert detection_metrics(Y, [7.0] * 5) == {"auroc": 0.5, "ap": pytest.approx(2 / 5)}


def test_only_the_order_of_the_scores_counts_and_infinite_ones_have_their_place():
    expected = detection_metrics(Y, SCORES)
    assert detection_metrics(Y, [0.0, -math.inf, -1e300, -1e-300, math.inf]) == expected
    assert detection_metrics(Y, min_max_anomaly_score(SCORES)) == expected
    reverse = detection_metrics(Y, np.negative(SCORES))
    assert reverse["auroc"] == pytest.approx(1 - expected["auroc"])


def test_booleans_and_tables_are_accepted():
    expected = detection_metrics(Y, SCORES, flagged=flag_top(SCORES, 0.4))
    found = detection_metrics(
        pd.Series(Y).astype(bool), pd.Series(SCORES), flagged=pd.Series(flag_top(SCORES, 0.4))
    )
    assert found == expected


@pytest.mark.parametrize(
    ("y", "scores", "flagged", "text"),
    [
        (
            [0, 0],
            [1.0, 2.0],
            None,
            "The 'y' parameter of detection_metrics must be an array that has both 0 (normal) and 1 "
            "(anomaly), and nothing else. Got the values 0 instead.",
        ),
        (
            [0, 1, 2, -1, 3, 4, 5],
            [1.0] * 7,
            None,
            "The 'y' parameter of detection_metrics must be an array that has both 0 (normal) and 1 "
            "(anomaly), and nothing else. Got the values -1, 0, 1, 2, 3, … instead.",
        ),
        (
            ["normal", "bad"],
            [1.0, 2.0],
            None,
            "The 'y' parameter of detection_metrics must be a non-empty one-dimensional array of "
            "numbers without NaN. Got values that are not numbers instead.",
        ),
        (
            [0, 1],
            [1.0, math.nan],
            None,
            "The 'scores' parameter of detection_metrics must be a non-empty one-dimensional array of "
            "numbers without NaN. Got nan at position 1 instead.",
        ),
        (
            [0, 1],
            [1.0],
            None,
            "The 'scores' parameter of detection_metrics must be an array as long as 'y' (2). "
            "Got 1 values instead.",
        ),
        (
            [0, 1],
            [1.0, 2.0],
            [True],
            "The 'flagged' parameter of detection_metrics must be an array as long as 'y' (2). "
            "Got 1 values instead.",
        ),
        (
            [0, 1],
            [1.0, 2.0],
            [-1, 1],  # predict's output, which is not a mask
            "The 'flagged' parameter of detection_metrics must be a one-dimensional array of booleans. "
            "Got an array of int64 of shape (2,) instead.",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(y, scores, flagged, text):
    assert message(detection_metrics, y, scores, flagged=flagged) == text


@pytest.mark.parametrize(
    ("n", "share", "count"),
    [
        (226, 0.15, 34),  # the Arrhythmia test half: 33.9
        (100, 0.07, 7),  # 0.07 · 100 is above 7 in floats
        (10, 0.25, 2),  # halves to the even number
        (10, 0.35, 4),
        (3, 0.0, 0),
        (3, 1.0, 3),
    ],
)
def test_the_number_of_flagged_rows_is_the_rounded_share_and_they_are_the_lowest(n, share, count):
    scores = np.random.default_rng(0).permutation(n).astype(float)
    assert np.array_equal(flag_top(scores, share), scores < count)


def test_ties_are_flagged_in_the_order_of_the_rows():
    assert flag_top([1.0, 0.0, 1.0, 1.0, 5.0], 0.6).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, "0.15", None])
def test_a_share_out_of_range_is_refused(share):
    assert message(flag_top, [1.0], share) == (
        f"The 'share' parameter of flag_top must be a float in the range [0.0, 1.0]. Got {share!r} instead."
    )


def test_the_papers_score_is_one_for_the_most_likely_row():
    assert min_max_anomaly_score([-100.0, -300.0, -150.0]).tolist() == [1.0, 0.0, 0.75]


@pytest.mark.parametrize(
    ("values", "found"),
    [([2.0, 2.0], "2.0 to 2.0"), ([-math.inf, 0.0], "-inf to 0.0"), ([0.0, math.inf], "0.0 to inf")],
)
def test_a_range_that_cannot_be_scaled_is_refused(values, found):
    assert message(min_max_anomaly_score, values) == (
        "The 'log_likelihood' parameter of min_max_anomaly_score must be an array of finite numbers that are "
        f"not all equal. Got values from {found} instead."
    )
