"""Data sets by name, from a folder or from scikit-learn's cache; never from the network."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import scipy.io
from sklearn.datasets import fetch_openml, load_digits

from invgan.data.files import readable, require_file, require_memory
from invgan.data.images import read_images
from invgan.data.synthetic import synthetic
from invgan.data.tables import read_table
from invgan.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set of data.

    Attributes
    ----------
    name : str
    X : numpy.ndarray
        float64 (n, D) for tables, uint8 (n, C, H, W) for images.
    y : numpy.ndarray of shape (n,), int64, or None
        For detection tables 1 is an anomaly and 0 normal; for images the class; None for synthetic data.
    X_test, y_test : numpy.ndarray or None
        The official test part, where there is one.
    feature_names : list of D str, or None
        None for images.
    note : str
        One line: the origin, and what to be wary of.
    extra : mapping of str to numpy.ndarray
        What only this set has: the latent variables ``z`` and ``z_test`` of the synthetic one.
    """

    name: str
    X: np.ndarray
    y: np.ndarray | None
    X_test: np.ndarray | None = None
    y_test: np.ndarray | None = None
    feature_names: list[str] | None = None
    note: str = ""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)


def load(name: str, *, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set by name, from files that are already on this machine.

    ====================  =========================================================================
    name                  files in the root folder; otherwise, where it has the set, OpenML's cache
    ====================  =========================================================================
    ``synthetic``         none: drawn with seed 0 (section 4.1)
    ``digits``            none: comes with scikit-learn
    ``arrhythmia``        ``arrhythmia/arrhythmia.mat`` (ODDS)
    ``mnist``             ``mnist/train-images-idx3-ubyte.gz`` and its three companions, gzipped or not
    ``cifar10``           ``cifar10/train.parquet`` and ``test.parquet``, or ``cifar-10-batches-py/``
    ``imagenet32``        ``imagenet32/train_data_batch_1.npz`` to ``10`` and ``val_data.npz``
    ``adbench/<table>``   ``adbench/<number>_<table>.npz``; the number may be left out of the name
    ====================  =========================================================================

    Parameters
    ----------
    name : str
        One of the names above.
    root : str or path, optional
        The folder of data sets; by default the environment variable INVGAN_DATA.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        If the name is unknown, or the files are absent (the message says what to put where) or damaged.

    Examples
    --------
    >>> digits = load("digits")
    >>> digits.X.shape, digits.X.dtype, digits.note
    ((1797, 1, 8, 8), dtype('uint8'), "scikit-learn's digits (UCI); pixels have 17 levels, 0 to 16.")
    """
    folder = _root(root)
    if name.startswith("adbench/"):
        return _adbench(name, folder)
    if name not in _LOADERS:
        names = ", ".join(_LOADERS)
        raise InputError(f"There is no data set {name!r}; the names are {names} and adbench/<table>.")
    return _LOADERS[name](folder)


def adbench_tables(root: str | os.PathLike[str] | None = None) -> list[str]:
    """List the ADBench tables that are on this machine, in the order of their numbers.

    Parameters
    ----------
    root : str or path, optional
        The folder of data sets; by default the environment variable INVGAN_DATA.

    Returns
    -------
    list of str
        Such as ``["4_breastw", "6_cardio"]``; empty where there are none.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "adbench")
    >>> folder.mkdir()
    >>> for name in ("10_cover.npz", "4_breastw.npz"):
    ...     (folder / name).touch()
    >>> adbench_tables(folder.parent)
    ['4_breastw', '10_cover']
    """
    folder = _root(root)
    names = [] if folder is None else [file.stem for file in (folder / "adbench").glob("*.npz")]
    return sorted(names, key=lambda name: (not name[0].isdigit(), len(name.partition("_")[0]), name))


def _root(root: str | os.PathLike[str] | None) -> Path | None:
    """The folder of data sets, if one was named."""
    named = root if root is not None else os.environ.get("INVGAN_DATA")
    return Path(named).expanduser() if named else None


def _all_there(root: Path | None, *files: str) -> list[Path] | None:
    """The paths of the files in the root folder, or None where any is absent."""
    paths = [] if root is None else [root / file for file in files if (root / file).is_file()]
    return paths if len(paths) == len(files) else None


def _absent(name: str, root: Path | None, files: str) -> InputError:
    """Say which files to put where."""
    how = f"put {files} into {root}" if root else f"set INVGAN_DATA to a folder that holds {files}"
    return InputError(f"The data set {name!r} is not on this machine; {how}.")


def _synthetic(root: Path | None) -> Dataset:
    """Section 4.1: 50,000 samples for training and 50,000 for testing."""
    X, z = synthetic(100_000, random_state=0)
    (X, X_test), (z, z_test) = np.split(X, 2), np.split(z, 2)
    note = (
        "Section 4.1 of the paper: weights 1, noise variance 0.01, seed 0; extra holds the latent variables."
    )
    names = [f"x{i}" for i in range(6)]
    return Dataset("synthetic", X, None, X_test, None, names, note, {"z": z, "z_test": z_test})


def _digits(root: Path | None) -> Dataset:
    """The 8×8 digits that come with scikit-learn."""
    digits = load_digits()
    note = "scikit-learn's digits (UCI); pixels have 17 levels, 0 to 16."
    X = digits.images.astype(np.uint8)[:, None]
    return Dataset("digits", X, digits.target.astype(np.int64), note=note)


def _arrhythmia(root: Path | None) -> Dataset:
    """The ODDS version, from its file or made from UCI's original."""
    file = "arrhythmia/arrhythmia.mat"
    if paths := _all_there(root, file):
        path = paths[0]
        require_file(path)
        with readable(path, "a MATLAB file"):
            content = scipy.io.loadmat(path, variable_names=["X", "y"])
            X, y = content["X"].astype(np.float64), content["y"].ravel().astype(np.int64)
        note = "ODDS arrhythmia, the paper's version: 1 marks the eight rarest classes of UCI's arrhythmia."
    elif (cached := _openml(5)) is not None:
        # ODDS leaves out the five columns with missing values, and calls the eight rarest classes anomalies.
        X = np.delete(cached[0], slice(10, 15), axis=1)
        y = np.isin(cached[1], [3, 4, 5, 7, 8, 9, 14, 15]).astype(np.int64)
        note = "OpenML's arrhythmia v1, with the columns and the anomalies (eight rarest classes) of ODDS."
    else:
        raise _absent("arrhythmia", root, file)
    return Dataset("arrhythmia", X, y, feature_names=[f"x{i}" for i in range(X.shape[1])], note=note)


