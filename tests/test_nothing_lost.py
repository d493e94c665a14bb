"""Killed at any moment, given anything: outputs are whole or absent, inputs untouched, errors one line."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from invgan.cli import main
from invgan.data.files import write_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")

SLOW_WRITER = """
import sys, time
from pathlib import Path
from invgan.data.files import write_whole

def slowly(file):
    for _ in range(200):
        file.write(b"new" * 1000)
        file.flush()
        time.sleep(0.01)

write_whole(Path(sys.argv[1]), slowly, what="scores")
"""


def wait_for(pattern, process):
    """Wait until a process has made a file."""
    while not (found := list(Path().glob(pattern))):
        assert process.poll() is None
        time.sleep(0.01)
    return found


def table(n=60):
    X = np.random.default_rng(0).normal(size=(n, 3))
    return pl.DataFrame(X, schema=list("abc"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    table().write_csv(path / "t.csv")
    assert main(["fit", f"{path}/t.csv", "--out", f"{path}/m", "--max-steps", "20"]) == 0
    return path / "m"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_leaves_the_old_file_and_what_it_left_goes_with_the_next(seed):
    Path("s.csv").write_text("old")
    with subprocess.Popen([sys.executable, "-c", SLOW_WRITER, "s.csv"]) as writer:
        wait_for(".s.csv.*.partial", writer)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
    assert Path("s.csv").read_text() == "old"
    assert len(os.listdir()) == 2
    write_whole(Path("s.csv"), lambda file: file.write(b"next"), what="scores")
    assert os.listdir() == ["s.csv"]
    assert Path("s.csv").read_text() == "next"


def test_a_living_writers_file_is_left_to_it():
    with subprocess.Popen([sys.executable, "-c", SLOW_WRITER, "s.csv"]) as writer:
        partial = wait_for(".s.csv.*.partial", writer)
        time.sleep(0.1)
        write_whole(Path("s.csv"), lambda file: file.write(b"first"), what="scores")
        assert wait_for(".s.csv.*.partial", writer) == partial
        assert Path("s.csv").read_text() == "first"
    assert writer.returncode == 0
    assert os.listdir() == ["s.csv"]
    assert Path("s.csv").read_bytes() == b"new" * 200_000


def test_a_killed_fit_continues_to_the_same_model():
    table().write_csv("t.csv")
    before = Path("t.csv").read_bytes()
    command = ["fit", "t.csv", "--checkpoint-every", "5", "--max-steps", "150", "--out"]
    assert main([*command, "straight"]) == 0
    code = "import sys; from invgan.cli import main; main(sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", code, *command, "m"], stdout=subprocess.DEVNULL) as fit:
        wait_for("m.checkpoint", fit)
        time.sleep(random.Random(0).uniform(0, 0.2))
        fit.send_signal(signal.SIGKILL)
    assert not Path("m").exists()
    assert main([*command, "m"]) == 0
    assert sorted(os.listdir()) == ["m", "straight", "t.csv"]
    assert sorted(os.listdir("m")) == sorted(os.listdir("straight"))  # weights are named after their content
    assert Path("t.csv").read_bytes() == before


def test_a_csv_cut_short_is_scored_or_refused_on_one_line(model, capsys):
    whole = table(5).write_csv().encode()
    for size in range(len(whole) - 120, len(whole), 7):
        Path("t.csv").write_bytes(whole[:size])
        Path("s.csv").unlink(missing_ok=True)
        code = main(["score", str(model), "t.csv", "--out", "s.csv"])
        err = capsys.readouterr().err
        if code == 0:
            assert pl.read_csv("s.csv").height == whole[:size].rstrip().count(b"\n")
        else:
            assert code == 2
            assert err.startswith("invgan: t.csv")
            assert err.count("\n") == 1
            assert not Path("s.csv").exists()


GAPS = st.sampled_from(["", "?", "NA", "nan"])
NUMBERS = st.floats(-1e17, 1e17).map(str) | st.integers(-3, 3).map(str) | st.just("0")
CELLS = (
    GAPS | NUMBERS,
    GAPS | st.sampled_from(["yes", "No"]),
    GAPS | st.sampled_from(["red", "blue", "é,'", "7"]),
    st.just("1e17"),
    GAPS,
    GAPS | NUMBERS | st.text(alphabet='ab"\n ,1.', max_size=4),
)
COLUMN = st.sampled_from(CELLS).flatmap(lambda cells: st.lists(cells, min_size=20, max_size=20))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(COLUMN, min_size=1, max_size=4))
def test_any_table_gets_a_score_for_every_row_or_one_line(capsys, odd):
    frame = pl.DataFrame(odd, schema=[f"c{i}" for i in range(len(odd))])
    frame.write_csv("t.csv", quote_style="always")
    capsys.readouterr()
    for command in (
        ["fit", "t.csv", "--out", "m", "--max-steps", "2"],
        ["score", "m", "t.csv", "--out", "s.parquet"],
    ):
        code = main(command)
        err = capsys.readouterr().err
        if code != 0:
            assert code == 2
            assert err.startswith("invgan: t.csv")
            assert err.count("\n") == 1
            return
    scores = pl.read_parquet("s.parquet")
    assert scores.height == frame.height
    assert np.isfinite(scores["log_prob"].to_numpy()).all()


RUN = "import sys; from invgan.cli import main; sys.exit(main(sys.argv[1:]))"


def started(*arguments):
    """A command in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", RUN, *arguments], stdout=subprocess.DEVNULL)


