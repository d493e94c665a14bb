r"""Table 1, InvGAN's row: true bits per dimension of test images, beside the paper's revised metric.

Every system learns from, and is scored on, images with uniform noise added to each level (``dequantize``), in
their own size: of discrete values a density can be made as high as one likes, so a density fitted to the
levels themselves has no meaningful bits. The noise of the test images has a generator of its own. The bits
are those of :func:`invgan.likelihood.bits_per_dimension` with levels of width 1, of the densities that are
normalised over all of R^D:

- ``aggregate``, around the encoded training rows;
- ``importance``, an estimate of ∫ p(x | z) p(z) dz, the density of the stochastic generator itself.

Eq. 4 (``riemannian``) is a density on a surface, and has none. The revised metric is taken at z = h(x) with
pixels scaled to [−1, 1], as in the paper.

The other systems' figures are quoted as the paper prints them (from FFJORD's and Flow-GAN's papers).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from invgan import data as named
from invgan.detectors import InvGAN
from invgan.errors import InputError, UnreliableEstimateWarning
from invgan.experiments.common import provenance, write_figure, write_results
from invgan.experiments.figure3 import PRIOR_TERM
from invgan.experiments.points import Point, collect
from invgan.geometry import log_volume
from invgan.likelihood import bits_per_dimension, dequantize, log_prior, revised_bits_per_dimension

PAPER = {
    "RealNVP": {"mnist": 1.06, "cifar10": 3.49, "imagenet32": 4.28},
    "Glow": {"mnist": 1.05, "cifar10": 3.35, "imagenet32": 4.09},
    "FFJORD": {"mnist": 0.99, "cifar10": 3.40},
    "MADE": {"mnist": 2.04, "cifar10": 5.67},
    "MAF": {"mnist": 1.89, "cifar10": 4.31},
    "FlowGAN": {"mnist": 3.26, "cifar10": 4.21},
}
"""Bits per dimension as printed."""
PAPER_REVISED = {"mnist": 1.29, "cifar10": 1.23, "imagenet32": 1.02}
"""InvGAN's figures as printed: the revised metric, in nats."""
LEVELS = {"digits": 17, "mnist": 256, "cifar10": 256, "imagenet32": 256}
NOTES = (
    "bits/dim: what a code made from the density spends on each value of a dequantised test image, in bits; "
    "comparable between all densities on the same images, and with flows.",
    "revised metric: −log p(z)/d + ½ log det(JᵀJ)/D at z = h(x), in nats; its first term is about 1.42 "
    "whatever was learned, and it is no code length: not comparable with bits/dim, nor with flows.",
)


class Setting(NamedTuple):
    """What a run consists of; None leaves a parameter to the system."""

    training_rows: int
    test_rows: int
    sampled_rows: int
    """Test rows, the first ones, whose density is estimated by sampling."""
    n_samples: int
    max_steps: int | None
    seeds: tuple[int, ...]


DIGITS = Setting(1297, 500, 500, 2000, None, (0, 1, 2))
IMAGES = {
    "cuda": Setting(50_000, 2000, 500, 1000, 20_000, (0,)),
    "cpu": Setting(2000, 200, 32, 500, 300, (0,)),
}
QUICK = Setting(300, 40, 20, 100, 20, (0,))


class Task(NamedTuple):
    """Dequantised images, (n, C, H, W) float64."""

    training: np.ndarray
    test: np.ndarray


class Score(NamedTuple):
    """What a system says of the test images, in nats of images whose levels are 1 apart."""

    log_likelihood: dict[str, np.ndarray]
    """log p(x) by each of its densities, normalised over R^D; perhaps of the first rows alone."""
    revised: np.ndarray | None = None
    """The revised metric of each row, for systems that have latents."""
    diagnostics: dict[str, float] = {}  # noqa: RUF012  never changed


System = Callable[[Task, Setting, int], Score]


