"""What the columns of a table hold: found out from the rows that a model is fitted on, and kept with it."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

import numpy as np
import polars as pl

from invgan.errors import InputError

# The square of a larger value, summed over a few hundred columns, overflows float32.
LIMIT = 1e18
MAX_CATEGORIES = 32
"""Values of a category that get an indicator of their own; rarer ones, and those never seen, have none."""
MISSING = ("nan", "-nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "none", "?", "")
"""Text that stands for a value that is not known, in any case."""
_BOOLEANS = ({"false", "true"}, {"no", "yes"}, {"f", "t"}, {"n", "y"})
"""Pairs of words; of a letter alone, such as the F of a sex, nobody knows which pair it is of."""
_MONTH = (
    r"(jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|"
    r"nov(ember)?|dec(ember)?)"
)
_DATE = (
    r"(?i)^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})|"
    rf"{_MONTH} \d{{1,2}},? \d{{4}}|\d{{1,2}}[ -]{_MONTH}[ -]\d{{4}})([T ].*)?$"
)
_SIGN, _CURRENCY, _SEPARATORS = "[-+\u2212]", "[$€£¥]", "[,'\u2019\u00a0\u202f]"
_DIGITS = rf"([1-9]\d{{0,2}}({_SEPARATORS}\d{{3}})+|\d+)(\.\d*)? ?({_CURRENCY}|%)?"
_BRACKETED = rf"^\({_CURRENCY}? ?{_DIGITS}\)$"
_WRITTEN = rf"^{_SIGN}?{_CURRENCY}?{_SIGN}? ?{_DIGITS}$|{_BRACKETED}"
"""A number as people write it: 24,977 or $58.45 or 82.6 % or −3, its minus no hyphen; not 0,665.

