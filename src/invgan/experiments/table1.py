r"""Table 1: true bits per dimension of test images by every system, and the paper's revised metric.

**Images** keep their own size (28x28 for MNIST, not padded) and their levels, 0 to 255. All systems are
scored on the same test images with the same uniform noise added to each level (``dequantize``, from a
generator of its own): of discrete values a density can be made as high as one likes. In training the flows
add such noise afresh at every step, which is part of them; InvGAN is given one draw. Flows take the normal
quantile of a level's place among those of 1,024 training images, where published ones take a logit, and go
on in a straight line beyond the lowest and the highest level, so theirs too are densities over all of R^D.
FlowVAE keeps the logit.

**Bits** are those of :func:`invgan.likelihood.bits_per_dimension` with levels of width 1, of densities that
are normalised over all of R^D; the logarithms of the determinants of every scaling and quantile are in them:

- a flow's ``exact`` log p; FFJORD's trace is estimated beyond 64 dimensions;
- FlowVAE's ``bound``, with 64 draws: no fewer bits than the model's own;
- InvGAN's ``aggregate``, around the encoded training rows;
- InvGAN's ``importance``, an estimate of ∫ p(x | z) p(z) dz, the density of the stochastic generator itself.

Eq. 4 (``riemannian``) is a density on a surface, and has none. The revised metric is taken at z = h(x) with
pixels scaled to [−1, 1], as in the paper.

**Published** figures are those that the paper prints (from FFJORD's and Flow-GAN's papers), whose models are
larger and were trained for days.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from invgan import data as named
from invgan import density
from invgan.density.base import LARGE_IMAGE
from invgan.detectors import InvGAN
from invgan.errors import InputError, UnreliableEstimateWarning
from invgan.experiments.common import write_figure
from invgan.experiments.figure3 import PRIOR_TERM
from invgan.experiments.points import Point, Record, cores
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
    """What a run consists of."""

    training_rows: int
    test_rows: int
    sampled_rows: int
    """Test rows, the first ones, whose density is estimated by sampling."""
    n_samples: int
    max_steps: int | None
    """Of every fit; None leaves them to the system."""
    seeds: tuple[int, ...]
    hours: float | None = None
    """Of training for all fits together, each of which gets as much; None: ``max_steps`` bounds them."""


DIGITS = Setting(1297, 500, 500, 2000, None, (0,))
IMAGES = {
    "cuda": Setting(50_000, 2000, 128, 1000, None, (0,), hours=4.5),
    "cpu": Setting(50_000, 2000, 32, 500, None, (0,), hours=0.5),
}
QUICK = Setting(300, 40, 20, 100, 20, (0,))
PATIENCE = 10
"""Validations without a new best after which a rival's training ends."""
SHARING = 4
"""Fits that share an accelerator."""
PROBES = (100, 300)
"""Steps of two short fits that tell what a step costs. A long one's validations take a tenth more."""
MOST_TO_WARM_UP = 1 / 50
"""Share of the time that a first fit of so few steps may take; if it takes more, a fit of a single step tells
the rest: two more fits would take a tenth of the time and more."""
CONVOLUTIONAL = ("RealNVP", "Glow", "FFJORD", "FlowGAN", "FlowVAE")
SMALL_BATCH = 32
"""Images in a minibatch of these without an accelerator, on which a step of 512 takes up to ten seconds."""


class Task(NamedTuple):
    """What to learn from, and what is scored."""

    levels: np.ndarray
    """Training images, (n, C, H, W) uint8."""
    training: np.ndarray
    """The same, dequantised, float64."""
    test: np.ndarray
    """Test images, dequantised."""


class Score(NamedTuple):
    """What a system says of the test images, in nats of images whose levels are 1 apart."""

    log_likelihood: dict[str, np.ndarray]
    """log p(x) by each of its densities, normalised over R^D; perhaps of the first rows alone."""
    revised: np.ndarray | None = None
    """The revised metric of each row, for systems that have latents."""
    diagnostics: dict[str, float] = {}  # noqa: RUF012  never changed


class System(NamedTuple):
    """What is compared."""

    fit: Callable[[Task, int | None, int], Any]
    """Train on a task for at most so many steps (None: its default) with a seed; return the model."""
    score: Callable[[Any, Task, Setting], Score]
    published: str
    """Whose printed figure it stands beside."""


