"""Likelihoods against Gaussians in closed form, quadrature, and torch.distributions."""

import copy
import functools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Laplace, MultivariateNormal, Normal

from invgan.likelihood import (
    Bandwidths,
    StochasticGenerator,
    TangentMixture,
    aggregate,
    conditional,
    jensen_gap,
    joint,
    log_prior,
    riemannian,
)
from invgan.networks import RBFVariance, build, initialize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOADINGS, OFFSET, STD = random(7, 3), random(7, seed=1), random(7, seed=2).exp()
LINEAR = StochasticGenerator(lambda z: z @ LOADINGS.T + OFFSET, lambda z: STD.expand(len(z), 7))


def network_with_noise():
    generator = build((6,), 2).generator
    initialize(generator, torch.Generator().manual_seed(0))
    sigma = RBFVariance(2, 6, 8)
    sigma.fit_centers(random(100, 2), seed=0)
    sigma.weight.data.copy_(random(6, 8, seed=3))
    return StochasticGenerator(generator.double(), sigma.double())


# At one latent


def test_the_priors_log_density_is_the_standard_normals():
    z = random(5, 3)
    assert torch.allclose(log_prior(z), Normal(0, 1).log_prob(z).sum(1))


def test_the_conditional_is_a_normal_for_each_feature():
    f, z, rows = network_with_noise(), random(5, 2), random(5, 6, seed=1)
    expected = Normal(f.mean(z), f.std(z)).log_prob(rows)
    assert torch.allclose(conditional(f, rows, z), expected)


def test_joint_of_a_linear_generator_exceeds_the_evidence_by_the_posterior_density_at_its_mean():
    rows = random(10, 7, seed=3)
    noise = torch.diag(STD**-2)
    posterior_precision = torch.eye(3, dtype=torch.float64) + LOADINGS.T @ noise @ LOADINGS
    posterior_mean = torch.linalg.solve(posterior_precision, LOADINGS.T @ noise @ (rows - OFFSET).T).T
    evidence = MultivariateNormal(OFFSET, LOADINGS @ LOADINGS.T + torch.diag(STD**2)).log_prob(rows)
    # Bayes: log p(x, z) = log p(x) + log p(z | x), and the posterior is Gaussian.
    at_its_mean = 0.5 * torch.logdet(posterior_precision) - 1.5 * math.log(2 * math.pi)
    assert torch.allclose(joint(LINEAR, rows, posterior_mean), evidence + at_its_mean)


def test_joint_takes_images_as_their_flattened_pixels():
    rows, z = random(4, 7, seed=3), random(4, 3)
    images = rows.reshape(4, 1, 7, 1)
    assert torch.equal(joint(LINEAR, images, z), joint(LINEAR, rows, z))


def test_riemannian_of_a_linear_generator_is_the_prior_over_the_volume_of_its_matrix():
    z = random(5, 3)
    values, at = riemannian(LINEAR, z)
    expected = Normal(0, 1).log_prob(z).sum(1) - 0.5 * torch.logdet(LOADINGS.T @ LOADINGS)
    assert torch.allclose(values, expected)
    assert at.rank.tolist() == [3] * 5


def test_riemannian_of_a_square_linear_generator_is_the_density_of_its_output():
    a = random(3, 3)
    f = StochasticGenerator(lambda z: z @ a.T, lambda z: torch.ones(len(z), 3, dtype=z.dtype))
    z = random(5, 3, seed=1)
    expected = MultivariateNormal(torch.zeros(3, dtype=torch.float64), a @ a.T).log_prob(z @ a.T)
    assert torch.allclose(riemannian(f, z)[0], expected)


def test_riemannian_is_equation_4_with_sigmas_tangents_in_the_metric():
    f, z = network_with_noise(), random(5, 2)
    values, _ = riemannian(f, z)
    for i in range(5):
        j_g = torch.autograd.functional.jacobian(lambda one: f.mean(one[None])[0], z[i])
        j_s = torch.autograd.functional.jacobian(lambda one: f.std(one[None])[0], z[i])
        log_det = torch.logdet(j_g.T @ j_g + j_s.T @ j_s)
        assert values[i].item() == pytest.approx((log_prior(z[i : i + 1])[0] - 0.5 * log_det).item())


# The gap of Eq. 4


