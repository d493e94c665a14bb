"""Explicit tangents against forward- and reverse-mode autograd; blocks; what must be left to autograd."""

import pytest
import torch
from torch import nn
from torch.func import jvp, vmap
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from invgan import InputError, geometry
from invgan.geometry import Stacked, tangents
from invgan.networks import RBFVariance, build, conv_generator, default_latent_dim
from invgan.networks.convolutional import CenterCrop
from invgan.preprocess import AffineScaling


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ready(module, seed=0):
    """In float64 and evaluation mode, every parameter and running statistic away from its default."""
    draws = torch.Generator().manual_seed(seed)
    module = module.double().eval().requires_grad_(False)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point():
            low = 0.5 if "var" in name or "rates" in name or "scale" in name or "floor" in name else -0.5
            tensor.uniform_(low, 1.0, generator=draws)
    return module


def by_jvp(f, z):
    columns = vmap(lambda tangent: jvp(f, (z,), (tangent,))[1])(
        torch.eye(z.shape[1])[:, None].expand(-1, *z.shape).to(z)
    )
    return columns.flatten(2).permute(1, 2, 0)


def by_reverse_mode(f, z):
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda at: f(at[None])[0].flatten(), one) for one in z]
    )


@pytest.fixture
def left_to_autograd(monkeypatch):
    """The maps that no rule was used for."""
    seen = []
    original = tangents._by_autograd

    def noted(f, *arguments):
        seen.append(f)
        return original(f, *arguments)

    monkeypatch.setattr(tangents, "_by_autograd", noted)
    return seen


def image(*layers, channels=4, side=4):
    """Layers on an image that a dense layer makes of three latents."""
    first = nn.Linear(3, channels * side * side)
    return nn.Sequential(first, nn.Unflatten(1, (channels, side, side)), *layers)


def dense(*layers, width=6):
    return nn.Sequential(nn.Linear(3, width), *layers)


ACTIVATIONS = [rule for rule, function in tangents.RULES.items() if function is tangents._elementwise]
ACTIVATIONS.remove(AffineScaling)

DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout)

