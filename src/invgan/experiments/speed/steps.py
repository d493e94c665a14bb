"""A training step of Algorithm 1, against an eager one written plainly, and against JAX."""

import importlib.util
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invgan import InvGAN, networks
from invgan.experiments.speed.timing import DEVICE, count_operations, matrix_rate, now
from invgan.gan import GAN
from invgan.networks import RBFVariance
from invgan.training import LOG_EVERY, Machine, Schedule, train

LATENT_DIM, BATCH, N_CENTERS = 50, 128, 64
IMAGE, TABLE = (1, 32, 32), (274,)


def images(*, quick: bool) -> dict[str, Any]:
    """Tables 5-7's networks: this library's training loop and a plain eager step, turn by turn."""
    rows = torch.rand(4 * BATCH, *IMAGE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gan = _paper_gan(IMAGE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = _precision_for(gan)
    plain = _plain_step(_paper_gan(IMAGE).to(DEVICE), rows.to(DEVICE))
    plain()
    n_plain, rounds = (1, 1) if quick else (3, 2)
    ours, theirs = _alternate(gan, rows, precision, plain, n_plain, rounds=rounds)
    operations = count_operations(lambda: _train(gan, rows, precision, n_steps=1))
    # Only in the precision that is used: without the hardware for it, bfloat16 takes minutes.
    kind = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    matrices = matrix_rate(kind, rounds=2 if quick else 7)
    return {
        "batch": BATCH,
        "precision": precision,
        "seconds_per_step": ours,
        "plain_eager_float32_seconds_per_step": theirs,
        "times_faster": theirs / ours,
        "operations_per_step": operations,
        "operations_per_second": operations / ours,
        "matrix_rate": matrices,
        "share_of_the_matrix_rate": operations / ours / matrices,
        "where_the_time_goes": _profile(lambda: _train(gan, rows, precision, n_steps=1 if quick else 2)),
    }


def tables(*, quick: bool) -> dict[str, Any]:
    """Arrhythmia's networks (Tables 8-10): this library's loop and one jitted scan in JAX, turn by turn."""
    rows = torch.randn(4 * BATCH, *TABLE, generator=torch.Generator().manual_seed(0))
    gan = _paper_gan(TABLE)
    n_steps, rounds = (3 * LOG_EVERY, 1) if quick else (11 * LOG_EVERY, 7)
    if importlib.util.find_spec("jax") is None:
        alone = _seconds_per_step(gan, rows, n_steps)
        note = "JAX is not installed: pip install 'invgan[benchmark]' for the comparison."
        return {"batch": BATCH, "seconds_per_step": alone, "note": note}
    import jax

    from invgan.experiments.speed.jax_step import compile_steps

    (width,) = TABLE
    sizes = {
        "g": [LATENT_DIM, 128, 256, width],
        "d": [width, 256, 128, 1],
        "h": [width, 256, 128, LATENT_DIM],
    }
    scan = compile_steps(sizes, rows.numpy(), N_CENTERS, BATCH, n_steps)
    scan()
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        ours.append(_seconds_per_step(gan, rows, n_steps))
        start = now()
        scan()
        theirs.append((now() - start) / n_steps)
    seconds, jax_seconds = statistics.median(ours), statistics.median(theirs)
    return {
        "batch": BATCH,
        "seconds_per_step": seconds,
        "jax_seconds_per_step": jax_seconds,
        "jax_version": jax.__version__,
        "times_slower_than_jax": seconds / jax_seconds,
        "where_the_time_goes": _profile(lambda: _train(gan, rows, "32-true", n_steps=10)),
    }


def _paper_gan(data_shape: tuple[int, ...]) -> GAN:
    draws = torch.Generator().manual_seed(0)
    parts = networks.build(data_shape, LATENT_DIM, "paper")
    for part in parts:
        networks.initialize(part, draws)
    variance = RBFVariance(LATENT_DIM, torch.Size(data_shape).numel(), N_CENTERS)
    variance.fit_centers(torch.randn(1000, LATENT_DIM, generator=draws), seed=0)
    return GAN(*parts, variance, latent_dim=LATENT_DIM)


def _precision_for(gan: GAN) -> str:
    """The precision that the estimator would choose."""
    estimator = InvGAN()
    estimator.model_ = gan
    return estimator._choose_precision()


def _train(
    gan: GAN, rows: Tensor, precision: str, *, n_steps: int, on_log: Callable[..., None] | None = None
) -> None:
    train(
        gan,
        rows,
        None,
        prepare=nn.Identity(),
        schedule=Schedule(max_steps=n_steps, batch_size=BATCH),
        seed=0,
        machine=Machine(DEVICE.type, 1, precision),
        on_log=on_log,
    )


def _seconds_per_step(gan: GAN, rows: Tensor, n_steps: int) -> float:
    """Median over the stretches between two looks at the losses, without what comes before the first."""
    times: list[float] = []
    _train(gan, rows, "32-true", n_steps=n_steps, on_log=lambda *_: times.append(now()))
    return statistics.median((b - a) / LOG_EVERY for a, b in pairwise(times))


def _alternate(
    gan: GAN, rows: Tensor, precision: str, plain: Callable[[], None], n_plain: int, *, rounds: int
) -> tuple[float, float]:
    """Median seconds per step of the loop, and of the plain steps that run whenever it logs."""
    ours: list[float] = []
    theirs: list[float] = []
    resumed: list[float] = []

    def on_log(*_log: Any) -> None:
        stopped = now()
        if resumed:
            ours.append((stopped - resumed[-1]) / LOG_EVERY)
        for _ in range(n_plain):
            start = now()
            plain()
            theirs.append(now() - start)
        resumed.append(now())

    _train(gan, rows, precision, n_steps=(rounds + 1) * LOG_EVERY, on_log=on_log)
    return statistics.median(ours), statistics.median(theirs)


def _plain_step(gan: GAN, rows: Tensor) -> Callable[[], None]:
    """Algorithm 1 as one would first write it: float32, PyTorch's defaults, ``backward`` and ``step``."""
    g, d, h, sigma = gan.generator.train(), gan.discriminator.train(), gan.inference.train(), gan.variance
    adams = [
        torch.optim.Adam([p for module in modules for p in module.parameters()], lr=1e-3, betas=(0.5, 0.999))
        for modules in ((d,), (g,), (h, sigma), (h, g))
    ]

    def batch() -> Tensor:
        return rows[torch.randint(len(rows), (BATCH,), device=DEVICE)]

    def noise() -> Tensor:
        return torch.randn(BATCH, LATENT_DIM, device=DEVICE)

    def discriminator_loss() -> Tensor:
        return F.softplus(-d(batch())).mean() + F.softplus(d(g(noise()).detach())).mean()

    def generator_loss() -> Tensor:
        return F.softplus(-d(g(noise()))).mean()

    def reconstruction_loss() -> Tensor:
        x = batch()
        z = h(x)
        std, mean, var = sigma(z), z.mean(0), z.var(0, correction=0)
        residual = (g(z) - x).flatten(1)
        likelihood = (0.5 * (residual / std) ** 2 + std.log()).sum(1).mean()
        return likelihood + 0.5 * (var + mean**2 - 1 - var.log()).sum()

    def inversion_loss() -> Tensor:
        z = noise()
        return ((z - h(g(z))) ** 2).sum(1).mean()

    losses = (discriminator_loss, generator_loss, reconstruction_loss, inversion_loss)

    def step() -> None:
        for loss, adam in zip(losses, adams, strict=True):
            adam.zero_grad()
            loss().backward()
            adam.step()

    return step


def _profile(run: Callable[[], None]) -> dict[str, float]:
    """Shares of the time by kernel, the ten largest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    of_device = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, of_device) for event in profiler.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=lambda name: -times[name])[:10]
    return {name: times[name] / total for name in largest}
