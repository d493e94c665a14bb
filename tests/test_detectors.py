"""The systems that InvGAN is compared with: truths of all of them, and what each says of itself."""

import copy
import math
import re

import numpy as np
import pytest
import sklearn.ensemble
import sklearn.mixture
import sklearn.svm
import torch
from scipy.stats import multivariate_normal
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.nn.utils import parametrizations

import invgan
from invgan import InputError, TrainingDivergedError, artifact, density, detectors
from invgan.detectors.anogan import SearchedGAN
from invgan.detectors.bigan import BiGAN, CycleBiGAN
from invgan.detectors.dagmm import GaussianMixture
from invgan.detectors.energy import EnergyModel
from invgan.detectors.ganomaly import EncoderDecoderEncoder
from invgan.detectors.vae import Autoencoder
from invgan.estimators import AnomalyDetector, NeuralDetector
from invgan.networks import SpectralNorm, build_critic, initialize, mlp, settle, spectrally_normalized
from invgan.training import Sample

NEURAL = ("DSEBM", "DAGMM", "AnoGAN", "EGBAD", "GANomaly", "ALAD", "VAE")
CLASSIC = ("OneClassSVM", "IsolationForest")
KINDS = {
    "DSEBM, reconstruction": ("DSEBM", {"method": "reconstruction"}),
    "EGBAD, cross-entropy": ("EGBAD", {"method": "cross-entropy"}),
    "VAE, bound": ("VAE", {"method": "bound"}),
}
TABLES = {name: (name, {}) for name in NEURAL + CLASSIC} | KINDS
IMAGES = {f"{name}, images": (name, {"max_steps": 3, "batch_size": 16}) for name in NEURAL} | {
    f"{name}, images": (name, {}) for name in CLASSIC
}
CASES = TABLES | IMAGES


def bent(n=200, seed=0):
    """Rows (n, 3) along a parabola, in units of which each column has its own."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    noise = rng.normal(size=(n, 2))
    return np.c_[x, 0.5 * x**2 + 0.5 * noise[:, 0], noise[:, 1]] * [4.0, 0.25, 1.0] + [100.0, 0.0, 0.0]


def pictures(n=60, seed=0, channels=2):
    return np.random.default_rng(seed).integers(0, 256, (n, channels, 12, 13)).astype(np.uint8)


def model(name, **parameters):
    parameters = {"random_state": 0} | parameters
    if name in NEURAL:
        parameters = {"max_steps": 20} | parameters
    if name == "AnoGAN":
        parameters = {"search_steps": 4} | parameters
    if name == "IsolationForest":
        parameters = {"n_estimators": 10} | parameters
    return getattr(detectors, name)(**parameters)


def rows_for(case, n, seed=0):
    return pictures(n, seed) if case.endswith("images") else bent(n, seed)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A detector's name and parameters, and a function that draws rows for it."""
    name, parameters = CASES[request.param]
    return name, parameters, lambda n, seed=0: rows_for(request.param, n, seed)


@pytest.fixture(scope="module")
def fitted(case):
    """A detector that was trained a little, and a function that draws new rows for it."""
    name, parameters, draw = case
    return model(name, **parameters).fit(draw(60)), lambda n: draw(n, seed=1)


def tensors_of(estimator):
    return {name: tensor.clone() for name, tensor in estimator._state()[1].items()}


def drawing(rows, n=None):
    """What an update draws from: always these rows, and noise of its own."""
    return Sample(lambda: rows, torch.Generator().manual_seed(0), n or len(rows), slice(None))


# Truths of every detector


def test_a_score_does_not_depend_on_the_rows_around_it_nor_on_those_before(fitted):
    estimator, draw = fitted
    X = draw(40)
    together = estimator.score_samples(X)
    assert np.isfinite(together).all()
    assert len(np.unique(together)) > 30
    order = np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(estimator.score_samples(X[order]), together[order])
    for i in (0, 31, 39):
        assert np.array_equal(estimator.score_samples(X[[i]]), together[[i]])
    assert np.array_equal(estimator.score_samples(X), together)


@pytest.mark.parametrize("d", [5, 15])  # products of odd length are rounded by a row's place
def test_a_score_by_support_vectors_does_not_depend_on_the_rows_around_it(d):
    X = np.random.default_rng(0).normal(size=(200, d))
    estimator, order = model("OneClassSVM").fit(X), np.random.default_rng(0).permutation(200)
    assert np.array_equal(estimator.score_samples(X[order]), estimator.score_samples(X)[order])


