"""Which features make a row unlikely: the shares are the chain rule's, by the mixture's own marginals."""

import math

import pytest
import torch

from invgan.likelihood import Bandwidths, TangentMixture, attribute
from invgan.likelihood.attribution import MAX_SET_ASIDE


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def mixture():
    codes, loadings = normal(40, 2), normal(2, 5, seed=1)
    found = TangentMixture(
        codes @ loadings + 0.1 * normal(40, 5, seed=2),
        codes,
        lambda z: torch.sin(z) @ loadings,
        tail_share=0.3,
    )
    found.set_bandwidths(Bandwidths(tangent=0.7, noise=0.2, round=0.5, tail=0.6))
    return found


ROWS = 2 * normal(8, 5, seed=3)


def marginal(mixture, rows, known):
    """Log-density of some features of each row, by the formula for missing ones."""
    observed = torch.zeros_like(rows, dtype=torch.bool)
    observed[:, known] = True
    return mixture.log_prob(rows, observed=observed)


def test_without_a_typical_row_each_feature_is_judged_by_all_others(mixture):
    found = attribute(mixture, ROWS)
    left_out = torch.stack(
        [marginal(mixture, ROWS, [i for i in range(5) if i != j]) - mixture.log_prob(ROWS) for j in range(5)],
        1,
    )
    even = (-mixture.log_prob(ROWS) - left_out.sum(1))[:, None] / 5
    torch.testing.assert_close(found.surprise, left_out + even)


@pytest.mark.parametrize("typical", [None, 0.0, -50.0, 50.0])
def test_surprises_add_up_to_minus_the_log_density(mixture, typical):
    baseline = None if typical is None else torch.full_like(ROWS, typical)
    found = attribute(mixture, ROWS, typical=baseline)
    torch.testing.assert_close(found.surprise.sum(1), -mixture.log_prob(ROWS))


def test_an_omitted_component_has_no_part_in_the_surprises(mixture):
    rows, own = mixture.centers[:8], torch.arange(8)
    found = attribute(mixture, rows, typical=torch.zeros_like(rows), omitted=own)
    of_the_others = mixture.log_prob(rows, omitted=own) + math.log(40 / 39)
    torch.testing.assert_close(found.surprise.sum(1), -of_the_others)
    assert (found.surprise.sum(1) > attribute(mixture, rows).surprise.sum(1)).all()


def test_known_features_alone_count_where_others_are_missing(mixture):
    observed = normal(8, 5, seed=4) > -0.3
    typical = torch.full_like(ROWS, 50.0)
    found = attribute(mixture, ROWS, typical=typical, observed=observed)
    torch.testing.assert_close(found.surprise.sum(1), -mixture.log_prob(ROWS, observed=observed))
    assert (found.surprise[~observed] == 0).all()
    other = attribute(
        mixture, torch.where(observed, ROWS, 7.0), typical=torch.full_like(ROWS, 50.0), observed=observed
    )
    torch.testing.assert_close(other.surprise, found.surprise)


def test_the_most_surprising_are_set_aside_one_after_the_other(mixture):
    row, rest, surprise = ROWS[:1], list(range(5)), torch.zeros(5, dtype=torch.float64)
    while rest:  # every feature exceeds a typical one of 50 nats
        steps = {
            j: (marginal(mixture, row, [i for i in rest if i != j]) - marginal(mixture, row, rest)).item()
            for j in rest
        }
        j = max(steps, key=steps.get)
        surprise[j] = steps[j]
        rest.remove(j)
    found = attribute(mixture, row, typical=torch.full_like(row, 50.0))
    torch.testing.assert_close(found.surprise[0], surprise)


def test_what_is_expected_are_the_moments_of_the_conditional(mixture):
    row, j = ROWS[:1], 2
    found = attribute(mixture, row)
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    rows = row.repeat(len(grid), 1)
    rows[:, j] = grid
    weight = torch.softmax(mixture.log_prob(rows), 0)
    mean = (weight * grid).sum()
    torch.testing.assert_close(found.mean[0, j], mean)
    # The peaks of the tails fall between the points of the grid.
    std = (weight * (grid - mean).square()).sum().sqrt()
    torch.testing.assert_close(found.std[0, j], std, rtol=1e-6, atol=0)


def test_an_unusual_value_does_not_change_what_it_was_expected_to_be(mixture):
    row = mixture.centers[:1].clone()
    typical = -attribute(mixture, mixture.centers).surprise.mean(0, keepdim=True)
    found = []
    for value in (30.0, 300.0, 1e9):
        row[0, 3] = value
        found.append(attribute(mixture, row, typical=typical))
        assert found[-1].surprise.argmax() == 3
    others = [0, 1, 2, 4]
    for further in found[1:]:
        torch.testing.assert_close(further.mean, found[0].mean)
        torch.testing.assert_close(further.surprise[0, others], found[0].surprise[0, others])


def test_a_value_however_far_off_takes_no_digits_from_the_shares_of_the_others():
    codes, loadings = normal(40, 2), normal(2, 5, seed=1)
    mixture = TangentMixture(codes @ loadings, codes, lambda z: z @ loadings, tail_share=0.0)
    mixture.set_bandwidths(Bandwidths(tangent=1.0, noise=0.3, round=0.5, tail=1.0))
    row, others = mixture.centers[:1] + 0.1, [0, 1, 2, 4]
    known = torch.ones_like(row, dtype=torch.bool)
    known[0, 3] = False
    rest = attribute(mixture, row, typical=torch.zeros_like(row), observed=known)
    row[0, 3] = 1e9
    found = attribute(mixture, row, typical=torch.zeros_like(row))
    torch.testing.assert_close(found.surprise[0, others], rest.surprise[0, others], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.mean[0, others], rest.mean[0, others])


def test_surprises_add_up_where_more_are_surprising_than_are_set_aside():
    codes, loadings = normal(12, 2), normal(2, MAX_SET_ASIDE + 4, seed=1)
    mixture = TangentMixture(codes @ loadings, codes, lambda z: z @ loadings)
    row = 3 * normal(1, MAX_SET_ASIDE + 4, seed=5)
    found = attribute(mixture, row, typical=torch.full_like(row, 1e4))
    torch.testing.assert_close(found.surprise.sum(1), -mixture.log_prob(row))
