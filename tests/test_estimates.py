"""The estimates of log p(x) through an estimator: units, missing values, rows by themselves, warnings."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from invgan import ImplicitLikelihood, InputError, InvGAN
from invgan.detectors import IsolationForest
from invgan.detectors.latent import METHODS, RATIO
from invgan.errors import UnreliableEstimateWarning
from invgan.likelihood import log_prior, map_latent

INTEGRALS = ["laplace", "importance", "ais"]
PLANE = {
    "latent_dim": 2,
    "n_centers": 6,
    "random_state": 0,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "max_steps": 300,
}
"""With few centres σ is smooth, and so are posteriors; with one per row or two they are all spikes."""
QUICK = {"n_samples": 40, "n_temperatures": 5}


MIXING = np.random.default_rng(9).normal(size=(2, 4))


def correlated(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ MIXING + 0.3 * rng.normal(size=(n, 4))


def with_holes(X, seed=0):
    """About a quarter of the values missing, in every second row, and at least two left in each."""
    holes = np.random.default_rng(seed).random(X.shape) < 0.5
    holes[::2] = False
    holes[:, 1:3] = False
    return np.where(holes, np.nan, X)


@pytest.fixture(scope="module")
def plane():
    """A model of four columns with two latent dimensions, over which a grid integrates."""
    return InvGAN(**PLANE).fit(1024 * correlated(400))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    pictures = rng.random((60, 1, 12, 12)).astype(np.float32)
    return InvGAN(max_steps=3, batch_size=16, random_state=0).fit(pictures), pictures[:40].copy()


def new_rows(n=40):
    return 1024 * correlated(n, seed=1)


def on_a_grid(detector, X):
    """log ∫ p(x_o | z) p(z) dz, and log max_z p(x_o | z) p(z), over a fine grid, in the data's units."""
    side = torch.linspace(-6, 6, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    f, scaling = detector.model_.stochastic_generator, detector.scaling_
    given_latent = Normal(f.mean(grid) * scaling.scale + scaling.shift, f.std(grid) * scaling.scale)
    prior = Normal(0.0, 1.0).log_prob(grid).sum(1)
    values = []
    for x in torch.from_numpy(X):
        observed = ~x.isnan()
        log_joint = given_latent.log_prob(x.nan_to_num())[:, observed].sum(1) + prior
        log_integral = torch.logsumexp(log_joint, 0) + 2 * (side[1] - side[0]).log()
        values.append(torch.stack([log_integral, log_joint.max()]))
    return torch.stack(values, 1).numpy()


@pytest.mark.parametrize("method", ["importance", "ais"])
@pytest.mark.parametrize("spoil", [lambda X: X, with_holes], ids=["complete", "with holes"])
def test_the_estimates_are_the_integral_over_the_latents(plane, method, spoil):
    X = spoil(new_rows(16))
    n_samples = {"importance": 4000, "ais": 64}[method]
    found = plane.log_likelihood(X, method, n_starts=2, n_samples=n_samples, n_temperatures=40)
    deviation = (found.values - on_a_grid(plane, X)[0]) / np.maximum(found.standard_error, 1e-6)
    trusted = found.diagnostics["reliable"]
    assert trusted.mean() >= 0.75
    assert np.abs(deviation[trusted]).max() < 4  # forty rows
    assert np.median(found.standard_error) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_estimates_of_scaled_data_differ_by_the_log_determinant(plane, method):
    X = new_rows()
    # Powers of two scale without rounding, so training takes the same course, bit for bit.
    other = InvGAN(**PLANE).fit(correlated(400))
    n_scaled = 2 if method == "riemannian" else 4
    ours = plane.log_likelihood(X, method, **QUICK).values
    theirs = other.log_likelihood(X / 1024, method, **QUICK).values
    assert np.allclose(theirs - ours, n_scaled * math.log(1024), atol=1e-9)


def test_the_aggregates_marginal_is_its_integral_over_the_missing_column(plane):
    center, spread = plane.scaling_.shift[0].item(), plane.scaling_.scale[0].item()
    side = np.linspace(center - 9 * spread, center + 9 * spread, 4001)
    for x in new_rows(3):
        density = np.exp(
            plane.log_likelihood(np.column_stack([side, np.tile(x[1:], (4001, 1))]), "aggregate").values
        )
        missing = plane.log_likelihood([[np.nan, *x[1:]]], "aggregate").values[0]
        assert missing == pytest.approx(math.log(density.sum() * (side[1] - side[0])), abs=1e-6)


def test_the_joint_density_of_known_features_leaves_out_the_others(plane):
    X = with_holes(new_rows())
    found = plane.log_likelihood(X, "joint")
    highest = on_a_grid(plane, X[1::2])[1]
    assert np.median(np.abs(found.values[1::2] - highest)) < 0.01
    assert (found.values[1::2] < highest + 0.03).all()  # the grid's points pass the summit by
    assert found.diagnostics["converged"].all()


def test_refining_raises_the_joint_density_of_every_row(plane):
    X = new_rows()
    at_code, at_mode = plane.log_likelihood(X, "joint"), plane.log_likelihood(X, "joint", refine=True)
    assert (at_mode.values >= at_code.values).all()
    assert (at_mode.values > at_code.values + 1e-3).mean() > 0.5
    assert "converged" not in at_code.diagnostics


def test_the_surface_density_of_known_features_has_the_volume_of_their_tangents(plane):
    x = new_rows(1)
    x[0, 3] = np.nan
    found = plane.log_likelihood(x, "riemannian")
    f, scale = plane.model_.stochastic_generator, plane.scaling_.scale

    def metric_volume(z):
        jacobian = torch.autograd.functional.jacobian(lambda at: f.mean_and_std(at[None])[0], z)
        known = (jacobian.view(2, 4, 2) * scale[:, None])[:, :3].reshape(-1, 2)
        return 0.5 * torch.linalg.slogdet(known.T @ known).logabsdet

    scaled = torch.where(torch.from_numpy(x).isnan(), 0, plane.scaling_(torch.from_numpy(x)))
    z, _ = map_latent(f, scaled, plane.model_.inference(scaled), observed=~torch.from_numpy(x).isnan())
    expected = log_prior(z)[0] - metric_volume(z[0])
    assert found.values[0] == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_value_depends_on_its_row_alone(plane, method):
    X = with_holes(new_rows(140))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEstimateWarning)
        together = plane.log_likelihood(X, method, **QUICK)
        backwards = plane.log_likelihood(X[::-1], method, **QUICK)
        alone = plane.log_likelihood(X[7:8], method, **QUICK)
    assert np.array_equal(together.values, backwards.values[::-1])
    assert np.array_equal(together.values[7:8], alone.values)
    for name, values in together.diagnostics.items():
        assert np.array_equal(values, backwards.diagnostics[name][::-1]), name
        assert values.dtype == (bool if name in ("converged", "reliable", "rank_deficient") else float)
    assert (together.standard_error is None) == (method not in ("importance", "ais"))