def test_scoring_changes_no_weight_and_no_buffer(fitted):
    estimator, draw = fitted
    before, randomness = tensors_of(estimator), torch.random.get_rng_state()
    estimator.predict(draw(20))
    after = tensors_of(estimator)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), randomness)
    if isinstance(estimator, NeuralDetector):
        assert not any(module.training for module in estimator.model_.modules())
        assert all(p.grad is None and not p.requires_grad for p in estimator.model_.parameters())


def test_the_same_seed_gives_the_same_model_and_draws_nothing_from_the_global_generator(case, fitted):
    name, parameters, draw = case
    before = torch.random.get_rng_state()
    again = model(name, **parameters).fit(draw(60))
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second = tensors_of(fitted[0]), tensors_of(again)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert np.array_equal(fitted[0].calibration_scores_, again.calibration_scores_)
    other = model(name, **parameters | {"random_state": 1}).fit(draw(60))
    assert not np.array_equal(other.score_samples(draw(9, 1)), again.score_samples(draw(9, 1)))


def test_a_saved_model_scores_bit_for_bit_alike(fitted, tmp_path):
    estimator, draw = fitted
    estimator.save(tmp_path / "m")
    again, X = invgan.load(tmp_path / "m"), draw(30)
    assert type(again) is type(estimator)
    assert again.get_params() == estimator.get_params()
    assert np.array_equal(again.score_samples(X), estimator.score_samples(X))
    assert np.array_equal(again.p_values(X), estimator.p_values(X))
    assert np.array_equal(again.predict(X), estimator.predict(X))


def test_decisions_follow_from_scores(fitted):
    check_decisions(*fitted)


def check_decisions(estimator, draw):
    X = draw(30)
    scores = estimator.score_samples(X)
    calibration = estimator.calibration_scores_
    expected = [(1 + (calibration <= score).sum()) / (1 + len(calibration)) for score in scores]
    assert estimator.p_values(X) == pytest.approx(expected)
    estimator.set_threshold(0.3)
    assert estimator.predict(X).tolist() == [-1 if score < estimator.offset_ else 1 for score in scores]
    assert np.array_equal(estimator.decision_function(X), scores - estimator.offset_)
    assert (calibration < estimator.offset_).mean() <= 0.3


@pytest.mark.parametrize("name", density.__all__)
def test_a_density_model_is_a_detector_too(name):
    estimator = getattr(density, name)(max_steps=2, width=4, random_state=0).fit(bent())
    assert isinstance(estimator, AnomalyDetector)
    check_decisions(estimator, lambda n: bent(n, seed=1))


def test_every_parameter_gets_a_gradient(fitted):
    estimator, draw = fitted
    if not isinstance(estimator, NeuralDetector):
        pytest.skip("no networks")
    network = copy.deepcopy(estimator.model_).float().requires_grad_().train()
    sample = drawing(estimator.scaling_(torch.from_numpy(draw(32))).float())
    reached = set()
    for update in network.updates():
        parameters = [p for module in update.modules for p in getattr(module, "module", module).parameters()]
        gradients = torch.autograd.grad(update.loss(sample), parameters, allow_unused=True)
        reached |= {p for p, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}
    assert [name for name, p in network.named_parameters() if p not in reached] == []


def test_a_far_row_is_scored(fitted):
    estimator, draw = fitted
    far = draw(3).astype(float)
    far[:] = (
        [[1e15], [-1e15], [1e18]] if far.ndim == 2 else np.array([1e15, -1e15, 1e18])[:, None, None, None]
    )
    assert np.isfinite(estimator.score_samples(far)).all()


