"""What is learned from rows with missing values, on ADBench's tables whose values are taken out at random.

A table's training rows, 1,000 normal ones at most, lose a share of their values. InvGAN learns from them as
they are, or after the gaps were filled by scikit-learn, and from the same rows whole, which tells what the
best filling could reach. The test has other rows, whole; and the same with as many gaps, by which p-values
are judged as a user meets them.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

from invgan import data
from invgan.detectors import InvGAN
from invgan.errors import InputError
from invgan.experiments.points import Point, Record, cores
from invgan.metrics import detection_metrics

MAX_TRAINING_ROWS, MAX_TEST_ROWS = 1_000, 1_000
SHARES = (0.1, 0.3)
"""Shares of the values that are missing."""
LEVEL = 0.05
SEEDS = (0,)
QUICK_STEPS, QUICK_TABLES = 20, 2


def _nearest(X: np.ndarray) -> np.ndarray:
    """Fill a gap with what the nearest row that has the value has there."""
    scaler = StandardScaler().fit(X)
    nearest = KNNImputer(n_neighbors=1, keep_empty_features=True)
    filled = scaler.inverse_transform(nearest.fit_transform(scaler.transform(X)))
    return np.where(np.isnan(X), filled, X)


WHOLE = "nothing missing"
FILLINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda X: X,
    "nearest row": _nearest,
    "column mean": SimpleImputer(keep_empty_features=True).fit_transform,
}


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    """Learn from every table with gaps, in each way; write ``gaps.json``.

    A run that is cut off and started again goes on after the last fit that it wrote.

    Parameters
    ----------
    quick : bool
        Two tables and 20 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seeds : tuple of int
        Each deals the rows, takes values out and trains anew.

    Raises
    ------
    InputError
        If there are no tables.
    """
    tables = data.adbench_tables()
    if not tables:
        raise InputError("There are no tables in INVGAN_DATA/adbench: put ADBench's .npz files there.")
    if quick:
        tables, seeds = tables[:QUICK_TABLES], seeds[:1]
    record = Record(out / "gaps.json", {"tables": tables, "shares": SHARES}, seeds, quick)
    ways = [(WHOLE, 0.0), *itertools.product(FILLINGS, SHARES)]
    keys = [
        {"filling": filling, "share": share, "table": table, "seed": seed}
        for seed, table, (filling, share) in itertools.product(seeds, tables, ways)
    ]
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    return record.write(
        points,
        title=f"Learned from rows with gaps, {len(tables)} tables, {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        table={
            "columns": ["gaps filled", "missing", "nats lost", "AUROC", *_LEVELS.values()],
            "rows": [_row(points, filling, share) for filling, share in ways],
        },
        notes=[
            "Nats lost: what the mean log p of whole, normal test rows falls short of that of a model that "
            "learned from the whole rows; the median over tables. AUROC of whole test rows, and the share of "
            f"normal test rows with p ≤ {LEVEL}, whole or with as many gaps: means over tables ± standard "
            "errors."
        ],
    )


_LEVELS = {"below": f"p ≤ {LEVEL}", "below_with_gaps": f"p ≤ {LEVEL}, gaps"}


def split(table: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal a table's rows: normal ones to learn from, and others up to a number, with labels."""
    loaded = data.load(f"adbench/{table}")
    labels, rng = np.asarray(loaded.y), np.random.default_rng(seed)
    normal, abnormal = (rng.permutation(np.flatnonzero(labels == kind)) for kind in (0, 1))
    train, rest = np.split(normal, [min(MAX_TRAINING_ROWS, len(normal) // 2)])
    tested = np.concatenate([rest[:MAX_TEST_ROWS], abnormal[:MAX_TEST_ROWS]])
    return loaded.X[train], loaded.X[tested], labels[tested]


def with_gaps(X: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Take values out at random, but none of a column's first ten.

    Examples
    --------
    >>> holed = with_gaps(np.zeros((2010, 3)), 0.5, np.random.default_rng(0))
    >>> bool(np.isnan(holed[:10]).any()), round(float(np.isnan(holed[10:]).mean()), 1)
    (False, 0.5)
    """
    gaps = rng.random(X.shape) < share
    gaps[:10] = False
    return np.where(gaps, np.nan, X)


def _measure(quick: bool, filling: str, share: float, table: str, seed: int) -> Point:
    train, test, labels = split(table, seed)
    rng = np.random.default_rng([seed, 1])
    if filling != WHOLE:
        train = FILLINGS[filling](with_gaps(train, share, rng))
    detector = InvGAN(max_steps=QUICK_STEPS if quick else None, random_state=seed).fit(train)
    scores, normal = detector.score_samples(test), labels == 0
    with_holes = with_gaps(test[normal], share, rng)
    return {
        "log_prob": float(scores[normal].mean()),
        "auroc": detection_metrics(labels, scores)["auroc"],
        "below": float((detector.p_values(test[normal]) <= LEVEL).mean()),
        "below_with_gaps": float((detector.p_values(with_holes) <= LEVEL).mean()),
        "n": {"training": len(train), "test": len(test)},
    }


def _row(points: Sequence[Point], filling: str, share: float) -> list[str]:
    chosen = [p for p in points if (p["filling"], p["share"]) == (filling, share)]
    whole = {(p["table"], p["seed"]): p["log_prob"] for p in points if p["filling"] == WHOLE}
    lost = [whole[p["table"], p["seed"]] - p["log_prob"] for p in chosen]
    means = [_mean_and_error([p[key] for p in chosen]) for key in ("auroc", *_LEVELS)]
    return [filling, f"{share:.0%}", f"{np.median(lost):.2f}", *means]


def _mean_and_error(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"
