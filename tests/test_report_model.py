"""What a report says of a model is what the model says, of the rows that are shown and of no others."""

import weakref

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import pdist

from invgan import InvGAN
from invgan.data import Infer, read_table
from invgan.detectors.latent import LatentDetector
from invgan.report import of_model, write_report
from invgan.report.of_model import as_fitted, reasons_of, report_content
from invgan.report.reasons import main_reasons
from invgan.report.text import shown, with_spread

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def table(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3))


@pytest.fixture(scope="module")
def detector():
    return InvGAN(2, max_steps=30, random_state=0).fit(table(200))


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(of_model, "EXPLAINED_ROWS", 20)
    monkeypatch.setattr(of_model, "PICTURED_ROWS", 5)
    monkeypatch.setattr(of_model, "MAPPED_ROWS", 30)


def content_of(detector, X, sizes=(None,), **options):
    """The content, from blocks of so many rows."""
    scores = detector.score_samples(X)
    ends = [len(X) if size is None else size for size in sizes]
    blocks = zip(np.split(X, ends[:-1]), np.split(scores, ends[:-1]), strict=True)
    return report_content(detector, blocks, title="A report", source="somewhere.csv", **options)


def test_blocks_make_the_same_report_as_all_rows_at_once(detector, tmp_path):
    X = table(300, seed=1)
    X[250:] = X[:50]  # ties, which keep the order of the rows
    pages = []
    for sizes in ((None,), (1, 100, 110, 299, None)):
        write_report(tmp_path / "report.html", content_of(detector, X, sizes))
        pages.append((tmp_path / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_only_the_rows_that_are_shown_are_kept_explained_and_encoded(detector, monkeypatch):
    asked = {}

    def counting(name):
        original = getattr(LatentDetector, name)

        def counted(self, X):
            asked[name] = asked.get(name, 0) + len(X)
            return original(self, X)

        monkeypatch.setattr(LatentDetector, name, counted)

    for name in ("explanation", "transform"):
        counting(name)
    alive = []

    def blocks():
        for seed in range(10):
            X = table(100, seed)
            assert sum(reference() is not None for reference in alive) <= 1, "the last one, perhaps"
            alive.append(weakref.ref(X))
            yield X, detector.score_samples(X)

    content = report_content(detector, blocks(), title="A report", source="somewhere.csv")
    assert len(content.scores) == 1000
    assert asked.pop("transform") <= 20 + 30
    assert asked == {"explanation": 20}


def test_reasons_are_those_of_the_lowest_scores_in_the_datas_own_units(detector):
    X = table(300, seed=2) * [1, 1, 3]
    content = content_of(detector, X)
    order = np.argsort(detector.score_samples(X), kind="stable")[:20]
    shares, (mean, std) = detector.explain(X), detector.expected(X)
    assert len(content.reasons) == 20
    for row, found in zip(order, content.reasons, strict=True):
        best = np.argsort(-shares[row], kind="stable")
        assert [reason.column for reason in found] == [f"x{i}" for i in best]
        np.testing.assert_allclose([reason.share for reason in found], shares[row, best])
        for reason, i in zip(found, best, strict=True):
            assert reason.observed == shown(X[row, i])
            if not reason.expected.startswith(("below", "above")):
                assert reason.expected == with_spread(mean[row, i], std[row, i])
                assert reason.stands_out == (abs(X[row, i] - mean[row, i]) > std[row, i])


def test_categories_and_booleans_are_named_as_the_file_names_them(tmp_path):
    rng = np.random.default_rng(0)
    n = 200
    fever = rng.random(n) < 0.4
    frame = pl.DataFrame(
        {
            "ward": np.where(fever, "north", "south"),
            "fever": np.where(fever, "yes", "no"),
            "temperature": np.where(fever, 39, 36.8) + 0.1 * rng.normal(size=n),
        }
    )
    frame.write_csv(tmp_path / "t.csv")
    learned = read_table(tmp_path / "t.csv", columns=Infer())
    named = pl.DataFrame(learned.X, schema=learned.feature_names)
    detector = InvGAN(2, max_steps=300, unskew=True, random_state=0).fit(named)
    detector.columns_ = learned.columns
    odd = pl.DataFrame({"ward": ["moon"], "fever": ["no"], "temperature": [36.8]})
    odd.write_csv(tmp_path / "odd.csv")
    X = read_table(tmp_path / "odd.csv", min_rows=1, columns=learned.columns).X
    (found,) = reasons_of(detector, X)
    assert {reason.column for reason in found} == {"ward", "fever", "temperature"}
    shares = detector.explain(as_fitted(detector, X))[0]
    by_column = {reason.column: reason for reason in found}
    assert by_column["ward"].observed == "another value"
    assert by_column["ward"].expected in ("north", "south")
    indicators = [i for i, name in enumerate(learned.feature_names) if name.startswith("ward=")]
    assert by_column["ward"].share == pytest.approx(shares[indicators].sum())
    assert by_column["fever"].observed == "false"
    assert "ward" in {reason.column for reason in main_reasons(found)}


def test_images_come_with_what_the_model_makes_of_them():
    images = np.random.default_rng(0).integers(0, 255, (60, 1, 8, 8), dtype=np.uint8)
    detector = InvGAN(2, max_steps=5, random_state=0).fit(images)
    content = content_of(detector, images)
    shown_images = images[np.argsort(detector.score_samples(images), kind="stable")[:5]]
    np.testing.assert_array_equal(content.pictures.images, shown_images)
    np.testing.assert_allclose(content.pictures.expected, detector.expected(shown_images)[0])
    np.testing.assert_allclose(content.pictures.shares, detector.explain(shown_images))


def test_the_map_turns_latents_of_two_dimensions_and_changes_no_distance(detector):
    X = table(300, seed=3)
    found = content_of(detector, X).latent_map
    np.testing.assert_allclose(pdist(found.points), pdist(detector.transform(X[found.rows])))
    assert found.variance == pytest.approx(1)
    assert 30 <= len(found.rows) <= 50
    lowest = np.argsort(detector.score_samples(X), kind="stable")[:20]
    assert set(lowest) <= set(found.rows)
    assert len(found.training) == 30


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_the_map_holds_the_widest_directions_of_the_training_latents(latent_dim):
    detector = InvGAN(latent_dim, max_steps=5, random_state=0).fit(table(100))
    found = content_of(detector, table(100)).latent_map
    codes = detector.mixture_.codes.numpy()
    variances = np.sort(np.linalg.eigvalsh(np.cov(codes.T).reshape(latent_dim, latent_dim)))[::-1]
    assert found.variance == pytest.approx(variances[:2].sum() / variances.sum())
    everyone = np.random.default_rng(0).permutation(len(codes))[:30]
    assert pdist(found.training).max() <= pdist(codes[everyone]).max() + 1e-9
    if latent_dim == 1:
        assert not found.points[:, 1].any()
        np.testing.assert_allclose(pdist(found.points), pdist(detector.transform(table(100)[found.rows])))


def test_the_model_card_has_data_settings_seed_and_versions(detector):
    card = content_of(detector, table(50), labels=np.zeros(50, dtype=int)).model_card
    assert card["Data"] == {"file": "somewhere.csv", "rows": 50, "labels": "yes"}
    assert card["Settings"] == {"latent_dim": 2, "max_steps": 30}
    assert card["Training"]["seed"] == 0
    assert set(card["Versions"]) == {"invgan", "torch", "numpy", "scikit-learn", "python"}
