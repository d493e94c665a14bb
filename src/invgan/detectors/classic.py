"""Two detectors without networks, fitted by scikit-learn and scored here from plain arrays."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import sklearn.ensemble
import sklearn.svm
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from invgan.estimators import AnomalyDetector, Split, check_shapes, in_blocks, part_of
from invgan.networks import steady_product
from invgan.preprocess import AffineScaling

BLOCK = 512
"""Rows scored at once."""
NODE_ARRAYS = ("left", "right", "feature", "threshold", "length")
"""What is known of each node of a forest's trees."""


class _FittedByScikitLearn(AnomalyDetector):
    """Base of the two: scaling, flat rows, and a model that is nothing but named arrays.

    scikit-learn keeps its models in pickles, which run code when they are read. So the arrays that a score
    is made of are taken out after the fit, and the score, a line or two, is computed here.
    """

    arrays_: dict[str, Tensor]

    @abstractmethod
    def _learn(self, rows: np.ndarray, seed: int) -> dict[str, Tensor]:
        """Fit to scaled rows, shape (n, D), and return the arrays of the fitted model."""

    @abstractmethod
    def _score_scaled(self, rows: Tensor) -> Tensor:
        """Score scaled rows, shape (n, D)."""

    @abstractmethod
    def _check_arrays(self) -> None:
        """Raise a ValueError if scoring by these arrays could go wrong."""

    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        # There is nothing to stop early, so the validation rows are learned from as well.
        learned = np.sort(split.learned)
        self.scaling_ = self._scale(rows, learned)
        self.arrays_ = self._learn(self._flat(rows[learned]).numpy(), seed)

    def _n_values(self) -> int:
        return math.prod(self.data_shape_)

    def _flat(self, rows: Tensor) -> Tensor:
        return self.scaling_(rows.double()).flatten(1)

    def _score_rows(self, rows: Tensor) -> np.ndarray:
        return in_blocks(lambda block: self._score_scaled(self._flat(block)), rows, size=BLOCK).numpy()

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"model.{name}": array for name, array in self.arrays_.items()}
        return {}, tensors | {f"scaling.{name}": t for name, t in self.scaling_.state_dict().items()}

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._restore_scaling(tensors)
        self.arrays_ = part_of(tensors, "model.")
        self._check_arrays()


