"""Normalised densities against closed forms (linear Gaussians), quadrature and autodiff."""

import math

import pytest
import torch
from torch.distributions import LowRankMultivariateNormal

from invgan.data.synthetic import synthetic
from invgan.errors import InputError
from invgan.experiments.estimates import known_generator, quadrature
from invgan.likelihood import StochasticGenerator, annealed, joint, posterior
from invgan.likelihood.annealed import ais
from invgan.likelihood.posterior import Posterior, importance, laplace, map_latent, map_latents
from invgan.networks import RBFVariance, build, initialize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Linear:
    """x = A z + b + s ε, whose density over any subset of features is a Gaussian in closed form."""

    def __init__(self, d, n_features):
        self.d = d
        self.loadings = random(n_features, d) / d**0.5
        self.offset = random(n_features, seed=1)
        self.std = 0.3 * (0.5 * random(n_features, seed=2)).exp()
        self.f = StochasticGenerator(
            lambda z: z @ self.loadings.T + self.offset, lambda z: self.std.expand(len(z), n_features)
        )

    def sample(self, n, seed=3):
        noise = self.std * random(n, len(self.std), seed=seed + 1)
        return self.f.mean(random(n, self.d, seed=seed)) + noise

    def log_prob(self, rows, observed):
        values = [
            LowRankMultivariateNormal(self.offset[o], self.loadings[o], self.std[o] ** 2).log_prob(row[o])
            for row, o in zip(rows, observed, strict=True)
        ]
        return torch.stack(values)


def some_missing(rows, seed=0):
    """A mask whose first row is complete, and the rows with NaN where it says no."""
    observed = torch.rand(rows.shape, generator=seeded(seed)) < 0.6
    observed[0] = True
    return observed, torch.where(observed, rows, math.nan)


def heteroscedastic():
    """Two latents, six features, noise that depends on the latent."""
    generator = build((6,), 2).generator
    initialize(generator, seeded(0))
    generator = generator.double()
    sigma = RBFVariance(2, 6, 8, max_std=1.0)
    sigma.fit_centers(random(100, 2), seed=0)
    sigma.weight.data.copy_(2 * random(6, 8, seed=3))
    return StochasticGenerator(lambda z: 5 * generator(z), sigma.double())


def sample(f, n, d, seed=5):
    z = random(n, d, seed=seed)
    with torch.no_grad():
        mean, std = f.mean_and_std(z).chunk(2, 1)
    return mean + std * random(*mean.shape, seed=seed + 1)


# Derivatives


def test_the_gradient_is_autodiffs():
    f, z = heteroscedastic(), random(5, 2)
    observed, rows = some_missing(sample(f, 5, 2))
    target = Posterior(f, rows, observed, z)
    latents = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(-target.log_joint(latents).sum(), latents)
    assert torch.allclose(target.curvature(z).gradient, expected, rtol=1e-10)


def test_the_hessian_is_the_expected_one():
    # In r = (x − g)/σ the true Hessian is quadratic, feature by feature, so r = ±1 gives its expectation.
    f, z = heteroscedastic(), random(1, 2, seed=4)
    with torch.no_grad():
        mean, std = f.mean_and_std(z).chunk(2, 1)
    observed = torch.tensor([[True, False, True, True, False, True]])

    def hessian(rows):
        target = Posterior(f, rows, observed, z)
        return torch.autograd.functional.hessian(lambda at: -target.log_joint(at[None]).sum(), z[0])

    expected = 0.5 * (hessian(mean + std) + hessian(mean - std))
    found = Posterior(f, mean, observed, z).curvature(z).hessian[0]
    assert torch.allclose(found, expected, rtol=1e-10)


# MAP


def test_map_ends_at_a_zero_gradient_above_where_it_began():
    f = heteroscedastic()
    rows = sample(f, 50, 2)
    start = 2 * random(50, 2, seed=9)
    z, converged = map_latent(f, rows, start)
    assert converged.all()
    assert (joint(f, rows, z) > joint(f, rows, start)).all()
    assert Posterior(f, rows, None, z).curvature(z).gradient.abs().max() < 1e-4


def test_map_of_a_linear_generator_is_the_posterior_mean():
    model = Linear(3, 7)
    rows = model.sample(10)
    noise = torch.diag(model.std**-2)
    precision = torch.eye(3, dtype=torch.float64) + model.loadings.T @ noise @ model.loadings
    expected = torch.linalg.solve(precision, model.loadings.T @ noise @ (rows - model.offset).T).T
    z, converged = map_latent(model.f, rows, torch.zeros(10, 3, dtype=torch.float64))
    assert converged.all()
    assert torch.allclose(z, expected, atol=1e-5)


