"""Tables: what is read from each format, and the one line for each thing that can be wrong."""

import io
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from invgan.data import Images, Table, read_data, read_table
from invgan.errors import InputError

X = np.array([[1.5, -2.0], [3.25, 4e17], [0.0, 1e-300]])


def refusal(path: Path, **options: object) -> str:
    """The one line with which a file is refused, without its folder."""
    with pytest.raises(InputError) as error:
        read_table(path, **options)
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
        (",a\n0,2\n1,5\n", "t.csv, column 1: has no name; name it, or drop it if it is a row index."),
        ("a;b\n1;2\n3;4\n", "t.csv: fields are not separated by commas; save it as comma-separated values."),
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
            "invalid start byte); it may be truncated or damaged, replace it.",
        ),
    ],
)
def test_every_flaw_of_a_csv_gets_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert csv_refusal(tmp_path, text) == message


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
