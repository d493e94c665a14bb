"""From content to one file that opens from disk without a network."""

import os
from pathlib import Path

import jinja2
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
    ...     rows=np.array([[0.0], [9.0]]),
    ...     scores=np.array([-1.0, -41.0]),
    ...     p_values=np.array([0.5, 0.01]),
    ...     is_anomaly=np.array([False, True]),
    ...     threshold=-3.0,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_report(f"{folder}/report.html", content)
    ...     print(Path(f"{folder}/report.html").read_text()[:15])
    <!doctype html>
    """
    # File names may hold bytes that are no characters; they must not keep the report from being written.
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
    return environment.get_template("report.html").render(
        title=content.title,
        style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
        sections={name: view for name, view in views.items() if view is not None},
    )
