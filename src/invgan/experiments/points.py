"""Results that take hours, kept as they come: an interrupted run goes on where it was."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from invgan.experiments.common import COMMIT, accelerator, provenance, write_results

Point = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """What a run of an experiment has measured, in a file that grows with it.

    Parameters
    ----------
    path : Path
        The results file. If it is one that an earlier run with the same settings did not complete, its
        points are kept, and only the others are measured.
    settings : dict
        All that the points depend on beside their keys, as JSON holds it.
    seeds : sequence of int
        For the file.
    quick : bool
        Whether it is a smoke run, for the file as well.
    """

    path: Path
    settings: dict[str, Any]
    seeds: Sequence[int]
    quick: bool

    def collect(
        self, keys: Iterable[Point], measure: Callable[..., Point], *, processes: int = 1
    ) -> list[Point]:
        """Measure a point for each key, and write the results file anew after each.

        Parameters
        ----------
        keys : iterable of dict
            What tells a point from the others.
        measure : callable
            Called with a key's entries by name; for several processes a function that can be pickled.
        processes : int
            How many to measure in, each on one thread: networks too small for more take one core each.

        Returns
        -------
        list of dict
            In the order of the keys, each with its key, what was measured, the seconds that it took, the
            commit and the accelerator: a long run may have gone on with other code, on another machine.
        """
        keys, points = list(keys), self.unfinished()
        missing = [key for key in keys if not any(_is_at(key, point) for point in points)]
        for key, measured in _measure_all(missing, measure, processes):
            points.append({**key, **measured, "commit": COMMIT, "accelerator": accelerator()})
            self.write(points, complete=False)
        return [point for key in keys for point in points if _is_at(key, point)]

    def unfinished(self) -> list[Point]:
        """Read the points of an earlier run of the same settings that did not get to its end."""
        earlier: Any = None
        with suppress(OSError, ValueError):  # no file yet, or none of ours: it will be replaced
            earlier = json.loads(self.path.read_text())
        settings = json.loads(json.dumps(self.settings))  # tuples are lists in the file
        same = isinstance(earlier, dict) and earlier.get("complete") is False
        return earlier["points"] if same and earlier.get("settings") == settings else []

    def write(self, points: list[Point], *, complete: bool = True, **found: Any) -> dict[str, Any]:
        """Write the points and what was found by them, and return what the file holds."""
        results = {
            **found,
            "complete": complete,
            "settings": self.settings,
            "points": points,
            "quick": self.quick,
            **provenance(seeds=self.seeds),
        }
        write_results(self.path, results)
        return results


def cores(*, quick: bool) -> int:
    """Processes to measure in: one for a smoke run, which would wait for more to start."""
    return 1 if quick else os.cpu_count() or 1


def _is_at(key: Point, point: Point) -> bool:
    return all(point[name] == value for name, value in key.items())


def _measure_all(
    keys: Sequence[Point], measure: Callable[..., Point], processes: int
) -> Iterator[tuple[Point, Point]]:
    """Yield each key with what was measured, as it is."""
    if processes == 1:
        for key in keys:
            yield key, _timed(measure, key)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin_worker) as pool:
        jobs = {pool.submit(_timed, measure, key): key for key in keys}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Take one thread, and end with the process that began this one: killed, it could not say so."""
    torch.set_num_threads(1)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _timed(measure: Callable[..., Point], key: Point) -> Point:
    start = time.perf_counter()
    measured = measure(**key)
    return {**measured, "seconds": time.perf_counter() - start}
