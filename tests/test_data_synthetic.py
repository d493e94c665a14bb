"""Section 4.1's data: the generator, its noise, and its known likelihood."""

import math

import numpy as np
import pytest
import torch

from invgan.data.synthetic import generator, synthetic, true_log_density, true_log_likelihood

WEIGHTS = torch.tensor([0.7, 1.3, -0.9, 1.9, 0.5, 1.1], dtype=torch.float64)


def test_true_log_likelihood_equals_equation_4_by_automatic_differentiation() -> None:
    z = 2 * torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: generator(point, WEIGHTS)))(z)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    expected = prior.log_prob(z) - torch.linalg.svdvals(jacobian).log().sum(-1)
    torch.testing.assert_close(true_log_likelihood(z, WEIGHTS), expected, rtol=1e-12, atol=1e-12)


def test_likelihood_is_finite_and_bounded_wherever_w4_and_w6_are_not_zero() -> None:
    line = torch.linspace(-40, 40, 401, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    value = true_log_likelihood(z, WEIGHTS)
    bound = -0.5 * z.square().sum(-1) - math.log(2 * math.pi) - math.log(abs(1.9 * 1.1))
    assert value.isfinite().all()
    assert (value <= bound + 1e-9).all()


def test_likelihood_is_infinite_where_a_zero_weight_makes_the_surface_fold() -> None:
    no_fourth = torch.tensor([1.0, 1, 1, 0, 1, 1], dtype=torch.float64)
    assert true_log_likelihood(torch.zeros(2, dtype=torch.float64), no_fourth).item() == math.inf
    assert true_log_likelihood(torch.ones(2, dtype=torch.float64), no_fourth).isfinite()


def test_the_density_in_space_is_the_sum_over_a_grid_of_all_latents() -> None:
    X, z = synthetic(2, weights=WEIGHTS.numpy(), noise_variance=0.04, random_state=0)
    axis = torch.linspace(-5, 5, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(1)
    noise = torch.distributions.Normal(generator(grid, WEIGHTS), 0.2)
    expected = [
        (noise.log_prob(row).sum(1) + prior).logsumexp(0).item() + 2 * math.log(0.02)
        for row in torch.from_numpy(X)
    ]
    found = true_log_density(X, z, weights=WEIGHTS.numpy(), noise_variance=0.04)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_without_noise_samples_lie_on_the_generator() -> None:
    X, z = synthetic(100, weights=WEIGHTS.numpy(), noise_variance=0.0, random_state=3)
    np.testing.assert_array_equal(X, generator(torch.from_numpy(z), WEIGHTS).numpy())


def test_noise_has_the_variance_that_was_asked_for_and_latents_are_standard_normal() -> None:
    n = 200_000
    X, z = synthetic(n, noise_variance=0.04, random_state=0)
    noise = X - generator(torch.from_numpy(z), torch.ones(6, dtype=torch.float64)).numpy()
    both = np.hstack([noise / 0.2, z])
    # The entries of an empirical second moment of n standard normals have deviations of at most √(2/n).
    np.testing.assert_allclose(both.T @ both / n, np.eye(8), atol=5 * math.sqrt(2 / n))
    np.testing.assert_allclose(both.mean(0), 0, atol=5 / math.sqrt(n))


def test_a_seed_fixes_the_sample_and_leaves_the_global_state_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = synthetic(10, random_state=1), synthetic(10, random_state=np.random.default_rng(1))
    np.testing.assert_array_equal(first.X, again.X)
    assert not np.array_equal(first.X, synthetic(10, random_state=2).X)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "The 'n' parameter of synthetic must be at least 1. Got 0 instead."),
        (
            {"noise_variance": -0.1},
            "The 'noise_variance' parameter of synthetic must be finite and not negative. Got -0.1 instead.",
        ),
        (
            {"weights": [1, 2]},
            "The 'weights' parameter of synthetic must be six finite numbers. Got [1, 2] instead.",
        ),
    ],
)
def test_parameters_out_of_range_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        synthetic(**{"n": 5, "random_state": 0} | arguments)
    assert str(error.value) == message