@parametrize_with_checks(
    [model(name, **{"max_steps": 3} if name in NEURAL else {}) for name in NEURAL + CLASSIC]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(("name", "parameters"), TABLES.values(), ids=TABLES)
@pytest.mark.parametrize(
    "X",
    [np.ones((40, 3)), np.c_[bent(40), np.full(40, 3.0)], bent(40)[:, :1], np.repeat(bent(4), 10, axis=0)],
    ids=["all constant", "a constant column", "one column", "duplicates"],
)
def test_degenerate_tables_have_finite_scores(name, parameters, X):
    estimator = model(name, **parameters | ({"max_steps": 3} if name in NEURAL else {})).fit(X)
    assert np.isfinite(estimator.score_samples(np.concatenate([X, X + 1]))).all()


@pytest.mark.parametrize("name", NEURAL)
def test_an_interrupted_fit_goes_on_to_the_same_weights(name, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    original, steps = invgan.training._Run.advance, []

    def advance(run, draw):
        if len(steps) == 6:
            raise Killed
        steps.append(run.step)
        original(run, draw)

    settings = {"max_steps": 10, "checkpoint": str(tmp_path / "c"), "checkpoint_every": 4}
    with monkeypatch.context() as patch:
        patch.setattr(invgan.training._Run, "advance", advance)
        with pytest.raises(Killed):
            model(name, **settings).fit(bent(60))
    continued = model(name, **settings).fit(bent(60))
    straight = model(name, max_steps=10).fit(bent(60))
    assert np.array_equal(continued.score_samples(bent(9, 1)), straight.score_samples(bent(9, 1)))


# DSEBM


def small_energy(method="energy", images=False):
    shape = (2, 8, 8) if images else (3,)
    encoder = nn.Sequential(nn.Flatten(), mlp([math.prod(shape), 16, 8], activation="silu"))
    network = EnergyModel(encoder, shape, method=method)
    initialize(network, torch.Generator().manual_seed(0))
    return network.double().eval()


@pytest.mark.parametrize("images", [False, True])
def test_dsebms_slope_is_the_gradient_of_its_energy(images):
    network = small_energy(images=images)
    rows = torch.randn(4, *((2, 8, 8) if images else (3,)), dtype=torch.float64)
    expected = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: network.energy(x[None])[0], row) for row in rows]
    )
    torch.testing.assert_close(network.slope(rows), expected)
    step, direction = 1e-5, torch.randn_like(rows)
    change = network.energy(rows + step * direction) - network.energy(rows - step * direction)
    along = (network.slope(rows) * direction).flatten(1).sum(1)
    torch.testing.assert_close(change / (2 * step), along, rtol=1e-6, atol=1e-6)


def test_dsebms_energy_is_the_papers():
    network = small_energy()
    rows = torch.randn(5, 3, dtype=torch.float64)
    centre, hidden = network.center.weight[0], network.encoder(rows)
    expected = 0.5 * ((rows - centre) ** 2).sum(1) - torch.log(1 + torch.exp(hidden)).sum(1)
    torch.testing.assert_close(network.energy(rows), expected)
    torch.testing.assert_close(network.score(rows), -expected)


def test_dsebms_other_score_is_the_error_of_its_reconstruction():
    network = small_energy("reconstruction")
    rows = torch.randn(5, 3, dtype=torch.float64)
    restored = rows - network.slope(rows)
    torch.testing.assert_close(network.score(rows), -(rows - restored).square().sum(1))


def test_dsebm_learns_the_density_of_noisy_rows():
    # Standardised normal rows with noise of variance 1 are N(0, 2 I): E(x) is ‖x‖² / 4, and f(x) is x / 2.
    X = np.random.default_rng(0).normal(size=(3000, 2))
    estimator = model("DSEBM", max_steps=500).fit(X)
    side = np.linspace(-2, 2, 5)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    scaled = estimator.scaling_(torch.from_numpy(grid))
    torch.testing.assert_close(estimator.model_.slope(scaled), scaled / 2, rtol=0, atol=0.15)
    energy = -estimator.score_samples(grid)
    expected = scaled.square().sum(1).numpy() / 4
    assert energy - energy[12] == pytest.approx(expected - expected[12], abs=0.2)


# DAGMM


def codes_and_assignments(n=200, p=3, k=4):
    draws = torch.Generator().manual_seed(0)
    codes = (
        torch.randn(n, p, generator=draws, dtype=torch.float64) @ torch.randn(p, p, generator=draws).double()
    )
    return codes, (3 * torch.randn(n, k, generator=draws, dtype=torch.float64)).softmax(1)


def test_dagmms_energy_is_a_gaussian_mixtures_log_density():
    codes, assignments = codes_and_assignments()
    mixture = GaussianMixture.fit(codes, assignments)
    covariances = mixture.factors @ mixture.factors.mT
    components = [
        np.log(weight) + multivariate_normal(mean, covariance).logpdf(codes)
        for weight, mean, covariance in zip(
            *(t.numpy() for t in (mixture.weights, mixture.means, covariances)), strict=True
        )
    ]
    assert mixture.log_prob(codes).numpy() == pytest.approx(np.logaddexp.reduce(components, 0))
    theirs = sklearn.mixture.GaussianMixture(4)
    theirs.weights_, theirs.means_ = mixture.weights.numpy(), mixture.means.numpy()
    theirs.precisions_cholesky_ = torch.linalg.inv(mixture.factors).mT.numpy()
    assert mixture.log_prob(codes).numpy() == pytest.approx(theirs.score_samples(codes.numpy()))
    torch.testing.assert_close(mixture.variances(), covariances.diagonal(dim1=1, dim2=2))


