"""The estimator: scikit-learn's conventions, units, determinism, the model file, and every bad input."""

import copy
import hashlib
import io
import math
import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.distributions import Normal

import invgan
from invgan import InputError, InvGAN, artifact, geometry, load
from invgan.data import Infer, read_table
from invgan.detectors import IsolationForest, latent
from invgan.estimators import Split
from invgan.likelihood import attribute
from invgan.networks import RBFVariance

METHODS = ["aggregate", "joint", "riemannian"]
FIRST_SEED = int(np.random.RandomState(0).randint(2**31 - 1))
"""What random_state=0 seeds a fit with."""


def correlated(n=120, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + 0.3 * rng.normal(size=(n, d))


def named(n=120, seed=0):
    return pd.DataFrame(correlated(n, seed=seed), columns=["age", "height", "pulse", "weight"])


def digits():
    return load_digits().images[:, None].astype(np.uint8)


def pictures(n=60, seed=0):
    return np.random.default_rng(seed).random((n, 2, 13, 12)).astype(np.float32)


def fitted(X, **parameters):
    return InvGAN(**{"max_steps": 20, "random_state": 0} | parameters).fit(X)


@pytest.fixture(scope="module")
def table():
    return fitted(named())


@pytest.fixture(scope="module")
def images():
    return fitted(digits()[:100])


@pytest.fixture(scope="module")
def convolutional():
    return fitted(pictures(), max_steps=3, batch_size=16)


@pytest.fixture(scope="module")
def paper():
    return fitted(correlated(80, 60), preset="paper", max_steps=10)


MODELS = {
    "table": lambda n: named(n, seed=7),
    "images": lambda n: digits()[-n:],
    "convolutional": lambda n: pictures(n, seed=7),
    "paper": lambda n: correlated(n, 60, seed=7),
}
"""Names of the fitted models, and new rows for each."""


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param), MODELS[request.param]


def state(detector):
    """A digest of every tensor that a score depends on."""
    digest = hashlib.sha256()
    for part in (detector.model_, detector.scaling_, detector.mixture_):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.numpy(force=True).tobytes())
    return digest.hexdigest()


# scikit-learn's conventions


