"""Images: what is read from each format, and the one line for each thing that can be wrong."""

import errno
import gzip
import io
import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from invgan.data import files, pad_images, read_blocks, read_data, read_images
from invgan.data.pickles import read_batch
from invgan.errors import InputError

COLOUR = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
GREY = COLOUR[:, :1]
DAMAGED = "it may be truncated or damaged, replace it."


def refusal(path: Path) -> str:
    """The one line with which a file or folder is refused, without its parent folder."""
    with pytest.raises(InputError) as error:
        read_images(path)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{path.parent}/", "")


def encoded(image: np.ndarray, kind: str = "png") -> bytes:
    """An image (C, H, W) as an encoded file."""
    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    """An array in the IDX format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


# Folders


@pytest.mark.parametrize("images", [GREY, COLOUR])
@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_a_folder_is_read_in_the_order_of_names_pixel_for_pixel(
    tmp_path: Path, images: np.ndarray, kind: str
) -> None:
    for name, image in zip("dbca", images, strict=True):
        (tmp_path / f"{name}.{kind}").write_bytes(encoded(image, kind))
    (tmp_path / "README.txt").write_text("not an image")
    (tmp_path / f"._a.{kind}").write_bytes(b"what macOS leaves beside a file")
    (tmp_path / f"folder.{kind}").mkdir()
    read = read_images(tmp_path)
    np.testing.assert_array_equal(read.X, images[[3, 1, 2, 0]])
    assert read.names == [f"{name}.{kind}" for name in "abcd"]
    assert read.y is None
    assert not read.jpeg


def test_jpeg_files_are_read_as_pillow_decodes_them_and_marked_as_such(tmp_path: Path) -> None:
    content = encoded(COLOUR[0], "jpeg")
    (tmp_path / "a.JPG").write_bytes(content)
    read = read_images(tmp_path)
    np.testing.assert_array_equal(read.X[0].transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(content))))
    assert read.jpeg


def test_transparency_is_dropped(tmp_path: Path) -> None:
    rgba = np.concatenate([COLOUR[0], GREY[1]])
    (tmp_path / "a.png").write_bytes(encoded(rgba))
    np.testing.assert_array_equal(read_images(tmp_path).X[0], COLOUR[0])


TURNED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).T,
    8: np.rot90,
    9: lambda pixels: pixels,
}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNED)
def test_photos_are_turned_as_they_are_shown(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = COLOUR[0, :, :5]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"a.{kind}", exif=exif, lossless=True)
    expected = np.stack([TURNED[orientation](plane) for plane in pixels])
    np.testing.assert_array_equal(read_images(tmp_path).X[0], expected)


def test_the_size_of_a_turned_photo_is_known_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(COLOUR[0, :, :5]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR[0, 0, :5]).convert("RGB").save(tmp_path / "b.png", exif=exif)
    whole = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: whole.index(b"IDAT") + 8])
    assert refusal(tmp_path).startswith(
        f"{tmp_path.name}/b.png: is 5×8 pixels, but {tmp_path.name}/a.png is 8×5;"
    )


def test_damaged_exif_data_are_passed_over(tmp_path: Path) -> None:
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(read_images(tmp_path).X[0], COLOUR[0])


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_truncated_image_is_named(tmp_path: Path, kind: str) -> None:
    whole = encoded(COLOUR[0], kind)
    (tmp_path / "a.png").write_bytes(whole)
    for share in (0.0, 0.05, 0.5, 0.8):
        (tmp_path / "b.png").write_bytes(whole[: int(share * len(whole))])
        message = refusal(tmp_path)
        assert message.startswith(f"{tmp_path.name}/b.png: cannot be read as an image (")
        assert message.endswith(DAMAGED)


def test_mixed_sizes_and_mixed_colours_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(COLOUR[0]))
    (tmp_path / "b.png").write_bytes(encoded(COLOUR[0, :, :5]))
    folder = tmp_path.name
    assert refusal(tmp_path) == (
        f"{folder}/b.png: is 8×5 pixels, but {folder}/a.png is 8×8; "
        "make all images one size, or have them resized by --resize or size=."
    )
    (tmp_path / "b.png").write_bytes(encoded(GREY[0]))
    assert refusal(tmp_path) == (
        f"{folder}/b.png: is grey, but {folder}/a.png is in colour; make all images alike."
    )


def test_images_of_any_size_are_resized_as_pillow_does_it(tmp_path: Path) -> None:
    images = [COLOUR[0], COLOUR[1, :, :5], np.full((3, 9, 4), 77, np.uint8)]
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(encoded(image))
    read = read_images(tmp_path, size=6)
    assert read.X.shape == (3, 3, 6, 6)
    assert (read.X[2] == 77).all()
    for found, image in zip(read.X, images, strict=True):
        resized = Image.fromarray(image.transpose(1, 2, 0)).resize((6, 6), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(resized))


@pytest.mark.parametrize("images", [GREY, COLOUR])
def test_decoded_images_are_resized_as_image_files_are(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "images.npz", X=images, y=np.arange(4))
    for number, image in enumerate(images):
        (tmp_path / f"{number}.png").write_bytes(encoded(image))
    found = read_images(tmp_path / "images.npz", size=5)
    np.testing.assert_array_equal(found.X, read_images(tmp_path, size=5).X)
    np.testing.assert_array_equal(found.y, np.arange(4))
    np.testing.assert_array_equal(read_images(tmp_path, size=8).X, images)


def test_a_size_without_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_images(write(tmp_path, GREY, "folder"), size=0)
    assert str(error.value) == "The 'size' parameter of read_images must be at least 1. Got 0 instead."


def test_sixteen_bit_pixels_and_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "sub" / "a.png")
    assert refusal(tmp_path) == (
        f"{tmp_path.name}: holds no image files; expected .bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, "
        ".tiff, .webp directly in the folder; its sub-folders are not read."
    )
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "a.png")
    assert refusal(tmp_path) == (
        f"{tmp_path.name}/a.png: has pixels of type 'I;16', expected 8 bits a channel; convert it."
    )


def test_images_too_large_to_be_true_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(COLOUR[0]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    assert refusal(tmp_path).startswith(f"{tmp_path.name}/a.png: cannot be read as an image (Image size (64")
    monkeypatch.undo()
    monkeypatch.setattr("invgan.data.files._available_memory", lambda: 191)
    assert refusal(tmp_path).startswith(f"{tmp_path.name}: needs 0.0 GiB of memory")


def test_formats_that_pillow_hands_to_other_programs_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert refusal(tmp_path).startswith(f"{tmp_path.name}/a.png: cannot be read as an image (cannot identify")


# IDX


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_as_mnist_has_it(tmp_path: Path, suffix: str) -> None:
    compress = gzip.compress if suffix else bytes
    images = tmp_path / f"train-images-idx3-ubyte{suffix}"
    images.write_bytes(compress(idx(GREY[:, 0])))
    assert read_images(images).y is None
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(
        compress(idx(np.array([7, 0, 9, 1], np.uint8)))
    )
    read = read_images(images)
    np.testing.assert_array_equal(read.X, GREY)
    np.testing.assert_array_equal(read.y, [7, 0, 9, 1])
    assert read.names == ["0", "1", "2", "3"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_idx_whose_header_lies_is_refused(tmp_path: Path, compress: type[bytes]) -> None:
    path = tmp_path / "images-idx3"
    head = struct.pack(">HBB3I", 0, 8, 3, 4, 8, 8)
    for body, found in ((bytes(255), "fewer"), (bytes(257), "more")):
        path.write_bytes(compress(head + body))
        assert refusal(path) == (
            f"images-idx3: its header claims 4×8×8 = 256 bytes, but the file holds {found}; replace it."
        )
    path.write_bytes(compress(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)))
    assert refusal(path).endswith("bytes, but the file holds fewer; replace it.")
    path.write_bytes(compress(struct.pack(">HBB3I", 0, 8, 3, 0, 8, 8)))
    assert refusal(path) == "images-idx3: holds no images; add some."
    path.write_bytes(compress(struct.pack(">HBB3I", 0, 0x0D, 3, 1, 1, 1) + bytes(4)))
    assert refusal(path) == (
        "images-idx3: is IDX with element type 0x0d and 3 dimensions, "
        "expected unsigned bytes (0x08) and 3; name another file."
    )


def test_what_is_gzipped_but_not_idx_is_to_be_unpacked(tmp_path: Path) -> None:
    for content in (b"a,b\n1,2\n", b""):
        (tmp_path / "table.csv.gz").write_bytes(gzip.compress(content))
        assert refusal(tmp_path / "table.csv.gz") == (
            "table.csv.gz: is compressed by gzip and does not hold IDX; unpack it."
        )


def test_idx_labels_that_do_not_match_and_truncated_gzip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = gzip.compress(idx(GREY[:, 0]))
    path.write_bytes(whole)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3, np.uint8))))
    assert refusal(path) == f"{path.name}: has 4 images but 3 labels; replace the file."
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(path).endswith(DAMAGED)


# Parquet and NumPy


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_as_cifar_has_it(tmp_path: Path, column: str) -> None:
    rows = [{"bytes": encoded(image), "path": f"{i}.png"} for i, image in enumerate(COLOUR)]
    pl.DataFrame({column: rows, "label": [3, 1, 0, 2]}).write_parquet(tmp_path / "train.parquet")
    read = read_images(tmp_path / "train.parquet")
    np.testing.assert_array_equal(read.X, COLOUR)
    np.testing.assert_array_equal(read.y, [3, 1, 0, 2])
    assert read.names == ["0.png", "1.png", "2.png", "3.png"]


def test_parquet_names_the_row_of_a_bad_image(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    for bad in (b"", None, b"not an image", encoded(COLOUR[0])[:60]):
        rows = [{"bytes": encoded(COLOUR[0]), "path": None}, {"bytes": bad, "path": None}]
        pl.DataFrame({"image": rows}).write_parquet(path)
        assert refusal(path).startswith("train.parquet, row 2: cannot be read as an image (")
    pl.DataFrame({"a": [1]}).write_parquet(path)
    assert refusal(path) == (
        "train.parquet: has no column 'image' or 'img' of {bytes, path}; it holds no images."
    )
    pl.DataFrame({"image": rows[:1]}).clear().write_parquet(path)
    assert refusal(path) == "train.parquet: holds no images; add some."
    pl.DataFrame({"image": rows[:1], "label": [None]}, schema_overrides={"label": pl.Int64}).write_parquet(
        path
    )
    assert refusal(path) == (
        "train.parquet: its labels have shape (1,) and type float64, "
        "expected one whole number for each image; convert them."
    )


def test_npz_with_four_dimensions(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "i.npz", X=COLOUR, y=[1, 0, 1, 1])
    read = read_images(tmp_path / "i.npz")
    np.testing.assert_array_equal(read.X, COLOUR)
    np.testing.assert_array_equal(read.y, [1, 0, 1, 1])
    np.save(tmp_path / "i.npy", np.asfortranarray(GREY))
    np.testing.assert_array_equal(read_images(tmp_path / "i.npy").X, GREY)
    for wrong, shape in ((COLOUR.transpose(0, 2, 3, 1), (4, 8, 8, 3)), (COLOUR / 255, (4, 3, 8, 8))):
        np.save(tmp_path / "i.npy", wrong)
        assert refusal(tmp_path / "i.npy") == (
            f"i.npy: array 'X' has shape {shape} and type {wrong.dtype}, expected uint8 images "
            "(n, 1 or 3, height, width); convert or transpose it."
        )


def test_npz_as_imagenet32_has_it(tmp_path: Path) -> None:
    path = tmp_path / "train_data_batch_1.npz"
    np.savez(path, data=COLOUR.reshape(4, -1), labels=[1, 1000, 5, 6], mean=np.zeros(192))
    read = read_images(path)
    np.testing.assert_array_equal(read.X, COLOUR)
    np.testing.assert_array_equal(read.y, [1, 1000, 5, 6])
    np.savez(path, data=COLOUR.reshape(4, -1)[:, :100], labels=[1, 2, 3, 4])
    assert refusal(path) == (
        "train_data_batch_1.npz: array 'data' has shape (4, 100) and type uint8, "
        "expected uint8 (n, 3·H·H), such as (n, 3072); replace it."
    )


def test_labels_have_the_name_that_is_asked_for(tmp_path: Path) -> None:
    odd, y = np.array([True, False, False, True]), np.arange(4)
    rows = [{"bytes": encoded(image), "path": None} for image in COLOUR]
    pl.DataFrame({"image": rows, "label": y, "odd": odd}).write_parquet(tmp_path / "i.parquet")
    np.savez(tmp_path / "i.npz", X=COLOUR, y=y, odd=odd)
    np.savez(tmp_path / "flat.npz", data=COLOUR.reshape(4, -1), labels=y, odd=odd)
    messages = {
        "i.parquet": "has no column 'even' beside the images; it has 'label', 'odd'.",
        "i.npz": "has no array 'even' beside the images; it has 'y', 'odd'.",
        "flat.npz": "has no array 'even' beside the images; it has 'labels', 'odd'.",
    }
    for name, message in messages.items():
        usual = read_images(tmp_path / name)
        np.testing.assert_array_equal(usual.y, y)
        np.testing.assert_array_equal(read_data(tmp_path / name, label=usual.label).y, y)
        np.testing.assert_array_equal(read_data(tmp_path / name, label="odd").y, odd)
        for read in (read_data, lambda path, label: list(read_blocks(path, label=label))):
            with pytest.raises(InputError) as error:
                read(tmp_path / name, label="even")
            assert str(error.value) == f"{tmp_path}/{name}: {message}"


def test_labels_without_a_name_go_by_any(tmp_path: Path) -> None:
    (tmp_path / "images-idx3").write_bytes(idx(GREY[:, 0]))
    (tmp_path / "labels-idx1").write_bytes(idx(np.arange(4, dtype=np.uint8)))
    (tmp_path / "data_batch_1").write_bytes(python_3_batch(2))
    np.testing.assert_array_equal(read_images(tmp_path / "images-idx3", label="digit").y, np.arange(4))
    np.testing.assert_array_equal(read_images(tmp_path / "data_batch_1", label="kind").y, [6, 9, 1, 0])


def test_files_that_hold_no_images(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello")
    assert refusal(path) == (
        "notes.txt: is not a set of images; "
        "expected a folder of PNG or JPEG files, IDX, Parquet, .npz or .npy."
    )
    assert refusal(tmp_path / "nowhere") == "nowhere: no such file; check the path."


# CIFAR's pickled batches


def python_2_batch(data: np.ndarray) -> bytes:
    """A batch, instruction for instruction as CIFAR's authors' Python 2 wrote it in protocol 2."""
    n, width = data.shape
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03",
            b"U\x06labelsq\x04]q\x05(K\x06K\x09K\x01K\x00e",
            b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85U\x01b\x87Rq\x09(K\x01K" + bytes([n]) + b"M" + struct.pack("<H", width) + b"\x86",
            b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tb",
            b"U\x09filenamesq\x0c]q\x0d(U\x05a.pngq\x0eU\x05b.pngq\x0fh\x0eh\x0feu.",
        ]
    )


def python_3_batch(protocol: int) -> bytes:
    batch = {"batch_label": "b", "labels": [6, 9, 1, 0], "data": COLOUR.reshape(4, -1)}
    return pickle.dumps(batch | {"filenames": ["a.png", "b.png", "a.png", "b.png"]}, protocol=protocol)


@pytest.mark.parametrize(
    "content", [python_2_batch(COLOUR.reshape(4, -1)), python_3_batch(2), python_3_batch(3)]
)
def test_cifar_batches_of_python_2_and_3_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    read = read_images(tmp_path / "data_batch_1")
    np.testing.assert_array_equal(read.X, COLOUR)
    assert read.X.flags.writeable
    np.testing.assert_array_equal(read.y, [6, 9, 1, 0])
    assert read.names == ["a.png", "b.png", "a.png", "b.png"]


def test_plain_values_and_arrays_of_any_numeric_type_and_order_come_back_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{dtype}{order}": np.array(rng.integers(0, 100, (3, 5)), dtype=dtype, order=order)
        for dtype in ("<i8", ">i4", "<f8", "?", "u2")
        for order in "CF"
    }
    plain = {
        "none": None,
        "flags": [True, False],
        "numbers": (1, -7, 300, 70_000, 2**40, 2.5),
        "empty": ((), [], {}),
    }
    (tmp_path / "b").write_bytes(pickle.dumps(plain | arrays | {b"bytes key": 1}, protocol=2))
    read = read_batch(tmp_path / "b")
    assert {key: read[key] for key in plain} == plain
    assert read["bytes key"] == 1
    for key, array in arrays.items():
        np.testing.assert_array_equal(read[key], array)
        assert read[key].dtype == array.dtype


class Hostile:
    """An object whose unpickling would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return (os.system, (self.command,))


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    content = {"data": COLOUR.reshape(4, -1), "labels": Hostile(f"touch {tmp_path / 'ran'}")}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(content, protocol=protocol))
    assert refusal(tmp_path / "data_batch_1") == (
        f"data_batch_1: its pickle asks for '{os.system.__module__}.system', which no CIFAR batch does; "
        "it may be hostile, get the file from its source."
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({"data": 1}, protocol=4),
            "its pickle uses the instruction FRAME, which no CIFAR batch does; "
            "save it as .npz, or with pickle protocol 2.",
        ),
        (
            b"\x80\x02(U\x02idios\nsystem\n.",
            "its pickle uses the instruction INST, which no CIFAR batch does; "
            "save it as .npz, or with pickle protocol 2.",
        ),
        (b"\x80\x02]q\x01.", "its pickle holds a list, expected a dictionary."),
        (b"\x80\x02}q\x01.", "has no array 'data' of images; name one of CIFAR's batches."),
        (
            b"\x80\x02}U\x04datacnumpy\ndtype\nU\x02u1\x85Rs.",
            "its pickle calls 'numpy.dtype', expected data.",
        ),
        (
            pickle.dumps({"data": np.array([None])}, protocol=2),
            "an array has type 'O8', expected numbers; save it as .npz.",
        ),
        (
            python_2_batch(COLOUR.reshape(4, -1)).replace(b"K\x04M", b"K\x05M"),
            "an array claims shape (5, 192) but holds 768 values; it is damaged.",
        ),
    ],
)
def test_anything_else_in_a_pickle_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "data_batch_1").write_bytes(content)
    assert refusal(tmp_path / "data_batch_1") == f"data_batch_1: {message}"


