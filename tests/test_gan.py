"""Algorithm 1's four losses against their formulas, and what each of its updates moves."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from invgan.gan import ADVERSARIAL_LOSSES, GAN, GRADIENT_PENALTY, Inverse, aggregated_posterior_kl
from invgan.networks import RBFVariance, mlp
from invgan.training import Sample, Schedule, train

D, LATENT, ROWS = 5, 2, 16


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    """Networks here are initialised by PyTorch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def variance(n_centers=4):
    network = RBFVariance(LATENT, D, n_centers, max_std=10.0)
    network.fit_centers(draw(100, LATENT), seed=0)
    network.weight.data.uniform_(0.5, 2)
    return network


def make(loss="non-saturating", **parts):
    networks = {
        "generator": mlp([LATENT, 8, D]),
        "discriminator": mlp([D, 8, 1]),
        "inference": mlp([D, 8, LATENT]),
        "variance": variance(),
    }
    return GAN(**(networks | parts), latent_dim=LATENT, loss=loss)


def sample(rows=None, seed=1):
    """A step's minibatches with known rows; two with the same seed draw the same noise."""
    rows = draw(ROWS, D) if rows is None else rows
    return Sample(lambda: rows, torch.Generator().manual_seed(seed), len(rows), slice(None))


def digests(gan):
    return {
        name: hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in part.parameters())).hexdigest()
        for name, part in gan.named_children()
    }


# ---------------------------------------------------------------- the updates


def test_four_updates_in_the_order_of_algorithm_1():
    gan = make()
    assert [(update.name, update.modules) for update in gan.updates()] == [
        ("discriminator", (gan.discriminator,)),
        ("generator", (gan.generator,)),
        ("reconstruction", (gan.inference, gan.variance)),
        ("inversion", (gan.inference, gan.generator)),
    ]


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
@pytest.mark.parametrize(
    ("line", "moving"),
    [
        (0, {"discriminator"}),
        (1, {"generator"}),
        (2, {"inference", "variance"}),
        (3, {"inference", "generator"}),
    ],
)
def test_an_update_moves_its_own_modules_only(loss, line, moving):
    gan = make(loss)
    update = gan.updates()[line]
    gan.updates = lambda: [update]
    before = digests(gan)
    schedule = Schedule(max_steps=1, batch_size=ROWS, averaging=0)
    train(gan, draw(ROWS, D), None, prepare=nn.Identity(), schedule=schedule, seed=0)
    after = digests(gan)
    assert {name for name in before if before[name] != after[name]} == moving


def test_every_parameter_of_the_four_networks_is_moved_by_a_step():
    gan = make()
    before = {name: parameter.clone() for name, parameter in gan.named_parameters()}
    schedule = Schedule(max_steps=1, batch_size=ROWS, averaging=0)
    train(gan, draw(ROWS, D), None, prepare=nn.Identity(), schedule=schedule, seed=0)
    assert [name for name, parameter in gan.named_parameters() if parameter.equal(before[name])] == []


def test_inverse_trains_h_and_sigma_by_lines_11_and_13_and_leaves_the_rest_as_it_is():
    gan = make(generator=mlp([LATENT, 8, D], batch_norm=True))
    inverse = Inverse(gan.generator, gan.inference, gan.variance, latent_dim=gan.latent_dim)
    assert [(update.name, update.loss) for update in inverse.updates()] == [("inverse", inverse.inverse_loss)]
    generator = {name: tensor.clone() for name, tensor in gan.generator.state_dict().items()}
    before = digests(gan)
    schedule = Schedule(max_steps=1, batch_size=ROWS, averaging=0)
    train(inverse, draw(ROWS, D), None, prepare=nn.Identity(), schedule=schedule, seed=0)
    after = digests(gan)
    assert {name for name in before if before[name] != after[name]} == {"inference", "variance"}
    assert all(tensor.equal(generator[name]) for name, tensor in gan.generator.state_dict().items())


# ---------------------------------------------------------------- lines 7 and 9

REAL, FAKE = draw(50, 1, seed=2).double(), draw(50, 1, seed=3).double()


@pytest.mark.parametrize("name", ["saturating", "non-saturating"])
def test_discriminator_loss_is_that_of_line_7(name):
    critic_loss, _ = ADVERSARIAL_LOSSES[name]
    expected = -(REAL.sigmoid().log() + (1 - FAKE.sigmoid()).log()).mean()
    torch.testing.assert_close(critic_loss(REAL, FAKE), expected)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("saturating", lambda logit: (1 - logit.sigmoid()).log().mean()),  # line 9
        ("non-saturating", lambda logit: -logit.sigmoid().log().mean()),
        ("hinge", lambda logit: -logit.mean()),
        ("wasserstein", lambda logit: -logit.mean()),
    ],
)
def test_generator_loss_is_its_formula(name, formula):
    torch.testing.assert_close(ADVERSARIAL_LOSSES[name][1](FAKE), formula(FAKE))