@parametrize_with_checks([InvGAN(max_steps=5, random_state=0)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_parameters_set_after_the_fit_wait_for_the_next_one(tmp_path):
    X = correlated()
    detector = fitted(X)
    scores = detector.score_samples(X)
    detector.set_params(method="joint", preset="paper", n_centers=7).save(tmp_path / "model")
    assert np.array_equal(detector.score_samples(X), scores)
    assert np.array_equal(load(tmp_path / "model").score_samples(X), scores)
    again = detector.set_params(preset=None, n_centers=None).fit(X).score_samples(X)
    assert np.array_equal(again, detector.log_likelihood(X, "joint").values)


def test_a_device_set_after_the_fit_waits_for_the_next_one():
    detector = fitted(correlated(), device="cpu")
    scores = detector.score_samples(correlated())
    for device in ("cuda", "auto"):
        assert np.array_equal(detector.set_params(device=device).score_samples(correlated()), scores)


def test_after_a_fit_that_failed_nothing_is_fitted():
    detector = fitted(correlated())
    wider = np.full((50, 6), np.inf)
    for estimator in (detector, InvGAN()):
        with pytest.raises(InputError, match=r"^X has the value inf in row 0, column 0"):
            estimator.fit(wider)
        with pytest.raises(NotFittedError):
            estimator.predict(wider)


def test_latents_have_names_and_come_as_the_table_that_is_asked_for():
    X = correlated()
    detector = fitted(X)
    z, names = detector.transform(X), detector.get_feature_names_out()
    assert names.tolist() == [f"invgan{i}" for i in range(detector.latent_dim_)]
    frame = detector.set_output(transform="polars").transform(X)
    assert frame.columns == names.tolist()
    assert np.array_equal(frame.to_numpy(), z)


def test_a_pipeline_scores_what_its_last_step_scores_on_the_scaled_rows(table):
    X = correlated()
    pipeline = make_pipeline(StandardScaler(), InvGAN(max_steps=20, random_state=0)).fit(X)
    scaled = StandardScaler().fit_transform(X)
    assert np.array_equal(pipeline.score_samples(X), fitted(scaled).score_samples(scaled))
    assert np.array_equal(pipeline.predict(X), pipeline[-1].predict(scaled))


def test_a_clone_has_the_parameters_and_nothing_learned(table):
    again = clone(table)
    assert again.get_params() == table.get_params()
    assert not hasattr(again, "model_")
    with pytest.raises(Exception, match="not fitted yet"):
        again.score_samples(named())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_score_alike_and_share_nothing(table, copied):
    again = copied(table)
    assert np.array_equal(again.score_samples(named()), table.score_samples(named()))
    before = state(table)
    for parameter in again.model_.parameters():
        parameter.data.zero_()
    assert again.mixture_._generator(torch.ones(1, again.latent_dim_, dtype=torch.float64)).abs().max() == 0
    assert state(table) == before


@pytest.mark.parametrize("as_table", [pl.DataFrame, pd.DataFrame], ids=["polars", "pandas"])
def test_tables_are_scored_by_column_names(table, as_table):
    columns = {name: values.to_numpy() for name, values in named().items()}
    again = fitted(as_table(columns))
    assert again.feature_names_in_.tolist() == ["age", "height", "pulse", "weight"]
    assert np.array_equal(again.score_samples(as_table(columns)), table.score_samples(named()))

    def message(**columns):
        with pytest.raises(ValueError, match="feature names") as caught:
            again.score_samples(as_table(columns))
        return str(caught.value)

    start = "The feature names should match those that were passed during fit.\n"
    renamed = dict(zip(["age", "height", "pulse", "mass"], columns.values(), strict=True))
    assert message(**renamed) == start + (
        "Feature names unseen at fit time:\n- mass\n"
        "Feature names seen at fit time, yet now missing:\n- weight\n"
    )
    assert message(**{name: columns[name] for name in reversed(columns)}) == start + (
        "Feature names must be in the same order as they were in fit.\n"
    )
    missing = {name: columns[name] for name in list(columns)[:3]}
    assert message(**missing) == start + "Feature names seen at fit time, yet now missing:\n- weight\n"


def test_without_a_random_state_each_fit_is_its_own(table):
    first, second = fitted(correlated(), random_state=None), fitted(correlated(), random_state=None)
    scores = [detector.score_samples(correlated()) for detector in (first, second)]
    assert np.isfinite(scores).all()
    assert not np.array_equal(*scores)


@pytest.mark.parametrize("random_state", [0, np.int64(0), np.random.RandomState(0)])
def test_the_same_seed_gives_the_same_scores_bit_for_bit(table, random_state):
    again = fitted(named(), random_state=random_state)
    assert np.array_equal(again.score_samples(named(seed=7)), table.score_samples(named(seed=7)))
    assert state(again) == state(table)


def test_fitting_draws_nothing_from_the_global_generators():
    def numpy_state():
        return np.random.get_state()[1].copy()  # noqa: NPY002

    torch_before, numpy_before = torch.random.get_rng_state(), numpy_state()
    fitted(correlated(40), max_steps=2)
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.array_equal(numpy_state(), numpy_before)


# Units


FACTORS = np.array([2.0, 0.25, 1024.0, 1.0])
"""Powers of two, so that standardisation returns the same bits."""


@pytest.fixture(scope="module")
def rescaled():
    return fitted(correlated() * FACTORS)


@pytest.mark.parametrize("method", ["aggregate", "joint"])
def test_a_change_of_units_divides_densities_by_its_determinant(table, rescaled, method):
    X = correlated(50, seed=3)
    here = table.log_likelihood(pd.DataFrame(X, columns=table.feature_names_in_), method).values
    there = rescaled.log_likelihood(X * FACTORS, method).values
    assert there == pytest.approx(here - np.log(FACTORS).sum(), abs=1e-9)


def test_a_change_of_units_divides_the_surface_density_by_the_surfaces_change_of_volume(table, rescaled):
    X = correlated(50, seed=3)
    z = torch.from_numpy(rescaled.transform(X * FACTORS))
    scale = torch.from_numpy(FACTORS) * table.scaling_.scale
    gan = table.model_

    def surface(z):  # in the new units
        return torch.cat([gan.generator(z) * scale, gan.variance(z) * scale], 1)

    expected = Normal(0, 1).log_prob(z).sum(1) - geometry.log_volume(surface, z)
    found = rescaled.log_likelihood(X * FACTORS, "riemannian").values
    assert found == pytest.approx(expected.numpy(), abs=1e-9)


def test_a_shift_of_the_data_changes_no_score(table):
    X = np.round(correlated() * 1024) / 1024  # dyadic, so that the shift itself rounds nothing
    moved = fitted(X + 4096)
    assert moved.score_samples(X + 4096) == pytest.approx(fitted(X).score_samples(X), abs=1e-6)


def test_the_aggregate_integrates_to_one_in_the_units_of_the_data():
    X = correlated(150, 2) * [1.0, 0.05] + [3, 100]
    detector = fitted(X)
    deviation, mean = X.std(0), X.mean(0)
    side = np.linspace(-12, 12, 200)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * deviation + mean
    cell = (side[1] - side[0]) ** 2 * deviation.prod()
    total = np.exp(detector.log_likelihood(grid, "aggregate").values).sum() * cell
    assert total == pytest.approx(1, abs=1e-3)


def test_pixels_share_one_scale_whose_determinant_is_counted(images):
    X = digits()[-20:]
    scaled = (X.astype(float) - 8) / 8  # from 0..16 to -1..1
    inside = images.mixture_.log_prob(torch.from_numpy(scaled.reshape(20, 64)))
    expected = inside.numpy() - 64 * np.log(8)
    assert images.log_likelihood(X, "aggregate").values == pytest.approx(expected, rel=1e-12)


# A score is a function of the row alone


@pytest.mark.parametrize("method", METHODS)
def test_a_score_does_not_depend_on_the_rows_around_it(model, method):
    detector, rows = model
    X = rows(150) if detector.data_shape_ != (2, 13, 12) else rows(40)

    def score(index):
        part = X.iloc[index] if isinstance(X, pd.DataFrame) else X[index]
        return detector.log_likelihood(part, method).values

    n = len(X)
    together = score(np.arange(n))
    assert np.isfinite(together).all()
    for index in (
        np.arange(n),
        np.arange(n)[::-1],
        np.r_[3, 3, 3, 0],
        np.random.default_rng(0).permutation(n),
    ):
        assert np.array_equal(score(index), together[index])
    for i in (0, 17, 33):
        assert np.array_equal(score([i]), together[[i]])


def test_scoring_changes_no_weight_or_buffer(model):
    detector, rows = model
    before = state(detector)
    X = rows(12)
    for method in METHODS:
        detector.log_likelihood(X, method)
    detector.explain(X)
    detector.predict(X)
    detector.inverse_transform(detector.transform(X))
    detector.sample(3)
    assert state(detector) == before
    assert not any(parameter.requires_grad for parameter in detector.model_.parameters())
    assert not detector.model_.training


@pytest.mark.parametrize("method", METHODS)
def test_a_score_of_a_table_does_not_depend_on_the_number_of_threads(table, method):
    before, scores = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scores.append(table.log_likelihood(named(50, seed=7), method).values)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*scores)


def test_riemannian_diagnostics_are_those_of_the_stacked_jacobian(table):
    X = named(5, seed=7)
    gan, z = table.model_, torch.from_numpy(table.transform(X))
    scale = table.scaling_.scale
    tangents = geometry.jacobian(
        lambda z: torch.cat([gan.generator(z) * scale, gan.variance(z) * scale], 1), z
    )
    found = table.log_likelihood(X, "riemannian").diagnostics
    assert found["condition_number"] == pytest.approx(torch.linalg.cond(tangents).numpy(), rel=1e-9)
    assert not found["rank_deficient"].any()


# Decisions and explanations


def test_p_values_count_the_calibration_rows_that_score_no_higher(table):
    X = named(60, seed=7)
    held_out = Split.draw(120, FIRST_SEED).calibration
    with table._scoring():
        scaled = table._prepare(torch.from_numpy(named().to_numpy()[held_out]))
        own = len(table.mixture_.centers) - len(held_out) + torch.arange(len(held_out))
        left_out = table.mixture_.log_prob(scaled, omitted=own)
    log_derivative = table.scaling_.log_derivative(scaled).sum(-1)
    calibration = table.calibration_scores_
    np.testing.assert_allclose(calibration, left_out + log_derivative, rtol=1e-9)
    expected = [
        (1 + sum(c <= s for c in calibration)) / (len(calibration) + 1) for s in table.score_samples(X)
    ]
    assert table.p_values(X).tolist() == expected


def test_a_row_is_flagged_exactly_when_its_p_value_reaches_the_rate(table):
    X = pd.concat([named(60, seed=7), 3 * named(60, seed=8)])
    before, scores = state(table), table.score_samples(X)
    for rate in (0.0, 0.04, 0.05, 0.1, 0.25, 0.5, 0.9):
        detector = copy.deepcopy(table).set_threshold(rate)
        assert np.array_equal(detector.predict(X) == -1, table.p_values(X) <= rate)
        assert np.array_equal(detector.decision_function(X) < 0, detector.predict(X) == -1)
        assert np.array_equal(np.argsort(detector.decision_function(X)), np.argsort(scores))
        assert np.array_equal(detector.score_samples(X), scores)
        assert state(detector) == before
    assert table.false_positive_rate_ == 0.05


@pytest.mark.parametrize("rate", [-0.1, 1.0, "low"])
def test_a_threshold_outside_the_unit_interval_is_refused(table, rate):
    with pytest.raises(ValueError, match=r"must be a float in the range \[0\.0, 1\.0\)\. Got .* instead\.$"):
        table.set_threshold(rate)


def plausible_latents(detector, X):
    """h(x), no further from a training latent than nine in ten of these are from their nearest one."""
    z, codes = detector.transform(X), detector.mixture_.codes.numpy()
    reach = np.quantile(np.sort(cdist(codes, codes), axis=1)[:, 1], 0.9)
    nearest = codes[cdist(z, codes).argmin(1)]
    distance = np.linalg.norm(z - nearest, axis=1, keepdims=True)
    return np.where(distance > reach, nearest + (z - nearest) * reach / np.maximum(distance, reach), z)


def test_an_images_explanation_takes_h_of_x_unless_no_training_image_is_near(convolutional):
    near, far = pictures(40), 255 - pictures(5)
    same = np.isclose(plausible_latents(convolutional, near), convolutional.transform(near)).all(1)
    assert same.any()
    np.testing.assert_allclose(
        convolutional.expected(near)[0][same],
        convolutional.inverse_transform(convolutional.transform(near))[same],
        rtol=1e-4,
        atol=1e-3,
    )
    assert not np.isclose(plausible_latents(convolutional, far), convolutional.transform(far)).any()
    np.testing.assert_allclose(
        convolutional.expected(far)[0],
        convolutional.inverse_transform(plausible_latents(convolutional, far)),
        rtol=1e-4,
        atol=1e-3,
    )


def test_an_images_shares_sum_to_the_deficit_of_the_conditional_likelihood(convolutional):
    X = pictures(12)
    shares = convolutional.explain(X)
    assert shares.shape == X.shape
    with torch.no_grad():
        scaled = convolutional.scaling_(torch.from_numpy(np.array(X))).float()
        z = torch.from_numpy(plausible_latents(convolutional, X)).float()
        normal = Normal(convolutional.model_.generator(z).flatten(1), convolutional.model_.variance(z))
        log_prob = normal.log_prob(scaled.flatten(1)) + convolutional.scaling_.log_derivative(scaled)
    deficit = convolutional.typical_.sum() - log_prob.double().sum(1)
    assert shares.reshape(12, -1).sum(1) == pytest.approx(deficit.numpy(), rel=1e-4)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("unskew", [False, True])
def test_a_tables_shares_sum_to_the_deficit_of_its_log_likelihood(missing, unskew):
    X = np.exp(correlated())  # skewed: its columns are bent where that is asked for
    detector = fitted(X, max_steps=50, unskew=unskew)
    rows = np.exp(correlated(12, seed=7)) + np.eye(12, 4) * 30
    if missing:
        rows[np.random.default_rng(0).random(rows.shape) < 0.3] = np.nan
    shares = detector.explain(rows)
    assert (shares[np.isnan(rows)] == 0).all()
    typical = np.where(np.isnan(rows), 0, detector.typical_.numpy()).sum(1)
    deficit = typical - detector.log_likelihood(rows, "aggregate").values
    np.testing.assert_allclose(shares.sum(1), deficit, rtol=1e-9, atol=1e-9)


def test_shares_are_relative_to_the_typical_held_out_row(table):
    n = len(table.mixture_.centers)
    typical = table.calibration_scores_.mean() + math.log(n / (n - 1))  # each without its own component
    assert table.typical_.sum().item() == pytest.approx(typical, rel=1e-9)


def test_the_typical_row_is_one_of_all_over_a_sorted_table(monkeypatch):
    monkeypatch.setattr(latent, "MAX_TYPICAL", 5)
    detector = fitted(np.sort(correlated(), axis=0))
    scores = detector.calibration_scores_
    n = len(detector.mixture_.centers)
    typical = scores[:: math.ceil(len(scores) / 5)].mean() + math.log(n / (n - 1))
    assert detector.typical_.sum().item() == pytest.approx(typical, rel=1e-9)


def test_a_value_is_typical_of_the_rows_that_have_it():
    X = correlated(600)
    X[np.random.default_rng(1).random(600) < 0.9, 2] = np.nan
    X[0, 3] = np.nan
    detector = fitted(X, max_steps=50)
    split = Split.draw(600, int(np.random.RandomState(0).randint(2**31 - 1)))
    held_out = torch.from_numpy(X[split.calibration])
    has = ~held_out[:, 2].isnan()
    assert 2 < has.sum() < 16  # so that all of these count, and nothing else
    omitted = detector._own_components(len(held_out))[has]
    expected = detector._judge_features(held_out[has], omitted=omitted).log_prob[:, 2].mean()
    assert detector.typical_[2].item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_value_that_no_held_out_row_has_is_typical_as_the_one_put_in_its_place():
    X = correlated(100)
    split = Split.draw(100, int(np.random.RandomState(0).randint(2**31 - 1)))
    X[split.calibration, 2] = np.nan
    assert fitted(X, max_steps=50).typical_.isfinite().all()


@pytest.mark.parametrize("most", [(10**6, 10**6), (10**6, 20), (50, 20), (20, 20), (20, 50)])
def test_of_many_rows_some_fit_sigma_and_no_more_carry_components(most, monkeypatch):
    monkeypatch.setattr(latent, "MAX_VARIANCE_ROWS", most[0])
    monkeypatch.setattr(latent, "MAX_COMPONENTS", most[1])
    seen = []
    fit_weights = RBFVariance.fit_weights
    monkeypatch.setattr(
        RBFVariance,
        "fit_weights",
        lambda self, latents, residuals: (seen.append(len(latents)), fit_weights(self, latents, residuals)),
    )
    detector, split = fitted(correlated()), Split.draw(120, FIRST_SEED)
    learned = len(split.training) + len(split.validation)
    assert seen == [min(max(most), learned)]
    mixture = detector.mixture_
    assert mixture.n_reference == min(most[1], learned)
    # Those of calibration all do where they fit in, or none.
    whole = mixture.n_reference + len(split.calibration)
    assert len(mixture.centers) == (whole if whole <= most[1] else mixture.n_reference)
    # Each component has the code of its own row, whichever were chosen.
    torch.testing.assert_close(mixture.codes, detector.model_.inference(mixture.centers))


def test_no_p_value_is_below_that_of_full_conformal_prediction(table):
    rows, m = np.concatenate([correlated(20, seed=7), correlated(5, seed=8) + 4]), 19
    mixture, smallest = table.mixture_, []
    with table._scoring():
        calibration = mixture.centers[-m:]
        for row in table._prepare(torch.from_numpy(rows)):
            # The new row joins those of calibration, and each is scored without its own component.
            centers = torch.cat([mixture.centers, row[None]])
            codes = torch.cat([mixture.codes, table.model_.inference(row[None])])
            joined = table._mixture(centers, codes, int(mixture.n_reference))
            joined.set_bandwidths(mixture.bandwidths)
            own = len(mixture.centers) - m + torch.arange(m + 1)
            scores = joined.log_prob(torch.cat([calibration, row[None]]), omitted=own)
            smallest.append((scores <= scores[-1]).double().mean().item())
    found = table.p_values(pd.DataFrame(rows, columns=table.feature_names_in_))
    assert (found >= np.array(smallest) - 1e-12).all()
    assert (found > np.array(smallest) + 1e-12).sum() <= len(rows) // 4  # and hardly any is above
    assert min(smallest) == 1 / (m + 1)


def test_what_a_table_is_expected_to_hold_is_in_its_own_units(table):
    training = correlated()[Split.draw(120, FIRST_SEED).training]
    scaled = torch.from_numpy((correlated(9, seed=7) - training.mean(0)) / training.std(0))
    typical = table.typical_ + torch.from_numpy(np.log(training.std(0)))
    found = attribute(table.mixture_, scaled, typical=typical.expand(9, 4))
    mean, std = table.expected(named(9, seed=7))
    np.testing.assert_allclose(mean, found.mean.numpy() * training.std(0) + training.mean(0), rtol=1e-9)
    np.testing.assert_allclose(std, found.std.numpy() * training.std(0), rtol=1e-9)


@given(st.integers(0, 3), st.sampled_from([-400.0, 400.0]))
@settings(max_examples=8, deadline=None)
def test_a_value_far_from_all_others_is_blamed_and_its_neighbours_are_not(table, column, distance):
    rows = named(9, seed=7).copy()
    before = table.explain(rows)
    rows.iloc[:, column] += distance
    shares = table.explain(rows)
    assert (shares.argmax(1) == column).all()
    others = np.delete(np.arange(4), column)
    # They are judged by each other alone, and it no longer by them: a few nats, not hundreds.
    assert (shares[:, others] - before[:, others]).max() < 0.1 * shares[:, column].min()


# The generator's side


def test_samples_have_the_moments_of_the_stochastic_generator(table):
    n = 40_000
    X = table.sample(n, random_state=1)
    with torch.no_grad():
        z = torch.randn(
            100_000, table.latent_dim_, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        mean, std = table.model_.generator(z).numpy(), table.model_.variance(z).numpy()
    training = correlated()[Split.draw(120, FIRST_SEED).training]
    mean = mean * training.std(0) + training.mean(0)
    variance = mean.var(0) + (std**2).mean(0) * training.var(0)
    assert X.shape == (n, 4)
    assert (np.abs(X.mean(0) - mean.mean(0)) < 5 * np.sqrt(variance * (1 / n + 1e-5))).all()
    squared = (X - X.mean(0)) ** 2
    assert (np.abs(squared.mean(0) - variance) < 5 * squared.std(0) * np.sqrt(1 / n + 1e-5)).all()
    assert np.array_equal(table.sample(5, random_state=2), table.sample(5, random_state=2))


def test_inverse_transform_is_the_generators_mean_in_the_units_of_the_data(table):
    z = np.random.default_rng(0).normal(size=(6, table.latent_dim_))
    training = correlated()[Split.draw(120, FIRST_SEED).training]
    mean = table.model_.generator(torch.from_numpy(z)).numpy()
    expected = mean * training.std(0) + training.mean(0)
    assert table.inverse_transform(z) == pytest.approx(expected, rel=1e-12)


def test_transform_is_the_inference_network_of_the_scaled_row(table):
    training = correlated()[Split.draw(120, FIRST_SEED).training]
    scaled = torch.from_numpy((correlated(9, seed=7) - training.mean(0)) / training.std(0))
    expected = table.model_.inference(scaled).numpy()
    assert table.transform(named(9, seed=7)) == pytest.approx(expected, rel=1e-12)


def test_image_shaped_results(convolutional):
    assert convolutional.sample(3).shape == (3, 2, 13, 12)
    assert convolutional.inverse_transform(convolutional.transform(pictures(3))).shape == (3, 2, 13, 12)


# Networks of one's own


def own_networks(d=2, n_features=4):
    return {
        "generator": nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, n_features)),
        "discriminator": nn.Sequential(nn.Linear(n_features, 8), nn.ReLU(), nn.Linear(8, 1)),
        "inference": nn.Sequential(nn.Linear(n_features, 8), nn.Tanh(), nn.Linear(8, d)),
    }