def test_the_jensen_gap_is_zero_where_sigma_is_constant():
    gap, error = jensen_gap(LINEAR, random(4, 3), n_samples=3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(gap, torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(error, torch.zeros(4, dtype=torch.float64), atol=1e-12)


def test_the_jensen_gap_of_pure_noise_has_a_closed_form():
    # g constant, σ = e^z: J_f = ε σ' and E log|ε| = −(γ + log 2)/2, so the gap is (γ + log 2)/2 everywhere.
    f = StochasticGenerator(lambda z: 0 * z, torch.exp)
    z = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    gap, error = jensen_gap(f, z, n_samples=20_000, generator=torch.Generator().manual_seed(0))
    expected = 0.5 * (np.euler_gamma + math.log(2))
    assert (error < 0.01).all()
    assert ((gap - expected).abs() < 4 * error).all()


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.5), (2.0, 2.0), (-1.0, 3.0)])
def test_the_jensen_gap_of_a_line_is_its_gaussian_integral(a, b):
    f = StochasticGenerator(lambda z: a * z, lambda z: b * z)
    z = torch.ones(1, 1, dtype=torch.float64)
    gap, error = jensen_gap(f, z, n_samples=20_000, generator=torch.Generator().manual_seed(0))
    # E log|a + bε| by quadrature, away from the (integrable) pole at ε = −a/b.
    epsilon = np.linspace(-12, 12, 2_000_001) + 1e-6 / math.pi
    density = np.exp(-0.5 * epsilon**2) / math.sqrt(2 * math.pi)
    expected_log = np.trapezoid(np.log(np.abs(a + b * epsilon)) * density, epsilon)
    expected = 0.5 * math.log(a**2 + b**2) - expected_log
    assert abs(gap.item() - expected) < 4 * error.item() + 1e-4


def test_the_jensen_gap_is_never_negative():
    gap, error = jensen_gap(
        network_with_noise(), random(20, 2), n_samples=500, generator=torch.Generator().manual_seed(0)
    )
    assert (gap > -3 * error).all()
    assert gap.mean() > 0.01


# The aggregate


class Curved(nn.Module):
    """A surface over two latents with a different tangent everywhere."""

    def __init__(self, n_features):
        super().__init__()
        self.loadings = random(n_features, 2, seed=5)

    def forward(self, z):
        return torch.sin(z) @ self.loadings.T + 0.3 * (z**2) @ self.loadings.T.flip(0)


BANDWIDTHS = Bandwidths(tangent=0.7, noise=0.2, round=0.5, tail=0.6)
TAIL_SHARE = 0.3
"""So large that a test would notice."""
Mixture = functools.partial(TangentMixture, tail_share=TAIL_SHARE)


def curved_mixture(n=40, n_features=5, *, bandwidths=BANDWIDTHS, order=None):
    codes, generator = random(n, 2), Curved(n_features)
    centers = generator(codes) + 0.1 * random(n, n_features, seed=1)
    order = torch.arange(n) if order is None else order
    mixture = Mixture(centers[order], codes[order], generator)
    mixture.set_bandwidths(bandwidths)
    return mixture


class ByHand(NamedTuple):
    """The same mixture, with every covariance written out."""

    gaussians: MultivariateNormal
    tails: Laplace
    tail_share: float

    def log_prob(self, row, known=slice(None)):
        """Log-density of some features of one row."""
        means, covariances = (
            self.gaussians.loc[:, known],
            self.gaussians.covariance_matrix[:, known][:, :, known],
        )
        gaussian = MultivariateNormal(means, covariances).log_prob(row[known]).exp()
        tail = self.tails.log_prob(row)[:, known].sum(1).exp()
        return ((1 - self.tail_share) * gaussian + self.tail_share * tail).mean().log()