def run(*, quick: bool = False, out: Path = Path("results"), data: str = "digits") -> dict[str, Any]:
    """Fit every system and score the test images; write ``table1-<data>.json``, and ``.png`` of the rows.

    A run that is cut off and started again goes on after the last fit that it wrote.

    Parameters
    ----------
    quick : bool
        One seed, few images and 20 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    data : {"digits", "mnist", "cifar10", "imagenet32"}
        Other than the digits, at full size only on an accelerator.

    Raises
    ------
    InputError
        If ``data`` is none of these, or not at hand.
    """
    if data not in LEVELS:
        raise InputError(
            f"The 'data' parameter of table1 must be one of {', '.join(LEVELS)}. Got {data!r} instead."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = QUICK if quick else DIGITS if data == "digits" else IMAGES[device]
    reduced = not quick and data != "digits" and device == "cpu"
    dataset = named.load(data)
    n_dimensions = math.prod(dataset.X.shape[1:])

    def measure(system: str, seed: int) -> Point:
        score = SYSTEMS[system](make_task(dataset, setting, seed), setting, seed)
        bits = {
            name: bits_per_dimension(values, n_dimensions) for name, values in score.log_likelihood.items()
        }
        return {
            "bits_per_dimension": {name: values.tolist() for name, values in bits.items()},
            "revised": None if score.revised is None else score.revised.tolist(),
            "diagnostics": score.diagnostics,
        }

    path = out / f"table1-{data}.json"
    settings = {"data": data, "device": device, **setting._asdict()}
    keys = [{"system": system, "seed": seed} for system in SYSTEMS for seed in setting.seeds]
    points = collect(path, settings, keys, measure, seeds=setting.seeds)
    spread = "standard deviation over seeds" if len(setting.seeds) > 1 else "standard error over images"
    results = {
        "title": f"Table 1, {data}: {setting.training_rows:,} training and {setting.test_rows:,} test images "
        f"of {n_dimensions:,} dimensions; mean ± {spread}",
        "table": {
            "columns": ["density", "bits/dim", "revised metric, nats"],
            "rows": [*_measured(points), *_quoted(data)],
        },
        "notes": [*NOTES, f"Data: {dataset.note}"],
        "complete": True,
        "reduced": reduced,
        "settings": settings,
        "points": points,
        "quick": quick,
        **provenance(seeds=setting.seeds),
    }
    write_results(path, results)
    write_figure(path.with_suffix(".png"), _figure(points))
    return results


def make_task(dataset: named.Dataset, setting: Setting, seed: int) -> Task:
    """Choose the images and dequantise them; where no part is for testing, the seed splits them."""
    order = np.random.default_rng([seed, 0]).permutation(len(dataset.X))
    training, rest = np.split(order, [setting.training_rows])
    test = dataset.X[rest] if dataset.X_test is None else dataset.X_test
    return Task(
        dequantize(dataset.X[training], np.random.default_rng([seed, 1])),
        dequantize(test[: setting.test_rows], np.random.default_rng([seed, 2])),
    )


def _invgan(preset: str | None) -> System:
    def fit_and_score(task: Task, setting: Setting, seed: int) -> Score:
        detector = InvGAN(preset=preset, max_steps=setting.max_steps, random_state=seed).fit(task.training)
        with warnings.catch_warnings():  # how many are unreliable is in the results
            warnings.simplefilter("ignore", UnreliableEstimateWarning)
            sampled = detector.log_likelihood(
                task.test[: setting.sampled_rows], "importance", n_samples=setting.n_samples
            )
        return Score(
            {
                "aggregate": detector.log_likelihood(task.test, "aggregate").values,
                "importance": sampled.values,
            },
            revised_metric(detector, task.test),
            {
                "importance_reliable": float(sampled.diagnostics["reliable"].mean()),
                "importance_median_effective_sample_size": float(
                    np.median(sampled.diagnostics["effective_sample_size"])
                ),
            },
        )

    return fit_and_score


SYSTEMS: dict[str, System] = {"InvGAN": _invgan(None), "InvGAN as in the paper": _invgan("paper")}
"""What is compared; a system is one entry."""


def revised_metric(detector: InvGAN, images: np.ndarray) -> np.ndarray:
    """Compute the paper's metric of each image at its latent h(x), with pixels in [−1, 1]; in nats."""
    z = torch.from_numpy(detector.transform(images))
    generator = detector.model_.generator
    parameter = next(generator.parameters())
    volumes = [log_volume(generator, block.to(parameter)) for block in z.split(32)]
    return revised_bits_per_dimension(
        log_prior(z.double()), torch.cat(volumes).cpu(), detector.latent_dim_, images[0].size
    )


# The table and the figure


def _measured(points: Sequence[Point]) -> list[list[str]]:
    rows = []
    for system in SYSTEMS:
        runs = [point for point in points if point["system"] == system]
        for density in runs[0]["bits_per_dimension"]:
            values = [run["bits_per_dimension"][density] for run in runs]
            rows.append([f"{system}, {density}", _mean_and_spread(values), ""])
        if runs[0]["revised"] is not None:
            rows.append([f"{system}, at h(x)", "", _mean_and_spread([run["revised"] for run in runs])])
    return rows


def _mean_and_spread(by_seed: Sequence[Sequence[float]]) -> str:
    means = [np.mean(values) for values in by_seed]
    if len(means) > 1:
        return f"{np.mean(means):.3f} ± {np.std(means):.3f}"
    return f"{means[0]:.3f} ± {np.std(by_seed[0], ddof=1) / math.sqrt(len(by_seed[0])):.3f}"


def _quoted(data: str) -> list[list[str]]:
    """What needs no measuring: the paper's figures, and the code that knows nothing."""
    quoted = [
        [f"{name} (paper)", f"{figures[data]:.2f}", ""] for name, figures in PAPER.items() if data in figures
    ]
    if data in PAPER_REVISED:
        quoted.append(["InvGAN (paper)", "", f"{PAPER_REVISED[data]:.2f}"])
    return [*quoted, [f"uniform over {LEVELS[data]} levels", f"{math.log2(LEVELS[data]):.3f}", ""]]


def _figure(points: Sequence[Point]) -> Figure:
    """Set the two metrics against each other, image by image, for each system that has both."""
    shown = [point for point in points if point["seed"] == points[0]["seed"] and point["revised"] is not None]
    figure = Figure(figsize=(4.5 * max(len(shown), 1), 3.6), layout="constrained")
    for axes, point in zip(np.atleast_1d(figure.subplots(1, max(len(shown), 1))), shown, strict=False):
        density, bits = next(iter(point["bits_per_dimension"].items()))
        axes.plot(bits, point["revised"], ".", color="#0072b2", ms=3, alpha=0.6)
        rho = spearmanr(bits, point["revised"]).statistic
        axes.set(title=f"{point['system']}: Spearman {rho:.2f}", xlabel=f"bits/dim by {density}")
        axes.axhline(PRIOR_TERM, color="#777777", ls=":", label=r"$\frac{1}{2}\log 2\pi + \frac{1}{2}$")
    figure.axes[0].set_ylabel("revised metric, nats")
    figure.axes[0].legend()
    return figure
