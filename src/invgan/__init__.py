"""Likelihoods of samples under a GAN, and anomaly detection that can be trusted.

An implementation of "Estimate the Implicit Likelihoods of GANs with Application to Anomaly Detection"
(Ren, Li, Zhou, Li, WWW 2020).
"""

from invgan.detectors import InvGAN, load
from invgan.errors import InputError, TrainingDivergedError

__version__ = "0.1.0"

__all__ = ["InputError", "InvGAN", "TrainingDivergedError", "load"]
