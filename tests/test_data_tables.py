"""Tables: what is read from each format, and the one line for each thing that can be wrong."""

import csv
import decimal
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from invgan.data import Columns, Images, Infer, Table, read_blocks, read_data, read_labels, read_table, tables
from invgan.errors import InputError

X = np.array([[1.5, -2.0], [3.25, 4e17], [0.0, 1e-300]])


def refusal(path: Path, *, read: Callable[..., object] = read_table, **options: object) -> str:
    """The one line with which a file is refused, without its folder."""
    with pytest.raises(InputError) as error:
        read(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message.replace(f"{path.parent}/", "")


def csv_refusal(folder: Path, text: str | bytes, **options: object) -> str:
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return refusal(path, **options)


def write(path: Path, table: np.ndarray) -> Path:
    """Write a table in the format of the path's suffix, with columns x0, x1, …"""
    frame = pl.DataFrame(table, schema=[f"x{i}" for i in range(table.shape[1])])
    match path.suffix:
        case ".csv":
            frame.write_csv(path)
        case ".parquet":
            frame.write_parquet(path)
        case ".npz":
            np.savez_compressed(path, X=table)
        case ".npy":
            np.save(path, table)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy"])
def test_every_format_gives_back_the_same_numbers_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    table = read_table(write(tmp_path / f"t{suffix}", X))
    np.testing.assert_array_equal(table.X, X)
    assert table.X.dtype == np.float64
    assert table.X.flags.c_contiguous
    assert table.X.flags.writeable
    assert table.feature_names == ["x0", "x1"]
    assert table.y is None
    assert table.path == tmp_path / f"t{suffix}"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=arrays(np.float64, (3, 4), elements=st.floats(-1e18, 1e18)))
def test_csv_round_trips_any_numbers(tmp_path: Path, table: np.ndarray) -> None:
    np.testing.assert_array_equal(read_table(write(tmp_path / "t.csv", table)).X, table)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy"])
