"""Tables from CSV, Parquet and NumPy files, as numbers."""

import csv
import io
import itertools
import os
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl

from invgan.data.columns import LIMIT, MISSING, Columns, listed
from invgan.data.files import (
    array_blocks,
    array_headers,
    main_array,
    parquet_blocks,
    parquet_schema,
    parquet_size,
    read_array,
    readable,
    require_file,
    require_memory,
)
from invgan.data.images import Images, holds_images, read_images
from invgan.errors import InputError

_UNREADABLE = (ArithmeticError, NotImplementedError, TypeError, ValueError, pl.exceptions.PolarsError)
"""What polars, and PyArrow under it, raise of a pandas column that they have no type for."""
BLOCK_CELLS = 2**19
"""Numbers in a block of rows, 4 MiB of them, whatever the number of columns."""
BLOCK_ROWS = 512
"""A block has a multiple of so many rows, and so fills the smaller blocks in which it is scored."""
CSV_PIECE = 2**22
"""Bytes of a CSV file that are parsed at a time."""
SAMPLE_ROWS = 250_000
"""Rows that a sample keeps, at most: of those not held out 1,500 steps of 64 rows see fewer, 96,000."""
ROW_NAMES = re.compile(r"(__index_level_\d+__)?")
"""What pandas, and R, call a column that names the rows, in CSV and in Parquet."""
SAMPLE_CELLS = 2**25
"""Numbers that a sample keeps, at most, a quarter of a GiB of them, unless 512 rows have more."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of numbers, with its labels apart.

    Attributes
    ----------
    X : numpy.ndarray of shape (n, D), float64
        NaN where a value is missing, if the table was read by its `columns`.
    feature_names : list of D str
    y : numpy.ndarray of shape (n,), or None
        int64 where every label is a whole number (also ``"0"``, ``1.0`` and booleans), float64 where every
        label is a number, otherwise text as it stood in the file.
    path : pathlib.Path
        Where the table came from.
    columns : Columns, or None
        What the file's columns hold, if that was asked for or given: `X` has the numbers that they become.
    unknown : dict of str to set of str
        By column, what counts as any other value, because no indicator of its category stands for it.
    n_left_out : int
        Rows of the file that are not in the sample of it, if one was asked for.
    has_own_names : bool
        Whether the names are the file's, not made up by the reader.
    has_row_names : bool
        Whether a column that names the rows, as pandas and R write it, was left out.
    """

    X: np.ndarray
    feature_names: list[str]
    y: np.ndarray | None
    path: Path
    columns: Columns | None = None
    unknown: dict[str, set[str]] = field(default_factory=dict)
    n_left_out: int = 0
    has_own_names: bool = True
    has_row_names: bool = False


@dataclass(frozen=True)
class Infer:
    """A request to find out what the columns of a table hold.

    Attributes
    ----------
    drop : tuple of str
        Columns to leave out.
    """

    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """A file whose columns are known and whose rows are still to be read."""

    path: Path
    names: list[str]
    size: int
    """Bytes of memory that it takes to read all rows at once."""
    frames: Callable[[int], Iterator[pl.DataFrame]]
    """Reads the rows in their order, given a number that suits; an .npz or .npy file's are float64."""
    y: pl.Series | None = None
    """Labels that lie beside the table."""
    label: str | None = None
    """The column of labels, if they are one."""
    has_own_names: bool = True
    """Whether the columns' names are the file's, not made up by the reader."""
    renamed: dict[str, str] = field(default_factory=dict)
    """What to call columns that are known by their position."""
    refuse_ragged: Callable[[], None] = lambda: None
    """Looks through all lines, once, for one with more or fewer fields than the first."""

    @property
    def features(self) -> list[str]:
        """The other columns, but for one that names the rows."""
        return [name for name in self.names if name != self.label and not ROW_NAMES.fullmatch(name)]


