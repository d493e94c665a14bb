"""ADBench: InvGAN beside nearest neighbours, densities, forests and deep detectors on every table at hand.

Training rows are a random half of the normal ones, 5,000 at most. The test has the other half and all
anomalies; of more than 10,000 rows it keeps as many, with the same share of anomalies. Nobody sees a label,
and every system has one setting for all tables: its default. Other libraries' get standardised columns.
"""

import functools
import importlib.util
import itertools
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import false_discovery_control, rankdata, wilcoxon

from invgan import data, detectors
from invgan.errors import InputError
from invgan.estimators import AnomalyDetector
from invgan.experiments import rivals
from invgan.experiments.common import mean_and_std, write_figure
from invgan.experiments.points import Point, Record, cores
from invgan.experiments.rivals import PYOD, Fit, Score
from invgan.metrics import detection_metrics

MAX_TRAINING_ROWS, MAX_TEST_ROWS = 5_000, 10_000
SEEDS = (0, 1, 2)
OURS = "InvGAN"
QUICK_STEPS, QUICK_TABLES = 50, 2
DEEP = ("VAE", "DSEBM", "DAGMM", "EGBAD", "GANomaly", "ALAD", "AnoGAN")
"""This library's rivals that train networks."""


class Split(NamedTuple):
    """What is learned from, and what is scored."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    """1 for the test rows that are anomalies."""


def run(
    *,
    quick: bool = False,
    out: Path = Path("results"),
    systems: Sequence[str] | None = None,
    seeds: tuple[int, ...] = SEEDS,
) -> dict[str, Any]:
    """Score every table with every system; write ``adbench.json`` and ``adbench.png``.

    A run that is cut off and started again goes on after the last fit that it wrote.

    Parameters
    ----------
    quick : bool
        Two tables, one seed and 50 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    systems : sequence of str, optional
        Some of the systems; by default all whose libraries are installed. What an unfinished run has is
        kept: it is finished once it has all systems with all seeds.
    seeds : tuple of int
        Each splits and trains anew.

    Raises
    ------
    InputError
        If there are no tables, or no such system.
    """
    known = all_systems(quick=quick)
    for name in systems or ():
        if name not in known:
            raise InputError(f"The 'systems' parameter of adbench: {name!r} is none of {', '.join(known)}.")
    tables = data.adbench_tables()
    if not tables:
        raise InputError("There are no tables in INVGAN_DATA/adbench: put ADBench's .npz files there.")
    if quick:
        tables, seeds = tables[:QUICK_TABLES], seeds[:1]
    record = Record(out / "adbench.json", {"tables": tables, "quick": quick}, seeds, quick)
    begun = {(point["seed"], point["system"]) for point in record.unfinished()}
    asked = set(itertools.product(seeds, systems or known)) | begun
    fits = [fit for fit in itertools.product(sorted({seed for seed, _ in asked}), known) if fit in asked]
    keys = [{"system": system, "table": table, "seed": seed} for seed, system in fits for table in tables]
    record = replace(record, seeds=sorted({seed for seed, _ in fits}))
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    chosen = [name for name in known if any(system == name for _, system in fits)]
    areas, precisions, seconds = (_means(points, chosen, tables, key) for key in ("auroc", "ap", "total"))
    results = record.write(
        points,
        title=f"ADBench, {len(tables)} tables",
        table={
            "columns": ["system", "seeds", "AUROC", "mean rank", "AP", "mean rank", "p", "median seconds"],
            "rows": _rows(chosen, areas, precisions, seconds, points),
        },
        notes=[
            "AUROC, AP: mean over tables and seeds, ± standard deviation over seeds of the mean over tables. "
            "Mean rank over tables, 1 is best. p: Wilcoxon's test of AUROC against InvGAN's over the tables, "
            "on the seeds that both have, two-sided, adjusted for the number of tests (Benjamini and "
            "Hochberg). Seconds: fit and score.",
            "Each system has one setting for all tables, its default. PyOD's rows need pip install "
            "'invgan[benchmark]'.",
        ],
        by_table={
            name: dict(zip(tables, np.round(areas[i], 4).tolist(), strict=True))
            for i, name in enumerate(chosen)
        },
        complete=set(itertools.product(SEEDS[:1] if quick else SEEDS, known)) <= set(fits),
    )
    if len(chosen) > 1:
        write_figure(out / "adbench.png", _figure(chosen, areas))
    return results


def all_systems(*, quick: bool = False) -> dict[str, Fit]:
    """Name every system whose library is installed, the quick ones first."""
    steps = {"max_steps": QUICK_STEPS} if quick else {}
    systems = {
        OURS: _ours(detectors.InvGAN, **steps),
        "kNN": rivals.standardized(rivals.nearest_neighbours),
        "kernel density": rivals.standardized(rivals.kernel_density),
        "LOF": rivals.standardized(rivals.local_outlier_factor),
        "Isolation Forest": _ours(detectors.IsolationForest),
        "OC-SVM": _ours(detectors.OneClassSVM),
    }
    if importlib.util.find_spec("pyod") is not None and not quick:
        systems |= {f"PyOD {name}": rivals.standardized(rivals.pyod(name)) for name in PYOD}
    systems["InvGAN as in the paper"] = _ours(detectors.InvGAN, preset="paper", **steps)
    return systems | {name: _ours(getattr(detectors, name), **steps) for name in DEEP}


def _ours(kind: type[AnomalyDetector], **settings: Any) -> Fit:
    def fit(train: np.ndarray, seed: int) -> Score:
        seeded = {"random_state": seed} if "random_state" in kind._parameter_constraints else {}
        return kind(**settings, **seeded).fit(train).score_samples

    return fit


def split(
    table: str, seed: int, *, max_train: int = MAX_TRAINING_ROWS, max_test: int = MAX_TEST_ROWS
) -> Split:
    """Deal a table's rows: half of the normal ones train, the others and the anomalies test."""
    loaded = data.load(f"adbench/{table}")
    labels, rng = np.asarray(loaded.y), np.random.default_rng(seed)
    normal, abnormal = (rng.permutation(np.flatnonzero(labels == kind)) for kind in (0, 1))
    train, test = np.split(normal, [len(normal) // 2])
    if (n := len(test) + len(abnormal)) > max_test:
        n_abnormal = round(max_test * len(abnormal) / n)
        test, abnormal = test[: max_test - n_abnormal], abnormal[:n_abnormal]
    tested = np.concatenate([test, abnormal])
    return Split(loaded.X[train[:max_train]], loaded.X[tested], labels[tested])


def _measure(quick: bool, system: str, table: str, seed: int) -> Point:
    train, test, labels = split(table, seed)
    start = time.perf_counter()
    with warnings.catch_warnings():  # of other libraries, about each other's versions and a table's columns
        warnings.simplefilter("ignore")
        score = all_systems(quick=quick)[system](train, seed)
        fitted = time.perf_counter()
        scores = score(test)
    done = time.perf_counter()
    # Where a detector breaks down, on a constant column for instance, a row without a score is the least
    # normal: nobody would look at it as if nothing were wrong.
    finite = np.nan_to_num(scores, nan=np.nanmin(scores, initial=0.0))
    found = detection_metrics(labels, finite)
    return {**found, "fit": fitted - start, "score": done - fitted, "total": done - start}


def _means(points: Sequence[Point], systems: Sequence[str], tables: Sequence[str], key: str) -> np.ndarray:
    """Average over seeds: systems × tables."""
    found: dict[tuple[str, str], list[float]] = {}
    for point in points:
        found.setdefault((point["system"], point["table"]), []).append(point[key])
    return np.array([[np.mean(found[system, table]) for table in tables] for system in systems])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Rank the systems (rows) on each table (columns), the highest first, and average over tables.

    Examples
    --------
    >>> mean_ranks(np.array([[0.9, 0.8], [0.7, 0.8], [0.5, 0.6]])).tolist()
    [1.25, 1.75, 3.0]
    """
    return np.asarray(rankdata(-values, axis=0).mean(1))


def _rows(
    systems: Sequence[str],
    areas: np.ndarray,
    precisions: np.ndarray,
    seconds: np.ndarray,
    points: Sequence[Point],
) -> list[list[str]]:
    ranks, precision_ranks = mean_ranks(areas), mean_ranks(precisions)
    against = _p_values(systems, points)
    return [
        [
            systems[i],
            str(len({point["seed"] for point in points if point["system"] == systems[i]})),
            _over_seeds(points, systems[i], "auroc"),
            f"{ranks[i]:.2f}",
            _over_seeds(points, systems[i], "ap"),
            f"{precision_ranks[i]:.2f}",
            against.get(systems[i], ""),
            f"{np.median(seconds[i]):.1f}",
        ]
        for i in np.argsort(-areas.mean(1))
    ]


def _over_seeds(points: Sequence[Point], system: str, key: str) -> str:
    by_seed: dict[int, list[float]] = {}
    for point in points:
        if point["system"] == system:
            by_seed.setdefault(point["seed"], []).append(point[key])
    return mean_and_std([float(np.mean(values)) for values in by_seed.values()])


def _p_values(systems: Sequence[str], points: Sequence[Point]) -> dict[str, str]:
    """Test each system's areas against InvGAN's, paired by table and averaged over the seeds of both."""
    found: dict[str, dict[tuple[str, int], float]] = {name: {} for name in systems}
    for point in points:
        found[point["system"]][point["table"], point["seed"]] = point["auroc"]
    p_values = {}
    for name in systems:
        shared = found[name].keys() & found.get(OURS, {}).keys()
        differences: dict[str, list[float]] = {}
        for table, seed in shared:
            differences.setdefault(table, []).append(found[name][table, seed] - found[OURS][table, seed])
        means = [float(np.mean(values)) for values in differences.values()]
        if name != OURS and len(means) > 1 and any(means):
            p_values[name] = wilcoxon(means).pvalue
    if not p_values:
        return {}
    adjusted = false_discovery_control(list(p_values.values()))
    return {name: f"{p:.3g}" for name, p in zip(p_values, adjusted, strict=True)}


# The critical-difference diagram (Demšar, 2006)


def _figure(systems: Sequence[str], areas: np.ndarray) -> Figure:
    """Draw mean ranks on a line, with a bar over neighbours that no test tells apart."""
    ranks = mean_ranks(areas)
    order = np.argsort(ranks)
    left = len(order) - len(order) // 2
    figure = Figure(figsize=(9, 1.6 + 0.22 * left), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(len(systems) + 0.5, 0.5), ylim=(-left - 2.5, 1.0), yticks=[])  # the best on the right
    ax.xaxis.tick_top()
    ax.spines[["left", "right", "bottom"]].set_visible(False)
    ax.set_title(f"mean rank by AUROC over {areas.shape[1]} tables; bars: no difference (Holm, 0.05)")
    groups = _alike(areas[order])
    for level, (first, last) in enumerate(groups):
        ends = ranks[order[first]] - 0.05, ranks[order[last]] + 0.05
        ax.plot(ends, [0.4 - 0.25 * level] * 2, color="#d55e00", lw=3, solid_capstyle="round")
    below = 0.4 - 0.25 * len(groups)
    ax.set_ylim(-left - 1 + below, 1.0)
    for place, i in enumerate(order):
        best = place < left
        y = below - 0.6 - (place if best else len(order) - 1 - place)
        end = 0.5 if best else len(systems) + 0.5
        ax.plot([ranks[i], ranks[i], end], [1.0, y, y], color="#777777", lw=0.8)
        name = f"{systems[i]}  {ranks[i]:.2f}" if best else f"{ranks[i]:.2f}  {systems[i]}"
        weight = "bold" if systems[i] == OURS else "normal"
        ax.text(
            end, y, f" {name} ", ha="left" if best else "right", va="center", fontsize=8, fontweight=weight
        )
    return figure


def _alike(areas: np.ndarray) -> list[tuple[int, int]]:
    """Find the longest runs of systems, sorted by rank, no pair of which differs by Wilcoxon's test."""
    n = len(areas)
    pairs = list(itertools.combinations(range(n), 2))
    p = np.array(
        [wilcoxon(areas[i], areas[j]).pvalue if (areas[i] != areas[j]).any() else 1 for i, j in pairs]
    )
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    differ = {pair for pair, value in zip(pairs, adjusted, strict=True) if value < 0.05}
    runs: list[tuple[int, int]] = []
    for first in range(n):
        last = first
        while last + 1 < n and not any((i, last + 1) in differ for i in range(first, last + 1)):
            last += 1
        if last > first and not any(a <= first and last <= b for a, b in runs):
            runs.append((first, last))
    return runs
