"""Tables larger than memory: time and peak memory of ``invgan fit`` and ``invgan score`` over the rows.

A made table of 50 columns, a category and a truth value among them, is written row group by row group, and
each command reads it in a process of its own. Run it on an otherwise idle machine.
"""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
import torch
from matplotlib.figure import Figure

from invgan.experiments.common import write_figure
from invgan.experiments.points import Point, Record
from invgan.experiments.speed.growth import command

ROWS = {".parquet": (100_000, 1_000_000, 5_000_000), ".csv": (100_000, 1_000_000)}
QUICK_ROWS = {".parquet": (500, 2_000), ".csv": (500,)}
N_COLUMNS, N_FACTORS = 50, 10
ROW_GROUP = 50_000
QUICK_STEPS = 20


def run(*, quick: bool = False, out: Path = Path("results")) -> dict[str, Any]:
    """Fit and score ever larger tables; write ``streams.json`` and ``streams.png``.

    A run that is cut off and started again goes on with the size that it was at.

    Parameters
    ----------
    quick : bool
        Small tables and 20 steps: a smoke run whose figures mean nothing.
    out : Path
        Folder of the results.
    """
    sizes = QUICK_ROWS if quick else ROWS
    keys = [{"type": suffix, "rows": n_rows} for suffix, numbers in sizes.items() for n_rows in numbers]
    settings = {"quick": quick, "threads": torch.get_num_threads()}
    record = Record(out / "streams.json", settings, (0,), quick)
    points = record.collect(keys, functools.partial(_measure, quick))
    results = record.write(
        points,
        title=f"Tables of {N_COLUMNS} columns on {torch.get_num_threads()} threads",
        table={
            "columns": ["rows", "file", "command", "seconds", "rows per second", "peak memory"],
            "rows": [_row(point, name) for point in points for name in ("fit", "score")],
        },
        note="Whole processes, from the start of Python. Fit: of more than 250,000 rows a sample is kept.",
    )
    write_figure(out / "streams.png", _figure(points))
    return results


def _measure(quick: bool, type: str, rows: int) -> Point:
    steps = ["--max-steps", str(QUICK_STEPS)] if quick else []
    with tempfile.TemporaryDirectory() as folder:
        data, model, scores = (Path(folder, name) for name in (f"data{type}", "model", "scores.parquet"))
        write_table(data, rows)
        found = {
            "fit": command(rows, "fit", data, "--out", model, *steps),
            "score": command(rows, "score", model, data, "--out", scores),
        }
        measured = {name: {"seconds": p.seconds, "megabytes": p.megabytes} for name, p in found.items()}
        return measured | {"file_megabytes": data.stat().st_size / 1e6}


def write_table(path: Path, n_rows: int) -> None:
    """Write the made table, .parquet or .csv, holding one row group of it in memory."""
    if path.suffix == ".csv":
        with path.open("wb") as file:
            for number, frame in enumerate(_row_groups(n_rows)):
                frame.write_csv(file, include_header=number == 0)
        return
    schema = next(_row_groups(1)).to_arrow().schema
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for frame in _row_groups(n_rows):
            writer.write_table(frame.to_arrow())


def _row_groups(n_rows: int) -> Iterator[pl.DataFrame]:
    """Rows around a ten-dimensional plane; the category and the truth value follow two of its coordinates."""
    draws = np.random.default_rng(0)
    plane = draws.normal(size=(N_FACTORS, N_COLUMNS - 2))
    for start in range(0, n_rows, ROW_GROUP):
        factors = draws.normal(size=(min(ROW_GROUP, n_rows - start), N_FACTORS))
        X = factors @ plane + 0.3 * draws.normal(size=(len(factors), N_COLUMNS - 2))
        yield pl.DataFrame(X, schema=[f"x{i}" for i in range(N_COLUMNS - 2)]).with_columns(
            kind=np.where(factors[:, 0] > 1, "high", np.where(factors[:, 0] > -1, "middle", "low")),
            flag=factors[:, 1] > 0,
        )


def _row(point: Point, name: str) -> list[str]:
    found = point[name]
    return [
        f"{point['rows']:,}",
        f"{point['type'][1:]}, {point['file_megabytes']:,.0f} MB",
        f"invgan {name}",
        f"{found['seconds']:.1f}",
        f"{point['rows'] / found['seconds']:,.0f}",
        f"{found['megabytes']:,.0f} MB",
    ]


def _figure(points: list[Point]) -> Figure:
    drawn = Figure(figsize=(8, 3.4), layout="constrained")
    axes = dict(zip(("seconds", "megabytes"), drawn.subplots(1, 2), strict=True))
    for suffix, style in ((".parquet", "o-"), (".csv", "s--")):
        chosen = [point for point in points if point["type"] == suffix]
        for name, color in (("fit", "#0072b2"), ("score", "#d55e00")):
            for field, ax in axes.items():
                values = [point[name][field] for point in chosen]
                label = f"invgan {name}, {suffix[1:]}"
                ax.plot([point["rows"] for point in chosen], values, style, color=color, label=label)
    for ax in axes.values():
        ax.set(xscale="log", xlabel="rows")
        ax.grid(alpha=0.3)
    axes["seconds"].set(yscale="log", ylabel="seconds")
    axes["seconds"].legend()
    # From zero, not logarithmic: whether memory grows is the question.
    axes["megabytes"].set(ylim=(0, None), ylabel="peak memory, MB")
    return drawn
