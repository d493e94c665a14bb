"""Explanations of anomalies planted in known columns: the share found, beside SHAP on the same model.

Of each ADBench table a model learns half of the normal rows, 2,000 at most. In others of them a few columns
are changed: shifted by four standard deviations up or down, or replaced by values that other rows have there,
which by themselves are as normal as any. Whoever explains the row names as many columns.
"""

import functools
import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invgan import data
from invgan.detectors import InvGAN
from invgan.errors import InputError
from invgan.experiments import adbench
from invgan.experiments.points import Point, Record, cores
from invgan.experiments.rivals import globally_seeded

MAX_TRAINING_ROWS = 2_000
N_ROWS = 10
"""Rows of each table that are changed and explained."""
MAX_CHANGED = 3
SHIFT = 4.0
KINDS = ("shifted", "replaced")
N_BACKGROUND = 10
"""Training rows whose values SHAP puts in the place of those that it hides."""
MAX_EVALUATIONS = 500
"""Of the score, for each explained row and each row of the background; SHAP takes 2 D + 1 at least."""
SEEDS = (0, 1, 2)
QUICK_STEPS, QUICK_TABLES, QUICK_ROWS = 20, 2, 2

Explain = Callable[[np.ndarray], np.ndarray]
"""Gives each value of rows (n, D) its part in the row being unusual."""


class Planted(NamedTuple):
    """Rows in which columns were changed."""

    rows: np.ndarray
    changed: np.ndarray
    """Which ones, n×k."""


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    """Plant and explain anomalies in every table; write ``explanations.json``.

    A run that is cut off and started again goes on after the last table that it wrote.

    Parameters
    ----------
    quick : bool
        Two tables, two rows of each, one seed and 20 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seeds : tuple of int
        Each deals the rows, trains and plants anew.

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
    settings = {"tables": tables, "quick": quick, "shap": importlib.util.find_spec("shap") is not None}
    keys = [{"table": table, "seed": seed} for seed, table in itertools.product(seeds, tables)]
    record = Record(out / "explanations.json", settings, seeds, quick)
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    return record.write(
        points,
        title=f"Planted anomalies explained, {len(tables)} tables, {len(seeds)} seed"
        + "s" * (len(seeds) > 1),
        table={
            "columns": ["columns", "explained by", "share found", "by chance", "median seconds per row"],
            "rows": [row for kind in KINDS for row in _rows(points, kind)],
        },
        notes=[
            "Share of the changed columns among as many of the largest parts: mean over tables and seeds ± "
            "standard error. z-score: the distance from the training rows' mean in standard deviations, "
            "which knows no model. SHAP: its PermutationExplainer of score_samples, with "
            f"{N_BACKGROUND} training rows and {MAX_EVALUATIONS} evaluations, or 2 D + 1 if that is more; "
            "its row needs pip install 'invgan[benchmark]'.",
        ],
    )


def plant(train: np.ndarray, rows: np.ndarray, kind: str, seed: int) -> Planted:
    """Change some columns of each row: a third of those that vary in the training rows, three at most."""
    rng = np.random.default_rng(seed)
    changed_rows, std = rows.copy(), train.std(0)
    varying = np.flatnonzero((train != train[0]).any(0))  # rounding gives a constant column a deviation too
    n_changed = max(1, min(MAX_CHANGED, len(varying) // 3))
    changed = np.stack([rng.permutation(varying)[:n_changed] for _ in rows])
    for row, columns in zip(changed_rows, changed, strict=True):
        for column in columns:
            if kind == "shifted":
                row[column] += rng.choice([-SHIFT, SHIFT]) * std[column]
            else:
                others = train[train[:, column] != row[column], column]
                row[column] = rng.choice(others)
    return Planted(changed_rows, changed)


def found_share(parts: np.ndarray, changed: np.ndarray) -> float:
    """Take the changed columns' share of as many largest parts, over all rows.

    Examples
    --------
    >>> found_share(np.array([[5.0, 1.0, 3.0], [0.0, 2.0, 1.0]]), np.array([[0, 1], [1, 2]]))
    0.75
    """
    largest = np.argsort(-parts, axis=1, kind="stable")[:, : changed.shape[1]]
    return float((largest[:, :, None] == changed[:, None]).any(2).mean())


def _measure(quick: bool, table: str, seed: int) -> Point:
    split = adbench.split(table, seed)
    train = split.train[:MAX_TRAINING_ROWS]
    rows = split.test[split.labels == 0][: QUICK_ROWS if quick else N_ROWS]
    detector = InvGAN(max_steps=QUICK_STEPS if quick else None, random_state=seed).fit(train)
    point: Point = {"features": train.shape[1]}
    for kind in KINDS:
        planted = plant(train, rows, kind, seed)
        point[kind] = {"by chance": planted.changed.shape[1] / train.shape[1]}
        for name, explain in _explainers(detector, train, seed).items():
            start = time.perf_counter()
            parts = explain(planted.rows)
            seconds = (time.perf_counter() - start) / len(rows)
            point[kind][name] = {"found": found_share(parts, planted.changed), "seconds": seconds}
    return point


def _explainers(detector: InvGAN, train: np.ndarray, seed: int) -> dict[str, Explain]:
    std = train.std(0)
    scale = np.where(std > 0, std, 1)
    explainers: dict[str, Explain] = {
        "InvGAN.explain": detector.explain,
        "z-score": lambda rows: np.abs(rows - train.mean(0)) / scale,
    }
    if importlib.util.find_spec("shap") is not None:
        explainers["SHAP"] = functools.partial(_shap, detector.score_samples, train, seed)
    return explainers


def _shap(score: Callable[[np.ndarray], np.ndarray], train: np.ndarray, seed: int, rows: np.ndarray) -> Any:
    """Explain why the score is low: the features' negative parts in it."""
    shap = importlib.import_module("shap")
    background = np.random.default_rng(seed).permutation(train)[:N_BACKGROUND]
    with globally_seeded(seed):
        masker = shap.maskers.Independent(background, max_samples=len(background))
        explainer = shap.PermutationExplainer(score, masker, seed=seed)
        evaluations = max(MAX_EVALUATIONS, 2 * train.shape[1] + 1)
        return -explainer(rows, max_evals=evaluations, silent=True).values


def _rows(points: Sequence[Point], kind: str) -> list[list[str]]:
    chance = np.mean([point[kind]["by chance"] for point in points])
    rows = []
    for name in points[0][kind]:
        if name != "by chance":
            found = np.array([point[kind][name]["found"] for point in points])
            error = found.std(ddof=1) / len(found) ** 0.5
            seconds = np.median([point[kind][name]["seconds"] for point in points])
            rows.append([kind, name, f"{found.mean():.3f} ± {error:.3f}", f"{chance:.3f}", f"{seconds:.4f}"])
    return rows
