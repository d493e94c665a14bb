"""What estimators with a generator, its inverse and its variance share: training, likelihoods, latents."""

import math
import warnings
from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from invgan.errors import InputError, UnreliableEstimateWarning
from invgan.estimators import NeuralDetector, Split, check_shapes, in_blocks, part_of, spread
from invgan.gan import InvertedGenerator
from invgan.likelihood import (
    Bandwidths,
    Estimate,
    LogLikelihood,
    TangentMixture,
    ais,
    attribute,
    conditional,
    importance,
    joint,
    laplace,
    map_latent,
    map_latents,
    riemannian,
    smooth_field,
)
from invgan.likelihood.aggregate import TAIL_SHARE
from invgan.networks import RBFVariance

METHODS = ("aggregate", "joint", "riemannian", "laplace", "importance", "ais")
"""All estimates of log p(x)."""
RATIO = "ratio"
"""Of images: how much likelier the aggregate density has them than a smooth random field."""
CHEAP_METHODS = METHODS[:3]
"""Those that take no search for a mode: fast enough to score every row of a data set by."""
IMAGE_METHODS = (*CHEAP_METHODS, RATIO)
"""The cheap methods of images."""
PRIOR_DRAWS = 10_000
"""Latents drawn from the prior for k-means (line 3 of Algorithm 1: "a fixed number")."""
ROWS_PER_CENTER = 8
"""Training rows for each of σ's centres by default, at least: with fewer σ learns single rows' residuals."""
MAX_COMPONENTS = 5000
"""Rows that carry a component of the aggregate density, chosen at random where there are more.

Images on an accelerator, where the components' tangents take seconds rather than minutes, have as many as
there is room for.
"""
MAX_VARIANCE_ROWS = 50_000
"""Training rows by which σ is fitted again, chosen at random where there are more: 200 for each centre."""
MAX_COMPONENT_VALUES, MAX_VARIANCE_VALUES = 2**25, 2**28
"""Of large images there are fewer: no more numbers are held (in a component's axes 20 times as many)."""
FEWEST = 64
"""Components and rows that there are however large the images."""
SEARCH_BLOCK = 16
"""Rows whose modes are searched for together: all wait for the slowest, and samples make them many anyway."""
MAX_TYPICAL = 64
"""Held-out rows over which a feature's typical log-density is averaged, unless few of them have it."""
FEWEST_TYPICAL = 16
"""Of a feature that is mostly missing so many that have it, if there are."""
MAX_TYPICAL_WITH_GAPS = 256
"""All of these rows, at most, however many features are mostly missing."""
LARGEST_LOG_PROB = 1e18
"""Stands, with a minus, for Eq. 4 where its determinant is zero and its density would be infinite."""
MAX_STD = 10.0
"""Largest σ, in units of the scaled data, whose own spread is about one."""


class Explanation(NamedTuple):
    """Why rows are unusual, feature by feature."""

    shares: np.ndarray
    """Nats that each feature adds to the deficit."""
    mean: np.ndarray
    """What it was expected to be, in the data's own units."""
    std: np.ndarray
    """How far from that it may be."""


class _Judged(NamedTuple):
    """Each feature by itself, (m, D) or, of the expectation, (m, *data_shape)."""

    log_prob: Tensor  # in the data's units; 0 where the feature is missing
    mean: Tensor  # what was expected of it
    std: Tensor  # and how far from that it may be


class Search(NamedTuple):
    """How hard an estimate of log p(x) tries: the parameters of :meth:`LatentDetector.log_likelihood`."""

    refine: bool = False
    n_starts: int = 1
    n_samples: int | None = None
    n_temperatures: int = 100


