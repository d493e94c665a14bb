"""Named sets: each from small files of its real format, from OpenML's cache, and absent."""

import gzip
import hashlib
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits

from invgan.data import adbench_tables, load
from invgan.errors import InputError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 24)


@pytest.fixture(autouse=True)
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folder, no cache, and no network."""
    monkeypatch.delenv("INVGAN_DATA", raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))

    def network(*_: object, **__: object) -> None:
        pytest.fail("went to the network")

    monkeypatch.setattr("sklearn.datasets._openml.urlopen", network)


def refusal(name: str, root: Path | None = None) -> str:
    with pytest.raises(InputError) as error:
        load(name, root=root)
    return str(error.value)


def test_digits_are_scikit_learns() -> None:
    data = load("digits")
    np.testing.assert_array_equal(data.X[:, 0], load_digits().images)
    np.testing.assert_array_equal(data.y, load_digits().target)
    assert data.X.dtype == np.uint8
    assert data.X_test is None


def test_synthetic_is_the_same_every_time_and_its_halves_differ() -> None:
    data, again = load("synthetic"), load("synthetic")
    assert data.X.shape == data.X_test.shape == (50_000, 6)
    np.testing.assert_array_equal(data.X_test, again.X_test)
    # Fourth feature: w₄ z₂ plus noise of variance 0.01; six standard deviations of each mean square.
    for X, z in ((data.X, data.extra["z"]), (data.X_test, data.extra["z_test"])):
        assert abs(((X[:, 3] - z[:, 1]) ** 2).mean() - 0.01) < 6 * 0.01 * np.sqrt(2 / 50_000)
    assert not np.isin(data.extra["z"], data.extra["z_test"]).any()


def test_arrhythmia_from_odds_mat_file(tmp_path: Path) -> None:
    X, y = RNG.normal(size=(6, 4)), np.array([[0], [1], [0], [0], [1], [0]], np.uint8)
    (tmp_path / "arrhythmia").mkdir()
    path = tmp_path / "arrhythmia" / "arrhythmia.mat"
    scipy.io.savemat(path, {"X": X, "y": y}, do_compression=True)
    data = load("arrhythmia", root=tmp_path)
    np.testing.assert_array_equal(data.X, X)
    np.testing.assert_array_equal(data.y, y[:, 0])
    assert data.y.dtype == np.int64
    path.write_bytes(path.read_bytes()[:200])
    assert refusal("arrhythmia", tmp_path).endswith("it may be truncated or damaged, replace it.")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_from_idx_files_by_environment_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("INVGAN_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    compress = gzip.compress if suffix else bytes
    grey = COLOUR[:, 0, :28, :28]
    for part, rows in (("train", slice(0, 20)), ("t10k", slice(20, 24))):
        images = struct.pack(">4I", 2051, len(grey[rows]), 28, 28) + grey[rows].tobytes()
        labels = struct.pack(">2I", 2049, len(grey[rows])) + LABELS[rows].astype(np.uint8).tobytes()
        (tmp_path / "mnist" / f"{part}-images-idx3-ubyte{suffix}").write_bytes(compress(images))
        (tmp_path / "mnist" / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(compress(labels))
    data = load("mnist")
    np.testing.assert_array_equal(data.X, grey[:20, None])
    np.testing.assert_array_equal(data.y, LABELS[:20])
    np.testing.assert_array_equal(data.X_test, grey[20:, None])
    np.testing.assert_array_equal(data.y_test, LABELS[20:])
    labels = tmp_path / "mnist" / f"t10k-labels-idx1-ubyte{suffix}"
    labels.unlink()
    assert refusal("mnist") == (
        f"{tmp_path}/mnist/t10k-images-idx3-ubyte{suffix}: has images without labels; "
        "add the labels of 'mnist'."
    )


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_cifar10_from_parquet_says_when_it_was_jpeg(tmp_path: Path, kind: str) -> None:
    def encoded(image: np.ndarray) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, kind)
        return {"bytes": buffer.getvalue(), "path": None}

    (tmp_path / "cifar10").mkdir()
    for part, rows in (("train", slice(0, 20)), ("test", slice(20, 24))):
        frame = pl.DataFrame({"image": [encoded(image) for image in COLOUR[rows]], "label": LABELS[rows]})
        frame.write_parquet(tmp_path / "cifar10" / f"{part}.parquet")
    data = load("cifar10", root=tmp_path)
    assert data.X.shape == (20, 3, 32, 32)
    np.testing.assert_array_equal(data.y_test, LABELS[20:])
    if kind == "png":
        np.testing.assert_array_equal(data.X, COLOUR[:20])
        assert data.note == "CIFAR-10 (Krizhevsky)."
    else:
        assert data.note == (
            "CIFAR-10 (Krizhevsky), re-encoded as JPEG: "
            "a bits/dim measured on it is not that of the originals."
        )


@pytest.mark.parametrize("folder", ["cifar10", "cifar10/cifar-10-batches-py"])
def test_cifar10_from_its_own_batches(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    flat = COLOUR.reshape(24, -1)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = slice(4 * i, 4 * i + 4)
        batch = {"data": flat[rows], "labels": LABELS[rows].tolist()}
        (tmp_path / folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    data = load("cifar10", root=tmp_path)
    np.testing.assert_array_equal(np.concatenate([data.X, data.X_test]), COLOUR)
    np.testing.assert_array_equal(np.concatenate([data.y, data.y_test]), LABELS)


def test_imagenet32_from_npz_joins_its_ten_parts_in_order(tmp_path: Path) -> None:
    (tmp_path / "imagenet32").mkdir()
    flat = COLOUR.reshape(24, -1)
    for i, name in enumerate([*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]):
        rows = slice(2 * i, 2 * i + 2)
        np.savez(tmp_path / "imagenet32" / f"{name}.npz", data=flat[rows], labels=LABELS[rows] + 1)
    data = load("imagenet32", root=tmp_path)
    part = tmp_path / "imagenet32" / "train_data_batch_7.npz"
    np.testing.assert_array_equal(np.concatenate([data.X, data.X_test]), COLOUR[:22])
    np.testing.assert_array_equal(data.y, LABELS[:20] + 1)
    np.savez(part, data=flat[:2, :192], labels=[1, 2])
    assert refusal("imagenet32", tmp_path) == (
        f"{part}: has images of another size than {part.with_name('train_data_batch_1.npz')}; "
        "replace one of them."
    )


def test_adbench_by_number_or_name(tmp_path: Path) -> None:
    (tmp_path / "adbench").mkdir()
    X, y = RNG.normal(size=(5, 3)), np.array([0, 1, 0, 0, 1])
    for table in ("18_Ionosphere", "4_breastw", "10_cover"):
        np.savez(tmp_path / "adbench" / f"{table}.npz", X=X + len(table), y=y)
    assert adbench_tables(tmp_path) == ["4_breastw", "10_cover", "18_Ionosphere"]
    for name in ("adbench/18_Ionosphere", "adbench/Ionosphere", "adbench/ionosphere"):
        data = load(name, root=tmp_path)
        assert data.name == "adbench/18_Ionosphere"
        np.testing.assert_array_equal(data.X, X + 13)
        np.testing.assert_array_equal(data.y, y)
    assert refusal("adbench/../adbench/4_breastw", tmp_path).startswith("The data set 'adbench/../adbench/4_")
    np.savez(tmp_path / "adbench" / "4_breastw.npz", X=X, y=y + 1)
    assert refusal("adbench/breastw", tmp_path) == (
        f"{tmp_path}/adbench/4_breastw.npz: has no array 'y' of 0 (normal) and 1 (anomaly); replace it."
    )


def test_absent_sets_say_what_to_put_where(tmp_path: Path) -> None:
    assert refusal("mnist") == (
        "The data set 'mnist' is not on this machine; set INVGAN_DATA to a folder that holds "
        "mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz."
    )
    assert refusal("arrhythmia", tmp_path) == (
        f"The data set 'arrhythmia' is not on this machine; put arrhythmia/arrhythmia.mat into {tmp_path}."
    )
    for name, files in (
        ("cifar10", "cifar10/{train,test}.parquet or cifar10/cifar-10-batches-py/"),
        ("imagenet32", "imagenet32/train_data_batch_{1..10}.npz and imagenet32/val_data.npz"),
        ("adbench/wine", "adbench/<number>_wine.npz"),
    ):
        assert refusal(name, tmp_path) == (
            f"The data set {name!r} is not on this machine; put {files} into {tmp_path}."
        )
    assert refusal("minst") == (
        "There is no data set 'minst'; "
        "the names are synthetic, digits, arrhythmia, mnist, cifar10, imagenet32 and adbench/<table>."
    )
    assert not (tmp_path / "cache").exists()


def fill_openml_cache(cache: Path, data_id: int, X: np.ndarray, y: np.ndarray) -> Path:
    """Write what `fetch_openml` leaves behind for a dense set with numeric features and a nominal target."""
    root = cache / "openml" / "openml.org"
    classes = ",".join(map(str, np.unique(y)))
    lines = ["@RELATION small", *(f"@ATTRIBUTE f{i} NUMERIC" for i in range(X.shape[1]))]
    lines += [f"@ATTRIBUTE class {{{classes}}}", "@DATA"]
    lines += [
        ",".join("?" if np.isnan(v) else str(v) for v in row) + f",{k}" for row, k in zip(X, y, strict=True)
    ]
    arff = "\n".join(lines).encode()
    flags = {"is_ignore": "false", "is_row_identifier": "false", "number_of_missing_values": "0"}
    features = [
        {"index": str(i), "name": f"f{i}", "data_type": "numeric", "is_target": "false", **flags}
        for i in range(X.shape[1])
    ]
    features += [
        {"index": str(X.shape[1]), "name": "class", "data_type": "nominal", "is_target": "true", **flags}
    ]
    description = {
        "id": str(data_id),
        "name": "small",
        "version": "1",
        "format": "ARFF",
        "status": "active",
        "description": "",
        "url": f"https://api.openml.org/data/v1/download/{data_id}/small.arff",
        "md5_checksum": hashlib.md5(arff).hexdigest(),
    }
    for kind, content in (
        ("", {"data_set_description": description}),
        ("features/", {"data_features": {"feature": features}}),
        (
            "qualities/",
            {"data_qualities": {"quality": [{"name": "NumberOfInstances", "value": str(len(X))}]}},
        ),
    ):
        path = root / f"api/v1/json/data/{kind}{data_id}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(json.dumps(content).encode()))
    data = root / f"data/v1/download/{data_id}/small.arff.gz"
    data.parent.mkdir(parents=True)
    data.write_bytes(gzip.compress(arff))
    return data


def test_arrhythmia_from_openml_becomes_odds_version(tmp_path: Path) -> None:
    X, classes = RNG.normal(size=(16, 279)), np.array([*range(1, 17)])
    X[::2, 10:15] = np.nan
    fill_openml_cache(tmp_path / "cache", 5, X, classes)
    data = load("arrhythmia")
    np.testing.assert_array_equal(data.X, np.hstack([X[:, :10], X[:, 15:]]))
    assert (classes[data.y == 1]).tolist() == [3, 4, 5, 7, 8, 9, 14, 15]


def test_cifar10_from_openml(tmp_path: Path) -> None:
    fill_openml_cache(tmp_path / "cache", 40926, COLOUR[:3].reshape(3, -1).astype(float), LABELS[:3])
    data = load("cifar10")
    np.testing.assert_array_equal(data.X, COLOUR[:3])
    np.testing.assert_array_equal(data.y, LABELS[:3])
    assert data.X_test is None
    assert "sample of 20,000" in data.note


def test_mnist_from_openml(tmp_path: Path) -> None:
    grey = COLOUR[:3, :1, :28, :28]
    fill_openml_cache(tmp_path / "cache", 554, grey.reshape(3, -1).astype(float), LABELS[:3])
    data = load("mnist")
    np.testing.assert_array_equal(data.X, grey)
    np.testing.assert_array_equal(data.y, LABELS[:3])
    assert len(data.X_test) == len(data.y_test) == 0  # the first 60,000 rows are for training


def test_a_damaged_or_partial_cache_never_leads_to_the_network(tmp_path: Path) -> None:
    data = fill_openml_cache(tmp_path / "cache", 5, np.zeros((3, 279)), np.array([1, 2, 3]))
    whole = data.read_bytes()
    data.write_bytes(gzip.compress(b"altered"))
    assert refusal("arrhythmia") == f"{data}: differs from its checksum; delete it and fetch it again."
    data.write_bytes(whole[:50])
    assert refusal("arrhythmia").startswith(f"{data}: cannot be read as OpenML's data (")
    data.unlink()
    assert refusal("arrhythmia").startswith(
        "The data set 'arrhythmia' is not on this machine; set INVGAN_DATA"
    )
