"""Likelihoods under generators that this library did not train."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from invgan import ImplicitLikelihood, InputError
from invgan.data import load
from invgan.geometry import tangents
from invgan.metrics import detection_metrics


class Torus(nn.Module):
    """Angles to a torus of radii R and r; its area element is r (R + r cos v)."""

    R, r = 3.0, 1.0

    def forward(self, z):
        u, v = z.unbind(1)
        ring = self.R + self.r * v.cos()
        return torch.stack([ring * u.cos(), ring * u.sin(), self.r * v.sin()], 1)


class TorusAngles(nn.Module):
    """The exact inverse, of standardised rows, for angles within ±π."""

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.bias = nn.Parameter(torch.zeros(2))  # something to train, in vain

    def forward(self, x):
        x = (x * self.std + self.mean).to(self.bias.dtype)
        ring = x[:, :2].norm(dim=1)
        return (
            torch.stack([torch.atan2(x[:, 1], x[:, 0]), torch.atan2(x[:, 2], ring - Torus.R)], 1) + self.bias
        )


def digest(module):
    state = [tensor.numpy().tobytes() for tensor in module.state_dict().values()]
    flags = repr([(p.requires_grad, p.dtype) for p in module.parameters()]) + str(module.training)
    return hashlib.sha256(b"".join(state) + flags.encode()).hexdigest()


def test_torus_has_its_closed_form_likelihood():
    z = 0.6 * torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    X = Torus()(z)
    training_scale = ImplicitLikelihood(Torus(), 2, max_steps=1, random_state=0).fit(X.numpy()).scaling_
    inverse = TorusAngles(training_scale.shift.float(), training_scale.scale.float())
    density = ImplicitLikelihood(
        Torus(), 2, inference=inverse, max_steps=1, learning_rate=1e-9, random_state=0
    ).fit(X.numpy())
    # σ is next to nothing where g(h(x)) = x and codes are near, so its tangents are too.
    values = density.log_likelihood(X.numpy(), method="riemannian").values
    log_prior = -0.5 * z.square().sum(1) - math.log(2 * math.pi)
    truth = log_prior - torch.log(Torus.r * (Torus.R + Torus.r * z[:, 1].cos()))
    error = values - truth.numpy()
    assert np.quantile(np.abs(error), 0.95) < 1e-5
    assert error.max() < 1e-5  # where no code is near, σ grows and can only take density away
    assert np.abs(density.inverse_transform(density.transform(X.numpy())) - X.numpy()).max() < 1e-4


def dcgan():
    """A generator in the manner of DCGAN, 8 latents to 1×8×8, with batch normalisation and upsampling."""
    return nn.Sequential(
        nn.Unflatten(1, (8, 1, 1)),
        nn.ConvTranspose2d(8, 32, 4),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 1, 3, padding=1),
        nn.Sigmoid(),
    )


@pytest.fixture(scope="module")
def trained_elsewhere():
    """Digits, and a DCGAN trained on the zeros and ones in plain PyTorch."""
    digits = load("digits")
    X = torch.from_numpy(digits.X / 16).float()
    known = X[np.isin(digits.y, (0, 1))]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = dcgan()
        critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        optimizers = [torch.optim.Adam(net.parameters(), 2e-3, (0.5, 0.99)) for net in (generator, critic)]
        bce = nn.functional.binary_cross_entropy_with_logits
        ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
        for _ in range(400):
            real, fake = known[torch.randint(len(known), (64,))], generator(torch.randn(64, 8))
            optimizers[1].zero_grad()
            (bce(critic(real), ones) + bce(critic(fake.detach()), zeros)).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            bce(critic(fake), ones).backward()
            optimizers[0].step()
    return generator, known.numpy(), X[digits.y == 7].numpy()


def test_generator_of_a_plain_dcgan_gets_likelihoods_and_stays_as_it_is(trained_elsewhere):
    generator, known, strange = trained_elsewhere
    before = digest(generator)
    density = ImplicitLikelihood(generator, 8, max_steps=300, random_state=0).fit(known[::2])
    held_out = known[1::2]
    rows = np.concatenate([held_out, strange])
    labels = np.repeat([0, 1], [len(held_out), len(strange)])
    found = detection_metrics(labels, density.log_likelihood(rows, "aggregate").values)
    assert digest(generator) == before
    # Sevens are nothing that a generator of zeros and ones makes.
    assert found["auroc"] > 0.98
    assert density.history_.validation_scores[-1] > density.history_.validation_scores[0]
    alone = density.log_likelihood(rows[:1], "riemannian").values
    assert alone == density.log_likelihood(rows, "riemannian").values[:1]


def test_flat_outputs_take_the_shape_of_the_data():
    generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh())
    X = generator(torch.randn(60, 3)).detach().reshape(-1, 1, 8, 8).numpy()
    density = ImplicitLikelihood(generator, 3, max_steps=5, random_state=0).fit(X)
    assert density.inverse_transform(np.zeros((1, 3))).shape == (1, 1, 8, 8)
    z = torch.randn(4, 3)
    assert np.allclose(
        density.inverse_transform(z.numpy()).reshape(4, 64), generator(z).detach().numpy(), atol=1e-5
    )


class Broken(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.linear = nn.Linear(2, 4)
        self.broken_forward = forward

    def forward(self, z):
        return self.broken_forward(self, z)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (
            nn.Linear(2, 3),
            "The generator must return one output of 4 values per latent, as a row of X has. Got (5, 3) "
            "for 5 latents instead.",
        ),
        (nn.Linear(7, 4), "The generator fails on latents of shape (5, 2): "),
        (
            Broken(lambda self, z: self.linear(z).log() * torch.nan),
            "The generator returns NaN or infinite values in evaluation mode.",
        ),
        (nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False)), "The generator"),
        (
            Broken(lambda self, z: self.linear(z) - self.linear(z).mean(0)),
            "The generator's output for a latent depends "
            "on the rest of the batch, even in evaluation mode: give its batch normalisation running "
            "statistics, and take random layers out.",
        ),
        (
            Broken(lambda self, z: self.linear(z).reshape(len(z), *((2, 2) if len(z) > 1 else (4,)))),
            "The generator's output must have one shape whatever the batch. Got (4,) for one latent and "
            "(2, 2) for five instead.",
        ),
        (
            Broken(lambda self, z: self.linear(z.detach())),
            "The generator's derivative is zero or not finite everywhere "
            "that was tried: its output must be a differentiable function of the latent, without detach, "
            "rounding or argmax.",
        ),
        (
            Broken(lambda self, z: self.linear(z).round()),
            "The generator's derivative is zero or not finite everywhere "
            "that was tried: its output must be a differentiable function of the latent, without detach, "
            "rounding or argmax.",
        ),
        (
            Broken(lambda self, z: self.linear(z.float())),
            "The generator fails on latents in double precision: ",
        ),
        (
            Broken(lambda self, z: self.linear(z).float()),
            "The generator returns torch.float32 for latents in double precision, in which it is scored: let "
            "it follow the type of its latents, without casts such as .float().",
        ),
    ],
)
def test_generators_without_a_likelihood_get_one_line(generator, message):
    X = np.random.default_rng(0).normal(size=(40, 4))
    with pytest.raises(InputError) as error:
        ImplicitLikelihood(generator, 2, max_steps=5).fit(X)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_generator_of_single_values_has_a_column_of_them():
    X = np.random.default_rng(0).normal(size=(40, 1))
    with pytest.raises(InputError, match=r"one output of 1 values per latent, .* Got \(5,\) for 5 latents"):
        ImplicitLikelihood(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), 2, max_steps=2).fit(X)


@pytest.mark.parametrize("method", ["riemannian", "aggregate"])
def test_tangents_are_pushed_through_the_generators_own_layers(method, monkeypatch):
    left_to_autograd = []
    monkeypatch.setattr(tangents, "_by_autograd", lambda f, *_: left_to_autograd.append(f))
    X = np.random.default_rng(0).normal(size=(40, 4))
    density = ImplicitLikelihood(nn.Linear(2, 4), 2, method=method, max_steps=2, random_state=0).fit(X)
    assert np.isfinite(density.score_samples(X)).all()
    assert left_to_autograd == []


def test_a_likelihood_of_ones_own_generator_is_not_saved(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 4))
    density = ImplicitLikelihood(nn.Linear(2, 4), 2, max_steps=2, random_state=0).fit(X)
    with pytest.raises(InputError, match="keep the state_dict of its model_"):
        density.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