def by_hand(mixture, generator, n_neighbours=10, round_share=0.3, tail_share=TAIL_SHARE):
    centers, codes = mixture.centers, mixture.codes
    n, n_features = centers.shape
    covariances, units, scales = [], [], []
    for i in range(n):
        distance = (centers - centers[i]).norm(dim=1)
        distance[i] = math.inf
        nearest = distance.argsort()[: min(n_neighbours, n - 1)]
        j = torch.autograd.functional.jacobian(lambda one: generator(one[None])[0], codes[i])
        steps = torch.cat([(codes[nearest] - codes[i]) @ j.T, centers[nearest] - centers[i]])
        tangents = steps.T @ steps / len(steps)
        fifth = centers[nearest[min(5, n - 1) - 1]] - centers[i]
        units.append(fifth.square().mean())
        scales.append(math.sqrt(mixture.bandwidths.tail) * fifth.abs().mean())
        covariances.append(mixture.bandwidths.tangent * tangents)
    unit = torch.stack(units)
    noise = (unit**0.75 * unit.log().mean().exp() ** 0.25)[:, None, None] * torch.eye(n_features).double()
    stretched = torch.linalg.inv(torch.stack(covariances) + mixture.bandwidths.noise * noise)
    precision = (1 - round_share) * stretched + round_share * torch.linalg.inv(
        mixture.bandwidths.round * noise
    )
    tails = Laplace(centers, torch.stack(scales)[:, None].expand_as(centers))
    return ByHand(MultivariateNormal(centers, torch.linalg.inv(precision)), tails, tail_share)


@pytest.mark.parametrize("n", [2, 7, 40, 70])
@pytest.mark.parametrize("n_features", [1, 2, 5, 30])
def test_the_aggregate_is_a_mixture_of_multivariate_normals_and_products_of_laplaces(n, n_features):
    mixture = curved_mixture(n, n_features)
    rows = 2 * random(15, n_features, seed=9)
    expected = torch.stack([*map(by_hand(mixture, Curved(n_features)).log_prob, rows)])
    assert torch.allclose(mixture.log_prob(rows), expected, rtol=1e-9)


def test_without_a_share_for_the_tails_there_are_none():
    whole, rows = curved_mixture(), random(15, 5, seed=9)
    found = []
    for share in (0.0, 1e-300):
        mixture = TangentMixture(whole.centers, whole.codes, Curved(5), tail_share=share)
        mixture.set_bandwidths(BANDWIDTHS)
        found.append(mixture.log_prob(rows))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], whole.log_prob(rows))


def test_far_off_in_one_feature_the_density_falls_by_a_laplace_kernel():
    mixture, far = curved_mixture(), 1e4 * torch.eye(5, dtype=torch.float64)[[0, 0]]
    far[1, 0] += 1
    widest = mixture.tangents.tail_scale.max().sqrt() * math.sqrt(BANDWIDTHS.tail)
    here, further = mixture.log_prob(far)
    assert here - further == pytest.approx(1 / widest.item(), rel=1e-6)


def test_the_aggregate_integrates_to_one_in_the_plane():
    mixture = curved_mixture(30, 2, bandwidths=Bandwidths(tangent=0.2, noise=1.0, round=2.0, tail=1.0))
    side = torch.linspace(-20, 20, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    density = torch.cat([mixture.log_prob(block) for block in grid.split(20_000)]).exp()
    # A Laplace kernel's peak falls between the points of the grid.
    assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1, abs=1e-3)


def test_the_aggregate_falls_with_the_distance_and_stays_finite_far_away():
    mixture = curved_mixture(30, 5, bandwidths=Bandwidths(tangent=10.0, noise=1e-3, round=0.1, tail=0.1))
    direction = mixture.tangents.basis[:, -1]  # along the longest axis of the last component
    away = torch.logspace(1, 15, 15, dtype=torch.float64)[:, None] * direction
    values = mixture.log_prob(away)
    assert values.isfinite().all()
    assert (values.diff() < 0).all()


def with_further_rows(n_reference=30):
    whole = curved_mixture()
    mixture = Mixture(whole.centers, whole.codes, Curved(5), n_reference=n_reference)
    mixture.set_bandwidths(BANDWIDTHS)
    return mixture


def test_a_further_row_adds_the_component_it_would_have_alone():
    mixture, rows = with_further_rows(), random(10, 5, seed=9)

    def unnormalised(kept):
        part = Mixture(mixture.centers[kept], mixture.codes[kept], Curved(5), n_reference=30)
        part.set_bandwidths(BANDWIDTHS)
        return len(kept) * part.log_prob(rows).exp()

    reference = torch.arange(30)
    alone = [unnormalised(torch.cat([reference, torch.tensor([i])])) for i in range(30, 40)]
    expected = torch.stack(alone).sum(0) - 9 * unnormalised(reference)
    assert torch.allclose(40 * mixture.log_prob(rows).exp(), expected, rtol=1e-9)