def test_networks_of_ones_own_are_trained_as_copies():
    own = own_networks()
    before = {name: copy.deepcopy(part.state_dict()) for name, part in own.items()}
    detector = fitted(correlated(), latent_dim=2, **own)
    for name, part in own.items():
        trained = getattr(detector.model_, name)
        assert trained is not part
        for key, value in part.state_dict().items():
            assert torch.equal(value, before[name][key])
            assert not torch.equal(trained.state_dict()[key].to(value), value)
        assert all(parameter.grad is None and parameter.requires_grad for parameter in part.parameters())
        assert part.training
    again = clone(detector).fit(correlated())
    assert np.array_equal(again.score_samples(correlated()), detector.score_samples(correlated()))


def test_networks_of_ones_own_cannot_be_saved(tmp_path):
    own = own_networks()
    detector = fitted(correlated(40), latent_dim=2, max_steps=2, **own)
    for later in (own, dict.fromkeys(own)):  # it is about those that were fitted
        detector.set_params(**later)
        with pytest.raises(InputError, match=r"^A model with networks of your own cannot be saved"):
            detector.save(tmp_path / "m")
        assert not (tmp_path / "m").exists()


# The model file


def test_a_loaded_model_is_the_saved_one_bit_for_bit(model, tmp_path):
    detector, rows = model
    detector.save(tmp_path / "m")
    again = invgan.load(tmp_path / "m")
    X = rows(40)
    assert state(again) == state(detector)
    for method in METHODS:
        assert np.array_equal(
            again.log_likelihood(X, method).values, detector.log_likelihood(X, method).values
        )
    assert np.array_equal(again.p_values(X), detector.p_values(X))
    assert np.array_equal(again.explain(X), detector.explain(X))
    assert np.array_equal(again.sample(3, random_state=0), detector.sample(3, random_state=0))
    assert again.offset_ == detector.offset_
    assert again.history_ == detector.history_
    assert again.get_params() == detector.get_params()


