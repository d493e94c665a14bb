"""Why a row of a table is unusual, in the words and units of its own columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from invgan.data import Column, Columns
from invgan.report.text import shown, with_spread

MAIN_REASONS = 3
"""Reasons that a row is shown with at once."""


class Reason(NamedTuple):
    """What a column adds to a row being unusual."""

    column: str
    observed: str
    expected: str
    share: float
    """Its share of the row's deficit in nats: the sum over what the column was encoded as."""
    stands_out: bool = True
    """Whether the value lies outside what was expected: otherwise the share only says that of this
    row little can be expected, and the column by itself is no reason."""

    def __str__(self) -> str:
        return f"{self.column} {self.observed}, expected {self.expected}"


def reasons(
    columns: Columns,
    row: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    shares: np.ndarray,
    *,
    lowest: np.ndarray,
    highest: np.ndarray,
) -> list[Reason]:
    """Say of each column what was observed and what was expected, the largest share of the deficit first.

    Parameters
    ----------
    columns : Columns
        What the file's columns hold, and how they became D numbers.
    row, mean, std, shares : numpy.ndarray of shape (D,)
        The encoded row, what it was expected to be, that expectation's spread, and the shares.
    lowest, highest : numpy.ndarray of shape (D,)
        The range of the rows that were learned from: of an expectation far outside it, a generator's guess
        from a latent where it never saw any row, only the side is told.

    Returns
    -------
    list of Reason
        The shares add up to ``shares.sum()``.

    Examples
    --------
    >>> pulse, ward = Column("heart rate", "number"), Column("ward", "category", ("north", "south"))
    >>> found = reasons(
    ...     Columns((ward, pulse)),
    ...     row=np.array([0.0, 1.0, 163.0]),
    ...     mean=np.array([0.9, 0.1, 72.3]),
    ...     std=np.array([0.1, 0.1, 11.2]),
    ...     shares=np.array([4.0, 5.0, 33.0]),
    ...     lowest=np.array([0.0, 0.0, 51.0]),
    ...     highest=np.array([1.0, 1.0, 120.0]),
    ... )
    >>> [str(reason) for reason in found], [reason.share for reason in found]
    (['heart rate 163, expected 72 ± 11', 'ward south, expected north'], [33.0, 9.0])
    """
    found, end = [], 0
    for column in columns.columns:
        start, end = end, end + len(column.features)
        here = slice(start, end)
        if column.is_used:
            if column.is_number:
                observed = shown(row[start])
                expected, stands_out = _number(
                    row[start], mean[start], std[start], lowest[start], highest[start]
                )
            else:
                observed, expected = _words(column, row[here], mean[here])
                stands_out = observed not in ("missing", expected)
            found.append(Reason(column.name, observed, expected, float(shares[here].sum()), stands_out))
    return sorted(found, key=lambda reason: -reason.share)


def main_reasons(found: Sequence[Reason]) -> list[Reason]:
    """The first few of which each is a reason by itself; none for a row like all others.

    Examples
    --------
    >>> found = [Reason("a", "9", "1 ± 2", 8.0), Reason("b", "1", "2 ± 3", 0.1, stands_out=False)]
    >>> [reason.column for reason in main_reasons(found)]
    ['a']
    """
    return [reason for reason in found if reason.stands_out and reason.share > 0][:MAIN_REASONS]


def _words(column: Column, row: np.ndarray, mean: np.ndarray) -> tuple[str, str]:
    """The value that a category or a boolean has, and the likeliest one."""
    values = column.values
    if column.kind == "boolean":
        values, row, mean = ("false", "true"), np.append(1 - row, row), np.append(1 - mean, mean)
    expected = values[int(mean.argmax())]
    if np.isnan(row).any():
        return "missing", expected
    return values[int(row.argmax())] if (row == 1).any() else "another value", expected


def _number(value: float, mean: float, std: float, lowest: float, highest: float) -> tuple[str, bool]:
    """What a number should be, and whether this one stands out."""
    if lowest == highest:
        return shown(lowest), bool(abs(value - lowest) > 0)  # False for NaN
    reach = 10 * (highest - lowest)
    if lowest - reach <= mean <= highest + reach:
        return with_spread(mean, std), bool(abs(value - mean) > std)
    side = f"below {shown(lowest)}" if mean < lowest else f"above {shown(highest)}"
    # A value like those that were learned from is not what makes the row unusual.
    return side, bool(value < lowest or value > highest)
