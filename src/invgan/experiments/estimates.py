r"""The estimates of log p(x) beside each other and, where it is known, beside the truth.

*Known generator*: section 4.1's, with its noise. :math:`\log p(x) = \log \int p(x | z) p(z)\,dz` over two
latents is the truth, by quadrature, and what an estimate is off by is its own error.

*Learned generator*: figure 2's steady setting on the same data, with σ as Algorithm 1 leaves it, and fitted
again around the encoded training rows as :class:`~invgan.InvGAN` does. The mean of log p(x) less a normalised
estimate over new rows is KL(p ‖ estimate), in nats; quadrature over the learned model's own latents tells
how much of it is the model's and how much the estimate's. ``joint`` and ``riemannian`` are no densities in
:math:`\mathbb{R}^D`, so their gaps are no divergences and can have any sign.

*Real data*: digits, and MNIST, dequantised. There is no truth, but ``importance`` and ``ais`` estimate the
same p(x) without bias, so they must agree within their standard errors where both can be trusted. Where not,
the higher one is the better: an unbiased estimate of p(x) exceeds it e^t-fold with a probability of at most
e^(−t) (Markov's inequality), and can fall short by any amount.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import Tensor

from invgan import data
from invgan.data.synthetic import generator as known_mean
from invgan.data.synthetic import synthetic
from invgan.detectors import InvGAN
from invgan.errors import UnreliableEstimateWarning
from invgan.experiments import figure2, table1
from invgan.experiments.common import write_figure
from invgan.experiments.points import Point, Record
from invgan.likelihood import (
    Estimate,
    StochasticGenerator,
    TangentMixture,
    ais,
    bits_per_dimension,
    importance,
    joint,
    laplace,
    log_prior,
    map_latent,
    riemannian,
)
from invgan.networks import RBFVariance
from invgan.training import threads_for

NOISE_STD = 0.1
"""Section 4.1's ε has variance 0.01."""
WITHIN = 0.01
"""Nats: the error that is aimed at for 99 % of the rows."""
SEED = 10
"""The first of figure 2's."""
N_DRAWS, N_CHAINS, N_TEMPERATURES = 1000, 64, 100
"""Defaults of ``log_likelihood``."""
NO_DENSITIES = ("joint", "joint, refined", "riemannian", "riemannian, refined")
"""Estimates that rank rows and are not normalised over R^D."""
SYNTHETIC = ("known", "learned")
"""The parts whose networks are tiny, if there are any."""
SIGMAS = ("σ as trained", "σ fitted again")
BLOCK = 100
"""Rows whose latents are sampled together."""


class Images(NamedTuple):
    """How the estimates are compared on images."""

    training_rows: int
    test_rows: int
    pooled: int
    """Side of the square of pixels that is averaged into one."""
    max_steps: int | None
    n_draws: int
    """Of ``importance``, besides its default."""
    n_temperatures: tuple[int, ...]
    """Of ``ais``."""


class Setting(NamedTuple):
    """What a run consists of."""

    known_rows: int
    learned_rows: int
    """New rows that the learned generator is judged by."""
    training_rows: int
    steps: int
    n_components: int
    """Training rows that carry a component of ``aggregate``."""
    n_draws: int
    """Of ``importance`` with the known generator, besides its default."""
    n_temperatures: int
    """Of ``ais``."""
    digits: Images
    mnist: Images


DIGITS = Images(1297, 100, 1, None, 8000, (100,))
SETTINGS = {
    "cuda": Setting(
        1000, 400, 48_000, 6000, 5000, 20_000, 100, DIGITS, Images(50_000, 200, 1, None, 8000, (100, 1000))
    ),
    "cpu": Setting(
        1000, 400, 48_000, 6000, 5000, 20_000, 100, DIGITS, Images(10_000, 32, 2, None, 8000, (100, 400))
    ),
}
QUICK = Setting(
    8, 6, 2000, 300, 50, 200, 10, Images(100, 4, 1, 5, 40, (5,)), Images(50, 4, 2, 5, 40, (5, 10))
)