def test_a_loaded_model_knows_its_columns_and_its_threshold(table, tmp_path):
    copy.deepcopy(table).set_threshold(0.2).save(tmp_path / "m")
    again = invgan.load(tmp_path / "m")
    assert again.feature_names_in_.tolist() == ["age", "height", "pulse", "weight"]
    assert again.n_features_in_ == 4
    assert again.false_positive_rate_ == 0.2
    with pytest.raises(ValueError, match="The feature names should match"):
        again.score_samples(named()[["height", "age", "pulse", "weight"]])


@pytest.mark.parametrize(
    ("n_training", "parameters", "steps", "batch_size", "rate"),
    [
        (40, {}, 300, 40, 3e-3),
        (3200, {}, 1000, 64, 3e-3),
        (250_000, {}, 1500, 64, 3e-3),
        (3200, {"batch_size": 128}, 500, 128, 3e-3),
        (3200, {"max_steps": 7, "learning_rate": 0.1}, 7, 64, 0.1),
        (3200, {"preset": "paper"}, 1500, 128, 1e-3),
    ],
)
def test_each_row_of_a_table_is_drawn_twenty_times(n_training, parameters, steps, batch_size, rate):
    detector = fitted(correlated(300), **parameters | {"max_steps": 1})
    detector.set_params(**{"max_steps": None} | parameters)
    schedule = detector._schedule(n_training)
    assert (schedule.max_steps, schedule.batch_size, schedule.learning_rate) == (steps, batch_size, rate)


def test_images_and_networks_of_ones_own_are_trained_as_ever():
    own = fitted(correlated(40), latent_dim=2, max_steps=1, **own_networks())
    for detector in (own, fitted(digits()[:100], max_steps=1)):
        schedule = detector.set_params(max_steps=None)._schedule(3200)
        assert (schedule.max_steps, schedule.batch_size, schedule.learning_rate) == (1500, 128, 1e-3)


def test_numpy_parameters_are_saved_as_plain_ones(tmp_path):
    detector = fitted(
        correlated(40), max_steps=np.int64(2), latent_dim=np.int32(2), learning_rate=np.float64(1e-3)
    )
    detector.save(tmp_path / "m")
    assert invgan.load(tmp_path / "m").get_params() == detector.get_params()


def test_a_model_trained_on_a_gpu_loads_without_one(table, tmp_path):
    on_gpu = copy.deepcopy(table)
    on_gpu.device = "cuda"
    on_gpu.save(tmp_path / "m")
    assert invgan.load(tmp_path / "m").device == "auto"


def altered(detector, path, change):
    """Save a model whose metadata and tensors were changed, under hashes that fit."""
    detector.save(path)
    saved = artifact.read(path)
    metadata, tensors = copy.deepcopy(saved.metadata), dict(saved.tensors)
    change(metadata, tensors)
    artifact.write(path, kind="model", metadata=metadata, tensors=tensors)


def load_error(path):
    with pytest.raises(InputError) as caught:
        invgan.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: this model file does not describe a model that fits it (")
    assert text.endswith("fit the model again, and save it.")
    assert "\n" not in text
    assert len(text) < 400 + len(str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, name: tensors.pop(name),
        lambda tensors, name: tensors.update({name: torch.cat([tensors[name].flatten(), torch.ones(1)])}),
        lambda tensors, name: tensors.update({name: torch.zeros(0)}),
        lambda tensors, name: tensors.update({name: tensors[name] + torch.nan}),
    ],
    ids=["missing", "of another shape", "empty", "not finite"],
)
def test_a_model_file_with_one_wrong_tensor_is_refused(table, tmp_path, change):
    for name in table._state()[1]:
        altered(table, tmp_path / "m", lambda _, tensors, name=name: change(tensors, name))
        load_error(tmp_path / "m")


