"""The report's plots, as matplotlib figures for use anywhere and as SVG that follows the page's theme."""

import io
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.metrics import precision_recall_curve, roc_curve

from invgan.report.text import counted, nats, shown

# Okabe and Ito's blue and vermilion differ to every kind of colour vision. The page's style sheet defines the
# same names, so that the dark theme recolours its plots.
COLOURS = {"ink": "#3a424b", "rule": "#d9dee4", "normal": "#0072b2", "anomaly": "#d55e00"}

_LIVE = "live"
"""Marks what the page's script draws anew, because it moves with the false-positive rate."""

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,  # names are the user's: a lone $ must not be read as a formula
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",
    "hatch.linewidth": 0.7,
}


def histogram_figure(
    scores: ArrayLike,
    *,
    threshold: float = -np.inf,
    labels: ArrayLike | None = None,
    name: str = "log p(x)",
) -> Figure:
    """The distribution of scores, with the threshold and, where labels are known, one outline per class.

    Rows far outside the bulk, by more than 6 interquartile ranges, are counted in the outermost bars, and the
    axis says how many they are. With labels each class is shown as shares of its own rows.

    Parameters
    ----------
    scores : array-like of shape (n,)
        In nats; may be infinite.
    threshold : float
        Drawn as a line where finite.
    labels : array-like of shape (n,), optional
        1 = anomaly, 0 = normal.
    name : str
        What the scores are.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = histogram_figure([-3.0, -2.0, -2.0, -np.inf], threshold=-2.5)
    >>> figure.axes[0].get_xlabel()
    'log p(x) in nats; the leftmost bar also holds 1 row below −3.00'
    """
    values = np.asarray(scores, dtype=np.float64)
    low, high = _bulk(values, threshold)
    clipped = np.clip(values, low, high)
    edges = np.linspace(low, high, 1 + _bins(clipped, high - low))
    with _style():
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.add_subplot()
        if labels is None:
            _outline(axes, np.histogram(clipped, edges)[0], edges, "normal", None)
            axes.set_ylabel("rows")
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        else:
            known = np.asarray(labels)
            for label, kind in ((0, "normal"), (1, "anomaly")):
                count = np.count_nonzero(known == label)
                if count:
                    share = np.histogram(clipped[known == label], edges)[0] / count
                    _outline(axes, share, edges, kind, f"{kind}, {counted(count, 'row')}")
            axes.set_ylabel("share of the class")
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
        if np.isfinite(threshold):
            dashes = (0, (4, 3))
            line = axes.axvline(threshold, color=COLOURS["ink"], linewidth=1.2, linestyle=dashes)
            line.set(label="threshold", gid=_LIVE)
        if axes.get_legend_handles_labels()[0]:
            # Above the plot, where no bar can lie under it.
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3, borderpad=0, ncols=3)
        axes.set_xlim(low, high)
        axes.set_ylim(bottom=0)
        beyond = [
            f"the {side} bar also holds {counted(count, 'row')} {relation} {nats(bound)}"
            for side, count, relation, bound in (
                ("leftmost", np.count_nonzero(values < low), "below", low),
                ("rightmost", np.count_nonzero(values > high), "above", high),
            )
            if count
        ]
        axes.set_xlabel("; ".join([f"{name} in nats", *beyond]))
    return figure


def roc_figure(scores: ArrayLike, labels: ArrayLike, *, is_anomaly: ArrayLike | None = None) -> Figure:
    """The ROC curve, and on it the decisions that were taken.

    Parameters
    ----------
    scores : array-like of shape (n,)
        Higher = more normal; may be infinite.
    labels : array-like of shape (n,)
        1 = anomaly, 0 = normal; both must occur.
    is_anomaly : array-like of bool of shape (n,), optional
        The flagged rows, shown as a point.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = roc_figure([-9.0, -1.0, 2.0], [1, 0, 0])
    >>> figure.axes[0].lines[1].get_xydata().tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    """
    known = np.asarray(labels).astype(bool)
    # Ranks, because scikit-learn refuses infinite scores.
    false_positives, true_positives, _ = roc_curve(known, rankdata(-np.asarray(scores, dtype=np.float64)))
    point = None
    if is_anomaly is not None:
        flagged = np.asarray(is_anomaly)
        point = (flagged[~known].mean(), flagged[known].mean())
    return _square_figure(
        (false_positives, true_positives),
        chance=((0, 1), (0, 1)),
        point=point,
        xlabel="false-positive rate: normal rows flagged",
        ylabel="true-positive rate: anomalies found",
    )


