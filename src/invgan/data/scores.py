"""The table of scores that comes out: one line per row of data."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from invgan.data.files import write_whole
from invgan.errors import InputError

FORMATS = (".csv", ".parquet")
"""File types that :func:`write_scores` knows."""


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
    """

    log_prob: np.ndarray
    p_value: np.ndarray
    is_anomaly: np.ndarray

    @property
    def anomaly_score(self) -> np.ndarray:
        """The surprisal −log p(x) in nats, shape (n,): higher = more anomalous, and a function of x alone."""
        return -self.log_prob


def write_scores(path: str | os.PathLike[str], scores: Scores) -> None:
    """Write scores to a .csv or .parquet file, or replace the one at `path`, in one step.

    The columns are row (1, 2, …, in the order of the data), log_prob, anomaly_score, p_value and is_anomaly.
    Numbers in a CSV file have as many digits as it takes to read back the same float64.

    Parameters
    ----------
    path : str or path
        The file; the folder it lies in must exist.
    scores : Scores

    Raises
    ------
    InputError
        The file type is another, or the file could not be written; what was at `path` before is untouched.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "scores.csv")
    >>> write_scores(
    ...     path,
    ...     Scores(
    ...         log_prob=np.array([-1.5, -40.0]),
    ...         p_value=np.array([0.8, 0.1]),
    ...         is_anomaly=np.array([False, True]),
    ...     ),
    ... )
    >>> print(path.read_text().strip())
    row,log_prob,anomaly_score,p_value,is_anomaly
    1,-1.5,1.5,0.8,false
    2,-40.0,40.0,0.1,true
    """
    path = Path(path)
    require_scores_type(path)
    frame = pl.DataFrame(
        {
            "row": np.arange(1, len(scores.log_prob) + 1),
            "log_prob": scores.log_prob,
            "anomaly_score": scores.anomaly_score,
            "p_value": scores.p_value,
            "is_anomaly": scores.is_anomaly,
        }
    )
    write = frame.write_csv if path.suffix.lower() == ".csv" else frame.write_parquet
    write_whole(path, write, what="scores")


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