@pytest.mark.parametrize("scores", [None, torch.zeros(0), torch.ones(3, 2), torch.tensor([1.0, torch.nan])])
def test_a_model_file_without_usable_calibration_scores_is_refused(table, tmp_path, scores):
    def change(_, tensors):
        tensors.pop("calibration_scores")
        tensors.update({} if scores is None else {"calibration_scores": scores})

    altered(table, tmp_path / "m", change)
    load_error(tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("detector"),
        lambda m: m.update(detector="Nobody"),
        lambda m: m.update(detector=["InvGAN"]),
        lambda m: m.update(parameters=None),
        lambda m: m["parameters"].update(surprise=1),
        lambda m: m["parameters"].update(preset="other"),
        lambda m: m["parameters"].update(preset="paper"),
        lambda m: m["parameters"].update(generator="os.system"),
        lambda m: m.update(data_shape=[]),
        lambda m: m.update(data_shape=[5]),
        lambda m: m.update(data_shape=[-4]),
        lambda m: m.update(data_shape=[10**30]),
        lambda m: m.update(data_shape=[1, 2, 2]),
        lambda m: m.update(data_shape="four"),
        lambda m: m.update(feature_names=["only one"]),
        lambda m: m.update(feature_names=5),
        lambda m: m.update(false_positive_rate=2),
        lambda m: m["model"].update(latent_dim=3),
        lambda m: m["model"].update(latent_dim=-1),
        lambda m: m["model"].update(latent_dim=10**12),
        lambda m: m["model"].update(history=None),
        lambda m: m["model"].update(history={"surprise": 1}),
        lambda m: m.pop("model"),
    ],
)
def test_a_model_file_with_other_metadata_is_refused(table, tmp_path, change):
    altered(table, tmp_path / "m", lambda metadata, _: change(metadata))
    load_error(tmp_path / "m")


def test_a_truncated_model_file_is_refused(table, tmp_path):
    table.save(tmp_path / "m")
    (file,) = (tmp_path / "m").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=r"^[^\n]*: truncated \([\d,]+ bytes, the manifest says \d+\)[^\n]*$"
    ):
        invgan.load(tmp_path / "m")


# Bad input


def spoiled(value, row=3, column=2, n=40):
    X = correlated(n)
    X[row, column] = value
    return X


BAD_ROWS = [
    (
        pd.DataFrame(spoiled(np.inf), columns=list("abcd")),
        "X has the value inf in row 3, column 'c': replace infinities or leave the row out.",
    ),
    (
        spoiled(-np.inf),
        "X has the value -inf in row 3, column 2: replace infinities or leave the row out.",
    ),
    (
        spoiled(1e30),
        "X has the value 1e+30 in row 3, column 2; values beyond 1e+18 cannot be squared with any precision "
        "left: rescale them.",
    ),
]


@pytest.mark.parametrize(("X", "message"), BAD_ROWS)
def test_values_that_are_no_usable_numbers_are_named_by_row_and_column(paper, X, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fitted(X)
    if not isinstance(X, pd.DataFrame):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            paper.score_samples(np.c_[X, correlated(40, 56)])


def test_a_pixel_that_is_no_number_is_named_by_its_place(convolutional):
    X = pictures(4)
    X[2, 1, 5, 7] = np.inf
    message = (
        "X has the value inf in row 2, channel 1, pixel (5, 7): replace infinities or leave the row out."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        convolutional.score_samples(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (
            correlated(9),
            "Found array with 9 sample(s) (shape=(9, 4)) while a minimum of 10 is required by InvGAN.",
        ),
        (np.empty((0, 4)), "Found array with 0 sample(s) (shape=(0, 4)) while a minimum of 10 is required"),
        (correlated(20)[:, 0], "Expected 2D array, got 1D array instead"),
        (
            correlated(20).reshape(10, 2, 4),
            "Expected a table of shape (n, D) or images of shape (n, C, H, W), got an array of shape "
            "(10, 2, 4).",
        ),
        (
            np.zeros((20, 8, 6, 3), np.uint8),
            "X has images of shape (8, 6, 3), which looks like (H, W, C), expected (C, H, W); pass "
            "X.transpose(0, 3, 1, 2).",
        ),
        (np.array([["a", "b"]] * 20, dtype=object), "could not convert string to float: 'a'"),
        (correlated(20) + 1j, "Complex data not supported"),
    ],
)
def test_data_of_another_kind_is_refused(X, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        fitted(X)


def test_rows_of_another_shape_are_refused(table, images):
    with (
        pytest.raises(ValueError, match=r"^X has 3 features, but InvGAN is expecting 4 features as input\.$"),
        pytest.warns(UserWarning, match="does not have valid feature names"),
    ):
        table.score_samples(correlated(d=3))
    for shape in [(3, 8, 8), (1, 8, 9)]:
        message = f"X has rows of shape {shape}, but InvGAN is expecting (1, 8, 8) as in fit."
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            images.score_samples(np.zeros((2, *shape)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"batch_size": 30},
            "The 'batch_size' parameter of InvGAN must be at most the number of training rows, 29 after "
            "holding out rows for validation and calibration. Got 30 instead.",
        ),
        (
            {"latent_dim": 2, "n_centers": 2},
            "The 'n_centers' parameter of InvGAN must be at least latent_dim + 1 = 3, or the metric can "
            "lose rank (Lemma 1). Got 2 instead.",
        ),
        (
            {"n_centers": 30},
            "The 'n_centers' parameter of InvGAN must be at most 29, the number of training rows that the "
            "centres are the means of. Got 30 instead.",
        ),
        (
            {"centers": "prior", "n_centers": 10_001},
            "The 'n_centers' parameter of InvGAN must be at most 10000, the number of draws from the prior "
            "that the centres are the means of. Got 10001 instead.",
        ),
        (
            {"latent_dim": 29},
            "The 'latent_dim' parameter of InvGAN must be less than 29, the number of training rows: σ needs "
            "latent_dim + 1 centres among them (Lemma 1). Got 29 instead.",
        ),
        (
            {"generator": nn.Linear(2, 4)},
            "Give all of generator, discriminator and inference, or none of them.",
        ),
        (
            own_networks(),
            "With your own networks the 'latent_dim' parameter of InvGAN must be given.",
        ),
    ],
)
def test_parameters_that_do_not_fit_the_data_are_refused(parameters, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fitted(correlated(50), **parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"latent_dim": 0}, "The 'latent_dim' parameter of InvGAN must be"),
        ({"preset": "best"}, "The 'preset' parameter of InvGAN must be"),
        ({"method": "anomaly"}, "The 'method' parameter of InvGAN must be"),
        ({"loss": "mse"}, "The 'loss' parameter of InvGAN must be"),
        ({"learning_rate": 0.0}, "The 'learning_rate' parameter of InvGAN must be"),
        ({"false_positive_rate": 1.0}, "The 'false_positive_rate' parameter of InvGAN must be"),
        ({"max_steps": 1.5}, "The 'max_steps' parameter of InvGAN must be"),
        ({"generator": lambda z: z}, "The 'generator' parameter of InvGAN must be"),
        ({"random_state": "seed"}, "The 'random_state' parameter of InvGAN must be"),
    ],
)
def test_parameters_out_of_range_are_refused_in_scikit_learns_words(parameters, message):
    with pytest.raises(ValueError, match=rf"^{re.escape(message)} [^\n]* Got [^\n]* instead\.$"):
        fitted(correlated(), **parameters)