LAYERS = {
    **{f"{kind.__name__} first": kind() for kind in ACTIVATIONS},
    **{kind.__name__: dense(kind(), nn.Linear(6, 7), kind()) for kind in ACTIVATIONS},
    "ReLU in place": dense(nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ReLU(inplace=True)),
    "PReLU per channel": image(nn.Conv2d(4, 4, 3), nn.PReLU(4)),
    "GELU tanh": dense(nn.GELU("tanh")),
    "Linear without bias": dense(nn.Linear(6, 5, bias=False), nn.SiLU()),
    "Linear on the last axis": nn.Sequential(
        nn.Linear(3, 8), nn.Unflatten(1, (2, 4)), nn.Tanh(), nn.Linear(4, 3)
    ),
    "Identity": nn.Sequential(nn.Identity(), nn.Linear(3, 2), nn.Identity()),
    "BatchNorm1d": dense(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4, eps=0.1)),
    "BatchNorm1d of three axes": nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.BatchNorm1d(3), nn.Tanh(), nn.BatchNorm1d(3)
    ),
    "BatchNorm without affine": dense(nn.SiLU(), nn.BatchNorm1d(6, affine=False)),
    "BatchNorm2d": image(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2)),
    "Conv2d": image(
        nn.Tanh(), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding="same")
    ),
    "Conv2d grouped, dilated": image(
        nn.Tanh(), nn.Conv2d(4, 8, 3, dilation=2, padding=2, groups=2, bias=False)
    ),
    "ConvTranspose2d": image(nn.ReLU(), nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), nn.Tanh()),
    "ConvTranspose2d to one channel": image(
        nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), nn.Tanh(), channels=16
    ),
    "ConvTranspose2d, one channel, odd": image(
        nn.ReLU(),
        nn.ConvTranspose2d(12, 1, (2, 3), stride=(3, 1), padding=(0, 1), dilation=(1, 2)),
        channels=12,
    ),
    "ConvTranspose2d, output padding": image(
        nn.ReLU(), nn.ConvTranspose2d(16, 1, 3, stride=2, output_padding=1), channels=16
    ),
    "ConvTranspose2d grouped": image(nn.Tanh(), nn.ConvTranspose2d(4, 2, 3, stride=2, dilation=2, groups=2)),
    "ConvTranspose2d of one pixel": nn.Sequential(
        nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 5, 4), nn.ReLU(), nn.ConvTranspose2d(5, 2, 4, 2, 1)
    ),
    "Upsample nearest": image(nn.Tanh(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3)),
    "Upsample bilinear": image(nn.Tanh(), nn.Upsample(size=(7, 5), mode="bilinear")),
    "Upsample bicubic": image(nn.Tanh(), nn.Upsample(scale_factor=1.5, mode="bicubic", align_corners=True)),
    "UpsamplingNearest2d": image(nn.Tanh(), nn.UpsamplingNearest2d(scale_factor=2)),
    "UpsamplingBilinear2d": image(nn.Tanh(), nn.UpsamplingBilinear2d(scale_factor=2)),
    "AvgPool2d": image(nn.Tanh(), nn.AvgPool2d(2, stride=1, padding=1)),
    "AdaptiveAvgPool2d": image(nn.Tanh(), nn.AdaptiveAvgPool2d(3)),
    "ZeroPad2d": image(nn.Tanh(), nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(4, 2, 3)),
    "PixelShuffle": image(nn.Tanh(), nn.PixelShuffle(2), nn.Conv2d(1, 2, 3)),
    "CenterCrop": image(nn.Tanh(), CenterCrop(3, 2)),
    "Flatten": image(nn.Tanh(), nn.Flatten(), nn.Linear(64, 3), nn.Softplus()),
    **{kind.__name__: image(nn.Tanh(), kind(), nn.Conv2d(4, 2, 3)) for kind in DROPOUTS},
    "nested Sequential": nn.Sequential(
        dense(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.ReLU()), nn.Linear(6, 2)
    ),
    "RBFVariance": RBFVariance(3, 7, 5),
    "RBFVariance of a layer": dense(nn.Tanh(), RBFVariance(6, 7, 9)),
    "AffineScaling": dense(AffineScaling(torch.ones(6), torch.ones(6), (6,)), nn.Tanh()),
    "Stacked": Stacked(
        [ready(dense(nn.Unflatten(1, (2, 3)))), ready(RBFVariance(3, 7, 5)), ready(nn.Sequential(nn.Tanh()))]
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_layers_rule_agrees_with_forward_and_reverse_mode(name, left_to_autograd):
    f, z = LAYERS[name], random(3, 3, seed=1)
    if isinstance(f, nn.Module):
        f = ready(f)
    expected = by_reverse_mode(f, z)
    assert torch.allclose(by_jvp(f, z), expected, rtol=0, atol=1e-10)
    assert torch.allclose(geometry.jacobian(f, z), expected, rtol=0, atol=1e-10)
    assert left_to_autograd == []
    assert expected.abs().max() > 1e-3


def test_every_rule_is_tested():
    used = {type(layer) for f in LAYERS.values() if isinstance(f, nn.Module) for layer in f.modules()}
    assert used | {Stacked} >= set(tangents.RULES)


# The presets


SHAPES = {
    "synthetic": (6,),
    "adbench, narrow": (9,),
    "adbench, wide": (166,),
    "arrhythmia": (274,),
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "mnist, padded": (1, 32, 32),
    "cifar10": (3, 32, 32),
}


@pytest.mark.parametrize("preset", [None, "paper"])
@pytest.mark.parametrize("data", SHAPES)
def test_every_presets_generator_and_variance_go_through_the_rules(data, preset, left_to_autograd):
    shape = SHAPES[data]
    d = min(4, default_latent_dim(shape, preset))
    generator = ready(build(shape, d, preset).generator)
    sigma = ready(RBFVariance(d, generator(random(1, d)).numel(), 2 * d))
    f, z = Stacked([generator, sigma]), random(2, d, seed=1)
    assert torch.allclose(geometry.jacobian(f, z), by_jvp(f, z), rtol=0, atol=1e-10)
    assert left_to_autograd == []


# What may differ from its type's promise is left to autograd


class Doubled(nn.Linear):
    """A layer whose type is not enough to know it by."""

    def forward(self, x):
        return 2 * super().forward(x)


def with_hook(layer):
    layer.register_forward_hook(lambda module, inputs, output: output**2)
    return layer


def with_pre_hook(layer):
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].sin(),))
    return layer


def with_own_forward(layer):
    layer.forward = lambda x: x[:, :2] ** 3
    return layer