def run(*, quick: bool = False, out: Path = Path("results")) -> dict[str, Any]:
    """Compare the estimates on all four models; write ``estimates.json``, model by model, and ``.png``.

    A run that is cut off and started again goes on after the last model that it wrote.

    Parameters
    ----------
    quick : bool
        A few rows and steps: a smoke run whose figures mean nothing, but for the known generator's.
    out : Path
        Folder of the results.

    Raises
    ------
    InputError
        If MNIST is not at hand.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = QUICK if quick else SETTINGS[device]
    mnist = data.load("mnist")  # first of all: it may not be there
    parts: dict[str, Callable[[], Point]] = {
        "known": lambda: _known(setting),
        "learned": lambda: _learned(setting),
        "digits": lambda: _images(data.load("digits"), setting.digits),
        "mnist": lambda: _images(mnist, setting.mnist),
    }
    settings = {"device": device, **setting._asdict()}
    settings |= {name: settings[name]._asdict() for name in ("digits", "mnist")}

    def measure(part: str) -> Point:
        with threads_for(0, torch.device("cpu")) if part in SYNTHETIC else nullcontext():
            return parts[part]()

    record = Record(out / "estimates.json", settings, (SEED,), quick)
    points = record.collect([{"part": name} for name in parts], measure)
    known, learned, digits, small = (
        next(point for point in points if point["part"] == part) for part in parts
    )
    reduced = not quick and device == "cpu"
    results = record.write(
        points,
        title="Estimates of log p(x), in nats",
        table={
            "columns": COLUMNS,
            "rows": [
                *_rows("known", known["estimates"], known["truth"]),
                *(
                    row
                    for name, sigma in zip(("learned", "σ again"), SIGMAS, strict=True)
                    for row in _rows(name, learned[sigma]["estimates"], learned[sigma]["own"])
                ),
                *_rows("digits", digits["estimates"]),
                *_rows("MNIST", small["estimates"]),
            ],
        },
        notes=[
            "short of log p: mean of the true log p(x) less the estimate, ± its standard error. For a "
            "normalised estimate that is KL(p ‖ estimate); in brackets for estimates that are no densities "
            "in R^D, where it means nothing but an offset.",
            "error: median, and largest, against quadrature over the latents of the same generator.",
            "All rows share the random draws, so the errors of importance and ais are correlated between "
            "rows. The generator is learned once: another training has another KL.",
            f"importance takes {N_DRAWS:,} draws and ais {N_CHAINS} chains over {N_TEMPERATURES} "
            "temperatures, unless another number is given.",
        ]
        + [
            "MNIST is averaged over 2×2 pixels and its rows are few, for a run of minutes on one core: at "
            "full size by the same command, invgan reproduce estimates, where PyTorch finds a GPU."
        ]
        * reduced,
        reduced=reduced,
    )
    write_figure(out / "estimates.png", _figure(known, learned, digits, small))
    return results


@torch.no_grad()
def quadrature(f: StochasticGenerator, rows: Tensor, observed: Tensor | None = None) -> Tensor:
    r"""Integrate p(x | z) p(z) over two latents, to 1e-6 nats: the truth that estimates are held against.

    A coarse grid over the prior finds each row's mass, and ever finer ones over the rectangle around it add
    it up until two agree.

    Parameters
    ----------
    f : StochasticGenerator
        Of two latents, smooth at the scale of 0.025.
    rows : Tensor, shape (n, D), float64
    observed : Tensor, shape (n, D), bool, optional
        Which features are known; all, unless given.

    Returns
    -------
    Tensor, shape (n,), float64
        log p(x) in nats.

    Raises
    ------
    ArithmeticError
        If a row's posterior lies beyond ±10, or is too narrow for a grid.

    Examples
    --------
    >>> f = StochasticGenerator(lambda z: 2 * z, torch.ones_like)  # N(0, 5 I)
    >>> round(quadrature(f, torch.zeros(1, 2).double()).item(), 6) == round(-math.log(10 * math.pi), 6)
    True
    """
    known = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
    grids: list[_Grid] = []

    def integrate(row: Tensor, known: Tensor) -> float:
        for i, radius in enumerate((5.0, 10.0)):
            if i == len(grids):  # the wide one is rarely needed
                grids.append(_Grid.over(f, (-radius, -radius), (radius, radius), round(80 * radius) + 1))
            log_joint = grids[i].log_joint(row, known)
            near = grids[i].z[log_joint > log_joint.max() - 25]
            if near.abs().max() < radius:
                break
        else:
            raise ArithmeticError(
                "a row's posterior lies beyond ±10: quadrature is for rows like the model's."
            )
        low, high = (near.amin(0) - 0.05).tolist(), (near.amax(0) + 0.05).tolist()
        value = math.nan
        for n_points in (60, 120, 240, 480, 960, 1920):
            finer = _Grid.over(f, low, high, n_points).integral(row, known)
            if abs(finer - value) < 1e-6:
                return finer
            value = finer
        raise ArithmeticError("a row's posterior is too narrow for quadrature.")

    return torch.tensor([integrate(*pair) for pair in zip(rows, known, strict=True)], dtype=torch.float64)


class _Grid(NamedTuple):
    """A stochastic generator on a rectangle of latents, with all that does not depend on a row."""

    z: Tensor
    coefficients: Tensor
    """Of −½x², x and 1, feature by feature, in log p(x | z); shape (n, 3D)."""
    log_prior: Tensor
    log_cell: float

    @classmethod
    def over(
        cls, f: StochasticGenerator, low: Sequence[float], high: Sequence[float], n_points: int
    ) -> "_Grid":
        sides = [torch.linspace(*ends, n_points, dtype=torch.float64) for ends in zip(low, high, strict=True)]
        z = torch.cartesian_prod(*sides)

        def coefficients(block: Tensor) -> Tensor:
            mean, std = f.mean(block), f.std(block)
            precision = std**-2
            constant = -0.5 * mean.square() * precision - std.log() - 0.5 * math.log(2 * math.pi)
            return torch.cat([precision, mean * precision, constant], 1)

        # In blocks that caches hold: what is between the layers is far larger than what comes out.
        by_block = torch.cat([coefficients(block) for block in z.split(2**13)])
        cell = math.prod((side[1] - side[0]).item() for side in sides)
        return cls(z, by_block, log_prior(z), math.log(cell))

    def log_joint(self, row: Tensor, known: Tensor) -> Tensor:
        """log p(x, z) of the known features at every point."""
        x = torch.where(known, row, 0)
        return self.coefficients @ torch.cat([-0.5 * x.square(), x, known.double()]) + self.log_prior

    def integral(self, row: Tensor, known: Tensor) -> float:
        return torch.logsumexp(self.log_joint(row, known), 0).item() + self.log_cell


def known_generator() -> StochasticGenerator:
    """Return section 4.1's generator, with all weights 1, and its noise."""
    weights = torch.ones(6, dtype=torch.float64)
    return StochasticGenerator(
        lambda z: known_mean(z, weights), lambda z: torch.full((len(z), 6), NOISE_STD, dtype=z.dtype)
    )


