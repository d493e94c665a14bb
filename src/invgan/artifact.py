"""Folders of safetensors and JSON that hold a model or a training checkpoint; nothing in them is executed.

::

    model/
      manifest.json                          format, kind, library version, metadata, table of the tensors
      tensors-<16 hex digits>.safetensors    the tensors, named after their own SHA-256

A folder changes from the old content to the new in one step, the replacement of ``manifest.json``: the new
tensors lie complete beside the old ones before it, and the old ones are deleted after it. So a writer that is
killed at any moment leaves the old or the new, whole, and the next writer removes what it left behind.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import reprlib
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from invgan.errors import InputError

if sys.platform != "win32":
    import fcntl

FORMAT = 1
"""The newest format of the folder that this version writes and reads."""

_MANIFEST = "manifest.json"
_MANIFEST_PARTIAL = ".manifest.partial"
_WEIGHTS_PARTIAL = ".tensors.partial"
_WEIGHTS_NAME = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST_LIMIT = 64 * 2**20  # bytes; measurements and column names take far less
_DEPTH_LIMIT = 100  # of nested metadata: far below the depth at which reading it would exhaust the stack
_READ_ATTEMPTS = 10

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_FIELDS = {"kind": str, "library": str, "weights": dict, "tensors": dict, "metadata": dict}
_DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}

_GET_ANOTHER = "use an intact copy, or save it again to another path."
_WHAT_TO_DO = {
    errno.ENOSPC: "free some space and save again.",
    errno.EDQUOT: "free some space and save again.",
    errno.EACCES: "choose a folder you may write to.",
    errno.EPERM: "choose a folder you may write to.",
    errno.EROFS: "choose a folder you may write to.",
    errno.ENOENT: "create the folder it lies in first.",
}


@dataclass(frozen=True, eq=False)
class Artifact:
    """What a folder holds.

    Attributes
    ----------
    kind : str
        What the writer said it is, e.g. ``"model"``.
    metadata : dict
        Plain JSON values.
    tensors : dict of str to torch.Tensor
        On the CPU, contiguous, in the order in which they were given to `write`.
    """

    kind: str
    metadata: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write(
    path: str | os.PathLike[str],
    *,
    kind: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Write an artifact folder, or replace the one at `path`, in one step.

    The same input gives the same bytes. Other files in an existing artifact folder are left alone; writers of
    one folder wait for each other.

    Parameters
    ----------
    path : path-like
        The folder: absent, empty, or an artifact. The folder it lies in must exist.
    kind : str
        What it is, for `read` to check.
    metadata : mapping of str to JSON values
        Nested dict (with str keys), list, str, int, finite float, bool and None, and no other type.
    tensors : mapping of str to torch.Tensor
        Dense real tensors of any shape on any device; they may share memory. They are copied.

    Raises
    ------
    InputError
        `path` holds something else, which is left alone; or it could not be written: it then holds what it
        held before (or, if only the last sync to the disk failed, the new content), and no temporaries.
    TypeError, ValueError
        A value of `metadata` or `tensors` that cannot be stored exactly; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/m", kind="model", metadata={"columns": ["a", "b"]}, tensors={"w": torch.ones(2)})
    ...     read(f"{folder}/m", kind="model")
    Artifact(kind='model', metadata={'columns': ['a', 'b']}, tensors={'w': tensor([1., 1.])})
    """
    folder = Path(path)
    weights_name, weights, manifest = _encoded(kind, metadata, tensors)
    try:
        if not os.path.lexists(folder):
            _create(folder, weights_name, weights, manifest)
        elif folder.is_dir():
            _replace(folder, weights_name, weights, manifest)
        else:
            raise InputError(f"{folder}: a file with this name is in the way; choose another path.")
    except OSError as error:
        what_to_do = _WHAT_TO_DO.get(error.errno or 0, "check the path and the disk, then save again.")
        raise InputError(f"{folder}: could not be written ({_reason(error)}); {what_to_do}") from error


