"""The ADBench comparison: its protocol, its arithmetic, its tests and its rivals, on tables made here."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import wilcoxon
from sklearn.metrics import roc_auc_score

from invgan.errors import InputError
from invgan.experiments import adbench, rivals


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Four tables of 60 normal rows near the origin and 12 anomalies away from it."""
    (tmp_path / "data" / "adbench").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, shift in enumerate((6.0, 2.0, 1.0, 0.5), start=1):
        X = np.r_[rng.normal(size=(60, 3)), shift + rng.normal(size=(12, 3))]
        np.savez(
            tmp_path / "data" / "adbench" / f"{number}_made.npz", X=X, y=np.r_[np.zeros(60), np.ones(12)]
        )
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(adbench, "cores", lambda quick: 1)  # what is patched stays in this process


def test_half_of_the_normal_rows_train_and_the_rest_test(tables):
    first, again, other = (adbench.split("1_made", seed) for seed in (0, 0, 1))
    assert (len(first.train), len(first.test), first.labels.sum()) == (30, 42, 12)
    assert not {*map(tuple, first.train)} & {*map(tuple, first.test)}
    assert np.array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)


def test_large_tables_are_cut_with_the_share_of_anomalies_kept(tables):
    found = adbench.split("1_made", 0, max_train=20, max_test=21)
    assert (len(found.train), len(found.test), found.labels.sum()) == (20, 21, 6)  # 12 of 42


def by_distance(train, seed):
    return lambda test: -((test - train.mean(0)) ** 2).sum(1)


def by_first_column(train, seed):
    return lambda test: -test[:, 0]


@pytest.fixture
def two_systems(monkeypatch):
    systems = {"InvGAN": by_distance, "first column": by_first_column}
    monkeypatch.setattr(adbench, "all_systems", lambda *, quick=False: systems)
    return systems


def test_the_table_adds_up(tables, two_systems, tmp_path):
    found = adbench.run(out=tmp_path, seeds=(0, 1))
    written = json.loads((tmp_path / "adbench.json").read_text())
    assert written["table"] == found["table"]
    assert len(written["points"]) == 16
    names = [f"{number}_made" for number in (1, 2, 3, 4)]
    areas = np.empty((2, 4, 2))
    for i, fit in enumerate(two_systems.values()):
        for j, name in enumerate(names):
            for seed in (0, 1):
                train, test, labels = adbench.split(name, seed)
                areas[i, j, seed] = roc_auc_score(labels, -fit(train, seed)(test))
    rows = {row[0]: row for row in found["table"]["rows"]}
    ranks = adbench.mean_ranks(areas.mean(2))
    for i, system in enumerate(two_systems):
        by_seed = areas[i].mean(0)
        assert rows[system][1] == "2"
        assert rows[system][2] == f"{by_seed.mean():.4f} ± {by_seed.std():.4f}"
        assert rows[system][3] == f"{ranks[i]:.2f}"
        assert list(found["by_table"][system].values()) == pytest.approx(areas[i].mean(1), abs=1e-4)
    assert rows["InvGAN"][6] == ""
    assert rows["first column"][6] == f"{wilcoxon(*areas.mean(2)).pvalue:.3g}"
    best_first = sorted(two_systems, key=lambda name: -areas[list(two_systems).index(name)].mean())
    assert [row[0] for row in found["table"]["rows"]] == best_first
    assert (tmp_path / "adbench.png").read_bytes().startswith(b"\x89PNG")


def test_systems_and_seeds_are_added_to_an_unfinished_run(tables, two_systems, tmp_path, monkeypatch):
    monkeypatch.setattr(adbench, "SEEDS", (0, 1))
    first = adbench.run(out=tmp_path, systems=["InvGAN"], seeds=(0, 1))
    written = json.loads((tmp_path / "adbench.json").read_text())["points"]
    fitted = []

    def counted(train, seed):
        fitted.append(seed)
        return by_first_column(train, seed)

    two_systems["first column"] = counted
    one_seed = adbench.run(out=tmp_path, systems=["first column"], seeds=(0,))
    assert fitted == [0] * 4
    assert [point for point in one_seed["points"] if point["system"] == "InvGAN"] == written
    row = next(row for row in one_seed["table"]["rows"] if row[0] == "first column")
    names = [f"{number}_made" for number in (1, 2, 3, 4)]
    area = {
        (point["system"], point["table"]): point["auroc"] for point in one_seed["points"] if not point["seed"]
    }
    differences = [area["first column", name] - area["InvGAN", name] for name in names]
    assert (row[1], row[6]) == ("1", f"{wilcoxon(differences).pvalue:.3g}")  # over the seed that both have
    whole = adbench.run(out=tmp_path, systems=["first column"], seeds=(1,))
    assert fitted == [0] * 4 + [1] * 4
    assert [found["complete"] for found in (first, one_seed, whole)] == [False, False, True]