# Where the truth is known


def _known(setting: Setting) -> Point:
    f = known_generator()
    rows = torch.from_numpy(synthetic(setting.known_rows, random_state=SEED).X)
    truth = quadrature(f, rows)
    origin = torch.zeros(len(rows), 2, dtype=torch.float64)
    estimates = _integrals(f, rows, origin, setting.n_temperatures, setting.n_draws)
    return {
        "truth": _mean(truth),
        "estimates": {name: _assess(found, truth, truth) for name, found in estimates.items()},
    }


def _learned(setting: Setting) -> Point:
    n = setting.training_rows
    drawn = torch.from_numpy(synthetic(n + figure2.N_VALIDATION + setting.learned_rows, random_state=SEED).X)
    training, validation, test = drawn.split([n, figure2.N_VALIDATION, setting.learned_rows])
    gan = figure2.learn(
        figure2.SETTINGS["steady"], training, validation, steps=setting.steps, seed=SEED
    ).requires_grad_(False)
    truth = quadrature(known_generator(), test)
    codes, z = gan.inference(training), gan.inference(test)
    mixture = TangentMixture(training[: setting.n_components], codes[: setting.n_components], gan.generator)
    mixture.fit_bandwidths(seed=SEED)
    aggregate = Estimate(mixture.log_prob(test), None, {})

    def compare(f: StochasticGenerator) -> dict[str, Any]:
        own = quadrature(f, test)
        at_code = {
            "joint": Estimate(joint(f, test, z), None, {}),
            "riemannian": Estimate(riemannian(f, z)[0], None, {}),
        }
        estimates = at_code | _integrals(f, test, z, setting.n_temperatures)
        return {
            "own": _assess(Estimate(own, None, {}), own, truth),
            "estimates": {"aggregate": _assess(aggregate, None, truth)}
            | {name: _assess(found, own, truth) for name, found in estimates.items()},
        }

    f = gan.stochastic_generator
    as_trained = compare(f)
    again = compare(f._replace(std=_fitted_around(codes, training - gan.generator(codes))))
    return {"truth": _mean(truth), **dict(zip(SIGMAS, (as_trained, again), strict=True))}