def run(
    *,
    quick: bool = False,
    out: Path = Path("results"),
    data: str = "digits",
    hours: float | None = None,
    systems: Sequence[str] | None = None,
    seeds: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Fit every system and score the test images; write ``table1-<data>.json``, and ``.png`` of both metrics.

    A run that is cut off and started again goes on after the last fit that it wrote.

    Parameters
    ----------
    quick : bool
        One seed, few images and 20 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    data : {"digits", "mnist", "cifar10", "imagenet32"}
        Other than the digits, at full size only on an accelerator.
    hours : float, optional
        Of training for all fits together. Each gets as much time: what a step of it costs is measured in
        short fits first, which come on top, and it trains for as many steps as there is time for. By default
        the digits are trained until they stop to improve, images for 4.5 hours, half an hour on a CPU. On an
        accelerator four fits run at a time, and share it; without one convolutional flows have minibatches of
        32 images in place of 512.
    systems : sequence of str, optional
        Some of the systems; by default all. What an unfinished run has is kept: it is finished once it has
        all systems.
    seeds : tuple of int, optional
        Each splits, dequantises and trains anew; by default 0 alone.

    Raises
    ------
    InputError
        If ``data`` is none of these, or not at hand, or ``hours`` is not positive, or there is no such
        system.
    """
    for name in systems or ():
        if name not in SYSTEMS:
            raise InputError(f"The 'systems' parameter of table1: {name!r} is none of {', '.join(SYSTEMS)}.")
    if data not in LEVELS:
        raise InputError(
            f"The 'data' parameter of table1 must be one of {', '.join(LEVELS)}. Got {data!r} instead."
        )
    if hours is not None and not 0 < hours < math.inf:
        raise InputError(f"The 'hours' parameter of table1 must be positive. Got {hours} instead.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = QUICK if quick else DIGITS if data == "digits" else IMAGES[device]
    if hours is not None and not quick:
        setting = setting._replace(hours=hours)
    if seeds is not None:
        setting = setting._replace(seeds=seeds)
    reduced = not quick and data != "digits" and device == "cpu"
    dataset = named.load(data)
    n_dimensions = math.prod(dataset.X.shape[1:])
    settings = {"data": data, "device": device, **setting._asdict()}
    del settings["seeds"]  # the points have each its own: others can be added to an unfinished run
    record = Record(out / f"table1-{data}.json", settings, setting.seeds, quick)
    asked = {*(systems or SYSTEMS), *(point["system"] for point in record.unfinished())}
    chosen = [name for name in SYSTEMS if name in asked]
    keys = [{"system": system, "seed": seed} for system in chosen for seed in setting.seeds]
    # The digits' networks are too small for more than one thread each.
    processes = cores(quick=quick) if data == "digits" else SHARING if device == "cuda" else 1
    points = record.collect(keys, functools.partial(_measure, data, setting), processes=processes)
    spread = "standard deviation over seeds" if len(setting.seeds) > 1 else "standard error over images"
    results = record.write(
        points,
        title=f"Table 1, {data}: {setting.training_rows:,} training and {setting.test_rows:,} test images "
        f"of {n_dimensions:,} dimensions; mean ± {spread}",
        table={
            "columns": ["density", "bits/dim", "revised metric, nats", "published", "training"],
            "rows": [*_measured(points, data), _uniform(data)],
        },
        notes=[*NOTES, f"Data: {dataset.note}"],
        reduced=reduced,
        complete=chosen == list(SYSTEMS),
    )
    both = [point for point in points if point["seed"] == points[0]["seed"] and point["revised"] is not None]
    if both:
        write_figure(record.path.with_suffix(".png"), _figure(both))
    return results


def _measure(data: str, setting: Setting, system: str, seed: int) -> Point:
    """Fit a system and score the test images."""
    task = make_task(named.load(data), setting, seed)
    fit, score, _ = SYSTEMS[system]
    max_steps = setting.max_steps
    if setting.hours is not None:
        seconds = 3600 * setting.hours / (len(SYSTEMS) * len(setting.seeds))
        max_steps = affordable_steps(lambda steps: fit(task, steps, seed), seconds)
    start = time.perf_counter()
    model = fit(task, max_steps, seed)
    training_seconds = time.perf_counter() - start
    found = score(model, task, setting)
    bits = {
        name: bits_per_dimension(values, task.test[0].size) for name, values in found.log_likelihood.items()
    }
    history = model.history_
    return {
        "bits_per_dimension": {name: values.tolist() for name, values in bits.items()},
        "revised": None if found.revised is None else found.revised.tolist(),
        "diagnostics": found.diagnostics,
        "training": {
            "max_steps": max_steps,
            "steps": history.steps[-1],
            "best_step": history.best_step,
            "seconds": training_seconds,
        },
    }


def affordable_steps(fit: Callable[[int], object], seconds: float) -> int:
    """Count the steps that a fit has time for, from what two short fits take.

    Parameters
    ----------
    fit : callable
        Trains for so many steps.
    seconds : float
        The time that one fit shall take, what it does before and after its steps included.

    Examples
    --------
    Never fewer than the first probe takes, however little time there is:

    >>> affordable_steps(lambda steps: None, 0.0)
    100
    """
    few, more = PROBES

    def taken(steps: int) -> float:
        start = time.perf_counter()
        fit(steps)
        return time.perf_counter() - start

    warming_up = taken(few)  # the device's first steps are slow
    if warming_up > MOST_TO_WARM_UP * seconds:
        fewer, more, longer = 1, few, warming_up
        shorter = taken(fewer)
    else:
        fewer, shorter, longer = few, taken(few), taken(more)
    per_step = max((longer - shorter) / (more - fewer), 1e-6)
    return max(few, int((seconds - shorter) / per_step) + fewer)


def make_task(dataset: named.Dataset, setting: Setting, seed: int) -> Task:
    """Choose the images and dequantise them; where no part is for testing, the seed splits them."""
    order = np.random.default_rng([seed, 0]).permutation(len(dataset.X))
    training, rest = np.split(order, [setting.training_rows])
    test = dataset.X[rest] if dataset.X_test is None else dataset.X_test
    return Task(
        dataset.X[training],
        dequantize(dataset.X[training], np.random.default_rng([seed, 1])),
        dequantize(test[: setting.test_rows], np.random.default_rng([seed, 2])),
    )


def _invgan(preset: str | None) -> System:
    def fit(task: Task, max_steps: int | None, seed: int) -> InvGAN:
        return InvGAN(preset=preset, max_steps=max_steps, random_state=seed).fit(task.training)

    return System(fit, _score_invgan, "InvGAN")


def _score_invgan(detector: InvGAN, task: Task, setting: Setting) -> Score:
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


def _rival(name: str) -> System:
    def fit(task: Task, max_steps: int | None, seed: int) -> Any:
        is_slow = (
            name in CONVOLUTIONAL and task.levels[0].size >= LARGE_IMAGE and not torch.cuda.is_available()
        )
        model = getattr(density, name)(
            max_steps=max_steps,
            batch_size=SMALL_BATCH if is_slow else None,
            patience=PATIENCE,
            random_state=seed,
        )
        return model.fit(task.levels)

    def score(model: Any, task: Task, setting: Setting) -> Score:
        kind = "bound" if name == "FlowVAE" else "exact"
        return Score({kind: model.score_samples(task.test)})

    return System(fit, score, name)


RIVALS = ("RealNVP", "Glow", "FFJORD", "MADE", "MAF", "FlowGAN", "FlowVAE")
SYSTEMS: dict[str, System] = {
    "InvGAN": _invgan(None),
    "InvGAN as in the paper": _invgan("paper"),
    **{name: _rival(name) for name in RIVALS},
}


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


def _measured(points: Sequence[Point], data: str) -> list[list[str]]:
    rows = []
    for name, system in SYSTEMS.items():
        runs = [point for point in points if point["system"] == name]
        if not runs:
            continue
        published = PAPER.get(system.published, {}).get(data)
        training = _training([run["training"] for run in runs])
        for kind in runs[0]["bits_per_dimension"]:
            values = [run["bits_per_dimension"][kind] for run in runs]
            figures = [_mean_and_spread(values), "", "" if published is None else f"{published:.2f}"]
            rows.append([f"{name}, {kind}", *figures, training])
        if runs[0]["revised"] is not None:
            revised = _mean_and_spread([run["revised"] for run in runs])
            published = PAPER_REVISED.get(data)
            rows.append(
                [f"{name}, at h(x)", "", revised, "" if published is None else f"{published:.2f}", training]
            )
    return rows


def _training(runs: Sequence[dict[str, Any]]) -> str:
    steps, seconds = (np.mean([run[key] for run in runs]) for key in ("steps", "seconds"))
    return f"{steps:,.0f} steps, {seconds:,.0f} s"


def _mean_and_spread(by_seed: Sequence[Sequence[float]]) -> str:
    means = [np.mean(values) for values in by_seed]
    if len(means) > 1:
        return f"{np.mean(means):.3f} ± {np.std(means):.3f}"
    return f"{means[0]:.3f} ± {np.std(by_seed[0], ddof=1) / math.sqrt(len(by_seed[0])):.3f}"


def _uniform(data: str) -> list[str]:
    """The code that knows nothing, which needs no measuring."""
    return [f"uniform over {LEVELS[data]} levels", f"{math.log2(LEVELS[data]):.3f}", "", "", ""]


def _figure(points: Sequence[Point]) -> Figure:
    """Set the two metrics against each other, image by image, for systems that have both."""
    figure = Figure(figsize=(4.5 * len(points), 3.6), layout="constrained")
    for axes, point in zip(np.atleast_1d(figure.subplots(1, len(points))), points, strict=True):
        density, bits = next(iter(point["bits_per_dimension"].items()))
        axes.plot(bits, point["revised"], ".", color="#0072b2", ms=3, alpha=0.6)
        rho = spearmanr(bits, point["revised"]).statistic
        axes.set(title=f"{point['system']}: Spearman {rho:.2f}", xlabel=f"bits/dim by {density}")
        axes.axhline(PRIOR_TERM, color="#777777", ls=":", label=r"$\frac{1}{2}\log 2\pi + \frac{1}{2}$")
    figure.axes[0].set_ylabel("revised metric, nats")
    figure.axes[0].legend()
    return figure
