"""Table 3: which class of MNIST or CIFAR-10 is the odd one out, by every system (sections 4.3.2 and 4.3.3).

**One abnormal.** Nine classes train, and the test images of all ten are scored, those of the tenth being the
abnormal ones; each class is the tenth in turn. **One normal**, the paper's rows with a star, which it took
from elsewhere and for CIFAR-10 only: one class trains, and all others are abnormal.

All systems have the same networks, those of the paper's Tables 5-7 (50 latent dimensions, images padded to
32x32), and the same training images, steps and batches; an update of theirs may take longer than another's,
which is why the seconds stand beside. Those without networks have the same images, OC-SVM at most 5,000 of
them: its time and memory grow in their square. Nothing is set for a class or a data set.
"""

import functools
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from invgan import data as named
from invgan import detectors
from invgan.detectors.latent import IMAGE_METHODS
from invgan.errors import InputError
from invgan.experiments.common import mean_and_std
from invgan.experiments.points import Point, Record, cores
from invgan.experiments.rivals import Score
from invgan.metrics import detection_metrics

PAPER = {
    "mnist": {
        "VAE": (0.3420, 0.1861),
        "AnoGAN": (0.4390, 0.1116),
        "GANomaly": (0.7390, 0.0882),
        "InvGAN as in the paper, riemannian": (0.7920, 0.0786),
    },
    "cifar10": {
        "OC-SVM*": (0.5843, 0.0956),
        "Isolation Forest*": (0.6025, 0.1040),
        "DSEBM-r*": (0.6071, 0.1007),
        "DSEBM-e*": (0.5956, 0.1151),
        "ALAD*": (0.6072, 0.1201),
        "AnoGAN": (0.5949, 0.1076),
        "EGBAD": (0.4450, 0.0786),
        "GANomaly": (0.6065, 0.0390),
        "InvGAN as in the paper, riemannian": (0.6391, 0.0608),
    },
}
"""AUROC as printed; a star marks one normal class."""
CLASSES = {
    "mnist": tuple("0123456789"),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}
LATENT_DIM = 50
SIDE = 32
SVM_ROWS = 5000
SVM_NU = 0.1
"""The share of abnormal images where one class of ten is; the paper takes it as known."""
ONE_ABNORMAL, ONE_NORMAL = "one abnormal", "one normal"
ACCELERATOR_BYTES = 6 * 2**30
"""Of memory for each of the fits that share an accelerator, which one such small fit leaves idle by turns."""


class Setting(NamedTuple):
    """What a run consists of."""

    training_rows: int | None
    """At most, of normal images; None for all."""
    test_rows: int | None
    """As many of each class, the first ones; None for all."""
    max_steps: int
    batch_size: int
    labels: tuple[int, ...]
    """Classes that are the odd one out in turn."""
    seeds: tuple[int, ...]


FULL = {
    "cuda": Setting(None, None, 1000, 128, tuple(range(10)), (0,)),
    "cpu": Setting(5000, 1000, 1000, 64, tuple(range(10)), (0,)),
}
QUICK = Setting(1000, 300, 120, 32, (0, 1), (0,))


def _neural(kind: type[detectors.AnomalyDetector], **parameters: Any) -> Callable[..., Any]:
    return functools.partial(kind, latent_dim=LATENT_DIM, **parameters)


SYSTEMS: dict[str, Callable[..., detectors.AnomalyDetector]] = {
    "OC-SVM": functools.partial(detectors.OneClassSVM, nu=SVM_NU, gamma="auto"),
    "Isolation Forest": detectors.IsolationForest,
    "DSEBM-r": _neural(detectors.DSEBM, method="reconstruction"),
    "DSEBM-e": _neural(detectors.DSEBM, method="energy"),
    "DAGMM": _neural(detectors.DAGMM),
    "ALAD": _neural(detectors.ALAD),
    "VAE": _neural(detectors.VAE),
    "AnoGAN": _neural(detectors.AnoGAN),
    "EGBAD": _neural(detectors.EGBAD),
    "GANomaly": _neural(detectors.GANomaly),
    "InvGAN": _neural(detectors.InvGAN),
    "InvGAN as in the paper": _neural(detectors.InvGAN, preset="paper"),
}
YARDSTICK = "kNN"
"""Not in the paper: the distance to the five nearest training images, pixel by pixel."""
STARRED = ("OC-SVM", "Isolation Forest", "DSEBM-r", "DSEBM-e", "ALAD")
"""Also with one normal class, on CIFAR-10; so is InvGAN, that it can be compared with them."""


class Task(NamedTuple):
    """Normal images, and those to be told apart."""

    train: np.ndarray
    test: np.ndarray
    is_abnormal: np.ndarray