def test_the_label_column_leaves_the_features(tmp_path: Path, suffix: str) -> None:
    table = read_table(write(tmp_path / f"t{suffix}", np.c_[X, [0, 1, 1]]), label="x2")
    np.testing.assert_array_equal(table.X, X)
    np.testing.assert_array_equal(table.y, [0, 1, 1])
    assert table.y.dtype == np.int64
    assert table.feature_names == ["x0", "x1"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (["0", " 1", "0"], np.array([0, 1, 0])),
        (["0.0", "1.0", "2"], np.array([0, 1, 2])),
        (["0.5", "1", "2"], np.array([0.5, 1, 2])),
        (["normal", "odd", "7"], np.array(["normal", "odd", "7"])),
        (["nan", "odd", "NA"], np.array(["nan", "odd", "NA"])),
    ],
)
def test_labels_are_numbers_where_all_are_and_text_otherwise(
    tmp_path: Path, column: list[str], expected: np.ndarray
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("y,a\n" + "".join(f"{label},1\n" for label in column))
    y = read_table(path, label="y").y
    np.testing.assert_array_equal(y, expected)
    assert y.dtype.kind == expected.dtype.kind


def test_parquet_booleans_and_categories(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"a": [True, False], "b": [1, 2], "kind": pl.Series(["n", "odd"], dtype=pl.Categorical)}
    )
    frame.write_parquet(tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet", label="kind")
    np.testing.assert_array_equal(table.X, [[1, 1], [0, 2]])
    np.testing.assert_array_equal(table.y, ["n", "odd"])
    assert read_table(write(tmp_path / "u.parquet", X), label=None).y is None
    pl.DataFrame({"a": [1, 2], "y": [True, False]}).write_parquet(tmp_path / "v.parquet")
    y = read_table(tmp_path / "v.parquet", label="y").y
    assert (y.dtype, y.tolist()) == (np.int64, [1, 0])


def test_npz_as_adbench_writes_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "4_breastw.npz", X=np.arange(6, dtype=np.uint8).reshape(3, 2), y=np.array([0, 1, 0]))
    table = read_table(tmp_path / "4_breastw.npz")
    np.testing.assert_array_equal(table.X, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(table.y, [0, 1, 0])


def test_npz_with_a_single_array_and_with_a_label_under_another_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", anything=X)
    np.testing.assert_array_equal(read_table(tmp_path / "one.npz").X, X)
    np.savez(tmp_path / "two.npz", X=X, y=[0, 0, 0], kind=np.array([["a"], ["b"], ["a"]]))
    table = read_table(tmp_path / "two.npz", label="kind")
    np.testing.assert_array_equal(table.y, ["a", "b", "a"])
    assert table.X.shape == (3, 2)


def test_a_first_row_of_numbers_is_data(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbf1,2\r\n3, "4"\r\n'.replace(b' "4"', b"4"))
    table = read_table(path)
    np.testing.assert_array_equal(table.X, [[1, 2], [3, 4]])
    assert table.feature_names == ["x0", "x1"]


def test_one_row_is_enough_when_the_caller_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    np.testing.assert_array_equal(read_table(path, min_rows=1).X, [[1, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n3,old\n",
            "t.csv, row 2 (line 3), column 'b': found 'old', expected a number; "
            "encode the text, drop the column, or name it as the label.",
        ),
        ("1,2\n3,\n", "t.csv, row 2 (line 2), column 'x1': found no value; fill it in or drop the row."),
        (
            'a,"b\nc"\n1,?\n3,4\n',
            "t.csv, row 1 (line 3), column 'b\\nc': found '?', a missing value; fill it in or drop the row.",
        ),
        (
            "a,b\n1,NaN\n3,4\n",
            "t.csv, row 1 (line 2), column 'b': found 'NaN', a missing value; fill it in or drop the row.",
        ),
        (
            "a,b\n1,2\n-inf,4\n",
            "t.csv, row 2 (line 3), column 'a': found -inf; replace it with a finite number.",
        ),
        (
            "a,b\n1,2\n3,1e30\n",
            "t.csv, row 2 (line 3), column 'b': found 1e+30, above 1e+18 in size; rescale the column.",
        ),
        ("a,b\n", "t.csv: has 0 rows of data, expected at least 2; add rows."),
        ("a,b\n1,2\n", "t.csv: has 1 row of data, expected at least 2; add rows."),
        ("", "t.csv: is empty; write the data to it again."),
        ("\n1,2\n", "t.csv: line 1 is blank, expected column names or numbers; remove the line."),
        ("a,b,a\n1,2,3\n4,5,6\n", "t.csv: columns 1 and 3 are both named 'a'; rename one."),
        ("a,,b\n0,2,1\n1,5,1\n", "t.csv, column 2: has no name; name it."),
        (",,b\n0,2,1\n1,5,1\n", "t.csv, column 2: has no name; name it."),
        (
            "a b c\n1 2 x\n3 4 y\n",
            "t.csv: fields are not separated by commas; save it as comma-separated values.",
        ),
        ("a,b\r1,2\r3,4\r", "t.csv: lines end in a carriage return alone; save it with line feeds."),
        ("a;b\n1;2\n3;4\n", "t.csv: fields are not separated by commas; save it as comma-separated values."),
        ("a|b\n1|2\n3|4\n", "t.csv: fields are not separated by commas; save it as comma-separated values."),
        (
            "a,b\n1,2\n3,4,5\n",
            "t.csv, line 3: has 3 fields, but line 1 has 2; give every line the same number.",
        ),
        (
            "a,b\n1,2\n3\n",
            "t.csv, line 3: has 1 field, but line 1 has 2; give every line the same number.",
        ),
        (
            b"a,b\n1,2\n3,\xff\n",
            "t.csv: cannot be read as UTF-8 CSV ('utf-8' codec can't decode byte 0xff in position 10: "
            "invalid start byte); save it as UTF-8.",
        ),
    ],
)
def test_every_flaw_of_a_csv_gets_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert csv_refusal(tmp_path, text) == message


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_names_the_rows_is_left_out(tmp_path: Path, suffix: str) -> None:
    path, index = tmp_path / f"t{suffix}", ["ann", "bob", "cid"]
    frame = pd.DataFrame(X, columns=["a", "b"], index=index)
    frame.to_csv(path) if suffix == ".csv" else frame.to_parquet(path)
    table = read_table(path, columns=Infer())
    assert (table.feature_names, table.has_row_names) == (["a", "b"], True)
    np.testing.assert_array_equal(table.X, X)
    assert not read_table(path, columns=table.columns).unknown
    bare = tmp_path / "bare.csv"
    frame.to_csv(bare, index=False)
    plain = read_table(bare, columns=table.columns)
    assert not plain.has_row_names
    np.testing.assert_array_equal(plain.X, X)
    name = {".csv": "", ".parquet": "__index_level_0__"}[suffix]
    assert read_table(path, columns=Infer(drop=[name])).feature_names == ["a", "b"]


def test_columns_of_an_index_of_two_levels_are_left_out(tmp_path: Path) -> None:
    path, index = tmp_path / "t.parquet", [(2024, "ann"), (2024, "bob"), (2025, "ann")]
    frame = pd.DataFrame(X, columns=["a", "b"], index=pd.MultiIndex.from_tuples(index))
    frame.to_parquet(path)
    assert read_table(path).feature_names == ["a", "b"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
@pytest.mark.parametrize("y", [np.array([0, 1, 1]), np.array(["a", "1", "c"]), np.array([0.5, 1.0, 2.0])])
def test_labels_alone_are_those_of_the_table(tmp_path: Path, suffix: str, y: np.ndarray) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix == ".npz":
        np.savez(path, X=X, odd=y)
    else:
        frame = pl.DataFrame(X, schema=["a", "b"]).with_columns(odd=pl.Series(y))
        frame.write_csv(path) if suffix == ".csv" else frame.write_parquet(path)
    whole, alone = read_table(path, label="odd").y, read_labels(path, "odd")
    assert alone.dtype == whole.dtype
    np.testing.assert_array_equal(alone, whole)


def test_labels_that_cannot_be_used_get_their_line(tmp_path: Path) -> None:
    assert csv_refusal(tmp_path, "a,b\n1,2\n3,4\n", label="c") == "t.csv: has no column 'c'; it has 'a', 'b'."
    assert (
        csv_refusal(tmp_path, "a\n1\n2\n", label="a") == "t.csv: has no column of features; add at least one."
    )
    for column in (["odd", ""], ["1", ""]):
        text = "a,y\n" + "".join(f"1,{label}\n" for label in column)
        assert csv_refusal(tmp_path, text, label="y") == (
            "t.csv, row 2 (line 3), label 'y': found no value; fill it in or drop the row."
        )


def test_the_first_bad_cell_is_named_in_reading_order(tmp_path: Path) -> None:
    rows = [["1.0"] * 5 for _ in range(3000)]
    rows[2500][4] = "old"
    rows[2501][0] = "older"
    text = "a,b,c,d,e\n" + "\n".join(map(",".join, rows))
    assert csv_refusal(tmp_path, text).startswith("t.csv, row 2501 (line 2502), column 'e': found 'old'")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, None], "row 2, column 'a': found no value; fill it in or drop the row."),
        (
            ["1", "x"],
            "row 2, column 'a': found 'x', expected a number; "
            "encode the text, drop the column, or name it as the label.",
        ),
        ([1.0, np.inf], "row 2, column 'a': found inf; replace it with a finite number."),
        ([[1], [2]], "column 'a': holds List(Int64), expected numbers; convert or drop the column."),
    ],
)
def test_every_flaw_of_a_parquet_file_gets_its_line(tmp_path: Path, values: list, message: str) -> None:
    pl.DataFrame({"a": values, "b": [1, 2]}).write_parquet(tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == f"t.parquet, {message}"


def test_parquet_with_a_name_twice(tmp_path: Path) -> None:
    twice = pa.table([pa.array([1, 2]), pa.array([3, 4])], names=["a", "a"])
    pyarrow.parquet.write_table(twice, tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == "t.parquet: columns 1 and 2 are both named 'a'; rename one."
    pl.DataFrame({"a": [1, 2], " a": [3, 4]}).write_parquet(tmp_path / "t.parquet")
    assert refusal(tmp_path / "t.parquet") == "t.parquet: columns 1 and 2 are both named 'a'; rename one."


def test_blanks_around_a_name_are_none_of_it_in_any_type_of_file(tmp_path: Path) -> None:
    frame = pl.DataFrame({" a": [1, 2], "b ": [3, 4], " odd ": [0, 1]})
    frame.write_parquet(tmp_path / "t.parquet")
    frame.write_csv(tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        table = read_table(tmp_path / name, label="odd", columns=Columns.of_numbers(["a", "b"]))
        assert (table.X.tolist(), table.y.tolist()) == ([[1, 3], [2, 4]], [0, 1])
        assert read_labels(tmp_path / name, "odd").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros(4)}, "array 'X' has shape (4,), expected (rows, columns); reshape it."),
        (
            {"X": np.zeros((2, 2), complex)},
            "array 'X' has type complex128, expected real numbers; convert it.",
        ),
        ({"a": X, "b": X}, "has the arrays 'a', 'b'; name the table 'X'."),
        (
            {"X": X, "y": np.zeros(2)},
            "array 'y' has shape (2,) and type float64, expected one number or text for each of 3 rows; "
            "reshape or convert it.",
        ),
        ({"X": np.zeros((0, 3))}, "has 0 rows of data, expected at least 2; add rows."),
        ({"X": np.zeros((3, 0))}, "has no column of features; add at least one."),
    ],
)
def test_every_flaw_of_an_npz_file_gets_its_line(tmp_path: Path, content: dict, message: str) -> None:
    np.savez(tmp_path / "t.npz", **content)
    assert refusal(tmp_path / "t.npz") == f"t.npz: {message}"