def test_hinge_and_wasserstein_critic_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert ADVERSARIAL_LOSSES["hinge"][0](real, fake).item() == (0 + 0.5) / 2 + (0 + 2) / 2
    assert ADVERSARIAL_LOSSES["wasserstein"][0](real, fake).item() == -1 - 1.25


@pytest.mark.parametrize("name", ["saturating", "non-saturating"])
def test_losses_and_gradients_stay_finite_for_a_discriminator_that_is_certain(name):
    for loss in ADVERSARIAL_LOSSES[name]:
        logits = torch.tensor([-1e4, 1e4], requires_grad=True)
        value = loss(logits, logits) if loss is ADVERSARIAL_LOSSES[name][0] else loss(logits)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_adversarial_updates_see_real_rows_and_generated_ones(loss):
    gan, rows = make(loss), draw(ROWS, D)
    critic_loss, generator_loss = ADVERSARIAL_LOSSES[loss]
    fake = gan.discriminator(gan.generator(draw(ROWS, LATENT, seed=1)))
    torch.testing.assert_close(gan.generator_loss(sample(rows)), generator_loss(fake))
    if loss != "wasserstein":
        expected = critic_loss(gan.discriminator(rows), fake)
        torch.testing.assert_close(gan.discriminator_loss(sample(rows)), expected)


