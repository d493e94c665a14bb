"""Learning from rows with gaps: how rows are dealt, and what is counted, on tables made here."""

import numpy as np
import pytest

from invgan.errors import InputError
from invgan.experiments import gaps


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Two tables of 300 normal rows and 40 anomalies."""
    (tmp_path / "data" / "adbench").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (1, 2):
        y = np.repeat([0, 1], [300, 40])
        np.savez(tmp_path / "data" / "adbench" / f"{number}_made.npz", X=rng.normal(size=(340, 3)), y=y)
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(gaps, "cores", lambda quick: 1)


def test_half_of_the_normal_rows_train_and_the_others_test(tables):
    train, test, labels = gaps.split("1_made", 0)
    assert (train.shape, test.shape, labels.sum()) == ((150, 3), (190, 3), 40)
    rows = np.concatenate([train, test])
    assert len(np.unique(rows, axis=0)) == 340


def test_what_is_known_stays_in_every_filling(tables):
    X = gaps.with_gaps(gaps.split("1_made", 0)[0], 0.3, np.random.default_rng(0))
    known = ~np.isnan(X)
    for name, fill in gaps.FILLINGS.items():
        found = fill(X)
        np.testing.assert_array_equal(found[known], X[known])
        assert np.isfinite(found).all() == (name != "as they are")
    column = gaps.FILLINGS["nearest row"](X)[:, 0]
    np.testing.assert_allclose(np.sort(column)[[0, -1]], np.sort(X[known[:, 0], 0])[[0, -1]], rtol=1e-12)


class ByGaps:
    """Log p is minus the share of gaps in the training rows; p-values flag rows with gaps."""

    def __init__(self, max_steps, random_state):
        pass

    def fit(self, X):
        self.gaps = np.isnan(X).mean()
        return self

    def score_samples(self, X):
        return X[:, 0] * 1e-9 - self.gaps

    def p_values(self, X):
        return np.where(np.isnan(X).any(1), 0.01, 0.5)


def test_the_table_says_what_is_lost_against_whole_rows(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(gaps, "InvGAN", ByGaps)
    found = gaps.run(out=tmp_path / "out")
    assert found["table"]["columns"] == [
        "gaps filled", "missing", "nats lost", "AUROC", "p ≤ 0.05", "p ≤ 0.05, gaps"
    ]  # fmt: skip
    rows = {(name, share): cells for name, share, *cells in found["table"]["rows"]}
    assert rows["nothing missing", "0%"][0] == "0.00"
    assert float(rows["as they are", "30%"][0]) == pytest.approx(0.28, abs=0.03)  # none in ten rows of 150
    assert rows["column mean", "30%"][0] == "0.00"
    assert {cells[2] for cells in rows.values()} == {"0.000 ± 0.000"}
    flagged = float(rows["as they are", "30%"][3].split()[0])
    assert flagged == pytest.approx((1 - 0.7**3) * 140 / 150, abs=0.06)
    assert (tmp_path / "out" / "gaps.json").exists()


def test_without_tables_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"^There are no tables in INVGAN_DATA/adbench"):
        gaps.run(out=tmp_path)
