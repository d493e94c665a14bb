"""Detectors of other libraries, behind one call: what this library's are measured beside."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.ensemble import IsolationForest
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

Score = Callable[[np.ndarray], np.ndarray]
"""Scores rows (n, D), higher for those that are more normal."""
Fit = Callable[[np.ndarray, int], Score]
"""Learns from normal rows (n, D) with a seed."""

PYOD = {
    "KNN": "knn",
    "LOF": "lof",
    "OCSVM": "ocsvm",
    "IForest": "iforest",
    "ECOD": "ecod",
    "COPOD": "copod",
    "HBOS": "hbos",
    "PCA": "pca",
    "GMM": "gmm",
    "MCD": "mcd",
    "LUNAR": "lunar",
    "DIF": "dif",
    "AutoEncoder": "auto_encoder",
    "VAE": "vae",
    "DeepSVDD": "deep_svdd",
    "ALAD": "alad",
    "AnoGAN": "anogan",
}
"""PyOD's detectors and the modules that they are in."""


def nearest_neighbours(train: np.ndarray, seed: int) -> Score:
    """Score by the negative mean distance to the five nearest training rows."""
    neighbours = NearestNeighbors(n_neighbors=5).fit(train)
    return lambda test: -neighbours.kneighbors(test)[0].mean(1)


def kernel_density(train: np.ndarray, seed: int) -> Score:
    """Score by a Gaussian kernel density whose bandwidth maximises the leave-one-out likelihood."""
    squared = pairwise_distances(train, metric="sqeuclidean")
    np.fill_diagonal(squared, np.inf)
    n_features = train.shape[1]

    def left_out_likelihood(bandwidth: float) -> float:
        return (logsumexp(-squared / (2 * bandwidth**2), axis=1) - n_features * np.log(bandwidth)).mean()

    # From far below the distance of neighbours, per coordinate, to far above it.
    nearest = np.sqrt(np.median(squared.min(1)) / n_features) or 1.0
    bandwidth = max(nearest * np.geomspace(0.1, 10, 41), key=left_out_likelihood)
    # One leaf for all rows: over several, scikit-learn 1.9's sum loses its digits where densities are as low
    # as 64 dimensions make them (AUROC 0.81 in place of 0.98 on the digits).
    density = KernelDensity(bandwidth=bandwidth, leaf_size=len(train)).fit(train)
    return density.score_samples


def isolation_forest(train: np.ndarray, seed: int) -> Score:
    """Score by scikit-learn's isolation forest with its default settings."""
    return IsolationForest(random_state=seed).fit(train).score_samples


def local_outlier_factor(train: np.ndarray, seed: int) -> Score:
    """Score by scikit-learn's local outlier factor with its default settings."""
    return LocalOutlierFactor(novelty=True).fit(train).score_samples


REFERENCES: dict[str, Fit] = {
    "kNN": nearest_neighbours,
    "kernel density": kernel_density,
    "Isolation Forest": isolation_forest,
}
"""Detectors that stand beside every figure of this library's."""


def pyod(name: str) -> Fit:
    """Score by one of PyOD's detectors with its default settings, seeded where it can be."""

    def fit(train: np.ndarray, seed: int) -> Score:
        kind = getattr(importlib.import_module(f"pyod.models.{PYOD[name]}"), name)
        known = inspect.signature(kind).parameters
        # DeepSVDD asks for the number of features; no other setting is given.
        given = {"random_state": seed, "n_features": train.shape[1], "verbose": 0}
        with globally_seeded(seed):
            detector = kind(**{key: value for key, value in given.items() if key in known}).fit(train)

        def score(test: np.ndarray) -> np.ndarray:
            with globally_seeded(seed):  # some draw noise even to score
                return -np.asarray(detector.decision_function(test), dtype=float).ravel()

        return score

    return fit


def standardized(fit: Fit) -> Fit:
    """Scale the columns to mean 0 and variance 1 over the training rows first."""

    def fit_scaled(train: np.ndarray, seed: int) -> Score:
        scaler = StandardScaler().fit(train)
        score = fit(scaler.transform(train), seed)
        return lambda test: score(scaler.transform(test))

    return fit_scaled


@contextlib.contextmanager
def globally_seeded(seed: int) -> Iterator[None]:
    """Seed the generators that belong to the process, for code that has no other, and put them back."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