@dataclass(eq=False, repr=False, kw_only=True)
class LatentDetector(ClassNamePrefixFeaturesOutMixin, TransformerMixin, NeuralDetector):
    """Base of the estimators that score by a generator's likelihood at z = h(x).

    A subclass implements ``_fit_rows``, which builds the model and calls :meth:`_train_and_prepare`, and the
    choices :meth:`_choice` of score, centres and their number.

    Attributes
    ----------
    latent_dim_ : int
        Dimension of the latent space.
    mixture_ : TangentMixture
        The aggregate density.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **NeuralDetector._parameter_constraints,
        "method": [None, StrOptions({*METHODS, RATIO})],
        "n_centers": [None, Interval(Integral, 2, None, closed="left")],
    }
    _scoring_parameters: ClassVar[tuple[str, ...]] = (*NeuralDetector._scoring_parameters, "method")
    _marginalises: ClassVar[bool] = True

    method: str | None = None
    n_centers: int | None = None
    model_: InvertedGenerator = field(init=False)
    latent_dim_: int = field(init=False)
    mixture_: TangentMixture = field(init=False)

    @abstractmethod
    def _choice(self, name: str) -> Any:
        """Return "method", "centers" or "n_centers" as given, or by default."""

    # ---------------------------------------------------------------- fitting

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self._marginalises
        return tags

    def _choose_n_centers(self, n_training: int) -> int:
        from_data = self._choice("centers") == "data"
        most, points = (n_training, "training rows") if from_data else (PRIOR_DRAWS, "draws from the prior")
        least, name = self.latent_dim_ + 1, type(self).__name__
        if least > most:
            raise InputError(
                f"The 'latent_dim' parameter of {name} must be less than {most}, the number of {points}: "
                f"σ needs latent_dim + 1 centres among them (Lemma 1). Got {self.latent_dim_} instead."
            )
        if self.n_centers is None:
            enough = most // ROWS_PER_CENTER if from_data else most
            return max(min(self._choice("n_centers"), enough), least)
        if self.n_centers > most:
            raise InputError(
                f"The 'n_centers' parameter of {name} must be at most {most}, the number of {points} that "
                f"the centres are the means of. Got {self.n_centers} instead."
            )
        if self.n_centers < least:
            raise InputError(
                f"The 'n_centers' parameter of {name} must be at least latent_dim + 1 = {least}, or the "
                f"metric can lose rank (Lemma 1). Got {self.n_centers} instead."
            )
        return int(self.n_centers)

    def _initialize_variance(self, draws: torch.Generator, seed: int) -> None:
        model = self.model_
        model.variance = RBFVariance(*self._variance_shape(), max_std=MAX_STD)
        model.variance.weight.data.uniform_(generator=draws)
        prior = torch.randn(PRIOR_DRAWS, self.latent_dim_, generator=draws)
        model.variance.fit_centers(prior, seed=seed)
        if self._is_convolutional():
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _variance_shape(self) -> tuple[int, int, int]:
        n_features, n_centers = self.model_.variance.get_parameter("weight").shape
        return self.latent_dim_, n_features, n_centers

    def _train_and_prepare(self, rows: Tensor, split: Split, seed: int) -> None:
        """Train the model on the split's rows and make it ready to score."""
        self._train(rows, split, seed)
        self._prepare_scoring(rows, split.learned, rows[split.calibration], seed)

    def _fit_typical(self, rows: Tensor, filled: Tensor, split: Split) -> None:
        held_out = split.calibration if len(split.calibration) else split.validation
        own = self._own_components(len(held_out)) if len(split.calibration) else None
        rows = rows[held_out]
        # Of a feature that no held-out row has, what others have in its place must do.
        nowhere = rows.isnan().all(0)
        rows = torch.where(nowhere, filled[held_out], rows) if nowhere.any() else rows
        which = _with_each_feature(~rows.flatten(1).isnan())
        known = ~rows[which].flatten(1).isnan()
        found = self._judge_features(rows[which], omitted=None if own is None else own[which]).log_prob
        self.typical_ = torch.where(known.to(found.device), found, torch.nan).nanmean(0)

    # ---------------------------------------------------------------- scoring

    def _prepare_scoring(self, rows: Tensor, learned: np.ndarray, calibration: Tensor, seed: int) -> None:
        """Bring the trained networks to scoring precision, fit σ around the data, build the aggregate.

        Calibration rows carry components of the aggregate where there is room for all of them.
        """
        gan = self.model_
        shuffled = np.random.default_rng([seed, 1]).permutation(len(learned))
        _, n_features, n_centers = self._variance_shape()
        n_components = max(FEWEST, MAX_COMPONENT_VALUES // n_features)
        if len(self.data_shape_) == 1 or self._device().type == "cpu":
            n_components = min(MAX_COMPONENTS, n_components)
        n_variance_rows = min(MAX_VARIANCE_ROWS, max(FEWEST, MAX_VARIANCE_VALUES // n_features))
        # Components take their codes from σ's rows, and k-means needs one of these for each centre.
        n_variance_rows = max(n_variance_rows, n_components, n_centers)
        seen, chosen = (np.sort(shuffled[:most]) for most in (n_variance_rows, n_components))
        rows = rows[learned[seen]]
        with self._scoring():
            codes = self._encode(rows)
            if self._choice("centers") == "data":
                means = self._blocks(self._flat_generator(), codes)
                gan.variance = RBFVariance(*self._variance_shape(), max_std=MAX_STD).to(codes)
                gan.variance.requires_grad_(False)
                gan.variance.fit_centers(codes, seed=seed)
                scaled = self._blocks(lambda block: self._prepare(block).flatten(1), rows)
                gan.variance.fit_weights(codes, scaled - means)
            of_seen = torch.from_numpy(np.searchsorted(seen, chosen))
            reference, codes = rows[of_seen], codes[of_seen]
            if len(reference) + len(calibration) > n_components:
                calibration = calibration[:0]
            carriers = torch.cat([reference, calibration])
            centers = self._blocks(lambda block: self._prepare(block).flatten(1), carriers)
            codes = torch.cat([codes, self._encode(calibration)]) if len(calibration) else codes
            self.mixture_ = self._mixture(centers, codes, len(reference))
            self.mixture_.fit_bandwidths(seed=seed)

    def _mixture(self, centers: Tensor, codes: Tensor, n_reference: int) -> TangentMixture:
        # Under an image's tails all of its pixels count alike, and the digits of MNIST detect worse by them.
        tail_share = TAIL_SHARE if len(self.data_shape_) == 1 else 0.0
        return TangentMixture(
            centers, codes, self._flat_generator(), n_reference=n_reference, tail_share=tail_share
        )

    def _own_components(self, n_calibration: int) -> Tensor:
        """Number the components that the calibration rows carry; −1 if they carry none."""
        n_reference, n = int(self.mixture_.n_reference), len(self.mixture_.centers)
        return torch.arange(n_reference, n) if n > n_reference else torch.full((n_calibration,), -1)

    def _flat_generator(self) -> nn.Sequential:
        """Return z → g(z), flattened, as layers: tangents are pushed through these one by one."""
        return nn.Sequential(self.model_.generator, nn.Flatten(1))

    def _encode(self, rows: Tensor) -> Tensor:
        return self._blocks(lambda block: self.model_.inference(self._prepare_known(block)), rows)

    def _prepare_known(self, rows: Tensor) -> Tensor:
        """Scale rows, with the training rows' mean for a missing value: a network takes no gaps."""
        scaled = self._prepare(rows)
        return torch.where(scaled.isnan(), 0, scaled)

    def _score_rows(self, rows: Tensor) -> np.ndarray:
        return self._log_likelihood(rows, self._choice("method"), Search()).values

    def _score_calibration(self, rows: Tensor) -> np.ndarray:
        r"""Score each calibration row by the aggregate without its own component.

        p-values stay valid. Add a new row's component to those of the calibration rows, and omit from each
        row's sum its own: all m + 1 are scored alike, so the share of scores that are at most the new row's
        is a valid p-value (full conformal prediction). Here the new row's component is missing from the sums
        of the others. That can only lower their scores, and raise the p-value.
        """
        omitted = self._own_components(len(rows))
        return self._log_likelihood(rows, self._choice("method"), Search(), omitted=omitted).values

    def _typical_of_missing(self, rows: Tensor) -> np.ndarray:
        # Eq. 4's is a density on a surface of as many dimensions, whatever is missing.
        method = self._choice("method")
        if rows.dtype == torch.uint8 or not rows.isnan().any() or method == "riemannian":
            return np.zeros(len(rows))
        missing = rows.isnan().flatten(1).double()
        if len(self.data_shape_) > 1 and method in ("aggregate", RATIO):
            return missing.sum(1).numpy() * self._typical_of_pixels(method)
        return (missing @ self.typical_.cpu()).numpy()

    def _typical_of_pixels(self, method: str) -> float:
        """Average a pixel's part in the scores of training images, each without its own component."""
        which = torch.from_numpy(spread(np.arange(len(self.mixture_.centers)), MAX_TYPICAL))
        scaled = self.mixture_.centers[which].view(-1, *self.data_shape_)
        images = self.scaling_.inverse(scaled).cpu()
        scores = self._log_likelihood(images, method, Search(), omitted=which).values
        return float(scores.mean()) / math.prod(self.data_shape_)

    def _judge_features(
        self, rows: Tensor, *, typical: Tensor | None = None, omitted: Tensor | None = None
    ) -> "_Judged":
        """Judge each feature: a table's given the others, an image's pixels given the latent."""
        with self._scoring():
            if len(self.data_shape_) > 1:
                return self._judge_by_latent(rows)
            known, scaled = ~rows.isnan(), self._prepare_known(rows)
            derivative = self.scaling_.log_derivative(rows.nan_to_num().to(scaled.device)).expand(rows.shape)
            # Sought in the data's units, where the derivative of a bent column differs by row.
            baseline = None if typical is None else typical - derivative
            known = known.to(scaled.device)
            found = attribute(self.mixture_, scaled, typical=baseline, observed=known, omitted=omitted)
            mean = self.scaling_.inverse(found.mean)
            std = found.std / self.scaling_.log_derivative(mean).exp()
            return _Judged(torch.where(known, derivative - found.surprise, 0), mean, std)

    def _judge_by_latent(self, rows: Tensor) -> "_Judged":
        z, f = self._plausible_latents(rows), self.model_.stochastic_generator
        scaled = self._blocks(self._prepare_known, rows)
        log_prob = self._blocks(lambda block, latents: conditional(f, block, latents).double(), scaled, z)
        mean = self._decode(z)
        std = self._blocks(self.model_.variance, z) / self.scaling_.log_derivative(mean).exp()
        return _Judged(log_prob + self.scaling_.log_derivative(rows), mean, std)

    def _plausible_latents(self, rows: Tensor) -> Tensor:
        """Return h(x), drawn back to where g and σ have seen rows.

        Far from all training latents σ is as wide as it may be and g is a guess: every feature of such a row
        would be blamed. A training latent's surroundings reach as far as nine in ten have another one.
        """
        codes = self.mixture_.codes.to(next(self.model_.parameters()))

        def distances(z: Tensor) -> Tensor:
            return torch.cdist(z, codes, compute_mode="donot_use_mm_for_euclid_dist")

        def drawn_back(z: Tensor) -> Tensor:
            distance, nearest = distances(z).min(1, keepdim=True)
            center = codes[nearest[:, 0]]
            return torch.where(distance > reach, center + reach / distance * (z - center), z)

        two_nearest = self._blocks(lambda z: distances(z).topk(min(2, len(codes)), largest=False)[0], codes)
        reach = two_nearest[:, -1].quantile(0.9)
        return self._blocks(drawn_back, self._encode(rows))

    def log_likelihood(
        self,
        X: Any,
        method: str | None = None,
        *,
        refine: bool = False,
        n_starts: int = 1,
        n_samples: int | None = None,
        n_temperatures: int = 100,
    ) -> LogLikelihood:
        """Estimate log p(x) of each row by a named method, over the features that are known.

        Parameters
        ----------
        X : as in fit
            NaN stands for a missing value, and is marginalised exactly: the result is log p of the others.
        method : {"aggregate", "joint", "riemannian", "laplace", "importance", "ais", "ratio"}, optional
            By default the one that ``score_samples`` uses. "laplace", "importance" and "ais" estimate the
            same integral :math:`\\log \\int p(x | z) p(z) dz`: see docs/likelihoods.md for which to believe.
            "ratio", of images alone, is "aggregate" less the log-density of a smooth random field
            (:func:`~invgan.likelihood.smooth_field`).
        refine : bool
            Evaluate "joint" and "riemannian" at the mode of p(z | x) next to h(x), rather than at h(x); rows
            with missing values, of which h knows nothing, always are.
        n_starts : int
            Searches for a mode, by "laplace", "importance" and "ais": from h(x), and from ``n_starts - 1``
            draws of the prior. "laplace" takes the best mode, the other two use them all.
        n_samples : int, optional
            Draws per row of "importance" (1,000), or chains of "ais" (64).
        n_temperatures : int
            Steps of "ais" from the proposal to the posterior.

        Returns
        -------
        LogLikelihood
            ``values`` (n,) in nats, in the data's own units (a "ratio" has none); ``standard_error`` (n,)
            for "importance" and "ais", otherwise None; ``diagnostics``, a dictionary of arrays (n,):

            - "riemannian": the ``condition_number`` of [J_g; J_σ], and whether it is ``rank_deficient``;
            - "laplace", "importance", "ais", and all that were refined: whether the search for a mode
              ``converged`` (from any start);
            - "laplace": ``newton_decrement``, the nats another Newton step would gain;
            - "importance", "ais": ``effective_sample_size``, and whether the value is ``reliable``.

        Warns
        -----
        UnreliableEstimateWarning
            If the draws of "importance" or "ais" are too unequal for some rows' values, or for their
            standard errors, to be trusted.

        Raises
        ------
        ValueError
            If a parameter is out of range, for "ratio" if the rows are no images, or for "riemannian" if a
            row has fewer features than the latent space has dimensions.

        Source
        ------
        Paper, Eq. 4 (riemannian); :mod:`invgan.likelihood` has the sources of the others.
        """
        check_is_fitted(self)
        method = method or self._choice("method")
        if method not in (*METHODS, RATIO):
            raise InputError(
                f"The 'method' parameter of {type(self).__name__}.log_likelihood must be one of "
                f"{', '.join((*METHODS, RATIO))}. Got {method!r} instead."
            )
        self._check_method(method)
        for name, value, least in (
            ("n_starts", n_starts, 1),
            ("n_samples", 2 if n_samples is None else n_samples, 2),
            ("n_temperatures", n_temperatures, 1),
        ):
            if not isinstance(value, Integral) or value < least:
                raise InputError(
                    f"The {name!r} parameter of {type(self).__name__}.log_likelihood must be an int in the "
                    f"range [{least}, inf). Got {value!r} instead."
                )
        rows = self._check_rows(X, fitting=False, missing=True)
        found = self._log_likelihood(rows, method, Search(refine, n_starts, n_samples, n_temperatures))
        doubtful = ~found.diagnostics.get("reliable", np.ones(1, dtype=bool))
        if doubtful.any():
            remedy = "n_temperatures" if method == "ais" else "n_samples"
            warnings.warn(
                f"{method}: {doubtful.sum()} of {len(rows)} values are not to be trusted, nor are their "
                "standard errors, because few draws carry almost all of the weight; diagnostics['reliable'] "
                f"is False for them. Raise {remedy} or n_starts.",
                UnreliableEstimateWarning,
                stacklevel=2,
            )
        return found

    def _log_likelihood(
        self, rows: Tensor, method: str, search: "Search", *, omitted: Tensor | None = None
    ) -> LogLikelihood:
        names: list[str] = []

        def columns(block: Tensor, omitted: Tensor, observed: Tensor | None = None) -> Tensor:
            estimate = self._estimate(block, observed, omitted, method, search)
            error = {} if estimate.standard_error is None else {"standard_error": estimate.standard_error}
            results = {"values": estimate.values} | error | estimate.diagnostics
            names[:] = results
            return torch.stack([result.double() for result in results.values()], 1)

        # Where nothing is missing there may be no room for a copy.
        groups: list[tuple[Any, tuple[Tensor, ...]]] = [(slice(None), ())]
        if rows.is_floating_point():
            observed = ~rows.isnan()
            if method == "riemannian":
                self._check_rank(observed.flatten(1).sum(1))
            complete = observed.flatten(1).all(1).numpy()
            if not complete.all():
                parts = ((complete, ()), (~complete, (observed[~complete],)))
                groups = [(which, masks) for which, masks in parts if which.any()]
        omitted = torch.full((len(rows),), -1) if omitted is None else omitted
        # Rows that took no search beside rows that did have none that could fail.
        found: defaultdict[str, np.ndarray] = defaultdict(lambda: np.ones(len(rows)))
        by_mixture = method in ("aggregate", RATIO)
        with self._scoring(self.mixture_.tangents.basis.numel() if by_mixture else None):
            for which, masks in groups:
                arguments = (rows[which], omitted[which], *masks)
                if method in IMAGE_METHODS:
                    part = self._blocks(columns, *arguments)
                else:
                    part = in_blocks(columns, *arguments, size=SEARCH_BLOCK)
                for name, column in zip(names, part.cpu().numpy().T, strict=True):
                    found[name][which] = column
        values, error = found.pop("values"), found.pop("standard_error", None)
        flags = ("converged", "reliable", "rank_deficient")
        diagnostics = {name: a.astype(bool) if name in flags else a for name, a in found.items()}
        return LogLikelihood(values, error, diagnostics)

    def _check_method(self, method: str) -> None:
        if method == RATIO and len(self.data_shape_) == 1:
            raise InputError(
                f"The 'method' parameter of {type(self).__name__} is 'ratio', which compares neighbouring "
                "pixels, and the rows are no images: use 'aggregate'."
            )

    def _check_rank(self, n_observed: Tensor) -> None:
        few = (n_observed < min(self.latent_dim_, math.prod(self.data_shape_))).nonzero()
        if len(few):
            row = int(few[0])
            raise InputError(
                f"X has only {int(n_observed[row])} values in row {row}, fewer than the {self.latent_dim_} "
                "latent dimensions, and 'riemannian' is a density on a surface that would have none left: "
                "use method='importance'."
            )

    def _estimate(
        self, block: Tensor, observed: Tensor | None, omitted: Tensor, method: str, search: "Search"
    ) -> Estimate:
        """Estimate log p of raw rows in nats of the data's own units; each row by itself."""
        scaled = self._prepare(block)
        log_derivative = self.scaling_.log_derivative(block.to(scaled.device))
        if observed is not None:
            observed = observed.to(scaled.device).flatten(1)
            # What stands in for a missing value only decides where the search for a mode begins.
            scaled = torch.where(observed.view(scaled.shape), scaled, 0)
            log_abs_det = torch.where(observed, log_derivative, 0).sum(1)
        else:
            log_abs_det = log_derivative.sum(-1)
        rows = scaled.flatten(1)
        if method in ("aggregate", RATIO):
            values = self.mixture_.log_prob(
                rows.to(self.mixture_.centers.dtype), observed=observed, omitted=omitted.to(rows.device)
            ).double()
            if method == "aggregate":
                return Estimate(values + log_abs_det, None, {})
            known = None if observed is None else observed.view(scaled.shape)
            return Estimate(values - smooth_field(scaled, observed=known), None, {})
        f, z = self.model_.stochastic_generator, self.model_.inference(scaled)
        # Fresh draws, the same for all blocks: a value may not depend on the rows that were scored before.
        draws = torch.Generator().manual_seed(0)
        diagnostics = {}
        if method in ("joint", "riemannian"):
            if search.refine or observed is not None:
                z, converged = map_latent(f, rows, z, observed=observed)
                diagnostics["converged"] = converged
        else:
            z, converged = map_latents(
                f, rows, z, n_starts=search.n_starts, generator=draws, observed=observed
            )
            diagnostics["converged"] = converged.any(1)
        if method == "riemannian":
            estimate = self._riemannian(z, observed)
            return estimate._replace(diagnostics=estimate.diagnostics | diagnostics)
        if method == "joint":
            estimate = Estimate(joint(f, rows, z, observed=observed).double(), None, {})
        elif method == "laplace":
            estimate = _best_mode([laplace(f, rows, mode, observed=observed) for mode in z.unbind(1)])
        elif method == "importance":
            n_samples = search.n_samples or 1000
            estimate = importance(f, rows, z, n_samples=n_samples, generator=draws, observed=observed)
        else:
            estimate = ais(
                f,
                rows,
                z,
                n_chains=search.n_samples or 64,
                n_temperatures=search.n_temperatures,
                generator=draws,
                observed=observed,
            )
        return Estimate(
            estimate.values + log_abs_det, estimate.standard_error, estimate.diagnostics | diagnostics
        )

    def _riemannian(self, z: Tensor, observed: Tensor | None) -> Estimate:
        # A surface's volume in the data's units is not one factor away from that in scaled units: the
        # tangents themselves are returned to the data's units, and missing features take theirs along.
        on_surface = self.scaling_.inverse(self.model_.generator(z))
        scale = (-self.scaling_.log_derivative(on_surface)).exp()
        seen = scale if observed is None else scale * observed
        values, at = riemannian(self.model_.stochastic_generator, z, scale=seen)
        # Where g and σ are flat to the last digit, far from all data, the surface has no volume.
        values = values.where(values < torch.inf, -LARGEST_LOG_PROB)
        condition = at.singular_values[:, 0] / at.singular_values[:, -1]
        return Estimate(
            values, None, {"condition_number": condition, "rank_deficient": at.rank < self.latent_dim_}
        )

    # ---------------------------------------------------- explanations and latents

    def explain(self, X: Any) -> np.ndarray:
        r"""Tell how many nats each feature adds to a row being unusual.

        .. math:: \text{share}_i = \mathrm{E}_{\text{held out}}[\ell_i] - \ell_i(x), \qquad
            \sum_i \ell_i(x) = \log p(x)

        For tables p is the aggregate density, and :math:`\ell_i` the log-density of feature i given the
        others that are not more surprising than it (:func:`~invgan.likelihood.attribute`). For images it is
        the pixel's under the latent: :math:`\log p(x_i | z)`, whose sum is log p(x | z). z is h(x), or, where
        that lies further from every training row's latent than nine in ten of these lie from another one,
        the point at that distance on the way. The shares sum to the row's whole deficit in log p against the
        typical held-out row.

        Returns
        -------
        ndarray, shape of X
            In nats; large where a feature is not what was expected, 0 where it is missing. A table with text
            has the columns that it was encoded to, as in ``feature_names_in_``.

        Examples
        --------
        >>> import numpy as np
        >>> from invgan import InvGAN
        >>> a, noise = np.random.default_rng(0).normal(size=(2, 300))
        >>> X = np.stack([a, a + 0.1 * noise, noise], 1)
        >>> detector = InvGAN(max_steps=100, random_state=0).fit(X)
        >>> odd = [[2.0, 2.0, 9.0]]  # the third is far too large, the first two belong together
        >>> int(detector.explain(odd).argmax())
        2
        """
        return self.explanation(X).shares

    def expected(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        r"""Return what each feature was expected to be, in the data's own units.

        Returns
        -------
        mean : ndarray, shape of X
            For tables its conditional mean given those other features that :meth:`explain` does not find
            more surprising; for images g(z).
        std : ndarray, shape of X
            The conditional standard deviation; for images σ(z). Where a column was transformed, both to
            first order.
        """
        found = self.explanation(X)
        return found.mean, found.std

    def explanation(self, X: Any) -> Explanation:
        """Return what :meth:`explain` and :meth:`expected` do, at the cost of one of them.

        Returns
        -------
        Explanation
            ``shares``, ``mean`` and ``std``, each an array of X's shape.
        """
        check_is_fitted(self)
        rows = self._check_rows(X, fitting=False, missing=True)
        found = self._judge_features(rows, typical=self.typical_)
        shares = torch.where(rows.isnan(), 0, (self.typical_ - found.log_prob).cpu().view(rows.shape))
        parts = (part.cpu().view(rows.shape) for part in (shares, found.mean, found.std))
        return Explanation(*(part.numpy() for part in parts))

    @property
    def _n_features_out(self) -> int:
        return self.latent_dim_  # scikit-learn numbers the latents' names by it

    def transform(self, X: Any) -> np.ndarray:
        """Return the latents h(x), shape (n, d), or a table of them as ``set_output`` asks."""
        check_is_fitted(self)
        with self._scoring():
            return self._encode(self._check_rows(X, fitting=False, missing=True)).cpu().numpy()

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """Return the generator's mean g(z) in the data's units, shape (n, \\*data_shape)."""
        check_is_fitted(self)
        with self._scoring():
            return self._decode(self._check_latents(Z)).cpu().numpy()

    def sample(self, n_samples: int = 1, *, random_state: Any = None) -> np.ndarray:
        """Draw rows g(z) + σ(z) ⊙ ε in the data's units, shape (n_samples, \\*data_shape)."""
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise InputError(
                f"The 'n_samples' parameter of {type(self).__name__}.sample must be an int in the range "
                f"[1, inf). Got {n_samples!r} instead."
            )
        draws = check_random_state(random_state)
        z = self._check_latents(draws.standard_normal((n_samples, self.latent_dim_)))
        noise = torch.from_numpy(draws.standard_normal((n_samples, *self.data_shape_)))
        with self._scoring():
            std = self._blocks(self.model_.variance, z).view_as(noise)
            scaled = self._blocks(self.model_.generator, z) + std * noise.to(std)
            return self.scaling_.inverse(scaled).cpu().numpy()

    def _decode(self, z: Tensor) -> Tensor:
        return self._blocks(lambda block: self.scaling_.inverse(self.model_.generator(block)), z)

    def _check_latents(self, Z: Any) -> Tensor:
        latents = np.asarray(Z, dtype=np.float64)
        if not np.isfinite(latents).all():
            raise InputError("Z has NaN or infinite values; give finite latents.")
        if latents.ndim != 2 or latents.shape[1] != self.latent_dim_ or len(latents) == 0:
            raise InputError(
                f"Z must have shape (n, {self.latent_dim_}), one latent per row. Got {latents.shape} instead."
            )
        return torch.from_numpy(latents).to(next(self.model_.parameters()))

    # ---------------------------------------------------------------- model file

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        metadata, tensors = super()._state()
        tensors |= {f"mixture.{name}": tensor for name, tensor in self.mixture_.state_dict().items()}
        return metadata | {"latent_dim": self.latent_dim_}, tensors | {"typical": self.typical_}

    def _restore(self, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.latent_dim_ = int(metadata["latent_dim"])
        super()._restore(metadata, tensors)
        n_features, n_components = math.prod(self.data_shape_), len(tensors["mixture.codes"])
        expected = {
            "typical": (n_features,),
            "mixture.centers": (n_components, n_features),
            "mixture.codes": (n_components, self.latent_dim_),
            "mixture.n_reference": (),
            "mixture.variances": (len(Bandwidths._fields),),
        }
        check_shapes(tensors, expected)
        self.typical_ = tensors["typical"].to(self._device())
        mixture = part_of(tensors, "mixture.")
        with self._scoring():
            self.mixture_ = self._mixture(
                mixture["centers"].to(self._device()),
                mixture["codes"].to(self._device()),
                int(mixture["n_reference"]),
            )
        self.mixture_.load_state_dict(mixture)


def _with_each_feature(known: Tensor) -> np.ndarray:
    """Choose rows, given which features they have, so that each feature is in some of them."""
    chosen = spread(np.arange(len(known)), MAX_TYPICAL)
    for j in known.sum(0).argsort(stable=True).tolist():  # few have the rarest
        if known[chosen, j].sum() < min(FEWEST_TYPICAL, len(chosen)):
            more = spread(known[:, j].nonzero()[:, 0].numpy(), FEWEST_TYPICAL)
            chosen = np.union1d(chosen, more)
        if len(chosen) >= MAX_TYPICAL_WITH_GAPS:
            break
    return chosen


def _best_mode(estimates: list[Estimate]) -> Estimate:
    """Take each row's highest value, with its diagnostics."""
    values = torch.stack([estimate.values for estimate in estimates], 1)
    best = values.argmax(1, keepdim=True)
    decrements = torch.stack([estimate.diagnostics["newton_decrement"] for estimate in estimates], 1)
    return Estimate(
        values.gather(1, best)[:, 0], None, {"newton_decrement": decrements.gather(1, best)[:, 0]}
    )
