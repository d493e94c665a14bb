"""The estimator interface that every model here has: fit, score, decide, save."""

from invgan.estimators.base import (
    MIN_ROWS,
    AnomalyDetector,
    Split,
    check_shapes,
    in_blocks,
    load,
    part_of,
)
from invgan.estimators.completion import spread
from invgan.estimators.neural import NeuralDetector
from invgan.estimators.scorer import Scorer, ScorerDetector, at_least_single

__all__ = [
    "MIN_ROWS",
    "AnomalyDetector",
    "NeuralDetector",
    "Scorer",
    "ScorerDetector",
    "Split",
    "at_least_single",
    "check_shapes",
    "in_blocks",
    "load",
    "part_of",
    "spread",
]