def test_other_arguments_out_of_range(table):
    message = (
        "The 'method' parameter of InvGAN.log_likelihood must be one of aggregate, joint, riemannian, "
        "laplace, importance, ais, ratio. Got 'exact' instead."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        table.log_likelihood(named(), "exact")
    message = (
        "The 'n_samples' parameter of InvGAN.log_likelihood must be an int in the range [2, inf). "
        "Got 1 instead."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        table.log_likelihood(named(), "importance", n_samples=1)
    with pytest.raises(
        InputError, match=r"^Z must have shape \(n, 2\), one latent per row\. Got \(5, 3\) instead"
    ):
        table.inverse_transform(np.zeros((5, 3)))
    message = (
        "The 'n_samples' parameter of InvGAN.sample must be an int in the range [1, inf). Got 0 instead."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        table.sample(0)


# Data at the edge


@pytest.mark.parametrize("n", [10, 11, 14, 23])
@pytest.mark.parametrize("preset", [None, "paper"])
def test_ten_rows_are_enough(n, preset):
    X = correlated(n)
    detector = fitted(X, preset=preset, max_steps=3)
    for method in METHODS:
        assert np.isfinite(detector.log_likelihood(X, method).values).all()


@pytest.mark.parametrize(
    "X",
    [
        np.c_[correlated(60), np.full(60, 3.0), np.zeros(60), np.full(60, 1e15)],
        np.ones((60, 3)),
        np.repeat(correlated(6), 10, axis=0),
        correlated(60, 1),
        np.random.default_rng(0).integers(0, 2, (60, 5)).astype(bool),
        np.c_[correlated(60), 1e17 * correlated(60), 1e-17 * correlated(60)],
        np.full((30, 1, 9, 9), 7, dtype=np.uint8),
        np.random.default_rng(0).integers(0, 255, (30, 1, 3, 3), dtype=np.uint8),
        np.random.default_rng(0).normal(size=(30, 1, 4, 4)).astype(np.float16),
        np.random.default_rng(0).normal(size=(30, 1, 4, 4)).astype(np.longdouble),
    ],
    ids=[
        "constant columns",
        "all constant",
        "duplicates",
        "one column",
        "booleans",
        "extreme units",
        "blank images",
        "tiny images",
        "half precision",
        "long doubles",
    ],
)
def test_degenerate_data_have_finite_scores(X):
    detector = fitted(X, max_steps=5)
    for method in METHODS:
        assert np.isfinite(detector.log_likelihood(X, method).values).all()


@pytest.mark.parametrize("method", METHODS)
def test_rows_far_outside_are_scored_below_the_training_rows_and_never_nan(model, method):
    detector, rows = model
    X = rows(8)
    far = X * 0 + 1e17 if isinstance(X, pd.DataFrame) else np.full(X.shape, 1e17, dtype=np.float32)
    scores = detector.log_likelihood(far, method).values
    assert not np.isnan(scores).any()
    if method != "riemannian":  # which looks at the latent alone
        assert scores.max() < detector.log_likelihood(X, method).values.min()
    assert (detector.p_values(far) <= 1).all()


def test_read_only_and_strided_rows_are_scored_as_they_are(table):
    X = correlated(30, seed=7)
    expected = table.score_samples(pd.DataFrame(X, columns=table.feature_names_in_))
    wide = np.asfortranarray(np.repeat(X, 2, axis=1))[:, ::2]
    wide.flags.writeable = False
    detector = copy.deepcopy(table)
    del detector.feature_names_in_
    assert np.array_equal(detector.score_samples(wide), expected)


def skewed(n=150):
    """A normal and a log-normal column that depend on each other."""
    draws = np.random.default_rng(0).normal(size=(n, 2))
    return np.c_[draws[:, 0], np.exp(draws[:, 0] + 1.5 * draws[:, 1])]


@pytest.fixture(scope="module")
def unskewed():
    X = skewed()
    X[::7, 0], X[3::11, 1] = np.nan, np.nan
    return fitted(X, unskew=True)


def test_an_unskewed_density_is_one_in_the_datas_own_units_and_a_missing_value_is_integrated_out(unskewed):
    assert (unskewed.scaling_.width > 0).tolist() == [False, True]
    # A grid that is dense where the log-normal column is.
    grid = np.sinh(np.linspace(-14, 14, 20_001))
    given = np.full_like(grid, 0.4)
    along = np.exp(unskewed.score_samples(np.c_[given, grid]))
    marginal = np.exp(unskewed.score_samples([[0.4, np.nan]]).item())
    assert np.trapezoid(along, grid) == pytest.approx(marginal, rel=1e-4)
    other = np.exp(unskewed.score_samples(np.c_[np.full_like(grid, np.nan), grid]))
    assert np.trapezoid(other, grid) == pytest.approx(1, rel=1e-4)
    assert unskewed.score_samples([[np.nan, np.nan]]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["aggregate", "joint", "riemannian"])
def test_an_unskewed_models_scores_change_with_the_unit_by_its_determinant(unskewed, method):
    other = fitted(skewed() * [1.0, 1e4], unskew=True)
    plain = fitted(skewed(), unskew=True)
    ours = plain.log_likelihood(skewed()[:20], method).values
    theirs = other.log_likelihood(skewed()[:20] * [1.0, 1e4], method).values
    if method == "riemannian":  # along a curve in the plane the determinant depends on its direction
        z = torch.from_numpy(other.transform(skewed()[:20] * [1.0, 1e4]))

        def curve(z):
            return other.scaling_.inverse(other.model_.generator(z))

        def noise(z):
            at = curve(z)
            return other.model_.variance(z) / other.scaling_.log_derivative(at.detach()).exp()

        tangents = [
            torch.cat(
                [
                    torch.func.jacrev(curve)(point[None])[0, :, 0],
                    torch.func.jacrev(noise)(point[None])[0, :, 0],
                ]
            )
            for point in z
        ]
        gram = torch.stack([(J.mT @ J).det() for J in tangents])
        prior = -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
        np.testing.assert_allclose(theirs, prior - 0.5 * gram.log(), rtol=1e-9)
    else:
        np.testing.assert_allclose(theirs, ours - math.log(1e4), rtol=1e-6)


def test_rows_with_missing_values_are_learned_from_and_calibrated_with(unskewed, tmp_path):
    X = skewed()
    X[::7, 0] = np.nan
    unskewed.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.score_samples(X), unskewed.score_samples(X))
    assert np.isfinite(unskewed.calibration_scores_).all()
    draws = again.sample(200, random_state=0)
    assert np.isfinite(draws).all()


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_p_values_of_real_normal_rows_are_valid_at_every_level(missing):
    X = load_breast_cancer().data[load_breast_cancer().target == 1][:, :6]
    levels = np.array([0.06, 0.1, 0.2, 0.5, 0.9])
    shares = []
    for draw in range(24):
        rng = np.random.default_rng(draw)
        part = rng.permutation(X)
        part[rng.random(part.shape) < missing] = np.nan
        detector = InvGAN(max_steps=1, unskew=True, random_state=draw).fit(part[:60])
        shares.append((detector.p_values(part[60:])[:, None] <= levels).mean(0))
    mean, error = np.mean(shares, 0), np.std(shares, 0, ddof=1) / len(shares) ** 0.5
    assert (mean <= levels + 3 * error).all()
    # And no more careful than 19 calibration rows make them: in expectation ⌊20 α⌋ / 20.
    assert (mean >= np.floor(20 * levels + 1e-9) / 20 - 3 * error).all()


def contaminated(anomaly):
    """Rows, a tenth of those that learn and of those that calibrate replaced, and the numbers of these."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(200, 4))
    split = Split.draw(200, FIRST_SEED)
    planted = [rng.permutation(split.learned)[:18], rng.permutation(split.calibration)[:2]]
    planted = np.sort(np.concatenate(planted))
    X[planted] = anomaly(len(planted))
    return X, planted


def scattered(n):
    """Rows far from the others and from each other, as a crowd would make a density of its own."""
    X = np.random.default_rng(1).normal(size=(n, 4))
    return X / np.linalg.norm(X, axis=1, keepdims=True) * np.linspace(20, 40, n)[:, None]


def test_planted_anomalies_are_exactly_the_rows_left_out_and_have_no_part_in_the_model():
    X, planted = contaminated(scattered)
    again, _ = contaminated(lambda n: -2 * scattered(n))
    parameters = {"trim": 0.1, "max_steps": 20, "random_state": 0}
    first, second = (InvGAN(**parameters).fit(rows) for rows in (X, again))
    np.testing.assert_array_equal(first.trimmed_, planted)
    np.testing.assert_array_equal(second.trimmed_, planted)
    np.testing.assert_array_equal(first.score_samples(X), second.score_samples(X))
    np.testing.assert_array_equal(first.calibration_scores_, second.calibration_scores_)
    np.testing.assert_array_equal(first.typical_, second.typical_)
    assert len(first.calibration_scores_) == 18


def test_a_crowd_of_anomalies_that_are_alike_is_left_out_of_a_table():
    X, planted = contaminated(lambda n: 6 + 0.01 * np.random.default_rng(2).normal(size=(n, 4)))
    trimmed = InvGAN(trim=0.1, max_steps=5, random_state=0).fit(X).trimmed_
    assert len(set(trimmed) & set(planted)) >= 16  # of 20; by chance it would be two


def test_anomalies_are_left_out_whatever_the_origin_of_a_column():
    X, planted = contaminated(scattered)
    shifted = X + np.array([1.7e9, 0, -1.7e9, 0])
    assert np.array_equal(IsolationForest(trim=0.1, random_state=0).fit(shifted).trimmed_, planted)


def test_planted_images_are_left_out():
    X = digits()[:200]
    planted = np.random.default_rng(0).permutation(Split.draw(200, FIRST_SEED).learned)[:18]
    noise = np.random.default_rng(1).integers(0, 17, (18, *X.shape[1:]))
    X = X.copy()
    X[planted] = noise
    trimmed = InvGAN(trim=0.1, max_steps=20, random_state=0).fit(X).trimmed_
    assert len(set(trimmed) & set(planted)) >= 16  # by chance it would be two


def test_rows_with_gaps_are_not_trimmed_for_their_columns_units():
    X = correlated()
    X[40:50, 2] = np.nan
    planted = [3, 60]
    X[planted] += 9
    for unit in (1e-30, 1e15):  # 69 nats, and −35, a value
        detector = InvGAN(trim=2 / 101, max_steps=20, random_state=0).fit(X * [1, 1, unit, 1])
        np.testing.assert_array_equal(detector.trimmed_, planted)


def test_without_trimming_every_row_is_kept():
    X = np.random.default_rng(0).normal(size=(60, 3))
    plain, none = (InvGAN(max_steps=20, random_state=0, trim=c).fit(X) for c in (0.0, 0.02))
    assert plain.trimmed_.tolist() == none.trimmed_.tolist() == []  # 0.02 of 41 rows is less than one
    np.testing.assert_array_equal(plain.score_samples(X), none.score_samples(X))
    with pytest.raises(InputError, match=r"^With trim=0\.1 a fit needs at least 40 rows, got 30; "):
        InvGAN(trim=0.1).fit(X[:30])


def test_what_trimming_does_to_the_p_values_of_normal_rows():
    """Too large where anomalies calibrate, right without them, too small where normal rows were left out."""
    levels, shares = np.array([0.05, 0.1, 0.2, 0.5]), []
    for draw in range(40):
        rng = np.random.default_rng(draw)
        X, new = rng.normal(size=(300, 2)), rng.normal(size=(300, 2))
        dirty = X.copy()
        dirty[rng.permutation(300)[:30]] += 12
        found = [
            IsolationForest(random_state=draw, n_estimators=20, trim=trim).fit(rows)
            for rows, trim in ((dirty, 0.0), (dirty, 0.1), (X, 0.1))
        ]
        shares.append([(each.p_values(new)[:, None] <= levels).mean(0) for each in found])
    mean, error = np.mean(shares, 0), np.std(shares, 0, ddof=1) / len(shares) ** 0.5
    assert mean[0, 0] < 0.02
    assert (mean[1] <= levels + 3 * error[1]).all()
    assert (mean[1] >= levels - 0.04).all()
    assert (mean[2] <= levels + (1 - levels) * 0.1 + 3 * error[2]).all()
    assert (mean[2] > levels).all()


def people(n=60):
    """A table as pandas has it: numbers, text, categories, truth values, and gaps in each."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 10, n),
            "ward": rng.choice(["north", " south"], n),
            "kind": pd.Categorical(rng.choice(["a", "b", "c"], n)),
            "fever": rng.random(n) < 0.3,
            "nothing": pd.Series([None] * n, dtype=object),
        }
    )
    frame.loc[3, ["age", "ward", "kind"]] = None
    return frame