UNKNOWN = {
    "subclass": lambda: Doubled(3, 4),
    "forward hook": lambda: with_hook(nn.Linear(3, 4)),
    "hook on an activation": lambda: with_hook(nn.Tanh()),
    "forward pre-hook": lambda: with_pre_hook(nn.Linear(3, 4)),
    "forward of its own": lambda: with_own_forward(nn.Linear(3, 4)),
    "parametrisation": lambda: parametrizations.weight_norm(nn.Linear(3, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(3, 4)),
    "no rule": lambda: nn.LayerNorm(3),
    "Softmax": lambda: nn.Softmax(1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_layer_that_may_do_something_else_is_left_to_autograd(name, left_to_autograd):
    layer, z = UNKNOWN[name]().double().eval(), random(5, 3)
    expected = by_reverse_mode(layer, z)
    assert torch.allclose(geometry.jacobian(layer, z), expected, rtol=0, atol=1e-10)
    inside = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), layer).double()
    expected = by_reverse_mode(inside, z)
    assert torch.allclose(geometry.jacobian(inside, z), expected, rtol=0, atol=1e-10)
    assert left_to_autograd == [layer, layer]  # the layers around it are not


def test_a_hook_on_all_modules_or_on_a_container_is_honoured(left_to_autograd):
    net, z = dense(nn.Tanh()).double(), random(2, 3)
    plain = geometry.jacobian(net, z)
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: 2 * output)
    try:
        found, expected = geometry.jacobian(net, z), by_reverse_mode(net, z)
    finally:
        handle.remove()
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(found, plain)
    with_hook(net)
    assert torch.allclose(geometry.jacobian(net, z), by_reverse_mode(net, z), rtol=0, atol=1e-10)
    assert left_to_autograd == [net, net]


def test_group_normalisation_residual_blocks_and_pooling_are_left_to_autograd():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())

        def forward(self, x):
            return x + self.inner(x)

    f = ready(image(Residual(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2)))
    z = random(3, 3)
    assert torch.allclose(geometry.jacobian(f, z), by_reverse_mode(f, z), rtol=0, atol=1e-10)


def test_module_and_function_agree():
    net, z = ready(conv_generator(3, (1, 9, 12))), random(4, 3)
    assert torch.allclose(
        geometry.jacobian(net, z), geometry.jacobian(lambda z: net(z), z), rtol=0, atol=1e-12
    )


# Directions


@pytest.mark.parametrize("k", [1, 2, 5])
def test_directions_give_the_products_with_the_jacobian(k):
    z, v = random(4, 3), random(4, 3, k, seed=1)
    stochastic = Stacked(
        [ready(image(nn.ReLU(), nn.ConvTranspose2d(4, 2, 3))), ready(RBFVariance(3, 7, 5)), torch.sin]
    )
    for f in (stochastic, stochastic.parts[0], torch.sin):
        expected = geometry.jacobian(f, z) @ v
        assert torch.allclose(geometry.jacobian(f, z, directions=v), expected, rtol=0, atol=1e-10)


# Blocks of bounded memory


MAPS = {
    "convolutions": (conv_generator(5, (1, 12, 8)), 12 * 8),
    "dense, batch normalisation": (build((60,), 5, "paper").generator, 60),
}


@pytest.mark.parametrize("max_bytes", [1, 5_000, 100_000, 2_000_000])
@pytest.mark.parametrize("name", MAPS)
def test_the_memory_bound_changes_a_jacobian_by_no_more_than_rounding(name, max_bytes):
    generator, n_features = MAPS[name]
    f, z = Stacked([ready(generator), ready(RBFVariance(5, n_features, 9))]), random(7, 5)
    assert torch.allclose(geometry.jacobian(f, z, max_bytes=max_bytes), geometry.jacobian(f, z), rtol=1e-12)
    assert torch.allclose(geometry.metric(f, z, max_bytes=max_bytes), geometry.metric(f, z), rtol=1e-12)
    at, bounded = geometry.volume(f, z), geometry.volume(f, z, max_bytes=max_bytes)
    assert torch.allclose(bounded.log_volume, at.log_volume, rtol=1e-12)
    assert torch.allclose(bounded.singular_values, at.singular_values, rtol=1e-10)