def _mnist(root: Path | None) -> Dataset:
    """MNIST from its IDX files."""
    note = "MNIST (LeCun et al.)."
    for suffix in (".gz", ""):
        files = [f"mnist/{part}-images-idx3-ubyte{suffix}" for part in ("train", "t10k")]
        if paths := _all_there(root, *files):
            return _images("mnist", paths, note)
    if (cached := _openml(554)) is not None:
        X, y = cached[0].astype(np.uint8).reshape(-1, 1, 28, 28), cached[1]
        return Dataset(
            "mnist", X[:60_000], y[:60_000], X[60_000:], y[60_000:], note=f"{note[:-1]}, from OpenML."
        )
    raise _absent("mnist", root, "mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz")


def _cifar10(root: Path | None) -> Dataset:
    """CIFAR-10 from Parquet files, from its own batches, or from OpenML's cache."""
    if paths := _all_there(root, "cifar10/train.parquet", "cifar10/test.parquet"):
        return _images("cifar10", paths, "CIFAR-10 (Krizhevsky).")
    for folder in ("cifar10", "cifar10/cifar-10-batches-py"):
        batches = [f"{folder}/data_batch_{i}" for i in range(1, 6)]
        if paths := _all_there(root, *batches, f"{folder}/test_batch"):
            return _images("cifar10", paths, "CIFAR-10 (Krizhevsky).")
    for data_id, which in ((40927, "CIFAR_10"), (40926, "CIFAR_10_small, a sample of 20,000")):
        if (cached := _openml(data_id)) is not None:
            X = cached[0].astype(np.uint8).reshape(-1, 3, 32, 32)
            note = f"CIFAR-10 (Krizhevsky), OpenML's {which}; it does not say which images are for testing."
            return Dataset("cifar10", X, cached[1], note=note)
    raise _absent("cifar10", root, "cifar10/{train,test}.parquet or cifar10/cifar-10-batches-py/")


