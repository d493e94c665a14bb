"""Bits per dimension where the answer is known; the paper's revised metric and what it is made of."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from invgan.errors import InputError
from invgan.geometry import log_volume
from invgan.likelihood.bits import bits_per_dimension, dequantize, revised_bits_per_dimension
from invgan.likelihood.pointwise import log_prior

LEVELS = np.arange(256)
CELL = (np.arange(400) + 0.5) / 400  # the middles of even parts of [0, 1), for means over u


# Known answers


@pytest.mark.parametrize("n_dimensions", [1, 784, 3072])
def test_uniform_noise_over_256_levels_is_exactly_8_bits(n_dimensions):
    images = np.random.default_rng(0).integers(0, 256, (5, n_dimensions), dtype=np.uint8)
    rows = dequantize(images, np.random.default_rng(1))
    log_likelihood = stats.uniform(0, 256).logpdf(rows).sum(1)
    assert bits_per_dimension(log_likelihood, n_dimensions) == pytest.approx(8, rel=1e-12)


@pytest.mark.parametrize(("n_levels", "bits"), [(2, 1), (32, 5), (256, 8), (65536, 16)])
def test_the_uniform_density_on_the_unit_interval_has_the_bits_of_its_levels(n_levels, bits):
    assert bits_per_dimension(0.0, 7, level_width=1 / n_levels) == pytest.approx(bits, rel=1e-15)


def test_a_standard_normal_has_its_differential_entropy_on_average():
    z = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None]
    bits = bits_per_dimension(stats.norm.logpdf(z).sum(1), 1).mean()
    assert bits == pytest.approx(0.5 * math.log2(2 * math.pi * math.e), abs=1e-3)


def test_a_density_constant_on_each_level_has_the_discrete_models_bits():
    mass = np.random.default_rng(0).dirichlet(np.ones(256))
    images = np.random.default_rng(1).integers(0, 256, (50, 6), dtype=np.uint8)
    rows = dequantize(images, np.random.default_rng(2))
    log_density = np.log(mass)[np.floor(rows).astype(int)].sum(1)
    assert np.allclose(bits_per_dimension(log_density, 6), -np.log2(mass[images]).mean(1), rtol=1e-13)
    entropy = stats.entropy(mass, base=2)
    expected = (mass * bits_per_dimension(np.log(mass), 1)).sum()
    assert expected == pytest.approx(entropy, rel=1e-12)


# Bounds


@given(
    center=st.floats(0, 256),
    width=st.floats(0.3, 60),
    share=st.floats(0.05, 0.95),
)
@settings(max_examples=30, deadline=None)
def test_dequantised_bits_are_never_below_the_discrete_models(center, width, share):
    def density(x):
        return share * stats.norm.pdf(x, center, width) + (1 - share) / 256

    cells = density(LEVELS[:, None] + CELL)  # 256×400
    dequantised = bits_per_dimension(np.log(cells), 1).mean(1)
    discrete = -np.log2(cells.mean(1))  # the mass of each level
    assert (dequantised >= discrete - 1e-12).all()
    assert dequantised.max() > discrete.min()


def test_no_density_beats_the_entropy_of_discrete_data():
    mass = stats.binom(255, 0.3).pmf(LEVELS)
    entropy = stats.entropy(mass, base=2)
    fitted = stats.norm(255 * 0.3 + 0.5, math.sqrt(255 * 0.3 * 0.7 + 1 / 12))
    bits = bits_per_dimension(fitted.logpdf(LEVELS[:, None] + CELL), 1).mean(1)
    assert entropy < (mass * bits).sum() < entropy + 0.01
    spike = stats.norm(76, 1e-6)  # without noise, a density on the level itself has no floor
    assert bits_per_dimension(spike.logpdf(76), 1) < 0 < entropy


# Units


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), n_dimensions=st.integers(1, 4000))
@settings(max_examples=50, deadline=None)
def test_bits_do_not_depend_on_the_units_of_the_data(scale, shift, n_dimensions):
    x = np.array([3.25, 120.5, 254.0])
    in_levels = n_dimensions * stats.norm(128, 40).logpdf(x)
    rescaled = n_dimensions * stats.norm(scale * 128 + shift, scale * 40).logpdf(scale * x + shift)
    bits = bits_per_dimension(in_levels, n_dimensions)
    assert np.allclose(bits_per_dimension(rescaled, n_dimensions, level_width=scale), bits, rtol=1e-9)
    assert np.allclose(
        bits_per_dimension(in_levels - n_dimensions * math.log(scale), n_dimensions, level_width=scale), bits
    )


def test_rows_keep_their_place_and_their_infinities():
    bits = bits_per_dimension([[0.0, -math.inf], [math.nan, -10 * math.log(2)]], 5)
    assert np.array_equal(bits, [[0.0, math.inf], [math.nan, 2.0]], equal_nan=True)


# Dequantisation


def test_dequantised_levels_stay_in_their_cells_and_below_256():
    images = np.full((200, 1000), 255, np.uint8)
    images[::2] = 0
    rows = dequantize(images, np.random.default_rng(0))
    assert rows.dtype == np.float64
    assert np.array_equal(np.floor(rows), images)


def test_the_noise_is_uniform_and_the_generators_own():
    rows = dequantize(np.zeros((100, 100), np.uint8), np.random.default_rng(3))
    assert stats.kstest(rows.ravel(), "uniform").pvalue > 0.01
    assert np.array_equal(rows, dequantize(np.zeros((100, 100), np.uint8), np.random.default_rng(3)))


def test_the_largest_draw_of_noise_does_not_reach_the_next_level():
    class Largest:
        def random(self, shape, dtype):
            return np.full(shape, np.nextafter(dtype(1), dtype(0)))

    assert dequantize(np.array([255], np.uint8), Largest())[0] < 256


# The paper's metric


@pytest.mark.parametrize("latent_dim", [1, 10, 200])
def test_the_constant_of_the_revised_metric_is_the_entropy_of_the_prior(latent_dim):
    z = torch.randn(2000, latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z / z.square().mean().sqrt()  # the prior's second moment, exactly
    revised = revised_bits_per_dimension(log_prior(z).numpy(), np.zeros(2000), latent_dim, 3072)
    assert revised.mean() == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5, rel=1e-12)


def test_the_revised_metric_of_a_flow_is_ln_2_times_its_bits():
    a = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior, volume = log_prior(z).numpy(), log_volume(lambda z: z @ a.T, z).numpy()
    exact = stats.multivariate_normal(np.zeros(4), (a @ a.T).numpy()).logpdf((z @ a.T).numpy())
    revised = revised_bits_per_dimension(prior, volume, 4, 4)
    assert np.allclose(revised, math.log(2) * bits_per_dimension(exact, 4), rtol=1e-10)


def test_scaling_the_data_adds_d_over_n_dimensions_of_its_logarithm_to_the_revised_metric():
    a = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def revised(scale):
        volume = log_volume(lambda z: scale * z @ a.T, z).numpy()
        return revised_bits_per_dimension(log_prior(z).numpy(), volume, 3, 30)

    assert np.allclose(revised(255.0) - revised(1.0), 3 / 30 * math.log(255), rtol=1e-10)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: bits_per_dimension(0.0, 0),
            "The 'n_dimensions' parameter of bits_per_dimension must be positive. Got 0 instead.",
        ),
        (
            lambda: bits_per_dimension(0.0, 1, level_width=-0.5),
            "The 'level_width' parameter of bits_per_dimension must be positive. Got -0.5 instead.",
        ),
        (
            lambda: revised_bits_per_dimension(0.0, 0.0, 0, 4),
            "The 'latent_dim' parameter of revised_bits_per_dimension must be positive. Got 0 instead.",
        ),
        (
            lambda: dequantize(np.zeros((2, 2)), np.random.default_rng(0)),
            "The 'images' parameter of dequantize must be an array of uint8, levels of 0 to 255. "
            "Got float64 instead.",
        ),
    ],
)
def test_a_wrong_parameter_is_named_in_one_line(call, message):
    with pytest.raises(InputError) as raised:
        call()
    assert str(raised.value) == message
