"""The measured explanations: what is planted, what is counted, and SHAP on a score whose parts are known."""

from importlib.util import find_spec

import numpy as np
import pytest

from invgan.experiments import explanations


def training_rows(n=200):
    X = np.random.default_rng(0).normal(size=(n, 9)) * np.arange(9)
    X[:, 5] = np.arange(n) % 2
    X[:, 0] = 0.1  # but for rounding its deviation were zero
    return X


def test_shifted_columns_differ_by_four_standard_deviations_and_the_others_not_at_all():
    train = training_rows()
    rows = train[:20]
    planted = explanations.plant(train, rows, "shifted", 0)
    assert planted.changed.shape == (20, 2)  # a third of the eight that vary
    assert not (planted.changed == 0).any()
    moved = np.zeros(rows.shape, dtype=bool)
    np.put_along_axis(moved, planted.changed, True, axis=1)
    expected = np.where(moved, 4.0, 0) * train.std(0)
    np.testing.assert_allclose(np.abs(planted.rows - rows), expected, atol=1e-12)
    np.testing.assert_array_equal(rows, train[:20])


def test_replaced_columns_hold_another_training_rows_value():
    train = training_rows()
    rows = train[:20]
    planted = explanations.plant(train, rows, "replaced", 0)
    for found, row, columns in zip(planted.rows, rows, planted.changed, strict=True):
        assert sorted(np.flatnonzero(found != row)) == sorted(columns)
        assert all(found[column] in train[:, column] for column in columns)


@pytest.mark.parametrize(("parts", "share"), [([3, 2, 1, 0], 1), ([0, 3, 2, 1], 0.5), ([0, 1, 2, 3], 0)])
def test_the_share_found(parts, share):
    assert explanations.found_share(np.array([parts], dtype=float), np.array([[1, 0]])) == share


@pytest.mark.skipif(find_spec("shap") is None, reason="SHAP is an extra")
def test_shaps_parts_of_a_linear_score_are_its_terms_with_the_sign_of_a_deficit():
    train, weights = training_rows(), np.arange(9) - 4.0
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    parts = explanations._shap(lambda X: X @ weights, train, 0, train[:3])
    background = np.random.default_rng(0).permutation(train)[: explanations.N_BACKGROUND]
    np.testing.assert_allclose(parts, -weights * (train[:3] - background.mean(0)), atol=1e-9)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


class ByMean:
    """A detector that explains by the distance from the mean."""

    def __init__(self, *, max_steps, random_state):
        pass

    def fit(self, X):
        self.mean = X.mean(0)
        return self

    def explain(self, X):
        return np.abs(X - self.mean)

    def score_samples(self, X):
        return -np.abs(X - self.mean).sum(1)


def test_the_table_is_of_means_over_tables(tmp_path, monkeypatch):
    (tmp_path / "data" / "adbench").mkdir(parents=True)
    for number in (1, 2):
        X = np.random.default_rng(number).normal(size=(60, 6))
        path = tmp_path / "data" / "adbench" / f"{number}_made.npz"
        np.savez(path, X=X, y=np.repeat([0, 1], [50, 10]))
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(explanations, "InvGAN", ByMean)
    found = explanations.run(quick=True, out=tmp_path / "out")
    rows = {(kind, name): cells for kind, name, *cells in found["table"]["rows"]}
    for kind in explanations.KINDS:
        shares = [point[kind]["InvGAN.explain"]["found"] for point in found["points"]]
        error = abs(shares[0] - shares[1]) / 2
        assert rows[kind, "InvGAN.explain"][:2] == [f"{np.mean(shares):.3f} ± {error:.3f}", "0.333"]
    assert (tmp_path / "out" / "explanations.json").exists()