def _imagenet32(root: Path | None) -> Dataset:
    """ImageNet32 from its .npz files, or from its pickled batches."""
    for suffix in (".npz", ""):
        batches = [f"imagenet32/train_data_batch_{i}{suffix}" for i in range(1, 11)]
        if paths := _all_there(root, *batches, f"imagenet32/val_data{suffix}"):
            note = "ImageNet downsampled to 32×32 (Chrabaszcz et al.); labels run from 1 to 1000."
            return _images("imagenet32", paths, note)
    raise _absent("imagenet32", root, "imagenet32/train_data_batch_{1..10}.npz and imagenet32/val_data.npz")


def _images(name: str, paths: list[Path], note: str) -> Dataset:
    """Read a labelled set of images in several files, the last of which is for testing."""
    parts = [read_images(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.y is None:
            raise InputError(f"{path}: has images without labels; add the labels of {name!r}.")
        if part.X.shape[1:] != parts[0].X.shape[1:]:
            raise InputError(f"{path}: has images of another size than {paths[0]}; replace one of them.")
    if any(part.jpeg for part in parts):
        note = f"{note[:-1]}, re-encoded as JPEG: a bits/dim measured on it is not that of the originals."

    *training, test = parts
    if len(training) > 1:
        require_memory(f"The data set {name!r}", sum(part.X.nbytes for part in training))
    X = np.concatenate([part.X for part in training])
    y = np.concatenate([part.y for part in training if part.y is not None])
    return Dataset(name, X, y, test.X, test.y, note=note)


def _adbench(name: str, root: Path | None) -> Dataset:
    """A table of ADBench, with or without its number."""
    wanted = name.removeprefix("adbench/").lower()
    available = adbench_tables(root)
    found = [table for table in available if wanted in (table.lower(), table.partition("_")[2].lower())]
    if not found or root is None:
        raise _absent(name, root, f"adbench/<number>_{wanted}.npz")
    path = root / "adbench" / f"{found[0]}.npz"
    table = read_table(path)
    if table.y is None or not np.isin(table.y, (0, 1)).all():
        raise InputError(f"{path}: has no array 'y' of 0 (normal) and 1 (anomaly); replace it.")
    note = f"ADBench {found[0]} (Han et al., 2022)."
    return Dataset(f"adbench/{found[0]}", table.X, table.y, feature_names=table.feature_names, note=note)


def _openml(data_id: int) -> tuple[np.ndarray, np.ndarray] | None:
    """A set from scikit-learn's OpenML cache, or None.

    `fetch_openml` goes to the network for any file that is absent or damaged, so all are checked before.
    """
    # Not get_data_home(), which would make the folder.
    home = Path(os.environ.get("SCIKIT_LEARN_DATA", "~/scikit_learn_data")).expanduser()
    cache = home / "openml" / "openml.org"
    about = cache / "api/v1/json/data" / f"{data_id}.gz"
    parts = [about.with_name(kind) / about.name for kind in ("features", "qualities")]
    if not all(path.is_file() for path in (about, *parts)):
        return None
    with readable(about, "OpenML's description"), gzip.open(about) as file:
        description = json.load(file)["data_set_description"]
        data = cache / f"{urlparse(description['url']).path.lstrip('/')}.gz"
    for path in parts:
        with readable(path, "OpenML's description"), gzip.open(path) as file:
            json.load(file)
    if not data.is_file():
        return None
    with readable(data, "OpenML's data"), gzip.open(data) as file:
        if hashlib.file_digest(file, "md5").hexdigest() != description["md5_checksum"]:
            raise InputError(f"{data}: differs from its checksum; delete it and fetch it again.")
        require_memory(data, 4 * file.tell())
    with readable(data, "OpenML's data"):
        X, y = fetch_openml(
            data_id=data_id, data_home=home, return_X_y=True, as_frame=False, parser="liac-arff"
        )
        return X, y.astype(np.int64)


_LOADERS: dict[str, Callable[[Path | None], Dataset]] = {
    "synthetic": _synthetic,
    "digits": _digits,
    "arrhythmia": _arrhythmia,
    "mnist": _mnist,
    "cifar10": _cifar10,
    "imagenet32": _imagenet32,
}
