"""Columns: what they hold is what stands in them, and a row becomes the same numbers ever after."""

import datetime
import re

import numpy as np
import polars as pl
import pytest

from invgan import InputError
from invgan.data import Column, Columns, Infer, read_blocks, read_table


def kind(values):
    return Columns.infer(pl.DataFrame({"a": ["1"] * len(values), "b": values}), "t.csv").columns[1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "?", "2.5e3", "na"], Column("b", "number")),
        (["1", "2", "red", "N/A"], Column("b", "number")),  # a mistake, which encoding names
        (["24,977", "950", "n/a", "-1,234,567.5"], Column("b", "written")),
        (["12%", "7.5 %"], Column("b", "written")),
        (["$58.45", "-$3", "$ 1,200", "9 $", "7"], Column("b", "written")),
        (["1,234", "0,665", "2,345"], Column("b", "written")),  # a mistake, or all have decimal commas
        (["1", "2", "1,200"], Column("b", "written")),
        (["51'257", "1\u202f200", "\u22120.5"], Column("b", "written")),
        (["5", "(12)"], Column("b", "written")),
        (["(1)", "(2)"], Column("b", "category", ("(1)", "(2)"))),
        (["+49 205 843", "+49 205 844"], Column("b", "category", ("+49 205 843", "+49 205 844"))),
        (["1,2,3", "4,5,6"], Column("b", "category", ("1,2,3", "4,5,6"))),
        (["12 kg", "7 kg"], Column("b", "category", ("12 kg", "7 kg"))),
        (["1", "red", "blue", ""], Column("b", "category", ("1", "blue", "red"))),
        (["True", "false", None], Column("b", "boolean")),
        (["YES", "?", "no"], Column("b", "boolean")),
        (["yes", "yes"], Column("b", "boolean")),
        (["F", "t"], Column("b", "boolean")),
        (["F", "F", "?"], Column("b", "category", ("F",))),
        (["n", "N"], Column("b", "category", ("N", "n"))),
        (["yes", "true"], Column("b", "category", ("true", "yes"))),
        (["", "?", None], Column("b", "empty")),
        ([None, None], Column("b", "empty")),
        ([float("nan")] * 2, Column("b", "empty")),
        ([True, False, None], Column("b", "boolean")),
        ([1, 0], Column("b", "number")),
        ([f"p{i}" for i in range(33)], Column("b", "distinct")),
        ([f"p{i}" for i in range(32)], Column("b", "category", tuple(sorted(f"p{i}" for i in range(32))))),
    ],
)
def test_what_a_column_holds(values, expected):
    assert kind(values) == expected


def test_the_most_frequent_values_have_indicators_and_the_others_none():
    values = [f"v{i:02}" for i in range(40)] + [f"v{i:02}" for i in range(8, 40)]
    column = kind(values)
    assert column.values == tuple(f"v{i:02}" for i in range(8, 40))
    frame = pl.DataFrame({"b": ["v00", "v08", "never seen"]})
    np.testing.assert_array_equal(Columns((column,)).encode(frame).sum(1), [0, 1, 0])
    assert Columns((column,)).unknown(frame) == {"b": {"v00", "never seen"}}


