"""Estimates of log p(x) under a generator, each a function of the row alone."""

from invgan.likelihood.aggregate import Bandwidths, TangentMixture
from invgan.likelihood.annealed import ais
from invgan.likelihood.attribution import attribute
from invgan.likelihood.bits import bits_per_dimension, dequantize, revised_bits_per_dimension
from invgan.likelihood.field import smooth_field
from invgan.likelihood.pointwise import (
    LogLikelihood,
    StochasticGenerator,
    conditional,
    jensen_gap,
    joint,
    log_prior,
    riemannian,
)
from invgan.likelihood.posterior import Estimate, importance, laplace, map_latent, map_latents

__all__ = [
    "Bandwidths",
    "Estimate",
    "LogLikelihood",
    "StochasticGenerator",
    "TangentMixture",
    "ais",
    "attribute",
    "bits_per_dimension",
    "conditional",
    "dequantize",
    "importance",
    "jensen_gap",
    "joint",
    "laplace",
    "log_prior",
    "map_latent",
    "map_latents",
    "revised_bits_per_dimension",
    "riemannian",
    "smooth_field",
]