def test_a_row_that_has_converged_does_not_change_while_others_go_on():
    f = heteroscedastic()
    rows, start = sample(f, 40, 2), random(40, 2, seed=9)
    early, done = map_latent(f, rows, start, max_steps=15)
    late, _ = map_latent(f, rows, start, max_steps=60)
    assert done.any()
    assert not done.all()
    assert torch.equal(early[done], late[done])
    assert not torch.equal(early[~done], late[~done])


def test_map_and_laplace_of_a_row_do_not_depend_on_the_others():
    f = heteroscedastic()
    rows, start = sample(f, 32, 2), random(32, 2, seed=9)
    z, _ = map_latent(f, rows, start)
    order = torch.randperm(32, generator=seeded(1))
    assert torch.equal(map_latent(f, rows[order], start[order])[0], z[order])
    alone = torch.cat([map_latent(f, rows[i : i + 1], start[i : i + 1])[0] for i in range(4)])
    assert torch.allclose(alone, z[:4], atol=1e-9)
    values = laplace(f, rows, z).values
    assert torch.equal(laplace(f, rows[order], z[order]).values, values[order])


def test_without_a_step_map_gives_back_the_start():
    model = Linear(2, 6)
    rows, start = model.sample(3), random(3, 2)
    z, converged = map_latent(model.f, rows, start, max_steps=0)
    assert torch.equal(z, start)
    assert not converged.any()


def test_networks_in_single_precision_reach_the_same_values():
    generator = build((6,), 2).generator
    initialize(generator, seeded(0))
    single = StochasticGenerator(generator, lambda z: torch.full((len(z), 6), 0.1, dtype=z.dtype))
    rows = single.mean(random(20, 2, seed=1).float()).detach() + 0.1 * random(20, 6, seed=2).float()
    z, converged = map_latent(single, rows, torch.zeros(20, 2))
    assert z.dtype == torch.float32
    assert converged.all()
    low = laplace(single, rows, z).values
    double = StochasticGenerator(generator.double(), single.std)
    start = torch.zeros(20, 2, dtype=torch.float64)
    high = laplace(double, rows, map_latent(double, rows, start)[0]).values
    assert low.dtype == torch.float64
    assert torch.allclose(low, high, atol=5e-3)


# Linear Gaussians


@pytest.mark.parametrize(("d", "n_features"), [(2, 6), (10, 100), (50, 1000)])
@pytest.mark.parametrize("with_missing", [False, True])
def test_linear_gaussians_have_their_closed_form(d, n_features, with_missing):
    model = Linear(d, n_features)
    rows = model.sample(6)
    observed, masked = some_missing(rows)
    truth = model.log_prob(rows, observed if with_missing else torch.ones_like(observed))
    rows, mask = (masked, observed) if with_missing else (rows, None)
    z, converged = map_latent(model.f, rows, torch.zeros(6, d, dtype=torch.float64), observed=mask)
    assert converged.all()
    assert torch.allclose(laplace(model.f, rows, z, observed=mask).values, truth, rtol=1e-6, atol=0)

    sampled = importance(model.f, rows, z, n_samples=1000, generator=seeded(6), observed=mask)
    assert ((sampled.values - truth).abs() < 3 * sampled.standard_error).all()
    assert sampled.diagnostics["reliable"].all()
    assert (sampled.standard_error < 0.04).all()

    annealed = ais(model.f, rows, z, n_chains=32, n_temperatures=20, generator=seeded(7), observed=mask)
    assert ((annealed.values - truth).abs() < 3 * annealed.standard_error).all()
    assert annealed.diagnostics["reliable"].all()
    assert (annealed.standard_error < 0.15).all()


def test_annealing_from_the_prior_needs_no_mode():
    model = Linear(2, 6)
    observed, rows = some_missing(model.sample(6))
    estimate = ais(
        model.f, rows, torch.full((6, 2), math.inf, dtype=torch.float64), n_chains=64, n_temperatures=200,
        generator=seeded(8), observed=observed, start="prior",
    )  # fmt: skip
    truth = model.log_prob(rows, observed)
    assert ((estimate.values - truth).abs() < 3 * estimate.standard_error).all()
    assert (estimate.standard_error < 0.15).all()
    assert ((estimate.diagnostics["acceptance_rate"] > 0.4) & (estimate.standard_error > 0)).all()


