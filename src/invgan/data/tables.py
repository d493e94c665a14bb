"""Numeric tables from CSV, Parquet and NumPy files."""

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from invgan.data.files import (
    array_headers,
    main_array,
    parquet_schema,
    read_array,
    read_parquet,
    readable,
    require_file,
    require_memory,
)
from invgan.data.images import Images, holds_images, read_images
from invgan.errors import InputError

# The square of a larger value, summed over a few hundred columns, overflows float32.
LIMIT = 1e18
_MISSING = {"nan", "-nan", "na", "n/a", "null", "none", "?"}


@dataclass(frozen=True, eq=False)
class Table:
    """A table of finite numbers, with its labels apart.

    Attributes
    ----------
    X : numpy.ndarray of shape (n, D), float64
    feature_names : list of D str
    y : numpy.ndarray of shape (n,), or None
        int64 where every label is a whole number (also ``"0"``, ``1.0`` and booleans), float64 where every
        label is a number, otherwise text as it stood in the file.
    path : pathlib.Path
        Where the table came from.
    """

    X: np.ndarray
    feature_names: list[str]
    y: np.ndarray | None
    path: Path


def read_table(path: str | os.PathLike[str], *, label: str | None = None, min_rows: int = 2) -> Table:
    """Read a numeric table from a .csv, .parquet, .npz or .npy file.

    CSV is comma-separated UTF-8; its first row is the header unless every field of it is a number, in which
    case the columns are called x0, x1, … as they are in .npz and .npy files. An .npz file holds ``X`` and
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

    Returns
    -------
    Table

    Raises
    ------
    InputError
        If the file is missing, unreadable, damaged, not a table, has too few rows, unnamed or repeated
        columns, no such label, or a cell that is missing, text, not finite, or above 1e18 in size.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "people.csv")
    >>> _ = path.write_text("age,height,odd\\n31,1.7,0\\n54,1.8,1\\n")
    >>> table = read_table(path, label="odd")
    >>> table.feature_names, table.X.tolist(), table.y.tolist()
    (['age', 'height'], [[31.0, 1.7], [54.0, 1.8]], [0, 1])
    """
    path = Path(path)
    require_file(path)
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".npz": _read_numpy, ".npy": _read_numpy}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise InputError(f"{path}: unknown file type {suffix!r}; expected .csv, .parquet, .npz or .npy.")

    frame, y = readers[suffix](path, label)
    if label is not None and y is None:
        if label not in frame.columns:
            raise InputError(f"{path}: has no column {label!r}; it has {_listed(frame.columns)}.")
        y = frame[label]
        frame = frame.drop(label)
    if frame.width == 0:
        raise InputError(f"{path}: has no column of features; add at least one.")
    if frame.height < min_rows:
        rows = f"{frame.height} row{'s' * (frame.height != 1)}"
        raise InputError(f"{path}: has {rows} of data, expected at least {min_rows}; add rows.")
    return Table(_numbers(path, frame), frame.columns, None if y is None else _labels(path, y), path)


def read_data(path: str | os.PathLike[str], *, label: str | None = None, min_rows: int = 2) -> Table | Images:
    """Read whatever the path holds: images (see `read_images`) or else a table (see `read_table`).

    A folder, an IDX file, a CIFAR batch, a Parquet file with an image column, and a NumPy file with a 4-D
    array ``X`` are images.

    Parameters
    ----------
    path : str or path
        The file or folder.
    label : str, optional
        The column of labels, for tables; images carry their own.
    min_rows : int, default 2
        The fewest rows to accept in a table.

    Returns
    -------
    Table or Images

    Raises
    ------
    InputError
        If the data cannot be read, or labels are asked of images that have none.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "images.npz")
    >>> np.savez(path, X=np.zeros((5, 1, 8, 8), np.uint8))
    >>> read_data(path).X.shape
    (5, 1, 8, 8)
    """
    if not holds_images(path):
        return read_table(path, label=label, min_rows=min_rows)
    images = read_images(path)
    if label is not None and images.y is None:
        raise InputError(f"{path}: these images have no labels, so no {label!r}; leave the label out.")
    return images


def _read_csv(path: Path, label: str | None) -> tuple[pl.DataFrame, None]:
    """Read every cell as text: numbers are made of it later, where a bad cell can be named."""
    with readable(path, "UTF-8 CSV"):
        names, header = _csv_names(path)
        require_memory(path, 4 * path.stat().st_size)
        try:
            frame = pl.read_csv(
                path, has_header=False, skip_rows=int(header), schema=dict.fromkeys(names, pl.String)
            )
        except pl.exceptions.PolarsError:
            _refuse_ragged(path)
            raise
    return frame, None


def _read_parquet(path: Path, label: str | None) -> tuple[pl.DataFrame, None]:
    """Read a Parquet file whose columns have names of their own."""
    _check_names(path, parquet_schema(path).names)
    return read_parquet(path), None