def test_a_truncated_batch_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = python_2_batch(COLOUR.reshape(4, -1))
    for length in range(1, len(whole), 11):
        (tmp_path / "data_batch_1").write_bytes(whole[:length])
        assert refusal(tmp_path / "data_batch_1").endswith(DAMAGED)


# Padding


def test_padding_centres_and_keeps_every_pixel() -> None:
    padded = pad_images(COLOUR, 13)
    assert padded.shape == (4, 3, 13, 13)
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[:, :, 2:10, 2:10], COLOUR)
    assert padded.astype(int).sum() == COLOUR.astype(int).sum()
    np.testing.assert_array_equal(pad_images(COLOUR, 8), COLOUR)
    with pytest.raises(InputError) as error:
        pad_images(COLOUR, 7)
    assert str(error.value) == (
        "The 'size' parameter of pad_images must be at least the images' 8×8. Got 7 instead."
    )


# More than memory holds


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_IN_MEMORY", 100)


def lies_in_a_file(X: object) -> bool:
    """Whether an array is a view of a mapped file."""
    return isinstance(X, np.memmap) or (X is not None and lies_in_a_file(getattr(X, "base", None)))


def write(path: Path, images: np.ndarray, kind: str) -> Path:
    """Images and labels 0, 1, … in one of the formats."""
    labels = np.arange(len(images))
    if kind == "folder":
        for number, image in enumerate(images):
            (path / f"{number}.png").write_bytes(encoded(image))
        return path
    if kind == "parquet":
        files = [{"bytes": encoded(image), "path": None} for image in images]
        pl.DataFrame({"image": files, "label": labels}).write_parquet(path / "images.parquet")
    elif kind == "idx.gz":
        (path / "images.idx.gz").write_bytes(gzip.compress(idx(images[:, 0])))
    else:
        np.save(path / "images.npy", images)
    return path / f"images.{kind}"


