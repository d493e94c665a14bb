"""Figure 4: table 3's AUROC class by class, as bars (sections 4.3.2 and 4.3.3)."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from invgan.experiments import table3
from invgan.experiments.common import provenance, write_figure, write_results
from invgan.experiments.points import Point

COLOURS = {
    "VAE": "#999999",
    "AnoGAN": "#e69f00",
    "EGBAD": "#cc79a7",
    "GANomaly": "#009e73",
    "InvGAN as in the paper, riemannian": "#56b4e9",
    "InvGAN, aggregate": "#0072b2",
    "InvGAN, ratio": "#000000",
}
"""Bars: the paper's five, our default and our score for images; the table has all systems."""


def run(*, quick: bool = False, out: Path = Path("results"), data: str = "mnist") -> dict[str, Any]:
    """Draw each class's AUROC, and write ``figure4-<data>.json`` and ``.png``.

    The figures are those of ``table3-<data>.json`` in the same folder; if there is none that is complete, and
    as quick or as full as asked for, table 3 is measured first.

    Parameters
    ----------
    quick : bool
        As in :func:`invgan.experiments.table3.run`.
    out : Path
        Folder of the results.
    data : {"mnist", "cifar10"}

    Raises
    ------
    InputError
        If ``data`` is neither, or has to be measured and is not at hand.
    """
    table3.check_data(data, "figure4")
    measured = _measured(out / f"table3-{data}.json", quick) or table3.run(quick=quick, out=out, data=data)
    points = [point for point in measured["points"] if point["protocol"] == table3.ONE_ABNORMAL]
    by_class = {name: table3.auroc_by_class(runs, name) for name, runs in table3.by_score(points).items()}
    classes = [table3.CLASSES[data][label] for label in next(iter(by_class.values()))]
    results = {
        "title": f"Figure 4, {data}: AUROC with each class abnormal, {len(measured['seeds'])} seed(s)",
        "table": {
            "columns": ["model", *classes],
            "rows": [
                [name, *(f"{auroc:.3f}" for auroc in aurocs.values())] for name, aurocs in by_class.items()
            ],
        },
        "quick": quick,
        "measured": {name: measured[name] for name in ("command", "commit", "hardware")},
        **provenance(seeds=measured["seeds"]),
    }
    path = out / f"figure4-{data}.json"
    write_results(path, results)
    write_figure(path.with_suffix(".png"), _figure(by_class, points, classes, data, measured["notes"][0]))
    return results


def _measured(path: Path, quick: bool) -> dict[str, Any] | None:
    """Table 3's results, if they are complete and of the size asked for."""
    found: Any = None
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
    fits = isinstance(found, dict) and found.get("complete") is True and found.get("quick") is quick
    return found if fits else None


def _figure(
    by_class: Mapping[str, Mapping[int, float]],
    points: Sequence[Point],
    classes: Sequence[str],
    data: str,
    size: str,
) -> Figure:
    """Draw a group of bars for each class; a line on a bar is the standard deviation over seeds.

    The title says of what size the run was: a reduced one must not pass for the reproduction.
    """
    figure = Figure(figsize=(max(8, 2 + 0.9 * len(classes)), 3.6), layout="constrained")
    axes = figure.subplots()
    drawn = [name for name in COLOURS if name in by_class]  # measured before there was a ratio, it has none
    width = 0.8 / len(drawn)
    for place, name in enumerate(drawn):
        offsets = np.arange(len(classes)) + (place - (len(drawn) - 1) / 2) * width
        spread = [
            np.std([run["auroc"][name] for run in points if name in run["auroc"] and run["label"] == label])
            for label in by_class[name]
        ]
        axes.bar(offsets, list(by_class[name].values()), width, yerr=spread, color=COLOURS[name], label=name)
    axes.axhline(0.5, color="#777777", ls=":", lw=1)
    axes.set_xticks(np.arange(len(classes)), classes, rotation=0 if data == "mnist" else 30)
    axes.set(ylim=(0, 1), ylabel="AUROC", xlabel="abnormal class")
    axes.set_title(f"{data}: {size}", fontsize="small")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
