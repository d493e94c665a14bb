"""What every reader checks before it takes memory, what every writer promises, and shared file formats."""

import glob
import math
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet

from invgan.errors import InputError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

# DEFLATE (gzip, npz) cannot pack tighter than this, so a larger claim is a lie.
MAX_DEFLATE_RATIO = 1032
MAX_IN_MEMORY = 2**28
"""Bytes of pixels that are kept in memory; more of them lie in a file."""


class ArrayHeader(NamedTuple):
    """Shape and type of a stored array, known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@contextmanager
def readable(place: object, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into one line that names the place."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        advice = "it may be truncated or damaged, replace it"
        if "UTF-8" in kind and "utf" in reason.lower():
            advice = "save it as UTF-8"
        raise InputError(f"{place}: cannot be read as {kind} ({reason}); {advice}.") from error


def require_file(path: Path) -> bytes:
    """Check that a regular, readable, non-empty file is there, and return its first eight bytes."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, expected a file; name a file inside it.")
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the path.")
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    if not head:
        raise InputError(f"{path}: is empty; write the data to it again.")
    return head


def require_memory(place: object, size: int) -> None:
    """Refuse to take more bytes than the machine has to give."""
    available = _available_memory()
    if size > available:
        raise InputError(
            f"{place}: needs {size / 2**30:,.1f} GiB of memory, {available / 2**30:,.1f} GiB is free; "
            "use fewer or smaller rows."
        )


def room_for(place: object, shape: tuple[int, ...]) -> np.ndarray:
    """Make an array of bytes to fill: in memory, or if it is large in a file without a name.

    Of the file only what is in use takes memory, and it is gone with the process, however that ends.
    """
    size = math.prod(shape)
    if size <= MAX_IN_MEMORY:
        require_memory(place, size)
        return np.empty(shape, np.uint8)
    folder = "the temporary folder"
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{place}: needs {size / 2**30:,.1f} GiB in {folder}, {free / 2**30:,.1f} GiB is free; "
                "set TMPDIR to a folder on a larger disk, or use fewer or smaller images."
            )
        with tempfile.TemporaryFile() as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # a disk that filled up later would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise InputError(
            f"{place}: needs {size / 2**30:,.1f} GiB in {folder}, which cannot be had ({error.strerror}); "
            "set TMPDIR to a folder on a larger disk, or use fewer or smaller images."
        ) from error


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, what: str) -> None:
    """Write a file that appears at `path` whole or not at all; `what` names it in the message."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        _sweep(path)
        try:
            with open(partial, "xb") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{path}: the {what} could not be written ({error.strerror or error}); "
            "choose a file in an existing folder that you may write to, on a disk with space left."
        ) from error


def _sweep(path: Path) -> None:
    """Remove what writers of this file left behind when they were killed.

    A living writer holds a lock on its partial file, which the system takes from a dead one.
    """
    if fcntl is None:
        return
    for partial in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        with suppress(OSError), partial.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink()


def array_headers(path: Path) -> dict[str, ArrayHeader]:
    """Read the headers of every array in an .npz or .npy file; the one in an .npy file is called X."""
    with _members(path) as members:
        return {name: _read_header(path, name, stream, size) for name, stream, size in members}


def main_array(headers: dict[str, ArrayHeader]) -> str | None:
    """The array that holds the data: X, or the only one there is."""
    return "X" if "X" in headers else next(iter(headers)) if len(headers) == 1 else None


def read_array(path: Path, name: str) -> np.ndarray:
    """Read one array of an .npz or .npy file whose header has been checked; never unpickles."""
    with _members(path) as members:
        stream, size = next((stream, size) for member, stream, size in members if member == name)
        require_memory(f"{path}, array {name!r}", size)
        return np.lib.format.read_array(stream, allow_pickle=False)


def map_array(path: Path, name: str) -> np.ndarray:
    """Read one array, of an .npy file only what is used of it; what is written to it stays here."""
    if zipfile.is_zipfile(path):
        return read_array(path, name)
    with readable(path, "a NumPy file"):
        return np.load(path, mmap_mode="c")


def array_blocks(path: Path, name: str, n_rows: int) -> Iterator[np.ndarray]:
    """Read an array whose header has been checked, so many rows at a time.

    From an .npy file no more is read than is asked for. An .npz file is read as a whole: it is an archive,
    packed or not, and where its array's order is Fortran's, a row lies all over it.
    """
    whole = read_array(path, name) if zipfile.is_zipfile(path) else None
    for start in range(0, array_headers(path)[name].shape[0], n_rows):
        with readable(path, "a NumPy file"):
            # A new map for each block: the pages that one has touched count as this process's memory.
            array = np.load(path, mmap_mode="r") if whole is None else whole
        yield array[start : start + n_rows]


def parquet_schema(path: Path) -> pyarrow.Schema:
    """Read the columns' names and types, which take no memory to speak of."""
    with readable(path, "Parquet"):
        return pyarrow.parquet.read_schema(path)