def test_a_row_without_any_observed_feature_has_probability_one():
    f = heteroscedastic()
    rows = torch.full((2, 6), math.nan, dtype=torch.float64)
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    z, converged = map_latent(f, rows, random(2, 2), observed=nothing)
    assert converged.all()
    assert laplace(f, rows, z, observed=nothing).values.tolist() == pytest.approx([0, 0], abs=1e-9)
    sampled = importance(f, rows, z, n_samples=2000, generator=seeded(0), observed=nothing)
    assert (sampled.values.abs() < 3 * sampled.standard_error).all()
    from_prior = ais(
        f, rows, z, n_chains=4, n_temperatures=5, generator=seeded(0), observed=nothing, start="prior"
    )
    assert from_prior.values.tolist() == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("filler", [0.0, 1e300, math.inf])
def test_what_stands_in_a_missing_entry_changes_no_bit(filler):
    f = heteroscedastic()
    observed, with_nan = some_missing(sample(f, 8, 2))
    filled = torch.where(observed, with_nan, filler)
    z, _ = map_latent(f, with_nan, random(8, 2), observed=observed)
    assert torch.equal(map_latent(f, filled, random(8, 2), observed=observed)[0], z)
    for estimate in (
        lambda rows: laplace(f, rows, z, observed=observed),
        lambda rows: importance(f, rows, z, n_samples=50, generator=seeded(0), observed=observed),
        lambda rows: ais(f, rows, z, n_chains=4, n_temperatures=4, generator=seeded(0), observed=observed),
    ):
        values = estimate(with_nan).values
        assert values.isfinite().all()
        assert torch.equal(estimate(filled).values, values)


# Curved generators


def test_importance_is_within_a_hundredth_of_a_nat_on_the_papers_synthetic_data():
    f = known_generator()
    rows = torch.from_numpy(synthetic(200, random_state=0).X)
    truth = quadrature(f, rows)
    z, converged = map_latent(f, rows, torch.zeros(200, 2, dtype=torch.float64))
    assert converged.all()
    estimate = importance(f, rows, z, n_samples=20_000, generator=seeded(2))
    error = (estimate.values - truth).abs()
    assert (error < 0.01).double().mean() >= 0.99
    assert (error < 4 * estimate.standard_error).all()
    assert estimate.diagnostics["reliable"].all()


@pytest.mark.parametrize("with_missing", [False, True])
def test_noise_that_depends_on_the_latent_is_integrated_exactly(with_missing):
    f = heteroscedastic()
    rows = sample(f, 8, 2)
    observed, masked = some_missing(rows)
    rows, mask = (masked, observed) if with_missing else (rows, None)
    truth = quadrature(f, rows.nan_to_num(), mask)
    z, _ = map_latents(f, rows, random(8, 2), n_starts=6, generator=seeded(1), observed=mask)
    sampled = importance(f, rows, z, n_samples=5000, generator=seeded(2), observed=mask)
    assert ((sampled.values - truth).abs() < 4 * sampled.standard_error).all()
    assert (sampled.standard_error < 0.03).all()
    annealed = ais(f, rows, z, n_chains=64, n_temperatures=20, generator=seeded(3), observed=mask)
    assert ((annealed.values - truth).abs() < 4 * annealed.standard_error).all()
    assert (annealed.standard_error < 0.1).all()


SQUARE = StochasticGenerator(
    lambda z: torch.cat([z[:, :1] ** 2, z[:, 1:]], 1), lambda z: torch.full_like(z, 0.2)
)
"""x₁ = z₁² has two modes, ±√x₁."""


def test_laplace_misses_the_second_of_two_like_modes_and_a_mixture_has_both():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.5]], dtype=torch.float64)
    truth = quadrature(SQUARE, rows)
    one, _ = map_latent(SQUARE, rows, torch.ones(2, 2, dtype=torch.float64))
    missing = truth - laplace(SQUARE, rows, one).values
    assert missing.tolist() == pytest.approx([math.log(2)] * 2, abs=0.05)
    both, _ = map_latents(
        SQUARE, rows, torch.ones(2, 2, dtype=torch.float64), n_starts=8, generator=seeded(0)
    )
    assert ((both[:, :, 0] > 0).any(1) & (both[:, :, 0] < 0).any(1)).all()
    estimate = importance(SQUARE, rows, both, n_samples=5000, generator=seeded(0))
    assert ((estimate.values - truth).abs() < 3 * estimate.standard_error).all()
    assert (estimate.standard_error < 0.02).all()


# Errors and their bars