def read_table(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    min_rows: int = 2,
    columns: Columns | Infer | None = None,
    sample_seed: int | None = None,
) -> Table:
    """Read a table of numbers from a .csv, .parquet, .npz or .npy file.

    CSV is comma-separated UTF-8; its first row is the header unless every field of it is a number, in which
    case the columns are called x0, x1, … as they are in .npz and .npy files. A first column without a name
    names the rows, as in what pandas and R write, and is left out. An .npz file holds ``X`` and
    perhaps ``y``, or a single array under any name. Booleans count as 0 and 1. Rows are counted from 1,
    without the header.

    Parameters
    ----------
    path : str or path
        The file.
    label : str, optional
        The column (in an .npz file also the array) that holds the labels; it becomes ``y`` and leaves ``X``.
        Without it, an .npz file's array ``y`` is taken where there is one.
    min_rows : int, default 2
        The fewest rows to accept: one row is enough to score, but never to fit.
    columns : Columns or Infer, optional
        What the columns hold, or the request to find out: then text, categories and missing values are
        welcome, and become numbers. By default every cell must be a finite number.
    sample_seed : int, optional
        Of more than 250,000 rows (or 2²⁵ numbers) keep so many, drawn at random with this seed and in their
        order; the file is read block by block, and what stands in other rows does not count. The sample is
        the same for the same rows in another type of file. By default all rows are kept.

    Returns
    -------
    Table

    Raises
    ------
    InputError
        If the file is missing, unreadable, damaged, not a table, has too few rows, unnamed or repeated
        columns, no such label, other columns than those given, dates, or a cell that is not finite, above
        1e18 in size or, except as `columns` allows, missing or text.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "people.csv")
    >>> _ = path.write_text("age,height,odd\\n31,1.7,0\\n54,1.8,1\\n")
    >>> table = read_table(path, label="odd")
    >>> table.feature_names, table.X.tolist(), table.y.tolist()
    (['age', 'height'], [[31.0, 1.7], [54.0, 1.8]], [0, 1])
    """
    source = _open(Path(path), label, columns)
    most, size = np.inf, source.size
    if sample_seed is not None:
        most = max(BLOCK_ROWS, min(SAMPLE_ROWS, SAMPLE_CELLS // len(source.names)))
        size = min(size, 4 * 8 * most * len(source.names))
    require_memory(source.path, size)
    frame, numbers, n_rows = _gathered(_blocks(source), most, sample_seed or 0)
    _require_rows(source, n_rows, min_rows)
    if isinstance(columns, Infer):
        columns = Columns.infer(frame.select(source.features), source.path, drop=columns.drop)
    table = replace(
        _table(source, frame, columns, numbers),
        n_left_out=n_rows - len(numbers),
        has_own_names=source.has_own_names,
        has_row_names=any(ROW_NAMES.fullmatch(name) for name in source.names),
    )
    y = frame[source.label] if source.label is not None else source.y
    if y is None:
        return table
    if source.label is None:
        y = y[numbers]
    return replace(table, y=_labels(source.path, y, numbers))


def read_labels(path: str | os.PathLike[str], label: str) -> np.ndarray:
    """Read the labels of a table alone, block by block, as `read_table` gives them in `y`.

    Parameters
    ----------
    path : str or path
        The file.
    label : str
        The column, or an .npz file's array, that holds them.

    Returns
    -------
    numpy.ndarray of shape (n,)

    Raises
    ------
    InputError
        As `read_table` does, except for what stands in other columns.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "people.csv")
    >>> _ = path.write_text("age,odd\\n31,0\\n54,1\\n")
    >>> read_labels(path, "odd").tolist()
    [0, 1]
    """
    source = _open(Path(path), label, None)
    if source.y is not None:
        return _labels(source.path, source.y, range(len(source.y)))
    columns = [frame[label] for frame in _blocks(source)]
    _require_rows(source, sum(map(len, columns)), 1)
    # An Arrow type may be wider in one piece than in another.
    series = pl.concat([column.to_frame() for column in columns], how="vertical_relaxed").to_series()
    return _labels(source.path, series, range(len(series)))


def read_data(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    min_rows: int = 2,
    columns: Columns | Infer | None = None,
    sample_seed: int | None = None,
    size: int | None = None,
) -> Table | Images:
    """Read whatever the path holds: images (see `read_images`) or else a table (see `read_table`).

    A folder, an IDX file, a CIFAR batch, a Parquet file with an image column, and a NumPy file with a 4-D
    array ``X`` are images.

    Parameters
    ----------
    path : str or path
        The file or folder.
    label : str, optional
        As in `read_table` and `read_images`.
    min_rows : int, default 2
        The fewest rows to accept in a table.
    columns : Columns or Infer, optional
    sample_seed : int, optional
        As in `read_table`, for tables.
    size : int, optional
        As in `read_images`, for images.

    Returns
    -------
    Table or Images

    Raises
    ------
    InputError
        If the data cannot be read, or has no such labels.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "images.npz")
    >>> np.savez(path, X=np.zeros((5, 1, 8, 8), np.uint8))
    >>> read_data(path).X.shape
    (5, 1, 8, 8)
    """
    if not holds_images(path):
        return read_table(path, label=label, min_rows=min_rows, columns=columns, sample_seed=sample_seed)
    return read_images(path, size=size, label=label)


def read_blocks(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    columns: Columns | None = None,
    size: int | None = None,
) -> Iterator[Table | Images]:
    """Read what `read_data` reads, but block by block, in memory that does not grow with the rows.

    Blocks have as many rows as make about half a million numbers, or 16 MiB of pixels. Only an .npz file,
    being an archive, is read as a whole.

    Parameters
    ----------
    path : str or path
        The file or folder.
    label : str, optional
        The column, or an .npz file's array, that is not a feature. Blocks come without it: whether labels
        are numbers or text shows only when all of them have been read.
    columns : Columns, optional
        As in `read_table`, for tables.
    size : int, optional
        As in `read_images`, for images.

    Yields
    ------
    Table or Images
        At least one row; the blocks' rows, in order, are those of `read_data` bit for bit.

    Raises
    ------
    InputError
        As `read_data` does, except for labels; for a bad cell when its block's turn has come.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "wide.npy")
    >>> np.save(path, np.zeros((1000, 1024)))
    >>> [block.X.shape for block in read_blocks(path)]
    [(512, 1024), (488, 1024)]
    """
    if holds_images(path):
        yield from read_images(path, size=size, label=label).blocks()
        return
    source = _open(Path(path), label, columns)
    n_rows = 0
    for frame in _blocks(source):
        yield _table(source, frame, columns, range(n_rows, n_rows + frame.height))
        n_rows += frame.height
    _require_rows(source, n_rows, 1)


def mixed_frame(X: object) -> pl.DataFrame | None:
    """Return a pandas or polars table with columns that are not numbers, without blanks around text.

    Parameters
    ----------
    X : object
        Anything.

    Returns
    -------
    polars.DataFrame, or None
        None for what is no such table, or has numbers and truth values only.

    Raises
    ------
    InputError
        As :func:`plain_frame` does.

    Examples
    --------
    >>> mixed_frame(pl.DataFrame({"height": [1.7], "ward": [" north"]})).rows()
    [(1.7, 'north')]
    >>> mixed_frame(pl.DataFrame({"height": [1.7]})) is None
    True
    """
    if isinstance(X, pl.DataFrame):
        numbers = all(dtype.is_numeric() or dtype == pl.Boolean for dtype in X.dtypes)
    else:
        numbers = all(getattr(dtype, "kind", "O") in "biuf" for dtype in _pandas_types(X))
    return None if numbers else plain_frame(X)


def plain_frame(X: object) -> pl.DataFrame | None:
    """Return a pandas or polars table, whatever it holds, without blanks around text.

    Parameters
    ----------
    X : object
        Anything.

    Returns
    -------
    polars.DataFrame, or None
        None for what is no such table.

    Raises
    ------
    InputError
        A pandas table has columns of one name, or a column of values of several types, or of complex numbers;
        or X is such a column.

    Examples
    --------
    >>> plain_frame(pl.DataFrame({"height": [1.7]})).rows()
    [(1.7,)]
    >>> plain_frame([[1.7]]) is None
    True
    """
    if isinstance(X, pl.DataFrame):
        return _plain_text(X)
    if not _pandas_types(X):
        return None
    table: Any = X
    names = [str(name) for name in table.columns]
    for i, name in enumerate(names):
        if getattr(table.dtypes.iloc[i], "kind", "O") == "c":
            raise InputError(
                f"Complex data not supported: X has it in column {name!r}; give its real and imaginary parts."
            )
    columns = []
    for i, name in enumerate(names):
        try:
            columns.append(pl.Series(name, pl.from_pandas(table.iloc[:, i])))
        except _UNREADABLE as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"X, column {name!r}: cannot be read ({reason}); make all of its values of one type."
            ) from error
    return _plain_text(pl.DataFrame(columns))


def _pandas_types(X: Any) -> list[Any]:
    """The types of a pandas table's columns; none of what is no such table."""
    if type(X).__module__.partition(".")[0] != "pandas" or not hasattr(X, "dtypes"):
        return []
    if getattr(X, "ndim", 2) == 1:
        raise InputError(
            "Expected a 2-dimensional container but got a pandas Series instead; give a table, such as "
            "X.to_frame()."
        )
    places: dict[str, int] = {}
    for i, name in enumerate(map(str, X.columns)):
        if (first := places.setdefault(name, i)) < i:
            raise InputError(f"X: columns {first} and {i} are both named {name!r}; rename one.")
    return list(X.dtypes)


def _open(path: Path, label: str | None, columns: Columns | Infer | None) -> _Source:
    """Check a file's columns, and prepare to read its rows."""
    require_file(path)
    openers = {".csv": _open_csv, ".parquet": _open_parquet, ".npz": _open_numpy, ".npy": _open_numpy}
    suffix = path.suffix.lower()
    if suffix not in openers:
        raise InputError(f"{path}: unknown file type {suffix!r}; expected .csv, .parquet, .npz or .npy.")
    source = openers[suffix](path, label)
    if label is not None and source.y is None:
        if label not in source.names:
            raise InputError(f"{path}: has no column {label!r}; it has {listed(source.features)}.")
        source = replace(source, label=label)
    if isinstance(columns, Infer):
        for name in columns.drop:
            if name == source.label:
                raise InputError(f"{path}: column {name!r} is the label, and is left out as it is.")
            if name not in source.names:
                raise InputError(f"{path}: has no column {name!r} to drop; it has {listed(source.features)}.")
    if not source.features:
        raise InputError(f"{path}: has no column of features; add at least one.")
    return _matched(source, columns) if isinstance(columns, Columns) else source


def _matched(source: _Source, columns: Columns) -> _Source:
    """Find the given columns in the file: by name where both have names, otherwise by position.

    Names such as x0 may be a file's own. They were, if one of them stands on both sides.
    """
    found, expected = source.features, columns.names
    unused = tuple(column.name for column in columns.columns if not column.is_used)
    named = not (is_made_up(found) or is_made_up(expected)) or not {*found}.isdisjoint(expected)
    if source.has_own_names and named:
        for name in expected:
            if name not in found and name not in unused:
                raise InputError(
                    f"{source.path}: has no column {name!r}, which the model was fitted on; add it."
                )
        if more := [name for name in found if name not in expected]:
            if len(more) == 1:
                raise InputError(
                    f"{source.path}: has the column {more[0]!r}, which the model was not fitted on; drop it, "
                    f"or leave it out with --label {more[0]}."
                )
            raise InputError(
                f"{source.path}: has the columns {listed(more)}, which the model was not fitted on; drop "
                "them."
            )
        return source
    if len(found) != len(expected):
        counts = [f"{n} column{'s' * (n != 1)}" for n in (len(found), len(expected))]
        raise InputError(
            f"{source.path}: has {counts[0]}, but the model was fitted on {counts[1]}; "
            "give data of the same form."
        )
    return replace(source, renamed=dict(zip(found, expected, strict=True)))


def is_made_up(names: Sequence[str]) -> bool:
    """Whether columns are called as a reader calls those without names."""
    return list(names) == [f"x{i}" for i in range(len(names))]


def _require_rows(source: _Source, n_rows: int, min_rows: int) -> None:
    """Refuse a table that is too short."""
    if n_rows < min_rows:
        rows = f"{n_rows} row{'s' * (n_rows != 1)}"
        raise InputError(f"{source.path}: has {rows} of data, expected at least {min_rows}; add rows.")


def _blocks(source: _Source) -> Iterator[pl.DataFrame]:
    """Read block by block what stands in the cells, without blanks around text."""
    n_rows = max(1, BLOCK_CELLS // len(source.names) // BLOCK_ROWS) * BLOCK_ROWS
    return _regrouped(map(_plain_text, source.frames(n_rows)), n_rows)


def _gathered(frames: Iterable[pl.DataFrame], most: float, seed: int) -> tuple[pl.DataFrame, np.ndarray, int]:
    """Put frames together, with the rows' numbers and how many there were; if more than `most`, a sample.

    Each row draws a key, and those of the smallest keys are kept: every choice of so many is equally likely.
    """
    draws, limit, n_rows = np.random.default_rng(seed), np.inf, 0
    parts: list[pl.DataFrame] = []
    keys, numbers = np.empty(0), np.empty(0, dtype=np.int64)

    def joined() -> pl.DataFrame:
        # An Arrow type may be wider in one piece than in another.
        return pl.concat(parts, how="vertical_relaxed") if parts else pl.DataFrame()

    def cut() -> None:
        nonlocal limit, parts, keys, numbers
        if len(keys) > most:
            kept = np.sort(np.argpartition(keys, int(most))[: int(most)])
            parts, keys, numbers = [joined()[kept]], keys[kept], numbers[kept]
            limit = keys.max()

    for frame in frames:
        drawn = draws.random(frame.height)
        chosen = drawn < limit
        parts.append(frame.filter(chosen))
        keys = np.concatenate([keys, drawn[chosen]])
        numbers = np.concatenate([numbers, n_rows + np.flatnonzero(chosen)])
        n_rows += frame.height
        if len(keys) > 1.25 * most:  # not each time, as all that is kept is copied
            cut()
    cut()
    return joined(), numbers, n_rows


def _table(
    source: _Source, frame: pl.DataFrame, columns: Columns | None, numbers: Sequence[int] | np.ndarray
) -> Table:
    """Turn cells into numbers, or name the first one that cannot be, given the rows' numbers in the file."""
    features = frame.select(source.features).rename(source.renamed)
    if columns is None:
        return Table(_numbers(source.path, features, numbers), source.features, None, source.path)
    if frame[:, -1].has_nulls():
        source.refuse_ragged()  # a short line looks like one that ends in missing values

    def refuse(row: int, name: str, found: object, value: float) -> NoReturn:
        _refuse_cell(source.path, numbers[row], f"column {name!r}", found, value)

    X = columns.encode(features, refuse, place=source.path)
    return Table(X, columns.features, None, source.path, columns, columns.unknown(features))


def _regrouped(frames: Iterable[pl.DataFrame], n_rows: int) -> Iterator[pl.DataFrame]:
    """Cut the rows of all frames into frames of so many, the last one of fewer."""
    held: pl.DataFrame | None = None
    for frame in frames:
        held = frame if held is None else held.vstack(frame)
        while held.height >= n_rows:
            yield held[:n_rows]
            held = held[n_rows:]
    if held is not None and held.height:
        yield held


def _open_csv(path: Path, label: str | None) -> _Source:
    """Name the columns of a CSV file."""
    with readable(path, "UTF-8 CSV"):
        names, header = _csv_names(path)
        return _Source(
            path,
            names,
            4 * path.stat().st_size,
            lambda _: _csv_frames(path, names, header),
            has_own_names=header,
            refuse_ragged=cache(partial(_refuse_ragged, path)),
        )


def _csv_frames(path: Path, names: list[str], header: bool) -> Iterator[pl.DataFrame]:
    """Read every cell as text: numbers are made of it later, where a bad cell can be named."""
    # Polars counts the fields of the first line that it is given: a header of ours has them all.
    schema = {str(i): pl.String for i in range(len(names))}
    first = ",".join(schema).encode() + b"\n"
    n_skipped, line = int(header), 1
    with readable(path, "UTF-8 CSV"):
        for piece in _csv_pieces(path):
            misplaced = _misplaced_mark(piece)
            try:
                frame = pl.read_csv(first + piece, schema=schema, skip_rows_after_header=n_skipped)
            except pl.exceptions.PolarsError:
                _refuse_ragged(path)
                if misplaced is not None:
                    _refuse_mark(path, line + piece.count(b"\n", 0, misplaced))
                raise
            frame.columns = names
            if len(names) > 1:
                frame = _without_blank_lines(path, frame, piece, n_skipped)
            if misplaced is not None and not _is_as_written(path, frame, piece, n_skipped):
                _refuse_mark(path, line + piece.count(b"\n", 0, misplaced))
            yield frame
            n_skipped, line = 0, line + piece.count(b"\n")


def _misplaced_mark(text: bytes) -> int | None:
    """Where a quotation mark first stands neither at the edge of a field nor beside another one."""
    if b'"' not in text:
        return None
    marks = np.flatnonzero(np.frombuffer(text, np.uint8) == ord('"'))
    is_edge = np.isin(np.frombuffer(b"\n" + text + b"\n", np.uint8), list(b',\r\n"'))
    opening, closing = marks[::2], marks[1::2]
    misplaced = np.concatenate([opening[~is_edge[opening]], closing[~is_edge[closing + 2]]])
    return int(misplaced.min()) if len(misplaced) else None


def _is_as_written(path: Path, frame: pl.DataFrame, piece: bytes, n_skipped: int) -> bool:
    """Whether Polars, for which a misplaced mark may hide commas and lines, found what csv finds."""
    records = [fields for _, fields in _records(path, io.StringIO(piece.decode(), newline=""))]
    written = [fields for fields in records[n_skipped:] if fields or frame.width == 1]
    return [[cell or "" for cell in row] for row in frame.iter_rows()] == [f or [""] for f in written]


def _refuse_mark(path: Path, line: int) -> NoReturn:
    raise InputError(
        f"{path}, line {line}: has a quotation mark in the middle of a field; put the whole field in "
        "quotation marks, and write that mark twice."
    )


def _without_blank_lines(path: Path, frame: pl.DataFrame, piece: bytes, n_skipped: int) -> pl.DataFrame:
    """Drop the rows that Polars makes of blank lines, which look like those of empty cells alone."""
    if not frame.select(pl.all_horizontal(pl.all().is_null())).to_series().any():
        return frame
    records = _records(path, io.StringIO(piece.decode(), newline=""))
    return frame.filter(pl.Series([bool(fields) for _, fields in records][n_skipped:]))


def _csv_pieces(path: Path) -> Iterator[bytes]:
    """Read a CSV file in pieces that end where a record does."""
    with path.open("rb") as file:
        held = file.read(len(BOM_UTF8)).removeprefix(BOM_UTF8)
        while piece := file.read(max(CSV_PIECE, len(held))):
            held += piece
            end = _end_of_records(held)
            if end == 0:  # perhaps a quotation mark that nothing closes
                require_memory(path, 4 * len(held))
            else:
                yield held[:end]
                held = held[end:]
        if held:
            yield held


def _end_of_records(text: bytes) -> int:
    """Where the last whole record of a CSV text ends: behind a line feed that is not in quotation marks."""
    end, quoted = len(text), text.count(b'"') % 2 == 1
    while True:
        start = text.rfind(b'"', 0, end)
        feed = -1 if quoted else text.rfind(b"\n", start + 1, end)
        if feed >= 0 or start < 0:
            return feed + 1
        end, quoted = start, not quoted


def _open_parquet(path: Path, label: str | None) -> _Source:
    """Name the columns of a Parquet file, which must have names of their own, without blanks around them."""
    names = [name.strip() for name in parquet_schema(path).names]
    _check_names(path, names)

    def frames(n_rows: int) -> Iterator[pl.DataFrame]:
        for frame in parquet_blocks(path, n_rows):
            frame.columns = names
            yield frame

    return _Source(path, names, parquet_size(path), frames)


def _open_numpy(path: Path, label: str | None) -> _Source:
    """Find the array X, or the only one, and the labels beside it."""
    headers = array_headers(path)
    name = main_array(headers)
    if name is None:
        raise InputError(f"{path}: has the arrays {listed(headers)}; name the table 'X'.")
    shape, dtype = headers[name]
    if len(shape) != 2:
        raise InputError(f"{path}: array {name!r} has shape {shape}, expected (rows, columns); reshape it.")
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: array {name!r} has type {dtype}, expected real numbers; convert it.")
    names = [f"x{i}" for i in range(shape[1])]

    def frames(n_rows: int) -> Iterator[pl.DataFrame]:
        for block in array_blocks(path, name, n_rows):
            with np.errstate(over="ignore"):  # a long double beyond float64 becomes inf, and is refused so
                numbers = block.astype(np.float64)
            yield pl.DataFrame(numbers, schema=names)

    source = _Source(path, names, 3 * 8 * shape[0] * shape[1], frames, has_own_names=False)
    y_name = label or "y"
    if y_name not in headers or y_name == name:
        return source
    y_shape, y_dtype = headers[y_name]
    if y_shape not in [(shape[0],), (shape[0], 1)] or y_dtype.kind not in "biufU":
        raise InputError(
            f"{path}: array {y_name!r} has shape {y_shape} and type {y_dtype}, "
            f"expected one number or text for each of {shape[0]} rows; reshape or convert it."
        )
    return replace(source, y=pl.Series(y_name, read_array(path, y_name).ravel()))


def _numbers(path: Path, frame: pl.DataFrame, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    """Convert to float64, or name the first cell that cannot be used, given the rows' numbers."""
    for name, dtype in frame.schema.items():
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
            raise InputError(
                f"{path}, column {name!r}: holds {dtype}, expected numbers; convert or drop the column."
            )
    X = frame.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy(order="c", writable=True)
    bad = ~(np.abs(X) <= LIMIT)
    if bad.any():
        row, column = divmod(int(bad.argmax()), X.shape[1])
        place = f"column {frame.columns[column]!r}"
        _refuse_cell(path, numbers[row], place, frame[row, column], X[row, column])
    return X


def _labels(path: Path, series: pl.Series, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Convert to whole numbers where all labels are, else to numbers, else leave text as it is."""
    series = _plain_text(series.to_frame()).to_series()
    if not (series.dtype.is_numeric() or series.dtype in (pl.Boolean, pl.String, pl.Null)):
        raise InputError(f"{path}, label {series.name!r}: holds {series.dtype}, expected numbers or text.")
    missing = series.is_null() | (series == "" if series.dtype == pl.String else False)
    numbers = series.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    is_text = series.dtype == pl.String and not np.isfinite(numbers[~missing.to_numpy()]).all()
    bad = missing.to_numpy() if is_text else ~np.isfinite(numbers)
    if bad.any():
        row = int(bad.argmax())
        _refuse_cell(path, rows[row], f"label {series.name!r}", series[row], numbers[row])
    if is_text:
        return series.to_numpy().astype(str)
    whole = (numbers == np.rint(numbers)) & (np.abs(numbers) < 2**53)
    return numbers.astype(np.int64) if whole.all() else numbers


def _plain_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn categories into the text they stand for, and drop blanks around text."""
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).with_columns(
        pl.col(pl.String).str.strip_chars()
    )


def _refuse_cell(path: Path, row: int, column: str, found: object, value: float) -> NoReturn:
    """Say which cell is wrong, what stands in it, and what to do."""
    if found is None or found == "":
        if path.suffix.lower() == ".csv":
            _refuse_ragged(path)  # a short line, rather than an empty cell
        trouble = "found no value; fill it in or drop the row"
    elif str(found).lower() in MISSING:
        trouble = f"found {found!r}, a missing value; fill it in or drop the row"
    elif np.isnan(value):
        trouble = (
            f"found {_short(found)}, expected a number; encode the text, drop the column, "
            "or name it as the label"
        )
    elif np.isinf(value):
        trouble = f"found {value}; replace it with a finite number"
    elif abs(value) <= LIMIT:
        trouble = f"found {_short(found)}, expected yes or no, as the model was fitted on; correct it"
    else:
        trouble = f"found {value:g}, above {LIMIT:g} in size; rescale the column"
    line = ""
    if path.suffix.lower() == ".csv":
        names, header = _csv_names(path)
        starts = (line for line, fields in _csv_records(path) if fields or len(names) == 1)
        line = f" (line {next(itertools.islice(starts, row + header, None))})"
    raise InputError(f"{path}, row {row + 1}{line}, {column}: {trouble}.")


def _csv_names(path: Path) -> tuple[list[str], bool]:
    """Name the columns, and say whether the first row is a header."""
    with path.open("rb") as file:
        head = file.read(2**16)
    if b"\r" in head[:-1] and b"\n" not in head:  # the last one's line feed may come next
        raise InputError(f"{path}: lines end in a carriage return alone; save it with line feeds.")
    _, first = next(_csv_records(path), (1, []))
    if not first:
        raise InputError(f"{path}: line 1 is blank, expected column names or numbers; remove the line.")
    if len(first) == 1 and (any(mark in first[0] for mark in ";\t|") or _is_separated_by_blanks(path)):
        raise InputError(f"{path}: fields are not separated by commas; save it as comma-separated values.")
    values = [field for field in first if field.strip().lower() not in MISSING]
    header = not values or not all(_is_number(field) for field in values)
    names = [field.strip() for field in first] if header else [f"x{i}" for i in range(len(first))]
    _check_names(path, names)
    return names, header


def _is_separated_by_blanks(path: Path) -> bool:
    """Whether the first two lines of a file without commas have as many words, numbers below the names."""
    words = [fields[0].split() for _, fields in itertools.islice(_csv_records(path), 2) if fields]
    numbers = [_is_number(word) for word in words[-1]]
    return len(words) == 2 and len(words[0]) == len(words[1]) > 1 and any(numbers)


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every record of a CSV file with the line on which it starts."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from _records(path, file)


def _records(path: Path, text: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    reader, line = csv.reader(text), 1
    while True:
        limit = csv.field_size_limit(sys.maxsize)  # one for the whole process, and too short for notes
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}; correct the line.") from error
        finally:
            csv.field_size_limit(limit)
        yield line, fields
        line = reader.line_num + 1


def _refuse_ragged(path: Path) -> None:
    """Name the first line that has more or fewer fields than the first line, if there is one."""
    _, first = next(_csv_records(path))
    for line, fields in _csv_records(path):
        if fields and len(fields) != len(first):
            raise InputError(
                f"{path}, line {line}: has {len(fields)} field{'s' * (len(fields) != 1)}, "
                f"but line 1 has {len(first)}; give every line the same number."
            )


def _check_names(path: Path, names: list[str]) -> None:
    """Refuse unnamed columns but for a first one, and repeated ones."""
    for i, name in enumerate(names):
        if not name and (i or len(names) == 1):
            raise InputError(f"{path}, column {i + 1}: has no name; name it.")
        if (first := names.index(name)) < i:
            raise InputError(f"{path}: columns {first + 1} and {i + 1} are both named {name!r}; rename one.")


def _is_number(field: str) -> bool:
    """Whether the field reads as a number, NaN and infinities included."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def _short(found: object) -> str:
    """A cell's content, quoted, on one line of bounded length."""
    text = repr(found)
    return text if len(text) <= 40 else f"{text[:37]}…"