def test_further_rows_have_no_say_in_the_bandwidths():
    mixture = with_further_rows()
    alone = Mixture(mixture.centers[:30], mixture.codes[:30], Curved(5))
    assert mixture.fit_bandwidths(seed=0) == alone.fit_bandwidths(seed=0)
    assert mixture.bandwidths == alone.bandwidths


def test_without_its_own_component_a_row_is_scored_as_if_it_were_new():
    mixture = with_further_rows()
    others = [torch.tensor([*range(30), *(i for i in range(30, 40) if i != own)]) for own in range(30, 40)]
    for own, kept in zip(range(30, 40), others, strict=True):
        left = Mixture(mixture.centers[kept], mixture.codes[kept], Curved(5), n_reference=30)
        left.set_bandwidths(BANDWIDTHS)
        row = mixture.centers[[own]]
        for observed in (None, torch.tensor([[True, False, True, True, False]])):
            found = mixture.log_prob(row, observed=observed, omitted=torch.tensor([own]))
            assert torch.allclose(found, left.log_prob(row, observed=observed) + math.log(39 / 40))
            whole = mixture.log_prob(row, observed=observed)
            assert torch.equal(mixture.log_prob(row, observed=observed, omitted=torch.tensor([-1])), whole)
            assert found < whole


def test_of_many_components_those_near_a_row_make_up_its_density(monkeypatch):
    mixture, rows = curved_mixture(), random(30, 5, seed=9)
    omitted = torch.arange(30)
    every, without = mixture.log_prob(rows), mixture.log_prob(rows, omitted=omitted)
    monkeypatch.setattr(aggregate, "MAX_ALL", 39)
    monkeypatch.setattr(aggregate, "MAX_NEAR", 40)
    monkeypatch.setattr(aggregate, "MAX_NEAR_VALUES", 7 * 40 * 5 * 5)  # seven rows' axes at a time
    assert torch.allclose(mixture.log_prob(rows), every, rtol=1e-12)
    assert torch.allclose(mixture.log_prob(rows, omitted=omitted), without, rtol=1e-12)
    monkeypatch.setattr(aggregate, "MAX_NEAR", 3)
    three = mixture.log_prob(rows)
    squared = torch.cdist(rows, mixture.centers)
    for i, nearest in enumerate(squared.argsort(1)[:, :3]):
        alone = [mixture.log_prob(rows[[i]], omitted=torch.tensor([j])).exp() for j in nearest]
        assert torch.allclose(three[i].exp(), sum(three[i].exp() - part for part in alone), rtol=1e-9)
    assert (three < every).all()


def test_bandwidths_are_chosen_by_as_many_rows_as_are_dealt(monkeypatch):
    monkeypatch.setattr(aggregate, "MAX_FOLDED", 25)
    mixture = curved_mixture()
    reached, bandwidths = mixture.fit_bandwidths(seed=0), mixture.bandwidths
    dealt = np.random.default_rng(0).permutation(40)[:25]

    def moved(number):
        centers = mixture.centers.clone()
        centers[number] += 10.0
        other = Mixture(centers, mixture.codes, Curved(5))
        return other.fit_bandwidths(seed=0), other.bandwidths

    reached_too, the_same = moved(next(i for i in range(40) if i not in dealt))
    assert (reached_too, *the_same) == pytest.approx((reached, *bandwidths), rel=1e-9)
    assert moved(dealt[0]) != (reached, bandwidths)


def test_the_order_of_the_centres_does_not_matter():
    rows = random(10, 5, seed=9)
    shuffled = curved_mixture(order=torch.from_numpy(np.random.default_rng(0).permutation(40)))
    assert torch.allclose(shuffled.log_prob(rows), curved_mixture().log_prob(rows), rtol=1e-12)


def test_the_order_of_the_rows_permutes_their_densities():
    mixture, rows = curved_mixture(), random(10, 5, seed=9)
    assert torch.allclose(mixture.log_prob(rows.flip(0)), mixture.log_prob(rows).flip(0), rtol=1e-13)


def cross_validated(mixture, seed, round_share=0.3, tail_share=TAIL_SHARE):
    """The criterion of fit_bandwidths, from the densities of five mixtures written out."""
    n = len(mixture.centers)
    order = np.random.default_rng(seed).permutation(n)
    values = []
    for fold in range(5):
        kept = np.setdiff1d(np.arange(n), order[fold::5])
        generator = Curved(mixture.centers.shape[1])
        other = Mixture(mixture.centers[kept], mixture.codes[kept], generator)
        other.set_bandwidths(mixture.bandwidths)
        density = by_hand(other, generator, round_share=round_share, tail_share=tail_share)
        values += [density.log_prob(row) for row in mixture.centers[order[fold::5]]]
    return torch.stack(values).mean().item()


