"""A fit to images that lie in a file: the same model, and no copy of them in memory."""

import numpy as np
import pytest
from torch.profiler import ProfilerActivity, profile

from invgan import InputError, InvGAN, artifact, load
from invgan.detectors import latent
from invgan.estimators import base

N, SHAPE = 40_000, (1, 8, 8)


@pytest.fixture(scope="module")
def pixels():
    """Bars at random places, and noise."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 30, (N, *SHAPE), dtype=np.uint8)
    X[np.arange(N), 0, rng.integers(0, 8, N)] += 200
    return X


@pytest.fixture
def mapped(pixels, tmp_path):
    np.save(tmp_path / "images.npy", pixels)
    return np.load(tmp_path / "images.npy", mmap_mode="c")


@pytest.fixture
def few_rows(monkeypatch):
    """What is held of the images beside the minibatches, at a size that shows beside this many of them."""
    monkeypatch.setattr(latent, "MAX_COMPONENTS", 200)
    monkeypatch.setattr(latent, "MAX_VARIANCE_ROWS", 400)
    split = base.Split.draw

    def draw(n_rows, seed):
        drawn = split(n_rows, seed)
        return base.Split(drawn.training, drawn.validation[:100], drawn.calibration[:100])

    monkeypatch.setattr(base.Split, "draw", draw)


def test_the_model_is_the_same_as_of_images_in_memory(pixels, mapped):
    few = 500
    models = [InvGAN(max_steps=10, random_state=0).fit(X[:few]) for X in (pixels, mapped)]
    scores = [model.score_samples(X[:few]) for model, X in zip(models, (mapped, pixels), strict=True)]
    np.testing.assert_array_equal(*scores)
    assert models[0].scaling_.shift == (pixels[:few].max() + pixels[:few].min()) / 2


def test_neither_fit_nor_scores_make_an_array_as_large_as_the_images(mapped, tmp_path, few_rows):
    detector = InvGAN(max_steps=10, random_state=0, checkpoint=tmp_path / "checkpoint")
    # NumPy's part: the rows are where they were, and all that follows is PyTorch's.
    assert detector._check_rows(mapped, fitting=True).data_ptr() == mapped.ctypes.data
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        scores = detector.fit(mapped).score_samples(mapped)
    assert np.isfinite(scores).all()
    assert max(event.cpu_memory_usage for event in profiled.events()) < mapped.nbytes


@pytest.mark.parametrize(("limit", "expected"), [(64 * 50, 64), (64 * 90, 90), (2**25, 100)])
def test_large_images_have_fewer_components_and_no_fewer_than_64(pixels, monkeypatch, limit, expected):
    monkeypatch.setattr(latent, "MAX_COMPONENT_VALUES", limit)
    monkeypatch.setattr(latent, "MAX_COMPONENTS", 100)
    fitted = InvGAN(max_steps=1, random_state=0).fit(pixels[:300])
    assert len(fitted.mixture_.centers) == expected


def test_a_model_whose_images_cannot_have_been_resized_to_its_shape_is_refused(pixels, tmp_path):
    fitted = InvGAN(max_steps=1, random_state=0).fit(pixels[:60])
    fitted.image_size_ = 8
    fitted.save(tmp_path / "model")
    assert load(tmp_path / "model").image_size_ == 8
    saved = artifact.read(tmp_path / "model", kind="model")
    changed = saved.metadata | {"image_size": 9}
    artifact.write(tmp_path / "other", kind="model", metadata=changed, tensors=saved.tensors)
    with pytest.raises(InputError, match="its images are resized to 9×9, which is not their shape"):
        load(tmp_path / "other")