def test_dagmms_moments_are_those_of_the_rows_assigned():
    codes, _ = codes_and_assignments()
    groups = torch.arange(len(codes)) % 4
    mixture = GaussianMixture.fit(codes, nn.functional.one_hot(groups, 4))
    for group in range(4):
        members = codes[groups == group].numpy()
        assert mixture.means[group].numpy() == pytest.approx(members.mean(0))
        covariance = (mixture.factors[group] @ mixture.factors[group].T).numpy()
        assert covariance == pytest.approx(np.cov(members.T, bias=True) + 1e-6 * np.eye(3))
    assert mixture.weights.tolist() == pytest.approx([0.25] * 4)


def test_dagmm_scores_by_the_mixture_of_all_training_rows():
    X = bent()
    estimator = model("DAGMM").fit(X)
    from invgan.estimators import Split

    split = Split.draw(len(X), int(np.random.RandomState(0).randint(2**31 - 1)))
    network = estimator.model_
    with torch.no_grad():
        codes, _ = network.represent(estimator.scaling_(torch.from_numpy(X[split.training])))
        mixture = GaussianMixture.fit(codes, network.assign(codes))
        new, _ = network.represent(estimator.scaling_(torch.from_numpy(bent(20, 1))))
        assert estimator.score_samples(bent(20, 1)) == pytest.approx(mixture.log_prob(new).numpy())


def test_dagmms_representation_has_the_relative_error_and_the_cosine():
    estimator = model("DAGMM").fit(bent())
    network = estimator.model_
    rows = estimator.scaling_(torch.from_numpy(bent(20, 1)))
    with torch.no_grad():
        code = network.encoder(rows)
        restored = network.decoder(code)
        found, errors = network.represent(rows)
    distance = (rows - restored).norm(dim=1)
    torch.testing.assert_close(errors, distance.square())
    torch.testing.assert_close(found[:, :-2], code)
    torch.testing.assert_close(found[:, -2], distance / rows.norm(dim=1).clamp_min(0.1 * 3**0.5))
    torch.testing.assert_close(
        found[:, -1], (rows * restored).sum(1) / rows.norm(dim=1) / restored.norm(dim=1)
    )


def test_a_component_that_no_row_belongs_to_does_no_harm():
    codes, _ = codes_and_assignments()
    one = GaussianMixture.fit(codes, torch.ones(len(codes), 1))
    assignments = torch.zeros(len(codes), 2)
    assignments[:, 0] = 1
    torch.testing.assert_close(
        GaussianMixture.fit(codes, assignments).log_prob(codes), one.log_prob(codes), rtol=0, atol=1e-5
    )


# AnoGAN


def planted(search_steps):
    """A generator from the plane into six dimensions, a discriminator, and rows with their latents."""
    draws = torch.Generator().manual_seed(0)
    generator, critic = mlp([2, 32, 6], activation="silu"), build_critic((6,))
    network = SearchedGAN(generator, critic, latent_dim=2, search_steps=search_steps)
    initialize(network, draws)
    network.double().requires_grad_(False).eval()
    for layer in (generator[0], generator[-1]):
        layer.weight.mul_(3)
    latents = torch.randn(40, 2, generator=draws, dtype=torch.float64)
    return network, network.generator(latents), latents


def test_anogan_recovers_a_planted_latent():
    network, rows, latents = planted(search_steps=300)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found, losses = network.search(rows)
    torch.testing.assert_close(found, latents, rtol=0, atol=0.02)
    assert losses.max() < 0.02 * rows.abs().sum(1).mean()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_anogans_score_is_equation_4_at_the_best_latent_met():
    network, rows, _ = planted(search_steps=7)
    rows = rows + 0.3
    found, losses = network.search(rows)
    generated = network.generator(found)
    features = (network.critic.features(rows) - network.critic.features(generated)).abs().sum(1)
    torch.testing.assert_close(losses, 0.9 * (rows - generated).abs().sum(1) + 0.1 * features)
    torch.testing.assert_close(network.score(rows), -losses)


def test_anogan_without_a_search_takes_the_best_of_64_latents():
    network, rows, _ = planted(search_steps=0)
    network.critic.body[-2] = nn.Tanh()  # features that negative inputs do not silence
    starts = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)).double()
    generated = network.generator(starts)
    f = network.critic.features
    distances = torch.stack(
        [0.9 * (rows - g).abs().sum(1) + 0.1 * (f(rows) - f(g[None])).abs().sum(1) for g in generated]
    )
    torch.testing.assert_close(network.search(rows)[1], distances.amin(0))
    searching, _, _ = planted(search_steps=20)
    searching.critic.body[-2] = nn.Tanh()
    assert (searching.search(rows)[1] <= distances.amin(0) + 1e-12).all()