def run(
    *,
    quick: bool = False,
    out: Path = Path("results"),
    data: str = "mnist",
    systems: Sequence[str] | None = None,
    seeds: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Measure every system on each choice of the odd class, and write ``table3-<data>.json``.

    A run that is cut off and started again goes on after the last fits that it wrote.

    Parameters
    ----------
    quick : bool
        A small measurement, a quarter of an hour on two cores: two classes in turn, 1,000 training and 300
        test images, 120 steps of 32, one seed, InvGAN without one normal class. What learns fast is ahead.
    out : Path
        Folder of the results file.
    data : {"mnist", "cifar10"}
    systems : sequence of str, optional
        Some of the systems; by default all. What an unfinished run has is kept: it is finished once it has
        all systems.
    seeds : tuple of int, optional
        Each draws the training images, initialises and trains anew; by default 0 alone. A CPU has fewer
        images, and smaller batches of them.

    Raises
    ------
    InputError
        If ``data`` is neither, or not at hand, or there is no such system.
    """
    known = (*SYSTEMS, YARDSTICK)
    for name in systems or ():
        if name not in known:
            raise InputError(f"The 'systems' parameter of table3: {name!r} is none of {', '.join(known)}.")
    check_data(data, "table3")
    dataset = _padded(data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = QUICK if quick else FULL[device]
    if seeds is not None:
        setting = setting._replace(seeds=seeds)
    protocols = {ONE_ABNORMAL: known}
    if data == "cifar10":
        ours = () if quick else ("InvGAN", "InvGAN as in the paper")
        protocols[ONE_NORMAL] = (*STARRED, *ours, YARDSTICK)
    settings = {"data": data, "device": device, **setting._asdict()}
    del settings["seeds"]  # the points have each its own: others can be added to an unfinished run
    record = Record(out / f"table3-{data}.json", settings, setting.seeds, quick)
    asked = {*(systems or known), *(point["system"] for point in record.unfinished())}
    keys = [
        {"protocol": protocol, "label": label, "system": system, "seed": seed}
        for seed in setting.seeds
        for protocol, names in protocols.items()
        for label in setting.labels
        for system in names
        if system in asked
    ]
    # One fit a core does more than one fit on all of them.
    processes = cores(quick=False)
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        processes = max(1, min(processes, memory // ACCELERATOR_BYTES))
    points = record.collect(keys, functools.partial(_measure, data, setting), processes=processes)
    shown = ", ".join(CLASSES[data][label] for label in setting.labels)
    return record.write(
        points,
        title=f"Table 3, {data}: AUROC, mean ± std over classes ({shown})",
        table={
            "columns": ["model", "AUROC", "std over seeds", "paper", "fit, s", "score, s"],
            "rows": table_rows(points, data),
        },
        notes=[
            f"{_count(setting.training_rows)} normal images train, {setting.max_steps:,} steps of "
            f"{setting.batch_size}; {_count(setting.test_rows)} images of all classes test; "
            f"{len(setting.seeds)} seed(s).",
            "* one normal class, the others abnormal; otherwise one abnormal class, the others normal.",
            f"fit, s and score, s: for one class, on {_machines(points)}, {processes} fits side by side.",
            f"Data: {dataset.note}",
        ],
        reduced=quick or device == "cpu",
        complete=asked == set(known),
    )


def check_data(data: str, experiment: str) -> None:
    """Refuse a set that the paper has no figures for."""
    if data not in PAPER:
        raise InputError(
            f"The 'data' parameter of {experiment} must be mnist or cifar10. Got {data!r} instead."
        )


def table_rows(points: Sequence[Point], data: str) -> list[list[str]]:
    """Set each score's mean and spread over the classes beside the paper's."""
    rows = []
    for name, runs in by_score(points).items():
        aurocs = auroc_by_class(runs, name)
        by_seed = [
            np.mean([run["auroc"][name.rstrip("*")] for run in runs if run["seed"] == seed])
            for seed in sorted({run["seed"] for run in runs})
        ]
        printed = PAPER[data].get(name)
        fit_seconds = [run["fit_seconds"] for run in runs]
        score_seconds = [run["score_seconds"][name.rstrip("*")] for run in runs]
        rows.append(
            [
                name,
                mean_and_std(list(aurocs.values())),
                f"{np.std(by_seed):.4f}" if len(by_seed) > 1 else "",
                "" if printed is None else f"{printed[0]:.4f} ± {printed[1]:.4f}",
                f"{np.mean(fit_seconds):.1f}",
                f"{np.mean(score_seconds):.1f}",
            ]
        )
    return rows


def by_score(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Collect the points that have each score, under its name in the table."""
    found: dict[str, list[Point]] = {}
    for point in points:
        for name in point["auroc"]:
            star = "*" if point["protocol"] == ONE_NORMAL else ""
            found.setdefault(name + star, []).append(point)
    # The order of the first class: the stars after the others.
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("*")))


