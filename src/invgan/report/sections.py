"""What each section of the report shows: one function per section, from the content to the template's values.

To add a section, write its function, add it to `SECTIONS`, and give sections.html a macro of the same name. A
function returns None where the content has nothing for its section.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from invgan.metrics import detection_metrics
from invgan.report.content import Pictures, ReportContent
from invgan.report.figures import (
    histogram_figure,
    inline_svg,
    precision_recall_figure,
    roc_figure,
    training_figure,
)
from invgan.report.reasons import Reason, main_reasons
from invgan.report.text import counted, nats, shown

MORE_REASONS = 12
"""Reasons that the ranking gives when asked."""
PICTURE_SIDE = 64
"""Pixels; larger images are reduced to it, so that the page stays small."""

MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 640, 520, 10
"""Largest size of the map of the latent space, and the rim around it, in the units of its view box."""

_METRIC_NAMES = {"auroc": "AUROC", "ap": "AP", "precision": "Precision", "recall": "Recall", "f1": "F1"}
_HEAT = matplotlib.colormaps["inferno"]

View = dict[str, Any]


def summary(content: ReportContent) -> View:
    """How many rows were flagged, and the facts."""
    flagged, total = np.count_nonzero(content.is_anomaly), len(content.scores)
    view: View = {
        "heading": "Summary",
        "flagged": shown(flagged),
        "total": counted(total, "row"),
        "share": f"{flagged / total:.1%}",
        "known": None,
        "facts": [(name, shown(value)) for name, value in content.facts],
    }
    if content.labels is not None and np.any(content.labels):
        known = content.labels == 1
        view["found"] = shown(np.count_nonzero(content.is_anomaly & known))
        view["known"] = counted(np.count_nonzero(known), "known anomaly")
    return view


def decision(content: ReportContent) -> View:
    """The false-positive rate, to be changed, and what follows from it."""
    view: View = {
        "heading": "Decision",
        "rate": repr(float(content.false_positive_rate)),
        "highest": repr(max(0.5, float(content.false_positive_rate))),
        "flagged": shown(np.count_nonzero(content.is_anomaly)),
        "total": counted(len(content.scores), "row"),
        "threshold": nats(content.threshold),
        "metrics": [],
    }
    if content.has_both_classes:
        view["metrics"] = [item for item in _metrics(content) if item[0] not in ("auroc", "ap")]
    return view


def distribution(content: ReportContent) -> View:
    """The histogram of the scores."""
    figure = histogram_figure(
        content.scores, threshold=content.threshold, labels=content.labels, name=content.score_name
    )
    description = (
        f"Histogram of {content.score_name} for {counted(len(content.scores), 'row')}: the lowest is "
        f"{nats(content.scores.min())}, the median {nats(np.median(content.scores))}, the highest "
        f"{nats(content.scores.max())} nats."
    )
    return {
        "heading": "Scores",
        "score_name": content.score_name,
        "has_threshold": bool(np.isfinite(content.threshold)),
        "labelled": content.labels is not None,
        "plot": inline_svg(figure, description, name="histogram"),
    }


def ranking(content: ReportContent) -> View:
    """The lowest scores first, each with its reasons or its pictures."""
    n_explained = len(content.pictures.images) if content.pictures is not None else len(content.reasons)
    order = content.order[:n_explained].tolist()
    items: list[View] = [
        {
            "rank": rank,
            "name": content.name(row),
            "score": nats(content.scores[row]),
            "p_value": f"{content.p_values[row]:.2g}",
            "flagged": bool(content.is_anomaly[row]),
            "label": None if content.labels is None else ("normal", "anomaly")[int(content.labels[row])],
        }
        for rank, row in enumerate(order, start=1)
    ]
    view: View = {
        "heading": "Most anomalous rows",
        "score_name": content.score_name,
        "ranked": items,
        "listed": shown(len(content.order)),
        "explained": shown(n_explained) if n_explained < len(content.scores) else None,
        "total": shown(len(content.scores)),
        "all_listed": len(content.order) == len(content.scores),
        "labelled": content.labels is not None,
        "pictured": content.pictures is not None,
        "reasoned": bool(content.reasons),
    }
    if content.pictures is not None:
        top = _top_share(content.pictures)
        scale = _data_uri(_heated(np.arange(256.0)[None], 255.0))
        view["heat"] = {"top": shown(float(f"{top:.2g}")), "scale": scale}
        for item, pictures in zip(items, _pictures(content.pictures, top), strict=True):
            item["pictures"] = pictures
        for item, shares in zip(items, content.pictures.shares, strict=True):
            item["deficit"] = _deficit(float(shares.sum()))
    else:
        for item, reasons in zip(items, content.reasons, strict=True):
            item["deficit"] = _deficit(sum(reason.share for reason in reasons))
            item["reasons"] = [str(reason) for reason in main_reasons(reasons)]
            item["more"] = _more(reasons)
            item["left_out"] = (
                counted(len(reasons) - MORE_REASONS, "column") if len(reasons) > MORE_REASONS else None
            )
    return view


def detection(content: ReportContent) -> View | None:
    """How well the scores separate known anomalies from normal rows, beside other scores."""
    view: View = {"heading": "Detection", "plots": [], "metrics": [], "comparison": None}
    if content.has_both_classes:
        assert content.labels is not None
        view["metrics"] = _metrics(content)
        found = {name: value for name, _, value in view["metrics"]}
        decisions = (
            f"The flagged rows have recall {found['recall']} and precision {found['precision']} at a "
            f"false-positive rate of {content.false_positive_rate:g}."
        )
        for name, figure, text in (
            ("roc", roc_figure, f"ROC curve with area {found['auroc']}."),
            ("precision-recall", precision_recall_figure, f"Precision over recall, average {found['ap']}."),
        ):
            drawn = figure(content.scores, content.labels, is_anomaly=content.is_anomaly)
            view["plots"].append(inline_svg(drawn, f"{text} {decisions}", name=name))
    if content.comparison:
        view["comparison"] = _comparison(content.comparison)
    return view if view["plots"] or view["comparison"] else None


def latent(content: ReportContent) -> View | None:
    """The map of the latent space."""
    found = content.latent_map
    if found is None:
        return None
    # The bulk of the training rows fills most of the frame; what lies far from it is drawn at the edge.
    low, high = np.percentile(found.training, [1, 99], axis=0)
    margin = 0.35 * (high - low)
    everything = np.concatenate([found.training, found.points])
    low, high = np.maximum(everything.min(0), low - margin), np.minimum(everything.max(0), high + margin)
    width, height = np.maximum(high - low, 1e-300)
    scale = min(MAP_WIDTH / width, MAP_HEIGHT / height)  # one for both directions: distances can be compared
    frame = np.maximum(np.array([width, height]) * scale, MAP_HEIGHT / 3)

    def placed(points: np.ndarray) -> list[list[int]]:
        from_center = (np.clip(points, low, high) - (low + high) / 2) * [scale, -scale]  # upwards is up
        placed_points: list[list[int]] = np.rint(from_center + frame / 2 + MAP_MARGIN).astype(int).tolist()
        return placed_points

    marks: list[View] = [
        {
            "at": at,
            "name": content.name(row),
            "below": int(content.below[row]),
            "flagged": bool(content.is_anomaly[row]),
            "anomaly": content.labels is not None and bool(content.labels[row]),
        }
        for at, row in zip(placed(found.points), found.rows.tolist(), strict=True)
    ]
    marks.sort(key=lambda mark: mark["flagged"])  # over the others
    return {
        "heading": "Latent space",
        "width": round(frame[0]) + 2 * MAP_MARGIN,
        "height": round(frame[1]) + 2 * MAP_MARGIN,
        "training": placed(found.training),
        "marks": marks,
        "labelled": content.labels is not None and bool(np.any(content.labels)),
        "variance": f"{found.variance:.0%}",
        "clipped": bool(((everything < low) | (everything > high)).any()),
        "all": len(found.rows) == len(content.scores),
        "n_rows": shown(len(found.rows)),
    }


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


SECTIONS = (summary, decision, distribution, ranking, detection, latent, training, model_card)


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


def _metrics(content: ReportContent) -> list[tuple[str, str, str]]:
    """Key, name and value of each."""
    assert content.labels is not None
    found = detection_metrics(content.labels, content.scores, flagged=content.is_anomaly)
    return [(name, _METRIC_NAMES[name], f"{value:.3f}") for name, value in found.items()]


def _deficit(total: float) -> View:
    """The sum of a row's shares, for readers and for sorting."""
    return {"text": nats(total), "value": repr(total)}


