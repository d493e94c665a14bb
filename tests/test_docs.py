"""The pages that users read: Python and commands run, in order, and give what stands behind an arrow."""

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from invgan import detectors
from invgan.cli import main
from invgan.estimators import neural
from invgan.experiments import densities

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def brief_and_apart(tmp_path, monkeypatch):
    """Cut the default lengths of training, not those that a page asks for; put its draws and files aside."""
    train = neural.train

    def shortened(*arguments, schedule, **options):
        few = schedule if schedule.max_steps <= 1000 else dataclasses.replace(schedule, max_steps=20)
        return train(*arguments, schedule=few, **options)

    monkeypatch.setattr(neural, "train", shortened)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_gives_what_it_says(page):
    text = page.read_text()
    namespace = {"__name__": "page"}
    for block in FENCE.finditer(text):
        if block[1] != "python":
            continue
        assert "..." not in block[2]
        lines = block[2].splitlines()
        for statement in ast.parse(block[2]).body:
            place = f"{page.name}, line {text.count(chr(10), 0, block.start(2)) + statement.lineno}"
            _, arrow, promised = lines[statement.end_lineno - 1].partition("# → ")
            if not arrow:
                exec(compile(ast.Module([statement], []), place, "exec"), namespace)
                continue
            found = str(eval(compile(ast.Expression(statement.value), place, "eval"), namespace))
            if promised.endswith("…"):  # the rest may change
                found = found[: len(promised) - 1] + "…"
            assert found == promised, place


def test_every_command_of_the_readme_runs(tmp_path):
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


def test_the_detectors_page_has_them_all_with_figures_that_were_measured():
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs" / "detectors.md").read_text().splitlines()
        if line.startswith("| `")
    ]
    rows = {row[0].strip("`"): row[-3:] for row in cells}
    assert rows.keys() == set(detectors.__all__) - {"AnomalyDetector", "ImplicitLikelihood", "load"}
    path = ROOT / "results" / "detectors.json"
    measured = json.loads(path.read_text())["cells"] if path.exists() else {}
    assert {name: row for name, row in rows.items() if any(row)} == measured


def test_the_ablation_page_has_the_figures_that_were_measured():
    lines = (ROOT / "docs" / "ablation.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    measured = json.loads((ROOT / "results" / "ablation.json").read_text())["table"]
    assert cells == [measured["columns"], *measured["rows"]]


def test_the_densities_page_has_the_figures_that_were_measured():
    lines = (ROOT / "docs" / "densities.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| model | two-moons"))
    end = lines.index("", start)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start:end]]
    points = json.loads((ROOT / "results" / "densities.json").read_text())["points"]
    measured = densities.table(points, (*densities.TOYS, *densities.TABLES))
    assert [cells[0], *cells[2:]] == [measured["columns"], *measured["rows"]]


@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page_on_tables_runs(tmp_path, capsys):
    text = (ROOT / "docs" / "tables.md").read_text()
    table, images, _, _ = (block[2] for block in FENCE.finditer(text) if block[1] == "python")
    exec(table + images, {})
    commands = re.findall(r"^invgan (.*)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        "fit", "fit", "score", "score", "score", "evaluate", "report", "fit", "score", "report"
    ]  # fmt: skip
    for command in commands:
        assert main(shlex.split(command)) == 0, command
    out = capsys.readouterr().out
    assert "Left out, as it holds a different text in every row: 'patient'." in out
    assert "Column 'ward' has values that the model does not know, all treated alike: moon." in out
    assert {path.name for path in tmp_path.iterdir()} == {
        "patients.csv", "later.csv", "model", "suspicious", "scores.csv", "report.html",
        "pictures", "picture-model", "picture-scores.csv", "pictures.html"
    }  # fmt: skip


def test_the_page_on_tables_has_the_explanations_that_were_measured():
    text = (ROOT / "docs" / "tables.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(("| shifted", "| replaced"))]
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]
    measured = json.loads((ROOT / "results" / "explanations.json").read_text())["table"]["rows"]
    found = {(kind, name): (share, chance) for kind, name, share, chance, _ in measured}
    names = ("InvGAN.explain", "SHAP", "z-score")
    assert cells == [
        [*(found[kind, name][0] for name in names), found[kind, "SHAP"][1]]
        for kind in ("shifted", "replaced")
    ]


def test_the_page_on_tables_has_the_decisions_that_were_measured():
    lines = (ROOT / "docs" / "tables.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| anomalies among"))
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start : lines.index("", start)]
    ]
    measured = json.loads((ROOT / "results" / "decisions.json").read_text())["table"]
    assert cells[0] == measured["columns"]
    assert len(cells) > 2
    assert all(row in measured["rows"] for row in cells[2:])


def test_the_page_on_tables_has_the_gaps_that_were_measured():
    lines = (ROOT / "docs" / "tables.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| gaps filled"))
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start : lines.index("", start)]
    ]
    measured = json.loads((ROOT / "results" / "gaps.json").read_text())["table"]
    assert [cells[0], *cells[2:]] == [measured["columns"], *measured["rows"]]
