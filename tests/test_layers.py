"""The layers of the package, as pyproject.toml lists them."""

from pathlib import Path

from importlinter.cli import lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_every_module_imports_only_from_the_layers_below_its_own(capsys):
    exit_code = lint_imports(config_filename=str(PYPROJECT), no_cache=True)
    assert exit_code == 0, capsys.readouterr().out


def test_a_module_that_breaks_the_order_is_found(tmp_path, monkeypatch, capsys):
    package = tmp_path / "layered"
    package.mkdir()
    for name, code in {"__init__": "", "low": "import layered.high", "high": ""}.items():
        (package / f"{name}.py").write_text(code)
    (tmp_path / "pyproject.toml").write_text(
        PYPROJECT.read_text()
        .partition("[tool.importlinter]")[2]
        .partition("layers = [")[0]
        .join(["[tool.importlinter]", 'layers = ["high", "low"]\n'])
        .replace("invgan", "layered")
    )
    monkeypatch.syspath_prepend(tmp_path)
    exit_code = lint_imports(config_filename=str(tmp_path / "pyproject.toml"), no_cache=True)
    assert exit_code == 1
    assert "layered.low -> layered.high" in capsys.readouterr().out