@pytest.mark.parametrize("shape", [(D,), (1, 5, 1)])
@pytest.mark.parametrize("norm", [0.25, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic(norm, shape):
    critic = nn.Linear(D, 1)
    critic.weight.data *= norm / critic.weight.data.norm()
    flat = nn.Sequential(nn.Flatten(), critic)
    generator = nn.Sequential(nn.Linear(LATENT, D), nn.Unflatten(1, shape))
    gan = make("wasserstein", generator=generator, discriminator=flat)
    rows = draw(ROWS, *shape)
    fake = generator(draw(ROWS, LATENT, seed=1))
    penalty = gan.discriminator_loss(sample(rows)) - (flat(fake).mean() - flat(rows).mean())
    torch.testing.assert_close(penalty.item(), GRADIENT_PENALTY * (norm - 1) ** 2, atol=1e-5, rtol=1e-5)


def test_gradient_penalty_is_taken_between_the_real_and_the_generated_row():
    # The critic ½‖x‖² has gradient x, so the penalty reveals where it was taken.
    rows, constant = draw(ROWS, D), draw(1, D, seed=4)
    seen = []

    class HalfSquare(nn.Module):
        def forward(self, x):
            seen.append(x.detach())
            return 0.5 * x.square().sum(1, keepdim=True)

    class Constant(nn.Module):
        def forward(self, z):
            return constant.expand(len(z), D)

    gan = make("wasserstein", generator=Constant(), discriminator=HalfSquare())
    loss = gan.discriminator_loss(sample(rows))
    real, fake, between = seen
    share = ((between - fake) * (real - fake)).sum(1) / (real - fake).square().sum(1)
    torch.testing.assert_close(between, share[:, None] * real + (1 - share[:, None]) * fake)
    assert ((share >= 0) & (share < 1)).all()
    assert share.unique().numel() == ROWS  # one draw per row
    wasserstein = (fake.square().sum(1) - real.square().sum(1)).mean() / 2
    penalty = (between.norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(loss, wasserstein + GRADIENT_PENALTY * penalty)


# ---------------------------------------------------------------- lines 11 and 13


def test_aggregated_posterior_kl_against_torch_distributions():
    z = 3 * draw(40, 6).double() + 1
    posterior = Normal(z.mean(0), z.std(0, correction=0))
    expected = kl_divergence(posterior, Normal(torch.zeros(6).double(), 1.0)).sum()
    torch.testing.assert_close(aggregated_posterior_kl(z), expected)


def test_aggregated_posterior_kl_of_a_collapsed_encoder_is_finite_and_pushes_rows_apart():
    z = torch.full((4, 1), 0.5).requires_grad_()
    value = aggregated_posterior_kl(z)
    assert value.isfinite()
    assert value > aggregated_posterior_kl(z + torch.tensor([[-0.1], [-0.1], [0.1], [0.1]]))


def test_reconstruction_loss_is_the_gaussian_log_likelihood_and_the_kl():
    gan, rows = make(), draw(ROWS, D)
    z = gan.inference(rows)
    likelihood = Independent(Normal(gan.generator(z), gan.variance(z)), 1).log_prob(rows).mean()
    constant = D / 2 * torch.log(torch.tensor(2 * torch.pi))
    expected = -likelihood - constant + aggregated_posterior_kl(z)
    torch.testing.assert_close(gan.reconstruction_loss(sample(rows)), expected)


def test_reconstruction_loss_takes_images_as_their_flattened_rows():
    generator, inference = mlp([LATENT, 8, D]), mlp([D, 8, LATENT])
    table = make(generator=generator, inference=inference, variance=(sigma := variance()))
    images = make(
        generator=nn.Sequential(generator, nn.Unflatten(1, (1, D, 1))),
        inference=nn.Sequential(nn.Flatten(), inference),
        variance=sigma,
    )
    rows = draw(ROWS, D)
    image_loss = images.reconstruction_loss(sample(rows.view(ROWS, 1, D, 1)))
    assert image_loss.item() == table.reconstruction_loss(sample(rows)).item()


def test_inversion_loss_is_zero_for_an_exact_inverse_and_the_squared_distance_otherwise():
    basis = torch.linalg.qr(draw(D, LATENT))[0]  # orthonormal columns
    generator, inference = nn.Linear(LATENT, D), nn.Linear(D, LATENT)
    generator.load_state_dict({"weight": basis, "bias": torch.zeros(D)})
    inference.load_state_dict({"weight": basis.T, "bias": torch.zeros(LATENT)})
    gan = make(generator=generator, inference=inference)
    assert gan.inversion_loss(sample()).item() < 1e-12
    inference.bias.data = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(gan.inversion_loss(sample()).item(), 25.0)


def test_validation_score_is_the_mean_joint_log_density():
    gan, rows = make().double().eval(), draw(ROWS, D).double()
    z = gan.inference(rows)
    expected = Normal(gan.generator(z), gan.variance(z)).log_prob(rows).sum(1) + Normal(0.0, 1.0).log_prob(
        z
    ).sum(1)
    torch.testing.assert_close(gan.validation_score(rows), expected.mean())


def test_lemma_3_corrected():
    r"""The log-likelihood of x has gradient W ⊙ (u vᵀ) in W, with u = σ² − r².

    With β = W²v + ζ = σ⁻², feature i contributes ½ log β_i − ½ β_i r_i², and ∂β_i/∂W_ik = 2 W_ik v_k. The
    paper's u has σ³ in place of σ² and leaves out ζ, which changes nothing but β.
    """
    gan = make().double()
    rows = draw(1, D).double()
    z = gan.inference(rows)
    log_likelihood = Normal(gan.generator(z), gan.variance(z)).log_prob(rows).sum()
    (gradient,) = torch.autograd.grad(log_likelihood, gan.variance.weight)
    with torch.no_grad():
        v = gan.variance.kernels(z)[0]  # K
        u = (gan.variance(z).square() - (rows - gan.generator(z)).square())[0]  # D
        torch.testing.assert_close(gradient, gan.variance.weight * torch.outer(u, v))


def test_line_11_moves_w_by_an_elementwise_product_with_the_mean_over_rows():
    gan, rows = make(), draw(ROWS, D)
    (gradient,) = torch.autograd.grad(gan.reconstruction_loss(sample(rows)), gan.variance.weight)
    with torch.no_grad():
        z = gan.inference(rows)
        u = gan.variance(z).square() - (rows - gan.generator(z)).square()  # m×D
        mean_product = u.T @ gan.variance.kernels(z) / ROWS
        torch.testing.assert_close(gradient, -gan.variance.weight * mean_product)


# ---------------------------------------------------------------- low precision


def test_only_the_networks_run_in_low_precision():
    class Double(nn.Module):
        """Networks on which autocast has no hold, so that all rounding would be the loss's own."""

        def __init__(self, width):
            super().__init__()
            self.width = width

        def forward(self, x):
            return F.pad(2 * x, (0, max(0, self.width - x.shape[1])))[:, : self.width]

    gan = make(generator=Double(D), inference=Double(LATENT))
    expected = gan.reconstruction_loss(sample())
    with torch.autocast("cpu", torch.bfloat16):
        assert gan.reconstruction_loss(sample()).item() == expected.item()


@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_losses_are_float32_under_autocast(loss):
    gan = make(loss)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [update.loss(sample()) for update in gan.updates()]
    assert [loss.dtype for loss in losses] == [torch.float32] * 4
    assert all(loss.isfinite() for loss in losses)