In brackets, as accounts have it, it is negative."""
_UNIT = rf"({_CURRENCY}|%)"
_DECIMAL_COMMA = r"^[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+$"
_ID_NAME = re.compile(r"(^|[_\W])(id|uuid|guid)$|[a-z]I[Dd]$", re.IGNORECASE)

Refuse = Callable[[int, str, object, float], NoReturn]
"""Raises for the cell in a row (from 0) and a column, given what stands there and the number it makes."""


@dataclass(frozen=True)
class Column:
    """One column of a file.

    Attributes
    ----------
    name : str
    kind : {"number", "written", "boolean", "category", "dropped", "empty", "distinct"}
        "written" are numbers with thousands separators, a sign of a currency or of percent. The last three
        take no part: "empty" has no value, "distinct" a different text in every row.
    values : tuple of str
        A category's, each with an indicator; a row with any other value has 0 in all of them.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether it becomes numbers."""
        return self.is_number or self.kind in ("boolean", "category")

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers, however they are written."""
        return self.kind in ("number", "written")

    @property
    def features(self) -> list[str]:
        """Names of the numbers that it becomes."""
        if not self.is_used:
            return []
        return [f"{self.name}={value}" for value in self.values] or [self.name]


@dataclass(frozen=True)
class Columns:
    """The columns of a table, and how a row of them becomes numbers.

    Numbers stay as they are, booleans become 0 and 1, and a category one indicator for each of its values
    (the 32 most frequent). A missing value becomes NaN, in all indicators of its category.

    Parameters
    ----------
    columns : tuple of Column

    Examples
    --------
    >>> frame = pl.DataFrame({"age": ["3", "?", "5"], "pet": ["cat", "dog", "cat"], "fed": ["yes", "no", ""]})
    >>> columns = Columns.infer(frame, "pets.csv")
    >>> columns.features
    ['age', 'pet=cat', 'pet=dog', 'fed']
    >>> columns.encode(frame).tolist()
    [[3.0, 1.0, 0.0, 1.0], [nan, 0.0, 1.0, 0.0], [5.0, 1.0, 0.0, nan]]
    >>> columns.encode(pl.DataFrame({"age": [8], "pet": ["newt"], "fed": [True]})).tolist()
    [[8.0, 0.0, 0.0, 1.0]]
    """

    columns: tuple[Column, ...]

    @classmethod
    def of_numbers(cls, names: Sequence[str]) -> Self:
        """Columns that all hold numbers."""
        return cls(tuple(Column(name, "number") for name in names))

    @classmethod
    def infer(cls, frame: pl.DataFrame, place: object, *, drop: Sequence[str] = ()) -> Self:
        """Find out what the columns hold.

        Text is a boolean if all that is known of it is, and a number or a date if most is: among numbers the
        rest is then a mistake, which :meth:`encode` names. $1,234.50 and 12 % are numbers, 1234.5 and 12.
        Other text is a category.

        Parameters
        ----------
        frame : polars.DataFrame
            The rows, without blanks around text.
        place : object
            The file, for messages.
        drop : sequence of str
            Columns that are to take no part.

        Raises
        ------
        InputError
            A column holds dates, numbers with a decimal comma, or what is neither number nor text; or none
            holds anything.
        """
        columns = cls(
            tuple(
                Column(name, "dropped") if name in drop else _inferred(frame[name], place)
                for name in frame.columns
            )
        )
        features = columns.features
        if not features:
            raise InputError(f"{place}: no column has values to learn from; add a column of features.")
        if twice := next((name for i, name in enumerate(features) if name in features[:i]), None):
            raise InputError(
                f"{place}: has a column {twice!r}, and a category that has an indicator of this name; "
                "rename one."
            )
        return columns

    @property
    def names(self) -> list[str]:
        """The columns of the file."""
        return [column.name for column in self.columns]

    @property
    def features(self) -> list[str]:
        """Names of the numbers that a row becomes."""
        return [feature for column in self.columns for feature in column.features]

    def encode(self, frame: pl.DataFrame, refuse: Refuse | None = None, *, place: object = "X") -> np.ndarray:
        """Turn rows into numbers, shape (n, D), float64, NaN where a value is missing.

        Parameters
        ----------
        frame : polars.DataFrame
            With these columns, by name.
        refuse : callable, optional
            What to raise for text among numbers, infinities and the like; by default a plain InputError.
        place : object
            The file, for messages.

        Raises
        ------
        InputError
            A column holds dates, lists or the like, or a cell is refused.
        """
        refuse = refuse or _refuse
        used = [column for column in self.columns if column.is_used]
        for column in used:
            dtype = frame[column.name].dtype
            if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)):
                expected = "text" if column.kind == "category" else "numbers"
                raise InputError(
                    f"{place}, column {column.name!r}: holds {dtype}, but the model was fitted on "
                    f"{expected}; convert it."
                )
        return np.concatenate([_encoded(frame[column.name], column, refuse) for column in used], axis=1)

    def unknown(self, frame: pl.DataFrame) -> dict[str, set[str]]:
        """List, by column, the values of categories that have no indicator."""
        found = {}
        for column in self.columns:
            if column.kind == "category":
                series = _known(frame[column.name].cast(pl.String)).drop_nulls()
                if others := set(series.unique().to_list()) - set(column.values):
                    found[column.name] = others
        return found

    def notes(self, X: np.ndarray, *, n_left_out: int = 0) -> list[str]:
        """Say what a user should know of encoded rows before a model is fitted on them.

        Parameters
        ----------
        X : numpy.ndarray of shape (n, D)
            What :meth:`encode` returned.
        n_left_out : int, default 0
            How many more rows there are, of which these are a sample.

        Returns
        -------
        list of str
            A line for each kind of trouble: missing values, columns that are left out, constant, equal, or
            that look like a number of the row, and categories that many rows have a rare value of.
        """
        notes = []
        if n_missing := int(np.isnan(X).sum()):
            notes.append(
                f"{n_missing:,} of {X.size:,} values are missing; a row is judged by those that it has."
            )
        for kind, reason in (("empty", "has no value"), ("distinct", "holds a different text in every row")):
            if unused := [column.name for column in self.columns if column.kind == kind]:
                notes.append(f"Left out, as it {reason}: {listed(unused)}.")
        for name, n_rare in self._rare_values(X):
            notes.append(
                f"Column {name!r} has none of its {MAX_CATEGORIES} most frequent values in {n_rare:,} of "
                f"{len(X):,} rows, which are alike in it; if it holds numbers, write them without text, "
                f"otherwise you may leave it out with --drop {name}."
            )
        names = self.features
        with np.errstate(invalid="ignore"):
            constant = [name for name, x in zip(names, X.T, strict=True) if _is_constant(x)]
        if constant:
            notes.append(f"Constant, so that nothing is learned from it: {listed(constant)}.")
        first: dict[bytes, str] = {}
        twins = []
        for name, x in zip(names, X.T, strict=True):
            if name not in constant and (twin := first.setdefault(x.tobytes(), name)) != name:
                twins.append(f"{twin!r} = {name!r}")
        if twins:
            shown = "; ".join(twins[:8]) + (f"; … ({len(twins)} in all)" if len(twins) > 8 else "")
            notes.append(f"Equal in every row, so that they count twice: {shown}. Leave one out with --drop.")
        numbers = {column.name for column in self.columns if column.is_number}
        ids = [
            name
            for name, x in zip(names, X.T, strict=True)
            if name in numbers and _is_id(name, x, n_left_out)
        ]
        notes += [
            f"Column {name!r} looks like a number of the row, which says nothing about it; "
            f"leave it out with --drop {name}."
            for name in ids
        ]
        return notes

    def _rare_values(self, X: np.ndarray) -> Iterator[tuple[str, int]]:
        """Name the categories that a tenth of the rows have a rare value of, and how many do."""
        end = 0
        for column in self.columns:
            start, end = end, end + len(column.features)
            if len(column.values) == MAX_CATEGORIES:
                n_rare = int((X[:, start:end] == 0).all(1).sum())
                if n_rare > len(X) / 10:
                    yield column.name, n_rare

    def to_json(self) -> list[dict[str, Any]]:
        """Return what a model file keeps."""
        return [asdict(column) | {"values": list(column.values)} for column in self.columns]

    @classmethod
    def from_json(cls, columns: Sequence[Mapping[str, Any]]) -> Self:
        """Rebuild them from what :meth:`to_json` returned."""
        for column in columns:
            texts = (column["name"], column["kind"], *column["values"])
            kinds = ("number", "written", "boolean", "category", "dropped", "empty", "distinct")
            if column["kind"] not in kinds or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"it has no column like {column}")
        return cls(tuple(Column(c["name"], c["kind"], tuple(c["values"])) for c in columns))


def listed(names: Iterable[str]) -> str:
    """A few names, quoted, for a message."""
    quoted = [repr(name) for name in names]
    return ", ".join(quoted[:8]) + (f", … ({len(quoted)} in all)" if len(quoted) > 8 else "") or "none"


def _known(series: pl.Series) -> pl.Series:
    """Text with null for whatever stands for a missing value."""
    return series.set(series.str.to_lowercase().is_in(MISSING), None)


def _inferred(series: pl.Series, place: object) -> Column:
    name, dtype = series.name, series.dtype
    if dtype.is_temporal():
        _refuse_dates(series.drop_nulls(), place)
    if dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        known = series.cast(pl.Float64, strict=False).fill_nan(None).drop_nulls()
        kind = "boolean" if dtype == pl.Boolean else "number"
        return Column(name, kind if len(known) else "empty")
    if dtype != pl.String:
        raise InputError(
            f"{place}, column {name!r}: holds {dtype}, expected numbers or text; convert or drop the column."
        )
    known = _known(series).drop_nulls()
    if known.is_empty():
        return Column(name, "empty")
    plain = known.cast(pl.Float64, strict=False).is_not_null()
    written = known.str.contains(_WRITTEN) & ~plain
    # Where all are in brackets, these say nothing: (1) and (2) are names of notes.
    if (plain | written).sum() > len(known) / 2 and not known.str.contains(_BRACKETED).all():
        _refuse_units(known.filter(plain | written), place)
        return Column(name, "written" if written.any() else "number")
    if (commas := known.filter(known.str.contains(_DECIMAL_COMMA))).len() > len(known) / 2:
        raise InputError(
            f"{place}, column {name!r}: holds numbers with a decimal comma such as {commas[0]}; write them "
            "with a point, or drop the column."
        )
    dates = known.filter(known.str.contains(_DATE))
    if len(dates) > len(known) / 2:
        _refuse_dates(dates, place)
    counts = known.value_counts().sort(["count", name], descending=[True, False])
    values = counts[name].to_list()
    words = {value.lower() for value in values}
    if any(words <= pair and (words == pair or len(max(words)) > 1) for pair in _BOOLEANS):
        return Column(name, "boolean")
    if len(values) == len(known) > MAX_CATEGORIES:
        return Column(name, "distinct")
    return Column(name, "category", tuple(sorted(values[:MAX_CATEGORIES])))


def _refuse_units(numbers: pl.Series, place: object) -> None:
    """Refuse amounts in two currencies, and shares of which some are in percent."""
    units = numbers.str.extract(_UNIT).fill_null("")
    kinds = units.unique(maintain_order=True).to_list()
    if "%" not in kinds:
        kinds = [unit for unit in kinds if unit]  # 3 beside $4 has lost its sign; beside 4 % it is 300 %
    if len(kinds) > 1:
        one, other = (numbers.filter(units == unit)[0] for unit in kinds[:2])
        raise InputError(
            f"{place}, column {numbers.name!r}: holds {one} and {other}; write all in the same unit, or drop "
            "the column."
        )


def _refuse_dates(known: pl.Series, place: object) -> None:
    example = f" such as {known[0]}" if len(known) else ""
    raise InputError(
        f"{place}, column {known.name!r}: holds dates{example}, which have no density; turn them into "
        "numbers (days since a day, hour of the day), or drop the column."
    )


def _encoded(series: pl.Series, column: Column, refuse: Refuse) -> np.ndarray:
    """A column's numbers, shape (n, its features)."""
    if column.kind == "category":
        known = _known(series.cast(pl.String))
        indicators = [(known == value).cast(pl.Float64).fill_null(np.nan) for value in column.values]
        return np.stack([indicator.to_numpy() for indicator in indicators], axis=1)
    text = series.dtype == pl.String
    known = _known(series) if text else series
    if text and column.kind == "boolean":
        lower = known.str.to_lowercase()
        negative, positive = (lower.is_in([sorted(pair)[i] for pair in _BOOLEANS]) for i in (0, 1))
        words = pl.select(pl.when(negative).then(0.0).when(positive).then(1.0)).to_series()
        numbers = words.fill_null(known.cast(pl.Float64, strict=False))
    else:
        if text:
            # A column that had no units has none later either.
            written = known.str.contains(_WRITTEN) & ((column.kind == "written") | ~known.str.contains(_UNIT))
            bare = known.str.replace(r"^\((.*)\)$", "-$1")
            bare = bare.str.replace_all(rf"{_CURRENCY}|{_SEPARATORS}|[% ]", "")
            bare = bare.str.replace_all("\u2212", "-", literal=True)
            known = bare.zip_with(written.fill_null(False), known)
        numbers = known.cast(pl.Float64, strict=False)
    values = numbers.fill_null(np.nan).to_numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        usable = np.abs(values) <= LIMIT
    missing = np.isnan(values) & (known.is_null() | (False if text else numbers.is_nan())).to_numpy()
    if column.kind == "boolean":
        usable &= (values == 0) | (values == 1)
    bad = ~(usable | missing)
    if bad.any():
        row = int(bad.argmax())
        refuse(row, series.name, series[row], float(values[row]))
    return values[:, None]


def wanted(value: float) -> str:
    """What should stand where a number was refused."""
    return "0 or 1" if abs(value) <= LIMIT else "a finite number"


def _refuse(row: int, name: str, found: object, value: float) -> NoReturn:
    raise InputError(f"row {row + 1}, column {name!r}: found {found!r}, expected {wanted(value)}.")


def _is_constant(x: np.ndarray) -> bool:
    known = x[~np.isnan(x)]
    return known.size == 0 or bool((known == known[0]).all())


def _is_id(name: str, x: np.ndarray, n_left_out: int) -> bool:
    """Whether all are different whole numbers, and either have no gap or are in a column named for it.

    Rows that were left out may have what stands in a gap.
    """
    if len(x) < 10 or np.isnan(x).any() or (x != np.rint(x)).any() or len(np.unique(x)) < len(x):
        return False
    return bool(np.ptp(x) < len(x) + n_left_out) or _ID_NAME.search(name) is not None
