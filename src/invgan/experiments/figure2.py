"""Figure 2: the true and the estimated log-likelihood of section 4.1's synthetic data.

The truth is Eq. 4 with the known generator at the true latent, the estimate Eq. 4 with the learned g, h, σ.
Two settings: the paper's, and one that keeps Algorithm 1 and changes how it is run.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor, nn

from invgan import networks
from invgan.data import synthetic
from invgan.data.synthetic import true_log_likelihood
from invgan.experiments.common import provenance, write_figure, write_results
from invgan.gan import GAN, REGRESSION_BETAS
from invgan.likelihood import riemannian
from invgan.networks import Networks, RBFVariance, mlp
from invgan.training import Moved, Schedule, Update, train

N_ROWS = 50_000
N_VALIDATION = 2_000
ADVERSARY_BETAS = (0.0, 0.99)
"""Adam without momentum, which overshoots where two losses pull against each other."""
SEEDS = (10, 11, 12, 13, 14)
"""Not 0-4, with which the settings were compared."""


class Setting(NamedTuple):
    """How section 4.1's networks are trained."""

    activation: str
    learning_rate: float
    averaging: float
    instance_noise: float
    steady: bool
    """Whether the updates are those of :class:`SteadyGAN`."""


SETTINGS = {
    "paper": Setting("relu", 1e-3, averaging=0.0, instance_noise=0.0, steady=False),
    "steady": Setting("silu", 3e-3, averaging=0.998, instance_noise=0.1, steady=True),
}


class SteadyGAN(GAN):
    """Algorithm 1 with its updates paced so that the generator settles on the data's density.

    The discriminator moves twice as fast as the generator, both without momentum. Line 13 loosens its hold on
    g as training goes on: it keeps g injective early, and would bias its density later.
    """

    def updates(self) -> Sequence[Update]:
        """List Algorithm 1's four updates with their rates."""
        return (
            Update(
                "discriminator",
                self.discriminator_loss,
                (Moved(self.discriminator, rate=2, betas=ADVERSARY_BETAS),),
            ),
            Update("generator", self.generator_loss, (Moved(self.generator, betas=ADVERSARY_BETAS),)),
            Update(
                "reconstruction",
                self.reconstruction_loss,
                (
                    Moved(self.inference, betas=REGRESSION_BETAS),
                    Moved(self.variance, betas=REGRESSION_BETAS),
                ),
            ),
            Update(
                "inversion",
                self.inversion_loss,
                (
                    Moved(self.inference, betas=REGRESSION_BETAS),
                    Moved(self.generator, betas=ADVERSARY_BETAS, fades_by=0.7),
                ),
            ),
        )


def run(
    *, quick: bool = False, out: Path = Path("results"), seeds: tuple[int, ...] = SEEDS
) -> dict[str, Any]:
    """Train on all w = 1 and on random w; write ``figure2.json`` and ``figure2.png``.

    Parameters
    ----------
    quick : bool
        One seed and 300 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    seeds : tuple of int
        Each draws data, initialises and trains anew.
    """
    seeds = seeds[:1] if quick else seeds
    steps = 300 if quick else 6000
    runs: list[dict[str, Any]] = []
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    jobs = [
        _Job(name, seed, steps, random_weights)
        for random_weights in (False, True)
        for name in SETTINGS
        for seed in seeds
    ]
    # These networks are too small for more than one thread each: the cores take one job each instead.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for job, scored in zip(jobs, pool.map(_run_job, jobs), strict=True):
            runs.append(
                {
                    "setting": job.setting,
                    "weights": "random in [0.5, 2]" if job.random_weights else "all 1",
                    "seed": job.seed,
                    "spearman": float(spearmanr(scored.truth, scored.estimate).statistic),
                    "rmse": float(np.sqrt(np.mean((scored.truth - scored.estimate) ** 2))),
                    "validation_joint": scored.validation,
                }
            )
            if not job.random_weights and job.seed == seeds[0]:
                curves[job.setting] = (scored.truth, scored.estimate)
    table = []
    for weights in ("all 1", "random in [0.5, 2]"):
        for name in SETTINGS:
            chosen = [r for r in runs if r["setting"] == name and r["weights"] == weights]
            spearman = [r["spearman"] for r in chosen]
            table.append(
                [
                    name,
                    weights,
                    f"{np.mean(spearman):.4f} ± {np.std(spearman):.4f}",
                    f"{min(spearman):.4f}",
                    f"{np.mean([r['rmse'] for r in chosen]):.3f}",
                ]
            )
    results = {
        "title": "Figure 2: true and estimated Eq. 4 log-likelihood, 50,000 test rows",
        "table": {"columns": ["setting", "w", "Spearman", "worst seed", "RMSE, nats"], "rows": table},
        "runs": runs,
        "note": (
            "The steady setting was found by comparing settings on seeds 0-4 by their Spearman with the "
            "truth: the truth had a part in choosing it, though none in training. The seeds here are others. "
            "It departs from the paper in: smooth activations, averaged weights, rates per update, instance "
            "noise of 0.1, and a line 13 that fades for g."
        ),
        "quick": quick,
        **provenance(seeds=seeds),
    }
    write_results(out / "figure2.json", results)
    write_figure(out / "figure2.png", _figure(curves))
    return results