@pytest.mark.parametrize(
    "values",
    [
        ["2024-01-31", "?"],
        ["31.1.2024"],
        ["1/31/24"],
        ["2024-01-31T10:00:00"],
        ["Jan 31, 2024"],
        ["31 January 2024"],
        ["31-JAN-2024", "soon", "1-feb-2024"],
        [datetime.date(2024, 1, 31)],
    ],
)
def test_dates_are_refused_with_advice(values):
    example = "2024-01-31" if not isinstance(values[0], str) else values[0]
    message = (
        f"t.csv, column 'b': holds dates such as {example}, which have no density; turn them into numbers "
        "(days since a day, hour of the day), or drop the column."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        kind(values)


def test_a_column_of_dates_is_told_by_most_of_its_values():
    with pytest.raises(InputError, match=r"^t\.csv, column 'b': holds dates such as 2020-01-05, which have"):
        kind(["unknown"] + ["2020-01-05"] * 59)
    half = ["2020-01-05", "unknown", "Mayor 5 2020"]
    assert kind(half) == Column("b", "category", tuple(sorted(half)))


def test_written_numbers_are_the_numbers_that_they_stand_for():
    cells = ["$1,234.50", "-$3", "9 $", "?", "+7", "1e3", "-1,234,567", "\u22123", "(5,125.73)", "($ 8)"]
    frame = pl.DataFrame({"b": cells})
    columns = Columns.infer(frame, "t.csv")
    expected = [1234.5, -3, 9, np.nan, 7, 1000, -1234567, -3, -5125.73, -8]
    np.testing.assert_array_equal(columns.encode(frame)[:, 0], expected)
    again = Columns.from_json(columns.to_json())
    assert again == columns
    assert again.encode(pl.DataFrame({"b": [3.5]})).tolist() == [[3.5]]


@pytest.mark.parametrize(
    "cell", ["1,23", "12,34,567", "$", "%", "5 % 3", "$$3", "1,234,", "a1", "0,665", "(-3)", "(3"]
)
def test_a_mistake_among_written_numbers_is_named(cell):
    columns = Columns.infer(pl.DataFrame({"b": ["1,234", "2,345", "3"]}), "t.csv")
    message = f"row 2, column 'b': found {cell!r}, expected a finite number."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        columns.encode(pl.DataFrame({"b": ["1", cell]}))


@pytest.mark.parametrize("values", [["38.9%", "0.41", "?"], ["9.5 €", "$4", "3"], ["£1", "2 %"]])
def test_numbers_in_two_units_are_refused(values):
    found = f"{values[0]} and {values[1]}"
    message = f"t.csv, column 'b': holds {found}; write all in the same unit, or drop the column."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        kind(values)


def test_plain_numbers_may_have_separators_later_and_no_units():
    columns = Columns.infer(pl.DataFrame({"b": ["1", "2", "3.5"]}), "t.csv")
    assert columns.encode(pl.DataFrame({"b": ["1,012.50", "7"]})).tolist() == [[1012.5], [7.0]]
    with pytest.raises(InputError, match=r"^row 1, column 'b': found '5 %', expected a finite number\.$"):
        columns.encode(pl.DataFrame({"b": ["5 %"]}))


def test_numbers_with_a_decimal_comma_are_refused():
    message = (
        "t.csv, column 'b': holds numbers with a decimal comma such as 3,14; write them with a point, or "
        "drop the column."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        kind(["3,14", "-12,5", "0,665", "unknown"])
    with pytest.raises(
        InputError, match=r"^t\.csv, column 'b': holds numbers with a decimal comma such as 2"
    ):
        kind(["2.135,45", "1.200,00", "3,5"])


def test_a_category_of_many_rare_values_is_named():
    weights = [f"{i}.5 kg" for i in range(100)]
    colours = ["red", "blue"] * 50
    few_rare = [f"p{i % 32}" for i in range(96)] + ["q0", "q1", "q2", "q3"]
    frame = pl.DataFrame({"w": weights[:99] + weights[:1], "c": colours, "p": few_rare, "n": [1.5, 2.5] * 50})
    columns = Columns.infer(frame, "t.csv")
    assert columns.notes(columns.encode(frame)) == [
        "Column 'w' has none of its 32 most frequent values in 67 of 100 rows, which are alike in it; if it "
        "holds numbers, write them without text, otherwise you may leave it out with --drop w."
    ]


def test_a_column_that_is_dropped_may_hold_anything_and_be_absent_later(tmp_path):
    pl.DataFrame({"a": [1, 2], "when": ["2024-01-31"] * 2}).write_csv(tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv", columns=Infer(drop=("when",)))
    assert table.feature_names == ["a"]
    pl.DataFrame({"a": [3]}).write_csv(tmp_path / "u.csv")
    assert read_table(tmp_path / "u.csv", columns=table.columns, min_rows=1).X.tolist() == [[3.0]]


def test_a_file_of_any_type_becomes_the_same_numbers(tmp_path):
    frame = pl.DataFrame({"n": [1.5, None, -2.0], "flag": [True, None, False], "kind": ["a", "b", None]})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_parquet(tmp_path / "t.parquet")
    expected = [[1.5, 1, 1, 0], [np.nan, np.nan, 0, 1], [-2, 0, np.nan, np.nan]]
    for suffix in ("csv", "parquet"):
        table = read_table(tmp_path / f"t.{suffix}", columns=Infer())
        np.testing.assert_array_equal(table.X, expected)
        assert table.feature_names == ["n", "flag", "kind=a", "kind=b"]
        blocks = [block.X for block in read_blocks(tmp_path / "t.csv", columns=table.columns)]
        np.testing.assert_array_equal(np.concatenate(blocks), expected)
        assert Columns.from_json(table.columns.to_json()) == table.columns


def test_the_first_cell_that_fits_no_column_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("n,flag\n1,yes\n2,no\n3,maybe\n")
    columns = Columns((Column("n", "number"), Column("flag", "boolean")))
    message = f"{path}, row 3 (line 4), column 'flag': found 'maybe', expected a number;"
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        read_table(path, columns=columns)
    path.write_text("n,flag\n1,yes\n2,1\n3,0.5\n")
    message = (
        f"{path}, row 3 (line 4), column 'flag': found '0.5', expected yes or no, as the model was fitted "
        "on; correct it."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_table(path, columns=columns)
    message = "row 1, column 'flag': found 7, expected 0 or 1."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        columns.encode(pl.DataFrame({"n": [1], "flag": [7]}))


def test_a_short_line_is_no_missing_value(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3\n5,\n")
    message = f"{path}, line 3: has 1 field, but line 1 has 2; give every line the same number."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_table(path, columns=Infer())


def test_a_number_of_the_row_is_told_from_a_count():
    n = np.arange(20.0)
    X = np.c_[n + 100, n**2, np.r_[n[:-1], 3], n**2]
    columns = Columns.of_numbers(["a", "patientId", "b", "c"])
    assert [note.split(" looks")[0] for note in columns.notes(X) if "looks" in note] == [
        "Column 'a'",
        "Column 'patientId'",
    ]


def test_a_number_of_the_row_is_told_in_a_sample_whose_gaps_other_rows_may_fill():
    kept = np.sort(np.random.default_rng(0).permutation(100)[:20]) + 7.0
    columns = Columns.of_numbers(["a"])
    assert columns.notes(kept[:, None]) == []
    assert len(columns.notes(kept[:, None], n_left_out=80)) == 1
    assert columns.notes(10 * kept[:, None], n_left_out=80) == []


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "age",
            [datetime.date(2020, 1, 1)],
            "X, column 'age': holds Date, but the model was fitted on numbers; convert it.",
        ),
        (
            "age",
            [[1.0, 2.0]],
            "X, column 'age': holds List(Float64), but the model was fitted on numbers; convert it.",
        ),
        (
            "pet",
            [[b"x"]],
            "X, column 'pet': holds List(Binary), but the model was fitted on text; convert it.",
        ),
    ],
)
def test_a_column_of_another_kind_is_refused(column, values, message):
    columns = Columns.infer(pl.DataFrame({"age": [1.0, 2.0], "pet": ["cat", "dog"]}), "t.csv")
    frame = pl.DataFrame({"age": [1.0], "pet": ["cat"]}).with_columns(pl.Series(column, values))
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        columns.encode(frame)


def test_a_column_named_as_an_indicator_is_refused():
    frame = pl.DataFrame({"pet": ["cat", "dog"], "pet=cat": [1, 2]})
    message = "t.csv: has a column 'pet=cat', and a category that has an indicator of this name; rename one."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Columns.infer(frame, "t.csv")