@pytest.mark.parametrize("method", [*METHODS, RATIO])
def test_images_take_every_method_and_missing_pixels(images, method):
    detector, X = images
    X = X[:34]
    X[3, 0, 2:5, 2:5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableEstimateWarning)
        found = detector.log_likelihood(X, method, **QUICK)
        without = detector.log_likelihood(np.delete(X, 3, 0), method, **QUICK)
    assert np.isfinite(found.values).all()
    assert np.array_equal(np.delete(found.values, 3), without.values)


def test_a_row_of_which_nothing_is_known_has_probability_one(plane):
    nothing = np.full((1, 4), np.nan)
    for method in ("aggregate", *INTEGRALS):
        assert plane.log_likelihood(nothing, method).values[0] == pytest.approx(0, abs=0.05)


def test_a_method_given_to_the_estimator_scores_by_it():
    X = correlated(60)
    detector = InvGAN(latent_dim=2, max_steps=20, method="laplace", random_state=0).fit(X)
    assert np.array_equal(detector.score_samples(X), detector.log_likelihood(X, "laplace").values)


@pytest.fixture(scope="module")
def linear():
    """A linear generator of one's own with constant σ: data are normal, exactly."""
    generator = torch.nn.Linear(2, 4)
    generator.weight.data = torch.tensor([[2.0, 0.0], [0.5, 1.0], [0.0, -1.5], [1.0, 1.0]])
    generator.bias.data = torch.tensor([1.0, -2.0, 0.5, 0.0])
    covariance = (generator.weight @ generator.weight.T).detach().double() + torch.diag(
        torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64) ** 2
    )
    truth = torch.distributions.MultivariateNormal(generator.bias.detach().double(), covariance)
    rng = np.random.default_rng(0)
    X = rng.multivariate_normal(truth.mean.numpy(), covariance.numpy(), size=400)
    estimator = ImplicitLikelihood(generator, 2, max_steps=100, random_state=0).fit(X)
    sigma = estimator.model_.variance
    sigma.rates.zero_()  # σ is the same everywhere …
    sigma.weight.zero_()
    precision_root = estimator.scaling_.scale / torch.tensor([0.1, 0.2, 0.3, 0.4])
    sigma.weight[:, 0] = precision_root  # … and, but for the floor, what the data were made with
    sigma.precision_floor.zero_()
    return estimator, truth, X


