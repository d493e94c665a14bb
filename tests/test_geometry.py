"""Volume elements and Jacobians against closed forms, against autograd, and where precision is short."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev, vmap

from invgan import InputError, geometry
from invgan.geometry.volumes import WELL_CONDITIONED
from invgan.networks import RBFVariance, build, conv_generator, initialize


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sphere(angles):
    theta, phi = angles.unbind(1)
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)


def orthogonal(size, seed=0):
    return torch.linalg.qr(random(size, size, seed=seed))[0]


# Closed forms


@given(theta=st.floats(1e-3, math.pi - 1e-3), phi=st.floats(-10, 10))
@settings(max_examples=50, deadline=None)
def test_a_spheres_log_volume_is_log_sin_theta(theta, phi):
    found = geometry.log_volume(sphere, torch.tensor([[theta, phi]], dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(math.sin(theta)), abs=1e-12)


@given(u=st.floats(-10, 10), v=st.floats(-10, 10), outer=st.floats(1.5, 9), inner=st.floats(0.1, 1))
@settings(max_examples=50, deadline=None)
def test_a_torus_log_volume_is_log_of_its_radii(u, v, outer, inner):
    def torus(angles):
        u, v = angles.unbind(1)
        ring = outer + inner * v.cos()
        return torch.stack([ring * u.cos(), ring * u.sin(), inner * v.sin()], 1)

    found = geometry.log_volume(torus, torch.tensor([[u, v]], dtype=torch.float64))
    assert found.item() == pytest.approx(math.log(inner * (outer + inner * math.cos(v))), abs=1e-12)


@pytest.mark.parametrize(("d", "n_features"), [(1, 1), (1, 5), (3, 3), (4, 9)])
def test_an_affine_maps_metric_is_its_gram_matrix_everywhere(d, n_features):
    a, z = random(n_features, d), random(6, d, seed=1)
    gram = a.T @ a
    assert torch.allclose(geometry.metric(lambda z: z @ a.T + 3, z), gram.expand(6, d, d), rtol=1e-13)
    found = geometry.log_volume(lambda z: z @ a.T + 3, z)
    assert torch.allclose(found, 0.5 * torch.logdet(gram).expand(6), rtol=1e-12)


def test_singular_values_are_those_of_the_jacobian_in_descending_order():
    a = orthogonal(5)[:, :3] @ torch.diag(torch.tensor([0.5, 7.0, 2.0], dtype=torch.float64)) @ orthogonal(3)
    at = geometry.volume(lambda z: z @ a.T, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.allclose(at.singular_values, torch.tensor([[7.0, 2.0, 0.5]] * 2, dtype=torch.float64))
    assert torch.allclose(at.log_volume.exp(), torch.full((2,), 7.0, dtype=torch.float64))
    assert at.rank.tolist() == [3, 3]


# Invariance


def test_an_isometry_of_the_data_space_leaves_metric_and_volume_unchanged():
    q, z = orthogonal(3), torch.rand(20, 2, dtype=torch.float64) + 0.5
    moved = lambda z: sphere(z) @ q.T - 4  # noqa: E731
    assert torch.allclose(geometry.metric(moved, z), geometry.metric(sphere, z), atol=1e-13)
    assert torch.allclose(geometry.log_volume(moved, z), geometry.log_volume(sphere, z), atol=1e-13)


def test_reparametrising_the_latents_adds_the_log_determinant_of_the_change():
    def change(w):  # a smooth bijection of the plane with a known, position-dependent determinant
        return torch.stack([w[:, 0].sinh(), w[:, 1] + w[:, 0] ** 2], 1)

    w = random(30, 2)
    generator = build((6,), 2).generator.double()
    initialize(generator, torch.Generator().manual_seed(0))
    found = geometry.log_volume(lambda w: generator(change(w)), w)
    assert torch.allclose(found, geometry.log_volume(generator, change(w)) + w[:, 0].cosh().log(), atol=1e-11)


def test_a_scale_is_that_of_a_maps_outputs_for_all_rows_or_for_each():
    f, z, scale = build((7,), 3).generator.double(), random(6, 3), random(6, 7, seed=1)
    scale[:, 2] = 0
    found = geometry.volume(f, z, scale=scale, max_bytes=5_000)
    for row in range(6):
        expected = geometry.volume(lambda z, row=row: f(z) * scale[row], z[row : row + 1]).log_volume
        assert torch.allclose(found.log_volume[row], expected, rtol=1e-12)
    shared = geometry.volume(f, z, scale=scale[0])
    assert torch.allclose(shared.log_volume, geometry.log_volume(lambda z: f(z) * scale[0], z), rtol=1e-12)


# Jacobians


def mlp_generator():
    return build((2, 3, 4), 5).generator, 5


def convolutional_generator():
    return conv_generator(4, (2, 9, 12)), 4


@pytest.mark.parametrize("make", [mlp_generator, convolutional_generator])
def test_the_jacobian_is_reverse_mode_autograds(make):
    generator, d = make()
    initialize(generator, torch.Generator().manual_seed(0))
    generator, z = generator.double().eval(), random(3, d)
    expected = vmap(jacrev(lambda one: generator(one[None])[0].flatten()))(z)
    found = geometry.jacobian(generator, z)
    assert found.shape == (3, expected.shape[1], d)
    assert not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-14)


def test_batch_normalisation_in_evaluation_mode_has_the_jacobian_of_its_affine_map():
    layer = nn.BatchNorm1d(3).double().eval()
    layer.running_var.copy_(torch.tensor([1.0, 4.0, 9.0]))
    expected = torch.diag((layer.running_var + layer.eps).rsqrt())
    assert torch.allclose(geometry.jacobian(layer, random(2, 3)), expected.expand(2, 3, 3))


def test_the_variance_networks_forward_mode_derivative_is_its_reverse_mode_one():
    sigma = RBFVariance(3, 7, 5).double()
    sigma.centers.copy_(random(5, 3))
    z = random(4, 3, seed=1)
    expected = vmap(jacrev(lambda one: sigma(one[None])[0]))(z)
    assert torch.allclose(geometry.jacobian(sigma, z), expected, atol=1e-14)


# Precision and rank


def ill_conditioned(d=6, n_features=20):
    """A float32 matrix with condition number 1e5."""
    scales = torch.logspace(0, -5, d, dtype=torch.float64)
    return (orthogonal(n_features)[:, :d] @ torch.diag(scales) @ orthogonal(d, seed=1)).float()


def test_condition_1e5_in_single_precision_costs_less_than_a_thousandth_of_a_nat():
    a = ill_conditioned()
    truth = torch.linalg.svdvals(a.double())
    assert truth[0] / truth[-1] == pytest.approx(1e5, rel=0.05)
    at = geometry.volume(lambda z: z @ a.T, torch.ones(1, 6))
    assert at.log_volume.item() == pytest.approx(truth.log().sum().item(), abs=1e-3)
    assert at.rank.item() == 6
    gram = (a.T @ a).double()  # what a single-precision Gram matrix would have made of it
    assert abs(0.5 * torch.linalg.slogdet(gram)[1] - truth.log().sum()) > 0.1


def test_a_curved_surface_of_condition_1e5_keeps_its_volume_in_single_precision():
    a, scales = orthogonal(20)[:, :6], torch.logspace(0, -5, 6, dtype=torch.float64)

    def surface(z):
        return torch.sin(z * scales.to(z)) @ a.T.to(z)

    z = random(4, 6)
    truth = (scales * (z * scales).cos()).abs().log().sum(1)
    assert torch.allclose(geometry.log_volume(surface, z.float()), truth, atol=1e-3)


class IgnoresOneLatent(nn.Module):
    """A generator that depends on all latents but the last."""

    def __init__(self):
        super().__init__()
        self.inner = build((8,), 2).generator
        initialize(self.inner, torch.Generator().manual_seed(0))

    def forward(self, z):
        return self.inner(z[:, :-1])


def test_an_ignored_latent_is_minus_infinite_volume_and_a_missing_rank():
    at = geometry.volume(IgnoresOneLatent().double(), random(5, 3))
    assert at.log_volume.tolist() == [-math.inf] * 5
    assert at.rank.tolist() == [2] * 5


def test_more_latents_than_features_have_no_volume():
    at = geometry.volume(lambda z: z[:, :2] + z[:, 2:], random(3, 4))
    assert at.singular_values.shape == (3, 4)
    assert at.log_volume.tolist() == [-math.inf] * 3
    assert at.rank.tolist() == [2] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n_features", "d"), [(8, 3), (2, 6)])
def test_lemma_1_sigmas_tangents_restore_full_rank_from_d_plus_1_centres(dtype, n_features, d):
    generator = nn.Linear(d, n_features)
    nn.init.zeros_(generator.weight)  # the worst case: no tangent of its own at all
    sigma = RBFVariance(d, max(n_features, d), d + 1)
    sigma.centers.copy_(random(d + 1, d))
    sigma.rates.fill_(0.1)
    sigma.weight.data.copy_(random(max(n_features, d), d + 1, seed=1))
    f = nn.ModuleList([generator, sigma]).to(dtype)
    z = random(10, d, seed=2).to(dtype)
    assert geometry.volume(f[0], z).rank.tolist() == [0] * 10
    at = geometry.volume(lambda z: torch.cat([f[0](z), f[1](z)], 1), z)
    assert at.log_volume.isfinite().all()
    assert at.rank.tolist() == [d] * 10


def test_with_d_centres_only_sigma_loses_rank_on_their_common_hyperplane():
    sigma = RBFVariance(3, 8, 3).double()
    sigma.centers.copy_(random(3, 3))
    sigma.weight.data.copy_(random(8, 3, seed=1))
    between = sigma.centers.mean(0, keepdim=True)
    assert geometry.volume(sigma, between).rank.tolist() == [2]
    assert geometry.volume(sigma, between + 0.5).rank.tolist() == [3]


# Single precision, evaluated again in double where it has to be


def planted(condition, seed):
    """A network in float32 whose Jacobians have about the given condition number."""
    draws = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 64), nn.Softplus(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 200))
    initialize(net, draws)
    scales = torch.logspace(0, -math.log10(condition), 8, dtype=torch.float64)
    net[0].weight.data = (orthogonal(64, seed)[:, :8] @ torch.diag(scales) @ orthogonal(8, seed)).float()
    return net


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e5])
def test_a_float32_networks_log_volume_is_float64_autodiffs(condition):
    for seed in range(5):
        net, z = planted(condition, seed), random(8, 8, seed=seed)
        found = geometry.volume(net, z.float())
        precise = net.double()
        expected = vmap(jacrev(lambda one, net=precise: net(one[None])[0]))(z.float().double())
        singular_values = torch.linalg.svdvals(expected)
        assert (singular_values[:, 0] / singular_values[:, -1]).median() > 0.3 * condition
        assert torch.allclose(found.log_volume, singular_values.log().sum(1), rtol=0, atol=1e-3)


def test_a_row_evaluated_again_in_double_does_not_depend_on_its_company():
    net, z = planted(1.1e4, 0), random(64, 8).float()
    together = geometry.volume(net, z)
    conditions = together.singular_values[:, 0] / together.singular_values[:, -1]
    assert 5 < (conditions > WELL_CONDITIONED).sum() < 59
    assert torch.equal(geometry.volume(net, z.flip(0)).log_volume.flip(0), together.log_volume)
    assert next(net.parameters()).dtype == torch.float32  # the given module stays as it is


# Lanczos quadrature


def estimate(f, z, **settings):
    return geometry.estimate_log_volume(f, z, generator=torch.Generator().manual_seed(0), **settings)


@pytest.mark.parametrize("d", [1, 2, 12])
def test_lanczos_quadrature_of_a_diagonal_metric_is_exact(d):
    scales = random(d).exp()
    found = estimate(lambda z: z * scales, random(3, d), n_steps=12)
    assert torch.allclose(found.log_volume, scales.log().sum().expand(3), rtol=1e-10)
    assert found.standard_error.max() < 1e-9


def test_lanczos_quadrature_of_an_isometry_is_zero_after_one_step():
    a = orthogonal(30)[:, :20] * 3
    found = estimate(lambda z: z @ a.T, random(2, 20), n_steps=5)
    assert torch.allclose(found.log_volume, torch.full((2,), 20 * math.log(3), dtype=torch.float64))
    assert found.standard_error.max() < 1e-9


@pytest.mark.parametrize("n_steps", [15, 60])
def test_lanczos_quadrature_errs_as_much_as_it_says(n_steps):
    generator = nn.Sequential(nn.Linear(60, 90), nn.Softplus(), nn.Linear(90, 150))
    initialize(generator, torch.Generator().manual_seed(0))
    f, z = generator.double(), random(30, 60)
    found, exact = estimate(f, z, n_probes=32, n_steps=n_steps), geometry.log_volume(f, z)
    standardized = (found.log_volume - exact) / found.standard_error
    assert standardized.abs().max() < 4
    assert found.standard_error.max() < 0.06 * exact.abs().min()


def test_lanczos_quadrature_does_not_depend_on_the_blocks_nor_on_other_rows():
    f, z = build((40,), 16).generator.double(), random(9, 16)
    together = estimate(f, z)
    assert torch.allclose(estimate(f, z, max_bytes=1).log_volume, together.log_volume, rtol=1e-9)
    assert torch.allclose(estimate(f, z[4:5]).log_volume, together.log_volume[4:5], rtol=1e-9)


@pytest.mark.parametrize("name", ["n_probes", "n_steps"])
def test_lanczos_quadrature_refuses_too_few_probes_or_steps(name):
    with pytest.raises(InputError) as raised:
        estimate(torch.sin, random(1, 2), **{name: 1})
    assert str(raised.value) == (
        f"The {name!r} parameter of estimate_log_volume must be an int of at least 2. Got 1 instead."
    )


@pytest.mark.parametrize(("d", "n_features"), [(5, 15), (7, 15), (15, 31), (5, 5), (7, 3)])
def test_a_volume_does_not_depend_on_the_rows_around_it(d, n_features):
    weight = torch.randn(n_features, generator=torch.Generator().manual_seed(0)).double()
    one, other = torch.arange(n_features) % d, (torch.arange(n_features) + 1) % d

    def f(z):
        return torch.tanh(weight * z[:, one]) + torch.sin(z[:, other])

    z = torch.randn(60, d, generator=torch.Generator().manual_seed(1)).double()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    together, mixed = geometry.volume(f, z), geometry.volume(f, z[order])
    assert together.singular_values.shape == (60, d)
    assert torch.equal(mixed.singular_values, together.singular_values[order])
