"""The paper's tables layer by layer, networks of any size, initial weights, and the variance network."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from invgan.networks import RBFVariance, build, default_latent_dim, initialize, mlp, rbf
from invgan.networks.convolutional import CenterCrop


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The paper's networks


def described(network):
    """Each layer in words: what the paper's tables say of it."""
    words = []
    for layer in network:
        match layer:
            case nn.Linear():
                words.append(f"linear {layer.in_features} {layer.out_features}")
            case nn.Conv2d() | nn.ConvTranspose2d():
                kind = "transposed" if isinstance(layer, nn.ConvTranspose2d) else "convolution"
                kernel, stride = layer.kernel_size, layer.stride
                words.append(
                    f"{kind} {layer.in_channels} {layer.out_channels} "
                    f"kernel {kernel[0]}x{kernel[1]} stride {stride[0]}x{stride[1]}"
                )
            case nn.BatchNorm1d():
                words.append(f"batch norm {layer.num_features}")
            case nn.Unflatten():
                words.append(f"image {'x'.join(map(str, layer.unflattened_size))}")
            case _:
                words.append(type(layer).__name__)
    return words


@pytest.mark.parametrize("channels", [1, 3])
def test_preset_paper_at_32x32_pixels_is_tables_5_to_7(channels):
    shape = (channels, 32, 32)
    assert default_latent_dim(shape, "paper") == 50
    parts = build(shape, 50, "paper")
    assert described(parts.generator) == [
        "linear 50 2048",
        "image 128x4x4",
        "ReLU",
        "transposed 128 128 kernel 4x4 stride 2x2",
        "ReLU",
        "transposed 128 64 kernel 4x4 stride 2x2",
        "ReLU",
        f"transposed 64 {channels} kernel 4x4 stride 2x2",
        "Tanh",
    ]
    convolutions = [
        f"convolution {channels} 64 kernel 4x4 stride 2x2",
        "ReLU",
        "convolution 64 128 kernel 4x4 stride 2x2",
        "ReLU",
        "convolution 128 128 kernel 4x4 stride 2x2",
        "ReLU",
        "Flatten",
    ]
    assert described(parts.discriminator) == [*convolutions, "linear 2048 1"]
    assert described(parts.inference) == [*convolutions, "linear 2048 50"]
    sizes = {"generator": [], "discriminator": [], "inference": []}
    for name, values in sizes.items():
        x = torch.zeros(2, 50) if name == "generator" else torch.zeros(2, *shape)
        for layer in getattr(parts, name):
            x = layer(x)
            if isinstance(layer, nn.ReLU | nn.Tanh):
                values.append("*".join(map(str, x.shape[1:])))
    assert sizes["generator"] == ["128*4*4", "128*8*8", "64*16*16", f"{channels}*32*32"]
    assert sizes["discriminator"] == sizes["inference"] == ["64*16*16", "128*8*8", "128*4*4"]


def test_preset_paper_for_arrhythmia_is_tables_8_to_10():
    assert default_latent_dim((274,), "paper") == 50
    parts = build((274,), 50, "paper")
    assert described(parts.generator) == [
        *["linear 50 128", "batch norm 128", "ReLU"],
        *["linear 128 256", "batch norm 256", "ReLU"],
        "linear 256 274",
    ]
    hidden = [
        *["linear 274 256", "batch norm 256", "ReLU"],
        *["linear 256 128", "batch norm 128", "ReLU"],
    ]
    assert described(parts.discriminator) == [*hidden, "linear 128 1"]
    assert described(parts.inference) == [*hidden, "linear 128 50"]


def test_preset_paper_for_six_columns_is_section_4_1():
    assert default_latent_dim((6,), "paper") == 2
    parts = build((6,), 2, "paper")
    assert described(parts.generator) == ["linear 2 30", "ReLU", "linear 30 30", "ReLU", "linear 30 6"]
    hidden = [
        "linear 6 30",
        "ReLU",
        "linear 30 30",
        "ReLU",
        "linear 30 30",
        "ReLU",
    ]  # four linear, three ReLU
    assert described(parts.discriminator) == [*hidden, "linear 30 1"]
    assert described(parts.inference) == [*hidden, "linear 30 2"]


