"""Speed, side by side with the alternatives in one process, and growth of time and memory.

On an accelerator, if there is one; the comparison with JAX needs the extra ``benchmark``. Run it on an
otherwise idle machine.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from invgan.experiments.common import provenance, write_figure, write_results
from invgan.experiments.points import Record
from invgan.experiments.speed import growth, jacobians, steps


def run(*, quick: bool = False, out: Path = Path("results")) -> dict[str, Any]:
    """Measure Jacobians, training steps and growth; write ``speed.json`` and ``speed.png``.

    An interrupted run goes on with the part that it was at.

    Parameters
    ----------
    quick : bool
        A smoke run on a few rows: its figures mean nothing.
    out : Path
        Folder of the results.
    """
    settings = {"quick": quick, "threads": torch.get_num_threads()}
    keys = [{"part": name} for name in _PARTS]
    record = Record(out / "speed.json", settings, (0,), quick)
    points = record.collect(keys, functools.partial(_measure, quick=quick))
    jacobian, images, tables, scoring, volumes = (point["found"] for point in points)
    growing = scoring | volumes
    results = {
        "complete": True,
        "title": f"Speed on {torch.get_num_threads()} threads",
        "table": {
            "columns": ["what", "here", "against", "there", "ratio", "aim"],
            "rows": [*_jacobian_rows(jacobian), *_step_rows(images, tables)],
        },
        "jacobian": jacobian,
        "training_images": images,
        "training_tables": tables,
        "growth": growing | {"units": growth.UNITS},
        "parts": [{key: point[key] for key in ("part", "commit")} for point in points],
        "note": (
            "Rows of the slowest rivals are fewer; times are per row. Convolution rate: the generator's "
            "transposed convolutions alone, forward, each in its faster memory format."
        ),
        "quick": quick,
        **provenance(seeds=(0,)),
    }
    write_results(out / "speed.json", results)
    write_figure(out / "speed.png", growth.figure(growing))
    return results


_PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "Jacobians": jacobians.run,
    "steps on images": steps.images,
    "steps on tables": steps.tables,
    "scoring of more rows": growth.scoring,
    "volumes at larger d and D": growth.volumes,
}


def _measure(part: str, *, quick: bool) -> dict[str, Any]:
    return {"found": _PARTS[part](quick=quick)}


def _jacobian_rows(found: dict[str, Any]) -> list[list[str]]:
    milliseconds = found["milliseconds_per_row"]
    ours = f"{milliseconds['this library']:.2f} ms"
    aims = {found["best_rival"]: "≥ 2.5", "autograd.functional.jacobian": "≥ 100"}
    rows = [
        [
            "J_g, Table 5, d = 50",
            ours,
            name,
            f"{milliseconds[name]:.2f} ms",
            f"{ratio:.1f}×",
            aims.get(name, ""),
        ]
        for name, ratio in found["times_slower_than_this_library"].items()
    ]
    rate = f"{found['operations_per_second'] / 1e9:.0f} GFLOP/s"
    for name, aim in {"all": "≥ 60 %", "best": ""}.items():
        there = f"{found['convolutions_alone_operations_per_second'][name] / 1e9:.0f} GFLOP/s"
        share = f"{found['share_of_the_convolution_rate'][name]:.0%}"
        what = "all convolutions alone" if name == "all" else "the fastest convolution alone"
        rows.append(["J_g, d forward passes", rate, what, there, share, aim])
    return rows


def _step_rows(images: dict[str, Any], tables: dict[str, Any]) -> list[list[str]]:
    seconds = images["seconds_per_step"]
    step, there = f"{1e3 * seconds:.0f} ms", f"{1e3 * images['plain_eager_float32_seconds_per_step']:.0f} ms"
    rate, matrix = images["operations_per_second"], images["matrix_rate"]
    name = f"step on images, {images['precision']}"
    rows = [
        [name, step, "plain eager float32", there, f"{images['times_faster']:.1f}×", "≥ 3"],
        [
            name,
            f"{rate / 1e9:.0f} GFLOP/s",
            "matrix products",
            f"{matrix / 1e9:.0f} GFLOP/s",
            f"{images['share_of_the_matrix_rate']:.0%}",
            "≥ 50 %",
        ],
    ]
    step = f"{1e3 * tables['seconds_per_step']:.2f} ms"
    if "jax_version" not in tables:
        return [*rows, ["step on tables", step, "JAX", "not installed", "", "≤ 1.2"]]
    there = f"{1e3 * tables['jax_seconds_per_step']:.2f} ms"
    ratio = f"{tables['times_slower_than_jax']:.2f}"
    return [*rows, ["step on tables", step, f"JAX {tables['jax_version']}, one scan", there, ratio, "≤ 1.2"]]