def test_the_likelihood_reached_is_the_cross_validated_one():
    mixture = curved_mixture()
    reached = mixture.fit_bandwidths(seed=3)
    assert reached == pytest.approx(cross_validated(mixture, 3), rel=1e-9)


@pytest.mark.parametrize(
    ("round_share", "tail_share", "changed"),
    [(0, 0, "tangent"), (0, 0, "noise"), (1, 0, "round"), (0, 1, "tail")],
)
def test_bandwidths_maximise_the_cross_validated_likelihood(round_share, tail_share, changed):
    mixture = curved_mixture()
    mixture.fit_bandwidths(seed=3)
    best, fitted = cross_validated(mixture, 3, round_share, tail_share), mixture.bandwidths
    for factor in (1.2, 1 / 1.2):
        mixture.set_bandwidths(fitted._replace(**{changed: factor * getattr(fitted, changed)}))
        assert cross_validated(mixture, 3, round_share, tail_share) < best


def test_the_same_seed_gives_the_same_bandwidths():
    first, second = curved_mixture(), curved_mixture()
    assert first.fit_bandwidths(seed=1) == second.fit_bandwidths(seed=1)
    assert first.bandwidths == second.bandwidths


def test_bandwidths_have_no_unit_and_the_density_has_the_datas():
    mixture, generator = curved_mixture(), Curved(5)
    mixture.fit_bandwidths(seed=1)
    wide = Mixture(8 * mixture.centers, mixture.codes, lambda z: 8 * generator(z))
    wide.fit_bandwidths(seed=1)
    assert wide.bandwidths == pytest.approx(mixture.bandwidths, rel=1e-6)
    rows = random(10, 5, seed=9)
    assert torch.allclose(wide.log_prob(8 * rows) + 5 * math.log(8), mixture.log_prob(rows), rtol=1e-6)


@pytest.mark.parametrize(("locality", "exponent"), [(1.0, 2.0), (0.75, 1.5), (0.0, 0.0)])
def test_the_noise_is_as_wide_as_the_rows_are_apart(locality, exponent, monkeypatch):
    # Two clusters far apart, one a copy of the other at a tenth of its size.
    monkeypatch.setattr(TangentMixture, "locality", locality)
    codes, generator = random(20, 2), Curved(3)
    centers = generator(codes) + 0.1 * random(20, 3, seed=1)
    far = torch.tensor([1e3, 0, 0], dtype=torch.float64)
    # A generator without tangents: one of both sizes there is not.
    both = Mixture(torch.cat([centers, far + 0.1 * centers]), codes.repeat(2, 1), lambda z: 0 * z[:, [0] * 3])
    here, there = both.tangents.scale.split(20)
    torch.testing.assert_close(there, here / 10**exponent)
    torch.testing.assert_close(both.tangents.tail_scale[20:], both.tangents.tail_scale[:20] / 100)
    alone = Mixture(centers, codes, lambda z: 0 * z[:, [0] * 3]).tangents.scale
    torch.testing.assert_close(both.tangents.scale.log().mean(), alone.log().mean() - math.log(10))
    if locality == 1.0:
        both.set_bandwidths(BANDWIDTHS)
        rows = 0.3 * random(10, 3, seed=9)
        inside, copied = both.log_prob(rows), both.log_prob(far + 0.1 * rows)
        torch.testing.assert_close(copied, inside + 3 * math.log(10))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda centers, codes: (centers[:5].repeat(8, 1), codes[:5].repeat(8, 1)),
        lambda centers, codes: (centers[:1].repeat(40, 1), codes[:1].repeat(40, 1)),
        lambda centers, codes: (centers * torch.tensor([1.0, 1, 0, 0, 1]), codes),
        lambda centers, codes: (centers, 0 * codes),
        lambda centers, codes: (0 * centers, 0 * codes),
    ],
    ids=["duplicates", "all the same", "constant columns", "one code", "nothing at all"],
)
def test_degenerate_tables_give_finite_densities(spoil):
    whole = curved_mixture()
    mixture = Mixture(*spoil(whole.centers, whole.codes), Curved(5))
    assert math.isfinite(mixture.fit_bandwidths(seed=0))
    assert mixture.log_prob(torch.cat([mixture.centers, random(5, 5)])).isfinite().all()


