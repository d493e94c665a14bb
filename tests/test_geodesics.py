"""Inner products, curve lengths and geodesics against the sphere, the torus and flat surfaces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from invgan import geometry
from invgan.errors import InputError
from invgan.likelihood import StochasticGenerator
from invgan.networks import initialize, mlp

N_CHORDS = 32


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def sphere(angles):
    theta, phi = angles.unbind(1)
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)


def stereographic(z):
    square = z.square().sum(1, keepdim=True)
    return torch.cat([2 * z, square - 1], 1) / (square + 1)


OUTER, INNER = 2.0, 0.75
PLANE = random(4, 2, seed=9)


def torus(angles):
    u, v = angles.unbind(1)
    ring = OUTER + INNER * v.cos()
    return torch.stack([ring * u.cos(), ring * u.sin(), INNER * v.sin()], 1)


def bent_plane(z):
    """A flat plane in R^4 under curved coordinates: a smooth bijection, then an affine map."""
    a, b = z.unbind(1)
    return torch.stack([a.sinh(), b + a**2], 1) @ PLANE.T + 3


def dunes(z):
    """A surface of bumps and hollows, without any symmetry."""
    a, b = z.unbind(1)
    return torch.stack([a, b, 0.5 * (1.3 * a).sin() * (0.9 * b + 0.4).cos()], 1)


def sphere_ends(n, seed=0):
    low, high = points([0.4, -1.0]), points([2.6, 1.0])
    ends = low + (high - low) * uniform(2 * n, 2, seed=seed)
    return ends[:n], ends[n:]


def great_circle(x, y):
    return 2 * ((x - y).norm(dim=1) / 2).asin()


def even_chords(radius, angle, n_chords=N_CHORDS):
    """Length of n even chords along an arc."""
    return 2 * radius * n_chords * math.sin(angle / (2 * n_chords))


def images(f, curves):
    return f(curves.flatten(0, 1)).reshape(*curves.shape[:2], -1)


# Inner products


@pytest.mark.parametrize("f", [sphere, torus, stereographic, bent_plane])
def test_the_inner_product_is_u_metric_v(f):
    z, u, v = random(20, 2), random(20, 2, seed=1), random(20, 2, seed=2)
    expected = torch.einsum("ni,nij,nj->n", u, geometry.metric(f, z), v)
    assert torch.allclose(geometry.inner_product(f, z, u, v), expected, rtol=1e-11, atol=1e-11)


def test_the_spheres_coordinate_vectors_are_orthogonal_and_phi_has_length_sin_theta():
    z = points([0.3, 1.0], [1.2, -4.0])
    theta, phi = points([1, 0]).expand(2, 2), points([0, 1]).expand(2, 2)
    inner = lambda u, v: geometry.inner_product(sphere, z, u, v)  # noqa: E731
    assert torch.allclose(inner(theta, phi), torch.zeros(2, dtype=torch.float64), atol=1e-15)
    assert torch.allclose(inner(theta, theta), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(inner(phi, phi), z[:, 0].sin() ** 2)


def test_the_stacked_map_of_a_stochastic_generator_gives_the_metric_of_equation_3():
    a, b = random(2, 5), random(2, 5, seed=1)
    f = StochasticGenerator(mean=lambda z: z.sin() @ a, std=lambda z: (z @ b).exp())
    z, u, v = random(8, 2, seed=3), random(8, 2, seed=4), random(8, 2, seed=5)
    expected = torch.einsum("ni,nij,nj->n", u, geometry.metric(f.mean, z) + geometry.metric(f.std, z), v)
    assert torch.allclose(geometry.inner_product(f.mean_and_std, z, u, v), expected, rtol=1e-10)


# Lengths


@given(theta=st.floats(0.1, 3.0), turn=st.floats(0.1, 6.0), n_chords=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_a_circle_of_latitude_has_the_length_of_its_even_chords(theta, turn, n_chords):
    phi = torch.linspace(0, turn, n_chords + 1, dtype=torch.float64)
    found = geometry.curve_length(sphere, torch.stack([torch.full_like(phi, theta), phi], 1))
    assert found.item() == pytest.approx(even_chords(math.sin(theta), turn, n_chords), rel=1e-9)


def spiral(t):
    return torch.stack([2 * t + t**2, (3 * t).sin()], 1)


def spiral_points(n_points, warp=lambda t: t):
    return spiral(warp(torch.linspace(0, 1, n_points, dtype=torch.float64)))


def test_length_converges_quadratically_to_the_integral_of_the_metric_speed():
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    velocity = torch.stack([2 + 2 * t, 3 * (3 * t).cos()], 1)
    speed = geometry.inner_product(torus, spiral(t), velocity, velocity).sqrt()
    integral = speed.mean().item()
    short = [integral - geometry.curve_length(torus, spiral_points(m + 1)).item() for m in (100, 200, 400)]
    assert short[0] / short[1] == pytest.approx(4, rel=0.01)
    assert short[1] / short[2] == pytest.approx(4, rel=0.01)
    assert 0 < short[2] < 1e-4 * integral


@pytest.mark.parametrize("warp", [lambda t: t**3, lambda t: (t.exp() - 1) / (math.e - 1), lambda t: 1 - t])
def test_length_does_not_depend_on_how_the_curve_is_parametrised(warp):
    plain = geometry.curve_length(torus, spiral_points(20_001))
    assert geometry.curve_length(torus, spiral_points(20_001, warp)).item() == pytest.approx(
        plain.item(), rel=1e-6
    )


def test_length_adds_over_pieces_and_grows_as_points_are_inserted():
    curve = spiral_points(101)
    whole = geometry.curve_length(torus, curve)
    pieces = geometry.curve_length(torus, curve[:41]) + geometry.curve_length(torus, curve[40:])
    assert whole.item() == pytest.approx(pieces.item(), rel=1e-14)
    assert geometry.curve_length(torus, curve[::2]) < whole


def test_a_batch_of_curves_has_each_curves_length_whatever_shape_f_returns():
    curves = random(3, 7, 2)
    as_image = lambda z: torus(z).reshape(-1, 1, 3, 1)  # noqa: E731
    each = torch.stack([geometry.curve_length(torus, curve) for curve in curves])
    assert torch.allclose(geometry.curve_length(as_image, curves), each, rtol=1e-14)


# Geodesics of the sphere


def test_geodesics_of_the_sphere_are_evenly_divided_great_circles():
    start, end = sphere_ends(20)
    path = images(sphere, geometry.geodesic(sphere, start, end))
    angle = great_circle(path[:, 0], path[:, -1])[:, None]
    t = torch.linspace(0, 1, N_CHORDS + 1, dtype=torch.float64)
    weights = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()], -1) / angle.sin()[..., None]
    assert torch.allclose(path, weights @ path[:, [0, -1]], atol=1e-5)


@pytest.mark.parametrize(
    ("f", "ends"), [(sphere, sphere_ends(20)), (stereographic, (random(20, 2), random(20, 2, seed=1)))]
)
def test_distances_on_the_sphere_are_great_circles_in_any_coordinates(f, ends):
    start, end = ends
    near = (
        great_circle(f(start), f(end)) < 2.3
    )  # towards π, the line in latent space may be nearer the other arc
    start, end = start[near], end[near]
    angle = great_circle(f(start), f(end))
    chords = 2 * N_CHORDS * (angle / (2 * N_CHORDS)).sin()
    found = geometry.geodesic_distance(f, start, end)
    assert torch.allclose(found, chords, rtol=1e-9)
    assert (found < angle).all()


def test_the_error_of_a_distance_shrinks_with_the_square_of_the_number_of_chords():
    start, end = points([1.0, 0.0]), points([1.3, 2.0])
    angle = great_circle(sphere(start), sphere(end))
    short = [
        (angle - geometry.geodesic_distance(sphere, start, end, n_points=m + 1)).item() for m in (8, 16, 32)
    ]
    assert short[0] / short[1] == pytest.approx(4, rel=0.01)
    assert short[1] / short[2] == pytest.approx(4, rel=0.01)


def test_a_stochastic_generators_spread_bends_its_geodesics():
    # mean and spread together are a sphere, moved; the mean alone is a flat disc
    def mean(z):
        return sphere(z)[:, :2]

    def std(z):
        return torch.stack([2 + z[:, 0].cos(), torch.ones(len(z), dtype=z.dtype)], 1)

    start, end = sphere_ends(5)
    start[:, 0], end[:, 0] = start[:, 0] / 2, end[:, 0] / 2  # the upper half, where the disc is single
    stacked = StochasticGenerator(mean, std).mean_and_std
    chords = 2 * N_CHORDS * (great_circle(sphere(start), sphere(end)) / (2 * N_CHORDS)).sin()
    assert torch.allclose(geometry.geodesic_distance(stacked, start, end), chords, rtol=1e-9)
    flat = (mean(start) - mean(end)).norm(dim=1)
    assert torch.allclose(geometry.geodesic_distance(mean, start, end), flat, rtol=1e-9)


# Flat surfaces


@pytest.mark.parametrize("d", [1, 3, 6])
def test_geodesics_of_an_affine_map_are_straight_lines_of_euclidean_length(d):
    a, start, end = random(9, d), random(4, d, seed=1), random(4, d, seed=2)
    f = lambda z: z @ a.T - 2  # noqa: E731
    t = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None]
    lines = (1 - t) * start[:, None] + t * end[:, None]
    assert torch.allclose(geometry.geodesic(f, start, end, n_points=12), lines, atol=1e-12)
    assert torch.allclose(
        geometry.geodesic_distance(f, start, end), ((end - start) @ a.T).norm(dim=1), rtol=1e-12
    )


def test_curved_coordinates_of_a_plane_do_not_bend_its_geodesics():
    start, end = random(10, 2), random(10, 2, seed=1)
    path = images(bent_plane, geometry.geodesic(bent_plane, start, end))
    t = torch.linspace(0, 1, N_CHORDS + 1, dtype=torch.float64)[:, None]
    assert torch.allclose(path, (1 - t) * path[:, :1] + t * path[:, -1:], atol=1e-5)
    euclidean = (bent_plane(end) - bent_plane(start)).norm(dim=1)
    assert torch.allclose(geometry.geodesic_distance(bent_plane, start, end), euclidean, rtol=1e-9)


# The torus


def test_the_equators_and_meridians_of_a_torus_are_geodesics():
    start = points([-0.4, 0.0], [-0.4, math.pi], [0.7, -1.2])
    end = points([0.4, 0.0], [0.4, math.pi], [0.7, 1.2])
    path = geometry.geodesic(torus, start, end)
    t = torch.linspace(0, 1, N_CHORDS + 1, dtype=torch.float64)[:, None]
    assert torch.allclose(path, (1 - t) * start[:, None] + t * end[:, None], atol=1e-6)
    lengths = [even_chords(OUTER + INNER, 0.8), even_chords(OUTER - INNER, 0.8), even_chords(INNER, 2.4)]
    assert geometry.curve_length(torus, path).tolist() == pytest.approx(lengths, rel=1e-9)


def test_clairauts_relation_holds_along_a_geodesic_of_a_torus():
    # ring radius × cosine of the angle to the circle of latitude is the same everywhere
    start, end = points([-0.8, 1.0], [0.0, 0.3]), points([0.9, 1.4], [0.8, 2.5])
    path = geometry.geodesic(torus, start, end, n_points=257)
    middle, step = (path[:, 1:] + path[:, :-1]) / 2, path.diff(dim=1)
    ring, du, dv = OUTER + INNER * middle[..., 1].cos(), step[..., 0], step[..., 1]
    momentum = ring**2 * du / ((ring * du) ** 2 + (INNER * dv) ** 2).sqrt()
    assert torch.allclose(momentum, momentum.mean(1, keepdim=True).expand_as(momentum), rtol=1e-4)
    straight = torch.lerp(
        start[:, None], end[:, None], torch.linspace(0, 1, 257, dtype=torch.float64)[:, None]
    )
    assert (geometry.curve_length(torus, path) < geometry.curve_length(torus, straight)).all()


def test_a_mirrored_torus_mirrors_its_geodesics():
    start, end = points([-0.8, 1.0]), points([0.9, 1.4])
    path = geometry.geodesic(torus, start, end)
    assert torch.allclose(geometry.geodesic(torus, -start, -end), -path, atol=1e-9)
    turned = points([0.5, 0.0])
    assert torch.allclose(geometry.geodesic(torus, start + turned, end + turned), path + turned, atol=1e-6)


# Any surface


def test_a_geodesic_runs_at_constant_speed():
    start, end = 2 * random(6, 2), 2 * random(6, 2, seed=1)

    def spread(n_points):
        speed = images(dunes, geometry.geodesic(dunes, start, end, n_points=n_points)).diff(dim=1).norm(dim=2)
        return (speed.amax(1) / speed.amin(1) - 1).max().item()

    coarse, fine = spread(33), spread(129)
    assert coarse < 0.01
    assert fine < coarse / 10  # of second order in the spacing


def test_no_nearby_curve_with_the_same_ends_has_less_energy():
    start, end = 2 * random(3, 2), 2 * random(3, 2, seed=1)
    path = geometry.geodesic(dunes, start, end)
    energy = lambda curves: images(dunes, curves).diff(dim=1).square().sum((1, 2))  # noqa: E731
    least = energy(path)
    for seed in range(20):
        moved = path.clone()
        moved[:, 1:-1] += 1e-3 * random(3, N_CHORDS - 1, 2, seed=seed)
        assert (energy(moved) > least).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_no_step_raises_the_energy_even_where_the_surface_is_rough():
    rough = lambda z: torch.cat([z, 3 * (7 * z).sin()], 1)  # noqa: E731
    start, end = random(6, 2), random(6, 2, seed=1)
    energies = torch.stack(
        [
            images(rough, geometry.geodesic(rough, start, end, max_steps=steps))
            .diff(dim=1)
            .square()
            .sum((1, 2))
            for steps in range(1, 20)
        ]
    )
    assert (energies.diff(dim=0) <= 1e-12).all()
    assert (energies[-1] < energies[0]).all()


def test_distance_is_a_metric():
    a, b, c = (1.5 * random(15, 2, seed=seed) for seed in range(3))
    distance = lambda start, end: geometry.geodesic_distance(dunes, start, end)  # noqa: E731
    ab, bc, ac = distance(a, b), distance(b, c), distance(a, c)
    assert torch.allclose(distance(b, a), ab, rtol=1e-9)
    assert (ac <= ab + bc).all()
    assert (ab >= (dunes(a) - dunes(b)).norm(dim=1)).all()
    assert distance(a, a).tolist() == [0.0] * 15


def test_the_triangle_inequality_is_an_equality_at_a_point_of_the_geodesic():
    a, c = 1.5 * random(8, 2), 1.5 * random(8, 2, seed=1)
    b = geometry.geodesic(dunes, a, c)[:, 10]
    whole = geometry.geodesic_distance(dunes, a, c)
    parts = geometry.geodesic_distance(dunes, a, b) + geometry.geodesic_distance(dunes, b, c)
    assert torch.allclose(parts, whole, rtol=1e-3)


def test_the_ends_are_kept_and_a_pairs_geodesic_does_not_depend_on_the_other_pairs(monkeypatch):
    start, end = sphere_ends(6)
    together = geometry.geodesic(sphere, start, end)
    assert torch.equal(together[:, 0], start)
    assert torch.equal(together[:, -1], end)
    monkeypatch.setattr(geometry.curves, "JACOBIAN_BYTES", 1)  # one pair at a time
    assert torch.allclose(geometry.geodesic(sphere, start, end), together, rtol=0, atol=1e-9)
    assert geometry.geodesic(sphere, start[:0], end[:0]).shape == (0, N_CHORDS + 1, 2)


def test_a_networks_geodesic_is_shorter_than_the_straight_line_and_leaves_no_trace():
    network = nn.Sequential(mlp([4, 32, 32, 12], batch_norm=True), nn.Tanh()).eval()
    initialize(network, torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        parameter.data *= 2  # default weights make a surface that is almost flat
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start, end = random(5, 4).float(), random(5, 4, seed=1).float()
    path = geometry.geodesic(network, start, end)
    line = torch.lerp(start[:, None], end[:, None], torch.linspace(0, 1, N_CHORDS + 1)[:, None])
    assert path.dtype == torch.float32
    assert (geometry.curve_length(network, path) < geometry.curve_length(network, line)).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_direction_that_f_ignores_stays_on_the_line():
    f = lambda z: sphere(z[:, :2])  # noqa: E731
    start, end = (torch.cat([ends, random(4, 1)], 1) for ends in sphere_ends(4))
    path = geometry.geodesic(f, start, end)
    t = torch.linspace(0, 1, N_CHORDS + 1, dtype=torch.float64)
    assert torch.allclose(path[..., 2], (1 - t) * start[:, 2:] + t * end[:, 2:])
    assert torch.allclose(path[..., :2], geometry.geodesic(sphere, start[:, :2], end[:, :2]), atol=1e-5)


# Errors


def test_geodesics_that_need_more_steps_are_counted():
    start, end = points([1.0, 0.0], [1.0, 0.0]), points([1.0, 2.0], [2.0, 0.0])  # the second is a meridian
    with pytest.warns(ConvergenceWarning) as caught:
        geometry.geodesic(sphere, start, end, max_steps=2)
    assert [str(w.message) for w in caught if w.category is ConvergenceWarning] == [
        "1 of 2 geodesics were still changing after max_steps=2; raise it."
    ]


def message_of(call):
    with pytest.raises(InputError) as raised:
        call()
    return str(raised.value)


def test_shapes_that_do_not_match_are_named_in_one_line():
    z = torch.zeros(3, 2)
    assert message_of(lambda: geometry.inner_product(sphere, z, z, z[:2])) == (
        "The 'v' parameter of inner_product must have the shape of 'z', (3, 2). Got (2, 2) instead."
    )
    assert message_of(lambda: geometry.curve_length(sphere, z[0])) == (
        "The 'curve' parameter of curve_length must have the shape (n_points, d) or (n_curves, n_points, d). "
        "Got (2,) instead."
    )
    assert message_of(lambda: geometry.geodesic(sphere, z[0], z[0])) == (
        "The 'start' parameter of geodesic must have the shape (n, d). Got (2,) instead."
    )
    assert message_of(lambda: geometry.geodesic_distance(sphere, z, torch.zeros(3, 4))) == (
        "The 'end' parameter of geodesic must have the shape of 'start', (3, 2). Got (3, 4) instead."
    )
    assert message_of(lambda: geometry.curve_length(lambda z: z[:1], z)) == (
        "The 'f' parameter must map each row to one row: it made shape (1, 2) of 3 rows."
    )


@pytest.mark.parametrize(("name", "least"), [("n_points", 3), ("max_steps", 1)])
def test_too_small_a_number_is_named(name, least):
    z = torch.zeros(1, 2)
    assert message_of(lambda: geometry.geodesic(sphere, z, z, **{name: least - 1})) == (
        f"The '{name}' parameter of geodesic must be an int of at least {least}. Got {least - 1} instead."
    )


def test_a_map_that_is_not_finite_is_named_with_the_row(monkeypatch):
    start, end = points([1, 1], [2, 2], [1, -1]), points([2, 1], [1, 2], [1, 1])
    expected = (
        "The 'f' parameter of geodesic must be finite on the line from 'start' to 'end'. "
        "Got NaN or inf in row 2 instead."
    )
    assert message_of(lambda: geometry.geodesic(lambda z: z.log(), start, end)) == expected
    monkeypatch.setattr(geometry.curves, "JACOBIAN_BYTES", 1)
    assert message_of(lambda: geometry.geodesic(lambda z: z.log(), start, end)) == expected
    steep = lambda z: z.abs().sqrt()  # noqa: E731
    assert message_of(lambda: geometry.geodesic(steep, points([-1, 0]), points([1, 0]))) == (
        "The 'f' parameter of geodesic must have a finite derivative along the curve. Got NaN or inf instead."
    )