# EGBAD and ALAD


class Constant(nn.Module):
    """A discriminator's last layer that says the same of everything."""

    def forward(self, features):
        return features[:, :1] * 0


def linear(weight):
    layer = nn.Linear(*weight.T.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def invertible(kind, **parameters):
    """A generator, its exact inverse, and random discriminators."""
    draws = torch.Generator().manual_seed(0)
    critics = [build_critic((2,), (2,)) for _ in range(3 if kind is CycleBiGAN else 1)]
    for critic in critics:
        initialize(critic, draws)
    weight = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    return kind(linear(weight), linear(weight.inverse()), *critics, latent_dim=2, **parameters).eval()


def test_where_the_inverse_is_exact_the_scores_see_no_reconstruction_error():
    rows = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        invertible(BiGAN, method="features").score(rows), torch.zeros(9), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(invertible(CycleBiGAN).score(rows), torch.zeros(9), rtol=0, atol=1e-5)
    network = invertible(BiGAN, method="cross-entropy")
    probability = network.pair_critic(rows, network.inference(rows))[:, 0].sigmoid()
    torch.testing.assert_close(network.score(rows), 0.1 * probability.log(), rtol=1e-4, atol=1e-6)


def test_elsewhere_they_are_the_papers():
    rows = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    network = invertible(BiGAN, method="features")
    network.inference = linear(torch.tensor([[0.3, 0.0], [0.1, 0.7]]))
    z = network.inference(rows)
    restored = network.generator(z)
    f = network.pair_critic.features
    expected = 0.9 * (rows - restored).abs().sum(1) + 0.1 * (f(rows, z) - f(restored, z)).abs().sum(1)
    torch.testing.assert_close(network.score(rows), -expected)
    cycle = invertible(CycleBiGAN)
    cycle.inference = network.inference
    f = cycle.row_critic.features
    torch.testing.assert_close(cycle.score(rows), -(f(rows, rows) - f(rows, restored)).abs().sum(1))


@pytest.mark.parametrize(
    ("kind", "parameters", "games"), [(BiGAN, {"method": "features"}, 1), (CycleBiGAN, {}, 3)]
)
def test_the_adversaries_losses(kind, parameters, games):
    rows = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    network = invertible(kind, **parameters)
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))  # as the sample will draw it
    x, h, g = rows, network.inference(rows), network.generator(z)
    pairs = [((x, h), (g, z)), ((x, x), (x, network.generator(h))), ((z, z), (z, network.inference(g)))]
    expected = 0.0
    for critic, (real, fake) in zip(network.critics(), pairs[:games], strict=True):
        expected -= critic(*real).sigmoid().log().mean() + (1 - critic(*fake).sigmoid()).log().mean()
    torch.testing.assert_close(network.discriminator_loss(drawing(rows)), expected)
    for critic in network.critics():  # labels exchanged are logits with the other sign
        critic.body[-1].weight.data.neg_()
        critic.body[-1].bias.data.neg_()
    torch.testing.assert_close(network.generator_loss(drawing(rows)), expected)
    for critic in network.critics():  # and one that cannot tell has log 2 to pay for each of a pair
        critic.body[-1] = Constant()
    assert network.discriminator_loss(drawing(rows)).item() == pytest.approx(games * 2 * math.log(2))


def normalized_layers(network):
    return [layer for layer in network.modules() if isinstance(layer, SpectralNorm)]


def norm_of(layer):
    matrix = layer.layer.weight.flatten(1)
    return torch.linalg.matrix_norm(matrix / (layer.left @ matrix @ layer.right), 2).item()


@pytest.mark.parametrize("X", [bent(), pictures()], ids=["tables", "images"])
def test_alads_spectral_norms_are_1(X):
    network = model("ALAD", max_steps=3, batch_size=16).fit(X).model_
    for part in (network.inference, *network.critics()):
        layers = normalized_layers(part)
        assert len(layers) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in part.modules())
        assert [norm_of(layer) for layer in layers] == pytest.approx([1] * len(layers), abs=1e-5)


