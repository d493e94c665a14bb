"""Figure 5: the loss L_{h,σ} over the iterations of Algorithm 1, for different data sets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from invgan import data, networks
from invgan.errors import InputError
from invgan.experiments.common import provenance, write_figure, write_results
from invgan.experiments.figure3 import paper_gan
from invgan.preprocess import AffineScaling
from invgan.training import History, Machine, Schedule, convolution_precision, train


def _images(name: str) -> np.ndarray:
    return data.pad_images(data.load(name).X, 32)


def _arrhythmia_normals() -> np.ndarray:
    arrhythmia = data.load("arrhythmia")
    return arrhythmia.X[arrhythmia.y == 0]


DATA_SETS: dict[str, tuple[Callable[[], np.ndarray], int]] = {
    "synthetic": (lambda: data.load("synthetic").X, 1500),
    "arrhythmia": (_arrhythmia_normals, 1500),
    "mnist": (lambda: _images("mnist"), 300),
    "cifar10": (lambda: _images("cifar10"), 300),
}
"""Rows, and steps that take two cores a minute or two; the networks are the paper's."""


def run(*, quick: bool = False, out: Path = Path("results"), seed: int = 0) -> dict[str, Any]:
    """Train the paper's networks on each data set at hand; write ``figure5.json`` and ``figure5.png``.

    Parameters
    ----------
    quick : bool
        50 steps each, and no images.
    out : Path
        Folder of the results.
    seed : int
        Initialises and trains.
    """
    curves: dict[str, dict[str, Any]] = {}
    missing = []
    for name, (load_rows, steps) in DATA_SETS.items():
        if quick and name in ("mnist", "cifar10"):
            continue
        try:
            rows = load_rows()
        except InputError:
            missing.append(name)
            continue
        history = _train(torch.from_numpy(rows), 50 if quick else steps, seed)
        curves[name] = {"steps": history.steps, "loss": history.losses["reconstruction"]}
    results = {
        "title": "Figure 5: L_{h,σ} over Algorithm 1's iterations",
        "table": {
            "columns": ["data set", "steps", "first", "last"],
            "rows": [
                [name, str(curve["steps"][-1]), f"{curve['loss'][0]:.1f}", f"{curve['loss'][-1]:.1f}"]
                for name, curve in curves.items()
            ],
        },
        "curves": curves,
        "not_at_hand": missing,
        "quick": quick,
        **provenance(seeds=[seed]),
    }
    write_results(out / "figure5.json", results)
    write_figure(out / "figure5.png", _figure(curves))
    return results


def _train(rows: Tensor, steps: int, seed: int) -> History:
    """Run Algorithm 1 with the paper's networks; a figure of the training needs no scores."""
    data_shape = tuple(rows.shape[1:])
    gan = paper_gan(data_shape, networks.default_latent_dim(data_shape, "paper"), seed)
    is_image = len(data_shape) == 3
    scale = AffineScaling.to_unit_range if is_image else AffineScaling.standardize
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return train(
        gan,
        rows,
        None,
        prepare=scale(rows),
        schedule=Schedule(max_steps=steps, batch_size=64),
        seed=seed,
        machine=Machine(device.type, precision=convolution_precision(device) if is_image else "32-true"),
    )


def _figure(curves: dict[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(3.2 * len(curves), 2.8), layout="constrained")
    for axes, (name, curve) in zip(
        np.atleast_1d(figure.subplots(1, len(curves))), curves.items(), strict=True
    ):
        axes.plot(curve["steps"], curve["loss"], color="#0072b2")
        axes.set(title=name, xlabel="iteration")
    figure.axes[0].set_ylabel("$L_{h,\\sigma}$, nats")
    return figure