def _fitted_around(codes: Tensor, residuals: Tensor) -> RBFVariance:
    """The variance network that InvGAN fits around encoded training rows by default."""
    n_centers = min(256, len(codes) // 4)
    variance = RBFVariance(2, residuals.shape[1], n_centers, max_std=10.0).double().requires_grad_(False)
    variance.fit_centers(codes, seed=SEED)
    variance.fit_weights(codes, residuals)
    return variance


def _integrals(
    f: StochasticGenerator, rows: Tensor, z0: Tensor, n_temperatures: int, n_draws: int | None = None
) -> dict[str, Estimate]:
    """All estimates that start from a mode of the posterior, by name."""

    def sampled(z: Tensor, block: Tensor, n: int) -> Estimate:
        return importance(f, block, z, n_samples=n, generator=torch.Generator().manual_seed(SEED))

    methods: dict[str, Callable[[Tensor, Tensor], Estimate]] = {
        "joint, refined": lambda z, block: Estimate(joint(f, block, z), None, {}),
        "riemannian, refined": lambda z, block: Estimate(riemannian(f, z)[0], None, {}),
        "laplace": lambda z, block: laplace(f, block, z),
        "importance": lambda z, block: sampled(z, block, N_DRAWS),
    }
    if n_draws is not None:
        methods[_named("importance", draws=n_draws)] = lambda z, block: sampled(z, block, n_draws)
    methods[_ais(n_temperatures)] = lambda z, block: ais(
        f,
        block,
        z,
        n_chains=N_CHAINS,
        n_temperatures=n_temperatures,
        generator=torch.Generator().manual_seed(SEED),
    )
    parts: dict[str, list[Estimate]] = {name: [] for name in methods}
    for block, start in zip(rows.split(BLOCK), z0.split(BLOCK), strict=True):
        z, _ = map_latent(f, block, start)
        for name, method in methods.items():
            parts[name].append(method(z, block))
    return {name: _joined(found) for name, found in parts.items()}


def _joined(parts: list[Estimate]) -> Estimate:
    errors = [part.standard_error for part in parts if part.standard_error is not None]
    names = parts[0].diagnostics
    diagnostics = {name: torch.cat([part.diagnostics[name] for part in parts]) for name in names}
    return Estimate(
        torch.cat([part.values for part in parts]), torch.cat(errors) if errors else None, diagnostics
    )


def _assess(found: Estimate, own: Tensor | None, truth: Tensor) -> dict[str, Any]:
    """Compare with the true log p(x), and with the model's own by quadrature."""
    assessed = {
        **_mean(found.values),
        "short_of_truth": _mean(truth - found.values),
        "spearman_with_truth": float(spearmanr(found.values, truth).statistic),
    }
    if own is not None:
        error = (found.values - own).abs()
        assessed |= {
            "short_of_own": _mean(own - found.values),
            "errors": error.quantile(torch.linspace(0, 1, 101, dtype=torch.float64)).tolist(),
            "within": (error < WITHIN).double().mean().item(),
        }
        if found.standard_error is not None:
            effective = found.diagnostics["effective_sample_size"]
            assessed |= {
                "within_3_standard_errors": (error < 3 * found.standard_error).double().mean().item(),
                "standard_error": found.standard_error.median().item(),
                "effective_sample_size": {
                    "median": effective.median().item(),
                    "least": effective.min().item(),
                },
                "reliable": found.diagnostics["reliable"].double().mean().item(),
            }
    return assessed


# Images


def _images(dataset: data.Dataset, images: Images) -> Point:
    pooled = [None if X is None else _pool(X, images.pooled) for X in (dataset.X, dataset.X_test)]
    assert pooled[0] is not None
    size = table1.DIGITS._replace(training_rows=images.training_rows, test_rows=images.test_rows)
    task = table1.make_task(replace(dataset, X=pooled[0], X_test=pooled[1]), size, SEED)
    detector = InvGAN(max_steps=images.max_steps, random_state=SEED).fit(task.training)
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "aggregate": ("aggregate", {}),
        "joint": ("joint", {}),
        "joint, refined": ("joint", {"refine": True}),
        "riemannian": ("riemannian", {}),
        "laplace": ("laplace", {}),
        "importance": ("importance", {}),
        _named("importance", draws=images.n_draws): ("importance", {"n_samples": images.n_draws}),
    }
    calls |= {_ais(n): ("ais", {"n_temperatures": n}) for n in images.n_temperatures}
    estimates = {}
    for name, (method, options) in calls.items():
        start = time.perf_counter()
        with warnings.catch_warnings():  # how many are unreliable is in the results
            warnings.simplefilter("ignore", UnreliableEstimateWarning)
            found = detector.log_likelihood(task.test, method, **options)
        estimates[name] = {
            **_mean(torch.from_numpy(found.values)),
            "seconds_per_row": (time.perf_counter() - start) / len(task.test),
            "values": found.values.tolist(),
        }
        if found.standard_error is not None:
            estimates[name] |= {
                "standard_error": found.standard_error.tolist(),
                "effective_sample_size": found.diagnostics["effective_sample_size"].tolist(),
                "reliable": found.diagnostics["reliable"].tolist(),
            }
        if name not in NO_DENSITIES:
            bits = bits_per_dimension(found.values, task.test[0].size)
            estimates[name]["bits_per_dimension"] = float(bits.mean())
    many_draws, slowest = _named("importance", draws=images.n_draws), _ais(images.n_temperatures[-1])
    names = ["aggregate", "joint", "joint, refined", "riemannian", "laplace", many_draws, slowest]
    ranks = spearmanr(np.column_stack([estimates[name]["values"] for name in names])).statistic
    return {
        "shape": list(task.test.shape[1:]),
        "latent_dim": detector.latent_dim_,
        "estimates": estimates,
        "spearman": {"estimates": names, "matrix": ranks.tolist()},
        "ais_against_importance": _agreement(estimates[slowest], estimates[many_draws]),
    }