def test_power_iterations_approach_the_spectral_norm_and_evaluation_leaves_them():
    torch.manual_seed(0)
    layer = SpectralNorm(nn.Linear(6, 5)).double()
    layer.settle()
    with torch.no_grad():
        layer.layer.weight.add_(0.3 * torch.randn(5, 6))
    assert abs(norm_of(layer) - 1) > 1e-3
    x = torch.randn(2, 6).double()
    for _ in range(200):
        layer(x)
    assert norm_of(layer) == pytest.approx(1, abs=1e-9)
    layer.eval()
    before = layer.left.clone()
    with torch.no_grad():
        layer.layer.weight.mul_(torch.rand(5, 6) + 0.5)
    layer(x)
    assert torch.equal(layer.left, before)


@pytest.mark.parametrize(
    ("plain", "shape"), [(nn.Linear(4, 3), (2, 4)), (nn.Conv2d(2, 3, 4, 2, 1), (2, 2, 8, 8))]
)
def test_a_normalised_layer_and_its_gradient_are_pytorchs(plain, shape):
    plain = plain.double()
    with torch.no_grad():  # PyTorch's power iteration settles only where singular values lie apart
        u, _, v = torch.linalg.svd(plain.weight.flatten(1), full_matrices=False)
        plain.weight.copy_((u * torch.tensor([3.0, 2.0, 1.0]) @ v).view_as(plain.weight))
    ours, theirs = SpectralNorm(copy.deepcopy(plain)).eval(), copy.deepcopy(plain)
    parametrizations.spectral_norm(theirs, n_power_iterations=200)
    ours.settle()
    theirs.train()
    x = torch.randn(*shape, dtype=torch.float64)
    theirs(x)
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x))
    (found,) = torch.autograd.grad(ours(x).square().sum(), ours.layer.weight)
    (expected,) = torch.autograd.grad(theirs(x).square().sum(), theirs.parametrizations.weight.original)
    torch.testing.assert_close(found, expected)


