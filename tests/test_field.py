"""The smooth random field, and the likelihood ratio of images against it."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score
from torch import nn

from invgan import ImplicitLikelihood, InvGAN, load
from invgan.errors import InputError
from invgan.likelihood import smooth_field
from invgan.likelihood.field import LEAST_VARIANCE


def laplacian(height, width):
    """Of the grid, by its definition: degrees on the diagonal, −1 for pixels that share an edge."""
    places = np.array([(i, j) for i in range(height) for j in range(width)])
    adjacent = np.abs(places[:, None] - places[None]).sum(2) == 1
    return np.diag(adjacent.sum(1)) - adjacent.astype(float)


def log_field(channel, variance):
    """log q_s of one channel, as the singular normal distribution that it is, and a uniform mean."""
    covariance = variance * np.linalg.pinv(laplacian(*channel.shape))
    normal = multivariate_normal(cov=covariance, allow_singular=True)
    return normal.logpdf(channel.ravel() - channel.mean()) - math.log(2 * math.sqrt(channel.size))


def random_images(n, shape=(2, 3, 4), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (n, *shape)))


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 2, 2), (2, 1, 5)])
def test_the_field_is_a_singular_normal_at_the_roughness_that_suits_an_image_best(shape):
    images = random_images(6, shape)
    variances = np.geomspace(LEAST_VARIANCE, 10, 4000)
    for image, found in zip(images.numpy(), smooth_field(images).numpy(), strict=True):
        by_roughness = [
            sum(log_field(channel, variance) for channel in image) for variance in variances[::80]
        ]
        assert max(by_roughness) <= found + 1e-9
        rank = image.size - len(image)
        energy = sum(channel.ravel() @ laplacian(*shape[1:]) @ channel.ravel() for channel in image)
        expected = sum(log_field(channel, energy / rank) for channel in image)
        assert found == pytest.approx(expected, rel=1e-9)


def test_differences_are_no_finer_than_rounding():
    image = np.full((1, 1, 2, 3), 0.25)
    image[0, 0, 1, 1] += 1e-4
    expected = log_field(image[0, 0], LEAST_VARIANCE)
    assert smooth_field(torch.from_numpy(image)).item() == pytest.approx(expected, rel=1e-9)


def test_the_field_does_not_see_brightness_and_follows_contrast():
    images = random_images(5)
    assert torch.allclose(smooth_field(images + 0.3), smooth_field(images), rtol=1e-12)
    rank = 2 * (3 * 4 - 1)
    assert torch.allclose(smooth_field(images / 2), smooth_field(images) + rank * math.log(2), rtol=1e-12)


def test_one_pixel_has_a_brightness_alone():
    assert smooth_field(torch.zeros(1, 3, 1, 1)).item() == pytest.approx(-3 * math.log(2))


def test_unknown_pixels_are_integrated_out():
    grid = laplacian(3, 4)
    images = random_images(4, (1, 3, 4))
    known = torch.from_numpy(np.random.default_rng(1).random((4, 1, 3, 4)) < 0.6)
    for image, mask, found in zip(images, known, smooth_field(images, observed=known), strict=True):
        seen, x = mask.numpy().ravel(), image.numpy().ravel()
        gaps = grid[~seen][:, ~seen]
        schur = grid[seen][:, seen] - grid[seen][:, ~seen] @ np.linalg.solve(gaps, grid[~seen][:, seen])
        energy, rank = x[seen] @ schur @ x[seen], seen.sum() - 1
        eigenvalues = np.linalg.eigvalsh(schur)[1:]
        # A uniform density along all pixels' common shift, of which the known ones are a part.
        total = np.linalg.eigvalsh(grid)[1:]
        shift = np.log(total).sum() - np.linalg.slogdet(gaps)[1] - np.log(eigenvalues).sum()
        normal = (
            0.5 * np.log(eigenvalues).sum() - 0.5 * rank * math.log(2 * math.pi * energy / rank) - rank / 2
        )
        assert found.item() == pytest.approx(normal + shift / 2 - math.log(2 * math.sqrt(12)), rel=1e-9)


def test_an_unknown_pixel_is_integrated_out_as_by_quadrature():
    image = torch.tensor([[[[0.2, 0.0, -0.4]]]], dtype=torch.float64)
    known = torch.tensor([[[[True, False, True]]]])
    variance = 0.6**2 / 2  # that of the known pixels: E = (0.2 + 0.4)² / 2, of rank 1
    middle = np.linspace(-8, 8, 20001)
    density = [math.exp(log_field(np.array([[0.2, each, -0.4]]), variance)) for each in middle[::10]]
    expected = math.log(sum(density) * (middle[10] - middle[0]))
    assert smooth_field(image, observed=known).item() == pytest.approx(expected, abs=1e-6)


def test_what_stands_in_unknown_pixels_does_not_count_and_nothing_known_is_certain():
    images = random_images(3)
    known = torch.ones_like(images, dtype=torch.bool)
    known[0, 0, 1:, 2] = False
    known[1, 1] = False  # a whole channel
    known[2] = False
    filled = torch.where(known, images, 7.0)
    found = smooth_field(images, observed=known)
    assert torch.equal(smooth_field(filled, observed=known), found)
    assert found[1].item() == pytest.approx(smooth_field(images[1:2, :1]).item(), rel=1e-12)
    assert found[2].item() == 0
    assert smooth_field(images, observed=torch.ones_like(known)).equal(smooth_field(images))


# The ratio


def textures(n, seed, *, orders=(1, 2, 3, 4), contrast=(0.2, 1.5)):
    """Random mixtures of smooth patterns, 8x8, of various contrasts, and a little noise."""
    rng = np.random.default_rng(seed)
    at = np.cos(np.pi * np.outer(orders, np.arange(8) + 0.5) / 8)
    patterns = np.stack([np.outer(one, other) for one in at for other in at])
    images = np.tensordot(rng.normal(size=(n, len(patterns))), patterns, 1)
    images *= rng.uniform(*contrast, size=(n, 1, 1)) / images.std((1, 2), keepdims=True)
    return (images + 0.02 * rng.normal(size=images.shape))[:, None].astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return InvGAN(max_steps=60, method="ratio", random_state=0).fit(textures(400, 0))


def test_the_ratio_is_the_aggregate_density_over_the_field(fitted):
    X = textures(30, 1)
    scaled = fitted.scaling_(torch.from_numpy(X))
    units = fitted.scaling_.log_derivative(scaled).sum().item()
    expected = fitted.log_likelihood(X, "aggregate").values - units - smooth_field(scaled).numpy()
    found = fitted.log_likelihood(X)
    assert np.allclose(found.values, expected, rtol=1e-6)
    assert found.standard_error is None
    assert np.array_equal(found.values, fitted.score_samples(X))


def test_the_ratio_has_no_unit():
    X, new = textures(100, 0), textures(20, 1)
    one, other = (InvGAN(max_steps=10, random_state=0).fit(scale * X) for scale in (1, 1024))
    ours, theirs = one.log_likelihood(new, "ratio").values, other.log_likelihood(1024 * new, "ratio").values
    assert np.array_equal(ours, theirs)  # powers of two scale without rounding


def test_a_faint_image_of_another_kind_is_likely_and_the_ratio_finds_it(fitted):
    X = np.concatenate([textures(200, 1), textures(200, 2, orders=(0, 1), contrast=(0.15, 0.15))])
    faint = np.repeat([0, 1], 200)
    assert roc_auc_score(faint, -fitted.log_likelihood(X, "aggregate").values) < 0.5
    assert roc_auc_score(faint, -fitted.score_samples(X)) > 0.99


def test_a_ratio_depends_on_its_image_alone_and_survives_the_model_file(fitted, tmp_path):
    X = textures(70, 1)
    X[::3, 0, 2:4, 5] = np.nan
    scores = fitted.score_samples(X)
    assert np.isfinite(scores).all()
    assert np.array_equal(fitted.score_samples(X[::-1]), scores[::-1])
    assert np.array_equal(fitted.score_samples(X[3:4]), scores[3:4])
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert np.array_equal(again.score_samples(X), scores)
    assert np.array_equal(again.p_values(X), fitted.p_values(X))


@pytest.mark.parametrize("method", ["aggregate", "ratio"])
def test_unknown_pixels_make_an_image_neither_more_nor_less_unusual(method):
    detector = InvGAN(max_steps=60, method=method, random_state=0).fit(textures(400, 0))
    X = textures(300, 1)
    with_gaps = X.copy()
    with_gaps[:, 0, 3:5] = np.nan
    added = detector.typical_of_missing(with_gaps)
    whole = detector.score_samples(X)
    lost = whole - detector.score_samples(with_gaps)
    assert added == pytest.approx(lost.mean(), abs=0.2 * whole.std())
    assert not detector.typical_of_missing(X).any()


NO_IMAGES = (
    "The 'method' parameter of {} is 'ratio', which compares neighbouring pixels, and the rows are no "
    "images: use 'aggregate'."
)


def test_rows_of_a_table_have_no_ratio():
    X = np.random.default_rng(0).normal(size=(60, 3))
    with pytest.raises(InputError, match=f"^{re.escape(NO_IMAGES.format('InvGAN'))}$"):
        InvGAN(method="ratio", max_steps=1, random_state=0).fit(X)
    with pytest.raises(InputError, match=f"^{re.escape(NO_IMAGES.format('ImplicitLikelihood'))}$"):
        ImplicitLikelihood(nn.Linear(1, 3), 1, method="ratio").fit(X)
    detector = InvGAN(max_steps=1, random_state=0).fit(X)
    with pytest.raises(InputError, match=f"^{re.escape(NO_IMAGES.format('InvGAN'))}$"):
        detector.log_likelihood(X, "ratio")
