"""Density models, each with the detectors' API: log p(x) as the score, samples, p-values, a model file."""

from invgan.density.adversarial import FlowGAN
from invgan.density.flows import FFJORD, MADE, MAF, Glow, RealNVP
from invgan.density.variational import FlowVAE

__all__ = ["FFJORD", "MADE", "MAF", "FlowGAN", "FlowVAE", "Glow", "RealNVP"]