class _Job(NamedTuple):
    setting: str
    seed: int
    steps: int
    random_weights: bool


class _Scored(NamedTuple):
    truth: np.ndarray
    estimate: np.ndarray
    validation: float


def _run_job(job: _Job) -> _Scored:
    """Draw data, train, and score the test rows."""
    torch.set_num_threads(1)  # of this process, which does nothing else
    weights = np.random.default_rng([job.seed, 1]).uniform(0.5, 2, 6) if job.random_weights else np.ones(6)
    drawn = synthetic(2 * N_ROWS, weights=weights, random_state=job.seed)
    rows = torch.from_numpy(drawn.X)
    training, validation = rows[: N_ROWS - N_VALIDATION], rows[N_ROWS - N_VALIDATION : N_ROWS]
    test, latents = rows[N_ROWS:], torch.from_numpy(drawn.z[N_ROWS:])
    gan = learn(SETTINGS[job.setting], training, validation, steps=job.steps, seed=job.seed)
    with torch.no_grad():
        f = gan.stochastic_generator
        estimate = torch.cat([riemannian(f, gan.inference(block))[0] for block in test.split(5000)])
        held_out = gan.validation_score(validation).item()
    return _Scored(
        true_log_likelihood(latents, torch.from_numpy(weights)).numpy(), estimate.numpy(), held_out
    )


def learn(setting: Setting, training: Tensor, validation: Tensor, *, steps: int, seed: int) -> GAN:
    """Build section 4.1's networks and train them on rows as they are; return them in float64."""
    gan = _build(setting, torch.Generator().manual_seed(seed), seed)
    schedule = Schedule(
        max_steps=steps,
        batch_size=256,
        learning_rate=setting.learning_rate,
        averaging=setting.averaging,
        validate_every=steps,
    )
    train(gan, training, validation, prepare=nn.Identity(), schedule=schedule, seed=seed)
    return gan.double()


def _build(setting: Setting, draws: torch.Generator, seed: int) -> GAN:
    widths = [30, 30, 30]
    parts = Networks(
        mlp([2, 30, 30, 6], activation=setting.activation),
        mlp([6, *widths, 1], activation=setting.activation),
        mlp([6, *widths, 2], activation=setting.activation),
    )
    for part in parts:
        networks.initialize(part, draws)
    variance = RBFVariance(latent_dim=2, n_features=6, n_centers=64, kernel_width=2.0, max_std=10.0)
    prior = torch.randn(10_000, 2, generator=draws)
    variance.fit_centers(prior, seed=seed)
    # Start at a precision of about 10, that of a residual of 0.3.
    typical = variance.kernels(prior).sum(1).mean().item()
    variance.weight.data.uniform_(0.9, 1.1, generator=draws).mul_(math.sqrt(10 / typical))
    kind = SteadyGAN if setting.steady else GAN
    return kind(*parts, variance, latent_dim=2, loss="saturating", instance_noise=setting.instance_noise)


def _figure(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw the paper's panel: both log-likelihoods over the test rows in the order of the true one."""
    figure = Figure(figsize=(5 * len(curves), 3.6), layout="constrained")
    for axes, (name, (truth, estimate)) in zip(
        np.atleast_1d(figure.subplots(1, len(curves), sharey=True)), curves.items(), strict=True
    ):
        order = np.argsort(truth)
        axes.plot(estimate[order], ",", color="#0072b2", alpha=0.5, label="InvGAN", rasterized=True)
        axes.plot(truth[order], color="#d55e00", label="truth")
        rho = spearmanr(truth, estimate).statistic
        axes.set(title=f"{name} setting, Spearman {rho:.3f}", xlabel="test row, by true log-likelihood")
        low, high = np.percentile(np.concatenate([truth, estimate]), [0.05, 99.95])
        axes.set_ylim(low - 1, high + 1)
    figure.axes[0].set_ylabel("log-likelihood, nats")
    legend = figure.axes[0].legend(markerscale=20, loc="lower right")
    for handle in legend.get_lines():
        handle.set_alpha(1)
    return figure
