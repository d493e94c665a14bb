"""Anomaly detectors, all with scikit-learn's outlier API and calibrated p-values."""

from invgan.detectors.base import AnomalyDetector, load
from invgan.detectors.implicit import ImplicitLikelihood
from invgan.detectors.invgan import InvGAN

__all__ = ["AnomalyDetector", "ImplicitLikelihood", "InvGAN", "load"]