@pytest.mark.parametrize("form", ["pandas", "polars"])
def test_a_mixed_table_is_encoded_as_the_file_of_it(form, tmp_path):
    frame = people() if form == "pandas" else pl.from_pandas(people())
    people().to_csv(tmp_path / "t.csv", index=False)
    read = read_table(tmp_path / "t.csv", columns=Infer())
    assert read.feature_names == ["age", "ward=north", "ward=south", "kind=a", "kind=b", "kind=c", "fever"]
    encoded = pl.DataFrame(read.X, schema=read.feature_names)
    given, expected = fitted(frame), fitted(encoded)
    assert list(given.feature_names_in_) == read.feature_names
    scores = expected.score_samples(encoded)
    np.testing.assert_array_equal(given.score_samples(frame), scores)
    np.testing.assert_array_equal(given.score_samples(encoded), scores)
    assert given.explain(frame).shape == encoded.shape
    given.save(tmp_path / "m")
    again = load(tmp_path / "m")
    np.testing.assert_array_equal(again.score_samples(frame), scores)
    # In another order, without what takes no part, and with a value that no row had.
    other = people()[["fever", "kind", "age", "ward"]].astype({"kind": str, "ward": str})
    other.loc[0, "ward"] = "moon"
    encoded = encoded.with_columns(
        pl.when(pl.int_range(pl.len()) == 0).then(0.0).otherwise(pl.col(name)).alias(name)
        for name in ("ward=north", "ward=south")
    )
    other = other if form == "pandas" else pl.from_pandas(other)
    np.testing.assert_array_equal(again.score_samples(other), expected.score_samples(encoded))


def test_a_mixed_table_that_does_not_fit_gets_one_line():
    frame = people()
    with pytest.raises(InputError, match=r"^X, column 'when': holds dates such as 2024-01-01"):
        fitted(frame.assign(when=pd.Timestamp("2024-01-01")))
    for name, values in {"odd": [1, "a"] * 30, "wide": np.zeros(60, np.longdouble)}.items():
        message = rf"^X, column '{name}': cannot be read \(.*\); make all of its values of one type\.$"
        with pytest.raises(InputError, match=message):
            fitted(frame.assign(**{name: values}))
    message = "Complex data not supported: X has it in column 'z'; give its real and imaginary parts."
    for table in (frame.assign(z=1j), pd.DataFrame({"age": frame["age"], "z": 1j})):
        with pytest.raises(InputError, match=f"^{message}$"):
            fitted(table)
    detector = fitted(frame)
    with pytest.raises(InputError, match=r"^X has no column 'ward', which InvGAN was fitted on; add it\.$"):
        detector.score_samples(frame.drop(columns="ward"))
    with pytest.raises(
        InputError, match=r"^X has the column 'odd', which InvGAN was not fitted on; drop it\.$"
    ):
        detector.score_samples(frame.assign(odd=1))
    with pytest.raises(InputError, match=r"^X has 'old' in row 2, column 'age': expected a finite number\.$"):
        detector.score_samples(frame.astype({"age": object}).assign(age=["1", "2", "old"] + ["4"] * 57))


