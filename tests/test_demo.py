import functools
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from invgan import load
from invgan.cli import main
from invgan.experiments import demo
from invgan.experiments.digits import digits_task
from invgan.experiments.rivals import REFERENCES


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A short demonstration with digit 3 abnormal: its folder and result."""
    folder = tmp_path_factory.mktemp("demo") / "deep" / "demo"
    return folder, demo.run(abnormal=3, seed=1, out=folder, max_steps=20)


def test_the_table_is_scikit_learns_figures_of_the_scores_file(done):
    folder, result = done
    task = digits_task(3, seed=1)
    scores = pl.read_csv(folder / "scores.csv")
    figures = {name: (auroc, ap) for name, auroc, ap in result["table"]["rows"]}
    assert list(figures) == [
        "InvGAN aggregate",
        "InvGAN joint",
        "InvGAN riemannian",
        "InvGAN ratio",
        *REFERENCES,
    ]
    assert figures["InvGAN aggregate"] == pytest.approx(
        (
            roc_auc_score(task.labels, scores["anomaly_score"]),
            average_precision_score(task.labels, scores["anomaly_score"]),
        )
    )
    train, test = task.train.reshape(len(task.train), -1), task.test.reshape(len(task.test), -1)
    nearest = REFERENCES["kNN"](train, 1)(test)
    assert figures["kNN"] == pytest.approx(
        (roc_auc_score(task.labels, -nearest), average_precision_score(task.labels, -nearest))
    )


def test_the_model_gives_the_scores_again(done):
    folder, result = done
    task, model, scores = digits_task(3, seed=1), load(folder / "model"), pl.read_csv(folder / "scores.csv")
    np.testing.assert_array_equal(scores["log_prob"], model.score_samples(task.test))
    np.testing.assert_array_equal(scores["p_value"], model.p_values(task.test))
    np.testing.assert_array_equal(scores["is_anomaly"], model.predict(task.test) == -1)
    flagged = scores["is_anomaly"].to_numpy()
    assert result["counts"] == {
        "abnormal": 183,
        "abnormal flagged": flagged[task.labels == 1].sum(),
        "normal": 807,
        "normal flagged": flagged[task.labels == 0].sum(),
        "calibration": len(model.calibration_scores_),
    }


def test_the_expected_rate_is_that_of_a_beta_distribution(done):
    """Over calibration sets, the rate at the k-th smallest of m scores is Beta(k, m + 1 − k)."""
    folder, result = done
    m = len(load(folder / "model").calibration_scores_)
    k = 0.05 * (m + 1)
    rate = k / (m + 1)
    variance = k * (m + 1 - k) / ((m + 1) ** 2 * (m + 2))
    assert result["expected_false_positive_rate"] == pytest.approx(
        {"mean": rate, "standard deviation": variance**0.5}
    )


def test_the_report_ranks_the_digits(done):
    folder, _ = done
    task, scores = digits_task(3, seed=1), pl.read_csv(folder / "scores.csv")
    page = (folder / "report.html").read_text()
    assert "<h1>Digit 3 among the other nine</h1>" in page
    worst = int(scores["log_prob"].arg_min())
    first = re.search(r'<th scope="row" class="pinned">(.*?)</th>', page)[1]
    assert first == f"row {worst + 1}, a {task.digits[worst]}"
    assert sorted(path.name for path in folder.iterdir()) == ["model", "report.html", "scores.csv"]


def test_the_command_shows_the_table_and_where_to_look(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results = []

    def run(**options):
        assert (options["abnormal"], options["seed"]) == (7, 0)
        results.append(functools.partial(demo_run, max_steps=20)(**options))
        return results[0]

    demo_run = demo.run
    monkeypatch.setattr(demo, "run", run)
    assert main(["demo", "--abnormal", "7"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, auroc, ap in results[0]["table"]["rows"]:
        assert [*name.split(), f"{auroc:.3f}", f"{ap:.3f}"] in [line.split() for line in out.splitlines()]
    counts = results[0]["counts"]
    assert (
        f"Flagged: {counts['abnormal flagged']} of the {counts['abnormal']} images of a 7, and "
        f"{counts['normal flagged']} of the {counts['normal']} others:\n" in out
    )
    assert f"The threshold\nis by {counts['calibration']} held-out images" in out
    for name in ("report.html", "scores.csv", "model"):
        assert Path("demo", name).exists()
        assert f"  demo/{name} " in out
    assert max(map(len, out.splitlines())) <= 80
