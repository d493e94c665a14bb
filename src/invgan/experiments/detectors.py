"""Whether each detector learns: AUROC on four tables of ADBench and on the digits, beside simple references.

Half of the normal rows train; the other half and all anomalies test. On the digits each is the abnormal one
in turn. All detectors have their default settings, the same for all data.

**References.** Computed in the same run, by scikit-learn on the same rows: distances to five neighbours, a
kernel density, its own isolation forest. Published: ADBench's results (Han et al., 2022, repository
Minqi824/ADBench, ``result/AUCROC_DB_test_Tabular_None_None_unsupervise.csv``), the mean of its three seeds;
its detectors learn from rows with anomalies among them, which is harder.
"""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from invgan import detectors
from invgan.experiments import adbench
from invgan.experiments.adbench import Split
from invgan.experiments.common import mean_and_std
from invgan.experiments.digits import digits_task
from invgan.experiments.points import Point, Record, cores
from invgan.experiments.rivals import REFERENCES, standardized
from invgan.metrics import detection_metrics

SYSTEMS: dict[str, Callable[..., detectors.AnomalyDetector]] = {
    "OneClassSVM": detectors.OneClassSVM,
    "IsolationForest": detectors.IsolationForest,
    "DSEBM, energy": detectors.DSEBM,
    "DSEBM, reconstruction": functools.partial(detectors.DSEBM, method="reconstruction"),
    "DAGMM": detectors.DAGMM,
    "AnoGAN": detectors.AnoGAN,
    "EGBAD": detectors.EGBAD,
    "GANomaly": detectors.GANomaly,
    "ALAD": detectors.ALAD,
    "VAE": detectors.VAE,
    "InvGAN": detectors.InvGAN,
}
PUBLISHED = {
    "6_cardio": {"OCSVM": 0.939, "IForest": 0.943, "DAGMM": 0.750, "KNN": 0.766, "PCA": 0.956},
    "4_breastw": {"OCSVM": 0.803, "IForest": 0.984, "KNN": 0.970, "COPOD": 0.997},
    "18_Ionosphere": {"OCSVM": 0.759, "IForest": 0.841, "DAGMM": 0.734, "KNN": 0.883, "CBLOF": 0.907},
    "20_letter": {"OCSVM": 0.462, "IForest": 0.620, "DAGMM": 0.504, "KNN": 0.862},
}
"""ADBench's figures: of the methods that are here too, of KNN, and the best of its fifteen."""
DIGITS = tuple(f"digit {digit}" for digit in range(10))
BEHIND = 0.05
"""A detector that is further behind the best reference is named in the notes."""


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Any]:
    """Fit every detector to every set, and write ``detectors.json``.

    A run that is cut off and started again goes on after the last fits that it wrote.

    Parameters
    ----------
    quick : bool
        A digit and a table, one seed and 30 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results file.
    seeds : tuple of int
        Each splits, initialises and trains anew.
    """
    seeds = seeds[:1] if quick else seeds
    sets = ("18_Ionosphere", DIGITS[0]) if quick else (*PUBLISHED, *DIGITS)
    names = (*SYSTEMS, *REFERENCES)
    keys = [
        {"dataset": dataset, "system": name, "seed": seed}
        for seed in seeds
        for dataset in sets
        for name in names
    ]
    record = Record(out / "detectors.json", {"quick": quick}, seeds, quick)
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    return record.write(
        points,
        title=f"Each detector learns: AUROC, mean ± std over {len(seeds)} seed(s)",
        table=table(points),
        cells=page_cells(points),
        behind=(behind := gaps(points)),
        notes=[
            "digits: the mean over the abnormal digit. fit, s: of the digits, on one core.",
            f"More than {BEHIND} behind the best reference: "
            + ("; ".join(f"{name} by {gap:.3f}" for name, gap in behind.items()) or "none")
            + ".",
            "ADBench's detectors learn from rows with anomalies among them; ours from normal ones.",
        ],
        published=PUBLISHED,
    )


