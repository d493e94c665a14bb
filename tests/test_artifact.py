"""The artifact folder: exact round trips, all-or-nothing writes, one clear line for every damaged folder."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import torch

from invgan import artifact
from invgan.errors import InputError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
OLD = {"metadata": {"step": 1}, "tensors": {"w": torch.arange(60.0), "n": torch.tensor(1)}}
NEW = {"metadata": {"step": 2}, "tensors": {"w": torch.arange(90.0).flip(0), "n": torch.tensor(2)}}


def write(folder, content, kind="model"):
    artifact.write(folder, kind=kind, **content)


def same(found, content):
    return found.metadata == content["metadata"] and all(
        torch.equal(found.tensors[name], tensor) for name, tensor in content["tensors"].items()
    )


def which(folder):
    """Which of the two contents the folder holds, whole."""
    found = artifact.read(folder)
    return ["old", "new"][[same(found, OLD), same(found, NEW)].index(True)]


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def is_clean(folder):
    return re.fullmatch(
        r"manifest\.json tensors-[0-9a-f]{16}\.safetensors", " ".join(sorted(os.listdir(folder)))
    )


def message(folder, function=artifact.read):
    """The error's text, which must be one line, with the folder written as M."""
    with pytest.raises(InputError) as caught:
        function(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(folder), "M")


