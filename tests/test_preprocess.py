"""Scaling: its inverse, its determinant, and columns that leave nothing to scale."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacrev

from invgan.preprocess import AffineScaling, UnskewedScaling


def table(n=50, d=4, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows * torch.logspace(-6, 6, d) + torch.linspace(-1e3, 1e3, d)


def images(dtype=torch.float64):
    return torch.randint(3, 200, (20, 2, 3, 5), generator=torch.Generator().manual_seed(0)).to(dtype)


FITTED = [(AffineScaling.standardize, table()), (AffineScaling.to_unit_range, images())]


@pytest.mark.parametrize(("fit", "rows"), FITTED)
def test_inverse_undoes_forward(fit, rows):
    scaling = fit(rows)
    assert torch.allclose(scaling.inverse(scaling(rows)), rows, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(("fit", "rows"), FITTED)
def test_the_derivatives_product_is_autograds_determinant(fit, rows):
    scaling, row = fit(rows), rows[0]
    jacobian = jacrev(lambda x: scaling(x[None])[0])(row).reshape(row.numel(), -1)
    expected = torch.linalg.slogdet(jacobian)[1].item()
    assert scaling.log_derivative(rows).sum(-1).item() == pytest.approx(expected, rel=1e-12)


def test_standardized_columns_have_mean_0_and_standard_deviation_1():
    scaled = AffineScaling.standardize(table())(table())
    assert torch.allclose(scaled.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(scaled.std(0, correction=0), torch.ones(4, dtype=torch.float64))


def test_unit_range_spans_minus_1_to_1_with_one_scale_for_all_pixels():
    scaling = AffineScaling.to_unit_range(images())
    scaled = scaling(images())
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert scaling.scale.shape == ()


@given(st.floats(-1e18, 1e18), st.integers(2, 300))
def test_a_constant_column_keeps_its_unit_whatever_its_value(value, n):
    rows = torch.full((n, 1), value, dtype=torch.float64)
    scaling = AffineScaling.standardize(rows)
    assert scaling.scale.tolist() == [1]
    assert scaling.log_derivative(rows).tolist() == [0]
    assert scaling(rows).abs().max() <= 1e-12 * abs(value)


def test_constant_images_keep_their_unit():
    scaling = AffineScaling.to_unit_range(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8))
    assert scaling(torch.tensor([[[[7, 8]]]])).tolist() == [[[[0, 1]]]]


def test_integers_become_single_precision_and_floats_keep_theirs():
    scaling = AffineScaling.to_unit_range(images(torch.uint8))
    assert scaling(images(torch.uint8)).dtype == torch.float32
    assert scaling(images(torch.float32)).dtype == torch.float32
    assert scaling(images()).dtype == torch.float64
    assert scaling.log_derivative(images()).tolist() == pytest.approx([-math.log((199 - 3) / 2)] * 30)


def test_the_state_is_the_whole_of_a_scaling():
    fitted = AffineScaling.standardize(table())
    state = fitted.state_dict()
    assert sorted(state) == ["scale", "shift"]
    again = AffineScaling(state["shift"], state["scale"], (4,))
    assert torch.equal(again(table(seed=1)), fitted(table(seed=1)))
    assert torch.equal(again.log_derivative(table()), fitted.log_derivative(table()))


def skewed(n=400):
    """A normal, a log-normal, a Cauchy and a two-valued column."""
    draws = torch.Generator().manual_seed(1)
    normal = torch.randn(n, 4, generator=draws, dtype=torch.float64)
    return torch.stack(
        [normal[:, 0], (2 * normal[:, 1]).exp(), normal[:, 1] / normal[:, 2], (normal[:, 3] > 1).double()], 1
    )


def test_only_skewed_and_heavy_tailed_columns_are_bent():
    scaling = UnskewedScaling.standardize(skewed())
    assert (scaling.width > 0).tolist() == [False, True, True, False]
    u = scaling(skewed())
    assert u.mean(0).abs().max() < 1e-9
    assert (u.std(0, correction=0) - 1).abs().max() < 1e-9
    assert abs(scipy.stats.skew(skewed()[:, 1])) > 5
    assert abs(scipy.stats.skew(u[:, 1])) < 1


def test_the_log_derivative_is_autodiffs_far_outside_too():
    scaling = UnskewedScaling.standardize(skewed())
    rows = torch.cat([skewed()[:20], torch.tensor([[1e3, -1e6, 1e9, 5.0], [-1e3, 1e12, -1e9, 0.0]])])
    jacobian = torch.func.vmap(torch.func.jacrev(scaling))(rows)
    expected = jacobian.diagonal(dim1=1, dim2=2).log()
    torch.testing.assert_close(scaling.log_derivative(rows), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scaling.inverse(scaling(rows)), rows, rtol=1e-9, atol=1e-9)


def test_a_change_of_a_columns_unit_changes_nothing_but_the_derivative():
    factors = torch.tensor([1e3, 1e-6, 7.0, 1.0], dtype=torch.float64)
    scaling, other = UnskewedScaling.standardize(skewed()), UnskewedScaling.standardize(skewed() * factors)
    torch.testing.assert_close(other(skewed() * factors), scaling(skewed()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        other.log_derivative(skewed() * factors), scaling.log_derivative(skewed()) - factors.log()
    )
