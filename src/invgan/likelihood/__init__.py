"""Estimates of log p(x) under a generator, each a function of the row alone."""

from invgan.likelihood.aggregate import TangentMixture
from invgan.likelihood.pointwise import (
    LogLikelihood,
    StochasticGenerator,
    conditional,
    jensen_gap,
    joint,
    log_prior,
    riemannian,
)

__all__ = [
    "LogLikelihood",
    "StochasticGenerator",
    "TangentMixture",
    "conditional",
    "jensen_gap",
    "joint",
    "log_prior",
    "riemannian",
]
