r"""Theorem 1: how far the learned distribution is from the noise-free one.

The theorem: g is L-Lipschitz from :math:`\mathbb{R}^d` to :math:`\mathbb{R}^D`, D > d > 2; n rows of
g(Z) + ε train; the learned ĝ is the member of a class that comes closest to those rows in Wasserstein-1
distance W. With P₁ the distribution of g(Z), without noise, and P̂ that of ĝ(Z),

.. math:: E\,W(\hat P, P_1) \le 2 C_d \sqrt{c} L\, n^{-1/d} + 5 \sqrt{E\|\epsilon\|^2}, \qquad E\|Z\|^2 \le c.

So d is the dimension of the latent space, and of the surface that the data lie on; W is taken in
:math:`\mathbb{R}^D`. Three things are read differently from what is printed:

- the rate: :math:`n^{-d}` in Theorems 1 and 2 is :math:`n^{-1/d}` in their source (Fournier and Guillin,
  2015) and in fact;
- the noise: "N(0, diag(σ₁, …, σ_D)/√D)" holds standard deviations, since the proof has
  :math:`E\|\epsilon\|^2 = \sum_i \sigma_i^2 / D`. Here every entry has the variance v, as in section 4.1, and
  :math:`E\|\epsilon\|^2 = v D`;
- the 5: the proof bounds :math:`W(\hat P, P^{(n)})` by the distance between the rows :math:`P^{(n)}` and
  their own *noisy* distribution, which is not in the class. P₁ is, so
  :math:`W(\hat P, P_1) \le 2 W(P_1, P^{(n)})`, and the same bound holds with 2 in place of 5. Both are drawn.

What is measured, for every d:

- *rows*: W between two independent samples of n noise-free rows. It lies between E W(P₁⁽ⁿ⁾, P₁) and twice
  that, and falls with the same rate, which is exactly :math:`n^{-1/d}`: the slope is fitted and compared.
  (At finite n it also knows the circles' curvature, where W is not small against their radius.)
  With the slope fixed at −1/d the fitted constant serves as :math:`C_d \sqrt{c} L`, which is not known.
- *learned*: g is learned by Algorithm 1 (the updates of figure 2's steady setting). W itself lies
  between two numbers that can be computed. Above: W between samples of m rows each, whose expectation
  exceeds W by an error of order :math:`m^{-1/d}` (at d = 8 nearly all of it). Below: the difference that
  the optimal 1-Lipschitz potential of those samples makes on fresh rows (Kantorovich-Rubinstein).
- *control*: the upper number where there is nothing to find, for two noise-free samples of m rows.

g wraps each latent coordinate around a circle, (cos z, sin z): L = 1, c = d, D = 2d, and P₁ has the
dimension d everywhere. The class learned from is an MLP's. It holds g only approximately, and adversarial
training is not the exact minimum: both add to what is learned, not to the bound.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import nn

from invgan import networks
from invgan.errors import InputError
from invgan.experiments.common import provenance, write_figure, write_results
from invgan.experiments.figure2 import SteadyGAN
from invgan.networks import RBFVariance, mlp
from invgan.training import Machine, Schedule, train

Sampler = Callable[[int], np.ndarray]

NOISE_VARIANCE = 0.01
"""Of each entry of a row: section 4.1's N(0, 0.01)."""
WIDTH = 128
SEEDS = (0, 1, 2)
"""Of the samples of rows, from which the slopes come."""
TRAINED_SEEDS = SEEDS[:2]
"""Those that networks are trained with, too."""


class Setting(NamedTuple):
    """What a run consists of."""

    latent_dims: tuple[int, ...]
    sample_sizes: tuple[int, ...]
    """Numbers of rows between which W is measured."""
    training_rows: tuple[int, ...]
    noise_variances: tuple[float, ...]
    rows_under_noise: int
    """Training rows where the noise varies."""
    evaluated: int
    """m, one of the sample sizes: rows that the learned distribution is judged by."""
    steps: int


FULL = Setting(
    latent_dims=(3, 4, 5, 6, 7, 8),
    sample_sizes=(64, 128, 256, 512, 1024, 2048),
    training_rows=(64, 256, 1024, 4096),
    noise_variances=(0.0, 0.01, 0.04, 0.16),
    rows_under_noise=1024,
    evaluated=1024,
    steps=1000,
)
QUICK = Setting((3,), (64, 128, 256), (64, 256), (0.0, 0.01), 256, evaluated=256, steps=60)