def test_unknown_systems_and_absent_tables_are_refused(tables, two_systems, tmp_path, monkeypatch):
    with pytest.raises(InputError) as refusal:
        adbench.run(out=tmp_path, systems=["InvGAN", "forest"])
    assert str(refusal.value) == (
        "The 'systems' parameter of adbench: 'forest' is none of InvGAN, first column."
    )
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path))
    with pytest.raises(InputError) as refusal:
        adbench.run(out=tmp_path)
    assert str(refusal.value) == (
        "There are no tables in INVGAN_DATA/adbench: put ADBench's .npz files there."
    )


def test_systems_that_no_test_tells_apart_share_a_bar():
    rng = np.random.default_rng(0)
    base = rng.random(30)
    noise = rng.normal(size=(3, 30))
    areas = np.stack([base, base + 0.01 * noise[0], base - 1 + 0.01 * noise[1], base - 1 + 0.01 * noise[2]])
    assert adbench._alike(areas) == [(0, 1), (2, 3)]
    assert adbench._alike(base - np.arange(4)[:, None]) == []
    assert adbench._alike(np.stack([base, base, base])) == [(0, 2)]


def test_pyods_systems_are_there_only_with_pyod(monkeypatch):
    monkeypatch.setattr(adbench.importlib.util, "find_spec", lambda name: None)
    assert not any(name.startswith("PyOD") for name in adbench.all_systems())
    monkeypatch.setattr(adbench.importlib.util, "find_spec", lambda name: object())
    assert [name for name in adbench.all_systems() if name.startswith("PyOD")] == [
        f"PyOD {name}" for name in rivals.PYOD
    ]


# The rivals


def test_the_kernel_density_has_the_bandwidth_of_the_highest_left_out_likelihood():
    train, test = np.random.default_rng(0).normal(size=(40, 2)), np.random.default_rng(1).normal(size=(9, 2))
    squared = ((train[:, None] - train) ** 2).sum(-1)

    def log_density(distances, bandwidth, n):
        return logsumexp(-distances / (2 * bandwidth**2), axis=1) - np.log(2 * np.pi * bandwidth**2 * n)

    np.fill_diagonal(squared, np.inf)
    nearest = np.sqrt(np.median(squared.min(1)) / 2)
    best = max(nearest * np.geomspace(0.1, 10, 41), key=lambda h: log_density(squared, h, 39).mean())
    expected = log_density(((test[:, None] - train) ** 2).sum(-1), best, 40)
    assert rivals.kernel_density(train, 0)(test) == pytest.approx(expected, rel=1e-6)


def test_standardised_rivals_do_not_see_the_columns_units():
    train, test = np.random.default_rng(0).normal(size=(40, 2)), np.random.default_rng(1).normal(size=(9, 2))
    fit = rivals.standardized(rivals.nearest_neighbours)
    units = np.array([1e3, 1e-3])
    assert fit(train * units, 0)(test * units) == pytest.approx(fit(train, 0)(test), rel=1e-9)


def test_pyods_detectors_are_seeded_and_the_process_is_not(monkeypatch):
    class Detector:
        def __init__(self, n_features, random_state=None):
            self.given = n_features, random_state

        def fit(self, X):
            self.drawn = np.random.rand()  # noqa: NPY002
            return self

        def decision_function(self, X):
            return np.full(len(X), self.drawn)

    monkeypatch.setitem(sys.modules, "pyod.models.deep_svdd", SimpleNamespace(DeepSVDD=Detector))
    rows = np.zeros((3, 5))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (rivals.pyod("DeepSVDD")(rows, seed)(rows) for seed in (0, 0, 1))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first < 0).all()  # more abnormal is lower here
