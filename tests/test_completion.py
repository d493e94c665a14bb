"""Values put in the place of missing ones to learn from."""

import numpy as np
import pytest
import torch

from invgan.estimators import completion
from invgan.estimators.completion import completed


def filled(X, training=None, seed=0):
    training = np.arange(len(X)) if training is None else training
    return completed(torch.from_numpy(X), training, seed).numpy()


def related(n=400, seed=0):
    """Three columns, each nearly a function of the others, the last one of a few steps, and a lone one."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    return np.stack([a, 100 * a + 50 * b + rng.normal(size=n), np.round(a + b), rng.normal(size=n)], 1)


def with_gaps(X, share=0.3, seed=1):
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def test_what_is_known_stays_and_what_is_not_becomes_a_value_of_a_training_row():
    X, training = with_gaps(related()), np.arange(0, 400, 2)
    found = filled(X, training)
    known = ~np.isnan(X)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[known], X[known])
    for j in range(X.shape[1]):
        assert np.isin(found[:, j], X[training, j]).sum() >= (~known[:, j]).sum()
        assert np.isin(found[~known[:, j], j], X[training, j]).all()


def test_a_value_follows_from_the_others_where_it_does_and_has_their_spread_where_not():
    full = related()
    X = full.copy()
    X[::3, 1] = X[1::3, 3] = np.nan
    gaps, found = np.isnan(X), filled(X)
    error = (found - full)[gaps[:, 1], 1]
    assert error.std() < 0.3 * full[:, 1].std()  # b is known to a step of its third column
    lone = found[gaps[:, 3], 3]
    assert lone.std() == pytest.approx(full[:, 3].std(), rel=0.2)
    assert abs(np.corrcoef(lone, full[gaps[:, 3], 3])[0, 1]) < 0.25
    # No value is given again and again, as that of a nearest row is.
    assert np.unique(lone, return_counts=True)[1].max() <= 5


def test_columns_with_the_same_gaps_are_taken_from_one_row():
    rng = np.random.default_rng(0)
    category = np.eye(3)[rng.integers(3, size=300)]
    X = np.concatenate([category, rng.normal(size=(300, 2))], 1)
    X[rng.random(300) < 0.4, :3] = np.nan
    found = filled(X)
    assert np.isin(found[:, :3], [0, 1]).all()
    assert (found[:, :3].sum(1) == 1).all()


def test_the_seed_chooses():
    X = with_gaps(related())
    np.testing.assert_array_equal(filled(X), filled(X))
    assert (filled(X) != filled(X, seed=1)).any()


def test_units_do_not_matter():
    X, units = with_gaps(related()), np.array([1.0, 2.0**40, 2.0**-40, 1.0])
    np.testing.assert_array_equal(filled(X * units), filled(X) * units)


def test_nothing_missing_is_no_copy():
    rows = torch.from_numpy(related())
    assert completed(rows, np.arange(400), 0) is rows
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    assert completed(images, np.arange(3), 0) is images


def test_donors_come_from_all_over_a_sorted_table(monkeypatch):
    monkeypatch.setattr(completion, "MAX_DONORS", 10)
    X = np.repeat(np.arange(25.0)[:, None], 2, axis=1)
    X[24, 1] = np.nan
    donors = np.arange(24)[::3]  # 8 of them, of which the last five are near
    assert filled(X, np.arange(24))[24, 1] in donors[-5:]


def test_a_column_that_few_training_rows_have_is_taken_from_them():
    X = np.repeat(np.arange(25.0)[:, None], 2, axis=1)
    X[np.arange(25) != 13, 1] = np.nan
    np.testing.assert_array_equal(filled(X)[:, 1], np.full(25, 13.0))
    X[13, 1] = np.nan
    X[24, 1] = 7  # no training row
    np.testing.assert_array_equal(filled(X, np.arange(24))[:, 1], [0.0] * 24 + [7.0])


def test_a_lone_column_is_filled_by_its_own_values():
    X = np.arange(200.0)[:, None].copy()
    X[::2] = np.nan
    found = filled(X)
    assert np.isin(found, X[1::2]).all()
    assert len(np.unique(found[::2])) > 50  # 100 draws of 100 values have 63 on average


def test_of_many_columns_those_that_say_something_predict(monkeypatch):
    monkeypatch.setattr(completion, "MAX_PREDICTORS", 1)
    rng = np.random.default_rng(0)
    full = rng.normal(size=(300, 6))
    full[:, 5] = full[:, 2] + 0.01 * rng.normal(size=300)
    X = full.copy()
    X[::3, 5] = np.nan
    assert np.abs(filled(X) - full)[::3, 5].mean() < 0.1


@pytest.mark.parametrize(("most", "n_sweeps"), [(2000, 10), (39, 3), (5, 2)])
def test_many_columns_are_gone_through_less_often(monkeypatch, most, n_sweeps):
    visited, matched = [], completion._matched

    def counted(scaled, columns, *rest):
        visited.extend(columns)
        return matched(scaled, columns, *rest)

    monkeypatch.setattr(completion, "MAX_VISITS", most)
    monkeypatch.setattr(completion, "_matched", counted)
    filled(with_gaps(np.random.default_rng(0).normal(size=(50, 10))))
    assert sorted(visited) == sorted(list(range(10)) * n_sweeps)
