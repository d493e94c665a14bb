"""CIFAR's pickled batches, read without unpickling.

A pickle is a program for a stack machine. `read_batch` runs only the handful of instructions that build plain
values; a call that the program asks for is written down, never made, and of those only the ones that describe
a NumPy array are understood.
"""

import math
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from invgan.data.files import readable, require_memory
from invgan.errors import InputError

_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE"}
_VALUES |= {"BINBYTES", "SHORT_BINBYTES"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_GLOBALS = _RECONSTRUCT | {"numpy ndarray", "numpy dtype", "_codecs encode"}


@dataclass(frozen=True)
class _Global:
    """The name of a function or class; only ever a name."""

    name: str


@dataclass(eq=False)
class _Call:
    """A call that was asked for and not made, and the state to be set on its result."""

    function: _Global
    arguments: tuple[Any, ...]
    state: tuple[Any, ...] | None = None


def read_batch(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of numbers, text, lists and numeric NumPy arrays; run nothing.

    Parameters
    ----------
    path : pathlib.Path
        A file in pickle protocol 2 or 3, as Python 2 or 3 wrote it.

    Returns
    -------
    dict
        The dictionary; Python 2's strings come back as str, byte for byte.

    Raises
    ------
    InputError
        If the file is damaged, or asks for anything else: the message names the instruction or the global.

    Examples
    --------
    >>> import pathlib, pickle, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "data_batch_1")
    >>> _ = path.write_bytes(pickle.dumps({"data": np.arange(3, dtype=np.uint8)}, protocol=2))
    >>> read_batch(path)
    {'data': array([0, 1, 2], dtype=uint8)}
    """
    with readable(path, "a pickled batch"):
        require_memory(path, 3 * path.stat().st_size)
        content = _run(path)
        if not isinstance(content, dict):
            raise InputError(f"{path}: its pickle holds a {type(content).__name__}, expected a dictionary.")
        return {_text(key): _value(path, value) for key, value in content.items()}


def _run(path: Path) -> Any:
    """Run the pickle's harmless instructions and return what is left on the stack."""
    stack: list[Any] = []
    marked: list[list[Any]] = []  # the stacks below each open mark
    memo: dict[int, Any] = {}
    with path.open("rb") as file:
        argument: Any
        for opcode, argument, _ in pickletools.genops(file):
            match opcode.name:
                case "PROTO":
                    pass
                case name if name in _VALUES:
                    stack.append(argument)
                case name if name in _CONSTANTS:
                    stack.append(_CONSTANTS[name])
                case name if name in _TUPLES:
                    size = _TUPLES[name]
                    stack, items = stack[: len(stack) - size], stack[len(stack) - size :]
                    stack.append(tuple(items))
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "MARK":
                    marked.append(stack)
                    stack = []
                case "TUPLE":
                    items, stack = stack, marked.pop()
                    stack.append(tuple(items))
                case "APPEND":
                    item = stack.pop()
                    stack[-1].append(item)
                case "APPENDS":
                    items, stack = stack, marked.pop()
                    stack[-1].extend(items)
                case "SETITEM":
                    item, key = stack.pop(), stack.pop()
                    stack[-1][key] = item
                case "SETITEMS":
                    items, stack = stack, marked.pop()
                    stack[-1].update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    if argument not in _GLOBALS:
                        raise InputError(
                            f"{path}: its pickle asks for {argument.replace(' ', '.')!r}, which no CIFAR "
                            "batch does; it may be hostile, get the file from its source."
                        )
                    stack.append(_Global(argument))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(_Call(stack.pop(), arguments))
                case "BUILD":
                    state = stack.pop()
                    stack[-1].state = state
                case "STOP":
                    return stack.pop()
                case name:
                    raise InputError(
                        f"{path}: its pickle uses the instruction {name}, which no CIFAR batch does; "
                        "save it as .npz, or with pickle protocol 2."
                    )
    raise ValueError("no end")


def _value(path: Path, value: Any) -> Any:
    """Replace a written-down call by the array that it describes."""
    if not isinstance(value, _Call):
        return value
    if value.function.name not in _RECONSTRUCT or value.state is None:
        raise InputError(
            f"{path}: its pickle calls {value.function.name.replace(' ', '.')!r}, expected data."
        )
    _, shape, dtype, fortran, raw = value.state
    kind = _dtype(path, dtype)
    array = np.frombuffer(_bytes(raw), dtype=kind)
    if math.prod(shape) != array.size:
        raise InputError(
            f"{path}: an array claims shape {shape} but holds {array.size:,} values; it is damaged."
        )
    return array.reshape(shape, order="F" if fortran else "C")


def _text(key: Any) -> str:
    """A dictionary's key, which programs pass on as text or as bytes."""
    return key if isinstance(key, str) else _bytes(key).decode("latin-1")


def _dtype(path: Path, call: _Call) -> np.dtype[Any]:
    """The numeric type that a call to numpy.dtype describes."""
    code, order = call.arguments[0], call.state[1] if call.state else "|"
    if call.function.name != "numpy dtype" or not re.fullmatch("[biuf][1248]", code) or order not in "|<>":
        raise InputError(f"{path}: an array has type {code!r}, expected numbers; save it as .npz.")
    return np.dtype(order + code)


def _bytes(raw: Any) -> bytes:
    """Bytes as Python 3 writes them, as Python 2 did, or as Python 3 does for Python 2's sake."""
    if isinstance(raw, _Call) and raw.function.name == "_codecs encode":
        raw = raw.arguments[0]
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(memoryview(raw))