def edit_manifest(folder, change):
    """Apply `change` to the parsed manifest."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def replace_weights(folder, data):
    """Put other weights in place under a manifest that fits their size, hash and name."""
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"tensors-{sha256[:16]}.safetensors"
    (folder / name).write_bytes(data)
    edit_manifest(folder, lambda m: m.update(weights={"file": name, "bytes": len(data), "sha256": sha256}))


def safetensors_bytes(header, data=b""):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "m"
    write(folder, OLD)
    return folder


# Round trips


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_every_dtype_and_shape_returns(tmp_path, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    high = 2 if dtype == torch.bool else 256  # any byte is a value of the others, NaN payloads included
    size = torch.Size(shape).numel() * torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(high, (size,), dtype=torch.uint8, generator=generator)
    tensor = raw.view(dtype).reshape(shape)
    artifact.write(tmp_path / "m", kind="model", metadata={}, tensors={"t": tensor})
    found = artifact.read(tmp_path / "m").tensors["t"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found.reshape(-1).view(torch.uint8), raw)


def test_metadata_returns_equal_and_of_the_same_types_in_the_same_order(tmp_path):
    metadata = {
        "z": [1, 1.0, True, None, [], {}, [[0.1, 5e-324, -0.0, 1.7976931348623157e308]]],
        "a": {"größe\n\u2028": "\ud800 'x' \\", "big": 10**400},
    }
    artifact.write(tmp_path / "m", kind="k", metadata=metadata, tensors={})
    found = artifact.read(tmp_path / "m", kind="k")
    assert repr(found.metadata) == repr(metadata)
    assert (found.kind, found.tensors) == ("k", {})


def test_views_of_shared_memory_and_strided_tensors_are_stored_and_the_input_is_untouched(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base[0])
    tensors = {"all": base, "same": base, "t": base.T, "expanded": base[:1].expand(5, 4), "p": parameter}
    before = {name: (tensor, tensor.stride()) for name, tensor in tensors.items()}
    artifact.write(tmp_path / "m", kind="model", metadata={}, tensors=tensors)
    found = artifact.read(tmp_path / "m").tensors
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()
        assert type(found[name]) is torch.Tensor
        assert tensor is before[name][0]
        assert tensor.stride() == before[name][1]
    found["all"].zero_()
    assert torch.equal(found["same"], base)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    tensors = {f"t{i}": torch.full((i,), i, dtype=DTYPES[i % 10]) for i in range(40)}
    for name in ("a", "b"):
        artifact.write(tmp_path / name, kind="model", metadata={"x": 1}, tensors=tensors)
    write(tmp_path / "c", OLD)
    artifact.write(tmp_path / "c", kind="model", metadata={"x": 1}, tensors=dict(reversed(tensors.items())))
    artifact.write(tmp_path / "c", kind="model", metadata={"x": 1}, tensors=tensors)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_the_folder_is_a_manifest_and_the_weights_named_after_their_hash(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    weights = (saved / manifest["weights"]["file"]).read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    assert manifest == {
        "format": 1,
        "kind": "model",
        "library": f"invgan {version('invgan')}",
        "weights": {"file": f"tensors-{sha256[:16]}.safetensors", "bytes": len(weights), "sha256": sha256},
        "tensors": {"w": {"dtype": "F32", "shape": [60]}, "n": {"dtype": "I64", "shape": []}},
        "metadata": {"step": 1},
    }
    assert is_clean(saved)
    assert torch.equal(safetensors.torch.load(weights)["w"], OLD["tensors"]["w"])


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (
            (1, 2),
            TypeError,
            "metadata['a'][1] is a tuple; expected dict, list, str, int, float, bool or None.",
        ),
        (
            torch.tensor(1.0).numpy().max(),
            TypeError,
            "metadata['a'][1] is a float32; expected dict, list, str, int, float, bool or None.",
        ),
        ({1: 2}, TypeError, "metadata['a'][1] has the key 1, a int; keys must be str."),
        (
            float("nan"),
            ValueError,
            "metadata['a'][1] is nan, which JSON cannot hold; store it as a tensor.",
        ),
        (
            {"b": -float("inf")},
            ValueError,
            "metadata['a'][1]['b'] is -inf, which JSON cannot hold; store it as a tensor.",
        ),
    ],
)
def test_metadata_that_json_would_not_return_is_refused_by_its_place(tmp_path, value, error, text):
    with pytest.raises(error) as caught:
        artifact.write(tmp_path / "m", kind="model", metadata={"a": [0, value]}, tensors={})
    assert str(caught.value) == text
    assert os.listdir(tmp_path) == []


def test_circular_and_oversized_metadata_are_refused(tmp_path, monkeypatch):
    circle = []
    circle.append(circle)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        artifact.write(tmp_path / "m", kind="model", metadata={"c": circle}, tensors={})
    monkeypatch.setattr(artifact, "_MANIFEST_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"of JSON, at most 1,000; store arrays as tensors\."):
        artifact.write(tmp_path / "m", kind="model", metadata={"c": "x" * 1000}, tensors={})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("tensors", "error", "text"),
    [
        ({"a": 1.0}, TypeError, "tensors['a'] is a float; expected a torch.Tensor."),
        (
            {"a": torch.ones(1, dtype=torch.complex64)},
            TypeError,
            "tensors['a'] is a torch.strided tensor of torch.complex64 on cpu; "
            "expected a dense tensor of real numbers or booleans with values.",
        ),
        (
            {"a": torch.ones(1).to_sparse()},
            TypeError,
            "tensors['a'] is a torch.sparse_coo tensor of torch.float32 on cpu; "
            "expected a dense tensor of real numbers or booleans with values.",
        ),
        (
            {"a": torch.ones(1, device="meta")},
            TypeError,
            "tensors['a'] is a torch.strided tensor of torch.float32 on meta; "
            "expected a dense tensor of real numbers or booleans with values.",
        ),
        (
            {"__metadata__": torch.ones(1)},
            ValueError,
            "tensors has the key '__metadata__'; expected a str other than '__metadata__'.",
        ),
    ],
)
def test_what_is_no_dense_tensor_is_refused_by_name(tmp_path, tensors, error, text):
    with pytest.raises(error) as caught:
        artifact.write(tmp_path / "m", kind="model", metadata={}, tensors=tensors)
    assert str(caught.value) == text


def test_a_kind_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"^kind is a NoneType; expected a str\.$"):
        artifact.write(tmp_path / "m", kind=None, metadata={}, tensors={})


# All or nothing


def test_overwriting_keeps_other_files_and_removes_the_old_weights(saved):
    (saved / "notes.txt").write_text("mine")
    write(saved, NEW)
    assert which(saved) == "new"
    (saved / "notes.txt").unlink()
    assert is_clean(saved)


def test_an_empty_folder_and_a_link_to_a_folder_can_be_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    write(tmp_path / "link", NEW)
    assert which(tmp_path / "empty") == "new"
    assert is_clean(tmp_path / "empty")


@pytest.mark.parametrize("prepare", ["file", "broken link", "folder", "manifest of something else"])
def test_what_is_no_artifact_is_not_overwritten(tmp_path, prepare):
    path = tmp_path / "m"
    if prepare == "file":
        path.write_text("mine")
        expected = "M: a file with this name is in the way; choose another path."
    elif prepare == "broken link":
        path.symlink_to(tmp_path / "nowhere")
        expected = "M: a file with this name is in the way; choose another path."
    else:
        path.mkdir()
        (path / ("thesis.tex" if prepare == "folder" else "manifest.json")).write_text('{"name": "app"}')
        expected = (
            "M: a folder with other things in it ('thesis.tex'); choose another path."
            if prepare == "folder"
            else "M/manifest.json: not a manifest that InvGAN wrote ('format' is None, expected a positive "
            "integer); use an intact copy, or save it again to another path."
        )
    before = [(file, file.is_file() and file.read_text()) for file in sorted(tmp_path.rglob("*"))]
    assert message(path, lambda folder: write(folder, NEW)) == expected
    assert [(f, f.is_file() and f.read_text()) for f in sorted(tmp_path.rglob("*"))] == before


def test_the_hidden_name_of_a_new_folder_is_not_taken_from_someone_else(tmp_path):
    (tmp_path / ".m.partial").mkdir()
    (tmp_path / ".m.partial" / "mine").write_text("mine")
    with pytest.raises(InputError, match=r"\.m\.partial: a folder with other things in it \('mine'\)"):
        write(tmp_path / "m", NEW)
    assert files(tmp_path / ".m.partial") == {"mine": b"mine"}
    assert os.listdir(tmp_path) == [".m.partial"]


def fail_at(monkeypatch, name, call, code=errno.ENOSPC):
    """Let the n-th call of an os function fail, counting from 1."""
    real, count = getattr(os, name), [0]

    def failing(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)


@pytest.mark.parametrize(
    ("name", "call", "left"),
    # Weights, folder, manifest, folder: only the last comes after the step that makes the content new.
    [
        ("fsync", 1, "old"),
        ("fsync", 2, "old"),
        ("fsync", 3, "old"),
        ("fsync", 4, "new"),
        ("replace", 1, "old"),
        ("replace", 2, "old"),
    ],
)
def test_a_full_disk_leaves_the_old_or_the_new_and_no_temporaries(saved, monkeypatch, name, call, left):
    before = files(saved)
    with monkeypatch.context() as patch:
        fail_at(patch, name, call)
        text = message(saved, lambda folder: write(folder, NEW))
    assert text == "M: could not be written (No space left on device); free some space and save again."
    assert which(saved) == left
    assert is_clean(saved)
    assert left == "new" or files(saved) == before


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_failed_first_write_leaves_nothing(tmp_path, monkeypatch, call):
    fail_at(monkeypatch, "fsync", call, errno.EACCES)
    text = message(tmp_path / "m", lambda folder: write(folder, NEW))
    assert text == "M: could not be written (Permission denied); choose a folder you may write to."
    assert os.listdir(tmp_path) == []


def test_an_interrupted_first_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m", NEW)
    assert os.listdir(tmp_path) == []


def test_a_real_limit_on_the_size_of_files_leaves_the_original(saved):
    before = files(saved)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        big = {"metadata": {}, "tensors": {"w": torch.zeros(100_000)}}
        text = message(saved, lambda folder: write(folder, big))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text == ("M: could not be written (File too large); check the path and the disk, then save again.")
    assert files(saved) == before


def test_a_missing_parent_is_named(tmp_path):
    text = message(tmp_path / "no" / "m", lambda folder: write(folder, NEW))
    assert text == (
        "M: could not be written (No such file or directory); create the folder it lies in first."
    )


FORK = multiprocessing.get_context("fork")


def write_and_die(folder, step):
    """Write NEW, but be killed just before the given step that touches the disk."""
    count = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "unlink", "rename", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    write(folder, NEW)
    os._exit(0)


def killed_at_every_step(folder, prepare):
    """Yield after a writer was killed before its first step, its second, … until one finishes."""
    for step in range(1, 40):
        prepare()
        child = FORK.Process(target=write_and_die, args=(folder, step))
        child.start()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        yield
        if child.exitcode == 0:
            assert step > 8
            return
    pytest.fail("the writer never finished")


def test_killed_before_any_step_of_replacing_leaves_old_or_new_whole(saved):
    seen = []
    for _ in killed_at_every_step(saved, lambda: write(saved, OLD)):
        seen.append(which(saved))
    assert seen == sorted(seen, reverse=True)  # "old" up to the one step that makes it "new"
    assert {"old", "new"} == set(seen)
    assert is_clean(saved)


def test_killed_before_any_step_of_a_first_write_leaves_nothing_or_all_of_it(tmp_path):
    folder, seen = tmp_path / "m", []

    def start_afresh():  # a hidden leftover of the killed writer before stays: the next one must cope
        if folder.exists():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    for _ in killed_at_every_step(folder, start_afresh):
        seen.append(which(folder) if folder.exists() else "nothing")
    assert seen == sorted(seen, reverse=True)
    assert {"nothing", "new"} == set(seen)
    assert os.listdir(tmp_path) == ["m"]
    assert is_clean(folder)


def overwrite_forever(folder):
    while True:
        write(folder, NEW)
        write(folder, OLD)


def test_killed_at_random_moments_leaves_old_or_new_whole(saved):
    moments = random.Random(0)
    for _ in range(20):
        child = FORK.Process(target=overwrite_forever, args=(saved,))
        child.start()
        time.sleep(moments.uniform(0.01, 0.06))
        child.kill()
        child.join()
        assert which(saved) in ("old", "new")
    write(saved, NEW)
    assert is_clean(saved)


def test_readers_and_two_writers_at_once_always_see_old_or_new_whole(saved):
    children = [FORK.Process(target=overwrite_forever, args=(saved,)) for _ in range(2)]
    for child in children:
        child.start()
    try:
        seen = set()
        for count in range(100_000):
            seen.add(which(saved))
            if count >= 300 and len(seen) == 2:
                break
        assert all(child.is_alive() for child in children)
    finally:
        for child in children:
            child.kill()
            child.join()
    assert seen == {"old", "new"}


# Damaged and hostile folders

GET_ANOTHER = "use an intact copy, or save it again to another path."


def test_what_is_not_there_or_not_an_artifact_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    give = "give the folder that a model was saved to."
    assert message(tmp_path / "absent") == f"M: no such folder; {give}"
    assert message(tmp_path / "file") == f"M: a file, not a folder; {give}"
    assert message(tmp_path / "folder") == f"M: not a saved model, it has no manifest.json; {give}"


def test_another_kind_is_refused(saved):
    assert artifact.read(saved, kind="model").kind == "model"
    text = message(saved, lambda folder: artifact.read(folder, kind="checkpoint"))
    assert text == "M: holds a 'model'; give the path of a 'checkpoint'."


def test_a_newer_format_asks_for_an_upgrade_and_is_not_overwritten(saved):
    edit_manifest(saved, lambda manifest: manifest.update(format=7, tensors="unknown here"))
    before = files(saved)
    expected = "M: written by a newer InvGAN (format 7); this one reads up to 1: upgrade."
    assert message(saved) == expected
    assert message(saved, lambda folder: write(folder, NEW)) == expected
    assert files(saved) == before


def test_weights_truncated_anywhere_are_told_by_their_size_before_they_are_read(saved, monkeypatch):
    weights = next(saved.glob("tensors-*"))
    data = weights.read_bytes()
    opened = []
    real_open = open
    monkeypatch.setattr(
        "builtins.open", lambda f, *a, **k: opened.append(Path(f).name) or real_open(f, *a, **k)
    )
    for size in (0, 1, 7, 8, 100, len(data) - 1):
        weights.write_bytes(data[:size])
        assert message(saved) == (
            f"M/{weights.name}: truncated ({size:,} bytes, the manifest says {len(data)}); {GET_ANOTHER}"
        )
    opened.clear()
    os.truncate(weights, 2**40)  # a sparse file: reading it would exhaust the memory
    assert message(saved) == (
        f"M/{weights.name}: altered ({2**40:,} bytes, the manifest says {len(data)}); {GET_ANOTHER}"
    )
    assert opened == ["manifest.json"]


def test_one_flipped_bit_anywhere_in_the_weights_is_told(saved):
    weights = next(saved.glob("tensors-*"))
    data = weights.read_bytes()
    for position in range(0, len(data), 13):
        weights.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert message(saved) == (
            f"M/{weights.name}: altered (its SHA-256 is not the manifest's); {GET_ANOTHER}"
        )


def test_missing_weights_are_named(saved):
    weights = next(saved.glob("tensors-*"))
    weights.unlink()
    assert message(saved) == f"M: its file {weights.name} is missing; {GET_ANOTHER}"


def test_a_truncated_manifest_is_told_at_every_length(saved):
    file = saved / "manifest.json"
    data = file.read_bytes()
    for size in range(len(data) - 2):  # the last two bytes are the closing brace and the end of line
        file.write_bytes(data[:size])
        assert message(saved).startswith("M/manifest.json: not a manifest that InvGAN wrote (invalid JSON: ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[]", "a JSON list, expected an object"),
        (b"null", "a JSON NoneType, expected an object"),
        (b'{"format": true}', "'format' is True, expected a positive integer"),
        (b'{"format": 0}', "'format' is 0, expected a positive integer"),
        (b'{"format": NaN}', "invalid JSON: NaN is not a JSON value"),
        (b'{"format": -Infinity}', "invalid JSON: -Infinity is not a JSON value"),
        (b'{"format": 1e999}', "invalid JSON: '1e999' is out of range"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"format": 1, "kind": 3}', "'kind' is 3, expected a str"),
        (b'{"format": 1, "kind": "a\\nb", "library": null}', "'library' is None, expected a str"),
        (
            b"\xff\xfe{}",
            "invalid JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_a_malformed_manifest_is_one_line(saved, text, problem):
    (saved / "manifest.json").write_bytes(text)
    assert message(saved) == f"M/manifest.json: not a manifest that InvGAN wrote ({problem}); {GET_ANOTHER}"


@pytest.mark.parametrize("depth", [100, 400, 900, 1_000, 5_000, 100_000])
def test_nesting_of_any_depth_is_one_line(saved, depth):
    (saved / "manifest.json").write_text('{"format": ' + "[" * depth + "]" * depth + "}")
    assert message(saved).startswith("M/manifest.json: not a manifest that InvGAN wrote (")
    assert len(message(saved)) < 300


def test_a_number_of_too_many_digits_is_refused(saved):
    (saved / "manifest.json").write_text('{"format": ' + "9" * 10_000 + "}")
    assert message(saved).startswith(
        "M/manifest.json: not a manifest that InvGAN wrote (invalid JSON: Exceeds"
    )


def test_a_manifest_over_the_size_limit_is_not_read(saved):
    os.truncate(saved / "manifest.json", 2**40)
    assert message(saved) == (
        "M/manifest.json: not a manifest that InvGAN wrote "
        f"({2**40:,} bytes, at most 67,108,864); {GET_ANOTHER}"
    )


HASH = "tensors-<its hash>.safetensors"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["weights"].update(file="../w"), f"'file' is '../w', expected '{HASH}'"),
        (lambda m: m["weights"].update(file="/etc/passwd"), f"'file' is '/etc/passwd', expected '{HASH}'"),
        (lambda m: m["weights"].update(file=None), f"'file' is None, expected '{HASH}'"),
        (
            lambda m: m["weights"].update(sha256="../" + "0" * 61),
            f"'sha256' is '../{'0' * 61}', expected 64 hexadecimal digits",
        ),
        (lambda m: m["weights"].update(sha256=7), "'sha256' is 7, expected 64 hexadecimal digits"),
        (lambda m: m["weights"].update(bytes=-1), "'bytes' is -1, expected a size"),
        (lambda m: m["weights"].update(bytes=1.5), "'bytes' is 1.5, expected a size"),
        (lambda m: m.update(tensors=[]), "'tensors' is [], expected a dict"),
        (lambda m: m.update(metadata="x" * 500), f"'metadata' is '{'x' * 37}...{'x' * 38}', expected a dict"),
        (lambda m: m["tensors"].update(w=3), "tensor 'w' is 3, expected its dtype and shape"),
        (
            lambda m: m["tensors"]["w"].update(dtype="OBJECT"),
            "tensor 'w' is {'dtype': 'OBJECT', 'shape': [60]}, expected its dtype and shape",
        ),
        (
            lambda m: m["tensors"]["w"].update(shape=[-60]),
            "tensor 'w' is {'dtype': 'F32', 'shape': [-60]}, expected its dtype and shape",
        ),
        (
            lambda m: m["tensors"]["w"].update(shape=[2**62, 0]),
            "tensor 'w' is {'dtype': 'F32', 'shape': [4611686018427387904, 0]}, expected its dtype and shape",
        ),
        (
            lambda m: m["tensors"]["w"].update(shape=[True]),
            "tensor 'w' is {'dtype': 'F32', 'shape': [True]}, expected its dtype and shape",
        ),
    ],
)
def test_a_hostile_field_of_the_manifest_is_named(saved, change, problem):
    edit_manifest(saved, change)
    assert message(saved) == f"M/manifest.json: not a manifest that InvGAN wrote ({problem}); {GET_ANOTHER}"


def test_links_devices_and_folders_in_place_of_the_files_are_not_followed(saved, tmp_path):
    weights = next(saved.glob("tensors-*"))
    for file in (weights, saved / "manifest.json"):
        aside = file.rename(tmp_path / file.name)
        expected = f"M/{file.name}: not a regular file; {GET_ANOTHER}"
        file.symlink_to(aside)
        assert message(saved) == expected
        file.unlink()
        os.mkfifo(file)  # opening it would wait for ever
        assert message(saved) == expected
        file.unlink()
        file.mkdir()
        assert message(saved) == expected
        file.rmdir()
        aside.rename(file)
    assert which(saved) == "old"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        (2**63).to_bytes(8, "little"),  # a header longer than any file
        (9).to_bytes(8, "little") + b"{" * 9,
        safetensors_bytes({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"1234"),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**50]}}, b"1234"),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345678"),
        safetensors_bytes({"w": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_a_hostile_weights_file_with_a_fitting_hash_is_one_line(saved, data):
    replace_weights(saved, data)
    assert re.fullmatch(
        rf"M/tensors-[0-9a-f]{{16}}\.safetensors: not a safetensors file \(.{{1,80}}\); {GET_ANOTHER}",
        message(saved),
    )


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            {"w": torch.zeros(60, dtype=torch.int32), "n": torch.tensor(1)},
            "tensor 'w' is {'dtype': 'I32', 'shape': [60]}, "
            "the manifest says {'dtype': 'F32', 'shape': [60]}",
        ),
        (
            {"w": torch.zeros(6, 10), "n": torch.tensor(1)},
            "tensor 'w' is {'dtype': 'F32', 'shape': [6, 10]}, "
            "the manifest says {'dtype': 'F32', 'shape': [60]}",
        ),
        ({"w": torch.zeros(60)}, "tensor 'n' is None, the manifest says {'dtype': 'I64', 'shape': []}"),
        (
            {"w": torch.zeros(60), "n": torch.tensor(1), "x\n": torch.tensor(True)},
            "tensor 'x\\n' is {'dtype': 'BOOL', 'shape': []}, the manifest says None",
        ),
    ],
)
def test_a_header_that_differs_from_the_manifest_is_told(saved, tensors, problem):
    replace_weights(saved, safetensors.torch.save(tensors))
    text = message(saved)
    assert text.split(": ", 1)[1] == f"{problem}; {GET_ANOTHER}"


def test_reading_is_refused_in_one_line_when_the_system_refuses(saved, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", denied)
    assert message(saved) == "M: could not be read (Permission denied); check the path."
