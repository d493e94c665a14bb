"""Time and peak memory against the number of rows, the latent dimension d and the data dimension D."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure

from invgan import InvGAN, geometry, networks

N_COLUMNS = 10


class Point(NamedTuple):
    """What one size took."""

    size: int
    seconds: float
    megabytes: float
    """Peak memory beyond what was taken before the work began; of a whole process where rows grow."""


def scoring(*, quick: bool) -> dict[str, Any]:
    """Score ever more rows from a file, each size in a fresh process."""
    n_rows = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    return {"rows": [point._asdict() for point in _scoring(n_rows, max_steps=20 if quick else 300)]}


def volumes(*, quick: bool) -> dict[str, Any]:
    """Take log-volumes at ever larger d and D, each size in a fresh process."""
    latent_dims = (2, 8, 32) if quick else (2, 8, 32, 128, 512)
    data_dims = (10, 100) if quick else (10, 100, 1_000, 12_288)
    return {
        "d": [_in_a_process(_log_volume, d, 1024)._replace(size=d)._asdict() for d in latent_dims],
        "d, Lanczos": [_in_a_process(_lanczos, d, 1024)._replace(size=d)._asdict() for d in latent_dims],
        "D": [_in_a_process(_log_volume, 16, dim)._replace(size=dim)._asdict() for dim in data_dims],
    }


UNITS = {
    "rows": f"invgan score of a Parquet file of {N_COLUMNS} columns, whole process",
    "d": "log_volume of 64 rows, D = 1,024",
    "d, Lanczos": "estimate_log_volume of 64 rows, D = 1,024",
    "D": "log_volume of 64 rows, d = 16",
}
"""What is measured over the number of rows, d and D."""


def figure(results: dict[str, Any]) -> Figure:
    """Draw time above memory, both against rows, d and D."""
    panels = {
        "rows": {"rows": "invgan score"},
        "d": {"d": "exact", "d, Lanczos": "Lanczos"},
        "D": {"D": "exact"},
    }
    drawn = Figure(figsize=(10, 5.2), layout="constrained")
    axes = drawn.subplots(2, 3, sharex="col")
    for column, (name, series) in enumerate(panels.items()):
        for (key, label), style in zip(series.items(), ("o-", "s--"), strict=False):
            sizes = [point["size"] for point in results[key]]
            for row, field in enumerate(("seconds", "megabytes")):
                axes[row, column].plot(sizes, [point[field] for point in results[key]], style, label=label)
        axes[0, column].set(xscale="log", yscale="log", title=UNITS[name].replace(", ", ",\n", 1))
        # From zero, not logarithmic: whether memory grows is the question.
        axes[1, column].set(xlabel=name, ylim=(0, None))
        axes[0, column].yaxis.set_major_formatter("{x:g}")
        for ax in axes[:, column]:
            ax.grid(alpha=0.3)
    axes[0, 1].legend()
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    return drawn


def _scoring(sizes: Sequence[int], *, max_steps: int) -> list[Point]:
    draws = np.random.default_rng(0)
    columns = [f"x{i}" for i in range(N_COLUMNS)]
    points = []
    with tempfile.TemporaryDirectory() as folder:
        model, data, scores = (Path(folder) / name for name in ("model", "data.parquet", "scores.parquet"))
        InvGAN(max_steps=max_steps, random_state=0).fit(draws.normal(size=(1000, N_COLUMNS))).save(model)
        for size in sizes:
            pl.DataFrame(draws.normal(size=(size, N_COLUMNS)), schema=columns).write_parquet(data)
            points.append(command(size, "score", model, data, "--out", scores))
    return points


def command(size: int, *arguments: str | Path) -> Point:
    """Run a command of invgan's on so many rows in a process of its own, and take all of its memory."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return Point(size, time.perf_counter() - start, int(done.stdout.splitlines()[-1]) / 1e6)


_COMMAND = """
import sys
from invgan.cli import main
from invgan.experiments.speed.growth import peak_bytes
code = main(sys.argv[1:])
print(peak_bytes())
raise SystemExit(code)
"""


def _in_a_process(work: Any, *arguments: int) -> Point:
    """Run in a process of its own, whose peak memory is that of this work."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _log_volume(latent_dim: int, n_features: int) -> Point:
    f, z = _generator(latent_dim, n_features)
    return _measured(lambda z: geometry.log_volume(f, z), z)


def _lanczos(latent_dim: int, n_features: int) -> Point:
    f, z = _generator(latent_dim, n_features)
    draws = torch.Generator().manual_seed(0)
    return _measured(lambda z: geometry.estimate_log_volume(f, z, generator=draws), z)


def _generator(latent_dim: int, n_features: int) -> tuple[torch.nn.Module, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    widths = [latent_dim, max(128, latent_dim), max(128, latent_dim), n_features]
    generator = networks.mlp(widths, activation="silu")
    networks.initialize(generator, draws)
    return generator.requires_grad_(False), torch.randn(64, latent_dim, generator=draws)


def _measured(work: Callable[[torch.Tensor], Any], z: torch.Tensor) -> Point:
    work(z[:1])  # a process's first call also imports and sets up: more than the work itself
    before = peak_bytes()
    start = time.perf_counter()
    work(z)
    return Point(0, time.perf_counter() - start, (peak_bytes() - before) / 1e6)


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    try:  # getrusage would count what the parent held when it started this process
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