@pytest.mark.parametrize(
    ("shape", "d", "counts"),
    [
        (
            (1, 32, 32),
            50,
            (
                (50 * 2048 + 2048) + (128 * 128 * 16 + 128) + (128 * 64 * 16 + 64) + (64 * 16 + 1),
                (64 * 16 + 64) + (64 * 128 * 16 + 128) + (128 * 128 * 16 + 128) + (2048 + 1),
                (64 * 16 + 64) + (64 * 128 * 16 + 128) + (128 * 128 * 16 + 128) + (2048 * 50 + 50),
            ),
        ),
        (
            (274,),
            50,
            (
                (50 * 128 + 128) + 2 * 128 + (128 * 256 + 256) + 2 * 256 + (256 * 274 + 274),
                (274 * 256 + 256) + 2 * 256 + (256 * 128 + 128) + 2 * 128 + (128 + 1),
                (274 * 256 + 256) + 2 * 256 + (256 * 128 + 128) + 2 * 128 + (128 * 50 + 50),
            ),
        ),
        ((6,), 2, (90 + 930 + 186, 210 + 930 + 930 + 31, 210 + 930 + 930 + 62)),
    ],
)
def test_preset_paper_has_the_tables_number_of_parameters(shape, d, counts):
    parts = build(shape, d, "paper")
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == counts


# Any size


IMAGES = [(1, 8, 8), (3, 8, 8), (1, 9, 9), (3, 11, 8), (1, 8, 31), (2, 17, 13), (1, 28, 28), (3, 33, 64)]
SMALL_IMAGES = [(1, 1, 1), (3, 4, 7), (1, 5, 40)]
TABLES = [(1,), (2,), (3,), (49,), (50,), (300,)]


@pytest.mark.parametrize("preset", [None, "paper"])
@pytest.mark.parametrize("shape", IMAGES + SMALL_IMAGES + TABLES)
def test_networks_fit_every_shape_of_data(shape, preset):
    d = default_latent_dim(shape, preset)
    assert d >= 1
    parts = build(shape, d, preset)
    rows = parts.generator(random(2, d, dtype=torch.float32))
    assert rows.shape == (2, *shape)
    assert parts.discriminator(rows).shape == (2, 1)
    assert parts.inference(rows).shape == (2, d)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 11, 18), (1, 28, 28)])
def test_a_convolutional_generator_stays_in_the_range_of_tanh_and_uses_every_pixel(shape):
    generator = build(shape, 4, "paper").generator
    initialize(generator, torch.Generator().manual_seed(0))
    z = random(64, 4, dtype=torch.float32)
    assert (generator(z).std(0) > 0).all()
    assert generator(1e4 * z).abs().max() == 1


def test_a_crop_takes_the_middle():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert CenterCrop(2, 2)(image).tolist() == [[[[5, 6], [9, 10]]]]
    assert CenterCrop(4, 3)(image).shape == (1, 1, 4, 3)


def test_the_own_presets_generator_is_smooth():
    assert not any(isinstance(layer, nn.ReLU) for layer in build((5,), 2).generator.modules())


# Initial weights


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (lambda: nn.Linear(25, 4000), 25),
        (lambda: nn.Conv2d(4, 400, 3), 4 * 9),
        (lambda: nn.ConvTranspose2d(400, 4, 3), 4 * 9),
        (lambda: nn.ConvTranspose2d(4, 400, 3), 400 * 9),
    ],
)
def test_initial_weights_are_pytorchs_distribution(layer, fan_in):
    ours, theirs = layer(), layer()
    initialize(ours, torch.Generator().manual_seed(0))
    bound = fan_in**-0.5
    for own, default in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert own.abs().max() <= bound
        assert default.abs().max() <= bound
    weights = ours.weight.detach().flatten()
    # Uniform in ±bound: its first moments, to five standard errors.
    assert abs(weights.mean()) < 5 * bound / math.sqrt(3 * len(weights))
    assert weights.square().mean() == pytest.approx(bound**2 / 3, rel=5 * math.sqrt(4 / 5 / len(weights)))
    assert weights.max() > 0.999 * bound
    assert theirs.weight.abs().max() > 0.999 * bound