@pytest.mark.parametrize("column", ["age", "ward"])
def test_a_single_column_of_pandas_is_refused(column):
    message = "Expected a 2-dimensional container but got a pandas Series instead; give a table, such as "
    for method in (InvGAN().fit, fitted(people()).score_samples):
        with pytest.raises(InputError, match=rf"^{message}X\.to_frame\(\)\.$"):
            method(people()[column])


# Rows with gaps beside rows without


def test_decisions_about_rows_with_gaps_do_not_depend_on_the_units():
    X, new = correlated(), correlated(40, seed=7)
    new[::2, 1] = np.nan
    new[:4] += [6, 0, 0, 0]
    units = np.array([1.0, 1e6, 1e-6, 1.0])
    one, other = fitted(X, max_steps=50), fitted(X * units, max_steps=50)
    assert np.array_equal(one.p_values(new), other.p_values(new * units))
    assert np.array_equal(one.predict(new), other.predict(new * units))
    assert one.p_values(new)[:4].max() < 0.1
    assert one.p_values(new)[4:].mean() > 0.3


def test_what_is_missing_counts_as_in_a_typical_row(table):
    rows = named(12, seed=7)
    rows.iloc[3, 1] = rows.iloc[3, 2] = rows.iloc[5, :] = np.nan
    found = table.typical_of_missing(rows)
    typical = table.typical_.numpy()
    expected = np.zeros(12)
    expected[3], expected[5] = typical[1] + typical[2], typical.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(
        table.decision_function(rows), table.score_samples(rows) + found - table.offset_
    )
    assert table.score_samples(rows)[5] == pytest.approx(0, abs=1e-9)  # a marginal of nothing


def test_a_column_without_any_value_is_refused():
    X = named()
    X["pulse"] = np.nan
    message = "X has no value in column 'pulse' of the rows to learn from; leave the column out."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        fitted(X)


def test_a_table_whose_words_became_numbers_alone_is_scored_as_it_was_fitted():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"fever": rng.choice(["yes", "no"], 60), "temperature": rng.normal(37, 1, 60)})
    detector = fitted(X, max_steps=5)
    as_numbers = X.assign(fever=(X["fever"] == "yes").astype(float))
    assert np.array_equal(detector.score_samples(X), detector.score_samples(as_numbers))


def test_eq_4_of_rows_with_gaps_is_compared_as_it_is():
    X, new = correlated(), correlated(40, seed=7)
    new[:, 1] = np.nan
    units = np.array([1.0, 1e6, 1.0, 1.0])
    one, other = (fitted(rows, max_steps=50, method="riemannian") for rows in (X, X * units))
    assert (one.typical_of_missing(new) == 0).all()
    np.testing.assert_allclose(
        other.decision_function(new * units) - other.score_samples(new * units), -other.offset_, rtol=1e-9
    )


def test_where_the_surface_is_flat_a_row_is_not_normal():
    X = np.random.default_rng(0).random((60, 1, 8, 8)).astype(np.float32)
    detector = fitted(X, preset="paper", max_steps=5, batch_size=16, latent_dim=4)
    far = (1e5 * X[:3]).astype(np.float32)
    found = detector.log_likelihood(far, "riemannian")
    assert np.isfinite(found.values).all()
    assert found.diagnostics["rank_deficient"].all()
    assert (found.values < detector.offset_).all()


def test_a_far_value_beside_bent_columns_has_an_eq_4():
    rng = np.random.default_rng(0)
    X = np.c_[rng.lognormal(size=(200, 2)), rng.normal(size=(200, 2))]
    detector = fitted(X, unskew=True, method="riemannian", max_steps=50)
    far = X[:3].copy()
    far[1, 2] = 1e10
    assert np.isfinite(detector.score_samples(far)).all()


def test_a_row_whose_text_is_missing_is_scored_as_a_table_with_text_is():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"]).assign(ward=rng.choice(["u", "v"], 60))
    X.loc[5, "ward"] = None
    detector = fitted(X, max_steps=5)
    expected = detector.score_samples(X.iloc[[5]])
    as_read = pd.read_csv(io.StringIO(X.iloc[[5]].to_csv(index=False)))
    assert as_read["ward"].dtype == float
    np.testing.assert_array_equal(detector.score_samples(as_read), expected)
    np.testing.assert_array_equal(detector.score_samples(as_read[["ward", "b", "a"]]), expected)
    unknown = pl.DataFrame(as_read[["a", "b"]]).with_columns(ward=pl.lit(None, dtype=pl.Float64))
    np.testing.assert_array_equal(detector.score_samples(unknown), expected)


def test_what_is_no_number_is_named(table):
    rows = named(5)
    for change, message in {
        ("pulse", ("1", "x", "3", "4", "5")): "X has 'x' in row 1, column 'pulse': expected a finite number.",
        ("pulse", (1, "x", 3, 4, 5)): "X, column 'pulse': cannot be read (",
        ("pulse", pd.Timestamp("2020-01-01")): "X, column 'pulse': holds Datetime(",
    }.items():
        name, values = change
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            table.score_samples(rows.assign(**{name: values}))
    twice = pd.DataFrame(correlated(5), columns=["age", "height", "age", "weight"])
    with pytest.raises(InputError, match=r"^X: columns 0 and 2 are both named 'age'; rename one\.$"):
        table.score_samples(twice)
    with pytest.raises(InputError, match=r"^X holds datetime64\[s\], which has no density"):
        table.score_samples(correlated(5).astype("datetime64[s]"))


def test_numbers_written_as_text_are_numbers(table):
    rows = named(5)
    as_text = rows.assign(pulse=[repr(value) for value in rows["pulse"].tolist()])
    np.testing.assert_array_equal(table.score_samples(as_text), table.score_samples(rows))
    np.testing.assert_array_equal(table.score_samples(rows.astype(object)), table.score_samples(rows))


def test_what_is_under_a_mask_does_not_count():
    X = correlated()
    detector, rows = fitted(X), correlated(5, seed=7)
    masked = np.ma.masked_array(rows, mask=np.eye(5, 4, dtype=bool))
    masked.data[masked.mask] = -999
    np.testing.assert_array_equal(
        detector.score_samples(masked), detector.score_samples(np.where(np.eye(5, 4), np.nan, rows))
    )


def test_latents_must_be_finite(table):
    with pytest.raises(InputError, match=r"^Z has NaN or infinite values; give finite latents\.$"):
        table.inverse_transform(np.full((1, table.latent_dim_), np.nan))


def test_images_of_another_shape_are_not_counted_by_their_channels(convolutional):
    images = np.zeros((3, *convolutional.data_shape_), np.uint8)
    for other in (images.transpose(0, 2, 3, 1), images[:, 0], images.reshape(3, -1)):
        message = (
            f"X has rows of shape {other.shape[1:]}, but InvGAN is expecting {images.shape[1:]} as in fit."
        )
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            convolutional.score_samples(other)
    with pytest.raises(InputError, match=r"^Found array with rows of shape \(0, 8, 8\)"):
        fitted(np.zeros((30, 0, 8, 8), np.uint8))