def test_cells_of_arrays_are_checked_too(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([[1, 2], [np.nan, 1]]))
    assert refusal(tmp_path / "t.npy") == (
        "t.npy, row 2, column 'x0': found nan, a missing value; fill it in or drop the row."
    )


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Marker:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    np.savez(tmp_path / "t.npz", X=np.array([[Marker(), 1], [2, 3]], dtype=object))
    assert refusal(tmp_path / "t.npz") == (
        "t.npz, array 'X': holds Python objects, which are never unpickled; save numbers or text."
    )
    assert not (tmp_path / "ran").exists()


def npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_memory_is_taken(
    tmp_path: Path,
) -> None:
    claim = npy_header((10**7, 10**4)) + bytes(16)
    (tmp_path / "t.npy").write_bytes(claim)
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("X.npy", claim)
    for name, place in (("t.npy", "t.npy"), ("t.npz", "t.npz")):
        assert refusal(tmp_path / name) == (
            f"{place}, array 'X': its header claims shape (10000000, 10000), 800,000,000,000 bytes, "
            "but the file holds 16; it may be truncated or damaged, replace it."
        )


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path, suffix: str) -> None:
    content = write(tmp_path / f"whole{suffix}", X).read_bytes()
    path = tmp_path / f"t{suffix}"
    for length in range(1, len(content), 7):
        path.write_bytes(content[:length])
        assert refusal(path).endswith("it may be truncated or damaged, replace it.")


