"""The measured decisions: how rows are dealt, and what is counted, on tables made here."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from invgan.calibration import conformal_p_values
from invgan.errors import InputError
from invgan.experiments import decisions


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Two tables of 500 normal rows and 90 anomalies, told apart by the last column."""
    (tmp_path / "data" / "adbench").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (1, 2):
        y = np.repeat([0, 1], [500, 90])
        path = tmp_path / "data" / "adbench" / f"{number}_made.npz"
        np.savez(path, X=np.c_[rng.normal(size=(590, 2)), y], y=y)
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(decisions, "cores", lambda quick: 1)


def test_the_training_rows_have_their_share_of_anomalies_and_the_test_is_the_same(tables):
    found = [decisions.split("1_made", share, 0) for share in decisions.CONTAMINATIONS]
    assert [len(each.train) for each in found] == [250] * 4
    assert [each.train[:, -1].sum() for each in found] == [0, 2, 12, 25]
    for each in found:
        assert np.array_equal(each.test, found[0].test)
        assert np.array_equal(each.test[:, -1], each.labels)
        assert not {*map(tuple, each.train)} & {*map(tuple, each.test)}
    assert (len(found[0].test), found[0].labels.sum()) == (250 + 45, 45)
    other = decisions.split("1_made", 0.1, 1)
    assert not np.array_equal(found[-1].train, other.train)


def test_of_normal_rows_alone_half_train_and_all_anomalies_are_in_the_test(tables, monkeypatch):
    split = decisions.split("1_made", None, 0)
    assert (len(split.train), len(split.test), split.labels.sum()) == (250, 250 + 90, 90)
    monkeypatch.setattr(decisions, "MAX_NORMAL_ROWS", 50)
    assert len(decisions.split("1_made", None, 0).train) == 50


def test_few_anomalies_make_few_training_rows(tables, monkeypatch):
    monkeypatch.setattr(decisions, "CONTAMINATIONS", (0.0, 0.5))
    assert len(decisions.split("1_made", 0.5, 0).train) == 90
    monkeypatch.setattr(decisions, "MAX_TEST_ROWS", 100)
    cut = decisions.split("1_made", 0.0, 0)
    assert (len(cut.test), cut.labels.sum()) == (100, round(100 * 45 / (410 + 45)))


def test_false_discoveries_and_levels_hold_over_many_draws_of_any_score():
    """199 calibration rows, 80 normal rows and 20 anomalies of a score that overlaps: Bates et al. (2023)."""
    labels, found = np.repeat([0, 1], [80, 20]), []
    for draw in range(500):
        rng = np.random.default_rng(draw)
        scores = rng.standard_t(3, size=100) - 6 * labels
        p_values = conformal_p_values(scores, rng.standard_t(3, size=199))
        found.append(decisions.decided(p_values, labels))
    below, false, power = (np.array([each[key] for each in found]) for key in ("below", "false", "power"))
    excess = below.mean(0) - decisions.LEVELS  # multiples of 1 / 200, where a level is kept exactly
    assert (np.abs(excess) < 4 * below.std(0, ddof=1) / len(found) ** 0.5).all()
    excess = false.mean(0) - 0.8 * np.array(decisions.RATES)
    assert (excess < 3 * false.std(0, ddof=1) / len(found) ** 0.5).all()
    assert (power.mean(0) > 0.3).all()  # so there was something to control


def test_nothing_flagged_is_no_false_discovery():
    found = decisions.decided(np.ones(4), np.array([0, 0, 1, 1]))
    assert found == {"below": [0.0] * 4, "false": [0.0, 0.0], "power": [0.0, 0.0]}


class ByLastColumn:
    """A detector that knows what to look at, and says what it was given."""

    def __init__(self, *, trim, max_steps, random_state):
        self.trim = trim

    def fit(self, X):
        self.share = X[:, -1].mean()
        self.calibration_scores_ = X[:10, 0]
        return self

    def score_samples(self, X):
        return X[:, 0] - (X[:, -1] if self.trim >= self.share else 0)

    def p_values(self, X):
        return np.where(X[:, -1] == 1, 0.001, 0.15)


def test_the_table_is_of_means_over_tables_and_seeds(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(decisions, "InvGAN", ByLastColumn)
    found = decisions.run(out=tmp_path / "out", seeds=(0, 1))
    rows = {name: cells for name, *cells in found["table"]["rows"]}
    assert found["table"]["columns"][1:] == ["0%", "1%", "5%", "10%", "0%, up to 20,000 rows"]
    areas = {0.0: [], 0.1: []}
    for table in ("1_made", "2_made"):
        for seed in (0, 1):
            split = decisions.split(table, 0.1, seed)
            for trim, values in areas.items():
                scores = split.test[:, 0] - (split.test[:, -1] if trim else 0)
                values.append(roc_auc_score(split.labels, -scores))
    for system, trim in decisions.OURS.items():
        error = np.std(areas[trim], ddof=1) / 2
        assert rows[f"AUROC, {system}"][3] == f"{np.mean(areas[trim]):.3f} ± {error:.3f}"
        assert [rows[f"P(p ≤ {level}), {system}"][0] for level in (0.1, 0.2)] == [
            "0.000 ± 0.000",
            "1.000 ± 0.000",
        ]
        assert rows[f"power at 0.05, {system}"][0] == "1.000 ± 0.000"
    assert rows["power at 0.05, InvGAN"][-1] == "1.000 ± 0.000"
    assert rows["AUROC, kNN"][-1] == ""
    assert (tmp_path / "out" / "decisions.json").exists()
    assert (tmp_path / "out" / "decisions.png").exists()


def test_without_tables_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"^There are no tables in INVGAN_DATA/adbench"):
        decisions.run(out=tmp_path)
