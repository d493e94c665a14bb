"""The training loop: killed, interrupted and shared out, it leads to the same weights as undisturbed.

Run as a script, this file is the process that the tests kill, interrupt and spawn from.
"""

import functools
import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from invgan import InvGAN, artifact, training
from invgan.errors import InputError, TrainingDivergedError
from invgan.networks import mlp
from invgan.training import (
    LOG_EVERY,
    Checkpointing,
    Machine,
    Moved,
    Schedule,
    Trainable,
    Update,
    progress_bar,
    train,
)

ROWS = np.random.default_rng(0).normal(size=(64, 3))
REFUSED = (
    "{}: this checkpoint belongs to another fit (other data or settings); "
    "delete it to start afresh, or give the data and settings it was made with."
)


class Denoiser(Trainable):
    """A network that learns to undo noise; its loss is a mean over rows, and it tells what it is shown."""

    def __init__(self, network, on_batch=None):
        super().__init__()
        self.network = network
        self.on_batch = on_batch

    def updates(self):
        return (
            Update("denoise", self.loss, (self.network,)),
            Update("shrink", self.shrink, (Moved(self.network, rate=0.1),)),
        )

    def loss(self, sample):
        rows = sample.rows()
        if self.on_batch is not None:
            self.on_batch(self, rows)
        return (self.network(rows + 0.1 * sample.normal(*rows.shape[1:])) - rows).square().mean()

    def shrink(self, sample):
        return self.network(sample.rows() * sample.uniform(*[1] * (sample.rows().ndim - 1))).square().mean()

    def validation_score(self, rows):
        return -(self.network(rows) - rows).square().mean()


class Counter(nn.Module):
    """Counts its training batches in an integer, and lets the count matter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return x * (1 + 1 / (1 + self.seen))


class Line(Trainable):
    """One number that falls by the learning rate at each step, since its gradient is always 1."""

    def __init__(self, score=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.path = []
        self.score = score  # a function: the averaged copy of the model shares it

    def updates(self):
        return (Update("height", self.height, (self,)),)

    def height(self, sample):
        self.path.append(self.weight.item())
        return self.weight * 1

    def validation_score(self, rows):
        return torch.tensor(self.score())


def networks():
    """Small networks with every kind of state a user's module may have."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "plain": mlp([3, 4, 3], activation="tanh"),
            "batch norm, dropout and an integer": nn.Sequential(
                nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), Counter(), nn.Linear(4, 3)
            ),
            "channels last": nn.Sequential(
                nn.Unflatten(1, (3, 1, 1)),
                nn.ConvTranspose2d(3, 4, 2, bias=False),
                nn.Conv2d(4, 3, 2),
                nn.Flatten(),
            ).to(memory_format=torch.channels_last),
        }


def fit(
    model, *, rows=ROWS, validation=None, seed=0, machine=None, checkpointing=None, on_log=None, **schedule
):
    """Train on a few small rows."""
    return train(
        model,
        torch.as_tensor(rows),
        None if validation is None else torch.as_tensor(validation),
        prepare=nn.Identity(),
        schedule=Schedule(**({"max_steps": 30, "batch_size": 8} | schedule)),
        seed=seed,
        machine=machine or Machine("cpu"),
        checkpointing=checkpointing,
        on_log=on_log,
    )


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []


# ---------------------------------------------------------------- batches and noise


class Recorder(Denoiser):
    """Remembers the rows of each batch, which are numbered."""

    def __init__(self):
        super().__init__(mlp([1, 2, 1]), lambda model, rows: self.batches.append(rows[:, 0].int().tolist()))
        self.batches = []

    def updates(self):
        return super().updates()[:1]


@pytest.mark.parametrize("n_rows", [24, 29])
def test_an_epoch_shows_each_row_once_but_for_the_rest_that_fills_no_batch(n_rows):
    model = Recorder()
    fit(model, rows=np.arange(float(n_rows))[:, None], max_steps=6)
    epochs = np.reshape(model.batches, (2, 24)).tolist()
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 24
        assert set(epoch) <= set(range(n_rows))
    assert epochs[0] != epochs[1]