def content(folder="."):
    return {str(path): path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


def visible():
    """What stands in the working folder, without what a writer had not finished."""
    return {path: data for path, data in content().items() if not path.startswith(".")}


@pytest.mark.parametrize(("command", "seed"), [("score", 0), ("score", 1), ("report", 2)])
def test_killed_at_a_random_moment_an_output_is_the_old_one_or_the_new(model, command, seed):
    table(3000).write_csv("t.csv")
    out = {"score": "s.csv", "report": "r.html"}[command]
    arguments = [command, str(model), "t.csv", "--out"]
    assert main([*arguments, f"new-{out}"]) == 0
    Path(out).write_text("old")
    before = {path: data for path, data in visible().items() if path != out}
    with started(*arguments, out) as process:
        # From the first byte of the output on, if it is seen, otherwise at any moment of the start.
        end = time.monotonic() + random.Random(seed).uniform(0, 8)
        while time.monotonic() < end and process.poll() is None and not list(Path().glob(f".{out}.*")):
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
    assert Path(out).read_bytes() in (b"old", Path(f"new-{out}").read_bytes())
    assert {path: data for path, data in visible().items() if path != out} == before
    assert main([*arguments, out]) == 0
    assert sorted(os.listdir()) == sorted([out, f"new-{out}", "t.csv"])
    assert Path(out).read_bytes() == Path(f"new-{out}").read_bytes()


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("takes the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder, left):
    """Leave so many bytes on the disk."""
    with (folder / "filling").open("wb") as file:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        file.write(bytes(max(0, free - left)))


def refused_on_a_full_disk(capsys, *arguments, folder):
    """Run a command that has to fail on one line and leave all as it was."""
    before = content(folder), content()
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "(No space left on device" in err
    assert (content(folder), content()) == before
    return err


@pytest.mark.parametrize("left", [0, 8192, 40960])
def test_a_full_disk_leaves_the_old_output_and_says_what_to_do(model, small_disk, capsys, left):
    table(3000).write_csv("t.csv")
    (small_disk / "s.csv").write_text("old")
    (small_disk / "r.html").write_text("old")
    fill(small_disk, left)
    for command, out in (("score", "s.csv"), ("report", "r.html")):
        err = refused_on_a_full_disk(
            capsys, command, model, "t.csv", "--out", small_disk / out, folder=small_disk
        )
        assert "on a disk with space left." in err or "choose another --out." in err


def test_a_fit_on_a_full_disk_goes_on_when_there_is_room(small_disk, capsys):
    table().write_csv("t.csv")
    command = ["fit", "t.csv", "--max-steps", "20", "--out"]
    fill(small_disk, 100_000)  # less than a checkpoint
    err = refused_on_a_full_disk(capsys, *command, small_disk / "m", folder=small_disk)
    assert "free some space and save again." in err
    (small_disk / "filling").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert main([*command, str(small_disk / "m")]) == 0
    assert os.listdir(small_disk) == ["m"]


# No permission, which root does not need


WITHOUT_OVERRIDE = "-dac_override,-dac_read_search,-fowner"
SEVERAL = """
import json, sys
from invgan.cli import main
for command in json.loads(sys.argv[1]):
    print(main(command), file=sys.stderr)
"""


def test_files_that_may_not_be_read_or_written_get_one_line(model):
    """Files of another user, seen by a process without the capabilities that let root read them."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("takes the right to give files away, and setpriv")
    table().write_csv("t.csv")
    Path("theirs").mkdir()
    table().write_csv("closed.csv")
    shutil.copytree(model, "closed")
    for path in (Path("closed.csv"), *Path("closed").iterdir()):
        path.chmod(0o600)
        os.chown(path, 65534, 65534)
    os.chown("theirs", 65534, 65534)
    before = content()
    commands = [
        ("fit", "closed.csv", "--out", "m"),
        ("score", str(model), "closed.csv", "--out", "s.csv"),
        ("report", str(model), "closed.csv", "--out", "r.html"),
        ("score", "closed", "t.csv", "--out", "s.csv"),
        ("score", str(model), "t.csv", "--out", "theirs/s.csv"),
    ]
    limited = ["setpriv", "--bounding-set", WITHOUT_OVERRIDE, "--inh-caps", WITHOUT_OVERRIDE]
    command = [*limited, sys.executable, "-c", SEVERAL, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        *3 * ["invgan: closed.csv: cannot be read (Permission denied); check its permissions.", "2"],
        "invgan: closed: could not be read (Permission denied); check the path.",
        "2",
        "invgan: theirs/s.csv: nothing can be written to the folder theirs (Permission denied); "
        "choose another --out.",
        "2",
    ]
    assert content() == before


# Inputs cut short


def write_inputs():
    """One of each kind of file, each of which a fit accepts."""
    table().write_parquet("t.parquet")
    np.savez(Path("t.npz"), X=table().to_numpy())
    np.save(Path("t.npy"), table().to_numpy())
    Path("p").mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8)):
        Image.fromarray(image).save(f"p/{number:02}.png")


@pytest.mark.parametrize("name", ["t.parquet", "t.npz", "t.npy", "p/03.png"])
def test_an_input_cut_anywhere_is_refused_on_one_line(capsys, name):
    write_inputs()
    whole = Path(name).read_bytes()
    data = "p" if name.startswith("p/") else name
    last = len(whole) - (21 if name.endswith(".png") else 1)  # behind the pixels of a PNG are check sums
    for size in sorted({*random.Random(0).sample(range(last), 8), 0, last}):
        Path(name).write_bytes(whole[:size])
        before = content()
        capsys.readouterr()
        assert main(["fit", data, "--out", "m", "--max-steps", "2"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"invgan: {name}")
        assert content() == before


def test_a_model_with_any_file_cut_is_refused_on_one_line(model, capsys):
    table().write_csv("t.csv")
    for file in sorted(model.iterdir()):
        whole = file.read_bytes()
        for size in random.Random(0).sample(range(len(whole)), 6):
            shutil.copytree(model, "m")
            Path("m", file.name).write_bytes(whole[:size])
            before = content()
            for command in (["info", "m"], ["score", "m", "t.csv", "--out", "s.csv"]):
                capsys.readouterr()
                assert main(command) == 2
                out, err = capsys.readouterr()
                assert (out, err.count("\n")) == ("", 1)
                assert err.startswith("invgan: m")
                assert content() == before
            shutil.rmtree("m")