def _more(reasons: Sequence[Reason]) -> list[View]:
    """The first reasons with their shares, each drawn beside the largest one."""
    largest = max((abs(reason.share) for reason in reasons), default=0.0) or 1.0
    return [
        {
            "column": reason.column,
            "observed": reason.observed,
            "expected": reason.expected,
            "share": nats(reason.share),
            "width": f"{100 * max(reason.share, 0.0) / largest:.0f}",
        }
        for reason in reasons[:MORE_REASONS]
    ]


def _pictures(pictures: Pictures, top: float) -> Iterator[list[View]]:
    """Each image with its reconstruction and heat map; black is the images' lowest value."""
    images = pictures.images
    finite = images if images.dtype.kind in "ui" else images[np.isfinite(images)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for image, expected, shares in zip(images, pictures.expected, pictures.shares, strict=True):
        drawn = {
            "picture": _painted(image, low, high),
            "reconstruction": _painted(expected, low, high),
            "heat map": _heated(shares.sum(0), top),
        }
        view = []
        for name, picture in drawn.items():
            picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            uri = _data_uri(picture)
            view.append({"kind": name, "uri": uri, "width": picture.width, "height": picture.height})
        yield view


def _top_share(pictures: Pictures) -> float:
    """The share that the heat maps show as their brightest: one in a hundred pixels has more."""
    shares = pictures.shares.sum(1)
    return max(float(np.percentile(shares, 99)), 1e-9)


def _painted(image: np.ndarray, low: float, high: float) -> Image.Image:
    """An image (C, H, W) from black, the low value, to white."""
    pixels = np.nan_to_num(image.astype(np.float64), nan=low, neginf=low, posinf=high)
    pixels = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels.mean(axis=0)  # H×W×3 or H×W
    levels = (pixels - low) / ((high - low) or 1.0)
    return Image.fromarray(np.rint(255 * np.clip(levels, 0, 1)).astype(np.uint8))


def _heated(shares: np.ndarray, top: float) -> Image.Image:
    """Shares (H, W) in nats, from black at 0 and below to the brightest at `top` and above."""
    return Image.fromarray(_HEAT(np.clip(shares / top, 0, 1), bytes=True)[..., :3])


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
