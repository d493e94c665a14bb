"""Images from folders, IDX, Parquet, NumPy files and CIFAR's batches, as uint8 arrays (n, C, H, W)."""

import gzip
import math
import os
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image

from invgan.data.files import (
    MAX_DEFLATE_RATIO,
    array_headers,
    main_array,
    parquet_schema,
    read_array,
    read_parquet,
    readable,
    require_file,
    require_memory,
)
from invgan.data.pickles import read_batch
from invgan.errors import InputError

# Formats that Pillow decodes by itself: it would hand others, such as EPS, to another program.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_GREY, _COLOUR = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size.

    Attributes
    ----------
    X : numpy.ndarray of shape (n, C, H, W), uint8
        C is 1 (grey) or 3 (red, green, blue).
    names : list of n str
        File names where the source has them, otherwise positions from 0.
    y : numpy.ndarray of shape (n,), int64, or None
        Class labels where the source has them.
    jpeg : bool
        Whether any of them was a JPEG file: a bits/dim measured on those is not that of the originals.
    """

    X: np.ndarray
    names: list[str]
    y: np.ndarray | None
    jpeg: bool = False


def read_images(path: str | os.PathLike[str]) -> Images:
    """Read a set of images; the format is told by the content, never by the name.

    - A folder of PNG, JPEG, BMP, GIF, TIFF, WebP or PPM files in the order of their names; other files and
      sub-folders are passed over, and transparency is dropped.
    - An IDX file (MNIST's), gzipped or not; a file of labels beside it is found by its usual name.
    - A Parquet file with a column ``image`` or ``img`` of {bytes, path}, and perhaps ``label``.
    - A NumPy file with a uint8 array (n, C, H, W) called ``X``, and perhaps ``y``; or ImageNet32's ``data``
      (n, 3·H·H) and ``labels``.
    - A CIFAR batch in Python's pickle format, read without unpickling.

    Parameters
    ----------
    path : str or path
        The file or folder.

    Returns
    -------
    Images

    Raises
    ------
    InputError
        If nothing is there, the format is unknown, a file is damaged, sizes or colours are mixed, or the
        images would not fit into memory.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (5, 4)).save(folder / "black.png")
    >>> images = read_images(folder)
    >>> images.X.shape, images.names
    ((1, 3, 4, 5), ['black.png'])
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    head = require_file(path)
    for magic, reader in _READERS.items():
        if head.startswith(magic):
            images = reader(path)
            if images.X.size == 0:
                raise InputError(f"{path}: holds no images; add some.")
            if images.y is not None and len(images.y) != len(images.X):
                raise InputError(
                    f"{path}: has {len(images.X)} images but {len(images.y)} labels; replace the file."
                )
            return images
    raise InputError(
        f"{path}: is not a set of images; expected a folder of PNG or JPEG files, IDX, Parquet, .npz or .npy."
    )


def holds_images(path: str | os.PathLike[str]) -> bool:
    """Whether `read_images`, rather than `read_table`, is the reader for the path.

    Parameters
    ----------
    path : str or path
        The file or folder.

    Returns
    -------
    bool

    Raises
    ------
    InputError
        If the file is missing, unreadable or damaged.

    Examples
    --------
    >>> import tempfile
    >>> holds_images(tempfile.mkdtemp())
    True
    """
    path = Path(path)
    if path.is_dir():
        return True
    reader = next((r for magic, r in _READERS.items() if require_file(path).startswith(magic)), None)
    if reader is _read_parquet:
        return _image_column(parquet_schema(path)) is not None
    if reader is _read_numpy:
        headers = array_headers(path)
        name = main_array(headers)
        return {"data", "labels"} <= set(headers) or (name is not None and len(headers[name].shape) == 4)
    return reader is not None