def test_every_row_draw_of_a_step_is_a_fresh_minibatch():
    seen = []

    class TwoDraws(Recorder):
        def loss(self, sample):
            seen.extend(sample.rows()[:, 0].int().tolist() + sample.rows()[:, 0].int().tolist())
            return super().loss(sample)

    model = TwoDraws()
    fit(model, rows=np.arange(24.0)[:, None], max_steps=1)
    assert sorted(seen + model.batches[0]) == list(range(24))


def test_same_seed_same_weights_whatever_the_global_generators_do_and_other_seed_other_weights():
    def run(seed, global_seed):
        model = Denoiser(networks()["batch norm, dropout and an integer"])
        torch.manual_seed(global_seed)
        fit(model, seed=seed)
        return model

    assert_same_state(run(0, 1), run(0, 2))
    assert not run(0, 1).network[0].weight.equal(run(1, 1).network[0].weight)


def global_states():
    name, keys, *position = np.random.get_state()  # noqa: NPY002
    return name, keys.tolist(), position, torch.get_rng_state().tolist(), random.getstate()


@pytest.mark.parametrize("name", networks())
def test_training_draws_nothing_from_the_global_generators(name):
    model = Denoiser(networks()[name])
    before = global_states()
    fit(model, validation=ROWS[:8])
    assert global_states() == before


def test_a_fit_draws_nothing_from_the_global_generators():
    before = global_states()
    InvGAN(max_steps=5, random_state=0).fit(ROWS)
    assert global_states() == before


# ---------------------------------------------------------------- steps


def test_only_parameters_that_require_gradients_move_and_a_shared_one_moves_once():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    bias = layer.bias.clone()

    class Shared(Denoiser):
        def updates(self):
            return (Update("denoise", self.loss, (self.network, self.network[0])),)

    twice, once = Shared(nn.Sequential(layer)), Shared(nn.Sequential(nn.Linear(3, 3)))
    once.load_state_dict(twice.state_dict())
    once.network[0].bias.requires_grad_(False)
    once.updates = lambda: (Update("denoise", once.loss, (once.network,)),)
    fit(twice)
    fit(once)
    assert layer.bias.equal(bias)
    assert_same_state(twice, once)


@pytest.mark.parametrize("name", ["plain", "channels last"])
def test_fused_steps_are_adams(name):
    """Fused Adam goes by address, so layouts must agree; plain Adam on contiguous copies does not care."""
    model, reference = Denoiser(networks()[name]), Denoiser(networks()[name])
    reference.to(memory_format=torch.contiguous_format)
    gradients = []

    class Spy(torch.optim.Adam):
        def step(self, closure=None):
            gradients.append([p.grad.clone() for p in self.param_groups[0]["params"]])
            return super().step()

    model.updates = lambda: Denoiser.updates(model)[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Spy)
        fit(model, max_steps=5, averaging=0, learning_rate_decay=False)
    adam = torch.optim.Adam(reference.parameters(), lr=1e-3, betas=(0.5, 0.999), fused=False)
    for step in gradients:
        for parameter, gradient in zip(reference.parameters(), step, strict=True):
            parameter.grad = gradient.contiguous()
        adam.step()
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize(
    ("pace", "factor"),
    [
        ({}, np.ones(12)),
        ({"rate": 0.5}, np.full(12, 0.5)),
        ({"fades_by": 0.75}, np.maximum(0, 1 - np.arange(12) / 9)),
    ],
)
def test_learning_rate_is_a_half_cosine_times_the_module_s_own(decay, pace, factor):
    model = Line()
    model.updates = lambda: (Update("height", model.height, (Moved(model, **pace),)),)
    fit(model, max_steps=12, learning_rate=0.1, learning_rate_decay=decay, averaging=0)
    steps = -np.diff([*model.path, model.weight.item()])  # under a constant gradient Adam's step is its rate
    cosine = (1 + np.cos(np.pi * np.arange(12) / 12)) / 2 if decay else np.ones(12)
    np.testing.assert_allclose(steps, 0.1 * factor * cosine, rtol=1e-6)