def auroc_by_class(runs: Sequence[Point], name: str) -> dict[int, float]:
    """Average a score's AUROC over the seeds, for each class that was the odd one."""
    return {
        label: float(np.mean([run["auroc"][name.rstrip("*")] for run in runs if run["label"] == label]))
        for label in sorted({run["label"] for run in runs})
    }


def make_task(dataset: named.Dataset, setting: Setting, protocol: str, label: int, seed: int) -> Task:
    """Choose normal images to train on, and test images of all classes.

    Where no part of the set is for testing, the seed takes a sixth of it.
    """
    X, y, X_test, y_test = dataset.X, np.asarray(dataset.y), dataset.X_test, dataset.y_test
    if X_test is None or y_test is None:
        order = np.random.default_rng([seed, 0]).permutation(len(X))
        test, train = np.split(order, [len(X) // 6])
        X, y, X_test, y_test = X[train], y[train], X[test], y[test]
    normal = np.flatnonzero((y == label) == (protocol == ONE_NORMAL))
    chosen = np.random.default_rng([seed, 1, label]).permutation(normal)[: setting.training_rows]
    share = None if setting.test_rows is None else setting.test_rows // len(CLASSES["mnist"])
    tested = np.sort(np.concatenate([np.flatnonzero(y_test == c)[:share] for c in np.unique(y_test)]))
    return Task(X[chosen], X_test[tested], (y_test[tested] == label) == (protocol == ONE_ABNORMAL))


def _measure(data: str, setting: Setting, protocol: str, label: int, system: str, seed: int) -> Point:
    """Fit a system to the normal images and score the test images by all that it has to score by."""
    gc.collect()
    torch.cuda.empty_cache()  # what the last fit took: others share the accelerator
    task = make_task(_padded(data), setting, protocol, label, seed)
    start = time.perf_counter()
    scores = _fit_yardstick(task) if system == YARDSTICK else _fit(system, task, setting, seed)
    fit_seconds = time.perf_counter() - start
    auroc, score_seconds = {}, {}
    for name, score in scores.items():
        start = time.perf_counter()
        values = score(task.test)
        score_seconds[name] = time.perf_counter() - start
        auroc[name] = detection_metrics(task.is_abnormal.astype(int), values)["auroc"]
    return {"auroc": auroc, "fit_seconds": fit_seconds, "score_seconds": score_seconds}


def _fit(system: str, task: Task, setting: Setting, seed: int) -> dict[str, Score]:
    """Fit a system, and return its scores under their names in the table."""
    detector = SYSTEMS[system](random_state=seed)
    train = task.train
    if "max_steps" in detector.get_params():
        detector.set_params(max_steps=setting.max_steps, batch_size=setting.batch_size)
    elif system == "OC-SVM":
        train = train[:SVM_ROWS]
    detector.fit(train)
    if not isinstance(detector, detectors.InvGAN):
        return {system: detector.score_samples}
    return {
        f"{system}, {method}": functools.partial(_log_likelihood, detector, method)
        for method in IMAGE_METHODS
    }


def _log_likelihood(detector: detectors.InvGAN, method: str, images: np.ndarray) -> np.ndarray:
    return detector.log_likelihood(images, method).values


def _fit_yardstick(task: Task) -> dict[str, Score]:
    """Score by the negative mean distance to the five nearest training images, on an accelerator if any.

    The same as :func:`invgan.experiments.rivals.nearest_neighbours`, which knows CPUs only.
    """
    train = _flat(task.train)

    def score(images: np.ndarray) -> np.ndarray:
        nearest = [
            torch.cdist(block, train).topk(5, largest=False).values for block in _flat(images).split(500)
        ]
        return -torch.cat(nearest).mean(1).cpu().numpy()

    return {YARDSTICK: score}


def _flat(images: np.ndarray) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.from_numpy(images).to(device).flatten(1).float()


@functools.cache
def _padded(data: str) -> named.Dataset:
    """Load a set with its images padded to the networks' 32x32; kept, as decoding takes a while."""
    dataset = named.load(data)
    X_test = None if dataset.X_test is None else named.pad_images(dataset.X_test, SIDE)
    return named.Dataset(
        dataset.name,
        named.pad_images(dataset.X, SIDE),
        dataset.y,
        X_test,
        dataset.y_test,
        note=dataset.note,
    )


def _machines(points: Sequence[Point]) -> str:
    """Name what the points were measured on; those of before they had such an entry, on a CPU."""
    return " or ".join(sorted({point.get("accelerator") or "one core" for point in points}))


def _count(number: int | None) -> str:
    return "all" if number is None else f"up to {number:,}"
