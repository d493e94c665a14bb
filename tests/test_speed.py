"""The speed benchmark: that its contenders compute the same, and that it counts operations rightly."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from invgan.experiments.speed import growth, jacobians, steps, timing
from invgan.networks import conv_generator


def test_all_ways_to_a_jacobian_agree_with_double_precision(monkeypatch):
    monkeypatch.setattr(jacobians, "LATENT_DIM", 3)
    monkeypatch.setattr(jacobians, "IMAGE", (1, 8, 8))
    found = jacobians.run(quick=True)
    assert len(found["largest_error"]) == 6
    assert max(found["largest_error"].values()) < 1e-5
    slower = found["times_slower_than_this_library"]
    assert found["best_rival"] == min(slower, key=slower.get)


def test_operations_are_counted_two_per_multiplication():
    generator = conv_generator(50, (1, 32, 32))  # Table 5
    multiplications = 50 * 2048 + 16 * (128 * 16 * 128 + 128 * 64 * 64 + 64 * 256 * 1)
    assert timing.count_operations(lambda: generator(torch.zeros(3, 50))) == 3 * 2 * multiplications


def test_contenders_take_turns():
    order = []
    seconds = timing.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "ab" * 4  # once before the clock runs
    assert set(seconds) == {"a", "b"}


def test_the_plain_step_is_this_librarys_algorithm(monkeypatch):
    """From the same weights, with the same rows and noise, one step moves the weights of both alike."""
    monkeypatch.setattr(steps, "BATCH", 8)
    ours, plain = steps._paper_gan((60,)), steps._paper_gan((60,))
    rows = torch.randn(8, 60, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(8, 50, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.arange(size[0]))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: latents)
    steps._plain_step(plain, rows)()
    monkeypatch.setattr("invgan.training.np.random.default_rng", Unshuffled)
    schedule = steps.Schedule(max_steps=1, batch_size=8, learning_rate_decay=False, averaging=0)
    steps.train(ours, rows, None, prepare=nn.Identity(), schedule=schedule, seed=0)
    for (name, found), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if name.endswith("weight"):  # batch normalisation leaves biases a gradient of rounding errors
            # Adam's first step has the size of the learning rate even where the gradient is next to zero.
            assert ((found - expected).abs() < 1e-4).double().mean() > 0.999, name


class Unshuffled:
    """A random generator that leaves every order as it is."""

    def __init__(self, seed):
        pass

    def permutation(self, n):
        return np.arange(n)


def test_the_jax_scan_learns_to_invert():
    pytest.importorskip("jax")
    from invgan.experiments.speed.jax_step import compile_steps

    sizes = {"g": [4, 16, 6], "d": [6, 16, 1], "h": [6, 16, 4]}
    rows = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    last_loss = compile_steps(sizes, rows, 8, 32, 300)()
    assert 0 < last_loss < 2  # ‖z − h(g(z))‖², which is 4 for h = 0


def test_a_processs_peak_memory_counts_what_it_has_let_go():
    code = (
        "import numpy as np; from invgan.experiments.speed.growth import peak_bytes; before = peak_bytes(); "
        "np.ones(50_000_000); print(peak_bytes() - before)"  # 400 MB
    )
    # In a process of its own: this one may have held more at some time.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 300_000_000


def test_the_figure_draws_every_series():
    points = [growth.Point(10**i, 10.0**i, 5.0)._asdict() for i in range(3)]
    names = ("rows", "d", "d, Lanczos", "D")
    results = dict.fromkeys(names, points) | {"units": {name: name for name in names}}
    figure = growth.figure(results)
    assert [len(ax.lines) for ax in figure.axes] == [1, 2, 1, 1, 2, 1]
    assert [ax.get_xlabel() for ax in figure.axes[3:]] == ["rows", "d", "D"]
