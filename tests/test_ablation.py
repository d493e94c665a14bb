"""The ablation: its densities are what their names say, and its table adds up."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from invgan import InvGAN
from invgan.experiments import ablation, adbench
from invgan.experiments.ablation import (
    DEFAULT,
    OneNoise,
    OnlyRound,
    OwnNoise,
    WithoutGenerator,
    WithoutRound,
    WithoutRows,
    table_rows,
)
from invgan.likelihood import Bandwidths, TangentMixture

CENTERS, ROWS = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BANDWIDTHS = Bandwidths(tangent=0.7, noise=0.2, round=0.5, tail=0.6)


def log_prob(kind, generator, bandwidths=BANDWIDTHS, centers=CENTERS, tail_share=0.0):
    mixture = kind(centers, centers, generator, tail_share=tail_share)
    mixture.set_bandwidths(bandwidths)
    return mixture.log_prob(ROWS)


def test_where_the_generator_has_the_rows_own_steps_it_does_not_matter_which_are_left_out():
    expected = log_prob(TangentMixture, lambda z: z)
    assert torch.allclose(log_prob(WithoutRows, lambda z: z), expected)
    assert torch.allclose(log_prob(WithoutGenerator, lambda z: z), expected)


def test_without_the_generator_only_the_rows_steps_count_and_the_reverse():
    twice = BANDWIDTHS._replace(tangent=2 * BANDWIDTHS.tangent)  # each stands for half of the tangents
    assert torch.allclose(
        log_prob(WithoutGenerator, torch.sin), log_prob(TangentMixture, torch.zeros_like, twice)
    )
    nothing = BANDWIDTHS._replace(tangent=0.0)
    assert torch.allclose(
        log_prob(WithoutRows, torch.zeros_like), log_prob(TangentMixture, torch.sin, nothing)
    )


def test_the_round_kernel_is_a_normal_of_one_variance_by_its_neighbours_and_the_typical_ones():
    distance = torch.cdist(CENTERS, CENTERS).sort(1).values[:, 5] ** 2 / 3
    variance = BANDWIDTHS.round * distance**0.75 * distance.log().mean().exp() ** 0.25
    squared = torch.cdist(ROWS, CENTERS) ** 2
    density = -0.5 * squared / variance - 1.5 * (2 * math.pi * variance).log()
    expected = torch.logsumexp(density, 1) - math.log(30)
    assert torch.allclose(log_prob(OnlyRound, torch.sin), expected)


def test_a_rows_own_noise_is_a_normal_by_its_neighbours_alone():
    variance = BANDWIDTHS.noise * torch.cdist(CENTERS, CENTERS).sort(1).values[:, 5] ** 2 / 3
    bare = BANDWIDTHS._replace(tangent=0.0, round=BANDWIDTHS.noise)
    density = -0.5 * torch.cdist(ROWS, CENTERS) ** 2 / variance - 1.5 * (2 * math.pi * variance).log()
    expected = torch.logsumexp(density, 1) - math.log(30)
    assert torch.allclose(log_prob(OwnNoise, torch.sin, bare), expected)


def test_without_the_round_kernel_its_width_does_not_matter():
    other = BANDWIDTHS._replace(round=9.0)
    assert torch.equal(log_prob(WithoutRound, torch.sin), log_prob(WithoutRound, torch.sin, other))
    assert not torch.allclose(log_prob(TangentMixture, torch.sin), log_prob(TangentMixture, torch.sin, other))


def test_without_the_tails_their_width_does_not_matter():
    def found(kind, tail):
        mixture = kind(CENTERS, CENTERS, torch.sin)
        mixture.set_bandwidths(BANDWIDTHS._replace(tail=tail))
        return mixture.log_prob(9 * ROWS)

    without = ablation.MIXTURES["without the tails"]
    assert torch.equal(found(without, 0.6), found(without, 9.0))
    assert not torch.allclose(found(TangentMixture, 0.6), found(TangentMixture, 9.0))


def test_one_noise_is_as_wide_among_many_rows_as_among_few():
    bare = BANDWIDTHS._replace(tangent=0.0)
    dense = torch.cat([CENTERS, CENTERS])  # every fifth neighbour is nearer now
    assert torch.allclose(log_prob(OneNoise, torch.sin, bare), log_prob(OneNoise, torch.sin, bare, dense))
    assert not torch.allclose(
        log_prob(TangentMixture, torch.sin, bare), log_prob(TangentMixture, torch.sin, bare, dense)
    )


def point(seed, table, fit, scores, seconds, distance=0.0):
    scores = {name: {"auroc": area, "ap": area / 2} for name, area in scores.items()}
    measured = {"scores": scores, "fit_seconds": seconds, "sample_distance": distance}
    return {"seed": seed, "table": table, "fit": fit} | measured


def test_changes_stand_beside_the_default_on_the_same_tables_and_seeds():
    areas = np.random.default_rng(0).random((3, 2, 4))  # default, joint, untrained; seeds; tables
    areas[1, :, 0] = areas[0, :, 0] + 5e-4  # neither better nor worse
    points = [
        point(
            seed, f"t{table}", DEFAULT, {DEFAULT: areas[0, seed, table], "joint": areas[1, seed, table]}, 7.0
        )
        for seed in (0, 1)
        for table in range(4)
    ]
    points += [
        point(seed, f"t{table}", "untrained", {"untrained": areas[2, seed, table]}, 1.0 + table, 0.1 * table)
        for seed in (0, 1)
        for table in range(4)
    ]
    rows = {row[0]: row[1:] for row in table_rows(points)}
    gain = (areas[1] - areas[0]).mean(0)
    means = areas.mean(2)
    assert rows["joint"] == [
        f"{means[1].mean():.4f} ± {means[1].std():.4f}",
        f"{means[1].mean() / 2:.4f} ± {means[1].std() / 2:.4f}",
        f"{(gain[1:] > 0).sum()} / {(gain[1:] < 0).sum()}",
        f"{wilcoxon(gain).pvalue:.3g}",
        "",
        "",
    ]
    assert rows[DEFAULT][2:] == ["", "", "0.000", "7.0"]
    assert rows["untrained"][4:] == ["0.150", "2.5"]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A table with anomalies six standard deviations away."""
    rng = np.random.default_rng(0)
    (tmp_path / "adbench").mkdir()
    X = np.r_[rng.normal(size=(120, 3)), 6 + rng.normal(size=(12, 3))]
    np.savez(tmp_path / "adbench" / "1_made.npz", X=X, y=np.r_[np.zeros(120), np.ones(12)])
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path))


def test_samples_are_compared_with_normal_test_rows(made, monkeypatch):
    _, test, labels = adbench.split("1_made", 0)
    monkeypatch.setattr(InvGAN, "sample", lambda self, n, random_state: test[labels == 0][:n])
    assert ablation._measure(True, "untrained: one step", "1_made", 0)["sample_distance"] == 0
    monkeypatch.setattr(InvGAN, "sample", lambda self, n, random_state: test[labels == 1][:n])
    assert ablation._measure(True, "untrained: one step", "1_made", 0)["sample_distance"] > 6


@pytest.mark.parametrize("fit", ["untrained: one step", DEFAULT, ablation.LONGER])
def test_a_fit_is_scored_by_everything_that_needs_no_other(fit, made):
    scores = ablation._measure(True, fit, "1_made", 0)["scores"]
    besides = {
        DEFAULT: [*ablation.POINTWISE, *ablation.MIXTURES],
        ablation.LONGER: [f"{name}, {ablation.LONGER}" for name in ablation.POINTWISE],
    }
    assert list(scores) == [fit, *besides.get(fit, [])]
    densities = [name for name in scores if not name.startswith("score: ")]
    assert all(scores[name]["auroc"] > 0.99 for name in densities)