def test_among_repeated_rows_the_noise_is_no_rounding_error():
    rng = np.random.default_rng(0)
    profiles, free = rng.normal(size=(24, 10)), rng.normal(size=(40, 10))
    rows = torch.from_numpy(np.concatenate([profiles[rng.integers(24, size=360)], free]))
    mixture = Mixture(rows, random(400, 2), Curved(10))
    for scale in (mixture.tangents.scale, mixture.tangents.tail_scale):
        assert scale.min() > 1e-5 * scale.max()
    mixture.fit_bandwidths(seed=0)
    near = torch.from_numpy(profiles + 1e-7)
    assert torch.allclose(mixture.log_prob(near), mixture.log_prob(torch.from_numpy(profiles)), atol=1e-3)


def test_fewer_rows_than_folds_are_refused():
    with pytest.raises(ValueError, match=r"^bandwidths need at least 5 rows, got 4\.$"):
        curved_mixture(4).fit_bandwidths(seed=0)


def test_a_copys_density_follows_from_its_state_and_the_generator():
    fitted = curved_mixture()
    fitted.fit_bandwidths(seed=0)
    again = Mixture(fitted.centers.clone(), fitted.codes.clone(), Curved(5))
    again.load_state_dict(fitted.state_dict())
    rows = random(10, 5, seed=9)
    assert torch.equal(again.log_prob(rows), fitted.log_prob(rows))


def test_the_aggregate_goes_to_another_precision_as_a_whole_and_keeps_its_file():
    centers = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixture = TangentMixture(centers, centers[:, :2], lambda z: torch.cat([z, z.sin()], 1))
    mixture.set_bandwidths(BANDWIDTHS)
    single = copy.deepcopy(mixture).float()
    assert {tensor.dtype for tensor in single.buffers()} == {torch.float32, torch.int64}
    rows = centers[:7] + 0.1
    torch.testing.assert_close(single.log_prob(rows.float()), mixture.log_prob(rows).float())
    assert list(mixture.state_dict()) == ["centers", "codes", "variances", "n_reference"]


@pytest.mark.parametrize("n_features", [2, 5, 30])
def test_the_aggregate_of_known_features_is_the_mixture_of_their_marginals(n_features):
    mixture = curved_mixture(40, n_features)
    written_out = by_hand(mixture, Curved(n_features))
    rows = 2 * random(12, n_features, seed=9)
    observed = random(12, n_features, seed=10) > -0.5
    found = mixture.log_prob(rows, observed=observed)
    for row, known, value in zip(rows, observed, found, strict=True):
        if not known.any():
            assert value == pytest.approx(0, abs=1e-9)
            continue
        assert torch.allclose(value, written_out.log_prob(row, known), rtol=1e-9)


def test_the_marginal_of_all_features_is_the_density_itself():
    mixture, rows = curved_mixture(), random(10, 5, seed=9)
    everything = torch.ones_like(rows, dtype=torch.bool)
    assert torch.allclose(mixture.log_prob(rows, observed=everything), mixture.log_prob(rows), rtol=1e-10)


def test_images_that_are_alike_but_for_a_little_noise_are_told_apart_in_single_precision():
    draws = torch.Generator().manual_seed(0)
    background = torch.rand(500, generator=draws).double() / 5 + 0.8
    codes, loadings = (
        torch.randn(100, 2, generator=draws).double(),
        torch.randn(2, 500, generator=draws) / 1000,
    )
    rows = background + 0.01 * torch.randn(150, 500, generator=draws).double()
    found = {}
    for dtype in (torch.float64, torch.float32):
        mixture = TangentMixture(
            rows[:100].to(dtype), codes.to(dtype), lambda z: z @ loadings.to(z), tail_share=0.0
        )
        mixture.set_bandwidths(Bandwidths(tangent=1.0, noise=0.3, round=1.0, tail=1.0))
        found[dtype] = mixture.log_prob(rows[50:].to(dtype)).double()
    assert found[torch.float64].std() > 10
    torch.testing.assert_close(found[torch.float32], found[torch.float64], rtol=0, atol=0.05)
