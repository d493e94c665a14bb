"""What each section of the report shows: one function per section, from the content to the template's values.

To add a section, write its function, add it to `SECTIONS`, and give sections.html a macro of the same name. A
function returns None where the content has nothing for its section.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from invgan.metrics import detection_metrics
from invgan.report.content import ReportContent
from invgan.report.figures import histogram_figure, inline_svg, roc_figure, training_figure
from invgan.report.text import counted, nats, shown

RANKED_ROWS = 50
"""Rows in the ranking."""
SHOWN_FEATURES = 30
"""Columns of a table in the ranking."""
PICTURE_SIDE = 96
"""Pixels; larger images are reduced to it, so that the page stays small."""

_METRIC_NAMES = {"auroc": "AUROC", "ap": "AP", "precision": "Precision", "recall": "Recall", "f1": "F1"}

View = dict[str, Any]


def summary(content: ReportContent) -> View:
    """How many rows were flagged, and the facts."""
    flagged, total = np.count_nonzero(content.is_anomaly), len(content.rows)
    sentence = f"{shown(flagged)} of {counted(total, 'row')} flagged as anomalous ({flagged / total:.1%})."
    if content.labels is not None and np.any(content.labels):
        known = content.labels == 1
        found = np.count_nonzero(content.is_anomaly & known)
        sentence += (
            f" They include {shown(found)} of the {counted(np.count_nonzero(known), 'known anomaly')}."
        )
    return {
        "heading": "Summary",
        "sentence": sentence,
        "facts": [(name, shown(value)) for name, value in content.facts],
    }


def distribution(content: ReportContent) -> View:
    """The histogram of the scores."""
    where = f"The threshold is {nats(content.threshold)}." if np.isfinite(content.threshold) else ""
    figure = histogram_figure(content.scores, threshold=content.threshold, labels=content.labels)
    middle = np.median(content.scores)
    description = (
        f"Histogram of log p(x) for {counted(len(content.scores), 'row')}: the lowest is "
        f"{nats(content.scores.min())}, the median {nats(middle)}, the highest "
        f"{nats(content.scores.max())} nats. {where}"
    )
    return {
        "heading": "Scores",
        "has_threshold": bool(np.isfinite(content.threshold)),
        "plot": inline_svg(figure, description.strip()),
    }


def ranking(content: ReportContent) -> View:
    """The lowest scores first, each with its picture or its values."""
    # A stable sort, so that tied rows keep their order.
    order = np.argsort(content.scores, kind="stable")[:RANKED_ROWS].tolist()
    items: list[View] = [
        {
            "rank": rank,
            "name": content.row_names[row] if content.row_names is not None else f"row {row}",
            "score": nats(content.scores[row]),
            "p_value": f"{content.p_values[row]:.2g}",
            "flagged": bool(content.is_anomaly[row]),
            "label": None if content.labels is None else ("normal", "anomaly")[int(content.labels[row])],
        }
        for rank, row in enumerate(order, start=1)
    ]
    view: View = {
        "heading": "Most anomalous rows",
        "ranked": items,
        "total": shown(len(content.scores)),
        "named": content.row_names is not None,
        "labelled": content.labels is not None,
        "images": content.has_images,
        "features": [],
        "more_features": None,
    }
    if content.has_images:
        for item, picture in zip(items, _pictures(content.rows, order), strict=True):
            item["picture"] = picture
    else:
        width = content.rows.shape[1]
        names = content.feature_names or [f"x{column}" for column in range(width)]
        view["features"] = list(names)[:SHOWN_FEATURES]
        if width > SHOWN_FEATURES:
            view["more_features"] = shown(width)
        for item, row in zip(items, order, strict=True):
            item["cells"] = [shown(value) for value in content.rows[row, :SHOWN_FEATURES].tolist()]
    return view


def detection(content: ReportContent) -> View | None:
    """How well the scores separate known anomalies from normal rows, beside other scores."""
    view: View = {"heading": "Detection", "plot": None, "metrics": [], "comparison": None}
    if content.has_both_classes:
        assert content.labels is not None
        found = detection_metrics(content.labels, content.scores, flagged=content.is_anomaly)
        view["metrics"] = [(_METRIC_NAMES[name], f"{value:.3f}") for name, value in found.items()]
        figure = roc_figure(content.scores, content.labels, is_anomaly=content.is_anomaly)
        view["plot"] = inline_svg(
            figure,
            f"ROC curve with area {found['auroc']:.3f}. The flagged rows have recall {found['recall']:.3f} "
            f"and precision {found['precision']:.3f}.",
        )
    if content.comparison:
        view["comparison"] = _comparison(content.comparison)
    return view if view["plot"] or view["comparison"] else None


def training(content: ReportContent) -> View | None:
    """The training curves."""
    if content.history is None or not content.history["steps"]:
        return None
    names = ", ".join(content.history["losses"])
    description = f"Training curves over {shown(content.history['steps'][-1])} steps: {names}."
    return {
        "heading": "Training",
        "validated": bool(content.history.get("validation_steps")),
        "plot": inline_svg(training_figure(content.history), description),
    }


def model_card(content: ReportContent) -> View | None:
    """What it takes to make this model again."""
    groups = [(name, value) for name, value in content.model_card.items() if isinstance(value, Mapping)]
    single = {name: value for name, value in content.model_card.items() if not isinstance(value, Mapping)}
    if single:
        groups.append(("run", single))
    if not groups:
        return None
    return {
        "heading": "Model card",
        "groups": [(name, [(key, shown(value)) for key, value in values.items()]) for name, values in groups],
    }


SECTIONS = (summary, distribution, ranking, detection, training, model_card)


def _comparison(scores: Mapping[str, Mapping[str, float]]) -> View:
    """A table of scores by metrics, in which the best of each column is marked."""
    columns = [name for name in _METRIC_NAMES if any(name in metrics for metrics in scores.values())]
    best = {
        column: max(round(metrics[column], 3) for metrics in scores.values() if column in metrics)
        for column in columns
    }
    return {
        "columns": [_METRIC_NAMES[column] for column in columns],
        "rows": [
            (
                score,
                [
                    (f"{metrics[column]:.3f}", round(metrics[column], 3) == best[column])
                    if column in metrics
                    else ("–", False)
                    for column in columns
                ],
            )
            for score, metrics in scores.items()
        ],
    }


def _pictures(images: np.ndarray, order: Sequence[int]) -> list[View]:
    """The chosen images as PNG data URIs, the set's lowest value black and its highest white."""
    finite = images if images.dtype.kind in "ui" else images[np.isfinite(images)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    pictures = []
    for row in order:
        pixels = np.nan_to_num(images[row].astype(np.float64), nan=low, neginf=low, posinf=high)
        pixels = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(axis=0)  # H×W×3 or H×W
        levels = np.rint(255 * (pixels - low) / ((high - low) or 1.0)).astype(np.uint8)
        picture = Image.fromarray(levels)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG", optimize=True)
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        pictures.append({"uri": uri, "width": picture.width, "height": picture.height})
    return pictures
