import errno
import importlib.util
import io
import itertools
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.stats
from PIL import Image
from rich.console import Console
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from invgan import InputError, InvGAN, artifact, cli, load
from invgan.calibration import conformal_p_values
from invgan.cli import main
from invgan.data import Infer, read_images, read_table
from invgan.data.scores import Scores, write_scores
from invgan.density import MADE
from invgan.detectors import IsolationForest
from invgan.detectors.latent import IMAGE_METHODS
from invgan.report.text import shown, with_spread

QUICK = ("--max-steps", "20")
NAMES = ["a", "b", "c"]


def rows(n=100, n_anomalies=12, seed=0):
    """Normal rows around 0, anomalies that overlap them, and labels."""
    rng = np.random.default_rng(seed)
    X = np.vstack([rng.normal(size=(n, 3)), 2.5 * rng.normal(size=(n_anomalies, 3))])
    return X, np.repeat([0, 1], [n, n_anomalies])


def write_csv(path, X, names=NAMES, **columns):
    pl.DataFrame(X, schema=list(names)).with_columns(
        **{k: pl.Series(v) for k, v in columns.items()}
    ).write_csv(path)


def write_images(folder, X):
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(X):
        Image.fromarray(image).save(folder / f"{number:02}.png")


def images(n, size=(8, 8)):
    return np.random.default_rng(0).integers(0, 255, (n, *size), dtype=np.uint8)


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in Path(folder).rglob("*")}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with data and the model fitted on its normal rows."""
    folder = tmp_path_factory.mktemp("fitted")
    X, y = rows()
    write_csv(folder / "data.csv", X, odd=y)
    assert main(["fit", f"{folder}/data.csv", "--out", f"{folder}/model", "--label", "odd", *QUICK]) == 0
    return folder


@pytest.fixture
def here(fitted, tmp_path, monkeypatch):
    """An empty working folder, beside a model and its data."""
    for name in ("model", "data.csv"):
        (tmp_path / name).symlink_to(fitted / name)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def refused(capsys):
    """Run a command that must exit with code 2 and one line, and leave every file as it was."""

    def run(*arguments):
        before = tree(".")
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("invgan: ")
        assert err.count("\n") == 1
        assert tree(".") == before
        return err.removeprefix("invgan: ").rstrip("\n")

    return run


# What goes right


def test_fit_learns_from_the_normal_rows_alone(fitted):
    X, y = rows()
    expected = InvGAN(max_steps=20, random_state=0).fit(pl.DataFrame(X[y == 0], schema=NAMES))
    model, X = load(fitted / "model"), pl.DataFrame(X, schema=NAMES)
    np.testing.assert_array_equal(model.score_samples(X), expected.score_samples(X))
    np.testing.assert_array_equal(model.calibration_scores_, expected.calibration_scores_)
    assert list(model.feature_names_in_) == NAMES
    assert sorted(os.listdir(fitted)) == ["data.csv", "model"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_are_the_estimators_to_the_last_digit(here, suffix, capsys):
    out = f"scores{suffix}"
    assert main(["score", "../model", "../data.csv", "--label", "odd", "--out", out]) == 0
    table = (pl.read_csv if suffix == ".csv" else pl.read_parquet)(out)
    model, (X, _) = load("../model"), rows()
    assert table.columns == ["row", "log_prob", "anomaly_score", "p_value", "is_anomaly"]
    assert table["row"].to_list() == list(range(1, 113))
    X = pl.DataFrame(X, schema=NAMES)
    np.testing.assert_array_equal(table["log_prob"], model.score_samples(X))
    np.testing.assert_array_equal(table["anomaly_score"], -model.score_samples(X))
    np.testing.assert_array_equal(table["p_value"], model.p_values(X))
    np.testing.assert_array_equal(table["is_anomaly"], model.predict(X) == -1)
    flagged = table["is_anomaly"].sum()
    assert 0 < flagged < 112
    assert capsys.readouterr().out == (
        f"Flagged {flagged} of 112 rows ({flagged / 112:.1%}) as anomalous; the scores are in {out}.\n"
    )


def test_evaluate_prints_scikit_learns_figures_of_the_scores_file(here, capsys):
    main(["score", "../model", "../data.csv", "--label", "odd", "--out", "scores.csv"])
    table, (_, y) = pl.read_csv("scores.csv"), rows()
    capsys.readouterr()
    assert main(["evaluate", "../model", "../data.csv", "--label", "odd"]) == 0
    out = capsys.readouterr().out
    shown = dict(
        zip(re.findall("AUROC|AP|precision|recall|F1", out), re.findall(r"\d\.\d{3}", out), strict=True)
    )
    precision, recall, f1, _ = precision_recall_fscore_support(y, table["is_anomaly"], average="binary")
    expected = {
        "AUROC": roc_auc_score(y, table["anomaly_score"]),
        "AP": average_precision_score(y, table["anomaly_score"]),
        "precision": precision,
        "recall": recall,
        "F1": f1,
    }
    assert shown == {name: f"{value:.3f}" for name, value in expected.items()}
    assert out.endswith(f"112 rows, 12 of them anomalous; {table['is_anomaly'].sum()} flagged.\n")


def test_every_file_type_gives_the_same_scores(here):
    X, y = rows()
    write_csv("b.csv", X)
    pl.DataFrame(X, schema=NAMES).write_parquet("b.parquet")
    np.savez("b.npz", X=X, y=y)
    np.save("b.npy", X)
    expected = load("../model").score_samples(pl.DataFrame(X, schema=NAMES))
    for name in ("b.csv", "b.parquet", "b.npz", "b.npy"):
        assert main(["score", "../model", name, "--out", "scores.parquet"]) == 0
        np.testing.assert_array_equal(pl.read_parquet("scores.parquet")["log_prob"], expected)


@pytest.fixture
def blocks(monkeypatch):
    """Read in blocks of 512 rows; lists the numbers of rows that were scored together."""
    monkeypatch.setattr("invgan.data.tables.BLOCK_CELLS", 1)
    monkeypatch.setattr("invgan.data.tables.CSV_PIECE", 1000)
    score, numbers = InvGAN.score_samples, []

    def counted(self, X):
        numbers.append(len(X))
        return score(self, X)

    monkeypatch.setattr(InvGAN, "score_samples", counted)
    return numbers


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_scores_in_blocks_are_those_of_all_rows_at_once(here, blocks, capsys, suffix):
    X, model = rows(n=1100)[0], load("../model")
    whole = model.score_samples(pl.DataFrame(X, schema=NAMES))
    write_csv("b.csv", X[:, [1, 0, 2]], names=["b", "a", "c"])
    pl.DataFrame(X, schema=NAMES).write_parquet("b.parquet", row_group_size=300)
    np.save("b.npy", X)
    for name in ("b.csv", "b.parquet", "b.npy"):
        blocks.clear()
        assert main(["score", "../model", name, "--out", f"s{suffix}"]) == 0
        assert blocks == [512, 512, 88]
        table = (pl.read_csv if suffix == ".csv" else pl.read_parquet)(f"s{suffix}")
        assert table["row"].to_list() == list(range(1, 1113))
        np.testing.assert_array_equal(table["log_prob"], whole)
        np.testing.assert_array_equal(table["p_value"], conformal_p_values(whole, model.calibration_scores_))
        flagged = (whole < model.offset_).sum()
        np.testing.assert_array_equal(table["is_anomaly"], whole < model.offset_)
        assert capsys.readouterr().out == (
            f"Flagged {flagged} of 1112 rows ({flagged / 1112:.1%}) as anomalous; "
            f"the scores are in s{suffix}.\n"
        )


@pytest.mark.parametrize("out", ["s.csv", "s.parquet"])
def test_a_flaw_in_the_last_block_leaves_the_scores_of_before(here, blocks, refused, out):
    X, _ = rows(n=1100)
    X[1099, 1] = np.inf
    write_csv("b.csv", X)
    assert refused("score", "../model", "b.csv", "--out", out) == (
        "b.csv, row 1100 (line 1101), column 'b': found inf; replace it with a finite number."
    )
    Path(out).write_text("old")
    refused("score", "../model", "b.csv", "--out", out)
    assert blocks == [512, 512] * 2


def test_an_interruption_between_two_blocks_leaves_the_scores_of_before(here, blocks, capsys, monkeypatch):
    def interrupted(self, X):
        if blocks:
            raise KeyboardInterrupt
        return score(self, X)

    score = InvGAN.score_samples
    monkeypatch.setattr(InvGAN, "score_samples", interrupted)
    write_csv("b.csv", rows(n=1100)[0])
    Path("s.csv").write_text("old")
    before = tree(".")
    assert main(["score", "../model", "b.csv", "--out", "s.csv"]) == 130
    assert capsys.readouterr() == ("", "invgan: interrupted; nothing was written.\n")
    assert tree(".") == before
    assert blocks == [512]


@pytest.mark.parametrize("label", [["false", "true"], [False, True], [0.0, 1.0]])
def test_anomalies_are_marked_by_numbers_booleans_or_words(here, label):
    X, y = rows()
    labels = pl.Series([label[value] for value in y])
    frame = pl.DataFrame(X, schema=NAMES).with_columns(odd=labels)
    frame.write_parquet("b.parquet")
    assert main(["fit", "b.parquet", "--out", "again", "--label", "odd", *QUICK]) == 0
    assert tree("again").keys() == {Path("again", path.name) for path in Path("../model").iterdir()}


def test_columns_are_matched_by_name_in_any_order(here):
    X, _ = rows()
    write_csv("b.csv", X[:, [2, 0, 1]], names=["c", "a", "b"])
    assert main(["score", "../model", "b.csv", "--out", "scores.parquet"]) == 0
    np.testing.assert_array_equal(
        pl.read_parquet("scores.parquet")["log_prob"],
        load("../model").score_samples(pl.DataFrame(X, schema=NAMES)),
    )


def test_a_table_without_names_is_fitted_and_scored_by_position(here, capsys):
    X, y = rows()
    np.savez("b.npz", X=X, y=y)
    assert main(["fit", "b.npz", "--out", "model", "--method", "joint", "--latent-dim", "2", *QUICK]) == 0
    assert (
        "The file also holds labels y; --label y would keep the rows marked 1 out of training."
        in capsys.readouterr().out.splitlines()
    )
    model = load("model")
    assert (model.method, model.latent_dim_, hasattr(model, "feature_names_in_")) == ("joint", 2, False)
    write_csv("b.csv", X)
    assert main(["score", "model", "b.csv", "--out", "scores.parquet"]) == 0
    np.testing.assert_array_equal(pl.read_parquet("scores.parquet")["log_prob"], model.score_samples(X))


def test_a_folder_of_images_from_fit_to_report(here, capsys):
    write_images(here / "pictures", images(30))
    assert main(["fit", "pictures", "--out", "model", *QUICK]) == 0
    # 30 rows leave 10 for calibration, and 1 / 11 is above 0.05.
    nothing = "Nothing is flagged: 10 calibration rows cannot vouch for a false-positive rate of 0.05;"
    assert nothing in capsys.readouterr().out
    assert main(["score", "model", "pictures", "--out", "scores.parquet"]) == 0
    assert nothing in capsys.readouterr().out
    np.testing.assert_array_equal(
        pl.read_parquet("scores.parquet")["log_prob"], load("model").score_samples(images(30)[:, None])
    )
    assert pl.read_parquet("scores.parquet")["file"].to_list() == [f"{number:02}.png" for number in range(30)]
    assert main(["score", "model", "pictures", "--out", "scores.csv", "--fdr", "0.5"]) == 0
    header, *lines = Path("scores.csv").read_text().splitlines()
    assert header == "row,log_prob,anomaly_score,p_value,is_anomaly,file"
    assert [line.rsplit(",", 1)[1] for line in lines] == [f"{number:02}.png" for number in range(30)]
    assert main(["report", "model", "pictures", "--out", "report.html"]) == 0
    page = Path("report.html").read_text()
    assert all(f"{number:02}.png" in page for number in range(30))


def test_report_shows_names_labels_and_the_model(here, capsys):
    assert main(["report", "../model", "../data.csv", "--label", "odd", "--out", "r.html"]) == 0
    assert capsys.readouterr().out == "The report is in r.html; open it in a browser.\n"
    page = Path("r.html").read_text()
    model, (X, y) = load("../model"), rows()
    scores = model.score_samples(pl.DataFrame(X, schema=NAMES))
    assert "Anomalies in data.csv" in page
    assert f">row {scores.argmin() + 1}<" in page
    assert f">{roc_auc_score(y, -scores):.3f}<" in page
    assert f"{model.offset_:.6g} nats" in page
    assert main(["report", "../model", "../data.csv", "--label", "odd", "--out", "r.html"]) == 0
    assert Path("r.html").read_text() == page


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_report_reads_a_table_block_by_block(here, blocks, suffix):
    X, y = rows(n=1100, n_anomalies=40)
    write_csv("b.csv", X, odd=y)
    pl.read_csv("b.csv").write_parquet("b.parquet", row_group_size=300)
    assert main(["report", "../model", f"b{suffix}", "--label", "odd", "--out", "r.html"]) == 0
    assert blocks == [512, 512, 116]
    page, model = Path("r.html").read_text(), load("../model")
    scores = model.score_samples(pl.DataFrame(X, schema=NAMES))
    flagged = (scores < model.offset_).sum()
    assert f'<span data-live="flagged">{flagged}</span> of 1140 rows flagged' in page
    assert f">{roc_auc_score(y, -scores):.3f}<" in page


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["info"], "info"),
        (["report", "../data.csv", "--out", "r.html", "--label", "odd"], "report"),
        (["score", "../data.csv", "--out", "s.csv", "--label", "odd", "--explain", "2"], "--explain"),
    ],
)
def test_only_invgans_models_are_explained(here, refused, arguments, what):
    IsolationForest(random_state=0).fit(rows()[0]).save("forest")
    command, *rest = arguments
    assert refused(command, "forest", *rest) == (
        f"forest: is a model of IsolationForest, and {what} takes one of InvGAN; score or evaluate by it."
    )


def test_a_density_models_file_is_scored_by_a_process_that_knew_of_none(here):
    X, _ = rows()
    MADE(max_steps=5, random_state=0).fit(X).save("made")
    code = "from invgan import load; print(load('made').score_samples([[0.0, 0.0, 0.0]]).shape)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "(1,)\n"


def test_a_column_without_a_value_among_the_normal_rows_is_refused(here, refused):
    X, y = rows()
    write_csv("gaps.csv", X, odd=y, mark=[None if normal else 7.0 for normal in y == 0])
    assert refused("fit", "gaps.csv", "--out", "m", "--label", "odd") == (
        "X has no value in column 'mark' of the rows to learn from; leave the column out."
    )


def test_info_describes_the_model(here, capsys):
    assert main(["info", "../model"]) == 0
    card = dict(re.findall(r"^  (\S.*?)  +(\S.*?) *$", capsys.readouterr().out, re.MULTILINE))
    model = load("../model")
    assert card == {
        "detector": "InvGAN",
        "data": "table of 3 columns",
        "columns": "a, b, c",
        "preset": "default",
        "log-likelihood": "aggregate",
        "latent dimension": "1",
        "network parameters": f"{sum(p.numel() for p in model.model_.parameters()):,}",
        "size on disk": f"{sum(p.stat().st_size for p in Path('../model').iterdir()) / 1e6:.1f} MB",
        "threshold": f"{model.offset_:.6g} nats",
        "false-positive rate": "0.05 at most, on average",
        "calibration rows": "19",
        "steps": "20",
        "best step": "20",
        "seed": "0",
    }


def test_a_constant_column_is_no_mistake(here):
    X, _ = rows()
    X[:, 1] = 7.0
    write_csv("b.csv", X)
    assert main(["fit", "b.csv", "--out", "model", *QUICK]) == 0
    assert np.isfinite(load("model").score_samples(pl.DataFrame(X, schema=NAMES))).all()


def test_a_large_table_is_learned_from_by_a_sample_of_its_rows(here, capsys, monkeypatch):
    monkeypatch.setattr("invgan.data.tables.SAMPLE_ROWS", 512)
    X, y = rows(n=900, n_anomalies=100)
    write_csv("b.csv", X, odd=y)
    assert main(["fit", "b.csv", "--out", "model", "--label", "odd", "--seed", "3", *QUICK]) == 0
    chosen = np.sort(np.random.default_rng(3).random(1000).argsort()[:512])
    normal = X[chosen][y[chosen] == 0]
    assert capsys.readouterr().out.startswith(
        f"Fitted on {len(normal)} rows of b.csv, without the {512 - len(normal)} anomalies among them, and "
        "saved to model.\nKept 512 of 1,000 rows, drawn at random; training sees 2,560.\n"
    )
    expected = InvGAN(max_steps=20, unskew=True, random_state=3).fit(pl.DataFrame(normal, schema=NAMES))
    np.testing.assert_array_equal(load("model").calibration_scores_, expected.calibration_scores_)


def test_rows_presumed_anomalous_are_left_out(here, capsys):
    X, _ = rows()
    write_csv("b.csv", X)
    assert main(["fit", "b.csv", "--out", "model", "--contamination", "0.1", *QUICK]) == 0
    expected = InvGAN(max_steps=20, unskew=True, trim=0.1, random_state=0).fit(pl.DataFrame(X, schema=NAMES))
    n = len(expected.trimmed_)
    assert capsys.readouterr().out.splitlines()[1] == f"Left {n} rows of these out, presumed anomalous."
    np.testing.assert_array_equal(load("model").calibration_scores_, expected.calibration_scores_)
    assert load("model").trim == 0.1


def test_an_existing_model_is_replaced(here):
    X, _ = rows()
    write_csv("b.csv", X)
    for seed in ("1", "2"):
        assert main(["fit", "b.csv", "--out", "model", "--seed", seed, *QUICK]) == 0
        assert load("model").random_state == int(seed)
    assert sorted(os.listdir()) == ["b.csv", "model"]


def interrupt_at(step, monkeypatch):
    """Press Ctrl-C when the checkpoint of this step has been written."""
    write = artifact.write

    def write_and_interrupt(path, *, metadata, **rest):
        write(path, metadata=metadata, **rest)
        if metadata["step"] == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(artifact, "write", write_and_interrupt)


def test_an_interrupted_fit_continues_to_the_same_model(here, capsys, monkeypatch):
    write_csv("b.csv", rows()[0])
    command = ["fit", "b.csv", "--checkpoint-every", "20", "--max-steps", "60", "--out"]
    assert main([*command, "straight"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_at(20, patch)
        assert main([*command, "model"]) == 130
    assert capsys.readouterr() == (
        "",
        "invgan: interrupted; run the same command again to continue from model.checkpoint.\n",
    )
    assert sorted(os.listdir()) == ["b.csv", "model.checkpoint", "straight"]
    assert 20 <= artifact.read("model.checkpoint").metadata["step"] <= 21

    assert main([*command, "model"]) == 0
    assert sorted(os.listdir()) == ["b.csv", "model", "straight"]
    # The weights file is named after its content.
    assert sorted(os.listdir("model")) == sorted(os.listdir("straight"))


def test_a_model_in_the_working_folder_has_its_checkpoint_beside_it(here, capsys, monkeypatch):
    (here / "m").mkdir()
    monkeypatch.chdir("m")
    for out in (".", "deep/.."):
        command = ["fit", "../../data.csv", "--label", "odd", "--out", out, *QUICK]
        before = os.listdir()
        with monkeypatch.context() as patch:
            interrupt_at(0, patch)
            assert main(command) == 130
        assert capsys.readouterr().err == (
            f"invgan: interrupted; run the same command again to continue from {here}/m.checkpoint.\n"
        )
        assert (os.listdir(), sorted(os.listdir(here))) == (before, ["m", "m.checkpoint"])
        assert main(command) == 0
        assert os.listdir(here) == ["m"]
        assert load(out).max_steps == 20
        Path("deep").mkdir(exist_ok=True)


def test_an_interruption_before_the_first_checkpoint_leaves_nothing(here, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(InvGAN, "fit", interrupted)
    assert main(["fit", "../data.csv", "--out", "model"]) == 130
    assert capsys.readouterr() == ("", "invgan: interrupted; nothing was written.\n")
    assert os.listdir() == []


def test_reproduce_shows_an_experiments_table(here, capsys, monkeypatch):
    def run(*, quick, out):
        assert (quick, out) == (True, Path("deep/results"))
        return {
            "title": "A title",
            "table": {"columns": ["score", "F1"], "rows": [["ours", 0.51239], ["theirs", "0.5 ± 0.1"]]},
        }

    monkeypatch.setitem(sys.modules, "invgan.experiments.table4", types.SimpleNamespace(run=run))
    assert main(["reproduce", "table4", "--quick", "--out", "deep/results"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["A", "title"] in lines
    assert ["ours", "0.512"] in lines
    assert ["theirs", "0.5", "±", "0.1"] in lines
    assert lines[-1] == ["The", "results", "are", "in", "deep/results/."]


def test_an_experiments_own_options_reach_it_and_those_of_others_do_not(here, refused, monkeypatch):
    given = []

    def run(*, quick, out, data="digits", hours=None, seeds=(3,)):
        given.append((data, hours, seeds))
        return {"title": "", "table": {"columns": ["a"], "rows": [["b"]]}}

    monkeypatch.setitem(sys.modules, "invgan.experiments.table1", types.SimpleNamespace(run=run))
    assert main(["reproduce", "table1", "--data", "mnist", "--hours", "1.5"]) == 0
    assert main(["reproduce", "table1", "--seeds", "2"]) == 0
    assert main(["reproduce", "table1"]) == 0
    assert given == [("mnist", 1.5, (3,)), ("digits", None, (0, 1)), ("digits", None, (3,))]
    monkeypatch.setitem(
        sys.modules,
        "invgan.experiments.table4",
        types.SimpleNamespace(run=lambda quick, out: given.append(0)),
    )
    assert refused("reproduce", "table4", "--data", "mnist") == (
        "Invalid value: --data is not for table4; leave it out; try 'invgan reproduce --help'."
    )
    assert len(given) == 3


def test_benchmark_runs_what_it_is_asked_for(here, capsys, monkeypatch):
    def run(*, quick, out):
        return {"title": "Speed", "table": {"columns": ["what"], "rows": [[f"{quick} {out}"]]}}

    monkeypatch.setitem(sys.modules, "invgan.experiments.speed", types.SimpleNamespace(run=run))
    assert main(["benchmark", "speed", "--quick"]) == 0
    assert "True results" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*cli.EXPERIMENTS, *cli.BENCHMARKS])
def test_every_experiment_listed_is_there(name):
    assert importlib.util.find_spec(f"invgan.experiments.{name}") is not None


def test_the_likelihoods_offered_are_the_estimators():
    assert {likelihood.value for likelihood in cli.Likelihood} == set(IMAGE_METHODS)


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "invgan 0.1.0\n"
    assert main([]) == 0
    commands = capsys.readouterr().out
    for name in ("demo", "fit", "score", "evaluate", "report", "info", "reproduce", "benchmark"):
        assert f"  {name} " in commands
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: invgan {name} [OPTIONS]")


def test_help_does_not_wait_for_pytorch():
    code = "import sys; from invgan.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_command_exits_with_its_code():
    command = Path(sys.executable).with_name("invgan")
    done = subprocess.run([command, "info", "nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "invgan: nowhere: no such folder; give the folder that a model was saved to.\n",
    )


def run_into(stdout, *arguments, **environment):
    """Run the command with its output sent there: its exit code, output and errors."""
    command = [Path(sys.executable).with_name("invgan"), *arguments]
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | environment, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_characters_that_an_encoding_has_not_are_replaced():
    code, out, err = run_into(subprocess.PIPE, "fit", "--help", PYTHONIOENCODING="cp437")
    assert (code, err) == (0, "")
    assert b"Resize images to N?N pixels" in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--version"], ["info", "../model"]])
def test_a_reader_that_has_gone_ends_a_command_without_a_word(here, arguments, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_into(writer, *arguments, PYTHONUNBUFFERED=unbuffered) == (141, None, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_finds_no_space_left(unbuffered):
    with open("/dev/full", "wb") as full:
        assert run_into(full, "--version", PYTHONUNBUFFERED=unbuffered) == (
            2,
            None,
            "invgan: the output could not be written (No space left on device); "
            "free some space or send it elsewhere.\n",
        )


def test_the_threshold_is_chosen_when_rows_are_scored(here, capsys):
    model = load("../model").set_threshold(0.3)
    X = pl.DataFrame(rows()[0], schema=NAMES)
    score = ("score", "../model", "../data.csv", "--label", "odd", "--out", "s.parquet")
    assert main([*score, "--false-positive-rate", "0.3"]) == 0
    flagged = pl.read_parquet("s.parquet")["is_anomaly"].to_numpy()
    np.testing.assert_array_equal(flagged, model.predict(X) == -1)
    assert main(["report", *score[1:-1], "r.html", "--false-positive-rate", "0.3"]) == 0
    assert f"{model.offset_:.6g} nats" in Path("r.html").read_text()
    capsys.readouterr()
    assert main(["evaluate", *score[1:-2], "--false-positive-rate", "0.3"]) == 0
    assert f"12 of them anomalous; {flagged.sum()} flagged." in capsys.readouterr().out


def test_reasons_are_those_of_the_most_anomalous_rows_of_all_blocks(here, blocks, capsys):
    X = rows(n=1100)[0]
    X[1050] = [0, 40, 0]
    X[3] = [-30, 0, 0]
    write_csv("b.csv", X)
    assert main(["score", "../model", "b.csv", "--out", "s.parquet", "--explain", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    model = load("../model")
    frame = pl.DataFrame(X, schema=NAMES)
    shares, (mean, std) = model.explain(frame), model.expected(frame)
    assert out[1] == "The most anomalous rows, and the columns that add most to it:"
    for line, row, column in ((out[2], 1050, 1), (out[3], 3, 0)):
        expected = with_spread(mean[row, column], std[row, column])
        assert line.startswith(
            f"  row {row + 1} (p = 0.05): {NAMES[column]} {shown(X[row, column])}, expected {expected} "
            f"({shares[row, column]:+.3g} nats)"
        )


def test_false_discoveries_are_controlled_over_all_blocks(here, blocks, capsys):
    X = np.vstack([rows(n=600)[0], 50 + rows(n=600)[0]])
    write_csv("b.csv", X)
    command = ("score", "../model", "b.csv", "--out", "s.parquet", "--fdr")
    assert main([*command, "0.4"]) == 0
    table = pl.read_parquet("s.parquet")
    assert blocks == [512, 512, 200]
    expected = scipy.stats.false_discovery_control(table["p_value"].to_numpy()) <= 0.4
    np.testing.assert_array_equal(table["is_anomaly"], expected)
    assert expected[-600:].all()
    assert main([*command, "0.01"]) == 0
    assert capsys.readouterr().out.endswith(
        "19 calibration rows make no p-value smaller than 0.05: with more of them, or a higher --fdr, rows "
        "might be flagged.\n"
    )


MESSY = """number,when,height,pet,fed,rare,name,empty,seven,twin
{rows}"""


def messy(n, pet="cat"):
    """Lines of a table with everything that real ones have."""
    rng = np.random.default_rng(n)
    lines = []
    for i in range(n):
        height = f"{rng.normal(170, 10):.1f}"
        pets, known = ["dog", pet, "NA"], rng.random() < 0.8
        twin = height if known else ""
        lines.append(
            f"{i},2024-01-{i % 28 + 1:02},{height if known else '?'},{pets[rng.integers(3)]},"
            f"{['yes', 'No', ''][rng.integers(3)]},{np.exp(3 * rng.normal()):.6f},p{i},,7,{twin}"
        )
    return MESSY.format(rows="\n".join(lines)) + "\n"


def test_a_column_that_names_the_rows_is_left_out_and_said_to_be(here, capsys):
    X = np.random.default_rng(0).normal(size=(40, 2)).tolist()
    named = "".join(f"{i},{a},{b}\n" for i, (a, b) in enumerate(X))
    Path("named.csv").write_text(f",a,b\n{named}")
    Path("bare.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in X))
    said = "Left out, as it names the rows: the column without a name of its own.\n"
    for file, is_said in (("named", True), ("bare", False)):
        assert main(["fit", f"{file}.csv", "--out", file, *QUICK]) == 0
        assert (said in capsys.readouterr().out) == is_said
        assert main(["score", "named", f"{file}.csv", "--out", f"{file}_scores.csv"]) == 0
        capsys.readouterr()
    assert Path("named_scores.csv").read_bytes() == Path("bare_scores.csv").read_bytes()


def test_a_messy_table_is_fitted_and_what_was_found_is_said_and_kept(here, capsys):
    Path("t.csv").write_text(messy(60))
    assert main(["fit", "t.csv", "--out", "m", "--drop", "when", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "Left out, as it has no value: 'empty'.\n" in out
    assert "Left out, as it holds a different text in every row: 'name'.\n" in out
    assert "Constant, so that nothing is learned from it: 'seven'.\n" in out
    assert "count twice: 'height' = 'twin'. Leave one out with --drop.\n" in out
    assert (
        "Column 'number' looks like a number of the row, which says nothing about it; "
        "leave it out with --drop number.\n"
    ) in out
    model, table = load("m"), read_table("t.csv", columns=Infer(drop=("when",)))
    assert list(model.feature_names_in_) == [
        "number", "height", "pet=cat", "pet=dog", "fed", "rare", "seven", "twin"
    ]  # fmt: skip
    assert model.columns_ == table.columns
    assert (model.scaling_.width > 0).tolist() == [False] * 5 + [True] + [False] * 2  # rare alone is skewed
    n_missing = np.isnan(table.X).sum()
    assert f"{n_missing} of {table.X.size} values are missing; a row is judged by those that it has.\n" in out

    Path("new.csv").write_text(messy(20, pet="newt"))
    assert main(["score", "m", "new.csv", "--out", "s.parquet"]) == 0
    assert (
        "Column 'pet' has values that the model does not know, all treated alike: newt.\n"
        in capsys.readouterr().out
    )
    Path("long.csv").write_text(messy(20, pet="a newt of a length that no line of a terminal has room for"))
    assert main(["score", "m", "long.csv", "--out", "s.parquet"]) == 0
    assert "all treated alike: a newt of a length that no line of a te….\n" in capsys.readouterr().out
    X = read_table("new.csv", columns=model.columns_).X
    assert np.nanmax(X[:, 2]) == 0  # no cat
    expected = model.log_likelihood(pl.DataFrame(X, schema=list(model.feature_names_in_))).values
    np.testing.assert_array_equal(pl.read_parquet("s.parquet")["log_prob"], expected)
    assert np.isfinite(expected).all()


def test_arrhythmia_as_it_is(here, capsys):
    path = Path(os.environ.get("INVGAN_DATA", "data")) / "arrhythmia" / "arrhythmia.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    assert main(["fit", str(path), "--out", "m", "--label", "class", "--normal", "1", *QUICK]) == 0
    assert f"Fitted on 245 rows of {path}, without the 207 anomalies among them" in capsys.readouterr().out
    assert main(["evaluate", "m", str(path), "--label", "class", "--normal", "1"]) == 0
    assert "452 rows, 207 of them anomalous;" in capsys.readouterr().out


# What the user got wrong: one line, exit code 2, nothing changed


GOOD = "0.1,0.2,0.3\n" * 12
MISTAKES = {
    f"1,2,-inf\n{GOOD}": "row 1 (line 2), column 'c': found -inf; replace it with a finite number.",
    f"1e30,2,3\n{GOOD}": "row 1 (line 2), column 'a': found 1e+30, above 1e+18 in size; rescale the column.",
    f"{GOOD}1,2,red\n": (
        "row 13 (line 14), column 'c': found 'red', expected a number; encode the text, drop the column, or "
        "name it as the label."
    ),
}


@pytest.mark.parametrize(("cells", "message"), MISTAKES.items(), ids=["infinite", "huge", "text"])
def test_bad_cells(here, refused, cells, message):
    Path("t.csv").write_text(f"a,b,c\n{cells}")
    assert refused("fit", "t.csv", "--out", "model") == f"t.csv, {message}"
    assert refused("score", "../model", "t.csv", "--out", "s.csv") == f"t.csv, {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "t.csv: is empty; write the data to it again."),
        ("a,b,c\n", "t.csv: has 0 rows of data, expected at least 10; add rows."),
        ("a,b,c\n1,2,3\n", "t.csv: has 1 row of data, expected at least 10; add rows."),
        ("a,b,c\n" + "1,2,3\n" * 9, "t.csv: has 9 rows of data, expected at least 10; add rows."),
    ],
)
def test_too_few_rows_to_fit(here, refused, content, message):
    Path("t.csv").write_text(content)
    assert refused("fit", "t.csv", "--out", "model") == message


def test_labels_that_cannot_be_used(here, refused):
    X, y = rows(n=12)
    write_csv("t.csv", X, odd=y, kind=np.arange(24) % 3, normal=1 - 2 * y, all=np.ones(24, int))
    fit = ("fit", "t.csv", "--out", "model", "--label")
    assert refused(*fit, "other") == (
        "t.csv: has no column 'other'; it has 'a', 'b', 'c', 'odd', 'kind', 'normal', 'all'."
    )
    expected = (
        "expected 0 (normal) and 1 (anomaly), or false and true; or say with --normal which value is normal."
    )
    assert refused(*fit, "kind") == f"t.csv, label 'kind': found 0, 1, 2; {expected}"
    assert refused(*fit, "normal") == f"t.csv, label 'normal': found -1, 1; {expected}"
    assert refused(*fit, "kind", "--normal", "3") == (
        "t.csv, label 'kind': found 0, 1, 2; --normal 3 is none of them."
    )
    assert refused("fit", "t.csv", "--out", "model", "--normal", "3") == (
        "Invalid value: --normal is for the values of --label; give both; try 'invgan fit --help'."
    )
    assert refused("fit", "t.csv", "--out", "model", "--drop", "other") == (
        "t.csv: has no column 'other' to drop; it has 'a', 'b', 'c', 'odd', 'kind', 'normal', 'all'."
    )
    assert refused(*fit, "all") == "t.csv: has 0 normal rows, expected at least 10."
    write_csv("u.csv", X, all=np.ones(24, int), none=np.zeros(24, int))
    evaluate = ("evaluate", "../model", "u.csv", "--label")
    write_csv("u.csv", X, odd=np.ones(24, int))
    assert (
        refused(*evaluate, "odd") == "u.csv, label 'odd': has anomalies only; to evaluate takes both kinds."
    )
    write_csv("u.csv", X, odd=np.zeros(24, int))
    assert (
        refused(*evaluate, "odd") == "u.csv, label 'odd': has normal rows only; to evaluate takes both kinds."
    )


def test_data_of_another_form_than_the_models(here, refused):
    score = ("score", "../model", "--out", "s.csv")
    X, _ = rows(n=12)
    write_csv("fewer.csv", X[:, :2], names=["a", "b"])
    assert (
        refused(*score, "fewer.csv") == "fewer.csv: has no column 'c', which the model was fitted on; add it."
    )
    assert refused(*score, "../data.csv") == (
        "../data.csv: has the column 'odd', which the model was not fitted on; drop it, or leave it out with "
        "--label odd."
    )
    write_csv("more.csv", np.c_[X, X[:, 1:]], names=["a", "b", "c", "d", "e"])
    assert refused(*score, "more.csv") == (
        "more.csv: has the columns 'd', 'e', which the model was not fitted on; drop them."
    )
    Path("words.csv").write_text("a,b,c\n1,2,tall\n")
    assert refused(*score, "words.csv") == (
        "words.csv, row 1 (line 2), column 'c': found 'tall', expected a number; encode the text, drop the "
        "column, or name it as the label."
    )
    np.save("two.npy", X[:, :2])
    assert refused(*score, "two.npy") == (
        "two.npy: has 2 columns, but the model was fitted on 3 columns; give data of the same form."
    )
    write_images(here / "pictures", images(2))
    assert refused(*score, "pictures") == (
        "pictures: has 1×8×8 images, but the model was fitted on 3 columns; give data of the same form."
    )


def test_a_table_for_a_model_of_images(here, refused):
    write_images(here / "pictures", images(12))
    assert main(["fit", "pictures", "--out", "model", *QUICK]) == 0
    Path("words.csv").write_text("a,odd\ntall,0\n")
    expected = "words.csv: is a table, but the model was fitted on 1×8×8 images; give images."
    assert refused("score", "model", "words.csv", "--out", "s.csv") == expected
    assert refused("evaluate", "model", "words.csv", "--label", "odd") == expected
    assert refused("report", "model", "words.csv", "--out", "r.html") == expected


def test_a_first_line_of_numbers_is_said_to_count_as_a_row(here, capsys):
    X, _ = rows(n=40, n_anomalies=0)
    note = (
        "The first line holds numbers only, so it counts as a row, and columns go by their place; if it has "
        "their names, give one of these a letter.\n"
    )
    lines = [",".join(map(str, row)) for row in X.tolist()]
    Path("years.csv").write_text("\n".join(["2021,2022,2023", *lines]))
    assert main(["fit", "years.csv", "--out", "m", *QUICK]) == 0
    assert note in (out := capsys.readouterr().out)
    assert "Fitted on 41 rows" in out
    Path("named.csv").write_text("\n".join(["x0,x1,x2", *lines]))
    assert main(["fit", "named.csv", "--out", "m", *QUICK]) == 0
    assert note not in capsys.readouterr().out


def test_images_of_any_size_are_resized_by_option_and_by_the_model_after_that(here, capsys, refused):
    write_images(here / "pictures", images(30))
    Image.fromarray(images(1, (11, 9))[0]).save("pictures/wide.png")
    fit = ("fit", "pictures", "--resize", "6", *QUICK)
    assert main([*fit, "--out", "model6"]) == 0
    model, pictures = load("model6"), read_images("pictures", size=6).X
    assert model.image_size_ == 6
    assert main(["score", "model6", "pictures", "--out", "scores.parquet"]) == 0
    np.testing.assert_array_equal(
        pl.read_parquet("scores.parquet")["log_prob"], model.score_samples(pictures)
    )
    assert main(["report", "model6", "pictures", "--out", "report.html"]) == 0
    capsys.readouterr()
    assert main(["info", "model6"]) == 0
    assert "from any size" in capsys.readouterr().out
    assert refused("fit", "../data.csv", "--out", "m", "--resize", "6") == (
        "Invalid value: --resize is for images, and ../data.csv is a table; try 'invgan fit --help'."
    )
    assert refused("fit", "../data.csv", "--out", "m", "--method", "ratio") == (
        "Invalid value: --method ratio is for images, and ../data.csv is a table; try 'invgan fit --help'."
    )
    assert main(["fit", "pictures", "--out", "model7", "--resize", "6", "--method", "ratio", *QUICK]) == 0
    assert main(["report", "model7", "pictures", "--out", "ratio.html"]) == 0
    page = Path("ratio.html").read_text(encoding="utf-8")
    assert "log p(x)/q(x) in nats" in page
    assert "log p(x) in nats" not in page


def test_labelled_images_are_kept_out_of_training(here, capsys):
    X, y = images(40)[:, None], np.repeat([0, 1], [30, 10])
    np.savez("pictures.npz", X=X, y=np.zeros(40, int), odd=y)
    assert main(["fit", "pictures.npz", "--label", "odd", "--out", "m", *QUICK]) == 0
    assert "Fitted on 30 rows" in capsys.readouterr().out
    alone = InvGAN(max_steps=20, unskew=True, random_state=0).fit(X[:30])
    np.testing.assert_array_equal(load("m").score_samples(X), alone.score_samples(X))


def test_labels_that_were_not_asked_for_are_mentioned_by_their_name(here, capsys):
    write_images(here / "pictures", images(12))
    rows = [{"bytes": Path(f"pictures/{n:02}.png").read_bytes(), "path": None} for n in range(12)]
    pl.DataFrame({"image": rows, "label": [0, 1] * 6}).write_parquet("pictures.parquet")
    assert main(["fit", "pictures.parquet", "--out", "m", *QUICK]) == 0
    assert (
        "The file also holds labels label; --label label would keep the rows marked 1 out of training."
        in capsys.readouterr().out.splitlines()
    )


def test_damaged_and_mixed_images(here, refused):
    write_images(here / "pictures", images(12))
    fit = ("fit", "pictures", "--out", "model")
    assert refused(*fit, "--label", "odd") == (
        "pictures: these images have no labels, so no 'odd'; leave the label out."
    )
    assert refused(*fit, "--drop", "odd") == (
        "Invalid value: --drop is for tables, and pictures holds images; try 'invgan fit --help'."
    )
    Image.fromarray(images(1, (8, 9))[0]).save("pictures/wide.png")
    assert refused(*fit) == (
        "pictures/wide.png: is 9×8 pixels, but pictures/00.png is 8×8; "
        "make all images one size, or have them resized by --resize or size=."
    )
    Path("pictures/wide.png").unlink()
    whole = Path("pictures/03.png").read_bytes()
    Path("pictures/03.png").write_bytes(whole[: len(whole) // 2])
    message = refused(*fit)
    assert re.fullmatch(
        r"pictures/03\.png: cannot be read as an image \(.*\); it may be truncated or damaged, replace it\.",
        message,
    )


def test_paths_that_cannot_be_read(here, refused):
    assert refused("fit", "no.csv", "--out", "m") == "no.csv: no such file; check the path."
    assert (
        refused("score", "no", "../data.csv", "--out", "s.csv")
        == "no: no such folder; give the folder that a model was saved to."
    )
    assert refused("info", "../data.csv") == (
        "../data.csv: a file, not a folder; give the folder that a model was saved to."
    )
    Path("t.txt").write_text("x")
    assert refused("fit", "t.txt", "--out", "m") == (
        "t.txt: unknown file type '.txt'; expected .csv, .parquet, .npz or .npy."
    )


def test_paths_that_cannot_be_written_are_found_before_the_work(here, refused, monkeypatch):
    def work(*_, **__):
        raise AssertionError("worked for nothing")

    monkeypatch.setattr(InvGAN, "fit", work)
    monkeypatch.setattr(InvGAN, "score_samples", work)
    write_csv("t.csv", rows()[0])
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("mine")

    left = "is there already and is not an intact model, so it is left alone; choose another --out."
    missing = "there is no folder no; make it, or choose another --out."
    assert refused("fit", "t.csv", "--out", "no/model") == f"no/model: {missing}"
    assert refused("fit", "t.csv", "--out", "folder") == f"folder: {left}"
    assert refused("fit", "t.csv", "--out", "t.csv") == f"t.csv: {left}"
    score, report = ("score", "../model", "t.csv", "--out"), ("report", "../model", "t.csv", "--out")
    assert refused(*score, "no/s.csv") == f"no/s.csv: {missing}"
    assert refused(*score, "s.xlsx") == (
        "s.xlsx: unknown file type '.xlsx'; scores go to a .csv or .parquet file."
    )
    assert refused(*score, "t.csv") == "t.csv: is the data itself; choose another --out."
    Path("folder.html").mkdir()
    assert refused(*report, "folder.html") == "folder.html: is a folder; give --out the name of a file."
    for other in ("t.csv", "../model/manifest.json"):
        assert refused(*report, other) == (
            f"{other}: unknown file type '{Path(other).suffix}'; a report goes to a .html file."
        )
    Path("demo").mkdir()
    Path("demo/model").write_text("mine")
    assert refused("demo") == f"demo/model: {left}"
    assert refused("demo", "--out", "t.csv") == (
        f"t.csv: there is no folder {here}/t.csv; make it, or choose another --out."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_regular_file_is_not_replaced(here, refused):
    os.mkfifo(here / "queue")
    Path("s.csv").symlink_to("queue")
    Path("r.html").symlink_to("/dev/null")
    why = "is no regular file, which it would be replaced by; choose another --out."
    data = ("../model", "../data.csv", "--label", "odd", "--out")
    assert refused("score", *data, "s.csv") == f"s.csv: {why}"
    assert refused("report", *data, "r.html") == f"r.html: {why}"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_files(here, refused):
    assert refused("fit", "../data.csv", "--out", "/proc/model") == (
        "/proc/model: nothing can be written to the folder /proc (No such file or directory); "
        "choose another --out."
    )


def full(*_):
    """Stand in for a system call on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_space_left(here, refused, monkeypatch):
    write_csv("t.csv", rows()[0])
    Path("s.csv").write_text("old")
    Path("r.html").write_text("old")

    monkeypatch.setattr(os, "fsync", full)
    assert refused("fit", "t.csv", "--out", "m", *QUICK) == (
        "m.checkpoint: could not be written (No space left on device); free some space and save again."
    )
    where = "choose a file in an existing folder that you may write to, on a disk with space left."
    assert refused("score", "../model", "t.csv", "--out", "s.csv") == (
        f"s.csv: the scores could not be written (No space left on device); {where}"
    )
    assert refused("report", "../model", "t.csv", "--out", "r.html") == (
        f"r.html: the report could not be written (No space left on device); {where}"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize("out", ["s.csv", "s.parquet"])
def test_no_space_left_for_the_next_block(here, out):
    import resource

    Path(out).write_text("old")
    log_prob = np.random.default_rng(0).normal(size=1000)
    scores = Scores(log_prob=log_prob, p_value=log_prob, is_anomaly=log_prob > 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError, match=rf"^{out}: the scores could not be written \(File too large"):
            write_scores(out, itertools.repeat(scores))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(".") == {Path(out): b"old"}


def test_no_space_left_for_the_model_keeps_the_training(here, capsys, monkeypatch):
    write_csv("t.csv", rows()[0])
    save = InvGAN.save
    fit = ["fit", "t.csv", "--out", "m", *QUICK]
    with monkeypatch.context() as patch:

        def save_to_a_full_disk(self, path):
            patch.setattr(os, "fsync", full)
            save(self, path)

        patch.setattr(InvGAN, "save", save_to_a_full_disk)
        assert main(fit) == 2
    assert capsys.readouterr() == (
        "",
        "invgan: m: could not be written (No space left on device); free some space and save again.\n",
    )
    assert sorted(os.listdir()) == ["m.checkpoint", "t.csv"]
    assert main(fit) == 0
    assert sorted(os.listdir()) == ["m", "t.csv"]


def test_a_diverged_fit_leaves_no_checkpoint_to_continue_from(here, refused):
    write_csv("t.csv", rows()[0])
    message = refused(
        "fit", "t.csv", "--out", "m", "--learning-rate", "1e12", "--checkpoint-every", "1", *QUICK
    )
    assert re.fullmatch(
        r"the \w+ (loss|score) became (nan|inf|-inf) at step \d+; try a smaller learning_rate, another loss, "
        r"or look for extreme values in the data\.",
        message,
    )


def test_a_checkpoint_of_other_settings_is_not_continued(here, refused, monkeypatch):
    write_csv("t.csv", rows()[0])
    with monkeypatch.context() as patch:
        interrupt_at(0, patch)
        assert main(["fit", "t.csv", "--out", "m", *QUICK]) == 130
    assert refused("fit", "t.csv", "--out", "m", "--seed", "1", *QUICK) == (
        "m.checkpoint: this checkpoint belongs to another fit (other data or settings); delete it to start "
        "afresh, or give the data and settings it was made with."
    )


def test_usage_mistakes(here, refused):
    score = ("score", "../model", "../data.csv", "--out", "s.csv", "--label", "odd")
    assert refused(*score, "--fdr", "0.1", "--false-positive-rate", "0.1") == (
        "Invalid value: --fdr and --false-positive-rate are two ways to decide; give one; "
        "try 'invgan score --help'."
    )
    assert refused(*score, "--fdr", "1") == (
        "Invalid value: --fdr must be above 0 and below 1, not 1; try 'invgan score --help'."
    )
    assert refused(*score, "--false-positive-rate", "-1") == (
        "Invalid value: --false-positive-rate must be at least 0 and below 1, not -1; "
        "try 'invgan score --help'."
    )
    assert refused("fit", "t.csv") == "Missing option '--out'; try 'invgan fit --help'."
    assert refused("fits").startswith("No such command 'fits'")
    assert refused("fit", "t.csv", "--out", "m", "--max-steps", "0").startswith(
        "Invalid value for '--max-steps': "
    )
    assert refused("reproduce", "figure9") == (
        "Invalid value: 'figure9' is none of figure2, table1, figure3, figure5, table3, figure4, table4, "
        "decisions, gaps, explanations, estimates, theorem1, densities, detectors, ablation, digits; "
        "try 'invgan reproduce --help'."
    )
    assert refused("benchmark", "sped") == (
        "Invalid value: 'sped' is none of speed, adbench, streams; try 'invgan benchmark --help'."
    )
    for rate in ("0", "inf", "nan"):
        assert refused("fit", "no.csv", "--out", "m", "--learning-rate", rate) == (
            f"Invalid value: --learning-rate must be above 0 and finite, not {rate}; try 'invgan fit --help'."
        )
    for rate in ("-0.1", "0.5", "nan"):
        assert refused("fit", "no.csv", "--out", "m", "--contamination", rate) == (
            "Invalid value: --contamination must be at least 0 and below 0.5, "
            f"not {rate}; try 'invgan fit --help'."
        )
    assert refused("fit", "no.csv", "--out", "m", "--seed", "4294967296").startswith(
        "Invalid value for '--seed': "
    )


def test_debug_shows_where_a_mistake_was_found(here):
    with pytest.raises(InputError, match=r"^no\.csv: no such file; check the path\.$"):
        main(["--debug", "fit", "no.csv", "--out", "m"])


LONG = "InvGAN as in the paper, aggregate"


def printed_table(monkeypatch, width):
    """What a table of ten figures looks like, on a terminal of a width or, without one, in a pipe."""
    file = io.StringIO()
    console = Console(file=file, markup=False, width=width or 80, force_terminal=width is not None)
    monkeypatch.setattr(cli, "_console", lambda: console)
    cli._print_table(["model", *"0123456789"], [[LONG, *[0.123] * 10]])
    return file.getvalue()


def test_a_table_in_a_pipe_has_each_row_on_one_line(monkeypatch):
    (row,) = [line for line in printed_table(monkeypatch, None).splitlines() if "0.123" in line]
    assert row.split() == [*LONG.split(), *["0.123"] * 10]


def test_a_table_on_a_terminal_cuts_no_figure(monkeypatch):
    text = printed_table(monkeypatch, 80)
    (row,) = [line for line in text.splitlines() if "0.123" in line]
    assert row.count("0.123") == 10
    assert len(row) == 80
