r"""Figure 3: Eq. 4 on MNIST's test images, and the revised bits per dimension, over the latent dimension d.

Tables 5-7's networks are trained once for every d by the paper's Algorithm 1. Both panels are in nats, with
pixels scaled to [−1, 1] as the generator's tanh has them, and images padded to 32×32:

- left, the mean of :math:`-\log p_Z(z) + \tfrac12 \log\det M(z)` (Eq. 4), a density on a surface whose
  dimension is d: two d cannot be compared by it, as the paper says;
- right, :math:`-\log p_Z(z) / d + \tfrac12 \log\det J_g^\top J_g / D`, as printed, with M's determinant in
  place of J_g's beside it, and its first term alone, which is ½ log 2π + ½ if h(x) is as the prior is.

On an accelerator all of MNIST trains; on a CPU, in minutes, little is learned, and the results say so.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from invgan import data, networks
from invgan.experiments.common import write_figure
from invgan.experiments.points import Point, Record
from invgan.gan import GAN
from invgan.geometry import log_volume
from invgan.likelihood import log_prior, revised_bits_per_dimension, riemannian
from invgan.preprocess import AffineScaling
from invgan.training import Machine, Schedule, convolution_precision, train

SIDE = 32
PRIOR_TERM = 0.5 * math.log(2 * math.pi) + 0.5
"""Mean of −log p_Z(z) / d over the prior: what the revised metric is for an isometry."""
PAPER = {"latent_dim": 50, "revised": 1.29}
"""Table 1; the figure's curves are given as a plot alone."""


class Setting(NamedTuple):
    """What a run consists of."""

    latent_dims: tuple[int, ...]
    training_rows: int
    steps: int
    batch_size: int
    test_rows: int


SETTINGS = {
    "cuda": Setting((5, 10, 20, 35, 50, 75, 100, 150, 200), 60_000, 10_000, 128, 2000),
    "cpu": Setting((5, 10, 20, 50, 100), 60_000, 300, 64, 128),
}
QUICK = Setting((2, 4), 256, 4, 32, 16)