def read(path: str | os.PathLike[str], *, kind: str | None = None) -> Artifact:
    """Read an artifact folder, after checking that it is exactly what was written.

    No file is read before its size is known to be what the manifest says, and nothing is unpickled. A folder
    that another process is replacing is read as it was before or as it is after.

    Parameters
    ----------
    path : path-like
        A folder that `write` made.
    kind : str, optional
        The kind it must be; any by default.

    Returns
    -------
    Artifact
        Tensors equal to the written ones bit for bit.

    Raises
    ------
    InputError
        The folder is missing, something else, truncated, altered, of another kind, or from a newer version.
    """
    folder = Path(path)
    try:
        if not folder.is_dir():
            found = "a file, not a folder" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {found}; give the folder that a model was saved to.")
        for _ in range(_READ_ATTEMPTS):
            manifest = _manifest(folder)
            if kind is not None and manifest["kind"] != kind:
                raise InputError(
                    f"{folder}: holds a {_shown(manifest['kind'])}; give the path of a {kind!r}."
                )
            # A writer may replace the artifact, and so delete these weights, after we have read the manifest.
            with contextlib.suppress(FileNotFoundError):
                return Artifact(manifest["kind"], manifest["metadata"], _tensors(folder, manifest))
    except OSError as error:
        raise InputError(f"{folder}: could not be read ({_reason(error)}); check the path.") from error
    raise InputError(f"{folder}: its file {manifest['weights']['file']} is missing; {_GET_ANOTHER}")


# Writing


def _encoded(
    kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[str, bytes, bytes]:
    """The weights file's name and content, and the manifest's content."""
    if not isinstance(kind, str):
        raise TypeError(f"kind is a {type(kind).__name__}; expected a str.")
    metadata = dict(metadata)
    _check_json(metadata, "metadata", 0)
    copies = {name: _copied(name, tensor) for name, tensor in tensors.items()}
    weights = safetensors.torch.save(copies)
    sha256 = hashlib.sha256(weights).hexdigest()
    weights_name = f"tensors-{sha256[:16]}.safetensors"
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "library": f"invgan {version('invgan')}",
        "weights": {"file": weights_name, "bytes": len(weights), "sha256": sha256},
        "tensors": {
            name: {"dtype": _DTYPE_CODES[copy.dtype], "shape": list(copy.shape)}
            for name, copy in copies.items()
        },
        "metadata": metadata,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False).encode() + b"\n"
    if len(text) > _MANIFEST_LIMIT:
        raise ValueError(
            f"metadata has {len(text):,} bytes of JSON, at most {_MANIFEST_LIMIT:,}; store arrays as tensors."
        )
    return weights_name, weights, text


def _check_json(value: Any, where: str, depth: int) -> None:
    """Raise unless JSON gives `value` back exactly."""
    if depth > _DEPTH_LIMIT:
        raise ValueError(f"{where[:60]}… is nested more than {_DEPTH_LIMIT} deep.")
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}, a {type(key).__name__}; keys must be str.")
            _check_json(item, f"{where}[{key!r}]", depth + 1)
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]", depth + 1)
    elif type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold; store it as a tensor.")
    elif value is not None and type(value) not in (str, int, bool):
        raise TypeError(
            f"{where} is a {type(value).__name__}; expected dict, list, str, int, float, bool or None."
        )