def test_a_normalised_network_stretches_nothing():
    network = spectrally_normalized(mlp([4, 16, 16, 3])).double()
    initialize(network, torch.Generator().manual_seed(0))
    settle(network)
    x, y = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(1)).double()
    stretched = (network.eval()(x) - network(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert stretched.max() <= 1 + 1e-9


def test_a_critic_joins_images_along_channels_and_vectors_after_encoding():
    images, z = torch.rand(3, 2, 16, 16), torch.rand(3, 5)
    both, mixed = build_critic((2, 16, 16), (2, 16, 16)), build_critic((2, 16, 16), (5,))
    assert both.body[0].in_channels == 4
    assert isinstance(both.first, nn.Identity)
    assert mixed.body[0].in_features == 128 + 5
    for critic, parts in ((both, (images, images)), (mixed, (images, z))):
        torch.testing.assert_close(critic(*parts), critic.body[-1](critic.features(*parts)))
        swapped = [part.flip(0) for part in parts]
        torch.testing.assert_close(critic(*swapped), critic(*parts).flip(0))  # each row by itself


# GANomaly


def test_ganomalys_losses_and_score_are_the_papers():
    draws = torch.Generator().manual_seed(0)
    parts = mlp([4, 8, 2]), mlp([2, 8, 4]), mlp([4, 8, 2])
    network = EncoderDecoderEncoder(*parts, build_critic((4,)))
    initialize(network, draws)
    rows = torch.randn(6, 4, generator=draws)
    code, restored = parts[0](rows), parts[1](parts[0](rows))
    second, f = parts[2](restored), network.critic.features
    adversarial = (f(rows) - f(restored)).square().mean()
    contextual, encoder = (rows - restored).abs().mean(), (code - second).square().mean()
    expected = adversarial + 50 * contextual + encoder
    torch.testing.assert_close(network.generator_loss(drawing(rows)), expected)
    torch.testing.assert_close(network.score(rows), -(code - second).abs().sum(1))
    torch.testing.assert_close(network.validation_score(rows), -(50 * contextual + encoder))
    cross_entropy = nn.functional.binary_cross_entropy_with_logits
    critic_loss = cross_entropy(network.critic(rows), torch.ones(6, 1)) + cross_entropy(
        network.critic(restored), torch.zeros(6, 1)
    )
    torch.testing.assert_close(network.discriminator_loss(drawing(rows)), critic_loss)


def test_ganomaly_of_a_perfect_autoencoder_finds_nothing():
    weight = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    network = EncoderDecoderEncoder(
        linear(weight), linear(weight.inverse()), linear(weight), build_critic((2,))
    )
    rows = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in network.losses(rows))
    torch.testing.assert_close(network.score(rows), torch.zeros(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ganomaly_takes_any_number_of_channels_and_single_rows(channels):
    estimator = model("GANomaly", max_steps=2, batch_size=8).fit(pictures(30, channels=channels))
    X = pictures(5, 1, channels)
    one_by_one = [estimator.score_samples(row[None])[0] for row in X]
    assert estimator.score_samples(X).tolist() == one_by_one


# VAE


def test_vaes_bound_is_below_an_importance_estimate_of_the_density():
    n_draws, n_rows = 2000, 20
    estimator = model("VAE", max_steps=100).fit(bent())
    network, rows = estimator.model_, estimator.scaling_(torch.from_numpy(bent(n_rows, 1)))
    rows = rows.repeat(n_draws, 1)
    with torch.no_grad():
        mean, std = network.encode(rows)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1), dtype=mean.dtype)
        z = mean + std * noise
        log_ratio = 0.5 * (noise.square() - z.square()).sum(1) + std.log().sum(1)  # p(z) / q(z | x)
        log_weights = (network.log_conditional(rows, z) + log_ratio).view(n_draws, n_rows)
        bounds = network.bound(rows, noise).view(n_draws, n_rows)
    estimate = log_weights.logsumexp(0) - math.log(n_draws)
    errors = [values.std(0) / math.sqrt(n_draws) for values in (bounds, log_weights)]
    assert (bounds.mean(0) <= estimate + 3 * errors[0]).all()
    # The bound's mean is that of the log-weights: their Kullback-Leibler term is the same, in closed form.
    assert ((bounds.mean(0) - log_weights.mean(0)).abs() < 4 * (errors[0] + errors[1])).all()


def test_with_the_true_posterior_vaes_bound_is_the_density():
    decoder = linear(
        torch.tensor([[1.0], [0.0]])
    )  # x | z ~ N(z, 1), so x ~ N(0, 2) and z | x ~ N(x / 2, 1 / 2)
    encoder = nn.Linear(1, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[0.5], [0.0]]))
        encoder.bias.copy_(torch.tensor([0.0, math.atanh(-0.5 * math.log(2) / math.log(20))]))
    network = Autoencoder(encoder, decoder, 1, method="bound").double()
    rows = torch.linspace(-3, 3, 7).double()[:, None]
    # Two nodes integrate a parabola exactly.
    found = sum(network.bound(rows, torch.full((7, 1), node).double()) for node in (-1.0, 1.0)) / 2
    expected = torch.distributions.Normal(0, math.sqrt(2)).log_prob(rows[:, 0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["reconstruction", "bound"])
def test_vaes_score_is_in_nats_of_the_datas_units(method):
    X, factors = bent(60), np.array([2.0, 0.25, 8.0])  # powers of two, so that scaling returns the same bits
    here, there = (model("VAE", method=method, max_steps=3).fit(rows) for rows in (X, X * factors))
    expected = here.score_samples(X) - np.log(factors).sum()
    assert there.score_samples(X * factors) == pytest.approx(expected, abs=1e-9)


# Those of scikit-learn


def learned_by(estimator, X):
    """The rows that a detector without validation learned from, in its units, and others."""
    from invgan.estimators import Split

    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    split = Split.draw(len(X), seed)
    rows = np.sort(np.concatenate([split.training, split.validation]))
    return estimator.scaling_(torch.from_numpy(X[rows])).numpy(), seed


@pytest.mark.parametrize("parameters", [{}, {"nu": 0.3, "gamma": "auto"}, {"gamma": 0.7}])
def test_the_one_class_svm_is_scikit_learns(parameters):
    X, new = bent(), bent(50, 1)
    estimator = model("OneClassSVM", **parameters).fit(X)
    rows, _ = learned_by(estimator, X)
    theirs = sklearn.svm.OneClassSVM(**{"nu": 0.1} | parameters).fit(rows)
    expected = theirs.score_samples(estimator.scaling_(torch.from_numpy(new)).numpy())
    assert estimator.score_samples(new) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("parameters", [{"n_estimators": 100}, {"n_estimators": 7, "max_samples": 16}])
def test_the_isolation_forest_is_scikit_learns(parameters):
    X, new = bent(500), bent(50, 1)
    estimator = model("IsolationForest", **parameters).fit(X)
    rows, seed = learned_by(estimator, X)
    theirs = sklearn.ensemble.IsolationForest(**{"max_samples": 256} | parameters, random_state=seed).fit(
        rows
    )
    expected = theirs.score_samples(estimator.scaling_(torch.from_numpy(new)).numpy())
    assert estimator.score_samples(new) == pytest.approx(expected, rel=1e-12)


def test_one_huge_value_does_not_blind_the_isolation_forest():
    X = np.random.default_rng(0).normal(size=(500, 2))
    new = np.concatenate([X[:200] / 2, X[:20] + 8])
    plain = model("IsolationForest").fit(X).score_samples(new)
    X[17, 0] = 1e14
    scores = model("IsolationForest").fit(X).score_samples(new)
    assert scores[-20:].max() < np.quantile(scores[:-20], 0.05)
    assert np.corrcoef(scores, plain)[0, 1] > 0.8


# What goes wrong


def test_dagmm_says_when_it_diverges():
    with pytest.raises(
        TrainingDivergedError, match=r"became (nan|inf) at step \d+; try a smaller learning_rate"
    ):
        model("DAGMM", learning_rate=1e6, max_steps=60).fit(bent())


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("DSEBM", {"method": "gradient"}, "The 'method' parameter of DSEBM must be"),
        ("DAGMM", {"n_components": 0}, "The 'n_components' parameter of DAGMM must be"),
        ("AnoGAN", {"search_steps": -1}, "The 'search_steps' parameter of AnoGAN must be"),
        ("EGBAD", {"method": "sigmoid"}, "The 'method' parameter of EGBAD must be"),
        ("GANomaly", {"latent_dim": 0}, "The 'latent_dim' parameter of GANomaly must be"),
        ("ALAD", {"learning_rate": 0.0}, "The 'learning_rate' parameter of ALAD must be"),
        ("VAE", {"method": "elbo"}, "The 'method' parameter of VAE must be"),
        ("OneClassSVM", {"nu": 0.0}, "The 'nu' parameter of OneClassSVM must be"),
        ("OneClassSVM", {"gamma": -1.0}, "The 'gamma' parameter of OneClassSVM must be"),
        ("IsolationForest", {"max_samples": 1}, "The 'max_samples' parameter of IsolationForest must be"),
        (
            "IsolationForest",
            {"false_positive_rate": 1.0},
            "The 'false_positive_rate' parameter of IsolationForest must be",
        ),
    ],
)
def test_parameters_out_of_range_are_refused(name, parameters, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)} [^\n]* Got [^\n]* instead\.$"):
        model(name, **parameters).fit(bent(50))