def run(*, quick: bool = False, out: Path = Path("results"), seed: int = 0) -> dict[str, Any]:
    """Train and score for each d; write ``figure3.json``, point by point, and ``figure3.png``.

    A run that is cut off and started again goes on after the last point that it wrote.

    Parameters
    ----------
    quick : bool
        Two small d and four steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seed : int
        Initialises and trains.

    Raises
    ------
    InputError
        If MNIST is not at hand.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = QUICK if quick else SETTINGS[device]
    mnist = data.load("mnist")
    training, test = (
        torch.from_numpy(data.pad_images(images[:n], SIDE))
        for images, n in ((mnist.X, setting.training_rows), (mnist.X_test, setting.test_rows))
        if images is not None
    )
    settings = {**setting._asdict(), "device": device, "seed": seed}
    record = Record(out / "figure3.json", settings, (seed,), quick)
    points = record.collect(
        [{"latent_dim": d} for d in setting.latent_dims],
        lambda latent_dim: _measure(latent_dim, training, test, setting, device, seed),
    )
    reduced = setting != SETTINGS["cuda"]
    results = record.write(
        points,
        title=f"Figure 3: MNIST, {setting.steps:,} steps of {setting.batch_size}, "
        f"{setting.test_rows:,} test images; mean ± standard error, nats",
        table={
            "columns": ["d", "Eq. 4, negative", "revised metric", "its first term"],
            "rows": [
                [
                    str(point["latent_dim"]),
                    *(_mean_and_error(point[name]) for name in ("negative_log_likelihood", "revised")),
                    f"{point['prior_term']['mean']:.3f}",
                ]
                for point in points
            ],
        },
        reduced=reduced,
        paper=PAPER,
        notes=[
            "The revised metric is in nats and mostly its first term, which the prior fixes: it is no code "
            "length, and says little of what was learned."
        ]
        + ["Reduced to what a CPU does in minutes: run it where PyTorch finds a GPU."] * reduced,
    )
    write_figure(out / "figure3.png", _figure(points))
    return results


def _mean_and_error(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} ± {found['standard_error']:.3f}"


def _measure(d: int, training: Tensor, test: Tensor, setting: Setting, device: str, seed: int) -> Point:
    """Train for one d, and average both metrics over the test images."""
    scaling = AffineScaling.to_unit_range(training)
    gan = paper_gan(tuple(training.shape[1:]), d, seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(
        gan,
        training,
        None,
        prepare=scaling,
        schedule=Schedule(max_steps=setting.steps, batch_size=setting.batch_size),
        seed=seed,
        machine=Machine(device, precision=convolution_precision(torch.device(device))),
    )
    gan.to(device).requires_grad_(False)
    blocks = [score(gan, scaling(block).to(device)) for block in test.split(32)]
    scores = {name: torch.cat([block[name] for block in blocks]).cpu().numpy() for name in blocks[0]}
    return {name: _summary(values) for name, values in scores.items()}


def paper_gan(data_shape: tuple[int, ...], latent_dim: int, seed: int) -> GAN:
    """Build the paper's networks for images, with σ's centres drawn from the prior."""
    draws = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        parts = networks.build(data_shape, latent_dim, "paper")
    for part in parts:
        networks.initialize(part.to_empty(device="cpu"), draws)
    n_centers = max(64, latent_dim + 1)  # Lemma 1
    variance = networks.RBFVariance(latent_dim, math.prod(data_shape), n_centers)
    variance.weight.data.uniform_(generator=draws)
    variance.fit_centers(torch.randn(10_000, latent_dim, generator=draws), seed=seed)
    return GAN(*parts, variance, latent_dim=latent_dim, loss="saturating")


@torch.no_grad()
def score(gan: GAN, images: Tensor) -> dict[str, Tensor]:
    """Compute both panels' metrics of scaled images at z = h(x), each of shape (n,), in nats.

    Parameters
    ----------
    gan : GAN
        In evaluation mode.
    images : Tensor, shape (n, C, H, W)
    """
    f, n_dimensions = gan.stochastic_generator, images[0].numel()
    z = gan.inference(images)
    log_likelihood, at = riemannian(f, z)
    prior = log_prior(z.double())

    def revised(volume: Tensor) -> Tensor:
        values = revised_bits_per_dimension(prior.cpu(), volume.cpu(), gan.latent_dim, n_dimensions)
        return torch.from_numpy(values)

    return {
        "negative_log_likelihood": -log_likelihood,
        "revised": revised(log_volume(f.mean, z)),
        "revised_by_eq_3": revised(at.log_volume),
        "prior_term": -prior / gan.latent_dim,
    }


def _summary(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / math.sqrt(len(values))),
    }


def _figure(points: list[Point]) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    d = [point["latent_dim"] for point in points]

    def curve(axes: Any, name: str, **style: Any) -> None:
        means = [point[name]["mean"] for point in points]
        errors = [point[name]["standard_error"] for point in points]
        axes.errorbar(d, means, yerr=errors, capsize=2, **style)

    curve(left, "negative_log_likelihood", fmt=".-", color="#0072b2")
    left.set(title="Eq. 4: a density on a surface of dimension d", xlabel="d")
    left.set_ylabel("mean negative log-likelihood, nats")
    curve(right, "revised", fmt=".-", color="#0072b2", label="revised metric")
    curve(right, "revised_by_eq_3", fmt=".-", color="#56b4e9", lw=1, label="the same with Eq. 3's metric")
    curve(right, "prior_term", fmt=".--", color="#d55e00", lw=1, label=r"its first term, $-\log p_Z(z)/d$")
    right.axhline(PRIOR_TERM, color="#777777", ls=":", label=r"$\frac{1}{2}\log 2\pi + \frac{1}{2}$")
    right.plot(PAPER["latent_dim"], PAPER["revised"], "*", color="#000000", ms=9, label="the paper's Table 1")
    right.set(title="Revised bits/dim", xlabel="d", ylabel="nats per dimension")
    right.legend(fontsize=8)
    return figure