@pytest.mark.parametrize("method", INTEGRALS)
@pytest.mark.parametrize("spoil", [lambda X: X, with_holes], ids=["complete", "with holes"])
def test_a_linear_generator_of_ones_own_has_the_likelihood_of_its_gaussian(linear, method, spoil):
    estimator, truth, X = linear
    X = spoil(X[:32])
    expected = []
    for x in torch.from_numpy(X):
        known = ~x.isnan()
        marginal = torch.distributions.MultivariateNormal(
            truth.mean[known], truth.covariance_matrix[known][:, known]
        )
        expected.append(marginal.log_prob(x[known]).item())
    found = estimator.log_likelihood(X, method, n_temperatures=20)
    if method == "laplace":
        assert np.allclose(found.values, expected, rtol=1e-6)
    else:
        assert found.diagnostics["reliable"].all()
        assert (np.abs(found.values - expected) <= 4 * found.standard_error + 1e-6).all()  # 32 rows


@pytest.mark.parametrize(("method", "remedy"), [("importance", "n_samples"), ("ais", "n_temperatures")])
def test_doubtful_values_are_warned_of_and_marked(plane, method, remedy):
    X = np.full((3, 4), 1e6)
    message = (
        f"{method}: 3 of 3 values are not to be trusted, nor are their standard errors, because few draws "
        "carry almost all of the weight; diagnostics['reliable'] is False for them. "
        f"Raise {remedy} or n_starts."
    )
    with pytest.warns(UnreliableEstimateWarning, match=f"^{re.escape(message)}$"):
        found = plane.log_likelihood(X, method, n_samples=20, n_temperatures=1)
    assert not found.diagnostics["reliable"].any()


def test_a_surface_of_more_dimensions_than_known_features_is_refused(plane):
    X = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, np.nan, np.nan, np.nan]])
    message = (
        "X has only 1 values in row 1, fewer than the 2 latent dimensions, and 'riemannian' is a density on "
        "a surface that would have none left: use method='importance'."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        plane.log_likelihood(X, "riemannian")


def test_scores_marginalise_missing_values_as_likelihoods_do(plane, images):
    X = np.array([[1.0, 2.0, np.nan, 4.0]])
    assert np.array_equal(plane.score_samples(X), plane.log_likelihood(X).values)
    detector, pixels = images
    pixels = pixels[10:12].copy()
    pixels[1, 0, 2, 3] = np.nan
    assert np.array_equal(detector.score_samples(pixels), detector.log_likelihood(pixels).values)


def test_missing_values_are_refused_where_nothing_marginalises_them(images):
    X = np.array([[1.0, 2.0, 0.0, 4.0]]) + np.arange(20.0)[:, None]
    detector = IsolationForest(random_state=0).fit(X)
    X[0, 2] = np.nan
    message = "X has NaN in row 0, column 2: fill in missing values or leave the row out."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        detector.score_samples(X)
    pixels = images[1][5:40].copy()
    pixels[4, 0, 2, 3] = np.nan
    message = "X has NaN in row 4, channel 0, pixel (2, 3): fill in missing values or leave the row out."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        InvGAN(max_steps=5, random_state=0).fit(pixels)
