"""What a report says of a fitted model, and of the rows it judged."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from invgan.calibration import conformal_p_values
from invgan.data.scores import Scores
from invgan.detectors import AnomalyDetector, InvGAN
from invgan.report.content import ReportContent


def likelihood_of(detector: InvGAN) -> str:
    """Name the likelihood that ``score_samples`` returns.

    Examples
    --------
    >>> likelihood_of(InvGAN()), likelihood_of(InvGAN(preset="paper"))
    ('aggregate', 'riemannian')
    """
    return str(detector._choice("method"))


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
            "network parameters": sum(parameter.numel() for parameter in detector.model_.parameters()),
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
