"""What an accelerator must not change: these tests run where there is one."""

import numpy as np
import pytest
import torch

import invgan
from invgan import density, detectors, training
from invgan.likelihood import aggregate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")

DETECTORS = ("InvGAN", "DSEBM", "DAGMM", "AnoGAN", "EGBAD", "GANomaly", "ALAD", "VAE")
DENSITIES = ("RealNVP", "Glow", "FFJORD", "MADE", "MAF", "FlowGAN", "FlowVAE")
COUPLINGS = ("RealNVP", "Glow", "FlowGAN", "FlowVAE")
"""Those that have zuko's couplings for tables, whose steps cannot be recorded."""
SMALL = {"max_steps": 20, "batch_size": 32, "random_state": 0}


def rows(shape, n, seed=0):
    rng = np.random.default_rng(seed)
    if len(shape) == 1:
        return rng.normal(size=(n, *shape)) @ rng.normal(size=(*shape, *shape))
    blobs = rng.integers(0, 256, (n, shape[0], 4, 4)).repeat(shape[1] // 4, 2).repeat(shape[2] // 4, 3)
    return (blobs // 2 + rng.integers(0, 128, (n, *shape))).astype(np.uint8)


@pytest.mark.parametrize("shape", [(5,), (1, 16, 16)], ids=["table", "images"])
@pytest.mark.parametrize("name", [*DETECTORS, *DENSITIES])
def test_scores_are_those_of_a_cpu_and_training_is_repeated(name, shape, tmp_path, monkeypatch):
    kind = getattr(detectors, name, None) or getattr(density, name)
    parameters = SMALL | ({"search_steps": 4} if name == "AnoGAN" else {})
    X, new = rows(shape, 200), rows(shape, 70, seed=1)
    model = kind(**parameters).fit(X)
    assert next(model.model_.parameters()).device.type == "cuda"
    scores = model.score_samples(new)
    assert np.array_equal(model.score_samples(new), scores)
    order = np.random.default_rng(0).permutation(len(new))
    # Products round by a row's place in its block, as on a CPU they are kept from doing.
    np.testing.assert_allclose(model.score_samples(new[order]), scores[order], rtol=1e-5, atol=1e-5)
    assert np.array_equal(kind(**parameters).fit(X).score_samples(new), scores)
    model.save(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = invgan.load(tmp_path / "model")
    assert next(loaded.model_.parameters()).device.type == "cpu"
    tolerance = 1e-6 if shape == (5,) and name != "AnoGAN" else 1e-3
    np.testing.assert_allclose(loaded.score_samples(new), scores, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(5,), (1, 16, 16)], ids=["table", "images"])
@pytest.mark.parametrize("method", ["joint", "riemannian", "laplace", "importance", "ais"])
def test_every_likelihood_is_that_of_a_cpu(method, shape, tmp_path, monkeypatch):
    X, new = rows(shape, 200), rows(shape, 10, seed=1)
    model = detectors.InvGAN(**SMALL, latent_dim=3).fit(X)
    settings = {"n_samples": 50, "n_temperatures": 5} if method in ("importance", "ais") else {}
    found = model.log_likelihood(new, method, **settings).values
    shares = model.explain(new)
    model.save(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = invgan.load(tmp_path / "model")
    tolerance = 1e-5 if shape == (5,) else 1e-3
    on_cpu = loaded.log_likelihood(new, method, **settings).values
    np.testing.assert_allclose(on_cpu, found, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(loaded.explain(new), shares, rtol=tolerance, atol=tolerance)


def test_images_have_components_for_all_training_rows(monkeypatch):
    monkeypatch.setattr("invgan.detectors.latent.MAX_COMPONENTS", 50)
    model = detectors.InvGAN(**SMALL).fit(rows((1, 16, 16), 200))
    assert len(model.mixture_.centers) > 150
    every = model.score_samples(rows((1, 16, 16), 20, seed=1))
    monkeypatch.setattr(aggregate, "MAX_ALL", 50)
    monkeypatch.setattr(aggregate, "MAX_NEAR", 150)
    np.testing.assert_allclose(model.score_samples(rows((1, 16, 16), 20, seed=1)), every, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (1, 16, 16)], ids=["table", "images"])
@pytest.mark.parametrize("name", sorted({*DETECTORS, *DENSITIES} - {"DAGMM", "FFJORD"}))
def test_a_step_that_is_played_back_does_what_it_did_when_it_was_issued(name, shape, monkeypatch):
    kind = getattr(detectors, name, None) or getattr(density, name)
    X, new = rows(shape, 200), rows(shape, 20, seed=1)
    played = []
    play = training._RecordedStep.play
    monkeypatch.setattr(
        training._RecordedStep, "play", lambda step, draw: played.append(draw) or play(step, draw)
    )
    model = kind(**SMALL).fit(X)
    assert len(played) == (
        0 if name in COUPLINGS and shape == (5,) else SMALL["max_steps"] - training.WARM_UP
    )
    monkeypatch.setattr(training._Run, "_is_recordable", lambda run, minibatches: False)
    issued = kind(**SMALL).fit(X)
    assert model.history_.losses == issued.history_.losses
    assert np.array_equal(model.score_samples(new), issued.score_samples(new))
