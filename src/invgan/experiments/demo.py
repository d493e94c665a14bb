"""The demonstration: digits of nine kinds train, the tenth is found.

The protocol is that of :mod:`invgan.experiments.digits`, with one abnormal digit, and everything kept.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from invgan.data.scores import write_scores
from invgan.detectors import InvGAN
from invgan.detectors.latent import IMAGE_METHODS
from invgan.errors import InputError
from invgan.experiments.digits import digits_task
from invgan.experiments.rivals import REFERENCES
from invgan.metrics import detection_metrics
from invgan.report import write_report
from invgan.report.of_model import judge, likelihood_of, report_content


def run(
    *,
    abnormal: int = 0,
    seed: int = 0,
    out: Path = Path("demo"),
    max_steps: int | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Fit InvGAN to nine digits, find the tenth, and write the model, the scores and a report.

    Parameters
    ----------
    abnormal : int in 0 … 9
        The digit that the training never sees.
    seed : int
        Splits the data, initialises the networks and orders the rows.
    out : Path
        Folder for ``model``, ``scores.csv`` and ``report.html``; it is made if need be.
    max_steps : int, optional
        As in :class:`invgan.InvGAN`.
    verbose : bool
        Show a progress bar.

    Returns
    -------
    dict
        "title" and "table" (AUROC and AP of each score), as every experiment has; "counts" of the test rows
        and of those flagged, normal and abnormal apart, and of the calibration rows;
        "expected_false_positive_rate", mean and standard deviation; "files", the paths written.

    Raises
    ------
    InputError
        Something could not be written.
    """
    task = digits_task(abnormal, seed=seed)
    detector = InvGAN(random_state=seed, max_steps=max_steps, verbose=verbose).fit(task.train)
    log_likelihoods = {method: detector.log_likelihood(task.test, method).values for method in IMAGE_METHODS}
    judged = judge(detector, log_likelihoods[likelihood_of(detector)])

    compared = {f"InvGAN {method}": values for method, values in log_likelihoods.items()}
    train, test = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (task.train, task.test))
    compared |= {name: fit(train, seed)(test) for name, fit in REFERENCES.items()}
    comparison = {name: detection_metrics(task.labels, scores) for name, scores in compared.items()}

    content = report_content(
        detector,
        [(task.test, judged.log_prob)],
        title=f"Digit {abnormal} among the other nine",
        source="scikit-learn's digits",
        labels=task.labels,
        row_names=[f"row {row}, a {digit}" for row, digit in enumerate(task.digits.tolist(), start=1)],
        comparison=comparison,
    )
    files = {name: out / name for name in ("report.html", "scores.csv", "model")}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}); choose another --out.") from error
    detector.save(files["model"])
    write_scores(files["scores.csv"], [judged])
    write_report(files["report.html"], content)

    is_abnormal = task.labels == 1
    rate, n_calibration = detector.false_positive_rate_, len(detector.calibration_scores_)
    return {
        "title": content.title,
        "table": {
            "columns": ["score", "AUROC", "AP"],
            "rows": [[name, found["auroc"], found["ap"]] for name, found in comparison.items()],
        },
        "counts": {
            "abnormal": int(is_abnormal.sum()),
            "abnormal flagged": int((judged.is_anomaly & is_abnormal).sum()),
            "normal": int((~is_abnormal).sum()),
            "normal flagged": int((judged.is_anomaly & ~is_abnormal).sum()),
            "calibration": n_calibration,
        },
        # Over calibration sets, the rate on normal rows follows a Beta distribution with these moments.
        "expected_false_positive_rate": {
            "mean": rate,
            "standard deviation": math.sqrt(rate * (1 - rate) / (n_calibration + 2)),
        },
        "files": {name: str(path) for name, path in files.items()},
    }