class LargestOutput(TorchDispatchMode):
    """Note the largest tensor that any operation makes, other than those of given sizes."""

    def __init__(self, other_than):
        super().__init__()
        self.other_than, self.n_bytes = other_than, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        if (
            isinstance(output, torch.Tensor)
            and output.numel() not in self.other_than
            and not operation.is_view
        ):
            self.n_bytes = max(self.n_bytes, output.numel() * output.element_size())
        return output


@pytest.mark.parametrize("hidden", [False, True])
def test_no_intermediate_is_larger_than_the_bound(hidden):
    net = ready(conv_generator(6, (1, 16, 16)))
    f = (lambda z: net(z)) if hidden else net
    z, widest = random(5, 6), 64 * 8 * 8 * 8  # bytes of one row or tangent between the two convolutions
    for bound, expected in [(1, 2), (4 * widest, 4), (13 * widest, 12), (100 * widest, 30)]:
        with LargestOutput(other_than={5 * 6 * 256, 6 * 2048, net[3].weight.numel()}) as largest:
            geometry.jacobian(f, z, max_bytes=bound)
        assert largest.n_bytes == expected * widest  # a first look takes two rows


def test_a_rows_jacobian_is_the_same_bit_for_bit_wherever_it_stands_in_the_batch():
    for make, dtype in [
        (lambda: conv_generator(5, (1, 12, 8)), torch.float32),
        (lambda: build((60,), 5, "paper").generator, torch.float64),
    ]:
        f, z = ready(make()).to(dtype), random(32, 5).to(dtype)
        order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
        found = geometry.jacobian(f, z, max_bytes=2**17)  # several blocks, the last of them filled up
        assert torch.equal(geometry.jacobian(f, z[order], max_bytes=2**17), found[order])
        assert torch.equal(geometry.volume(f, z[order]).log_volume, geometry.volume(f, z).log_volume[order])


# Errors


def message(function, *arguments, **keywords):
    with pytest.raises(InputError) as raised:
        function(*arguments, **keywords)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("function", [geometry.jacobian, geometry.metric, geometry.log_volume])
def test_batch_normalisation_in_training_mode_is_refused_by_name(function):
    generator = build((60,), 3, "paper").generator
    expected = (
        "The 'f' parameter must treat rows independently, but its layer '1' normalises over the batch at "
        "hand: give it running statistics, and call eval()."
    )
    z = torch.zeros(2, 3)
    assert message(function, generator, z) == expected
    assert message(function, Stacked([torch.sin, generator]), z) == expected
    without_statistics = nn.BatchNorm1d(3, track_running_stats=False).eval()
    assert "its layer 'BatchNorm1d'" in message(function, without_statistics, z)
    function(generator.eval(), z)


def test_batch_normalisation_hidden_in_a_function_is_refused_too():
    generator = nn.BatchNorm1d(3)
    assert "when training" in message(geometry.jacobian, lambda z: generator(z), torch.zeros(2, 3))


def test_shapes_that_do_not_fit_are_refused():
    z = torch.zeros(4, 3)
    assert message(geometry.jacobian, torch.sin, z[0]) == (
        "The 'z' parameter must have the shape (n, d), neither of them 0. Got (3,) instead."
    )
    assert message(geometry.jacobian, torch.sin, z, directions=z) == (
        "The 'directions' parameter must have the shape (n, d, k) with n, d = 4, 3, as 'z'. "
        "Got (4, 3) instead."
    )
    assert message(geometry.jacobian, torch.ravel, z) == (
        "The 'f' parameter must map each row to one row: it made shape (12,) of 4 rows."
    )
    fails = message(geometry.jacobian, nn.Linear(5, 2), z)
    assert fails.startswith(
        "The 'f' parameter fails on latents of shape (4, 3), or has no forward-mode derivative there: "
    )


def test_a_map_without_forward_derivative_is_refused():
    centers = torch.zeros(2, 3)
    found = message(geometry.log_volume, lambda z: torch.cdist(z, centers), torch.ones(4, 3))
    assert "has no forward-mode derivative there" in found


def test_a_derivative_that_is_not_finite_names_its_row():
    z = torch.tensor([[1.0], [4.0], [0.0], [-1.0]])
    found = message(geometry.volume, torch.sqrt, z, max_bytes=8)
    assert found == "The 'f' parameter must have a finite derivative. Got NaN or inf in row 2 of 'z' instead."
