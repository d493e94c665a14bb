"""Likelihoods under a generator that someone else has trained."""

import copy
import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import HasMethods, Interval
from torch import Tensor, nn

from invgan import networks
from invgan.detectors.latent import MAX_STD, LatentDetector
from invgan.errors import InputError
from invgan.estimators import Split
from invgan.gan import Inverse
from invgan.geometry.tangents import derivative_along
from invgan.networks import RBFVariance


@dataclass(eq=False, repr=False, kw_only=True)
class ImplicitLikelihood(LatentDetector):
    r"""Likelihood of samples under any trained generator, which stays as it is.

    An inference network h ≈ g⁻¹ and a variance network σ are learned for the generator (lines 11 and 13 of
    Algorithm 1); the likelihoods are those of :class:`~invgan.InvGAN`.

    Parameters
    ----------
    generator : nn.Module
        g: (n, d) → one output per row, of as many values as a row of the data has and in the data's units. It
        is copied and used in evaluation mode; its parameters and buffers are not changed.
    latent_dim : int
        Dimension d of its latent space, whose prior is N(0, I).
    inference : nn.Module, optional
        h: (n, \*data_shape) → (n, d), on scaled data; by default sized from the data. It is copied.
    method : {"riemannian", "joint", "aggregate", "ratio", "laplace", "importance", "ais"}, optional
        What ``score_samples`` returns; by default "riemannian", the paper's Eq. 4.
    n_centers, max_steps, batch_size, learning_rate, patience, false_positive_rate, trim, random_state, \
    device, processes, precision, checkpoint, checkpoint_every, verbose
        As in :class:`~invgan.InvGAN`.

    Attributes
    ----------
    model_ : Inverse
        The generator's copy with its trained h and σ.

    Raises
    ------
    InputError
        At ``fit``, if the generator's output does not fit the data, changes its shape, is not finite, has no
        derivative, or depends on the other rows of a batch, or if it takes no latents in double precision,
        in which networks without convolutions are scored.

    Source
    ------
    Paper, sections 2.1 and 2.2.

    Examples
    --------
    >>> circle = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2)).requires_grad_(False)
    >>> X = circle(torch.randn(300, 1, generator=torch.Generator().manual_seed(0))).numpy()
    >>> density = ImplicitLikelihood(circle, latent_dim=1, max_steps=50, random_state=0).fit(X)
    >>> density.log_likelihood(X, method="riemannian").values.shape
    (300,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LatentDetector._parameter_constraints,
        "generator": [HasMethods(["forward", "parameters", "state_dict"])],
        "latent_dim": [Interval(Integral, 1, None, closed="left")],
        "inference": [None, nn.Module],
    }

    generator: nn.Module = field(kw_only=False)
    latent_dim: int = field(default=128, kw_only=False)
    inference: nn.Module | None = None

    def _choice(self, name: str) -> Any:
        default = {"method": "riemannian", "centers": "data", "n_centers": 256}[name]
        own = self._fitted_parameters.get(name)
        return default if own is None else own

    def _fit_rows(self, rows: Tensor, split: Split, seed: int) -> None:
        training = rows[split.training]
        self._check_method(self._choice("method"))
        self._check_batch_size(len(training))
        self.latent_dim_ = int(self.latent_dim)
        generator = copy.deepcopy(self.generator).eval().requires_grad_(False).float().cpu()
        _check_generator(generator, self.latent_dim_, self.data_shape_)
        self.scaling_ = self._scale(rows, split.training)
        draws = torch.Generator().manual_seed(seed)
        n_features, n_centers = math.prod(self.data_shape_), self._choose_n_centers(len(training))
        self.model_ = Inverse(
            # In the units and the shape that h and σ work in; tangents are pushed through layer by layer.
            nn.Sequential(
                generator, nn.Flatten(1), nn.Unflatten(1, self.data_shape_), copy.deepcopy(self.scaling_)
            ),
            self._build_inference(draws),
            RBFVariance(self.latent_dim_, n_features, n_centers, max_std=MAX_STD),
            latent_dim=self.latent_dim_,
        )
        if not self._is_convolutional():
            _check_double_precision(generator, self.latent_dim_)
        self._initialize_variance(draws, seed)
        self._train_and_prepare(rows, split, seed)

    def _build_inference(self, draws: torch.Generator) -> nn.Module:
        if self.inference is not None:
            return copy.deepcopy(self.inference)
        with torch.device("meta"):
            inference = networks.build(self.data_shape_, self.latent_dim_).inference
        networks.initialize(inference.to_empty(device="cpu"), draws)
        return inference

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        raise InputError(
            "A likelihood of a generator of your own cannot be saved, because a model file holds no code; "
            "keep the state_dict of its model_ instead."
        )

    def _build(self, tensors: dict[str, Tensor]) -> Inverse:
        raise InputError("a model file holds no generator of your own.")


def _check_generator(generator: nn.Module, latent_dim: int, data_shape: tuple[int, ...]) -> None:
    """Refuse, in one line each, what has no likelihood of this kind."""
    z = torch.randn(5, latent_dim, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            together, alone = generator(z), generator(z[:1])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"The generator fails on latents of shape (5, {latent_dim}): {reason}") from error
    size = math.prod(data_shape)
    fits = isinstance(together, Tensor) and together.ndim > 1 and len(together) == 5
    if not fits or together[0].numel() != size:
        found = tuple(together.shape) if isinstance(together, Tensor) else type(together).__name__
        raise InputError(
            f"The generator must return one output of {size} values per latent, as a row of X has. "
            f"Got {found} for 5 latents instead."
        )
    if alone.shape[1:] != together.shape[1:]:
        raise InputError(
            "The generator's output must have one shape whatever the batch. Got "
            f"{tuple(alone.shape[1:])} for one latent and {tuple(together.shape[1:])} for five instead."
        )
    if not together.isfinite().all():
        raise InputError("The generator returns NaN or infinite values in evaluation mode.")
    if not torch.allclose(alone, together[:1], rtol=1e-3, atol=1e-4 * together.abs().max().item()):
        raise InputError(
            "The generator's output for a latent depends on the rest of the batch, even in evaluation mode: "
            "give its batch normalisation running statistics, and take random layers out."
        )
    try:
        tangent = derivative_along(generator, z, torch.ones_like(z))[1]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"The generator cannot be differentiated in forward mode: {reason}") from error
    if not tangent.isfinite().all() or not tangent.any():
        raise InputError(
            "The generator's derivative is zero or not finite everywhere that was tried: its output must be "
            "a differentiable function of the latent, without detach, rounding or argmax."
        )


def _check_double_precision(generator: nn.Module, latent_dim: int) -> None:
    """Refuse, before the training, what could not be scored after it."""
    z = torch.zeros(2, latent_dim, dtype=torch.float64)
    try:
        with torch.no_grad():
            output = copy.deepcopy(generator).double()(z)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"The generator fails on latents in double precision: {reason}") from error
    if output.dtype != torch.float64:
        raise InputError(
            f"The generator returns {output.dtype} for latents in double precision, in which it is scored: "
            "let it follow the type of its latents, without casts such as .float()."
        )
