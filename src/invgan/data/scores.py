"""The table of scores that comes out: one line per row of data."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet

from invgan.data.files import write_whole
from invgan.errors import InputError

FORMATS = (".csv", ".parquet")
"""File types that :func:`write_scores` knows."""
_EMPTY = pl.DataFrame(
    schema={
        "row": pl.Int64,
        "log_prob": pl.Float64,
        "anomaly_score": pl.Float64,
        "p_value": pl.Float64,
        "is_anomaly": pl.Boolean,
    }
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scores:
    """What a model says about n rows of data.

    Attributes
    ----------
    log_prob : numpy.ndarray of float64, shape (n,)
        log p(x) in nats, in the data's own units; higher = more normal.
    p_value : numpy.ndarray of float64, shape (n,)
        Conformal p-values; small for anomalies.
    is_anomaly : numpy.ndarray of bool, shape (n,)
        The decisions at the model's threshold.
    typical_of_missing : numpy.ndarray of float64, shape (n,), optional
        Nats that a row's missing values have in a typical row; by default nothing is missing.
    files : sequence of n str, optional
        Names of the files, where each row is one.
    """

    log_prob: np.ndarray
    p_value: np.ndarray
    is_anomaly: np.ndarray
    typical_of_missing: np.ndarray | float = 0.0
    files: Sequence[str] | None = None

    @property
    def anomaly_score(self) -> np.ndarray:
        """The surprisal −log p(x) in nats, shape (n,): higher = more anomalous, and a function of x alone.

        Of a row with gaps −log p of the values that it has, less what the others have in a typical row.
        """
        return -(self.log_prob + self.typical_of_missing)


class Counts(NamedTuple):
    """What was written."""

    rows: int
    anomalies: int


def write_scores(path: str | os.PathLike[str], blocks: Iterable[Scores]) -> Counts:
    """Write scores to a .csv or .parquet file, or replace the one at `path`, in one step.

    The columns are row (1, 2, …, in the order of the data), log_prob, anomaly_score, p_value and is_anomaly;
    where rows are files, their names are in one more, file.
    Numbers in a CSV file have as many digits as it takes to read back the same float64.

    Parameters
    ----------
    path : str or path
        The file; the folder it lies in must exist.
    blocks : iterable of Scores
        Those of the first rows, of the next, and so on. Each is written before the next is asked for.

    Returns
    -------
    Counts

    Raises
    ------
    InputError
        The file type is another, or the file could not be written. Whatever is raised, also by `blocks`,
        what was at `path` before is untouched.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "scores.csv")
    >>> scores = Scores(
    ...     log_prob=np.array([-1.5, -40.0]),
    ...     p_value=np.array([0.8, 0.1]),
    ...     is_anomaly=np.array([False, True]),
    ... )
    >>> write_scores(path, [scores])
    Counts(rows=2, anomalies=1)
    >>> print(path.read_text().strip())
    row,log_prob,anomaly_score,p_value,is_anomaly
    1,-1.5,1.5,0.8,false
    2,-40.0,40.0,0.1,true
    """
    path = Path(path)
    require_scores_type(path)
    n_rows = n_anomalies = 0

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal n_rows, n_anomalies
        for scores in blocks:
            columns = {name: getattr(scores, name) for name in _EMPTY.columns[1:]}
            numbers = np.arange(n_rows + 1, n_rows + 1 + len(scores.log_prob))
            frame = pl.DataFrame({"row": numbers, **columns}, schema=_EMPTY.schema)
            yield frame if scores.files is None else frame.with_columns(file=pl.Series(scores.files))
            n_rows += len(scores.log_prob)
            n_anomalies += int(scores.is_anomaly.sum())

    write = _write_csv if path.suffix.lower() == ".csv" else _write_parquet
    write_whole(path, lambda file: write(file, frames()), what="scores")
    return Counts(n_rows, n_anomalies)


def _write_csv(file: BinaryIO, frames: Iterator[pl.DataFrame]) -> None:
    """Write the header, then every frame below the last."""
    next(frames, _EMPTY).write_csv(file)
    for frame in frames:
        frame.write_csv(file, include_header=False)


def _write_parquet(file: BinaryIO, frames: Iterator[pl.DataFrame]) -> None:
    """Write every frame as a row group."""
    first = next(frames, _EMPTY).to_arrow()
    with pyarrow.parquet.ParquetWriter(file, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for frame in frames:
            writer.write_table(frame.to_arrow())


def require_scores_type(path: Path) -> None:
    """Check the file type by itself, so that a mistake is seen before anything is scored.

    Parameters
    ----------
    path : path
        Where the scores are to go.

    Raises
    ------
    InputError
        It does not end in .csv or .parquet.

    Examples
    --------
    >>> require_scores_type(Path("scores.xlsx"))
    Traceback (most recent call last):
    ...
    invgan.errors.InputError: scores.xlsx: unknown file type '.xlsx'; scores go to a .csv or .parquet file.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"{path}: unknown file type {path.suffix!r}; scores go to a {' or '.join(FORMATS)} file."
        )