def pad_images(X: np.ndarray, size: int) -> np.ndarray:
    """Centre images in a black square, such as MNIST's 28×28 in 32×32.

    Parameters
    ----------
    X : numpy.ndarray of shape (n, C, H, W)
    size : int
        Height and width of the result; of an odd number of new rows, the bottom gets the one more, and of
        columns the right.

    Returns
    -------
    numpy.ndarray of shape (n, C, size, size)
        Same dtype as X.

    Raises
    ------
    InputError
        If an image is larger than the square.

    Examples
    --------
    >>> pad_images(np.ones((1, 1, 1, 2), np.uint8), 3)[0, 0].tolist()
    [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    """
    height, width = X.shape[2:]
    if size < max(height, width):
        raise InputError(
            f"The 'size' parameter of pad_images must be at least the images' {height}×{width}. "
            f"Got {size} instead."
        )
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(X, ((0, 0), (0, 0), (top, size - height - top), (left, size - width - left)))


def _read_folder(folder: Path) -> Images:
    """Read the image files of a folder, sorted by name."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions.") from error
    if not files:
        raise InputError(
            f"{folder}: holds no image files; expected {', '.join(sorted(_SUFFIXES))} directly in the folder."
        )
    X, jpeg = _decode(folder, len(files), ((str(file), file) for file in files))
    return Images(X, [file.name for file in files], None, jpeg)


def _read_idx(path: Path) -> Images:
    """Read an IDX file of images, and the labels beside it."""
    X = _idx_array(path, ndim=3)
    labels = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    for beside in (path.with_name(labels), path.with_name(f"{labels}.gz")):
        if beside.name != path.name and beside.is_file():
            return Images(X[:, None], _positions(X), _idx_array(beside, ndim=1).astype(np.int64))
    return Images(X[:, None], _positions(X), None)


def _idx_array(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of uint8 after its claimed size has been checked against the file and the memory."""
    is_gzip = require_file(path).startswith(b"\x1f\x8b")
    with readable(path, "IDX"), gzip.open(path) if is_gzip else path.open("rb") as file:
        zero, element, dimensions = struct.unpack(">HBB", file.read(4))
        if zero != 0 or element != 8 or dimensions != ndim:
            raise InputError(
                f"{path}: is IDX with element type 0x{element:02x} and {dimensions} dimensions, "
                f"expected unsigned bytes (0x08) and {ndim}; name another file."
            )
        shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
        claimed = math.prod(shape)
        content = b""
        if claimed <= path.stat().st_size * (MAX_DEFLATE_RATIO if is_gzip else 1):
            require_memory(path, 2 * claimed)
            content = file.read(claimed + 1)
        if len(content) != claimed:
            raise InputError(
                f"{path}: its header claims {'×'.join(map(str, shape))} = {claimed:,} bytes, but the file "
                f"holds {'more' if len(content) > claimed else 'fewer'}; replace it."
            )
        return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


def _read_parquet(path: Path) -> Images:
    """Read a Parquet file that holds each image as an encoded file."""
    column = _image_column(parquet_schema(path))
    if column is None:
        raise InputError(f"{path}: has no column 'image' or 'img' of {{bytes, path}}; it holds no images.")
    frame = read_parquet(path)
    content = frame[column].struct.unnest()
    sources = ((f"{path}, row {i + 1}", bytes(raw or b"")) for i, raw in enumerate(content["bytes"]))
    X, jpeg = _decode(path, frame.height, sources)
    paths = content["path"].to_list() if "path" in content.columns else [None] * len(X)
    names = [str(i) if name is None else str(name) for i, name in enumerate(paths)]
    y = _classes(path, frame["label"].to_numpy()) if "label" in frame.columns else None
    return Images(X, names, y, jpeg)


def _image_column(schema: pyarrow.Schema) -> str | None:
    """The column of encoded images, in the two names that are usual."""
    for name in ("image", "img"):
        index = schema.get_field_index(name)
        if index >= 0 and pyarrow.types.is_struct(kind := schema.field(index).type):
            return name if kind.get_field_index("bytes") >= 0 else None
    return None


def _read_numpy(path: Path) -> Images:
    """Read X (n, C, H, W) and y, or ImageNet32's data (n, 3·H·H) and labels."""
    headers = array_headers(path)
    if {"data", "labels"} <= set(headers):
        X = _unflatten(path, read_array(path, "data"))
        return Images(X, _positions(X), _classes(path, read_array(path, "labels")))
    name = main_array(headers)
    if name is None:
        raise InputError(f"{path}: has no array 'X' of images (n, C, H, W), nor 'data' and 'labels'; add X.")
    shape, dtype = headers[name]
    if dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise InputError(
            f"{path}: array {name!r} has shape {shape} and type {dtype}, expected uint8 images "
            "(n, 1 or 3, height, width); convert or transpose it."
        )
    X = np.ascontiguousarray(read_array(path, name))
    y = _classes(path, read_array(path, "y")) if "y" in headers and name != "y" else None
    return Images(X, _positions(X), y)


