"""Anomaly detectors, all with scikit-learn's outlier API and calibrated p-values."""

from invgan.detectors.anogan import AnoGAN
from invgan.detectors.bigan import ALAD, EGBAD
from invgan.detectors.classic import IsolationForest, OneClassSVM
from invgan.detectors.dagmm import DAGMM
from invgan.detectors.energy import DSEBM
from invgan.detectors.ganomaly import GANomaly
from invgan.detectors.implicit import ImplicitLikelihood
from invgan.detectors.invgan import InvGAN
from invgan.detectors.vae import VAE
from invgan.estimators import AnomalyDetector, load

__all__ = [
    "ALAD",
    "DAGMM",
    "DSEBM",
    "EGBAD",
    "VAE",
    "AnoGAN",
    "AnomalyDetector",
    "GANomaly",
    "ImplicitLikelihood",
    "InvGAN",
    "IsolationForest",
    "OneClassSVM",
    "load",
]
