"""Killed at any moment, given anything: outputs are whole or absent, inputs untouched, errors one line."""

import os
import random
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
