"""The densities in the plane: normalised, and those that the draws come from."""

import re

import numpy as np
import pytest
from scipy.stats import chisquare

from invgan.data.toy import TOYS, toy, toy_log_density

SIDE, FOLD, LIMIT = 320, 10, 8.0
"""Squares along each side of a grid, of which so many squared make a cell to count draws in; all end where
the board's do."""


@pytest.fixture(scope="module", params=TOYS)
def mass(request):
    """A set's name, and the probability of each square of a fine grid."""
    middle = LIMIT * ((2 * np.arange(SIDE) + 1) / SIDE - 1)
    columns = [
        np.exp(toy_log_density(request.param, np.c_[np.full(SIDE, x), middle])) * (2 * LIMIT / SIDE) ** 2
        for x in middle
    ]
    return request.param, np.array(columns)


def test_the_density_integrates_to_one(mass):
    assert mass[1].sum() == pytest.approx(1, abs=1e-9)


def test_the_draws_come_from_the_density(mass):
    name, fine = mass
    coarse = fine.reshape(SIDE // FOLD, FOLD, SIDE // FOLD, FOLD).sum((1, 3)).ravel()
    often = coarse > 1e-3

    def p_value(X):
        cell = np.floor((X + LIMIT) / (2 * LIMIT) * SIDE / FOLD).astype(int)
        counts = np.bincount(cell[:, 0] * (SIDE // FOLD) + cell[:, 1], minlength=len(coarse))
        found = np.append(counts[often], counts[~often].sum())
        expected = np.append(coarse[often], max(1 - coarse[often].sum(), 1e-12))
        return chisquare(found, len(X) * expected / expected.sum()).pvalue

    X = toy(name, 20_000, random_state=0).X
    assert p_value(X) > 1e-3
    assert p_value(0.97 * X) < 1e-3


def test_the_board_is_empty_on_its_light_squares_and_outside():
    found = toy_log_density("checkerboard", [[1.0, 1.0], [-1.0, 1.0], [5.0, 1.0], [5.0, 5.0]])
    assert found.tolist() == [-np.log(32), -np.inf, -np.inf, -np.inf]


def test_the_moons_quadrature_is_that_of_many_more_nodes():
    X = toy("two-moons", 50, random_state=0).X
    t = (np.arange(20_000) + 0.5) / 20_000 * np.pi
    upper = np.c_[np.cos(t), np.sin(t)]
    arcs = np.r_[upper, [1.0, 0.5] - upper]
    squared = np.square(X[:, None] - arcs).sum(-1)
    expected = np.log(np.exp(-squared / 0.02).mean(1) / (2 * np.pi * 0.01))
    assert toy_log_density("two-moons", X) == pytest.approx(expected, abs=1e-6)


def test_a_seed_fixes_the_draws():
    again = toy("pinwheel", 5, random_state=np.random.default_rng(1)).X
    assert np.array_equal(toy("pinwheel", 5, random_state=1).X, again)
    assert not np.array_equal(toy("pinwheel", 5, random_state=2).X, again)


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        (
            "moons",
            1,
            "The 'name' parameter of toy must be one of two-moons, eight-gaussians, pinwheel, "
            "checkerboard. Got 'moons' instead.",
        ),
        ("pinwheel", 0, "The 'n' parameter of toy must be at least 1. Got 0 instead."),
    ],
)
def test_parameters_out_of_range_are_refused(name, n, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        toy(name, n, random_state=0)