def precision_recall_figure(
    scores: ArrayLike, labels: ArrayLike, *, is_anomaly: ArrayLike | None = None
) -> Figure:
    """Precision over recall, and on the curve the decisions that were taken.

    Parameters
    ----------
    scores, labels, is_anomaly
        As in :func:`roc_figure`.

    Returns
    -------
    matplotlib.figure.Figure
        A step to the left for each threshold, so that the area below is the average precision.

    Examples
    --------
    >>> figure = precision_recall_figure([-9.0, -1.0, 2.0], [1, 0, 0])
    >>> figure.axes[0].lines[1].get_xydata().tolist()
    [[1.0, 0.333...], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]
    """
    known = np.asarray(labels).astype(bool)
    precision, recall, _ = precision_recall_curve(known, rankdata(-np.asarray(scores, dtype=np.float64)))
    point = None
    if is_anomaly is not None and np.any(is_anomaly):  # without flagged rows there is no precision
        flagged = np.asarray(is_anomaly)
        point = (flagged[known].mean(), known[flagged].mean())
    share = known.mean()
    return _square_figure(
        (recall, precision),
        chance=((0, 1), (share, share)),
        point=point,
        xlabel="recall: anomalies found",
        ylabel="precision: flagged rows that are anomalies",
        drawstyle="steps-post",
    )


def _square_figure(
    curve: tuple[ArrayLike, ArrayLike],
    *,
    chance: tuple[ArrayLike, ArrayLike],
    point: tuple[float, float] | None,
    xlabel: str,
    ylabel: str,
    drawstyle: str = "default",
) -> Figure:
    """A curve of rates beside that of guessing, with a point on it."""
    with _style():
        figure = Figure(figsize=(4.4, 4.6), layout="constrained")
        axes = figure.add_subplot(aspect="equal")
        axes.grid(True, axis="both")
        axes.plot(*chance, color=COLOURS["ink"], linewidth=1, linestyle=(0, (1, 3)), label="guessing")
        axes.plot(*curve, color=COLOURS["normal"], linewidth=2, clip_on=False, drawstyle=drawstyle)
        if point is not None:
            (mark,) = axes.plot(*point, "^", color=COLOURS["anomaly"], markersize=8, clip_on=False, zorder=3)
            mark.set(label="flagged rows", gid=_LIVE)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.8, borderpad=0, ncols=2)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=xlabel, ylabel=ylabel)
    return figure


