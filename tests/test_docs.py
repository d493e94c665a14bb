"""The pages that users read: every Python block and every command on them runs, in order, as it stands."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from invgan.cli import main
from invgan.estimators import neural

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/any-generator.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    """Train as the pages say, but for a few steps."""
    train = neural.train

    def shortened(*arguments, schedule, **options):
        few = dataclasses.replace(schedule, max_steps=min(schedule.max_steps, 20))
        return train(*arguments, schedule=few, **options)

    monkeypatch.setattr(neural, "train", shortened)


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [code for language, code in FENCE.findall((ROOT / page).read_text()) if language == "python"]
    assert blocks
    namespace = {"__name__": "page"}
    for number, code in enumerate(blocks, 1):
        exec(compile(code, f"{page}, block {number}", "exec"), namespace)


def test_every_command_of_the_readme_runs(tmp_path, monkeypatch):
    from sklearn.datasets import load_breast_cancer

    monkeypatch.chdir(tmp_path)
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X[y == 1][:60].to_csv("normal.csv", index=False)
    X[200:230].to_csv("new.csv", index=False)
    commands = re.findall(r"^invgan (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["fit", "score", "report"]
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    assert {path.name for path in tmp_path.iterdir()} == {
        "normal.csv",
        "new.csv",
        "model",
        "scores.csv",
        "report.html",
    }