def _read_pickle(path: Path) -> Images:
    """Read a CIFAR batch: data (n, 3072), labels and filenames."""
    batch = read_batch(path)
    if not isinstance(batch.get("data"), np.ndarray):
        raise InputError(f"{path}: has no array 'data' of images; name one of CIFAR's batches.")
    X = _unflatten(path, batch["data"])
    labels = batch.get("labels", batch.get("fine_labels"))
    names = batch.get("filenames", _positions(X))
    return Images(X, names, None if labels is None else _classes(path, np.asarray(labels)))


_READERS = {
    b"PAR1": _read_parquet,
    b"PK\x03\x04": _read_numpy,
    b"\x93NUMPY": _read_numpy,
    b"\x1f\x8b": _read_idx,
    b"\0\0": _read_idx,
    b"\x80": _read_pickle,
}


def _decode(path: Path, count: int, sources: Iterable[tuple[str, Path | bytes]]) -> tuple[np.ndarray, bool]:
    """Decode image files of one size and kind, each checked by its header before it takes memory."""
    X, first, jpeg = np.empty(0, np.uint8), ("", (0, 0), False), False
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, (place, source) in enumerate(sources):
            with (
                readable(place, "an image"),
                Image.open(
                    BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS
                ) as image,
            ):
                if image.mode not in _GREY | _COLOUR:
                    raise InputError(
                        f"{place}: has pixels of type {image.mode!r}, expected 8 bits a channel; convert it."
                    )
                grey = image.mode in _GREY
                if i == 0:
                    first = (place, image.size, grey)
                    shape = (count, 1 if grey else 3, image.height, image.width)
                    require_memory(path, math.prod(shape))
                    X = np.empty(shape, np.uint8)
                _require_alike(first, (place, image.size, grey))
                pixels = np.asarray(image.convert("L" if grey else "RGB"))
                X[i] = pixels if grey else pixels.transpose(2, 0, 1)
                jpeg |= image.format == "JPEG"
    return X, jpeg


def _require_alike(first: tuple[str, tuple[int, int], bool], this: tuple[str, tuple[int, int], bool]) -> None:
    """Refuse an image whose size or colour differs from the first one's."""
    (first_place, (width, height), first_grey), (place, size, grey) = first, this
    if size != (width, height):
        raise InputError(
            f"{place}: is {size[0]}×{size[1]} pixels, but {first_place} is {width}×{height}; "
            "make all images one size."
        )
    if grey != first_grey:
        kinds = {True: "grey", False: "in colour"}
        raise InputError(
            f"{place}: is {kinds[grey]}, but {first_place} is {kinds[first_grey]}; make all images alike."
        )


def _unflatten(path: Path, data: np.ndarray) -> np.ndarray:
    """Reshape rows of red, green and blue planes to (n, 3, H, H)."""
    side = math.isqrt(data.shape[-1] // 3) if data.ndim == 2 else 0
    if data.dtype != np.uint8 or data.size == 0 or data.shape[-1] != 3 * side**2:
        raise InputError(
            f"{path}: array 'data' has shape {data.shape} and type {data.dtype}, "
            "expected uint8 (n, 3·H·H), such as (n, 3072); replace it."
        )
    return np.array(data.reshape(-1, 3, side, side))


def _classes(path: Path, labels: np.ndarray) -> np.ndarray:
    """Check that the labels are whole numbers in one dimension."""
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise InputError(
            f"{path}: its labels have shape {labels.shape} and type {labels.dtype}, "
            "expected one whole number for each image; convert them."
        )
    return labels.astype(np.int64)


def _positions(X: np.ndarray) -> list[str]:
    """Names for images that have none."""
    return [str(i) for i in range(len(X))]
