"""Decisions on ADBench: whether p-values and false discovery rates hold, and what contaminated rows cost.

A table's rows are dealt anew for each seed. The training rows, 2,000 at most, are normal ones and a share of
anomalies, of all training rows as many for each share; the test has the other normal rows and anomalies, the
same for all shares. Systems learn from all training rows as if they were normal.

Of few rows no p-value is small enough for a false discovery to be told. So InvGAN learns once more from half
of the normal rows alone, 20,000 at most.
"""

import functools
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from invgan import data
from invgan.calibration import false_discovery_control
from invgan.detectors import InvGAN
from invgan.errors import InputError
from invgan.experiments import rivals
from invgan.experiments.adbench import MAX_TEST_ROWS, Split
from invgan.experiments.common import write_figure
from invgan.experiments.points import Point, Record, cores
from invgan.metrics import detection_metrics

MAX_TRAINING_ROWS = 2_000
CONTAMINATIONS = (0.0, 0.01, 0.05, 0.1)
"""Shares of anomalies among the training rows."""
MAX_NORMAL_ROWS = 20_000
"""Training rows where all are normal and no share of them sets their number."""
LEVELS = (0.01, 0.05, 0.1, 0.2)
RATES = (0.05, 0.1)
"""False discovery rates."""
TRIM = 0.1
"""What is left out by those that trim, whatever the share."""
SEEDS = (0, 1, 2)
QUICK_STEPS, QUICK_TABLES, QUICK_CONTAMINATIONS = 20, 2, (0.0, 0.1)
OURS = {"InvGAN": 0.0, f"InvGAN, trim={TRIM}": TRIM}
THEIRS: dict[str, rivals.Fit] = {
    "Isolation Forest": rivals.isolation_forest,
    "kNN": rivals.standardized(rivals.nearest_neighbours),
}


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    """Fit every table at every share of anomalies; write ``decisions.json`` and ``decisions.png``.

    A run that is cut off and started again goes on after the last fit that it wrote.

    Parameters
    ----------
    quick : bool
        Two tables, two shares, one seed and 20 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seeds : tuple of int
        Each deals the rows and trains anew.

    Raises
    ------
    InputError
        If there are no tables.
    """
    tables = data.adbench_tables()
    shares: tuple[float, ...] = QUICK_CONTAMINATIONS if quick else CONTAMINATIONS
    if not tables:
        raise InputError("There are no tables in INVGAN_DATA/adbench: put ADBench's .npz files there.")
    if quick:
        tables, seeds = tables[:QUICK_TABLES], seeds[:1]
    settings = {"tables": tables, "contaminations": shares, "quick": quick}
    record = Record(out / "decisions.json", settings, seeds, quick)
    keys = [
        {"system": system, "table": table, "contamination": share, "seed": seed}
        for seed, share, table, system in itertools.product(seeds, shares, tables, (*OURS, *THEIRS))
    ]
    keys += [
        {"system": "InvGAN", "table": table, "contamination": None, "seed": seed}
        for seed, table in itertools.product(seeds, tables)
    ]
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    results = record.write(
        points,
        title=f"Decisions on {len(tables)} tables, {len(seeds)} seed{'s' * (len(seeds) > 1)}",
        table={
            "columns": ["anomalies among the training rows", *map(_heading, (*shares, None))],
            "rows": _rows(points, (*shares, None)),
        },
        notes=[
            "Mean over tables and seeds ± standard error over these draws. P(p ≤ α): the share of normal "
            "test rows with such a p-value, valid if it is at most α. False discoveries: the share of normal "
            "rows among those flagged by --fdr, 0 if none is, and power: the share of the anomalies that is "
            "flagged. Of m calibration rows no p-value is below 1 / (m + 1).",
            f"With trim={TRIM} a tenth of the rows is left out at every share, also where all are normal.",
            f"The last column: half of the normal rows, {MAX_NORMAL_ROWS:,} at most; all others "
            f"{MAX_TRAINING_ROWS:,} at most.",
        ],
    )
    write_figure(out / "decisions.png", _figure(points, shares))
    return results


