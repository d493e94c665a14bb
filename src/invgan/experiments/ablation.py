"""What each ingredient of the default detector is worth: ADBench's tables with one thing changed at a time.

Splits are those of the benchmark, at most 2,000 training and 4,000 test rows. Every change is the same for
all tables.
"""

import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import Tensor

from invgan import data
from invgan.detectors import InvGAN
from invgan.errors import InputError
from invgan.experiments import adbench
from invgan.experiments.common import mean_and_std
from invgan.experiments.points import Point, Record, cores
from invgan.gan import energy_distance
from invgan.likelihood import TangentMixture
from invgan.likelihood.aggregate import Neighbours
from invgan.metrics import detection_metrics

MAX_TRAINING_ROWS, MAX_TEST_ROWS = 2_000, 4_000
MAX_SAMPLES = 1_000
SEEDS = (1,)
"""Another than the one by which ingredients were chosen."""
QUICK_STEPS, QUICK_TABLES = 50, 2
DEFAULT = "InvGAN()"
LONGER = "1,500 steps at a third of the rate"


class WithoutGenerator(TangentMixture):
    """Components extend along the rows' own steps alone."""

    def _vectors(self, which: Tensor, nears: Sequence[Neighbours]) -> list[Tensor]:
        return [math.sqrt(2) * both.tensor_split(2, dim=2)[1] for both in super()._vectors(which, nears)]


class WithoutRows(TangentMixture):
    """Components extend along the generator's tangents alone."""

    def _vectors(self, which: Tensor, nears: Sequence[Neighbours]) -> list[Tensor]:
        return [math.sqrt(2) * both.tensor_split(2, dim=2)[0] for both in super()._vectors(which, nears)]


class OneNoise(TangentMixture):
    """The noise is as wide everywhere."""

    def _neighbours(self, which: Tensor, others: Tensor) -> Neighbours:
        near = super()._neighbours(which, others)
        spread = self.centers.var(0, correction=0).mean()
        return near._replace(scale=spread.clamp_min(1e-12).expand_as(near.scale))


class OwnNoise(TangentMixture):
    """The noise is as wide as a row's own neighbours say."""

    locality = 1.0


class WithoutRound(TangentMixture):
    """The stretched kernel alone."""

    round_share = 0.0


class OnlyRound(TangentMixture):
    """The round kernel alone: no tangents at all."""

    round_share = 1.0