def run(*, quick: bool = False, out: Path = Path("results")) -> dict[str, Any]:
    """Measure the distances against the number of rows and the noise; write ``theorem1.json`` and ``.png``.

    Parameters
    ----------
    quick : bool
        d = 3 alone, few rows and 60 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.

    Raises
    ------
    InputError
        If POT, the optimal-transport library, is not installed.
    """
    require_transport()
    setting = QUICK if quick else FULL
    seeds, trained_seeds = (SEEDS[:2], TRAINED_SEEDS[:1]) if quick else (SEEDS, TRAINED_SEEDS)
    figures = {str(d): _measure(d, setting, seeds, trained_seeds) for d in setting.latent_dims}
    least, most = setting.training_rows[0], setting.training_rows[-1]
    results = {
        "title": f"Theorem 1: Wasserstein-1 distance of what is learned from n rows (noise variance "
        f"{NOISE_VARIANCE}) to the noise-free distribution",
        "table": {
            "columns": [
                "d",
                "−1/d",
                "slope of rows",
                f"n = {least}",
                f"n = {most}",
                "control",
                f"bound, {most}",
            ],
            "rows": [
                [
                    d,
                    f"−{1 / int(d):.3f}",
                    f"−{-found['slope']:.3f} ± {found['slope_error']:.3f}",
                    *(f"{run['lower']:.2f}…{run['upper']:.2f}" for run in _ends(found["by_rows"])),
                    f"{found['control']:.2f}",
                    f"{found['by_rows'][-1]['bound']:.2f}",
                ]
                for d, found in figures.items()
            ],
        },
        "by_latent_dim": figures,
        "setting": setting._asdict(),
        "notes": [
            "n = …: W of the learned distribution lies in this range. Its lower end is the difference that a "
            "1-Lipschitz potential, optimal for other samples, makes on fresh rows; its upper end W between "
            f"samples of {setting.evaluated} rows, not below the control however well g is learned.",
            "slope of rows: of log W between two samples of n noise-free rows over log n, ± standard error "
            "over seeds; a little above −1/d because W is not yet small against the circles' radius, 1.",
            "bound: 2 A n^(−1/d) + 5 √E‖ε‖² with A fitted to those distances, which are between W(P₁⁽ⁿ⁾, P₁) "
            "and twice that; the paper prints n^(−d). sharper_bound has 2 in place of 5.",
        ],
        "quick": quick,
        **provenance(seeds=seeds),
    }
    write_results(out / "theorem1.json", results)
    write_figure(out / "theorem1.png", _figure(figures, setting))
    return results