@dataclass(eq=False, repr=False, kw_only=True)
class OneClassSVM(_FittedByScikitLearn):
    r"""One-class support vector machine: a smooth boundary around most of the rows.

    .. math:: \text{score}(x) = \sum_i \alpha_i \exp(-\gamma \|x_i - x\|^2)

    over the support vectors x_i, in scaled units. Fitting takes time and memory in the square of the number
    of rows: beyond some ten thousand, give it a sample.

    Parameters
    ----------
    nu : float in (0, 1]
        Share of the training rows that may lie outside the boundary, and at least the share that become
        support vectors. The paper sets it to the proportion of anomalies, taken as known; 0.1 by default.
    gamma : "scale", "auto" or float
        The kernel's γ: "auto" is 1 / D, the paper's; "scale" is that divided by the variance of all scaled
        values, which is 1 in a table.
    false_positive_rate : float in [0, 1)
        Share of normal rows that ``predict`` may flag. It takes the place of scikit-learn's offset ρ.
    random_state : int, RandomState or None
        Decides which rows are held out for calibration.

    Source
    ------
    Schölkopf et al. (1999), "Support vector method for novelty detection", Eq. 10; the paper's section 4.3.1.
    Open there: the scaling. Ours is every table column to mean 0 and variance 1, and pixels to [-1, 1].

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> OneClassSVM(random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **AnomalyDetector._parameter_constraints,
        "nu": [Interval(Real, 0, 1, closed="right")],
        "gamma": [StrOptions({"scale", "auto"}), Interval(Real, 0, None, closed="neither")],
    }

    nu: float = 0.1
    gamma: str | float = "scale"

    def _learn(self, rows: np.ndarray, seed: int) -> dict[str, Tensor]:
        gamma = self.gamma
        if gamma == "scale":
            gamma = 1 / (rows.shape[1] * (rows.var() or 1.0))
        elif gamma == "auto":
            gamma = 1 / rows.shape[1]
        machine = sklearn.svm.OneClassSVM(nu=self.nu, gamma=gamma)
        machine.random_state = seed  # it has none to be given, and would draw from NumPy's global one
        machine.fit(rows)
        return {
            "support_vectors": torch.from_numpy(machine.support_vectors_),
            "coefficients": torch.from_numpy(machine.dual_coef_[0].copy()),
            "gamma": torch.tensor(gamma, dtype=torch.float64),
        }

    def _score_scaled(self, rows: Tensor) -> Tensor:
        vectors = self.arrays_["support_vectors"]
        products = steady_product(rows, vectors)
        squared = rows.square().sum(1, keepdim=True) - 2 * products + vectors.square().sum(1)
        kernels = torch.exp(-self.arrays_["gamma"] * squared.clamp_min(0))
        return steady_product(kernels, self.arrays_["coefficients"][None])[:, 0]

    def _check_arrays(self) -> None:
        number = len(self.arrays_["coefficients"])
        expected = {"coefficients": (number,), "support_vectors": (number, self._n_values()), "gamma": ()}
        check_shapes(self.arrays_, expected)


@dataclass(eq=False, repr=False, kw_only=True)
class IsolationForest(_FittedByScikitLearn):
    r"""Isolation Forest: rows that random splits cut off early are unusual.

    .. math:: \text{score}(x) = -2^{-\mathrm{E}_t[h_t(x)] / c(m)}

    where h_t(x) is the length of x's path in tree t, with c(k) added for the k training rows left in its
    leaf; each tree is grown on m rows, and c(m) is the mean length of an unsuccessful search among m.

    Parameters
    ----------
    n_estimators : int
        Number of trees.
    max_samples : int
        Rows that each tree is grown on, m; all of them where there are fewer.
    false_positive_rate : float in [0, 1)
        Share of normal rows that ``predict`` may flag.
    random_state : int, RandomState or None
        An integer makes the fit reproducible.

    Source
    ------
    Liu, Ting and Zhou (2008), "Isolation forest", Eq. 1 and 2; the trees are scikit-learn's. That paper's
    score is the negative of ours.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> IsolationForest(random_state=0).fit(X).predict([[9.0, 9.0, 9.0, 9.0]]).tolist()
    [-1]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **AnomalyDetector._parameter_constraints,
        "n_estimators": [Interval(Integral, 1, None, closed="left")],
        "max_samples": [Interval(Integral, 2, None, closed="left")],
    }

    n_estimators: int = 100
    max_samples: int = 256

    def _scale(self, rows: Tensor, which: np.ndarray) -> AffineScaling:
        # Splits have no unit, but trees compare in single precision, of which one huge value in a column's
        # standard deviation would leave nothing for all others.
        scaling = super()._scale(rows, which)
        if len(self.data_shape_) != 1:
            return scaling
        quartiles = np.quantile(rows[which].double().numpy(), [0.25, 0.5, 0.75], axis=0)
        low, middle, high = torch.from_numpy(quartiles)
        return AffineScaling(middle, torch.where(high > low, high - low, scaling.scale), self.data_shape_)

    def _learn(self, rows: np.ndarray, seed: int) -> dict[str, Tensor]:
        size = min(self.max_samples, len(rows))
        forest = sklearn.ensemble.IsolationForest(
            n_estimators=self.n_estimators, max_samples=size, random_state=seed
        ).fit(rows)
        trees = [tree.tree_ for tree in forest.estimators_]
        starts = np.cumsum([0] + [tree.node_count for tree in trees])
        nodes = [_nodes(tree, start) for tree, start in zip(trees, starts[:-1], strict=True)]
        joined = {name: np.concatenate([tree[name] for tree in nodes]) for name in nodes[0]}
        # Path lengths in units of the expected one, so that a score needs nothing else.
        joined["length"] = joined["length"] / _mean_search_length(np.array([size]))
        return {name: torch.from_numpy(a) for name, a in (joined | {"roots": starts[:-1]}).items()}

    def _score_scaled(self, rows: Tensor) -> Tensor:
        left, right = self.arrays_["left"], self.arrays_["right"]
        rows = rows.clamp(-3e38, 3e38).float()  # as scikit-learn's trees compare
        node = self.arrays_["roots"].expand(len(rows), -1)  # n×trees
        while True:  # all trees at once, a level at a time; a leaf leads to itself
            goes_left = rows.gather(1, self.arrays_["feature"][node]) <= self.arrays_["threshold"][node]
            child = torch.where(goes_left, left[node], right[node])
            if torch.equal(child, node):
                return -torch.exp2(-self.arrays_["length"][node].mean(1))
            node = child

    def _check_arrays(self) -> None:
        number, n_trees = len(self.arrays_["left"]), len(self.arrays_["roots"])
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(NODE_ARRAYS, (number,))
        check_shapes(self.arrays_, shapes | {"roots": (n_trees,)})
        here = torch.arange(number)  # a child's number is above its parent's: every path ends
        first = torch.zeros(1, dtype=torch.int64)
        ranges = {"left": (here, number), "right": (here, number), "feature": (first, self._n_values())}
        for name, (least, most) in (ranges | {"roots": (first, number)}).items():
            indices = self.arrays_[name]
            if indices.dtype != torch.int64 or ((indices < least) | (indices >= most)).any():
                raise ValueError(f"tensor 'model.{name}' has an index out of range")


def _nodes(tree: Any, start: int) -> dict[str, np.ndarray]:
    """List a tree's nodes, numbered from ``start``, each leaf its own child."""
    here = np.arange(tree.node_count)
    leaf = tree.children_left < 0
    left, right = np.where(leaf, here, tree.children_left), np.where(leaf, here, tree.children_right)
    depth = np.zeros(tree.node_count)
    for node in np.flatnonzero(~leaf):  # a parent's number is below its children's
        depth[[left[node], right[node]]] = depth[node] + 1
    return {
        "left": left + start,
        "right": right + start,
        "feature": np.where(leaf, 0, tree.feature),
        "threshold": tree.threshold,
        "length": depth + _mean_search_length(tree.n_node_samples),
    }


def _mean_search_length(n: np.ndarray) -> np.ndarray:
    """c(n): the mean length of an unsuccessful search in a binary tree of n rows."""
    several = np.maximum(n, 3)
    harmonic = np.log(several - 1) + np.euler_gamma
    return np.select([n <= 1, n == 2], [0.0, 1.0], 2 * harmonic - 2 * (several - 1) / several)