def test_the_same_draws_as_pytorch_from_the_same_generator_state():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2))
    ours = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2))
    initialize(ours, torch.Generator().manual_seed(5))
    for own, default in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(own, default, atol=1e-7)


def test_building_and_initializing_draw_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        parts = build((1, 16, 16), 4)
    for part in parts:
        initialize(part.to_empty(device="cpu"), torch.Generator().manual_seed(0))
    RBFVariance(2, 3, 4).fit_centers(random(50, 2), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batch_normalisation_starts_as_the_identity():
    with torch.device("meta"):
        network = mlp([3, 5, 2], batch_norm=True)
    initialize(network.to_empty(device="cpu"), torch.Generator().manual_seed(0))
    x = random(4, 5, dtype=torch.float32)
    assert torch.allclose(network[1].eval()(x), x, atol=1e-4)


# The variance network


def made_by_hand():
    sigma = RBFVariance(2, 3, 2, max_std=5.0).double()
    sigma.centers.copy_(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    sigma.rates.copy_(torch.tensor([0.5, 0.25]))
    sigma.weight.data.copy_(torch.tensor([[1.0, -2.0], [0.0, 3.0], [0.5, 0.0]]))
    return sigma


def test_sigma_is_section_2_1s_formula():
    # At (1, 0): squared distances 1 and 4, so v = (e^-0.5, e^-1).
    v1, v2, floor = math.exp(-0.5), math.exp(-1), 1 / 25
    precision = [v1 + 4 * v2 + floor, 9 * v2 + floor, 0.25 * v1 + floor]
    found = made_by_hand()(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx([p**-0.5 for p in precision], rel=1e-7)


def test_sigma_tends_to_its_maximum_away_from_the_centres_and_never_exceeds_it():
    z = 100 * random(500, 2)
    std = made_by_hand()(torch.cat([z, torch.full((1, 2), 1e6, dtype=torch.float64)]))
    assert std[-1].tolist() == pytest.approx([5, 5, 5], rel=1e-7)
    assert (std <= 5 * (1 + 1e-7)).all()


@pytest.mark.parametrize("width", [1.0, 2.5])
def test_rates_come_from_each_clusters_mean_distance(width):
    left = torch.tensor([[-10.0, 1.0], [-10.0, -1.0], [-8.0, 0.0], [-12.0, 0.0]])  # mean distance 1.5
    right = torch.tensor([[10.0, 3.0], [10.0, -3.0]])  # mean distance 3
    sigma = RBFVariance(2, 1, 2, kernel_width=width)
    sigma.fit_centers(torch.cat([left, right]), seed=0)
    order = sigma.centers[:, 0].argsort()
    assert torch.allclose(sigma.centers[order], torch.tensor([[-10.0, 0.0], [10.0, 0.0]]))
    expected = [0.5 / (width * 1.5) ** 2, 0.5 / (width * 3) ** 2]
    assert sigma.rates[order].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_cluster_of_one_member_gets_a_third_of_the_typical_width():
    crowd = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    sigma = RBFVariance(2, 1, 2)
    sigma.fit_centers(torch.cat([crowd, torch.tensor([[50.0, 0.0]])]), seed=0)
    order = sigma.centers[:, 0].argsort()
    typical = 4 / 5  # four rows at distance 1, one at 0
    assert sigma.rates[order].tolist() == pytest.approx([0.5, 0.5 / (typical / 3) ** 2], rel=1e-6)


def test_centres_of_many_latents_are_those_of_a_random_part(monkeypatch):
    monkeypatch.setattr(rbf, "MAX_CLUSTERED", 100)
    latents = random(300, 2)
    whole, part = RBFVariance(2, 1, 5), RBFVariance(2, 1, 5)
    whole.fit_centers(latents, seed=4)
    part.fit_centers(latents[np.random.default_rng(4).permutation(300)[:100]], seed=4)
    assert torch.equal(whole.centers, part.centers)
    assert torch.equal(whole.rates, part.rates)


def test_latents_that_all_coincide_give_finite_centres_and_rates():
    sigma = RBFVariance(2, 1, 3)
    sigma.fit_centers(torch.ones(20, 2), seed=0)
    assert sigma.centers.tolist() == [[1, 1]] * 3
    assert sigma.rates.isfinite().all()


def test_centres_are_the_same_bit_for_bit_on_any_number_of_threads():
    latents, found = random(3000, 8), set()
    for _ in range(6):  # eight threads would add the members of a cluster up in six different orders
        sigma = RBFVariance(8, 1, 32).double()
        with threadpool_of(8):
            sigma.fit_centers(latents, seed=0)
        found.add(sigma.centers.numpy().tobytes())
    assert len(found) == 1


def threadpool_of(n):
    from threadpoolctl import threadpool_limits

    return threadpool_limits(n, user_api="openmp")


def penalised_log_likelihood(sigma, latents, residuals):
    """What fit_weights climbs: Gaussian log-likelihood, and one pseudo-observation for each kernel."""
    squared = residuals.square()
    precision = sigma.precision(latents).detach()
    data = 0.5 * (precision.log() - precision * squared).sum()
    weights = sigma.weight.detach().square()
    return data + 0.5 * (weights.log() - weights * squared.mean(0)[:, None]).sum()


def test_no_iteration_of_fit_weights_lowers_the_penalised_likelihood():
    sigma = RBFVariance(2, 5, 12).double()
    latents, residuals = random(200, 2), random(200, 5, seed=1) * torch.logspace(-1, 1, 5)
    sigma.fit_centers(latents, seed=0)
    reached = []
    for n_iterations in range(40):
        sigma.fit_weights(latents, residuals, n_iterations=n_iterations)
        reached.append(penalised_log_likelihood(sigma, latents, residuals).item())
    gains = np.diff(reached)
    assert (gains > -1e-9 * abs(reached[0])).all()
    assert gains[0] > 1


def test_fit_weights_ends_where_the_penalised_likelihood_has_no_slope():
    sigma = RBFVariance(2, 2, 4).double()
    latents, residuals = random(300, 2), random(300, 2, seed=1)
    sigma.fit_centers(latents, seed=0)
    sigma.fit_weights(latents, residuals, n_iterations=20_000)
    logs = sigma.weight.detach().square().log().requires_grad_()
    precision = sigma.kernels(latents) @ logs.exp().T + sigma.precision_floor
    value = 0.5 * (precision.log() - precision * residuals.square()).sum()
    value = value + 0.5 * (logs - logs.exp() * residuals.square().mean(0)[:, None]).sum()
    (slope,) = torch.autograd.grad(value, logs)
    assert slope.abs().max() < 1e-3


def test_fit_weights_recovers_a_known_noise_field():
    truth = RBFVariance(1, 2, 3).double()
    truth.centers.copy_(torch.tensor([[-2.0], [0.0], [2.0]]))
    truth.rates.fill_(0.5)
    truth.weight.data.copy_(torch.tensor([[1.0, 3.0, 8.0], [4.0, 1.0, 2.0]]))
    latents = 4 * torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    std = truth(latents).detach()
    sigma = RBFVariance(1, 2, 3).double()
    sigma.centers.copy_(truth.centers)
    sigma.rates.copy_(truth.rates)
    sigma.fit_weights(latents, std * random(20_000, 2, seed=1), n_iterations=2000)
    assert (sigma(latents) / std - 1).abs().max() < 0.05


def test_features_without_residuals_get_a_small_but_positive_noise():
    sigma = RBFVariance(2, 3, 4).double()
    latents, residuals = random(100, 2), random(100, 3, seed=1)
    residuals[:, 1] = 0
    sigma.fit_centers(latents, seed=0)
    sigma.fit_weights(latents, residuals)
    std = sigma(latents)
    assert std.isfinite().all()
    assert (std[:, 1] > 0).all()
    assert (std[:, 1] < 0.1 * std[:, 0]).all()