def test_files_that_are_not_there_or_not_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(tmp_path / "no.csv") == "no.csv: no such file; check the path."
    (tmp_path / "folder.csv").mkdir()
    assert refusal(tmp_path / "folder.csv") == (
        "folder.csv: is a folder, expected a file; name a file inside it."
    )
    (tmp_path / "t.xlsx").write_text("x")
    assert refusal(tmp_path / "t.xlsx") == (
        "t.xlsx: unknown file type '.xlsx'; expected .csv, .parquet, .npz or .npy."
    )

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    write(tmp_path / "t.csv", X)
    monkeypatch.setattr(Path, "open", forbidden)
    assert refusal(tmp_path / "t.csv") == "t.csv: cannot be read (Permission denied); check its permissions."


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy"])
def test_a_table_that_would_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write(tmp_path / f"t{suffix}", X)
    monkeypatch.setattr("invgan.data.files._available_memory", lambda: 10)
    message = refusal(tmp_path / f"t{suffix}")
    assert message.endswith(": needs 0.0 GiB of memory, 0.0 GiB is free; use fewer or smaller rows.")


def test_read_data_tells_images_from_tables(tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet", ".npz", ".npy"):
        assert isinstance(read_data(write(tmp_path / f"t{suffix}", X)), Table)
    np.savez(tmp_path / "i.npz", X=np.zeros((2, 1, 4, 4), np.uint8))
    images = read_data(tmp_path / "i.npz")
    assert isinstance(images, Images)
    with pytest.raises(InputError, match=r"these images have no labels, so no 'y'; leave the label out\."):
        read_data(tmp_path / "i.npz", label="y")


# Block by block


MANY = np.random.default_rng(0).normal(size=(1300, 3))


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 512 rows, and CSV files parsed 1,000 bytes at a time."""
    monkeypatch.setattr(tables, "BLOCK_CELLS", 1)
    monkeypatch.setattr(tables, "CSV_PIECE", 1000)


def all_blocks(path: Path, **options: str) -> list[Table | Images]:
    return list(read_blocks(path, **options))


def write_row_groups(path: Path, table: np.ndarray, size: int) -> None:
    columns = {f"x{i}": column for i, column in enumerate(table.T)}
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=size)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("label", [None, "x1"])
@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".csv", write),
        (".npz", write),
        (".npy", write),
        (".npy", lambda path, table: np.save(path, np.asfortranarray(table))),
        *((".parquet", lambda path, table, n=n: write_row_groups(path, table, n)) for n in (10, 700, 1300)),
    ],
    ids=["csv", "npz", "npy", "Fortran order", "130 row groups", "2 row groups", "1 row group"],
)
def test_blocks_are_the_whole_table_bit_for_bit(
    tmp_path: Path, suffix: str, save: Callable[[Path, np.ndarray], object], label: str | None
) -> None:
    path = tmp_path / f"t{suffix}"
    save(path, MANY)
    blocks, whole = all_blocks(path, label=label), read_table(path, label=label)
    assert [len(block.X) for block in blocks] == [512, 512, 276]
    features = [0, 1, 2] if label is None else [0, 2]
    np.testing.assert_array_equal(np.concatenate([block.X for block in blocks]), MANY[:, features])
    np.testing.assert_array_equal(whole.X, MANY[:, features])
    assert label is None or np.array_equal(whole.y, MANY[:, 1])
    for block in blocks:
        assert (block.feature_names, block.y, block.path) == (whole.feature_names, None, path)


def test_a_block_holds_as_many_numbers_whatever_the_number_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    for n_columns, n_rows in ((1, 2**19), (10, 52_224), (50, 10_240), (1000, 512), (4000, 512)):
        np.save(path, np.zeros((n_rows + 1, n_columns), np.int8))
        assert [len(block.X) for block in read_blocks(path)] == [n_rows, 1]


@pytest.mark.parametrize("header", [["n", "kind", "m"], []])
def test_a_csv_file_may_be_cut_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: list[str]
) -> None:
    path, label = tmp_path / "t.csv", "kind" if header else "x1"
    kinds = ["7", "two\nlines\r\nor three", 'a "quoted" word', ",", '"\n"', "é", '""', "last"]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *([i, kind, -i] for i, kind in enumerate(kinds))][not header :])
    for size in range(1, path.stat().st_size + 2):
        monkeypatch.setattr(tables, "CSV_PIECE", size)
        table = read_table(path, label=label)
        np.testing.assert_array_equal(table.X, [[i, -i] for i in range(len(kinds))])
        assert table.y.tolist() == kinds


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        (
            "5,x\n",
            "t.csv, row 3 (line 4), column 'b': found 'x', expected a number; encode the text, drop the "
            "column, or name it as the label.",
        ),
        ("5\n", "t.csv, line 4: has 1 field, but line 1 has 2; give every line the same number."),
        ("5,6,7\n", "t.csv, line 4: has 3 fields, but line 1 has 2; give every line the same number."),
        (
            "\n5,x\n",
            "t.csv, row 3 (line 5), column 'b': found 'x', expected a number; encode the text, drop the "
            "column, or name it as the label.",
        ),
    ],
)
def test_a_flaw_has_its_line_wherever_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flaw: str, message: str
) -> None:
    text = f"a,b\n1,2\n3,4\n{flaw}7,8\n9,0\n"
    for size in range(1, len(text) + 2):
        monkeypatch.setattr(tables, "CSV_PIECE", size)
        assert csv_refusal(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('note,price,size\n"a, b",4,5" x\n"two\nlines",3,5"\n"two\nlines",2,6"\n"two\nlines",3,6"\n', 2),
        ("what,size,n\n" + 'pipe,4" dia,3\n' * 60, 2),
        ('a,b\n1,2\n"two\nlines",3\nx"y,4\n"5,\n6",7\n', 5),
    ],
)
def test_a_quotation_mark_that_would_hide_commas_or_lines_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int
) -> None:
    for size in (2**22, 40):
        monkeypatch.setattr(tables, "CSV_PIECE", size)
        assert csv_refusal(tmp_path, text) == (
            f"t.csv, line {line}: has a quotation mark in the middle of a field; put the whole field in "
            "quotation marks, and write that mark twice."
        )


def test_quotation_marks_in_the_middle_of_a_field_are_read_where_they_hide_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('size,n\n4" x 5" board,1\n2" x 4" board,2\n', encoding="utf-8")
    table = read_table(path, label="size")
    assert table.y.tolist() == ['4" x 5" board', '2" x 4" board']


def test_a_quotation_mark_that_nothing_closes_does_not_take_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'a,b\n1,"2\n' + 1000 * "3,4\n"
    assert csv_refusal(tmp_path, text, read=all_blocks).endswith("truncated or damaged, replace it.")
    monkeypatch.setattr(tables, "CSV_PIECE", 100)
    monkeypatch.setattr("invgan.data.files._available_memory", lambda: 3000)
    assert csv_refusal(tmp_path, text, read=all_blocks).startswith("t.csv: needs 0.0 GiB of memory")


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy"])
def test_a_flaw_in_a_late_block_has_the_row_of_the_file(tmp_path: Path, suffix: str) -> None:
    table = MANY.copy()
    table[1111, 2] = np.inf
    path = write(tmp_path / f"t{suffix}", table)
    line = " (line 1113)" if suffix == ".csv" else ""
    message = f"t{suffix}, row 1112{line}, column 'x2': found inf; replace it with a finite number."
    assert refusal(path) == refusal(path, read=all_blocks) == message
    blocks = read_blocks(path)
    np.testing.assert_array_equal([next(blocks).X, next(blocks).X], table[:1024].reshape(2, 512, 3))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy"])
def test_files_without_rows_or_with_other_columns_have_no_blocks(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t{suffix}", np.empty((0, 2)))
    assert refusal(path, read=all_blocks) == f"t{suffix}: has 0 rows of data, expected at least 1; add rows."
    assert refusal(path, read=all_blocks, label="odd").endswith("has no column 'odd'; it has 'x0', 'x1'.")


def test_what_stands_in_a_column_that_is_left_out_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": [1, 2], "when": [None, [3]]}).write_parquet(path)
    (block,) = read_blocks(path, label="when")
    np.testing.assert_array_equal(block.X, [[1], [2]])
    assert block.y is None


def test_images_are_one_block(tmp_path: Path) -> None:
    path = tmp_path / "i.npy"
    np.save(path, np.zeros((7, 1, 2, 2), np.uint8))
    assert [block.X.shape for block in read_blocks(path)] == [(7, 1, 2, 2)]


_PEAK = """
import sys
from invgan.data import read_blocks, read_table, tables
tables.SAMPLE_ROWS = 10_000
def peak():
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
if sys.argv[2] == "blocks":
    n_rows = sum(len(block.X) for block in read_blocks(sys.argv[1]))
else:
    table = read_table(sys.argv[1], sample_seed=0)
    n_rows = len(table.X) + table.n_left_out
print(n_rows, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    ("suffix", "read"),
    [(".csv", "blocks"), (".parquet", "blocks"), (".npy", "blocks"), (".parquet", "sample")],
)
def test_a_file_is_read_in_less_memory_than_it_has_bytes(tmp_path: Path, suffix: str, read: str) -> None:
    path, n_rows = tmp_path / f"t{suffix}", 2_000_000
    if suffix == ".csv":
        n_rows = 1_500_000
        rows = np.random.default_rng(0).normal(size=(10_000, 10)).tolist()
        path.write_text(n_rows // len(rows) * "".join(f"{','.join(map(repr, row))}\n" for row in rows))
    elif suffix == ".npy":
        np.save(path, np.zeros((n_rows, 10)))
    else:
        write_row_groups(path, np.random.default_rng(0).random((n_rows, 10)), n_rows)
    command = [sys.executable, "-c", _PEAK, path, read]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    n_read, peak = map(int, done.stdout.split())
    assert n_read == n_rows
    assert peak < 0.8 * path.stat().st_size


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy"])
def test_a_sample_is_the_rows_whose_random_keys_are_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Keys are exchangeable, so every choice of 512 rows is equally likely; and it is one for any file."""
    monkeypatch.setattr(tables, "SAMPLE_ROWS", 512)
    path = write(tmp_path / f"t{suffix}", MANY)
    label = None if suffix in (".npz", ".npy") else "x1"
    for seed in range(3):
        chosen = np.sort(np.random.default_rng(seed).random(len(MANY)).argsort()[:512])
        sample = read_table(path, label=label, sample_seed=seed)
        np.testing.assert_array_equal(sample.X, MANY[chosen] if label is None else MANY[chosen][:, [0, 2]])
        assert label is None or np.array_equal(sample.y, MANY[chosen, 1])
        assert sample.n_left_out == len(MANY) - 512
    if suffix == ".npz":  # labels that lie beside the table
        np.savez(path, X=MANY, y=np.arange(len(MANY)))
        np.testing.assert_array_equal(read_table(path, sample_seed=seed).y, chosen)


@pytest.mark.usefixtures("_small_blocks")
def test_each_row_is_in_a_sample_with_the_same_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BLOCK_ROWS", 4)
    monkeypatch.setattr(tables, "SAMPLE_ROWS", 6)
    path, n_rows, n_draws = tmp_path / "t.npy", 20, 1500
    np.save(path, np.arange(n_rows)[:, None])
    samples = [read_table(path, sample_seed=seed).X[:, 0].astype(int) for seed in range(n_draws)]
    times = np.bincount(np.concatenate(samples), minlength=n_rows)
    expected, deviation = n_draws * 0.3, (n_draws * 0.3 * 0.7) ** 0.5
    assert (np.abs(times - expected) < 4 * deviation).all()
    assert ((times - expected) ** 2).sum() / deviation**2 < 45  # about χ² with 19 degrees, of which 0.1 %


@pytest.mark.usefixtures("_small_blocks")
def test_a_table_that_is_no_larger_than_the_sample_is_read_as_without(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", MANY)
    sample = read_table(path, sample_seed=0)
    np.testing.assert_array_equal(sample.X, MANY)
    assert sample.n_left_out == 0


@pytest.mark.usefixtures("_small_blocks")
def test_a_flaw_in_a_sample_has_the_row_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SAMPLE_ROWS", 512)
    chosen = np.sort(np.random.default_rng(0).random(len(MANY)).argsort()[:512])
    left_out = np.setdiff1d(np.arange(len(MANY)), chosen)
    bad = MANY.copy()
    bad[left_out, 0] = np.inf
    path = write(tmp_path / "t.csv", bad)
    np.testing.assert_array_equal(read_table(path, sample_seed=0).X, MANY[chosen])
    bad[chosen[-1], 1] = np.inf
    write(path, bad)
    row = chosen[-1] + 1
    assert refusal(path, sample_seed=0) == (
        f"t.csv, row {row} (line {row + 1}), column 'x1': found inf; replace it with a finite number."
    )


def test_a_samples_numbers_are_bounded_whatever_the_number_of_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "SAMPLE_CELLS", 2000)
    path = tmp_path / "t.npy"
    for n_columns, n_rows in ((1, 2000), (3, 666), (100, 512)):  # never less than a block's rows
        np.save(path, np.zeros((2500, n_columns), np.int8))
        assert read_table(path, sample_seed=0).X.shape == (n_rows, n_columns)


@pytest.mark.usefixtures("_small_blocks")
def test_lines_are_looked_through_once_however_many_blocks_end_in_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked = tmp_path / "t.csv", []
    path.write_text("a,b\n" + "1,\n2,3\n" * 700)
    monkeypatch.setattr(tables, "_refuse_ragged", looked.append)
    blocks = all_blocks(path, columns=Columns.of_numbers(["a", "b"]))
    assert [len(block.X) for block in blocks] == [512, 512, 376]
    assert looked == [path]


# Header, blank lines, long fields


def test_blank_lines_are_no_rows_and_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2\n\n3,"x\n\ny"\n,\n\n\n')
    frame = read_table(path, columns=Infer())
    assert frame.columns is not None
    assert frame.columns.names == ["a", "b"]
    assert len(frame.X) == 3  # a line of empty cells is one, a blank line in quotation marks is text
    assert csv_refusal(tmp_path, "a,b\n1,2\n\n3,x\n\n") == (
        "t.csv, row 2 (line 4), column 'b': found 'x', expected a number; encode the text, drop the column, "
        "or name it as the label."
    )


def test_in_a_single_column_a_blank_line_is_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n\n3\n")
    np.testing.assert_array_equal(read_table(tmp_path / "t.csv", columns=Infer()).X[:, 0], [1, np.nan, 3])


@pytest.mark.parametrize(
    ("first", "names"),
    [("0.1,?,3.5", None), ("1,na,nan", None), ("?,?,?", ["?"] * 3), ("a,?,3", ["a", "?", "3"])],
)
def test_a_first_line_of_numbers_and_gaps_is_no_header(
    tmp_path: Path, first: str, names: list[str] | None
) -> None:
    text = f"{first}\n1,2,3\n4,5,6\n"
    if names == ["?"] * 3:
        assert csv_refusal(tmp_path, text).startswith("t.csv: columns 1 and 2 are both named '?'")
        return
    (tmp_path / "t.csv").write_text(text)
    table = read_table(tmp_path / "t.csv", columns=Infer())
    assert (table.columns.names, len(table.X)) == ((names, 2) if names else (["x0", "x1", "x2"], 3))


def test_a_cell_may_be_longer_than_the_csv_modules_limit(tmp_path: Path) -> None:
    note = "z" * 200_000
    text = f"a,b\n1,{note}\n2,short\n3\n"
    assert csv_refusal(tmp_path, text, columns=Infer()) == (
        "t.csv, line 4: has 1 field, but line 1 has 2; give every line the same number."
    )


@pytest.mark.parametrize("header", ["x2,x1,x0", "x0,x1,height"])
def test_columns_whose_names_look_made_up_are_matched_by_them(tmp_path: Path, header: str) -> None:
    columns = Columns.of_numbers(["x0", "x1", "x2"])
    path = tmp_path / "t.csv"
    path.write_text(f"{header}\n1,2,3\n4,5,6\n")
    if "height" in header:
        assert refusal(path, columns=columns) == (
            "t.csv: has no column 'x2', which the model was fitted on; add it."
        )
    else:
        np.testing.assert_array_equal(read_table(path, columns=columns).X, [[3, 2, 1], [6, 5, 4]])


def test_columns_without_names_are_matched_by_position(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("1,2,3\n4,5,6\n")
    for names in (["x0", "x1", "x2"], ["c", "x1", "a"]):
        table = read_table(path, columns=Columns.of_numbers(names))
        np.testing.assert_array_equal(table.X, [[1, 2, 3], [4, 5, 6]])
    path.write_text("c,b,a\n1,2,3\n4,5,6\n")
    table = read_table(path, columns=Columns.of_numbers(["x0", "x1", "x2"]))
    np.testing.assert_array_equal(table.X, [[1, 2, 3], [4, 5, 6]])


def test_a_wide_decimal_is_a_number(tmp_path: Path) -> None:
    numbers = pa.array([decimal.Decimal("1.5"), decimal.Decimal("-2")], pa.decimal256(60, 10))
    pyarrow.parquet.write_table(pa.table({"a": numbers, "b": [1, 2]}), tmp_path / "t.parquet")
    np.testing.assert_array_equal(read_table(tmp_path / "t.parquet").X, [[1.5, 1], [-2, 2]])
