"""Digits, one of them abnormal: InvGAN's scores beside the nearest neighbours, a kernel density, a forest.

The protocol is the demonstration's: half of the normal rows train, the rest and the abnormal digit test.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invgan import data
from invgan.detectors import InvGAN
from invgan.detectors.latent import IMAGE_METHODS
from invgan.experiments.common import mean_and_std, provenance, write_results
from invgan.experiments.rivals import REFERENCES
from invgan.metrics import detection_metrics


class DigitsTask(NamedTuple):
    """One digit against the other nine."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    """1 where the test row shows the abnormal digit."""
    digits: np.ndarray
    """Which digit each test row shows."""


def digits_task(abnormal: int, *, seed: int) -> DigitsTask:
    """Split scikit-learn's digits: half of the normal rows train; the rest and all abnormal ones test."""
    digits = data.load("digits")
    shown = np.asarray(digits.y)
    normal = np.flatnonzero(shown != abnormal)
    normal = np.random.default_rng([seed, abnormal]).permutation(normal)
    half = len(normal) // 2
    test = np.concatenate([normal[half:], np.flatnonzero(shown == abnormal)])
    return DigitsTask(
        digits.X[normal[:half]],
        digits.X[test],
        (shown[test] == abnormal).astype(int),
        shown[test],
    )


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Any]:
    """Run all ten choices of the abnormal digit and write ``digits.json``.

    Parameters
    ----------
    quick : bool
        One seed and 100 training steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results file.
    seeds : tuple of int
        Each splits, initialises and trains anew.
    """
    seeds = seeds[:1] if quick else seeds
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        for abnormal in range(10):
            task = digits_task(abnormal, seed=seed)
            detector = InvGAN(random_state=seed, max_steps=100 if quick else None).fit(task.train)
            scores = {
                f"InvGAN {method}": detector.log_likelihood(task.test, method).values
                for method in IMAGE_METHODS
            }
            flat_train, flat_test = (
                task.train.reshape(len(task.train), -1),
                task.test.reshape(len(task.test), -1),
            )
            for name, fit in REFERENCES.items():
                scores[name] = fit(flat_train.astype(float), seed)(flat_test.astype(float))
            p_values = detector.p_values(task.test)
            runs.append(
                {
                    "seed": seed,
                    "abnormal": abnormal,
                    "false_positive_rate": float((p_values <= 0.05)[task.labels == 0].mean()),
                    "scores": {name: detection_metrics(task.labels, s) for name, s in scores.items()},
                }
            )
    names = list(runs[0]["scores"])
    by_seed = {
        name: {
            metric: [
                float(np.mean([r["scores"][name][metric] for r in runs if r["seed"] == seed]))
                for seed in seeds
            ]
            for metric in ("auroc", "ap")
        }
        for name in names
    }
    results = {
        "title": "Digits: nine normal, one abnormal; mean over the ten choices",
        "table": {
            "columns": ["score", "AUROC", "AP"],
            "rows": [
                [name, mean_and_std(by_seed[name]["auroc"]), mean_and_std(by_seed[name]["ap"])]
                for name in names
            ],
        },
        "by_seed": by_seed,
        "runs": runs,
        "quick": quick,
        **provenance(seeds=seeds),
    }
    write_results(out / "digits.json", results)
    return results
