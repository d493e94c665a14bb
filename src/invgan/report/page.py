"""From content to one file that opens from disk without a network."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from invgan.data.files import write_whole
from invgan.report.content import ReportContent
from invgan.report.sections import SECTIONS

_FOLDER = Path(__file__).parent


def write_report(path: str | os.PathLike[str], content: ReportContent) -> None:
    """Write a self-contained HTML report, or replace the one at `path`, in one step.

    The same content gives the same bytes.

    Parameters
    ----------
    path : path-like
        The file; the folder it lies in must exist.
    content : ReportContent

    Raises
    ------
    InputError
        The file could not be written; what was at `path` before is untouched.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> content = ReportContent(
    ...     title="Two rows",
    ...     scores=np.array([-1.0, -41.0]),
    ...     calibration_scores=np.array([-3.0, -2.0, -1.5, 0.0]),
    ...     false_positive_rate=0.2,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(f"{folder}/report.html", content)
    ...     print(Path(f"{folder}/report.html").read_text()[:15])
    <!doctype html>
    """
    # Text may hold bytes that are no characters; they must not keep the report from being written.
    page = _page(content).encode("utf-8", errors="backslashreplace")
    write_whole(Path(path), lambda file: file.write(page), what="report")


def _page(content: ReportContent) -> str:
    """The HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    views = {section.__name__: section(content) for section in SECTIONS}
    script = (_FOLDER / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        title=content.title,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        # Whatever a name may hold, the browser runs this script and no other.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_live_data(content),
        sections={name: view for name, view in views.items() if view is not None},
    )


def _live_data(content: ReportContent) -> dict[str, Any]:
    """What the page's script computes with: the listed rows, and how many rows there are at every p-value.

    A p-value is (1 + j) / (m + 1) with j of m calibration scores at or below the row's. So m + 1 counts say
    how many rows any rate flags, however many rows there are.
    """
    order = content.order
    m = len(content.calibration_scores)
    known = np.zeros(len(content.scores)) if content.labels is None else content.labels
    return {
        "rate": float(content.false_positive_rate),
        "calibration": _packed(np.sort(content.calibration_scores), "<f8"),
        "counts": [np.bincount(content.below[known == label], minlength=m + 1).tolist() for label in (0, 1)],
        "scores": _packed(content.scores[order], "<f8"),
        "rows": _packed(order, "<u4"),
        "labels": None if content.labels is None else "".join(map(str, content.labels[order].tolist())),
        "names": None if content.row_names is None else [content.name(row) for row in order],
    }


def _packed(values: np.ndarray, dtype: str) -> str:
    """Numbers as base64 of their bytes: short, and the same numbers in the browser bit for bit."""
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()