def table(points: Sequence[Point]) -> dict[str, Any]:
    """Set each system's AUROC on each set beside the best published one."""
    by_set = _by_set(points)
    rows = []
    for name in dict.fromkeys(point["system"] for point in points):
        fits = [p["fit_seconds"] for p in points if p["system"] == name and p["dataset"] in DIGITS]
        seconds = f"{np.mean(fits):.1f}" if name in SYSTEMS else ""
        rows.append([name, *(mean_and_std(list(found[name].values())) for found in by_set.values()), seconds])
    best = [
        "{}: {:.3f}".format(*max(PUBLISHED[name].items(), key=lambda item: item[1]))
        if name in PUBLISHED
        else ""
        for name in by_set
    ]
    columns = [name.rpartition("_")[2] for name in by_set]
    return {"columns": ["detector", *columns, "fit, s"], "rows": [*rows, ["best published", *best, ""]]}


def page_cells(points: Sequence[Point]) -> dict[str, list[str]]:
    """Sum up each class for docs/detectors.md: AUROC on tables and on digits, and seconds to fit digits."""

    def means(name: str, key: str, *, digits: bool) -> str:
        by_kind: dict[str, list[float]] = {}
        for point in points:
            if point["system"].partition(",")[0] == name and (point["dataset"] in DIGITS) == digits:
                by_kind.setdefault(point["system"], []).append(point[key])
        places = 3 if key == "auroc" else 1
        return " / ".join(f"{np.mean(values):.{places}f}" for values in by_kind.values())

    return {
        name: [
            means(name, "auroc", digits=False),
            means(name, "auroc", digits=True),
            means(name, "fit_seconds", digits=True),
        ]
        for name in dict.fromkeys(system.partition(",")[0] for system in SYSTEMS)
    }


def gaps(points: Sequence[Point]) -> dict[str, float]:
    """List how far behind the best reference detectors are, where it is more than :data:`BEHIND`."""
    found = {}
    for dataset, by_system in _by_set(points).items():
        means = {name: float(np.mean(list(aurocs.values()))) for name, aurocs in by_system.items()}
        references = [means[name] for name in REFERENCES if name in means]
        best = max([*references, *PUBLISHED.get(dataset, {}).values()])
        for name in SYSTEMS:
            if name in means and best - means[name] > BEHIND:
                found[f"{name} on {dataset}"] = best - means[name]
    return found


def make_task(dataset: str, seed: int) -> Split:
    """Split a table, or the digits with one of them abnormal."""
    if dataset in DIGITS:
        task = digits_task(DIGITS.index(dataset), seed=seed)
        return Split(task.train, task.test, task.labels)
    return adbench.split(dataset, seed)


def _measure(quick: bool, dataset: str, system: str, seed: int) -> Point:
    """Fit a system to the normal rows and score the others."""
    task = make_task(dataset, seed)
    start = time.perf_counter()
    if system in REFERENCES:
        train, test = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (task.train, task.test))
        fit = REFERENCES[system] if dataset in DIGITS else standardized(REFERENCES[system])
        scores = fit(train, seed)(test)
        fit_seconds = None
    else:
        detector = SYSTEMS[system](random_state=seed)
        if quick and "max_steps" in detector.get_params():
            detector.set_params(max_steps=30)
        detector.fit(task.train)
        fit_seconds = time.perf_counter() - start
        scores = detector.score_samples(task.test)
    return {**detection_metrics(task.labels, scores), "fit_seconds": fit_seconds}


def _by_set(points: Sequence[Point]) -> dict[str, dict[str, dict[int, float]]]:
    """Each system's AUROC by seed on each table, and its mean over the digits."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for point in points:
        name = "digits" if point["dataset"] in DIGITS else point["dataset"]
        by_seed = found.setdefault(name, {}).setdefault(point["system"], {})
        by_seed.setdefault(point["seed"], []).append(point["auroc"])
    return {
        name: {
            system: {seed: float(np.mean(values)) for seed, values in by_seed.items()}
            for system, by_seed in by_system.items()
        }
        for name, by_system in found.items()
    }