FITS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "untrained: one step": {"max_steps": 1},
    LONGER: {"max_steps": 1500, "learning_rate": 1e-3},
    "columns unskewed": {"unskew": True},
    "the paper's networks, loss and σ": {"preset": "paper", "method": "aggregate"},
}
"""Settings that differ, for which the networks are trained anew."""
MIXTURES: dict[str, Callable[..., TangentMixture]] = {
    "without the generator's tangents": WithoutGenerator,
    "without the rows' own steps": WithoutRows,
    "one noise for all rows": OneNoise,
    "each row's noise by its neighbours alone": OwnNoise,
    "without the round kernel": WithoutRound,
    "the round kernel alone": OnlyRound,
    "without the tails": functools.partial(TangentMixture, tail_share=0.0),
}
"""Densities around the default's encoded rows."""
POINTWISE = {"score: joint": "joint", "score: riemannian (Eq. 4)": "riemannian"}


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    """Change one thing at a time, and write ``ablation.json``.

    A run that is cut off and started again goes on after the last fit that it wrote.

    Parameters
    ----------
    quick : bool
        Two tables, one seed and at most 50 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seeds : tuple of int
        Each splits and trains anew.

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
    keys = [
        {"fit": fit, "table": table, "seed": seed}
        for seed, fit, table in itertools.product(seeds, FITS, tables)
    ]
    record = Record(out / "ablation.json", {"tables": tables, "quick": quick}, seeds, quick)
    points = record.collect(keys, functools.partial(_measure, quick), processes=cores(quick=quick))
    return record.write(
        points,
        title=f"What each ingredient is worth, {len(tables)} tables of ADBench",
        table={
            "columns": ["changed", "AUROC", "AP", "better / worse", "p", "samples", "median s to fit"],
            "rows": table_rows(points),
        },
        notes=[
            "AUROC, AP: mean over tables and seeds, ± standard deviation over seeds of the mean over tables. "
            "better / worse: tables on which the change raises or lowers the AUROC by more than 0.001, the "
            "mean over seeds. p: Wilcoxon's test over the tables, two-sided. samples: energy distance, 0 is "
            f"best, between as many of them as normal test rows, {MAX_SAMPLES:,} at most, in scaled columns; "
            "the median over the tables.",
            f"At most {MAX_TRAINING_ROWS:,} training and {MAX_TEST_ROWS:,} test rows of the benchmark's.",
        ],
    )


def _measure(quick: bool, fit: str, table: str, seed: int) -> Point:
    """Fit once, and score by all that needs no other fit."""
    train, test, labels = adbench.split(table, seed, max_train=MAX_TRAINING_ROWS, max_test=MAX_TEST_ROWS)
    start = time.perf_counter()
    detector = InvGAN(random_state=seed, **FITS[fit])
    if quick:
        detector.set_params(max_steps=min(QUICK_STEPS, detector.max_steps or QUICK_STEPS))
    detector.fit(train)
    seconds = time.perf_counter() - start
    found = {fit: detection_metrics(labels, detector.score_samples(test))}
    if fit in (DEFAULT, LONGER):
        for name, method in POINTWISE.items():
            full_name = name if fit == DEFAULT else f"{name}, {fit}"
            found[full_name] = detection_metrics(labels, detector.log_likelihood(test, method).values)
    if fit == DEFAULT:
        for name, kind in MIXTURES.items():
            found[name] = detection_metrics(labels, _changed(detector, kind, seed).score_samples(test))
    scores = {name: {key: metrics[key] for key in ("auroc", "ap")} for name, metrics in found.items()}
    normal = test[labels == 0][:MAX_SAMPLES]
    samples = detector.sample(len(normal), random_state=seed)
    distance = energy_distance(*(detector.scaling_(torch.as_tensor(rows)) for rows in (normal, samples)))
    return {"scores": scores, "fit_seconds": seconds, "sample_distance": distance.item()}


def _changed(detector: InvGAN, kind: Callable[..., TangentMixture], seed: int) -> InvGAN:
    """Give the detector another density around the same encoded rows."""
    other = copy.copy(detector)
    with other._scoring():
        mixture = detector.mixture_
        other.mixture_ = kind(
            mixture.centers, mixture.codes, other._flat_generator(), n_reference=int(mixture.n_reference)
        )
        other.mixture_.fit_bandwidths(seed=seed)
    return other


def table_rows(points: Sequence[Point]) -> list[list[str]]:
    """Set every change beside the default, on the same tables and seeds."""
    found: dict[str, dict[tuple[int, str], dict[str, float]]] = {}
    for point in points:
        for name, metrics in point["scores"].items():
            found.setdefault(name, {})[point["seed"], point["table"]] = metrics
    seeds = sorted({point["seed"] for point in points})
    tables = list(dict.fromkeys(point["table"] for point in points))

    def values(name: str, key: str) -> np.ndarray:
        return np.array([[found[name][seed, table][key] for table in tables] for seed in seeds])

    rows = []
    for name in found:
        areas, precisions = values(name, "auroc"), values(name, "ap")
        gain = (areas - values(DEFAULT, "auroc")).mean(0)
        fits = [point for point in points if point["fit"] == name]
        rows.append(
            [
                name,
                mean_and_std(list(areas.mean(1))),
                mean_and_std(list(precisions.mean(1))),
                f"{(gain > 1e-3).sum()} / {(gain < -1e-3).sum()}" if name != DEFAULT else "",
                f"{wilcoxon(gain).pvalue:.3g}" if len(gain) > 1 and gain.any() else "",
                f"{np.median([fit['sample_distance'] for fit in fits]):.3f}" if fits else "",
                f"{np.median([fit['fit_seconds'] for fit in fits]):.1f}" if fits else "",
            ]
        )
    return rows