def _read_numpy(path: Path, label: str | None) -> tuple[pl.DataFrame, pl.Series | None]:
    """Read the array X, or the only one, and the labels beside it."""
    headers = array_headers(path)
    name = main_array(headers)
    if name is None:
        raise InputError(f"{path}: has the arrays {_listed(headers)}; name the table 'X'.")
    shape, dtype = headers[name]
    if len(shape) != 2:
        raise InputError(f"{path}: array {name!r} has shape {shape}, expected (rows, columns); reshape it.")
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: array {name!r} has type {dtype}, expected real numbers; convert it.")
    require_memory(path, 3 * 8 * shape[0] * shape[1])

    columns = [f"x{i}" for i in range(shape[1])]
    with np.errstate(over="ignore"):  # a long double beyond float64 becomes inf, and is refused as such
        frame = pl.DataFrame(read_array(path, name).astype(np.float64), schema=columns)
    y_name = label or "y"
    if y_name not in headers or y_name == name:
        return frame, None
    y_shape, y_dtype = headers[y_name]
    if y_shape not in [(shape[0],), (shape[0], 1)] or y_dtype.kind not in "biufU":
        raise InputError(
            f"{path}: array {y_name!r} has shape {y_shape} and type {y_dtype}, "
            f"expected one number or text for each of {shape[0]} rows; reshape or convert it."
        )
    return frame, pl.Series(y_name, read_array(path, y_name).ravel())


def _numbers(path: Path, frame: pl.DataFrame) -> np.ndarray:
    """Convert to float64, or name the first cell that cannot be used."""
    frame = _plain_text(frame)
    for name, dtype in frame.schema.items():
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
            raise InputError(
                f"{path}, column {name!r}: holds {dtype}, expected numbers; convert or drop the column."
            )
    X = frame.cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy(order="c", writable=True)
    bad = ~(np.abs(X) <= LIMIT)
    if bad.any():
        row, column = divmod(int(bad.argmax()), X.shape[1])
        _refuse_cell(path, row, f"column {frame.columns[column]!r}", frame[row, column], X[row, column])
    return X


def _labels(path: Path, series: pl.Series) -> np.ndarray:
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
        _refuse_cell(path, row, f"label {series.name!r}", series[row], numbers[row])
    if is_text:
        return series.to_numpy().astype(str)
    whole = (numbers == np.rint(numbers)) & (np.abs(numbers) < 2**53)
    return numbers.astype(np.int64) if whole.all() else numbers


def _plain_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn categories into the text they stand for, and drop blanks around text."""
    return frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).with_columns(
        pl.col(pl.String).str.strip_chars()
    )


def _refuse_cell(path: Path, row: int, column: str, found: object, value: float) -> None:
    """Say which cell is wrong, what stands in it, and what to do."""
    if found is None or found == "":
        if path.suffix.lower() == ".csv":
            _refuse_ragged(path)  # a short line, rather than an empty cell
        trouble = "found no value; fill it in or drop the row"
    elif str(found).lower() in _MISSING:
        trouble = f"found {found!r}, a missing value; fill it in or drop the row"
    elif np.isnan(value):
        trouble = (
            f"found {_short(found)}, expected a number; encode the text, drop the column, "
            "or name it as the label"
        )
    elif np.isinf(value):
        trouble = f"found {value}; replace it with a finite number"
    else:
        trouble = f"found {value:g}, above {LIMIT:g} in size; rescale the column"
    line = ""
    if path.suffix.lower() == ".csv":
        _, header = _csv_names(path)
        line = f" (line {next(line for i, (line, _) in enumerate(_csv_records(path)) if i == row + header)})"
    raise InputError(f"{path}, row {row + 1}{line}, {column}: {trouble}.")


def _csv_names(path: Path) -> tuple[list[str], bool]:
    """Name the columns, and say whether the first row is a header."""
    _, first = next(_csv_records(path), (1, []))
    if not first:
        raise InputError(f"{path}: line 1 is blank, expected column names or numbers; remove the line.")
    if len(first) == 1 and any(separator in first[0] for separator in ";\t"):
        raise InputError(f"{path}: fields are not separated by commas; save it as comma-separated values.")
    header = not all(_is_number(field) for field in first)
    names = [field.strip() for field in first] if header else [f"x{i}" for i in range(len(first))]
    _check_names(path, names)
    return names, header


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every record of a CSV file with the line on which it starts."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        line = 1
        for fields in reader:
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
    """Refuse unnamed and repeated columns."""
    for i, name in enumerate(names):
        if not name:
            raise InputError(
                f"{path}, column {i + 1}: has no name; name it, or drop it if it is a row index."
            )
        if (first := names.index(name)) < i:
            raise InputError(f"{path}: columns {first + 1} and {i + 1} are both named {name!r}; rename one.")


def _is_number(field: str) -> bool:
    """Whether the field reads as a number, NaN and infinities included."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def _listed(names: Iterable[str]) -> str:
    """A few names, quoted, for a message."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:8]) + (f", … ({len(quoted)} in all)" if len(quoted) > 8 else "") or "none"


def _short(found: object) -> str:
    """A cell's content, quoted, on one line of bounded length."""
    text = repr(found)
    return text if len(text) <= 40 else f"{text[:37]}…"
