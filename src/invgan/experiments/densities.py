"""How close every density model comes to densities that are known, and to the simplest rivals on real tables.

Known: four sets in the plane, 20,000 training rows each; what is measured is the mean of
log p_true(x) − log p(x) over as many new rows, an estimate of the Kullback-Leibler divergence. Real: four
tables of ADBench, their normal rows only, one half to train and one to test, 20,000 of each at most.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.mixture import GaussianMixture

from invgan import data, density
from invgan.data.toy import TOYS, toy
from invgan.experiments.points import Point, Record, cores

N_ROWS = 20_000
TABLES = ("adbench/10_cover", "adbench/32_shuttle", "adbench/44_Wilt", "adbench/19_landsat")
"""The two largest, of 10 and 9 columns, and two of some 2,500 training rows, of 5 and 36 columns.

To integers, which all but Wilt's values are, noise of a level's width is added.
"""
GAUSSIANS = ("Gaussian", "Gaussian mixture")
MODELS = (*GAUSSIANS, "MADE", "MAF", "RealNVP", "Glow", "FlowGAN", "FlowVAE", "FFJORD")
"""The fastest first: of a run that is cut off most are there."""
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)


class _Rows(NamedTuple):
    train: np.ndarray
    test: np.ndarray
    truth: np.ndarray | None
    """True log-density of the test rows, where it is known."""


def run(*, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Fit every density model, all with their default settings, and write ``densities.json``.

    A run that is cut off and started again goes on after the last fits that it wrote.

    Parameters
    ----------
    quick : bool
        Two sets, 1,000 rows and 30 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seeds : tuple of int
        Each draws or splits the data and trains anew.
    """
    sets = TOYS[:1] + TABLES[:1] if quick else TOYS + TABLES
    keys = [
        {"dataset": name, "model": model, "seed": seed} for model in MODELS for name in sets for seed in seeds
    ]
    record = Record(out / "densities.json", {"rows": N_ROWS, "quick": quick}, seeds, quick)
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    return record.write(
        points,
        title=f"Density models: nats short of the true log-density ({N_ROWS:,} training rows), and nats "
        "per row of real tables",
        table=table(points, sets),
        note=(
            "Sets in the plane: mean of log p_true − log p over new rows, ± its standard error; 0 is "
            "perfect, lower is better. Tables: mean log p of test rows, in nats of the table's own units; "
            "higher is better. FlowVAE's is a lower bound. All settings are defaults, the same for all sets; "
            "those of the splines were compared on the checkerboard, with other draws."
        ),
    )


def table(points: Sequence[Point], sets: Sequence[str]) -> dict[str, Any]:
    """Set out what was measured; a cell is empty where nothing was yet."""
    return {
        "columns": ["model", *(_title(name) for name in sets)],
        "rows": [[model, *(_cell(points, name, model) for name in sets)] for model in MODELS],
    }


def _measure(quick: bool, dataset: str, model: str, seed: int) -> Point:
    rows = _rows(dataset, seed, quick)
    if model in GAUSSIANS:
        found = _gaussians(rows, model, seed)
        steps = None
    else:
        small = {"max_steps": 30, "width": 8} if quick else {}
        estimator = getattr(density, model)(random_state=seed, **small).fit(rows.train)
        found = estimator.score_samples(rows.test)
        steps = estimator.history_.best_step
    result: Point = {"log_density": float(found.mean()), "best_step": steps}
    if rows.truth is not None:
        short = rows.truth - found
        result |= {"short": float(short.mean()), "error": float(short.std() / np.sqrt(len(short)))}
    return result


def _rows(name: str, seed: int, quick: bool) -> _Rows:
    """Draw or split a set; the seeds are not those that settings were compared with."""
    rng = np.random.default_rng([seed, 1])
    if name in TOYS:
        n = 1000 if quick else N_ROWS
        test, truth = toy(name, n, random_state=rng)
        return _Rows(toy(name, n, random_state=rng).X, test, truth)
    loaded = data.load(name)
    X = loaded.X[np.asarray(loaded.y) == 0]
    if (np.round(X) == X).all():
        X = X + rng.random(X.shape)
    order = rng.permutation(len(X))
    train, test = np.split(order, [len(X) // 2])
    return _Rows(X[train[: 1000 if quick else N_ROWS]], X[test[:N_ROWS]], None)


def _gaussians(rows: _Rows, model: str, seed: int) -> np.ndarray:
    """Score by one Gaussian, or by as many as a tenth of the training rows likes best."""
    mean, std = rows.train.mean(0), rows.train.std(0)
    train, test = (rows.train - mean) / std, (rows.test - mean) / std

    def fitted(n: int, part: np.ndarray) -> GaussianMixture:
        return GaussianMixture(n, random_state=seed).fit(part)

    n = 1
    if model == "Gaussian mixture":
        held_out, learned = np.split(train, [len(train) // 10])
        n = max(COMPONENTS, key=lambda n: fitted(n, learned).score(held_out))
    return fitted(n, train).score_samples(test) - np.log(std).sum()


def _title(name: str) -> str:
    return name.rpartition("_")[2]


def _cell(points: Sequence[Point], name: str, model: str) -> str:
    chosen = [point for point in points if (point["dataset"], point["model"]) == (name, model)]
    if not chosen:
        return ""
    if "short" not in chosen[0]:
        return f"{np.mean([point['log_density'] for point in chosen]):.3f}"
    short, error = (np.mean([point[key] for point in chosen]) for key in ("short", "error"))
    return f"{short:.3f} ± {error:.3f}"