def split(table: str, share: float | None, seed: int) -> Split:
    """Deal a table's rows: the given share of the training rows are anomalies, half of all at most.

    With a share of None all training rows are normal, and all anomalies are in the test.
    """
    loaded = data.load(f"adbench/{table}")
    labels, rng = np.asarray(loaded.y), np.random.default_rng(seed)
    normal, abnormal = (rng.permutation(np.flatnonzero(labels == kind)) for kind in (0, 1))
    # As many training rows for each share, of which the largest takes half of the anomalies at most.
    if share is None:
        n_half, n_train, n_abnormal = 0, min(MAX_NORMAL_ROWS, len(normal) // 2), 0
    else:
        n_half = len(abnormal) // 2
        n_train = min(MAX_TRAINING_ROWS, len(normal) // 2, int(n_half / max(CONTAMINATIONS)))
        n_abnormal = round(share * n_train)
    train = np.concatenate([normal[: n_train - n_abnormal], abnormal[:n_abnormal]])
    test, found = normal[n_train:], abnormal[n_half:]
    if (n := len(test) + len(found)) > MAX_TEST_ROWS:
        n_found = round(MAX_TEST_ROWS * len(found) / n)
        test, found = test[: MAX_TEST_ROWS - n_found], found[:n_found]
    tested = np.concatenate([test, found])
    return Split(loaded.X[train], loaded.X[tested], labels[tested])


def _measure(quick: bool, system: str, table: str, contamination: float | None, seed: int) -> Point:
    train, test, labels = split(table, contamination, seed)
    if system in THEIRS:
        with warnings.catch_warnings(action="ignore"):
            scores = THEIRS[system](train, seed)(test)
        return {"auroc": detection_metrics(labels, scores)["auroc"]}
    steps = QUICK_STEPS if quick else None
    detector = InvGAN(trim=OURS[system], max_steps=steps, random_state=seed).fit(train)
    scores, p_values = detector.score_samples(test), detector.p_values(test)
    n = {"training": len(train), "calibration": len(detector.calibration_scores_), "test": len(test)}
    return {"auroc": detection_metrics(labels, scores)["auroc"], "n": n, **decided(p_values, labels)}


def decided(p_values: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """Judge p-values by the truth: at each level, and at each false discovery rate.

    Examples
    --------
    >>> decided(np.array([0.001, 0.02, 0.5, 0.002]), np.array([1, 0, 0, 1]))
    {'below': [0.0, 0.5, 0.5, 0.5], 'false': [0.3333333333333333, 0.3333333333333333], 'power': [1.0, 1.0]}
    """
    normal = labels == 0
    flags = [false_discovery_control(p_values, rate) for rate in RATES]
    return {
        "below": [float((p_values[normal] <= level).mean()) for level in LEVELS],
        "false": [float((flag & normal).sum() / max(flag.sum(), 1)) for flag in flags],
        "power": [float(flag[~normal].mean()) for flag in flags],
    }


def _heading(share: float | None) -> str:
    return f"0%, up to {MAX_NORMAL_ROWS:,} rows" if share is None else f"{share:.0%}"


def _rows(points: Sequence[Point], shares: Sequence[float | None]) -> list[list[str]]:
    def row(name: str, system: str, key: str, place: int | None = None) -> list[str]:
        return [
            f"{name}, {system}",
            *(_shown(_values(points, system, share, key, place)) for share in shares),
        ]

    rows = [row("AUROC", system, "auroc") for system in (*OURS, *THEIRS)]
    for system in OURS:
        rows += [row(f"P(p ≤ {level})", system, "below", i) for i, level in enumerate(LEVELS)]
        for i, rate in enumerate(RATES):
            rows += [row(f"{name} at {rate}", system, key, i) for name, key in _DISCOVERIES.items()]
    return rows


_DISCOVERIES = {"false discoveries": "false", "power": "power"}


def _values(
    points: Sequence[Point], system: str, share: float | None, key: str, place: int | None = None
) -> np.ndarray:
    """What all tables and seeds gave."""
    chosen = [p[key] for p in points if p["system"] == system and p["contamination"] == share]
    return np.array(chosen if place is None else [values[place] for values in chosen])


def _shown(values: np.ndarray) -> str:
    """Mean and standard error; nothing where nothing was measured."""
    if not len(values):
        return ""
    return f"{values.mean():.3f} ± {_error(values):.3f}"


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def _figure(points: Sequence[Point], shares: Sequence[float]) -> Figure:
    """Draw levels kept, discoveries beside their rates, and AUROC over the share of anomalies."""
    drawn = Figure(figsize=(12, 3.6), layout="constrained")
    levels, rates, areas = drawn.subplots(1, 3)
    styles = dict(zip((*OURS, *THEIRS), ("o-", "s--", "^:", "v:"), strict=True))
    for system in OURS:
        for share in (shares[0], shares[-1]):
            found = [_values(points, system, share, "below", i) for i in range(len(LEVELS))]
            label = f"{system}, {share:.0%} anomalies"
            means, errors = [v.mean() for v in found], [2 * _error(v) for v in found]
            levels.errorbar(LEVELS, means, errors, fmt=styles[system], label=label, capsize=2)
    for (name, key), style in zip(_DISCOVERIES.items(), ("o-", "s--"), strict=True):
        found = [_values(points, "InvGAN", None, key, i) for i in range(len(RATES))]
        means, errors = [v.mean() for v in found], [2 * _error(v) for v in found]
        rates.errorbar(RATES, means, errors, fmt=style, label=name, capsize=2)
    for ax, ends in ((levels, LEVELS), (rates, RATES)):
        ax.plot([0, max(ends)], [0, max(ends)], color="#777777", lw=0.8, label="as promised, at most")
    for system, style in styles.items():
        means = [_values(points, system, share, "auroc").mean() for share in shares]
        areas.plot(shares, means, style, label=system)
    levels.set(xlabel="α", ylabel="share of normal rows with p ≤ α")
    rates.set(xlabel="--fdr", ylabel="share", title=f"InvGAN, up to {MAX_NORMAL_ROWS:,} normal rows")
    areas.set(xlabel="share of anomalies among the training rows", ylabel="mean AUROC")
    for ax in (levels, rates, areas):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    return drawn