def _ends(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [runs[0], runs[-1]]


# Optimal transport


def require_transport() -> None:
    """Say what to install where POT is missing, before hours of work rather than after."""
    try:
        import ot  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        raise InputError(
            "theorem1 needs POT, the optimal-transport library; install it: pip install 'invgan[reproduce]'"
        ) from None


class Plan(NamedTuple):
    """The Wasserstein-1 distance between two samples, and the potential that proves it."""

    distance: float
    targets: np.ndarray
    offsets: np.ndarray

    def potential(self, rows: np.ndarray) -> np.ndarray:
        r"""Evaluate :math:`\min_j (\|x - y_j\| - v_j)` at each row, shape (k, D) → (k,): 1-Lipschitz."""
        import ot

        return (ot.dist(rows, self.targets, metric="euclidean") - self.offsets).min(1)


def transport(sources: np.ndarray, targets: np.ndarray) -> Plan:
    """Find the exact Wasserstein-1 distance between two samples, by the network simplex algorithm.

    Parameters
    ----------
    sources, targets : ndarray, shapes (n, D) and (m, D)
        Each row weighs as much as any other of its sample.

    Examples
    --------
    >>> points = np.random.default_rng(0).normal(size=(50, 2))
    >>> round(transport(points, points + [3.0, 4.0]).distance, 6)
    5.0
    """
    import ot

    costs = ot.dist(sources, targets, metric="euclidean")
    distance, found = ot.emd2([], [], costs, log=True, numItermax=10**8)
    if found["warning"] is not None:
        raise ArithmeticError(f"the optimal transport of {costs.shape} rows: {found['warning']}")
    return Plan(float(distance), targets, found["v"])


def bracket(first: Sampler, second: Sampler, m: int) -> dict[str, float]:
    r"""Bound the Wasserstein-1 distance between two distributions that can be sampled.

    .. math:: E[f(X)] - E[f(Y)] \le W \le E\,W(P^{(m)}, Q^{(m)})

    with any 1-Lipschitz f: here the potential of the optimal transport between those two samples.

    Parameters
    ----------
    first, second : callable, count → (count, D)
        Draw new rows at every call.
    m : int
        Rows of the two samples. Four times as many, fresh ones, estimate the expectations of f.

    Returns
    -------
    dict
        "lower" without bias and with the standard error "lower_error", and "upper".

    Source
    ------
    Kantorovich and Rubinstein's duality; the upper bound is Jensen's inequality, W being convex.
    """
    plan = transport(first(m), second(m))
    at_first, at_second = plan.potential(first(4 * m)), plan.potential(second(4 * m))
    return {
        "lower": float(at_first.mean() - at_second.mean()),
        "lower_error": math.sqrt((at_first.var() + at_second.var()) / (4 * m)),
        "upper": plan.distance,
    }


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Fit the exponent of a power law by least squares of the logarithms.

    Examples
    --------
    >>> round(slope([1, 10, 100], [5.0, 0.5, 0.05]), 6)
    -1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# Measurements


def surface(z: np.ndarray) -> np.ndarray:
    """Wrap each latent coordinate around a circle: g, (n, d) → (n, 2d), an isometry up to the wrapping."""
    return np.concatenate([np.cos(z), np.sin(z)], 1)


def _draw(draws: np.random.Generator, n: int, d: int, noise_variance: float = 0.0) -> np.ndarray:
    rows = surface(draws.standard_normal((n, d)))
    return rows + math.sqrt(noise_variance) * draws.standard_normal(rows.shape)


def _measure(d: int, setting: Setting, seeds: Sequence[int], trained: Sequence[int]) -> dict[str, Any]:
    """Measure everything for one d."""
    sizes = setting.sample_sizes
    rows = {n: [_between_rows(d, n, 0.0, seed, sizes[-1] // n) for seed in seeds] for n in sizes}
    slopes = [slope(sizes, by_size) for by_size in zip(*rows.values(), strict=True)]
    constant = math.exp(np.mean([math.log(np.mean(w)) + math.log(n) / d for n, w in rows.items()]))

    def learned(n: int, variance: float) -> dict[str, Any]:
        runs = [_learned(d, n, variance, seed, setting) for seed in trained]
        noise = math.sqrt(variance * 2 * d)
        return {
            "n": n,
            "noise_variance": variance,
            "noise_norm": noise,
            **{name: float(np.mean([run[name] for run in runs])) for name in runs[0]},
            "bound": 2 * constant * n ** (-1 / d) + 5 * noise,
            "sharper_bound": 2 * constant * n ** (-1 / d) + 2 * noise,
            "runs": runs,
        }

    n_noisy = setting.rows_under_noise
    by_rows = [learned(n, NOISE_VARIANCE) for n in setting.training_rows]
    at_both = {run["n"]: run for run in by_rows}
    by_noise = [
        at_both[n_noisy] if variance == NOISE_VARIANCE else learned(n_noisy, variance)
        for variance in setting.noise_variances
    ]
    return {
        "slope": float(np.mean(slopes)),
        "slope_error": float(np.std(slopes, ddof=1) / math.sqrt(len(slopes))),
        "constant": constant,
        "rows": {str(n): distances for n, distances in rows.items()},
        "control": float(np.mean(rows[setting.evaluated])),
        "by_rows": by_rows,
        "by_noise": by_noise,
        "noisy_rows": [
            float(np.mean([_between_rows(d, n_noisy, variance, seed, 1) for seed in seeds]))
            for variance in setting.noise_variances
        ],
    }


def _between_rows(d: int, n: int, noise_variance: float, seed: int, repeats: int) -> float:
    """Measure W between n rows with noise and n others without, the mean of several such pairs."""
    draws = np.random.default_rng([seed, d, n])
    return float(
        np.mean(
            [
                transport(_draw(draws, n, d, noise_variance), _draw(draws, n, d)).distance
                for _ in range(repeats)
            ]
        )
    )


def _learned(d: int, n: int, noise_variance: float, seed: int, setting: Setting) -> dict[str, float]:
    """Train on n noisy rows, and bound the distance of what was learned to the noise-free distribution."""
    draws = np.random.default_rng([seed, d, n, 1])
    rows = _draw(draws, n, d, noise_variance)
    gan = _train(torch.from_numpy(rows), d, setting.steps, seed)
    noise = torch.Generator().manual_seed(seed + 1)

    def generated(count: int) -> np.ndarray:
        with torch.no_grad():
            return gan.generator(torch.randn(count, d, generator=noise)).double().numpy()

    return bracket(lambda count: _draw(draws, count, d), generated, setting.evaluated)


def _train(rows: torch.Tensor, d: int, steps: int, seed: int) -> SteadyGAN:
    """Run Algorithm 1 on rows as they are."""
    draws = torch.Generator().manual_seed(seed)
    D = rows.shape[1]
    with torch.device("meta"):
        parts = networks.Networks(
            mlp([d, WIDTH, WIDTH, D], activation="silu"),
            mlp([D, WIDTH, WIDTH, WIDTH, 1], activation="silu"),
            mlp([D, WIDTH, WIDTH, d], activation="silu"),
        )
    for part in parts:
        networks.initialize(part.to_empty(device="cpu"), draws)
    variance = RBFVariance(d, D, n_centers=32)
    variance.fit_centers(torch.randn(2000, d, generator=draws), seed=seed)
    gan = SteadyGAN(*parts, variance, latent_dim=d, loss="non-saturating", instance_noise=0.1)
    schedule = Schedule(max_steps=steps, batch_size=min(128, len(rows)), learning_rate=5e-3)
    train(gan, rows, None, prepare=nn.Identity(), schedule=schedule, seed=seed, machine=Machine("cpu"))
    return gan


# The figure


def _figure(figures: dict[str, dict[str, Any]], setting: Setting) -> Figure:
    figure = Figure(figsize=(2.5 * max(len(figures), 3), 6.2), layout="constrained")
    panels = figure.subplots(2, len(figures), sharey="row", squeeze=False)
    for (top, bottom), (d, found) in zip(panels.T, figures.items(), strict=True):
        _against_rows(top, int(d), found)
        _against_noise(bottom, found, setting)
    for row in panels:
        row[0].set_ylabel("Wasserstein-1 distance to $P_1$")
        row[0].set(ylim=(LOWEST, 15), yticks=[0.1, 1, 10])
        row[0].yaxis.set_major_formatter("{x:g}")
    handles = {
        label: handle
        for axes in panels[:, 0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


LOWEST = 0.012
ROWS, LEARNED, BOUND, CONTROL = "#d55e00", "#0072b2", "#000000", "#777777"


def _against_rows(axes: Axes, d: int, found: dict[str, Any]) -> None:
    sizes = np.array([int(n) for n in found["rows"]])
    axes.plot(
        np.repeat(sizes, len(next(iter(found["rows"].values())))),
        np.concatenate(list(found["rows"].values())),
        ".",
        color=ROWS,
        label="n rows, and n others, without noise",
    )
    n = np.array([run["n"] for run in found["by_rows"]])
    both = np.geomspace(min(*sizes, *n), max(*sizes, *n))
    axes.plot(both, found["constant"] * both ** (-1 / d), color=ROWS, lw=1, label="the rate $n^{-1/d}$")
    _learned_range(axes, n, found["by_rows"])
    axes.axhline(found["control"], color=CONTROL, ls=":", label="control: nothing to find")
    _bounds(axes, n, found["by_rows"])
    axes.set(xscale="log", yscale="log", xlabel="rows $n$", title=f"$d = {d}$")
    axes.set_xticks(n, [str(size) for size in n], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.text(
        0.04,
        0.04,
        f"slope −{-found['slope']:.3f} ± {found['slope_error']:.3f}\n$-1/d$ = −{1 / d:.3f}",
        transform=axes.transAxes,
        color=ROWS,
        fontsize=9,
    )


def _against_noise(axes: Axes, found: dict[str, Any], setting: Setting) -> None:
    noise = np.array([run["noise_norm"] for run in found["by_noise"]])
    axes.plot(
        noise, found["noisy_rows"], ".-", color=ROWS, lw=1, alpha=0.6, label="n rows with noise, n without"
    )
    _learned_range(axes, noise, found["by_noise"])
    axes.axhline(found["control"], color=CONTROL, ls=":")
    _bounds(axes, noise, found["by_noise"])
    axes.set(
        yscale="log",
        xlabel=r"noise $\sqrt{E\|\epsilon\|^2}$",
        title=f"$n = {setting.rows_under_noise}$",
    )


def _learned_range(axes: Axes, x: np.ndarray, runs: Sequence[dict[str, Any]]) -> None:
    lower, upper = (np.maximum([run[name] for run in runs], LOWEST / 2) for name in ("lower", "upper"))
    axes.fill_between(x, lower, upper, color=LEARNED, alpha=0.25, lw=0, label="learned: in this range")
    for edge in (lower, upper):
        axes.plot(x, edge, ".-", color=LEARNED, lw=1)


def _bounds(axes: Axes, x: np.ndarray, runs: Sequence[dict[str, Any]]) -> None:
    axes.plot(x, [run["bound"] for run in runs], color=BOUND, label="Theorem 1, rate corrected")
    axes.plot(
        x,
        [run["sharper_bound"] for run in runs],
        color=BOUND,
        ls="--",
        lw=1,
        label="the same, noise term × 2/5",
    )