def training_figure(history: Mapping[str, Any]) -> Figure:
    """Each loss, and the validation score with its best, over the steps of training.

    Each has its own axis, for their sizes have nothing in common; one that is positive and spans more than
    two orders of magnitude is drawn on a logarithmic axis.

    Parameters
    ----------
    history : mapping
        The fields of `invgan.training.History`; those of the validation may be empty or missing.

    Returns
    -------
    matplotlib.figure.Figure

    Examples
    --------
    >>> figure = training_figure({"steps": [50, 100], "losses": {"generator": [0.7, 0.6]}})
    >>> [axes.get_title("left") for axes in figure.axes]
    ['generator']
    """
    curves = [(name, history["steps"], values) for name, values in history["losses"].items()]
    if history.get("validation_steps"):
        curves.append(("validation score", history["validation_steps"], history["validation_scores"]))
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    with _style():
        figure = Figure(figsize=(10, 0.3 + 2.1 * rows), layout="constrained")
        for position, (name, steps, values) in enumerate(curves, start=1):
            axes = figure.add_subplot(rows, columns, position)
            heights = np.asarray(values, dtype=np.float64)
            axes.plot(steps, heights, color=COLOURS["normal"], linewidth=1.5)
            axes.set_title(name)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if heights.min() > 0 and heights.max() > 100 * heights.min():
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{height:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_major_locator(MaxNLocator(4))
            if position > len(curves) - columns:
                axes.set_xlabel("step")
        if history.get("validation_steps") and history.get("best_step") in history["validation_steps"]:
            best = list(history["validation_steps"]).index(history["best_step"])
            axes.plot(steps[best], heights[best], "o", color=COLOURS["anomaly"], markersize=5, clip_on=False)
            axes.set_title(f"{name}, best at step {shown(history['best_step'])}")
    return figure


def inline_svg(figure: Figure, description: str, *, name: str | None = None) -> Markup:
    """The figure as an SVG element for a page that defines the `COLOURS` as custom properties.

    Text stays text, in the page's font. The same figure gives the same bytes; nothing in it refers to
    anything outside.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    description : str
        What a reader who cannot see the figure should know; different for each figure of a page.
    name : str, optional
        For the page's script to find the plot by. The element then also says where its first axes lie
        (``data-box``: left, right, bottom, top in the units of its view box) and what they span
        (``data-limits``, in the data's units).

    Returns
    -------
    markupsafe.Markup

    Examples
    --------
    >>> inline_svg(training_figure({"steps": [1], "losses": {"a": [1.0]}}), "A loss of <1>.")[:58]
    Markup('<svg role="img" aria-label="A loss of &lt;1&gt;." viewBox=')
    """
    buffer = io.StringIO()
    # The ids of clipping paths and markers are hashes; salted by the description they differ between figures.
    with _style({"svg.hashsalt": description}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    svg = buffer.getvalue()
    view_box = re.search(r'viewBox="0 0 (\S+) (\S+)"', svg)
    assert view_box is not None
    body = svg[svg.index("</defs>") + len("</defs>") :]  # after matplotlib's own style sheet
    body = body.replace(f'<g id="{_LIVE}"', f'<g class="{_LIVE}"')
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # counted anew in each figure, so not unique in a page
    body = re.sub(r"font-family: [^;]*; ?", "", body)
    body = re.sub(r"\n\s*", "\n", body)
    for colour_name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{colour_name})")
    attributes = f'role="img" aria-label="{escape(description)}" {view_box[0]}'
    if name is not None:
        axes = figure.axes[0]
        box, width, height = axes.get_position(), float(view_box[1]), float(view_box[2])
        sides = (box.x0 * width, box.x1 * width, (1 - box.y0) * height, (1 - box.y1) * height)
        limits = (*axes.get_xlim(), *axes.get_ylim())
        attributes += f' data-plot="{name}" data-box="{_listed(sides)}" data-limits="{_listed(limits)}"'
    return Markup(f"<svg {attributes}>") + Markup(body)


def _listed(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def _style(more: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """The report's style, whatever the user's matplotlibrc says; theirs is back afterwards."""
    return matplotlib.style.context(["default", {**_STYLE, **(more or {})}])


def _bulk(values: np.ndarray, threshold: float) -> tuple[float, float]:
    """The range of scores to show: the bulk of the finite ones, and the threshold."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        finite = np.zeros(1)
    first, median, third = np.percentile(finite, [25, 50, 75])
    reach = 6 * (third - first) or np.inf
    low, high = max(finite.min(), median - reach), min(finite.max(), median + reach)
    if low == high:
        low, high = low - 1, high + 1
    if np.isfinite(threshold):
        margin = 0.03 * (high - low)
        low, high = min(low, threshold - margin), max(high, threshold + margin)
    return float(low), float(high)


def _bins(values: np.ndarray, width: float) -> int:
    """The number of bins by Freedman and Diaconis's rule, kept between a shape and a comb."""
    first, third = np.percentile(values, [25, 75])
    bin_width = 2 * (third - first) / np.cbrt(values.size)
    return int(np.clip(width / bin_width, 12, 80)) if bin_width > 0 else 40


def _outline(axes: Axes, heights: np.ndarray, edges: np.ndarray, name: str, label: str | None) -> None:
    """Draw a histogram as one tinted shape, an anomaly's hatched as well."""
    colour = COLOURS[name]
    axes.stairs(heights, edges, fill=True, color=colour, alpha=0.18, linewidth=0)
    # NaN leaves out the outline of empty bins, which would hide the other class's base line.
    shown_heights = np.where(heights > 0, heights, np.nan)
    hatch = "////" if name == "anomaly" else None
    axes.stairs(shown_heights, edges, color=colour, linewidth=1.5, label=label, hatch=hatch)