@pytest.mark.parametrize("kind", ["folder", "parquet", "idx.gz", "npy"])
def test_many_images_lie_in_a_file_and_are_the_same(tmp_path: Path, little_memory: None, kind: str) -> None:
    path = write(tmp_path, GREY, kind)
    read = read_images(path)
    np.testing.assert_array_equal(read.X, GREY)
    assert lies_in_a_file(read.X)
    read.X[:] = 0  # which stays out of the user's own file
    np.testing.assert_array_equal(read_images(path).X, GREY)


def test_a_resized_array_of_many_images_lies_in_a_file_too(tmp_path: Path, little_memory: None) -> None:
    assert lies_in_a_file(read_images(write(tmp_path, GREY, "npy"), size=9).X)


def test_blocks_are_the_images_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invgan.data.images.BLOCK_BYTES", 3 * 64 + 5)
    monkeypatch.setattr("invgan.data.images.PARQUET_BLOCK", 3)
    path = write(tmp_path, GREY, "parquet")
    whole, blocks = read_data(path), list(read_blocks(path))
    assert [len(block.X) for block in blocks] == [3, 1]
    np.testing.assert_array_equal(np.concatenate([block.X for block in blocks]), GREY)
    np.testing.assert_array_equal(np.concatenate([block.y for block in blocks]), [0, 1, 2, 3])
    assert whole.names == [name for block in blocks for name in block.names]


@pytest.mark.parametrize("kept", [[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
def test_marked_images_are_taken_out_block_by_block(
    tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch, kept: list[int]
) -> None:
    monkeypatch.setattr("invgan.data.images.BLOCK_BYTES", 2 * 64)
    found = read_images(write(tmp_path, GREY, "npy")).where(np.array(kept, dtype=bool))
    np.testing.assert_array_equal(found, GREY[np.array(kept, dtype=bool)])
    assert lies_in_a_file(found) == (sum(kept) > 1)


def test_without_room_on_the_disk_one_line_says_what_to_do(
    tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, GREY, "parquet")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("", (), {"free": 10}))
    folder = tempfile.gettempdir()
    assert refusal(path) == (
        f"images.parquet: needs 0.0 GiB in {folder}, 0.0 GiB is free; "
        "set TMPDIR to a folder on a larger disk, or use fewer or smaller images."
    )
    monkeypatch.undo()
    monkeypatch.setattr(files, "MAX_IN_MEMORY", 100)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    assert refusal(path) == (
        f"images.parquet: needs 0.0 GiB in {folder}, which cannot be had (No space left on device); "
        "set TMPDIR to a folder on a larger disk, or use fewer or smaller images."
    )