@pytest.mark.parametrize("name", NEURAL)
def test_a_batch_larger_than_the_training_rows_is_refused(name):
    message = (
        f"The 'batch_size' parameter of {name} must be at most the number of training rows, 29 after holding "
        "out rows for validation and calibration. Got 33 instead."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        model(name, batch_size=33).fit(bent(50))


@pytest.mark.parametrize("name", NEURAL + CLASSIC)
def test_nan_is_refused_by_row_and_column(name):
    X = bent(50)
    X[7, 2] = np.nan
    message = "X has NaN in row 7, column 2: fill in missing values or leave the row out."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        model(name).fit(X)


@pytest.mark.parametrize(
    ("name", "tensor", "change"),
    [
        ("IsolationForest", "model.left", lambda t: t.fill_(0)),  # a path that never ends
        ("IsolationForest", "model.right", lambda t: t.add_(10**6)),
        ("IsolationForest", "model.feature", lambda t: t.sub_(1)),
        ("IsolationForest", "model.roots", lambda t: t[:-1].double()),
        ("IsolationForest", "model.threshold", lambda t: t[1:]),
        ("OneClassSVM", "model.coefficients", lambda t: t[1:]),
        ("OneClassSVM", "model.support_vectors", lambda t: t[:, 1:].contiguous()),
        ("OneClassSVM", "scaling.scale", lambda t: t[1:]),
        ("DAGMM", "model.means", lambda t: t[:, 1:].contiguous()),
        ("DAGMM", "model.factors", lambda t: t.fill_(float("nan"))),
        ("VAE", "model.encoder.0.weight", lambda t: t[1:]),
    ],
)
def test_a_model_file_whose_tensors_do_not_fit_is_refused(name, tensor, change, tmp_path):
    model(name, **{"max_steps": 2} if name in NEURAL else {}).fit(bent(50)).save(tmp_path / "m")
    saved = artifact.read(tmp_path / "m")
    tensors = {key: value.clone() for key, value in saved.tensors.items()}
    tensors[tensor] = change(tensors[tensor])
    artifact.write(tmp_path / "m", kind="model", metadata=saved.metadata, tensors=tensors)
    with pytest.raises(InputError, match="this model file does not describe a model that fits it"):
        invgan.load(tmp_path / "m")