def _copied(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU that shares memory with no other."""
    if type(name) is not str or name == "__metadata__":  # the format keeps this one name for itself
        raise ValueError(f"tensors has the key {name!r}; expected a str other than '__metadata__'.")
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensors[{name!r}] is a {type(tensor).__name__}; expected a torch.Tensor.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPE_CODES:
        raise TypeError(
            f"tensors[{name!r}] is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}; "
            "expected a dense tensor of real numbers or booleans with values."
        )
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def _create(folder: Path, weights_name: str, weights: bytes, manifest: bytes) -> None:
    """Write a new folder under a hidden name and rename it, so that a failure leaves nothing at `folder`."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)  # it exists where an earlier writer was killed
    _check_replaceable(partial)
    try:
        _replace(partial, weights_name, weights, manifest)
        partial.rename(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            (partial / _MANIFEST).unlink(missing_ok=True)
            _sweep(partial)
            partial.rmdir()
        raise
    _sync_folder(folder.parent)


def _replace(folder: Path, weights_name: str, weights: bytes, manifest: bytes) -> None:
    """Bring an existing folder to the new content by replacing its manifest."""
    with _only_writer(folder):
        _check_replaceable(folder)
        try:
            _write_file(folder / _WEIGHTS_PARTIAL, folder / weights_name, weights)
            _write_file(folder / _MANIFEST_PARTIAL, folder / _MANIFEST, manifest)
        finally:
            _sweep(folder)


def _check_replaceable(folder: Path) -> None:
    """Raise unless the folder is empty, an artifact, or what a killed writer left."""
    if os.path.lexists(folder / _MANIFEST):
        _manifest(folder)
        return
    for entry in folder.iterdir():
        if not _is_ours(entry.name):
            raise InputError(
                f"{folder}: a folder with other things in it ({_shown(entry.name)}); choose another path."
            )


def _write_file(partial: Path, final: Path, data: bytes) -> None:
    """Write a file that appears at `final` whole, and is on the disk on return."""
    partial.unlink(missing_ok=True)
    with open(partial, "xb") as file:  # x: never through a link that someone laid there
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, final)
    _sync_folder(final.parent)


def _sweep(folder: Path) -> None:
    """Delete our files that the manifest does not name; what cannot be deleted stays until the next time."""
    with contextlib.suppress(OSError, InputError):
        named = _manifest(folder)["weights"]["file"] if (folder / _MANIFEST).exists() else None
        for entry in list(folder.iterdir()):
            if _is_ours(entry.name) and entry.name != named:
                entry.unlink()


def _is_ours(name: str) -> bool:
    """Whether only this module gives files such a name."""
    return name in (_MANIFEST_PARTIAL, _WEIGHTS_PARTIAL) or _WEIGHTS_NAME.fullmatch(name) is not None


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when its holder dies; readers need none."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Bring the folder's list of names to the disk."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest, every field of it checked."""
    file = folder / _MANIFEST

    def malformed(problem: str) -> NoReturn:
        raise InputError(f"{file}: not a manifest that InvGAN wrote ({problem}); {_GET_ANOTHER}")

    try:
        size = _regular_size(file)
    except FileNotFoundError:
        raise InputError(
            f"{folder}: not a saved model, it has no {_MANIFEST}; give the folder that a model was saved to."
        ) from None
    if size > _MANIFEST_LIMIT:
        malformed(f"{size:,} bytes, at most {_MANIFEST_LIMIT:,}")
    with open(file, "rb") as stream:
        raw = stream.read(_MANIFEST_LIMIT)
    try:
        manifest = json.loads(raw.decode(), parse_constant=_no_constant, parse_float=_finite_float)
    except RecursionError:
        malformed("nested too deep")
    except ValueError as error:
        malformed(f"invalid JSON: {error}")

    if type(manifest) is not dict:
        malformed(f"a JSON {type(manifest).__name__}, expected an object")
    number = manifest.get("format")
    if type(number) is not int or number < 1:
        malformed(f"'format' is {_shown(number)}, expected a positive integer")
    if number > FORMAT:
        raise InputError(
            f"{folder}: written by a newer InvGAN (format {_shown(number)}); "
            f"this one reads up to {FORMAT}: upgrade."
        )
    for key, expected in _FIELDS.items():
        if type(manifest.get(key)) is not expected:
            malformed(f"{key!r} is {_shown(manifest.get(key))}, expected a {expected.__name__}")
    weights = manifest["weights"]
    if type(weights.get("sha256")) is not str or not _SHA256.fullmatch(weights["sha256"]):
        malformed(f"'sha256' is {_shown(weights.get('sha256'))}, expected 64 hexadecimal digits")
    # Only this one name is allowed, so no path can lead out of the folder.
    if weights.get("file") != f"tensors-{weights['sha256'][:16]}.safetensors":
        malformed(f"'file' is {_shown(weights.get('file'))}, expected 'tensors-<its hash>.safetensors'")
    if type(weights.get("bytes")) is not int or weights["bytes"] < 0:
        malformed(f"'bytes' is {_shown(weights.get('bytes'))}, expected a size")
    for name, entry in manifest["tensors"].items():
        if not _is_tensor_entry(entry):
            malformed(f"tensor {_shown(name)} is {_shown(entry)}, expected its dtype and shape")
    return manifest


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, which JSON does not have."""
    raise ValueError(f"{name} is not a JSON value")


def _finite_float(text: str) -> float:
    """Refuse numbers such as 1e999, which would become infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{_shown(text)} is out of range")
    return value


def _is_tensor_entry(entry: Any) -> bool:
    """Whether a manifest's entry describes a tensor that can exist."""
    return (
        type(entry) is dict
        and type(entry.get("dtype")) is str
        and entry["dtype"] in _DTYPES
        and type(entry.get("shape")) is list
        and len(entry["shape"]) <= 64
        and all(type(length) is int and length >= 0 for length in entry["shape"])
        # Beyond this PyTorch's own element counts overflow, also for a tensor with a zero-length dimension.
        and math.prod(length or 1 for length in entry["shape"]) < 2**60
    )


def _tensors(folder: Path, manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of the weights file, which must be what the manifest says."""
    file, weights = folder / manifest["weights"]["file"], manifest["weights"]
    size = _regular_size(file)
    if size != weights["bytes"]:
        what = "truncated" if size < weights["bytes"] else "altered"
        raise InputError(
            f"{file}: {what} ({size:,} bytes, the manifest says {_shown(weights['bytes'])}); {_GET_ANOTHER}"
        )
    with open(file, "rb") as stream:
        data = stream.read(size)
    if hashlib.sha256(data).hexdigest() != weights["sha256"]:
        raise InputError(f"{file}: altered (its SHA-256 is not the manifest's); {_GET_ANOTHER}")
    try:
        stored = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise InputError(f"{file}: not a safetensors file ({_shown(str(error))}); {_GET_ANOTHER}") from None
    header = {name: {"dtype": view["dtype"], "shape": view["shape"]} for name, view in stored.items()}
    for name in header.keys() | manifest["tensors"].keys():
        if header.get(name) != manifest["tensors"].get(name):
            raise InputError(
                f"{file}: tensor {_shown(name)} is {_shown(header.get(name))}, "
                f"the manifest says {_shown(manifest['tensors'].get(name))}; {_GET_ANOTHER}"
            )
    return {name: _tensor(entry, stored[name]["data"]) for name, entry in manifest["tensors"].items()}


def _tensor(entry: dict[str, Any], data: bytearray) -> torch.Tensor:
    """The tensor with these bytes."""
    dtype = _DTYPES[entry["dtype"]]
    if not data:  # frombuffer refuses an empty buffer
        return torch.empty(entry["shape"], dtype=dtype)
    # The clone lies in PyTorch's own, aligned memory: matrix products may round differently elsewhere.
    return torch.frombuffer(data, dtype=dtype).reshape(entry["shape"]).clone()


def _regular_size(file: Path) -> int:
    """The size in bytes of a file that is no link, device or folder."""
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file}: not a regular file; {_GET_ANOTHER}")
    return status.st_size


def _reason(error: OSError) -> str:
    """The system's words for what happened."""
    return error.strerror or str(error) or type(error).__name__


def _shown(value: Any) -> str:
    """A value from a file that may be hostile, as a short piece of one line."""
    shortener = reprlib.Repr()  # its limit on depth keeps it from exhausting the stack
    shortener.maxstring = shortener.maxlong = 80
    text = shortener.repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
