"""The density models: one set of truths for all of them, and what each says of itself."""

import copy
import functools
import math
import re
import sys
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import invgan
from invgan import InputError, TrainingDivergedError, artifact, density
from invgan.density import variational
from invgan.density.bijections import (
    LOGIT_MARGINS,
    MARGIN,
    ActNorm,
    Bijection,
    Chain,
    Flatten,
    Gaussianization,
    InvertibleLinear,
    Logit,
)
from invgan.density.continuous import Continuous, conv_velocity
from invgan.density.tabular import SMALLEST_SCALE, _order, autoregressive, coupling, import_zuko
from invgan.density.variational import FlowVAEModel
from invgan.likelihood import bits_per_dimension, dequantize
from invgan.training import Sample

SMALL = {"max_steps": 60, "width": 16, "n_layers": 2, "random_state": 0}
TOLERANCE = {"FFJORD": 1e-4}
"""Of log-determinants and inverses: the error of the integration; elsewhere that of rounding."""


def bent(n=400, seed=0):
    """Rows (n, 2) along a parabola, in units of which each column has its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return np.c_[x, 0.5 * x**2 + 0.5 * rng.normal(size=n)] * [4.0, 0.25] + [100.0, 0.0]


def squares(n=60, levels=256, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (n, 1, side, side)).astype(np.uint8)


def model(name, **parameters):
    return getattr(density, name)(**SMALL | parameters)


CASES = {name: (name, {}) for name in density.__all__} | {
    "RealNVP, pairs of pixels": ("RealNVP", {}),
    "RealNVP, images": ("RealNVP", {"n_layers": 1, "width": 4, "max_steps": 3, "batch_size": 16}),
    "Glow, images": ("Glow", {"n_layers": 2, "width": 4, "max_steps": 3, "batch_size": 16}),
}


def rows_for(case, n, seed=0):
    if case.endswith("images"):
        return squares(n, seed=seed)
    if case.endswith("pixels"):
        return (squares(n, 40, 2, seed)[:, :, :1].cumsum(3) // 2).astype(np.uint8)
    return bent(n, seed)


@pytest.fixture(scope="module", params=CASES)
def fitted(request):
    """A model that was trained a little, and a function that draws new rows for it."""
    name, parameters = CASES[request.param]
    n = 60 if request.param.endswith("images") else 400
    estimator = model(name, **parameters).fit(rows_for(request.param, n))
    return estimator, lambda n: rows_for(request.param, n, seed=1)


@pytest.fixture(scope="module")
def in_the_plane(fitted):
    estimator, _ = fitted
    if estimator._size() != 2:
        pytest.skip("an integral over many dimensions")
    return estimator


def in_double_precision(fitted, n):
    """Return a flow, scaled rows for it, and how exact it should be."""
    estimator, draw = fitted
    flow = copy.deepcopy(estimator.model_.flow).double()
    return (
        flow,
        estimator.scaling_(torch.from_numpy(draw(n)).double()),
        TOLERANCE.get(type(estimator).__name__, 1e-9),
    )


# Truths of every model


def test_the_log_determinant_is_that_of_the_jacobian(fitted):
    flow, rows, error = in_double_precision(fitted, 3)
    check_log_determinant(flow, rows, error)


def check_log_determinant(flow, rows, error):
    _, found = flow(rows)
    for row, value in zip(rows, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow(x[None])[0][0], row, vectorize=True)
        expected = torch.linalg.slogdet(jacobian.view(row.numel(), -1)).logabsdet
        assert value.item() == pytest.approx(expected.item(), abs=error * row.numel())


def test_the_inverse_undoes_the_flow(fitted):
    check_inverse(*in_double_precision(fitted, 20))


def check_inverse(flow, rows, error):
    z = torch.randn(len(rows), rows[0].numel(), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        back, there = flow.inverse(flow(rows)[0]), flow(flow.inverse(z))[0]
    torch.testing.assert_close(back, rows, rtol=error, atol=error)
    torch.testing.assert_close(there.view(z.shape), z, rtol=error, atol=3 * error)


def test_a_continuous_flow_of_images_has_these_properties_too():
    torch.manual_seed(0)
    flow = Continuous(conv_velocity(2, 8, 1), (2, 4, 4)).double().eval()
    rows = torch.randn(3, 2, 4, 4).double()
    check_log_determinant(flow, rows, 1e-4)
    flow.inverse, inverse = lambda z: inverse(z.view(-1, 2, 4, 4)), flow.inverse
    check_inverse(flow, rows, 1e-4)


GRID = 120
CELLS = 12
"""Coarse cells along each side, in which samples are counted."""


@pytest.fixture(scope="module")
def mass(in_the_plane):
    """The probability of each square of a fine grid that ends far outside the data, and its corners."""
    X = in_the_plane.sample(2000, random_state=1).reshape(-1, 2)
    low, high = X.mean(0) - 7 * X.std(0), X.mean(0) + 7 * X.std(0)
    if in_the_plane.quantized_:  # a square for each pair of levels, at whose borders the density jumps
        low = X.mean(0).round() - GRID // 2
        high = low + GRID
    side = (np.arange(GRID) + 0.5) / GRID
    points = low + (high - low) * np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(in_the_plane.score_samples(points.reshape(-1, *in_the_plane.data_shape_)))
    return density.reshape(GRID, GRID) * (high - low).prod() / GRID**2, low, high


def test_the_density_integrates_to_one(in_the_plane, mass):
    error = 0.06 if isinstance(in_the_plane, density.FlowVAE) else 0.005  # its bound is p on average only
    assert mass[0].sum() == pytest.approx(1, abs=error)


def test_samples_are_distributed_as_the_density_says(in_the_plane, mass):
    fine, low, high = mass
    fold = GRID // CELLS
    probability = fine.reshape(CELLS, fold, CELLS, fold).sum((1, 3)).ravel()
    probability /= probability.sum()
    often = probability > 0.002

    def p_value(samples):
        cell = np.floor((samples - low) / (high - low) * CELLS).astype(int).clip(0, CELLS - 1)
        counts = np.bincount(cell[:, 0] * CELLS + cell[:, 1], minlength=CELLS**2)
        found = np.append(counts[often], counts[~often].sum())
        expected = np.append(probability[often], probability[~often].sum())
        return chisquare(found, len(samples) * expected).pvalue

    samples = in_the_plane.sample(4000, random_state=0).reshape(-1, 2).astype(float)
    if in_the_plane.quantized_:
        samples += np.random.default_rng(0).random(samples.shape)
    assert p_value(samples) > 1e-3
    center = samples.mean(0)
    assert p_value(center + 1.1 * (samples - center)) < 1e-3  # a tenth is noticed


def test_every_parameter_gets_a_gradient(fitted):
    network = copy.deepcopy(fitted[0].model_).float().requires_grad_().train()
    rows = torch.rand(32, *fitted[0].data_shape_)
    sample = Sample(lambda: rows, torch.Generator().manual_seed(0), 32, slice(None))
    reached = set()
    for update in network.updates():
        parameters = [p for module in update.modules for p in getattr(module, "module", module).parameters()]
        gradients = torch.autograd.grad(update.loss(sample), parameters, allow_unused=True)
        reached |= {p for p, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}
    assert [name for name, p in network.named_parameters() if p not in reached] == []


def test_a_saved_model_scores_and_samples_bit_for_bit_alike(fitted, tmp_path):
    estimator, draw = fitted
    estimator.save(tmp_path / "m")
    again, X = invgan.load(tmp_path / "m"), draw(30)
    assert np.array_equal(again.score_samples(X), estimator.score_samples(X))
    assert np.array_equal(again.sample(3, random_state=0), estimator.sample(3, random_state=0))
    assert np.array_equal(again.p_values(X), estimator.p_values(X))


def test_a_score_does_not_depend_on_the_rows_around_it(fitted):
    estimator, draw = fitted
    X = draw(150)
    together = estimator.score_samples(X)
    order = np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(estimator.score_samples(X[order]), together[order])
    for i in (0, 31, 149):
        assert np.array_equal(estimator.score_samples(X[[i]]), together[[i]])


@pytest.mark.parametrize("d", [5, 15])  # products of odd length are rounded by a row's place
@pytest.mark.parametrize("name", ["MADE", "MAF", "RealNVP", "Glow"])
def test_a_score_of_any_width_does_not_depend_on_the_rows_around_it(name, d):
    X = np.random.default_rng(0).normal(size=(150, d))
    estimator = model(name, max_steps=2).fit(X)
    together, order = estimator.score_samples(X), np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(estimator.score_samples(X[order]), together[order])


@pytest.mark.parametrize("name", density.__all__)
def test_a_change_of_units_divides_the_density_by_its_determinant(name):
    X, factors = bent(60), np.array([2.0, 0.25])  # powers of two, so that scaling returns the same bits
    here, there = (model(name, max_steps=3).fit(rows) for rows in (X, X * factors))
    expected = here.score_samples(X) - np.log(factors).sum()
    assert there.score_samples(X * factors) == pytest.approx(expected, abs=1e-9)


@parametrize_with_checks([model(name, max_steps=3, width=4) for name in density.__all__])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# 8-bit images


def test_an_8_bit_image_is_scored_at_fixed_noise_in_its_cells(fitted):
    estimator, draw = fitted
    if not estimator.quantized_:
        pytest.skip("learned from numbers")
    X = draw(20)
    noise = estimator.model_.noise.double() * estimator.scaling_.scale
    assert noise.min() >= 0
    assert noise.max() < 1
    points = estimator.score_samples(X + noise.numpy())
    assert estimator.score_samples(X) == pytest.approx(points, rel=1e-5)
    assert estimator.sample(5).dtype == np.uint8


def test_no_model_spends_fewer_bits_on_a_dequantised_image_than_its_entropy_nor_many_more():
    levels = 8
    estimator = model("MAF", max_steps=300).fit(squares(2000, levels, side=2))
    test = dequantize(squares(3000, levels, side=2, seed=1), np.random.default_rng(0))
    bits = bits_per_dimension(estimator.score_samples(test), 4)
    error = 3 * bits.std() / np.sqrt(len(bits))
    assert 3 - error < bits.mean() < 3.2


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_levels_of_any_integer_type_are_those_of_8_bits(dtype):
    levels = squares(40, side=4)
    one, other = (model("MADE", max_steps=5).fit(X) for X in (levels, levels.astype(dtype)))
    assert other.quantized_
    assert np.array_equal(other.score_samples(levels.astype(dtype)), one.score_samples(levels))


def test_images_of_more_levels_are_refused():
    message = (
        "X has images of integers from 0 to 256: MADE takes 8-bit levels, from 0 to 255, or floats; rescale "
        "them."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        model("MADE").fit(np.arange(0, 257).repeat(16).reshape(257, 1, 4, 4))


def test_floats_are_points_not_levels():
    estimator = model("MADE", max_steps=3).fit(squares(60, side=2).astype(np.float32))
    assert not estimator.quantized_
    assert estimator.sample(2).dtype == np.float64
    assert isinstance(estimator.model_.flow.layers[0], Flatten)
    assert not estimator.model_.noise.any()


def test_values_outside_the_levels_seen_have_a_density():
    estimator = model("RealNVP", max_steps=20).fit(squares(60, levels=17, side=2))
    inside, outside = (
        estimator.score_samples(squares(1, 17, 2)),
        estimator.score_samples(squares(1, 1, 2) + 255),
    )
    assert np.isfinite(outside).all()
    assert outside < inside


# What each model says of itself


def dark(n=500, n_levels=20, seed=0):
    """Levels (n, 2, 4, 4), six of ten of them black, and the same dequantised and scaled to [-1, 1]."""
    rng = np.random.default_rng(seed)
    ink = rng.random((n, 2, 4, 4)) ** [[[3]], [[1]]] * n_levels * (rng.random((n, 2, 4, 4)) < 0.4)
    levels = torch.from_numpy(ink.astype(int))
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return levels, (levels + noise) * 2 / n_levels - 1


def test_the_pixels_of_each_channel_become_standard_normal():
    layer, (_, x) = Gaussianization(2, 20).double(), dark()
    z = layer.initialize(x)
    assert torch.equal(z, layer(x)[0])
    for channel in layer(dark(seed=1)[1])[0].unbind(1):
        assert kstest(channel.flatten().numpy(), "norm").pvalue > 0.01


def test_the_density_of_a_normal_quantile_is_the_histogram_of_its_channels_levels():
    layer, (levels, x) = Gaussianization(2, 20).double(), dark()
    layer.initialize(x)
    z, log_abs_det = layer(x)
    log_prob = torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1) + log_abs_det
    expected = torch.zeros(len(x), dtype=torch.float64)
    for channel in levels.unbind(1):
        share = (1 + torch.bincount(channel.flatten(), minlength=20).double()) / (20 + channel.numel())
        expected += ((1 - 2 * MARGIN) * share * 20 / 2).log()[channel].flatten(1).sum(1)
    torch.testing.assert_close(log_prob, expected)


def test_normal_quantiles_go_on_in_a_straight_line_beyond_the_range_of_pixels():
    layer, (_, x) = Gaussianization(2, 20).double(), dark()
    layer.initialize(x)
    beyond = torch.tensor([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0]).double()
    z, log_abs_det = layer(beyond.view(-1, 1, 1, 1).expand(-1, 2, 1, 1))
    assert z[2].tolist() == pytest.approx(-z[3], abs=1e-6)
    assert z[3].flatten().tolist() == pytest.approx([NormalDist().inv_cdf(1 - MARGIN)] * 2, rel=1e-6)
    slopes = torch.diff(z.flatten(1), dim=0)[[0, 1, 3, 4]]
    torch.testing.assert_close(slopes[::2], slopes[1::2])
    torch.testing.assert_close(slopes[::2].log().sum(1), log_abs_det[[0, 5]])


def test_single_precision_is_enough_for_the_quantiles_of_the_darkest_level():
    layer = Gaussianization(1, 256)
    layer.initialize(torch.full((100, 1, 8, 8), -0.999))
    shown = (torch.arange(1, 1000).double() / 1000 / 128 - 1).view(1, 1, -1, 1)
    single, log_abs_det_single = layer(shown.float())
    values, log_abs_det = layer.double()(shown)
    assert (single - values).abs().max() < 1e-3
    assert (log_abs_det_single - log_abs_det).abs().max() < 0.01


def test_a_diverged_pixel_has_no_density_and_stops_nothing():
    z, log_abs_det = Gaussianization(1, 4)(torch.full((1, 1, 1, 1), math.nan))
    assert z.isnan().all()
    assert log_abs_det.isnan().all()


@pytest.mark.parametrize("n_levels", [1, 256])
def test_quantiles_are_inverted_and_their_determinant_is_that_of_autodiff(n_levels):
    layer, (_, x) = Gaussianization(2, n_levels).double(), dark(6, n_levels)
    layer.initialize(x)
    x = torch.cat([x, 3 * x]).requires_grad_()
    z, log_abs_det = layer(x)
    slopes = torch.autograd.grad(z.sum(), x)[0]
    torch.testing.assert_close(log_abs_det, slopes.log().flatten(1).sum(1))
    torch.testing.assert_close(layer.inverse(z), x, rtol=1e-7, atol=1e-7)


def test_the_logit_is_a_straight_line_beyond_the_range_of_pixels():
    x = torch.tensor([[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0]]).double()
    z = Logit()(x)[0][0]
    assert z[3] == 0
    assert z[4].item() == pytest.approx(np.log(0.95 / 0.05))
    slope = 0.45 / (0.95 * 0.05)
    assert torch.diff(z)[[0, 1, 4]].tolist() == pytest.approx([slope] * 3)


def test_the_logit_takes_a_small_margin_where_most_pixels_are_black():
    rng = np.random.default_rng(0)

    def margin(levels):
        shown = (torch.from_numpy(levels) + torch.rand(levels.shape, dtype=torch.float64) - 128) / 128
        layer = Logit()
        z = layer.initialize(shown.float())
        assert torch.equal(z, layer(shown.float())[0])
        return layer.margin.item()

    black = rng.integers(1, 255, (500, 1, 4, 4)) * (rng.random((500, 1, 4, 4)) < 0.2)
    assert margin(black) == pytest.approx(1e-5)
    assert margin(np.clip(rng.normal(128, 40, (500, 1, 4, 4)).round(), 0, 255)) == pytest.approx(0.05)


@pytest.mark.parametrize("margin", LOGIT_MARGINS)
def test_single_precision_is_enough_for_the_logit_of_the_darkest_level(margin):
    layer = Logit()._with(margin)
    shown = (torch.arange(1, 1000).double() / 1000 / 128 - 1).view(-1, 1)
    values, log_abs_det = layer.double()(shown)
    single, log_abs_det_single = layer.float()(shown.float())
    assert (single - values).abs().max() < 0.005
    assert (log_abs_det_single - log_abs_det).abs().max() < 0.005
    assert (single - values).mean().abs() < 1e-4


def test_activation_normalisation_starts_from_the_data():
    torch.manual_seed(0)
    layer, x = ActNorm(3), 5 + 2 * torch.randn(500, 3, 4, 4)
    z = layer.initialize(x)
    assert z.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert z.std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-3)


def test_activation_normalisation_starts_from_rows_all_over_a_sorted_table():
    X = np.sort(np.random.default_rng(0).normal(size=(4000, 2)), axis=0)
    flow = model("RealNVP", max_steps=1, learning_rate=1e-9).fit(X).model_.flow
    assert flow.layers[0].mean.tolist() == pytest.approx([0, 0], abs=0.02)
    assert flow.layers[0].log_std.tolist() == pytest.approx([0, 0], abs=0.02)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("hidden", [[64, 64], [5], [200, 30]])
def test_however_few_units_a_feature_depends_on_those_before_it(index, hidden):
    network = autoregressive(100, index, hidden, spline=False).transform.hyper
    first, *others = (layer.mask.double() for layer in network if hasattr(layer, "mask"))
    paths = functools.reduce(lambda seen, mask: mask @ seen, others, first)  # outputs×inputs
    order = _order(100, index) if index % 2 == 0 else 99 - _order(100, index)
    by_place = paths[::2][order.argsort()][:, order.argsort()] > 0  # of the two parameters the first
    assert not by_place.triu().any()
    apart = sum(math.ceil(98 / (width - 1)) for width in hidden)  # one unit's degree from the next's
    assert all(by_place[i, : max(0, i - apart)].all() for i in range(100))
    assert by_place[99, :99].all()


@pytest.mark.parametrize("build", [autoregressive, coupling])
def test_however_far_outside_a_row_a_layer_with_splines_scales_it_within_bounds(build):
    torch.manual_seed(0)
    layer = build(4, 0, [16, 16], spline=True).double()
    for parameter in layer.parameters():
        parameter.data *= 100
    row = torch.tensor([3e4, -2e4, 5e4, -1e4], dtype=torch.float64)
    scales = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0][0], row).diagonal()
    assert (scales >= SMALLEST_SCALE - 1e-9).all()
    assert (scales <= 1 / SMALLEST_SCALE + 1e-9).all()
    assert (scales != 1).any()


@pytest.mark.parametrize("rotated", [True, False])
def test_linear_maps_start_orthogonal_and_those_of_tables_as_permutations(rotated):
    torch.manual_seed(0)
    weight = InvertibleLinear(6, rotated=rotated).weight().detach()
    assert torch.allclose(weight @ weight.T, torch.eye(6), atol=1e-6)
    assert set(weight.flatten().tolist()) == {0, 1} or rotated
    glow = model("Glow", max_steps=1, learning_rate=1e-9).fit(bent())
    layer = next(layer for layer in glow.model_.flow.layers if isinstance(layer, InvertibleLinear))
    assert layer.weight().detach().abs().round(decimals=6).sum(0).tolist() == [1, 1]


def test_a_table_s_linear_map_stretches_within_bounds():
    layer = InvertibleLinear(4, rotated=False).double()
    for parameter in layer.parameters():
        parameter.data.fill_(1e6)
    x = torch.ones(1, 4, dtype=torch.float64)
    assert layer(x)[1].item() == pytest.approx(4 * math.log(2))
    layer.log_stretch.data.fill_(-1e6)
    assert layer(x)[1].item() == pytest.approx(-4 * math.log(2))


def test_made_is_gaussian_given_the_features_before():
    X = bent()
    X[:, 1] = X[:, 0] + np.random.default_rng(1).normal(size=len(X))  # skewed, it would be bent first
    made = model("MADE", spline=False, max_steps=30).fit(X)
    step = np.linspace(-1, 1, 5)
    along_the_last = made.score_samples(np.c_[np.full(5, 103.0), 103 + step])
    assert np.diff(along_the_last, 2) == pytest.approx(np.diff(along_the_last, 2)[0])  # a parabola


def test_made_with_splines_gives_a_conditional_its_two_modes():
    rng = np.random.default_rng(0)
    first, side, noise = rng.normal(size=1000), rng.choice([-1, 1], 1000), rng.normal(size=1000)
    X = np.c_[first, first + side + 0.1 * noise]
    true = -0.5 * (first**2).mean() + math.log(0.5 / 0.1) - 0.5 * (noise**2).mean() - math.log(2 * math.pi)
    short = {
        spline: true - model("MADE", spline=spline, max_steps=300).fit(X).score_samples(X).mean()
        for spline in (True, False)
    }
    assert short[True] < 0.1
    # One Gaussian over both: of variance 1.01, where the truth has half of the rows in each of 0.01.
    assert short[False] == pytest.approx(math.log(0.5 * math.sqrt(1.01) / 0.1), abs=0.05)


def test_a_long_training_validates_a_hundred_times():
    made = model("MADE", max_steps=1).fit(bent(40))
    for max_steps, every in ((20, 100), (10_000, 100), (30_000, 300)):
        assert made.set_params(max_steps=max_steps)._schedule(32).validate_every == every


def test_validations_take_a_tenth_of_the_training_at_most():
    made = model("MADE", max_steps=1).fit(bent(40)).set_params(max_steps=2000)
    for n_training, batch_size, every in (
        (40_000, 512, 100),
        (40_000, 20, 834),
        (400_000, 20, 834),
        (900, 2, 187),
    ):
        assert made.set_params(batch_size=batch_size)._schedule(n_training).validate_every == every


def test_a_trace_of_many_terms_is_estimated_with_signs_that_stay():
    X = np.random.default_rng(0).normal(size=(40, 70))
    ffjord = model("FFJORD", max_steps=2).fit(X)
    assert not ffjord.model_.recordable  # its steps depend on the rows
    assert np.array_equal(ffjord.score_samples(X), ffjord.score_samples(X))
    probes = ffjord.model_.flow.layers[0].probes
    assert probes.shape == (16, 70)
    assert probes.square().sum(0).tolist() == pytest.approx([1] * 70)  # exact for a diagonal Jacobian
    assert not torch.equal(probes, probes.abs())


def test_a_flowgan_of_infinite_weight_can_be_saved(tmp_path):
    flowgan = model("FlowGAN", likelihood_weight=float("inf"), max_steps=5).fit(bent(100))
    flowgan.save(tmp_path / "model")
    again = invgan.load(tmp_path / "model")
    assert again.likelihood_weight == float("inf")
    assert np.array_equal(again.score_samples(bent(20)), flowgan.score_samples(bent(20)))


def test_flowgan_at_infinite_weight_is_realnvp_and_at_none_never_looks_at_a_likelihood():
    X = bent(100)
    flowgan = model("FlowGAN", likelihood_weight=float("inf"), max_steps=20).fit(X)
    assert np.array_equal(flowgan.score_samples(X), model("RealNVP", max_steps=20).fit(X).score_samples(X))

    def no_rows():
        raise AssertionError("a generated row needs no real one")

    gan = model("FlowGAN", likelihood_weight=0.0, max_steps=20).fit(X)
    assert gan.history_.best_step == 20
    sample = Sample(no_rows, torch.Generator().manual_seed(0), 8, slice(None))
    gan.model_.float().generator_loss(sample)


@pytest.mark.parametrize("weight", [0.25, 1.0, 4.0])
def test_flowgan_weighs_its_two_losses(weight):
    gan = model("FlowGAN", likelihood_weight=weight, max_steps=2).fit(bent(100)).model_.float()
    rows = torch.randn(16, 2)

    def loss(of):
        return of(Sample(lambda: rows, torch.Generator().manual_seed(0), 16, slice(None))).item()

    adversarial = (
        nn.functional.softplus(
            -gan.critic(gan.generate(torch.randn(16, 2, generator=torch.Generator().manual_seed(0))))
        )
        .mean()
        .item()
    )
    expected = (adversarial + weight * loss(gan.likelihood_loss) / 2) / (1 + weight)
    assert loss(gan.generator_loss) == pytest.approx(expected, rel=1e-5)


class Sinh(nn.Module):
    def forward(self, x):
        return x.sinh()


def test_with_the_true_posterior_flowvaes_bound_is_the_density():
    std = 0.5
    linear = nn.Linear(2, 5)
    with torch.no_grad():  # g is the identity, so z | x has mean x / (1 + σ²) and variance σ² / (1 + σ²)
        linear.weight.copy_(-torch.eye(5, 2) * std / np.sqrt(1 + std**2))
        linear.bias.copy_(torch.tensor([0, 0, 1, 1, 0]) * -0.5 * np.log(1 + std**2))
    encoder = nn.Sequential(Sinh(), linear)  # it is given arsinh x
    vae = FlowVAEModel(Chain([ActNorm(2)]), (2,), 0.0, encoder).double()
    vae.log_std.data.fill_(np.log(std))
    rows = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.distributions.Normal(0, np.sqrt(1 + std**2)).log_prob(rows).sum(1)
    torch.testing.assert_close(vae.log_prob(rows), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vae.log_weights(rows, vae.draws[:1].expand(1, 20, 2))[0], expected)


def test_flowvaes_weights_are_the_density_on_average_whatever_its_encoder_says():
    estimator = model("FlowVAE", max_steps=5, batch_size=16).fit(bent())
    vae, noise = estimator.model_, torch.Generator().manual_seed(0)
    vae.log_std.fill_(np.log(0.4))
    for parameter in vae.encoder.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64))
    rows = torch.tensor([[0.3, -0.5], [1.0, 0.2], [-1.5, 1.0]]).double()

    def mean(weights):
        return weights.mean(0), weights.std(0) / len(weights) ** 0.5

    draws = torch.randn(100_000, 1, 2, generator=noise, dtype=torch.float64)
    by_encoder, error = mean(vae.log_weights(rows, draws.expand(-1, 3, -1)).exp())
    generated = vae.flow.inverse(torch.randn(100_000, 2, generator=noise, dtype=torch.float64))
    around = torch.distributions.Normal(generated[:, None], 0.4)
    by_prior, other_error = mean(around.log_prob(rows).sum(2).exp())  # p(x) = E N(x; g(z), σ² I)
    assert ((by_encoder - by_prior).abs() < 4 * (error.square() + other_error.square()).sqrt()).all()
    assert (error + other_error < 0.03 * by_prior).all()


def test_flowvaes_bound_is_the_same_however_its_draws_are_divided(monkeypatch):
    estimator = model("FlowVAE", max_steps=2, batch_size=16).fit(squares(60, side=8))
    whole = estimator.score_samples(squares(4, side=8, seed=1))
    monkeypatch.setattr(variational, "IMAGES_AT_ONCE", 1)
    np.testing.assert_allclose(estimator.score_samples(squares(4, side=8, seed=1)), whole, rtol=1e-12)


def test_skewed_columns_are_as_near_as_normal_ones():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(3000, 2))
    incomes = np.exp(2 * normal)  # log p(incomes) = log p(normal) − Σ (2 normal + log 2)
    truth = torch.distributions.Normal(0, 1).log_prob(torch.tensor(normal)).sum(1).numpy()
    truth = truth - (2 * normal + np.log(2)).sum(1)
    found = model("MADE", max_steps=300).fit(incomes[:2000]).score_samples(incomes[2000:])
    assert (truth[2000:] - found).mean() < 0.2  # without it, 5.8


def test_a_far_row_is_scored_in_good_time_and_is_unlikely(fitted):
    estimator, draw = fitted
    if estimator.quantized_:
        pytest.skip("8-bit images have no far values")
    score = estimator.score_samples(np.array([[1e9, -1e9]]))
    assert np.isfinite(score)
    assert score < estimator.score_samples(draw(20)).min()


# What goes wrong


class Explosive(Bijection):
    def forward(self, x):
        return x * torch.inf, x.sum(1)

    def inverse(self, z):
        return z


def test_a_flow_that_diverges_names_the_step_and_the_layer(monkeypatch):
    estimator = model("RealNVP", max_steps=40)
    layers = type(estimator)._layers
    monkeypatch.setattr(type(estimator), "_layers", lambda self: [*layers(self)[:2], Chain([Explosive()])])
    message = (
        r"^the negative log-likelihood loss became (nan|inf) at step 1; try a smaller learning_rate, another "
        r"loss, or look for extreme values in the data\. layer 1 of 1 \(Explosive\) in layer 3 of 3 "
        r"\(Chain\) failed first\.$"
    )
    with pytest.raises(TrainingDivergedError, match=message):
        estimator.fit(bent(100))


def test_a_continuous_flow_that_is_not_finite_says_so_at_once():
    estimator = model("FFJORD", max_steps=3).fit(bent(100))
    layer, times = estimator.model_.flow.layers[0].double().train(), []
    layer.velocity.net[0].weight.data[0, 0] = torch.nan
    velocity = layer._velocity_and_trace
    layer._velocity_and_trace = lambda t, *rest: times.append(t) or velocity(t, *rest)
    for training in (True, False):
        z, log_abs_det = layer.train(training)(torch.zeros(5, 2, dtype=torch.float64))
        assert z.isnan().all()
        assert log_abs_det.isnan().all()
    assert len(times) < 100  # a few step sizes, each too long, and no more


def test_a_learning_rate_that_is_too_large_is_named(monkeypatch):
    with pytest.raises(
        TrainingDivergedError, match=r"at step \d+; try a smaller learning_rate.* failed first"
    ):
        model("RealNVP", learning_rate=1e30).fit(bent(100))


def test_without_zuko_a_model_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    import_zuko.cache_clear()
    message = "This model needs zuko, which is not installed: pip install 'invgan[density]'."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        model("MAF").fit(bent(50))
    monkeypatch.undo()
    import_zuko.cache_clear()


def test_zuko_leaves_the_checks_of_torch_distributions_on():
    import_zuko()
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("MAF", {"n_layers": 0}, "The 'n_layers' parameter of MAF must be"),
        ("MADE", {"width": 0}, "The 'width' parameter of MADE must be"),
        ("Glow", {"spline": "yes"}, "The 'spline' parameter of Glow must be"),
        ("FlowGAN", {"likelihood_weight": -1.0}, "The 'likelihood_weight' parameter of FlowGAN must be"),
        ("FlowGAN", {"loss": "wasserstein"}, "The 'loss' parameter of FlowGAN must be"),
        ("RealNVP", {"learning_rate": 0.0}, "The 'learning_rate' parameter of RealNVP must be"),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)} [^\n]* Got [^\n]* instead\.$"):
        model(name, **parameters).fit(bent(50))


def test_splines_for_convolutions_are_refused():
    message = (
        "The 'spline' parameter of Glow must be False for images of shape (1, 16, 16), whose couplings are "
        "convolutions. Got True instead."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        model("Glow", spline=True).fit(squares(20))


def test_a_count_of_samples_out_of_range_is_refused(fitted):
    name = type(fitted[0]).__name__
    message = (
        f"The 'n_samples' parameter of {name}.sample must be an int in the range [1, inf). Got 0 instead."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fitted[0].sample(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(data_shape=[3]),
        lambda m: m.update(data_shape=[10**30]),
        lambda m: m["parameters"].update(n_layers=10**9),
        lambda m: m["parameters"].update(width=10**9),
        lambda m: m["parameters"].update(width=8),
    ],
)
def test_a_model_file_of_another_size_is_refused_before_memory_is_taken(change, tmp_path):
    model("MAF", max_steps=2).fit(bent(50)).save(tmp_path / "m")
    saved = artifact.read(tmp_path / "m")
    metadata, tensors = copy.deepcopy(saved.metadata), dict(saved.tensors)
    change(metadata)
    artifact.write(tmp_path / "m", kind="model", metadata=metadata, tensors=tensors)
    with pytest.raises(InputError, match="this model file does not describe a model that fits it"):
        invgan.load(tmp_path / "m")


def test_a_model_file_of_too_many_levels_is_refused_before_memory_is_taken(tmp_path):
    model("MADE", max_steps=1).fit(squares(60, side=2)).save(tmp_path / "saved")
    saved = artifact.read(tmp_path / "saved", kind="model")
    tensors = saved.tensors | {"model.level_width": torch.tensor(1e-30)}
    artifact.write(tmp_path / "forged", kind="model", metadata=saved.metadata, tensors=tensors)
    with pytest.raises(InputError, match="its images have more than 256 levels"):
        invgan.load(tmp_path / "forged")


@pytest.mark.parametrize("name", density.__all__)
@pytest.mark.parametrize(
    "X",
    [np.ones((40, 3)), np.c_[bent(40), np.full(40, 3.0)], bent(40)[:, :1], np.repeat(bent(4), 10, axis=0)],
    ids=["all constant", "a constant column", "one column", "duplicates"],
)
def test_degenerate_tables_have_finite_scores(name, X):
    assert np.isfinite(model(name, max_steps=5).fit(X).score_samples(X)).all()


def test_fitting_and_showing_a_model_draws_nothing_from_the_global_generator(tmp_path):
    before = torch.random.get_rng_state()
    estimator = model("RealNVP", max_steps=2, checkpoint=str(tmp_path / "c")).fit(bent(50))
    repr(estimator.model_)
    estimator.sample(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_levels_are_levels_also_in_a_list_and_as_truth_values():
    X = np.random.default_rng(0).integers(0, 2, size=(40, 1, 4, 4))
    made = model("MADE", max_steps=5).fit(X)
    expected = made.score_samples(X)
    for other in (X.tolist(), X.astype(bool), X.astype(np.uint8)):
        assert model("MADE", max_steps=5).fit(other).quantized_
        np.testing.assert_array_equal(made.score_samples(other), expected)