def _pool(images: np.ndarray, side: int) -> np.ndarray:
    """Average squares of pixels, to the nearest level."""
    n, channels, height, width = images.shape
    squares = images.reshape(n, channels, height // side, side, width // side, side)
    return np.rint(squares.mean((3, 5), dtype=np.float32)).astype(np.uint8)


def _agreement(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """How far two unbiased estimates are apart, where both can be trusted and where not."""
    difference = np.subtract(first["values"], second["values"])
    errors = difference / np.hypot(first["standard_error"], second["standard_error"])
    both = np.logical_and(first["reliable"], second["reliable"])
    return {
        "rows_where_both_are_reliable": int(both.sum()),
        "of_these_within_2_standard_errors": float((np.abs(errors[both]) < 2).mean()) if both.any() else None,
        "of_these_largest_in_standard_errors": float(np.abs(errors[both]).max()) if both.any() else None,
        "of_the_others_first_is_higher": float((difference[~both] > 0).mean()) if not both.all() else None,
        "of_the_others_mean_difference": float(difference[~both].mean()) if not both.all() else None,
    }


def _named(method: str, **number: int) -> str:
    ((noun, n),) = number.items()
    return f"{method}, {n:,} {noun}"


def _ais(n_temperatures: int) -> str:
    return "ais" if n_temperatures == N_TEMPERATURES else _named("ais", temperatures=n_temperatures)


def _mean(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "standard_error_of_mean": values.std().item() / len(values) ** 0.5}


# The table and the figure

COLUMNS = ["data", "estimate", "mean", "short of log p", "error, largest", f"< {WITHIN}", "reliable"]


def _rows(
    model: str, estimates: dict[str, dict[str, Any]], own: dict[str, Any] | None = None
) -> list[list[str]]:
    rows = []
    if own is not None:
        short = _with_error(own["short_of_truth"]) if "short_of_truth" in own else "0"
        rows.append([model, "quadrature", f"{own['mean']:.2f}", short, "", "", ""])
    for name, found in estimates.items():
        ranks_only = name in NO_DENSITIES
        short_name = name.removesuffix(" draws").removesuffix(" temperatures")
        cells = [model, short_name, f"{found['mean']:.2f}", "", "", "", ""]
        if "short_of_truth" in found:
            short = _with_error(found["short_of_truth"])
            cells[3] = f"({short})" if ranks_only else short
        if "errors" in found and not ranks_only:
            median, largest = (f"{found['errors'][i]:.3f}" for i in (50, 100))
            cells[4:6] = [f"{median}, {largest}", f"{found['within']:.1%}"]
        if "reliable" in found:
            cells[6] = f"{np.mean(found['reliable']):.0%}"
        rows.append(cells)
    return rows


def _with_error(found: dict[str, float]) -> str:
    return f"{found['mean']:.2f} ± {found['standard_error_of_mean']:.2f}"


COLORS = {"laplace": "#d55e00", "importance": "#0072b2", "ais": "#009e73", "aggregate": "#cc79a7"}


def _color(name: str) -> str:
    return COLORS[name.partition(",")[0]]


def _figure(known: Point, learned: Point, digits: Point, small: Point) -> Figure:
    figure = Figure(figsize=(14, 8.2), layout="constrained")
    panels = figure.subplots(2, 3, width_ratios=(1, 1.15, 0.95))
    _draw_errors(panels[0, 0], known["estimates"])
    _draw_gaps(panels[1, 0], learned)
    for row, (title, point) in zip(panels[:, 1:], {"digits": digits, "MNIST": small}.items(), strict=True):
        side, d = point["shape"][-1], point["latent_dim"]
        _draw_disagreement(row[0], f"{title}, {side}×{side}, d = {d}", point["estimates"])
        _draw_ranks(row[1], f"{title}: Spearman correlation", point["spearman"])
    return figure


def _draw_errors(axes: Axes, estimates: dict[str, dict[str, Any]]) -> None:
    """Share of the rows up to each error."""
    shares = np.linspace(0, 1, 101)
    for name, found in estimates.items():
        if name not in NO_DENSITIES:
            style = "--" if "," in name else "-"
            axes.plot(found["errors"], shares, style, color=_color(name), label=name)
    axes.axvline(WITHIN, color="#777777", ls=":", label="aim: 99 % of the rows")
    axes.axhline(0.99, color="#777777", ls=":")
    axes.set(title="Known generator", xlabel="|error| of log p(x), nats", ylabel="share of rows")
    axes.set(xscale="log", xlim=(2e-4, 3))
    axes.legend(fontsize=8, loc="lower right")


def _draw_gaps(axes: Axes, learned: Point) -> None:
    """The model's distance from the truth, and the estimates' distance from the model."""
    names = ["laplace", "importance", _last_ais(learned[SIGMAS[0]]["estimates"])]
    for i, sigma in enumerate(SIGMAS):
        estimates = learned[sigma]["estimates"]
        model = learned[sigma]["own"]["short_of_truth"]["mean"]
        heights = [model, *(estimates[name]["errors"][50] for name in names)]
        colors = ["#444444", *(_color(name) for name in names)]
        at = np.arange(len(heights)) + 0.4 * (i - 0.5)
        axes.bar(at, heights, 0.38, color=colors, alpha=1 - 0.5 * i)
        for x, height in zip(at, heights, strict=True):
            axes.text(x, 1.1 * height, f"{height:.2g}", ha="center", fontsize=7)
    aggregate = learned[SIGMAS[0]]["estimates"]["aggregate"]["short_of_truth"]["mean"]
    axes.axhline(aggregate, color=COLORS["aggregate"], ls="--", label=f"KL of aggregate: {aggregate:.2g}")
    axes.set(title=f"Learned generator (light: {SIGMAS[1]})")
    axes.set(yscale="log", ylabel="nats", ylim=(2e-3, 8))
    axes.set_xticks(range(4), ["the model:\nKL", *(f"{name}:\n|error|" for name in names)])
    axes.legend(fontsize=8)


def _draw_disagreement(axes: Axes, title: str, estimates: dict[str, dict[str, Any]]) -> None:
    """How far other estimates of p(x) are above importance sampling, by how far that can be trusted."""
    base = estimates["importance"]
    effective = np.array(base["effective_sample_size"])
    for name, marker in ((_last_ais(estimates), "o"), ("laplace", "x")):
        difference = np.subtract(estimates[name]["values"], base["values"])
        axes.plot(effective, difference, marker, ms=4, alpha=0.7, color=_color(name), label=name)
    axes.axhline(0, color="#777777", lw=1)
    axes.axvspan(50, 1000, color="#0072b2", alpha=0.08, lw=0, label="importance is reliable")
    axes.set(title=title, xscale="log", xlim=(0.9, 1000))
    axes.set(xlabel="effective sample size of importance, of 1,000 draws")
    axes.set(ylabel="log p(x) above importance, nats")
    axes.legend(fontsize=8, loc="best")


def _last_ais(estimates: dict[str, Any]) -> str:
    return [name for name in estimates if name.startswith("ais")][-1]


def _draw_ranks(axes: Axes, title: str, spearman: dict[str, Any]) -> None:
    names, matrix = spearman["estimates"], np.array(spearman["matrix"])
    labels = [name if name in NO_DENSITIES else name.partition(",")[0] for name in names]
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1.2)
    axes.set_xticks(range(len(names)), labels, rotation=35, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    for (i, j), value in np.ndenumerate(matrix):
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7)
    axes.set_title(title)