@pytest.mark.parametrize("betas", [None, (0.9, 0.99)])
def test_a_module_may_have_decay_rates_of_its_own(betas):
    """After gradients 1 and −3, Adam's second step is −m̂/√v̂ with these moments."""
    model = Line()
    model.height = lambda sample: (
        (model.path.append(model.weight.item()) or model.weight) * (-3) ** (len(model.path) - 1)
    )
    model.updates = lambda: (Update("height", model.height, (Moved(model, betas=betas),)),)
    fit(model, max_steps=2, learning_rate=0.1, learning_rate_decay=False, averaging=0, betas=(0.5, 0.999))
    first, second = betas or (0.5, 0.999)
    mean = ((1 - first) * first - 3 * (1 - first)) / (1 - first**2)
    square = ((1 - second) * second + 9 * (1 - second)) / (1 - second**2)
    assert model.weight.item() == pytest.approx(-0.1 - 0.1 * mean / math.sqrt(square), rel=1e-6)


def test_a_gradient_that_is_too_long_is_shortened_and_keeps_its_direction():
    def trained(lengths, max_norm):
        model = Line()
        model.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))
        model.height = lambda sample: (
            model.path.append(model.weight.item())
            or lengths[len(model.path) - 1] * (0.6 * model.weight - 0.8 * model.slope)
        )
        model.updates = lambda: (Update("height", model.height, (model,), max_norm),)
        fit(model, max_steps=4, averaging=0)
        return model

    clipped, plain = trained([1.0, 50.0, 2.0, 1e30], max_norm=2.0), trained([1.0, 2.0, 2.0, 2.0], None)
    for found, expected in zip(clipped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("steps", [1, 7, 10, 35])
def test_averaged_weights_are_a_plain_mean_then_an_exponential_one(steps):
    last, averaged = Line(), Line()
    fit(last, max_steps=steps, averaging=0)
    fit(averaged, max_steps=steps, averaging=0.9)
    weights = np.array([*last.path[1:], last.weight.item()])  # after each step
    shares = 0.9 ** np.arange(steps)[::-1]
    shares[10:] *= 0.1
    shares[:10] = max(0, 0.9 ** (steps - 10) if steps > 10 else 1) / min(steps, 10)
    assert shares.sum() == pytest.approx(1)
    assert averaged.weight.item() == pytest.approx(shares @ weights, abs=1e-12)


# ---------------------------------------------------------------- validation


def scripted(*scores):
    return Line(iter(scores).__next__)


def test_patience_counts_validations_and_the_best_weights_are_kept():
    free = Line()
    fit(free, max_steps=100, averaging=0)
    model = scripted(-3.0, 5.0, 4.0, 5.0, 4.5)
    history = fit(model, validation=ROWS, max_steps=100, averaging=0, validate_every=7, patience=3)
    assert history.validation_scores == [-3.0, 5.0, 4.0, 5.0, 4.5]  # an equal score is no new best
    assert history.validation_steps == [7, 14, 21, 28, 35]
    assert history.best_step == 14
    assert history.steps == [20, 35]
    assert len(model.path) == 35
    assert model.weight.item() == free.path[14]


def test_without_patience_training_goes_on_to_the_end_and_keeps_the_best():
    free = Line()
    fit(free, max_steps=25, averaging=0)
    model = scripted(3.0, 2.0, 1.0)
    history = fit(model, validation=ROWS, max_steps=25, averaging=0, validate_every=10)
    assert history.validation_steps == [10, 20, 25]  # the last weights are always among the candidates
    assert (history.best_step, model.weight.item()) == (10, free.path[10])


def test_without_validation_rows_the_last_weights_are_kept():
    model = Line()
    history = fit(model, max_steps=25, averaging=0, learning_rate=0.1, learning_rate_decay=False)
    assert history.best_step == 25
    assert history.validation_scores == []
    assert model.weight.item() == pytest.approx(-2.5)


def test_validation_takes_the_mean_over_all_rows_of_the_averaged_weights_in_evaluation_mode(monkeypatch):
    monkeypatch.setattr(training, "VALIDATION_BLOCK", 7)  # which does not divide 20
    model = Denoiser(networks()["batch norm, dropout and an integer"])
    history = fit(model, validation=ROWS[:20], max_steps=10)
    expected = -(model.network(rows := torch.tensor(ROWS[:20]).float()) - rows).square().mean()
    assert history.validation_scores == [pytest.approx(expected.item())]


def test_history_is_the_mean_of_each_window_of_losses():
    model, seen = Line(), []
    history = fit(model, max_steps=50, on_log=lambda step, losses: seen.append((step, losses["height"])))
    assert history.steps == [20, 40, 50] == [step for step, _ in seen]
    expected = [np.mean(model.path[a:b]) for a, b in [(0, 20), (20, 40), (40, 50)]]
    assert history.losses["height"] == [value for _, value in seen] == pytest.approx(expected)


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize(("bad", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("step", [1, 20, 33])
def test_a_loss_that_is_not_finite_is_named_with_its_step(bad, word, step, tmp_path):
    class Bad(Line):
        def updates(self):
            return (*super().updates(), Update("second", self.second, (self,)))

        def second(self, sample):
            return self.weight.clone() if len(self.path) < step else self.weight + bad

    with pytest.raises(TrainingDivergedError) as raised:
        fit(Bad(), max_steps=50, checkpointing=Checkpointing(tmp_path / "c", every=25))
    assert str(raised.value) == (
        f"the second loss became {word} at step {step}; "
        "try a smaller learning_rate, another loss, or look for extreme values in the data."
    )
    # The last checkpoint is from before it.
    assert artifact.read(tmp_path / "c").metadata["step"] == (25 if step > 25 else 0)


def test_a_validation_score_that_is_not_finite_is_told_too():
    with pytest.raises(TrainingDivergedError) as raised:
        fit(scripted(1.0, math.nan), validation=ROWS, max_steps=40, validate_every=15)
    assert str(raised.value) == (
        "the validation score became nan at step 30; "
        "try a smaller learning_rate, another loss, or look for extreme values in the data."
    )


# ---------------------------------------------------------------- what a batch may be


def test_a_batch_larger_than_the_rows_is_refused():
    with pytest.raises(InputError) as raised:
        fit(Line(), batch_size=65)
    assert str(raised.value) == (
        "The 'batch_size' parameter must be at most the number of training rows, 64. Got 65 instead."
    )


def test_more_processes_than_rows_are_refused():
    with pytest.raises(InputError, match=r"^The 'processes' parameter must be at most .* rows, 6\. Got 8 "):
        fit(Line(), rows=ROWS[:6], batch_size=0, machine=Machine("cpu", processes=8))


def test_a_batch_that_processes_cannot_share_evenly_is_refused():
    with pytest.raises(InputError) as raised:
        fit(Line(), batch_size=9, machine=Machine("cpu", processes=2))
    assert str(raised.value) == (
        "The 'batch_size' parameter must be a multiple of the number of processes, 2, which share each batch "
        "evenly. Got 9 instead."
    )


# ---------------------------------------------------------------- checkpoints


class CrashError(Exception):
    pass


def crash_at(step):
    """Make a function that stops the process of training in the midst of a step."""
    calls = 0

    def on_batch(model, rows):
        nonlocal calls
        calls += 1
        if calls == step:
            raise CrashError

    return on_batch


SETTINGS = {"max_steps": 65, "validate_every": 15, "averaging": 0.9, "learning_rate": 0.05}


@pytest.mark.parametrize("name", networks())
def test_a_crashed_run_continues_to_the_same_weights_and_history(name, tmp_path):
    undisturbed, checkpointing = Denoiser(networks()[name]), Checkpointing(tmp_path / "c", every=11)
    expected = fit(undisturbed, validation=ROWS[:8], **SETTINGS)
    # Before the first checkpoint after step 0; before and after a record; twice from one checkpoint.
    for steps_more in (5, 30, 4, 20):
        with pytest.raises(CrashError):
            fit(
                Denoiser(networks()[name], crash_at(steps_more)),
                validation=ROWS[:8],
                checkpointing=checkpointing,
                **SETTINGS,
            )
    model = Denoiser(networks()[name])
    history = fit(model, validation=ROWS[:8], checkpointing=checkpointing, **SETTINGS)
    assert history == expected
    assert_same_state(model, undisturbed)
    assert 0 < history.best_step <= 65


@pytest.mark.parametrize("crash", [12, 17, 22, 29])
def test_early_stopping_continues_with_its_best_weights(crash, tmp_path):
    scores = {5: 1.0, 10: 3.0, 15: 2.0, 20: 2.0, 25: 4.0, 30: 1.0, 35: 1.0, 40: 1.0, 45: 9.0}

    def run(checkpointing=None, crash=None):
        model = Line()
        model.score = lambda: scores[len(model.path)]  # len(model.path) steps are done
        model.height = lambda sample: crash_or_height(model, sample)

        def crash_or_height(model, sample):
            if len(model.path) == crash:
                raise CrashError
            return Line.height(model, sample)

        if checkpointing is not None and (tmp_path / "c").exists():
            model.path = [math.nan] * artifact.read(tmp_path / "c").metadata["step"]
        history = fit(
            model,
            validation=ROWS,
            max_steps=50,
            validate_every=5,
            patience=3,
            checkpointing=checkpointing,
            averaging=0.5,
        )
        return model.weight.item(), history

    expected = run()
    assert expected[1].best_step == 25
    assert expected[1].validation_steps[-1] == 40
    checkpointing = Checkpointing(tmp_path / "c", every=3)
    with pytest.raises(CrashError):
        run(checkpointing, crash)
    assert run(checkpointing) == expected
    assert run(checkpointing) == expected  # also from a checkpoint of a run that has ended


def test_checkpoints_change_nothing_and_an_empty_folder_will_do(tmp_path):
    plain, saving = Denoiser(networks()["plain"]), Denoiser(networks()["plain"])
    expected = fit(plain, validation=ROWS[:8], **SETTINGS)
    assert fit(saving, validation=ROWS[:8], checkpointing=Checkpointing(tmp_path, 1), **SETTINGS) == expected
    assert_same_state(plain, saving)


def test_a_checkpoint_with_another_fingerprint_is_refused_and_kept(tmp_path):
    path = tmp_path / "c"
    fit(Line(), checkpointing=Checkpointing(path, fingerprint="one"))
    before = artifact.read(path).metadata
    with pytest.raises(InputError) as raised:
        fit(Line(), checkpointing=Checkpointing(path, fingerprint="other"))
    assert str(raised.value) == REFUSED.format(path)
    assert artifact.read(path).metadata == before


def test_a_checkpoint_of_another_device_is_refused(tmp_path):
    path = tmp_path / "c"
    fit(Line(), checkpointing=Checkpointing(path))
    saved = artifact.read(path)
    artifact.write(path, kind=saved.kind, metadata=saved.metadata | {"device": "cuda"}, tensors=saved.tensors)
    with pytest.raises(InputError) as raised:
        fit(Line(), checkpointing=Checkpointing(path))
    assert str(raised.value) == (
        f"{path}: this checkpoint was made on cuda, and cpu would lead to other weights; "
        "delete it to start afresh, or train on cuda."
    )


def test_a_path_that_cannot_hold_a_checkpoint_is_told_before_any_step(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    model = Line()
    with pytest.raises(InputError, match=r"letters: a folder with other things in it \('love.txt'\)"):
        fit(model, checkpointing=Checkpointing(tmp_path / "letters"))
    with pytest.raises(InputError, match="create the folder it lies in first"):
        fit(model, checkpointing=Checkpointing(tmp_path / "absent" / "c"))
    assert model.path == []
    assert (tmp_path / "letters" / "love.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ({"learning_rate": 2e-3}, ROWS),
        ({"random_state": 1}, ROWS),
        ({"max_steps": 12}, ROWS),
        ({}, np.vstack([ROWS[:-1], ROWS[-1] + 1e-9])),
    ],
)
def test_an_estimator_refuses_the_checkpoint_of_other_data_or_settings(change, rows, tmp_path):
    settings = {"max_steps": 10, "checkpoint": tmp_path / "c", "checkpoint_every": 5, "random_state": 0}
    InvGAN(**settings).fit(ROWS)
    with pytest.raises(InputError) as raised:
        InvGAN(**(settings | change)).fit(rows)
    assert str(raised.value) == REFUSED.format(tmp_path / "c")


# ---------------------------------------------------------------- Ctrl-C


def press_ctrl_c(step, times=1):
    def on_batch(model, rows):
        model.calls = getattr(model, "calls", 0) + 1
        if model.calls == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    return on_batch


def test_ctrl_c_finishes_the_step_saves_it_and_says_where(tmp_path):
    path = tmp_path / "c"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(Denoiser(networks()["plain"], press_ctrl_c(7)), checkpointing=Checkpointing(path))
    assert str(raised.value) == f"stopped after step 7 of 30; the same fit continues from {path}"
    assert artifact.read(path, kind="checkpoint").metadata["step"] == 7
    assert signal.getsignal(signal.SIGINT) is before
    undisturbed, model = Denoiser(networks()["plain"]), Denoiser(networks()["plain"])
    assert fit(model, checkpointing=Checkpointing(path)) == fit(undisturbed)
    assert_same_state(model, undisturbed)


def test_ctrl_c_without_a_checkpoint_promises_nothing():
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(Denoiser(networks()["plain"], press_ctrl_c(30)))
    assert str(raised.value) == "stopped after step 30 of 30"


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    path = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(Denoiser(networks()["plain"], press_ctrl_c(7, times=2)), checkpointing=Checkpointing(path))
    assert str(raised.value) == ""
    assert artifact.read(path).metadata["step"] == 0


def test_training_in_another_thread_leads_to_the_same_weights():
    here, there = Denoiser(networks()["plain"]), Denoiser(networks()["plain"])
    worker = threading.Thread(target=fit, args=(there,))
    worker.start()
    worker.join()
    fit(here)
    assert_same_state(here, there)


# ---------------------------------------------------------------- a process that is killed


STEPS = 120


def estimator(folder, checkpoint=None):
    """Fit and save a model, which tells of its scores by its tensors."""
    InvGAN(
        max_steps=STEPS,
        batch_size=32,
        latent_dim=1,
        random_state=0,
        checkpoint=checkpoint,
        checkpoint_every=20,
        device="cpu",
    ).fit(ROWS).save(folder)


def start(folder, checkpoint=None):
    """Fit in a new process, a copy of this one; if it fails, write down how."""
    if child := os.fork():
        return child
    try:
        estimator(folder, checkpoint)
    except BaseException as error:
        folder.with_suffix(".note").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_step(checkpoint, step):
    while not (checkpoint / "manifest.json").exists():
        time.sleep(0.001)
    while json.loads((checkpoint / "manifest.json").read_bytes())["metadata"]["step"] < step:
        time.sleep(0.001)


def disturb(folder):
    """Fit undisturbed, killed three times, and interrupted; leave three models."""
    torch.set_num_threads(1)
    assert exit_code(start(folder / "undisturbed")) == 0

    killed = folder / "killed", folder / "killed.checkpoint"
    for step in (None, 20, 60):  # None: before the first checkpoint, or about it
        child = start(*killed)
        if step is not None:
            wait_for_step(killed[1], step)
        time.sleep(random.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL
    assert exit_code(start(*killed)) == 0

    interrupted = folder / "interrupted", folder / "interrupted.checkpoint"
    child = start(*interrupted)
    wait_for_step(interrupted[1], 40)
    os.kill(child, signal.SIGINT)
    assert exit_code(child) == 1
    with (folder / "interrupted.note").open("a") as note:
        note.write(f" ({artifact.read(interrupted[1]).metadata['step']} saved)")
    assert exit_code(start(*interrupted)) == 0


def as_script(part, folder):
    """Run a part of this file in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, part, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    return as_script("disturb", tmp_path_factory.mktemp("disturbed"))


@pytest.mark.parametrize("name", ["killed", "interrupted"])
def test_a_killed_or_interrupted_fit_ends_in_the_same_model_bit_for_bit(disturbed, name):
    expected, model = artifact.read(disturbed / "undisturbed"), artifact.read(disturbed / name)
    assert model.tensors.keys() == expected.tensors.keys()
    assert [key for key in expected.tensors if not model.tensors[key].equal(expected.tensors[key])] == []
    assert model.metadata["model"] == expected.metadata["model"]  # the history is in it
    assert len(model.metadata["model"]["history"]["steps"]) == STEPS / LOG_EVERY


def test_an_interrupted_fit_saves_the_step_it_reached_and_says_where(disturbed):
    note = (disturbed / "interrupted.note").read_text()
    told = re.fullmatch(
        rf"KeyboardInterrupt: stopped after step (\d+) of {STEPS}; the same fit continues from "
        rf"{re.escape(str(disturbed))}/interrupted\.checkpoint \((\d+) saved\)",
        note,
    )
    assert told, note
    assert told[1] == told[2]
    assert int(told[1]) >= 40


# ---------------------------------------------------------------- several processes


def bad_at_25(model, rows):
    """Spoil the first process's share of the 25th batch."""
    model.calls = getattr(model, "calls", 0) + 1
    if model.calls == 25 and os.environ.get("LOCAL_RANK") == "0":
        rows += math.nan


IN_PROCESSES = {"max_steps": 60, "validate_every": 15}


def in_two_processes(folder):
    """Train in two processes: interrupted, continued, and diverging; leave what came of each."""
    run = functools.partial(fit, validation=ROWS[:10], machine=Machine("cpu", processes=2), **IN_PROCESSES)
    checkpointing, results, logs = Checkpointing(folder / "c", every=50), {}, []

    def interrupt(step, losses):
        os.kill(os.getpid(), signal.SIGINT)

    try:
        run(Denoiser(networks()["plain"], wait_at_25), checkpointing=checkpointing, on_log=interrupt)
    except KeyboardInterrupt as error:
        results["interrupted"] = str(error)
    results["saved"] = artifact.read(checkpointing.path).metadata["step"]
    model = Denoiser(networks()["plain"])
    history = run(model, checkpointing=checkpointing, on_log=lambda step, losses: logs.append(step))
    try:
        run(Denoiser(networks()["plain"], bad_at_25))
    except TrainingDivergedError as error:
        results["diverged"] = str(error)
    results |= {"history": asdict(history), "logs": logs}
    artifact.write(folder / "model", kind="test", metadata=results, tensors=model.state_dict())


def wait_at_25(model, rows):
    """Give the signal of step 20 the time to come."""
    model.calls = getattr(model, "calls", 0) + 1
    if model.calls == 25:
        time.sleep(2)


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    folder = as_script("in_two_processes", tmp_path_factory.mktemp("processes"))
    return folder, artifact.read(folder / "model")


def test_two_processes_end_in_the_weights_of_one(shared_out):
    _, result = shared_out
    model = Denoiser(networks()["plain"])
    history = fit(model, validation=ROWS[:10], **IN_PROCESSES)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(result.tensors[name], tensor, rtol=0, atol=1e-6)
    theirs = result.metadata["history"]
    assert theirs["steps"] == history.steps == [20, 40, 60]
    assert theirs["validation_scores"] == pytest.approx(history.validation_scores, abs=1e-6)
    for name, losses in history.losses.items():
        assert theirs["losses"][name] == pytest.approx(losses, abs=1e-6)


def test_two_processes_are_interrupted_saved_and_continued_together(shared_out):
    folder, result = shared_out
    saved = result.metadata["saved"]
    assert 20 < saved < 60
    assert result.metadata["interrupted"] == (
        f"stopped after step {saved} of 60; the same fit continues from {folder / 'c'}"
    )
    assert result.metadata["logs"] == [40, 60]


def test_divergence_in_one_of_two_processes_is_told_as_in_one(shared_out):
    _, result = shared_out
    assert result.metadata["diverged"] == (
        "the denoise loss became nan at step 25; "
        "try a smaller learning_rate, another loss, or look for extreme values in the data."
    )


# ---------------------------------------------------------------- low precision


def test_low_precision_keeps_losses_and_weights_in_float32(monkeypatch):
    model, seen = Denoiser(networks()["plain"]), []
    monkeypatch.setattr(model, "on_batch", lambda _, rows: seen.append(model.network(rows).dtype))
    fit(model, machine=Machine("cpu", precision="bf16-mixed"))
    history = fit(exact := Denoiser(networks()["plain"]))
    low = fit(model := Denoiser(networks()["plain"]), machine=Machine("cpu", precision="bf16-mixed"))
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert low.losses["denoise"] == pytest.approx(history.losses["denoise"], rel=0.05)
    assert not model.network[0].weight.equal(exact.network[0].weight)
    with torch.autocast("cpu", enabled=False):  # until which ends, PyTorch keeps weights in low precision
        within = fit(Denoiser(networks()["plain"]), machine=Machine("cpu", precision="bf16-mixed"))
    assert within.losses == low.losses


# ---------------------------------------------------------------- progress

LOSSES = {"discriminator": 0.79312, "generator": 1.49, "reconstruction": -49.3333, "inversion": 0.321}
LINE = "discriminator 0.793  generator 1.49  reconstruction -49.3  inversion 0.321"


def show(monkeypatch, steps, *, total, terminal):
    """Return the lines that are left on an 80-column screen, or in a file, at the end."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    monkeypatch.setattr(training, "Console", lambda *, stderr: console)
    with progress_bar("training", total, enabled=True) as on_log:
        for step in steps:
            on_log(step, LOSSES)
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue().rsplit("\x1b[2K", 1)[-1])
    return [line.rstrip() for line in screen.replace("\r", "").splitlines()]


def test_progress_shows_steps_time_left_and_every_loss_within_80_columns(monkeypatch):
    bar, losses = show(monkeypatch, [50, 100, 1500], total=1500, terminal=True)
    assert re.fullmatch(r"training ━{30} 1500/1500 steps, time left 0:00:00", bar)
    assert losses == LINE
    assert len(bar) <= 80


def test_progress_of_a_run_that_stopped_early_ends_where_it_stopped(monkeypatch):
    bar, _ = show(monkeypatch, [50, 700], total=1500, terminal=True)
    assert "━ 700/700 steps" in bar


def test_progress_in_a_file_is_one_line(monkeypatch):
    assert show(monkeypatch, [50, 100], total=100, terminal=False) == [f"training: 100 steps  {LINE}"]


def test_progress_that_nobody_asked_for_shows_nothing(capfd):
    with progress_bar("training", 10, enabled=False) as on_log:
        assert on_log is None
    assert capfd.readouterr() == ("", "")


def test_nothing_is_announced(caplog, capfd):
    with caplog.at_level("INFO"):
        fit(Line(), machine=Machine("cpu", precision="bf16-mixed"))
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")


if __name__ == "__main__":
    {"disturb": disturb, "in_two_processes": in_two_processes}[sys.argv[1]](Path(sys.argv[2]))
