"""What surrounds a call, other threads and settings, changes no result and is not changed by it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from invgan import InvGAN
from invgan.density import MAF, Glow, RealNVP
from invgan.detectors import DAGMM, AnoGAN, OneClassSVM
from invgan.training import own_global_noise, repeatable, single_precision

X = np.random.default_rng(0).normal(size=(120, 4))


def in_threads(function, n=12):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: function(), range(n)))


@pytest.fixture(scope="module")
def fitted():
    return InvGAN(max_steps=20, random_state=0, method="riemannian").fit(X)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("riemannian", {}),
        ("laplace", {}),
        ("importance", {"n_samples": 10}),
        ("ais", {"n_samples": 2, "n_temperatures": 5}),
    ],
)
@pytest.mark.filterwarnings("ignore::invgan.errors.UnreliableEstimateWarning")
def test_threads_get_the_likelihoods_that_one_gets(fitted, method, options):
    def score():
        return fitted.log_likelihood(X[:10], method, **options).values

    expected = score()
    for found in in_threads(score, 8):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: InvGAN(max_steps=20, random_state=0),
        lambda: MAF(max_steps=20, batch_size=64, random_state=0),
        lambda: DAGMM(max_steps=20, random_state=0),
    ],
)
def test_threads_fit_what_one_fits_and_leave_the_global_generator_alone(make):
    before = torch.get_rng_state()

    def fit_and_score():
        return make().fit(X).score_samples(X)

    expected = fit_and_score()
    for found in in_threads(fit_and_score, 4):
        np.testing.assert_array_equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_lent_to_one_thread_at_a_time():
    def draw():
        with own_global_noise(0, torch.device("cpu")):
            return [torch.rand(()).item() for _ in range(200)]

    assert all(found == draw() for found in in_threads(draw))


@pytest.mark.parametrize("setting", [repeatable, single_precision])
def test_a_setting_is_restored_by_the_last_that_needs_it(setting, monkeypatch):
    def found():
        return torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32

    before = found()
    one, other = setting(torch.device("cuda")), setting(torch.device("cuda"))
    one.__enter__()
    changed = found()
    assert changed != before
    other.__enter__()
    one.__exit__(None, None, None)
    assert found() == changed
    other.__exit__(None, None, None)
    assert found() == before


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
)
@pytest.mark.parametrize("detector", [InvGAN, AnoGAN, MAF])
def test_a_fit_and_its_scores_are_the_same_in_any_mode(around, detector):
    def fit_and_score():
        return detector(max_steps=10, random_state=0).fit(X).score_samples(X[:5])

    expected = fit_and_score()
    with around():
        np.testing.assert_array_equal(fit_and_score(), expected)


@pytest.mark.parametrize(("flow", "n_layers"), [(Glow, 2), (RealNVP, 1)])
def test_low_precision_learns_what_single_precision_does(flow, n_layers):
    levels = np.random.default_rng(0).integers(0, 256, (80, 1, 4, 4)).repeat(4, 2).repeat(4, 3)
    images = (levels // 2 + np.random.default_rng(1).integers(0, 128, (80, 1, 16, 16))).astype(np.uint8)

    def learned(precision, max_steps=60):
        model = flow(
            n_layers, width=8, max_steps=max_steps, batch_size=16, precision=precision, random_state=0
        )
        return model.fit(images).history_.validation_scores[-1]

    gained = learned("32-true") - learned("32-true", max_steps=1)
    assert learned("bf16-mixed") == pytest.approx(learned("32-true"), abs=0.01 * gained)


def test_a_fit_is_the_same_whatever_numbers_are_by_default():
    expected = InvGAN(max_steps=10, random_state=0).fit(X).score_samples(X)
    torch.set_default_dtype(torch.float64)
    try:
        found = InvGAN(max_steps=10, random_state=0).fit(X).score_samples(X)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found, expected)


def test_numpys_global_generator_is_left_alone():
    before = np.random.get_state()[1:3]  # noqa: NPY002
    OneClassSVM(random_state=0).fit(X)
    InvGAN(max_steps=5, random_state=0).fit(np.where(X > 2, np.nan, X))
    after = np.random.get_state()[1:3]  # noqa: NPY002
    np.testing.assert_array_equal(before[0], after[0])
    assert before[1] == after[1]


def test_no_warning_of_pytorch_escapes():
    code = (
        "import numpy as np; from invgan import InvGAN; "
        "InvGAN(max_steps=2, random_state=0).fit(np.random.default_rng(0).normal(size=(40, 3)))"
    )
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