def parquet_rows(path: Path) -> int:
    """Number of rows of a Parquet file."""
    with readable(path, "Parquet"):
        return int(pyarrow.parquet.read_metadata(path).num_rows)


def parquet_size(path: Path) -> int:
    """Bytes of memory to be had for reading a whole Parquet file."""
    with readable(path, "Parquet"):
        metadata = pyarrow.parquet.read_metadata(path)
        stored = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        return 2 * max(stored, 8 * metadata.num_rows * metadata.num_columns)


def parquet_blocks(path: Path, n_rows: int) -> Iterator[pl.DataFrame]:
    """Read a Parquet file so many rows at a time, whatever the size of its row groups."""
    # With pre_buffer pyarrow would keep all that it has read, and without a buffer_size a whole row group.
    with (
        readable(path, "Parquet"),
        pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**16) as file,
    ):
        for batch in file.iter_batches(batch_size=n_rows):
            yield _frame(pyarrow.Table.from_batches([batch]))


def _frame(table: pyarrow.Table) -> pl.DataFrame:
    """Hand over what pyarrow has read: polars panics, with a Rust backtrace, on some damaged files."""
    table = table.replace_schema_metadata()
    table.validate(full=True)
    str(table.schema)  # decodes every name: polars takes for granted that they are UTF-8
    for i, field in enumerate(table.schema):
        if pyarrow.types.is_decimal256(field.type):  # polars panics on it
            table = table.set_column(i, field.name, table[i].cast(pyarrow.float64()))
    return pl.DataFrame(pl.from_arrow(table))


def _available_memory() -> float:
    """Bytes that can be taken without swapping; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


@contextmanager
def _members(path: Path) -> Iterator[Iterator[tuple[str, IO[bytes], int]]]:
    """Open each array of the file in turn: its name, a stream of its bytes, and their number."""
    with readable(path, "a NumPy file"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [info for info in archive.infolist() if info.filename.endswith(".npy")]
                yield (
                    (info.filename.removesuffix(".npy"), archive.open(info), info.file_size) for info in names
                )
        else:
            with path.open("rb") as file:
                yield iter([("X", file, path.stat().st_size)])


def _read_header(path: Path, name: str, stream: IO[bytes], size: int) -> ArrayHeader:
    """Read one array's header, and check its claims against the file."""
    version = np.lib.format.read_magic(stream)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = parse(stream)
    place = f"{path}, array {name!r}"
    if dtype.hasobject:
        raise InputError(f"{place}: holds Python objects, which are never unpickled; save numbers or text.")
    claimed = math.prod(shape) * dtype.itemsize
    held = size - stream.tell()
    if claimed != held or claimed > MAX_DEFLATE_RATIO * path.stat().st_size:
        raise InputError(
            f"{place}: its header claims shape {shape}, {claimed:,} bytes, but the file holds {held:,}; "
            "it may be truncated or damaged, replace it."
        )
    return ArrayHeader(shape, dtype)
