"""Values put in the place of missing ones, so that a row that lacks some can be learned from."""

import math
import warnings

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from torch import Tensor

N_DONORS = 5
"""Rows, those of which the same is expected, that a value may be taken from."""
MAX_SWEEPS, FEWEST_SWEEPS = 10, 2
"""Times that every column is gone through: what is expected rests on what was filled in before."""
MAX_VISITS = 2000
"""Columns that are gone through in all, if they are not so many that two sweeps are more."""
MAX_DONORS = 2000
"""Training rows that a column is predicted from, and taken from, at most."""
MAX_PREDICTORS = 100
"""Columns that a column is predicted by: those that it is most correlated with."""
TIE = 1e-6
"""Standard deviations by which equal predictions are told apart, at random."""


def completed(rows: Tensor, training: np.ndarray, seed: int) -> Tensor:
    r"""Put in the place of each NaN what one of five training rows has there, of which the same is expected.

    Chained equations with predictive mean matching: a column is regressed on the others by those rows that
    have it, and a row without it takes the value of a row whose prediction is near its own, one of the five
    nearest, at random. Columns go round by round, as the predictions rest on what the other columns were
    filled with; columns that are missing in the same rows, as the indicators of a category are, are taken
    from the same row. Values drawn so have the spread of the column, and its steps; a mean would have
    neither, and the nearest row's, again and again, make a spike of each.

    Parameters
    ----------
    rows : Tensor, shape (n, D)
        Raw rows, NaN where a value is missing.
    training : ndarray of int
        The rows to take values from.
    seed : int
        Chooses among them.

    Returns
    -------
    Tensor, shape (n, D)
        The rows themselves where nothing is missing. A column that no training row has becomes 0.

    Source
    ------
    Little (1988), "Missing-data adjustments in large surveys"; van Buuren and Groothuis-Oudshoorn (2011),
    "mice: Multivariate imputation by chained equations in R", whose five donors these are.

    Examples
    --------
    >>> rows = torch.tensor([[0.0, 0.0], [1.0, 10.0], [2.0, 20.0], [3.0, 30.0]] * 10).double()
    >>> rows[7, 1] = torch.nan
    >>> completed(rows, np.arange(40), seed=0)[7].tolist()
    [3.0, 30.0]
    """
    if not rows.is_floating_point() or not rows.isnan().any():
        return rows
    values, draws = rows.numpy(), np.random.default_rng([seed, 2])
    with warnings.catch_warnings(action="ignore"):  # of columns that no training row has
        scaled = np.nan_to_num(StandardScaler().fit(values[training]).transform(values))
    filled = np.nan_to_num(values)
    blocks = _blocks(~np.isnan(values), scaled[spread(training, MAX_DONORS)])
    n_sweeps = max(FEWEST_SWEEPS, min(MAX_SWEEPS, MAX_VISITS // len(blocks)))
    for columns, predictors, known in blocks * n_sweeps:
        donors, recipients = spread(training[known[training]], MAX_DONORS), np.flatnonzero(~known)
        if len(donors):
            givers = donors[_matched(scaled, columns, predictors, donors, recipients, draws)]
            for table in (scaled, filled):
                table[np.ix_(recipients, columns)] = table[np.ix_(givers, columns)]
    return torch.from_numpy(filled)


def spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """Take some of the rows' numbers, at most so many, from all over, since a table may be sorted.

    Examples
    --------
    >>> spread(np.arange(10), 4).tolist(), spread(np.arange(3), 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return numbers[:: max(1, math.ceil(len(numbers) / most))]


def _blocks(known: np.ndarray, rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Group the columns that have gaps by the rows that have them, those with the fewest gaps first.

    With each group come the columns that are to predict it, and which rows have it.
    """
    alike: dict[bytes, list[int]] = {}
    for j in np.flatnonzero(~known.all(0)).tolist():
        alike.setdefault(known[:, j].tobytes(), []).append(j)
    centred = rows - rows.mean(0)
    lengths = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(lengths > 0, lengths, 1)
    correlation = np.abs(unit.T @ unit)
    blocks = []
    for group in alike.values():
        columns = np.array(group)
        strength = correlation[columns].max(0)
        strength[columns] = -1
        n_predictors = min(MAX_PREDICTORS, len(strength) - len(columns))
        predictors = np.sort(np.argsort(-strength, kind="stable")[:n_predictors])
        blocks.append((columns, predictors, known[:, columns[0]]))
    return sorted(blocks, key=lambda block: -block[2].sum())


def _matched(
    scaled: np.ndarray,
    columns: np.ndarray,
    predictors: np.ndarray,
    donors: np.ndarray,
    recipients: np.ndarray,
    draws: np.random.Generator,
) -> np.ndarray:
    """Choose a donor for each recipient, by what the predictors lead to expect in these columns."""
    if not len(predictors):
        return draws.integers(len(donors), size=len(recipients))
    regression = Ridge().fit(scaled[np.ix_(donors, predictors)], scaled[np.ix_(donors, columns)])
    had, expected = (
        regression.predict(scaled[np.ix_(which, predictors)]).reshape(len(which), -1)
        for which in (donors, recipients)
    )
    had += TIE * draws.normal(size=had.shape)
    n_near = min(N_DONORS, len(donors))
    near = NearestNeighbors(n_neighbors=n_near).fit(had).kneighbors(expected, return_distance=False)
    return near[np.arange(len(recipients)), draws.integers(n_near, size=len(recipients))]
