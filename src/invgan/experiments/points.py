"""Results that take hours, kept as they come: an interrupted run goes on where it was."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from invgan.experiments.common import COMMIT, provenance, write_results

Point = dict[str, Any]


def collect(
    path: Path,
    settings: dict[str, Any],
    keys: Iterable[Point],
    measure: Callable[..., Point],
    *,
    seeds: Sequence[int],
) -> list[Point]:
    """Measure a point for each key, and write the results file anew after each.

    Parameters
    ----------
    path : Path
        The results file. If it is one that an earlier run with the same settings did not complete, its
        points are kept, and only the others are measured.
    settings : dict
        All that the points depend on, as JSON holds it.
    keys : iterable of dict
        What tells a point from the others.
    measure : callable
        Called with a key's entries by name.
    seeds : sequence of int
        For the file.

    Returns
    -------
    list of dict
        Each with its key, what was measured, the seconds that it took and the commit.
    """
    settings = json.loads(json.dumps(settings))  # tuples become lists, as they will be in the file
    points = _unfinished(path, settings)
    for key in keys:
        if any(all(point[name] == value for name, value in key.items()) for point in points):
            continue
        start = time.perf_counter()
        measured = measure(**key)
        points.append({**key, **measured, "seconds": time.perf_counter() - start, "commit": COMMIT})
        write_results(
            path, {"complete": False, "settings": settings, "points": points, **provenance(seeds=seeds)}
        )
    return points


def _unfinished(path: Path, settings: dict[str, Any]) -> list[Point]:
    """The points of an earlier run of the same settings that did not get to its end."""
    earlier: Any = None
    with suppress(OSError, ValueError):  # no file yet, or none of ours: it will be replaced
        earlier = json.loads(path.read_text())
    same = isinstance(earlier, dict) and earlier.get("complete") is False
    return earlier["points"] if same and earlier.get("settings") == settings else []