def test_standard_errors_cover_the_truth_as_often_as_they_should():
    f = heteroscedastic()
    rows = sample(f, 1, 2)
    truth = quadrature(f, rows)
    z, _ = map_latent(f, rows, torch.zeros(1, 2, dtype=torch.float64))

    def deviation(estimate):
        return ((estimate.values - truth) / estimate.standard_error).item()

    sampled = torch.tensor(
        [deviation(importance(f, rows, z, n_samples=500, generator=seeded(i))) for i in range(200)]
    )
    # Of 200 repeats 95 % lie within 1.96 standard errors; the binomial's own spread is 1.5 %.
    assert 0.91 < (sampled.abs() < 1.96).double().mean() <= 0.985
    annealed = torch.tensor(
        [deviation(ais(f, rows, z, n_chains=40, n_temperatures=3, generator=seeded(i))) for i in range(50)]
    )
    assert 0.88 < (annealed.abs() < 1.96).double().mean() <= 1
    assert 0.7 < annealed.std() < 1.4


def test_a_bad_proposal_is_flagged_and_a_good_one_is_not():
    model = Linear(10, 200)
    rows = model.sample(4)
    z, _ = map_latent(model.f, rows, torch.zeros(4, 10, dtype=torch.float64))
    z[2] += 3
    estimate = importance(model.f, rows, z, n_samples=1000, generator=seeded(0))
    assert estimate.diagnostics["reliable"].tolist() == [True, True, False, True]
    assert estimate.diagnostics["effective_sample_size"][2] < 5
    assert laplace(model.f, rows, z).diagnostics["newton_decrement"].gt(1).tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_sampled_values_depend_neither_on_other_rows_nor_on_chunks(monkeypatch):
    f = heteroscedastic()
    rows = sample(f, 6, 2)
    z, _ = map_latent(f, rows, random(6, 2))

    def estimates(which):
        return (
            importance(f, rows[which], z[which], n_samples=200, generator=seeded(0)).values,
            ais(f, rows[which], z[which], n_chains=8, n_temperatures=5, generator=seeded(0)).values,
        )

    together, third = estimates(slice(None)), estimates(slice(2, 3))
    monkeypatch.setattr(posterior, "MAX_VALUES", 100)
    monkeypatch.setattr(annealed, "MAX_VALUES", 100)
    in_chunks = estimates(slice(None))
    for whole, alone, chunked in zip(together, third, in_chunks, strict=True):
        assert torch.allclose(whole[2:3], alone, atol=1e-8)
        assert torch.allclose(whole, chunked, atol=1e-8)


# What the caller got wrong

ROWS = torch.tensor([[0.0, 1.0], [math.nan, 2.0]], dtype=torch.float64)
LATENTS = torch.zeros(2, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: map_latent(SQUARE, ROWS, LATENTS),
            "The 'rows' parameter must be finite where observed: row 1, feature 0 is nan. "
            "Mark missing entries as False in 'observed'.",
        ),
        (
            lambda: laplace(SQUARE, ROWS[:, None], LATENTS),
            "The 'rows' parameter must be of shape (n, D): flatten each row. Got (2, 1, 2) instead.",
        ),
        (
            lambda: laplace(SQUARE, ROWS, LATENTS, observed=torch.ones(2, 2)),
            "The 'observed' parameter must be a boolean mask of shape (2, 2), as the rows. "
            "Got torch.float32 of shape (2, 2) instead.",
        ),
        (
            lambda: laplace(SQUARE, ROWS, LATENTS[:1]),
            "The latents must be of shape (n, d) or (n, K, d) with n = 2, as the rows. Got (1, 2) instead.",
        ),
        (
            lambda: importance(SQUARE, ROWS[:1], LATENTS[:1], n_samples=1, generator=seeded(0)),
            "The 'n_samples' parameter of importance must be at least 2. Got 1 instead.",
        ),
        (
            lambda: importance(SQUARE, ROWS[:1], LATENTS[:1], n_samples=9, generator=seeded(0), widening=0.0),
            "The 'widening' parameter must be positive and finite. Got 0.0 instead.",
        ),
        (
            lambda: ais(SQUARE, ROWS, LATENTS, n_chains=1, n_temperatures=9, generator=seeded(0)),
            "The 'n_chains' parameter of ais must be at least 2. Got 1 instead.",
        ),
        (
            lambda: ais(SQUARE, ROWS, LATENTS, n_chains=2, n_temperatures=0, generator=seeded(0)),
            "The 'n_temperatures' parameter of ais must be at least 1. Got 0 instead.",
        ),
        (
            lambda: ais(SQUARE, ROWS, LATENTS, n_chains=2, n_temperatures=2, generator=seeded(0), start="h"),
            "The 'start' parameter of ais must be 'laplace' or 'prior'. Got 'h' instead.",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message
