"""Images from folders, IDX, Parquet, NumPy files and CIFAR's batches, as uint8 arrays (n, C, H, W)."""

import gzip
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow
from PIL import ExifTags, Image, ImageOps

from invgan.data.columns import listed
from invgan.data.files import (
    MAX_DEFLATE_RATIO,
    array_headers,
    main_array,
    map_array,
    parquet_blocks,
    parquet_rows,
    parquet_schema,
    read_array,
    readable,
    require_file,
    room_for,
)
from invgan.data.pickles import read_batch
from invgan.errors import InputError

# Formats that Pillow decodes by itself: it would hand others, such as EPS, to another program.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
RESAMPLING = Image.Resampling.LANCZOS
_GREY, _COLOUR = {"1", "L", "LA"}, {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"}


BLOCK_BYTES = 2**24
"""Pixels that are read or copied at once."""
PARQUET_BLOCK = 64
"""Encoded images that are read from a Parquet file at once."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size, of which those that are in use take memory: many of them lie in a file.

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
    label : str
        What to ask for to have the labels: their name, or any where the source has no name for them.
    """

    X: np.ndarray
    names: list[str]
    y: np.ndarray | None
    jpeg: bool = False
    label: str = "y"

    def blocks(self) -> Iterator["Images"]:
        """Yield the images in order, some at a time."""
        for part in self._slices():
            y = None if self.y is None else self.y[part]
            yield replace(self, X=self.X[part], names=self.names[part], y=y)

    def where(self, kept: np.ndarray) -> np.ndarray:
        """X of the images that are marked."""
        X = room_for("The images", (int(kept.sum()), *self.X.shape[1:]))
        ends = np.cumsum(kept)
        for part in self._slices():
            chosen = self.X[part][kept[part]]
            X[ends[part][-1] - len(chosen) : ends[part][-1]] = chosen
        return X

    def _slices(self) -> Iterator[slice]:
        size = max(1, BLOCK_BYTES // math.prod(self.X.shape[1:]))
        return (slice(start, start + size) for start in range(0, len(self.X), size))


def read_images(path: str | os.PathLike[str], *, size: int | None = None, label: str | None = None) -> Images:
    """Read a set of images; the format is told by the content, never by the name.

    - A folder of PNG, JPEG, BMP, GIF, TIFF, WebP or PPM files in the order of their names; other files and
      sub-folders are passed over, transparency is dropped, and photos are turned as their EXIF data say.
    - An IDX file (MNIST's), gzipped or not; a file of labels beside it is found by its usual name.
    - A Parquet file with a column ``image`` or ``img`` of {bytes, path}, and perhaps ``label``.
    - A NumPy file with a uint8 array (n, C, H, W) called ``X``, and perhaps ``y``; or ImageNet32's ``data``
      (n, 3·H·H) and ``labels``.
    - A CIFAR batch in Python's pickle format, read without unpickling.

    What is more than 256 MiB of pixels is decoded into a nameless file in the system's temporary folder (an
    .npy file is used where it is, an .npz file and a CIFAR batch are read as a whole), and comes into memory
    where it is used.

    Parameters
    ----------
    path : str or path
        The file or folder.
    size : int, optional
        Height and width that every image is resized to; without it, all must be of one size.
    label : str, optional
        The column or array of labels, in place of the usual one; any name will do for those of an IDX file or
        a CIFAR batch, which have none.

    Returns
    -------
    Images

    Raises
    ------
    InputError
        If nothing is there, the format is unknown, a file is damaged, sizes or colours are mixed, there is no
        room for the images, or there are no such labels.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (5, 4)).save(folder / "black.png")
    >>> images = read_images(folder)
    >>> images.X.shape, images.names
    ((1, 3, 4, 5), ['black.png'])
    >>> read_images(folder, size=8).X.shape
    (1, 3, 8, 8)
    """
    if size is not None and size < 1:
        raise InputError(f"The 'size' parameter of read_images must be at least 1. Got {size} instead.")
    path = Path(path)
    if (reader := _reader(path)) is None:
        raise InputError(
            f"{path}: is not a set of images; expected a folder of PNG or JPEG files, IDX, Parquet, .npz or "
            ".npy."
        )
    images = reader(path, size, label)
    if images.X.size == 0:
        raise InputError(f"{path}: holds no images; add some.")
    if label is not None and images.y is None:
        raise InputError(f"{path}: these images have no labels, so no {label!r}; leave the label out.")
    if images.y is not None and len(images.y) != len(images.X):
        raise InputError(f"{path}: has {len(images.X)} images but {len(images.y)} labels; replace the file.")
    return images


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
    reader = _reader(path)
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


def _reader(path: Path) -> Callable[[Path, int | None, str | None], Images] | None:
    """What reads the images, given their size and the name of the labels; None if there are none."""
    if path.is_dir():
        return _read_folder
    head = require_file(path)
    return next((reader for magic, reader in _READERS.items() if head.startswith(magic)), None)


def _named_label(path: Path, label: str | None, usual: str, kind: str, names: list[str]) -> str | None:
    """The name of the labels, given those beside the images: what was asked for, or else the usual one."""
    if label is None:
        return usual if usual in names else None
    if names and label not in names:
        raise InputError(f"{path}: has no {kind} {label!r} beside the images; it has {listed(names)}.")
    return label if names else None


def _read_folder(folder: Path, size: int | None, label: str | None) -> Images:
    """Read the image files of a folder, sorted by name."""
    try:
        # What begins with a point is no picture of the user's: macOS leaves ._00.png beside 00.png.
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check its permissions.") from error
    if not files:
        raise InputError(
            f"{folder}: holds no image files; expected {', '.join(sorted(_SUFFIXES))} directly in the "
            "folder; its sub-folders are not read."
        )
    X, jpeg = _decode(folder, len(files), ((str(file), file) for file in files), size)
    return Images(X, [file.name for file in files], None, jpeg)


def _read_idx(path: Path, size: int | None, label: str | None) -> Images:
    """Read an IDX file of images, and the labels beside it."""
    X = _resized(path, _idx_array(path, ndim=3)[:, None], size)
    labels = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    for beside in (path.with_name(labels), path.with_name(f"{labels}.gz")):
        if beside.name != path.name and beside.is_file():
            return Images(X, _positions(X), _idx_array(beside, ndim=1).astype(np.int64))
    return Images(X, _positions(X), None)


def _idx_array(path: Path, ndim: int) -> np.ndarray:
    """Read an IDX file of uint8 after its claimed size has been checked against the file and the room."""
    is_gzip = require_file(path).startswith(b"\x1f\x8b")
    with readable(path, "IDX"), gzip.open(path) if is_gzip else path.open("rb") as file:
        head = file.read(4)
        if is_gzip and not head.startswith(b"\0\0"):
            raise InputError(f"{path}: is compressed by gzip and does not hold IDX; unpack it.")
        zero, element, dimensions = struct.unpack(">HBB", head)
        if zero != 0 or element != 8 or dimensions != ndim:
            raise InputError(
                f"{path}: is IDX with element type 0x{element:02x} and {dimensions} dimensions, "
                f"expected unsigned bytes (0x08) and {ndim}; name another file."
            )
        shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
        claimed, found = math.prod(shape), -1
        if claimed <= path.stat().st_size * (MAX_DEFLATE_RATIO if is_gzip else 1):
            values = room_for(path, shape)
            found = _fill(values.reshape(-1), file) + len(file.read(1))
        if found != claimed:
            raise InputError(
                f"{path}: its header claims {'×'.join(map(str, shape))} = {claimed:,} bytes, but the file "
                f"holds {'more' if found > claimed else 'fewer'}; replace it."
            )
        return values


def _fill(values: np.ndarray, file: IO[bytes] | gzip.GzipFile) -> int:
    """Read bytes as long as there are any and room for them; return how many there were."""
    n_read = 0
    while content := file.read(min(BLOCK_BYTES, len(values) - n_read)):
        values[n_read : n_read + len(content)] = np.frombuffer(content, np.uint8)
        n_read += len(content)
    return n_read


def _read_parquet(path: Path, size: int | None, label: str | None) -> Images:
    """Read a Parquet file that holds each image as an encoded file."""
    schema = parquet_schema(path)
    column = _image_column(schema)
    if column is None:
        raise InputError(f"{path}: has no column 'image' or 'img' of {{bytes, path}}; it holds no images.")
    label = _named_label(path, label, "label", "column", [name for name in schema.names if name != column])
    paths: list[str | None] = []
    labels: list[np.ndarray] = []

    def sources() -> Iterator[tuple[str, bytes]]:
        for frame in parquet_blocks(path, PARQUET_BLOCK):
            content = frame[column].struct.unnest()
            first_row = len(paths) + 1
            paths.extend(content["path"] if "path" in content.columns else [None] * frame.height)
            if label is not None:
                labels.append(_classes(path, frame[label].to_numpy()))
            for row, raw in enumerate(content["bytes"], first_row):
                yield f"{path}, row {row}", bytes(raw or b"")

    X, jpeg = _decode(path, n_rows := parquet_rows(path), sources(), size)
    if len(paths) != n_rows:
        raise InputError(f"{path}: claims {n_rows} rows, but holds {len(paths)}; replace it.")
    names = [str(i) if name is None else str(name) for i, name in enumerate(paths)]
    return Images(X, names, np.concatenate(labels) if labels else None, jpeg, label or "label")


def _image_column(schema: pyarrow.Schema) -> str | None:
    """The column of encoded images, in the two names that are usual."""
    for name in ("image", "img"):
        index = schema.get_field_index(name)
        if index >= 0 and pyarrow.types.is_struct(kind := schema.field(index).type):
            return name if kind.get_field_index("bytes") >= 0 else None
    return None


def _read_numpy(path: Path, size: int | None, label: str | None) -> Images:
    """Read X (n, C, H, W) and y, or ImageNet32's data (n, 3·H·H) and labels."""
    headers = array_headers(path)
    flat = {"data", "labels"} <= set(headers)
    name, usual = ("data", "labels") if flat else (main_array(headers), "y")
    if name is None:
        raise InputError(f"{path}: has no array 'X' of images (n, C, H, W), nor 'data' and 'labels'; add X.")
    shape, dtype = headers[name]
    if not flat and (dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape):
        raise InputError(
            f"{path}: array {name!r} has shape {shape} and type {dtype}, expected uint8 images "
            "(n, 1 or 3, height, width); convert or transpose it."
        )
    label = _named_label(path, label, usual, "array", [other for other in headers if other != name])
    pixels = _unflatten(path, read_array(path, name)) if flat else np.ascontiguousarray(map_array(path, name))
    X = _resized(path, pixels, size)
    y = None if label is None else _classes(path, read_array(path, label))
    return Images(X, _positions(X), y, label=label or usual)


def _read_pickle(path: Path, size: int | None, label: str | None) -> Images:
    """Read a CIFAR batch: data (n, 3072), labels and filenames."""
    batch = read_batch(path)
    if not isinstance(batch.get("data"), np.ndarray):
        raise InputError(f"{path}: has no array 'data' of images; name one of CIFAR's batches.")
    X = _resized(path, _unflatten(path, batch["data"]), size)
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


def _decode(
    path: Path, count: int, sources: Iterable[tuple[str, Path | bytes]], size: int | None
) -> tuple[np.ndarray, bool]:
    """Decode image files of one kind, and one size if none is given, checked by their headers first."""
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
                grey, orientation = image.mode in _GREY, _orientation(image)
                shown = image.size[::-1] if orientation >= 5 else image.size
                if i == 0:
                    first = (place, shown, grey)
                    width, height = (size, size) if size else shown
                    X = room_for(path, (count, 1 if grey else 3, height, width))
                _require_alike(first, (place, first[1] if size else shown, grey))
                upright = ImageOps.exif_transpose(image) if orientation > 1 else image
                pixels = upright.convert("L" if grey else "RGB")
                X[i] = _planes(pixels.resize((size, size), RESAMPLING) if size else pixels)
                jpeg |= image.format == "JPEG"
    return X, jpeg


def _orientation(image: Image.Image) -> int:
    """How EXIF says that the pixels lie, 1 (as they are shown) to 8, known before they are decoded."""
    if image.format == "TIFF":  # which Pillow turns by itself
        return 1
    try:
        # Not by the method of a PNG file, which decodes it.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # as of other decoders; the pixels may be sound
        return 1
    return found if found in range(1, 9) else 1


def _planes(image: Image.Image) -> np.ndarray:
    """Bring a grey or coloured image to shape (C, H, W)."""
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def _resized(path: Path, X: np.ndarray, size: int | None) -> np.ndarray:
    """Resize images that are decoded already."""
    if size is None or X.shape[2:] == (size, size):
        return X
    resized = room_for(path, (*X.shape[:2], size, size))
    for found, pixels in zip(resized, X, strict=True):
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        found[:] = _planes(image.resize((size, size), RESAMPLING))
    return resized


def _require_alike(first: tuple[str, tuple[int, int], bool], this: tuple[str, tuple[int, int], bool]) -> None:
    """Refuse an image whose size or colour differs from the first one's."""
    (first_place, (width, height), first_grey), (place, size, grey) = first, this
    if size != (width, height):
        raise InputError(
            f"{place}: is {size[0]}×{size[1]} pixels, but {first_place} is {width}×{height}; "
            "make all images one size, or have them resized by --resize or size=."
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
