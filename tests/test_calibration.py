"""Conformal p-values, thresholds and false discovery control: exact enumerations and identities."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invgan.calibration import (
    checked_vector,
    conformal_p_values,
    false_discovery_control,
    threshold_at_false_positive_rate,
)

# Few distinct values, so that ties are the rule; the infinities are scores like any other.
SCORES = st.lists(st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 0.5, 3.0, math.inf]), min_size=1, max_size=12)


def message(function, *arguments, **parameters):
    """The text of the ValueError that the call raises."""
    with pytest.raises(ValueError, match="parameter of") as caught:
        function(*arguments, **parameters)
    return str(caught.value)


def test_p_values_by_hand_with_ties_counted_against_the_row():
    calibration = [3.0, 1.0, 2.0, 2.0]
    scores = [-math.inf, 0.9, 1.0, 1.5, 2.0, 2.5, 3.0, math.inf]
    assert conformal_p_values(scores, calibration).tolist() == [0.2, 0.2, 0.4, 0.4, 0.8, 0.8, 1.0, 1.0]


@given(SCORES, SCORES)
def test_p_values_are_the_definition(scores, calibration):
    expected = [(1 + sum(c <= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert conformal_p_values(scores, calibration).tolist() == expected


@pytest.mark.parametrize("pool", [(1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 1.0, 2.0, 2.0, 2.0), (0.0,) * 5])
def test_validity_over_all_permutations(pool):
    """An exchangeable row is any of the five with equal chance: P(p ≤ α) ≤ α, exact where nothing is tied."""
    orders = list(itertools.permutations(pool))
    p_values = np.array([conformal_p_values(order[-1:], order[:-1])[0] for order in orders])
    for numerator in range(1, 101):
        alpha = Fraction(numerator, 100)
        share = Fraction(int((p_values <= float(alpha)).sum()), len(orders))
        assert share <= alpha
        if len(set(pool)) == 5:
            assert share == Fraction(math.floor(5 * alpha), 5)
        flagged = sum(
            order[-1] < threshold_at_false_positive_rate(order[:-1], float(alpha))
            for order in orders
            if alpha < 1
        )
        assert Fraction(flagged, len(orders)) <= alpha


@given(st.lists(st.integers(0, 5).map(float), min_size=2, max_size=15), st.floats(0, 1))
def test_p_values_are_super_uniform_whichever_row_of_a_pool_is_held_out(pool, alpha):
    p_values = [conformal_p_values([row], pool[:i] + pool[i + 1 :])[0] for i, row in enumerate(pool)]
    assert sum(p <= alpha for p in p_values) <= alpha * len(pool) * (1 + 1e-15)


@given(
    SCORES, SCORES, st.one_of(st.floats(0, 1, exclude_max=True), st.integers(0, 99).map(lambda i: i / 100))
)
def test_the_threshold_flags_exactly_the_rows_whose_p_value_is_at_most_the_rate(scores, calibration, rate):
    threshold = threshold_at_false_positive_rate(calibration, rate)
    flagged = np.asarray(scores) < threshold
    assert flagged.tolist() == (conformal_p_values(scores, calibration) <= rate).tolist()


@pytest.mark.parametrize("m", [99, 199, 999])
def test_the_threshold_is_the_kth_smallest_score_for_every_rate_in_percent(m):
    calibration = np.random.default_rng(0).permutation(m) + 1.0  # so the k-th smallest is k
    for percent in range(100):  # as decimal numbers: 0.29 · 100 is 28.999… in floats, and k is 29
        k = math.floor(Fraction(percent, 100) * (m + 1))
        expected = float(k) if k else -math.inf
        assert threshold_at_false_positive_rate(calibration, percent / 100) == expected


def test_no_larger_threshold_keeps_the_rate():
    """Over a pool without ties, a threshold just above the chosen one flags more often than allowed."""
    pool, rate = [1.0, 2.0, 3.0, 4.0, 5.0], 0.4

    def false_positive_rate(shift):
        """Exact, over which row of the pool is the new one; `shift` moves every threshold up by ranks."""
        flagged = 0
        for i, row in enumerate(pool):
            rest = sorted(pool[:i] + pool[i + 1 :])
            k = rest.index(threshold_at_false_positive_rate(rest, rate))
            flagged += row < rest[k + shift]
        return flagged / len(pool)

    assert false_positive_rate(0) == rate
    assert false_positive_rate(1) > rate


def test_a_rate_that_too_few_rows_cannot_promise_flags_nothing():
    assert threshold_at_false_positive_rate(range(98), 0.01) == -math.inf
    assert threshold_at_false_positive_rate(range(99), 0.01) == 0.0


def test_step_up_on_the_example_of_benjamini_and_hochberg():
    """Section 3.2 of their paper of 1995: fifteen hypotheses, the first four rejected at 0.05."""
    text = ".0001 .0004 .0019 .0095 .0201 .0278 .0298 .0344 .0459 .3240 .4262 .5719 .6528 .7590 1.0000"
    p_values = np.array([float(value) for value in text.split()])
    order = np.random.default_rng(0).permutation(15)
    assert np.array_equal(false_discovery_control(p_values[order], 0.05), order < 4)


def test_step_up_reports_a_p_value_above_its_own_bound_when_a_later_one_meets_its():
    # Bounds 0.025, 0.05, 0.075, 0.1: the second and third exceed theirs, the fourth does not.
    assert false_discovery_control([0.02, 0.06, 0.08, 0.09], 0.1).tolist() == [True] * 4
    assert false_discovery_control([0.02, 0.06, 0.08, 0.11], 0.1).tolist() == [True, False, False, False]
    assert false_discovery_control([0.2], 0.1).tolist() == [False]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], "an array of shape (0,)"),
        (1.0, "an array of shape ()"),
        ([[1.0]], "an array of shape (1, 1)"),
        (["a"], "values that are not numbers"),
        ([[1.0], [1.0, 2.0]], "values that are not numbers"),
        (None, "an array of shape ()"),
        ([0.0, math.nan], "nan at position 1"),
    ],
)
def test_bad_vectors_are_refused_by_name(values, found):
    def refusal(name, owner):
        return (
            f"The '{name}' parameter of {owner} must be a non-empty one-dimensional array of numbers "
            f"without NaN. Got {found} instead."
        )

    owner = "conformal_p_values"
    assert message(conformal_p_values, values, [1.0]) == refusal("scores", owner)
    assert message(conformal_p_values, [1.0], values) == refusal("calibration_scores", owner)
    assert message(threshold_at_false_positive_rate, values, 0.1) == refusal(
        "calibration_scores", "threshold_at_false_positive_rate"
    )
    assert message(false_discovery_control, values, 0.1) == refusal("p_values", "false_discovery_control")


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1, math.nan, "0.1", None])
def test_rates_out_of_range_are_refused(rate):
    assert message(threshold_at_false_positive_rate, [1.0], rate) == (
        "The 'false_positive_rate' parameter of threshold_at_false_positive_rate must be a float in the "
        f"range [0.0, 1.0). Got {rate!r} instead."
    )
    assert message(false_discovery_control, [0.5], rate) == (
        "The 'rate' parameter of false_discovery_control must be a float in the range (0.0, 1.0). "
        f"Got {rate!r} instead."
    )


@pytest.mark.parametrize("p_value", [-0.25, 1.5, math.inf])
def test_p_values_outside_the_unit_interval_are_refused(p_value):
    assert message(false_discovery_control, [0.5, p_value], 0.1) == (
        "The 'p_values' parameter of false_discovery_control must be an array of values in the range "
        f"[0.0, 1.0]. Got {p_value} at position 1 instead."
    )


def test_a_checked_vector_is_float64_and_keeps_infinities():
    vector = checked_vector(np.array([1, 2], dtype=np.int8), name="x", owner="f")
    assert (vector.dtype, vector.tolist()) == (np.float64, [1.0, 2.0])
    assert checked_vector([-math.inf, math.inf], name="x", owner="f").tolist() == [-math.inf, math.inf]
