"""The demonstration: digits of nine kinds train, the tenth is found; and what a report says of a model.

The protocol is that of :mod:`invgan.experiments.digits`, with one abnormal digit, and everything kept.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from invgan.calibration import conformal_p_values
from invgan.data.scores import Scores, write_scores
from invgan.detectors import AnomalyDetector, InvGAN
from invgan.detectors.invgan import METHODS
from invgan.errors import InputError
from invgan.experiments.digits import RIVALS, digits_task
from invgan.metrics import detection_metrics
from invgan.report import ReportContent, write_report


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
        and of those flagged, normal and abnormal apart; "expected_false_positive_rate", mean and standard
        deviation; "files", the paths written.

    Raises
    ------
    InputError
        Something could not be written.
    """
    task = digits_task(abnormal, seed=seed)
    detector = InvGAN(random_state=seed, max_steps=max_steps, verbose=verbose).fit(task.train)
    log_likelihoods = {method: detector.log_likelihood(task.test, method).values for method in METHODS}
    judged = judge(detector, log_likelihoods[likelihood_of(detector)])

    compared = {f"InvGAN {method}": values for method, values in log_likelihoods.items()}
    train, test = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (task.train, task.test))
    compared |= {name: rival(train, test, seed) for name, rival in RIVALS.items()}
    comparison = {name: detection_metrics(task.labels, scores) for name, scores in compared.items()}

    content = report_content(
        detector,
        judged,
        task.test,
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
    write_scores(files["scores.csv"], judged)
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
        },
        # Over calibration sets, the rate on normal rows follows a Beta distribution with these moments.
        "expected_false_positive_rate": {
            "mean": rate,
            "standard deviation": math.sqrt(rate * (1 - rate) / (n_calibration + 2)),
        },
        "files": {name: str(path) for name, path in files.items()},
    }


def likelihood_of(detector: InvGAN) -> str:
    """Name the likelihood that ``score_samples`` returns.

    Examples
    --------
    >>> likelihood_of(InvGAN()), likelihood_of(InvGAN(preset="paper"))
    ('aggregate', 'riemannian')
    """
    return str(detector._setting("score"))


def judge(detector: AnomalyDetector, log_prob: np.ndarray) -> Scores:
    """Turn log-likelihoods into p-values and decisions, without scoring the rows again.

    Parameters
    ----------
    detector : AnomalyDetector
        Fitted.
    log_prob : numpy.ndarray of shape (n,)
        ``detector.score_samples(X)``.

    Returns
    -------
    Scores
        ``p_value`` equals ``detector.p_values(X)``, ``is_anomaly`` equals ``detector.predict(X) == -1``.
    """
    return Scores(
        log_prob=log_prob,
        p_value=conformal_p_values(log_prob, detector.calibration_scores_),
        is_anomaly=log_prob < detector.offset_,
    )


def model_card(detector: InvGAN) -> dict[str, dict[str, Any]]:
    """Describe a fitted model in groups of named values.

    Parameters
    ----------
    detector : InvGAN
        Fitted.

    Returns
    -------
    dict of str to dict
        "Model", "Decision" and "Training".
    """
    shape = detector.data_shape_
    names = [str(name) for name in getattr(detector, "feature_names_in_", [])]
    history = detector.history_
    return {
        "Model": {
            "detector": type(detector).__name__,
            "data": (
                f"table of {shape[0]} columns" if len(shape) == 1 else f"images, {'×'.join(map(str, shape))}"
            ),
            **({"columns": ", ".join(names)} if names else {}),
            "preset": detector.preset or "default",
            "log-likelihood": likelihood_of(detector),
            "latent dimension": detector.latent_dim_,
            "network parameters": sum(parameter.numel() for parameter in detector.gan_.parameters()),
        },
        "Decision": {
            "threshold": (
                f"{detector.offset_:.6g} nats"
                if math.isfinite(detector.offset_)
                else "none: nothing is flagged"
            ),
            "false-positive rate": f"{detector.false_positive_rate_:g} at most, on average",
            "calibration rows": len(detector.calibration_scores_),
        },
        "Training": {
            "steps": history.steps[-1],
            "best step": history.best_step,
            "seed": "none" if detector.random_state is None else detector.random_state,
        },
    }


def report_content(
    detector: InvGAN,
    judged: Scores,
    rows: np.ndarray,
    *,
    title: str,
    source: str,
    labels: np.ndarray | None,
    row_names: list[str],
    comparison: Mapping[str, Mapping[str, float]] | None = None,
) -> ReportContent:
    """Gather what a report says about a model's view of some rows.

    Parameters
    ----------
    detector : InvGAN
        Fitted.
    judged : Scores
        Its view of the rows.
    rows : numpy.ndarray of shape (n, D) or (n, C, H, W)
    title, source : str
        The heading, and where the rows come from.
    labels : numpy.ndarray of shape (n,), or None
        1 where a row is known to be an anomaly, 0 where it is normal.
    row_names : list of n str
    comparison : mapping, optional
        As in :class:`invgan.report.ReportContent`.

    Returns
    -------
    ReportContent
    """
    names = getattr(detector, "feature_names_in_", None)
    return ReportContent(
        title=title,
        rows=rows,
        scores=judged.log_prob,
        p_values=judged.p_value,
        is_anomaly=judged.is_anomaly,
        threshold=detector.offset_,
        facts=[
            ("data", source),
            ("rows", len(rows)),
            ("log-likelihood", f"InvGAN {likelihood_of(detector)}"),
            ("false-positive rate", f"{detector.false_positive_rate_:g} at most, on average"),
        ],
        labels=labels,
        feature_names=None if names is None else [str(name) for name in names],
        row_names=row_names,
        comparison=comparison,
        history=asdict(detector.history_),
        model_card=model_card(detector),
    )
