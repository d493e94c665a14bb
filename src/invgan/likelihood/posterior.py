r"""The density p(x) = ∫ p(x | z) p(z) dz of a stochastic generator, by way of the posterior p(z | x).

Every function takes scaled, flattened rows and works in float64, except that ``f`` is evaluated in the dtype
of the latents it is given: the one its networks compute in. A row's result is a function of the row alone:
all rows share the random draws (so the errors of a block's rows are correlated), and every row is carried
along until the last one is done. Memory grows with the rows, n·D·d for a Jacobian: give many rows in blocks.

Missing features are left out of the sum over features. As p(x | z) is diagonal, that marginalises exactly.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from invgan.errors import InputError
from invgan.geometry import jacobian
from invgan.likelihood.pointwise import StochasticGenerator, conditional, log_prior

MIN_EFFECTIVE_SAMPLES = 50.0
"""Below this effective sample size a value is not to be trusted, nor is its standard error."""

DEFENSIVE_SHARE = 0.1
"""Share of the draws that the prior gets, which bounds every weight; of the rest, the share that all modes
get alike, whatever their evidence."""

WIDENING = 1.1
"""Factor on a Laplace fit's standard deviations: too wide a proposal costs samples, too narrow a one hides
its error."""

MAX_VALUES = 2**24
"""Numbers per intermediate tensor (128 MiB in float64): samples are taken in chunks of this size."""


class Estimate(NamedTuple):
    """Log-likelihoods of rows as tensors, with what is known of their error."""

    values: Tensor
    """log p(x) in nats of the scaled data, shape (n,), float64."""
    standard_error: Tensor | None
    """Monte-Carlo standard error of each value, or None where nothing was sampled."""
    diagnostics: dict[str, Tensor]
    """Per row, what tells whether to trust the value."""


class Curvature(NamedTuple):
    """First and second derivatives of −log p(x, z) in z."""

    gradient: Tensor
    """Shape (n, d)."""
    hessian: Tensor
    """The Gauss-Newton one, shape (n, d, d): symmetric, and no eigenvalue is below 1."""

    def newton_decrement(self) -> Tensor:
        """½ ∇ᵀH⁻¹∇, shape (n,): by how many nats a Newton step would raise log p(x, z)."""
        half = torch.linalg.solve_triangular(
            torch.linalg.cholesky(self.hessian), self.gradient[..., None], upper=False
        )
        return 0.5 * half.square().sum((1, 2))


class Posterior:
    r"""The unnormalised posterior p(x, z) = p(x | z) p(z) of each row, over its observed features.

    Parameters
    ----------
    f : StochasticGenerator
    rows : Tensor, shape (n, D)
        Scaled data; entries that are not observed may be anything, NaN included.
    observed : Tensor, shape (n, D), bool, optional
        Which features are known; all, unless given.
    z : Tensor, shape (n, d) or (n, K, d)
        Latents of the rows: only shape and dtype count, and the dtype is the one ``f`` is evaluated in.

    Raises
    ------
    InputError
        If the shapes disagree, or an observed entry is not finite.

    Examples
    --------
    >>> f = StochasticGenerator(lambda z: 2 * z, torch.ones_like)
    >>> z = torch.tensor([[1.0]])
    >>> at_one = Posterior(f, torch.tensor([[2.0]]), None, z).curvature(z)
    >>> at_one.gradient.item(), at_one.hessian.item()
    (1.0, 5.0)
    """

    def __init__(self, f: StochasticGenerator, rows: Tensor, observed: Tensor | None, z: Tensor) -> None:
        if rows.ndim != 2:
            raise InputError(
                f"The 'rows' parameter must be of shape (n, D): flatten each row. "
                f"Got {tuple(rows.shape)} instead."
            )
        if z.ndim not in (2, 3) or len(z) != len(rows):
            raise InputError(
                f"The latents must be of shape (n, d) or (n, K, d) with n = {len(rows)}, as the rows. "
                f"Got {tuple(z.shape)} instead."
            )
        if observed is None:
            observed = torch.ones_like(rows, dtype=torch.bool)
        if observed.shape != rows.shape or observed.dtype != torch.bool:
            raise InputError(
                f"The 'observed' parameter must be a boolean mask of shape {tuple(rows.shape)}, as the rows. "
                f"Got {observed.dtype} of shape {tuple(observed.shape)} instead."
            )
        unknown = (observed & ~rows.isfinite()).nonzero()
        if len(unknown):
            row, feature = unknown[0].tolist()
            raise InputError(
                f"The 'rows' parameter must be finite where observed: row {row}, feature {feature} is "
                f"{rows[row, feature].item()}. Mark missing entries as False in 'observed'."
            )
        self.f = f
        self.observed = observed
        # Whatever stands in a missing entry must reach neither a value nor a gradient.
        self.rows = torch.where(observed, rows, 0).double()
        self.dtype = z.dtype

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(x, z), shape (..., n), for latents of shape (..., n, d); differentiable."""
        flat = z.to(self.dtype).flatten(0, -2)
        repeats = len(flat) // len(self.rows)
        terms = conditional(self.f, self.rows.repeat(repeats, 1), flat).double()
        given = torch.where(self.observed.repeat(repeats, 1), terms, 0).sum(1)
        return given.reshape(z.shape[:-1]) + log_prior(z.double().flatten(0, -2)).reshape(z.shape[:-1])

    def curvature(self, z: Tensor) -> Curvature:
        r"""Differentiate −log p(x, z) at z (n, d), from one Jacobian of [g; σ].

        .. math::
            \nabla = z - J_g^\top \frac{r}{\sigma} + J_\sigma^\top \frac{1 - r^2}{\sigma}, \qquad
            H = I + J_g^\top \Sigma^{-1} J_g + 2 J_\sigma^\top \Sigma^{-1} J_\sigma, \qquad
            r = \frac{x - g}{\sigma}

        The gradient is exact; H is the expectation of the Hessian over x given z (the Fisher information
        of a Gaussian whose mean and standard deviation both move), plus the prior's.
        """
        at = z.to(self.dtype)
        mean_and_std = self.f.mean_and_std
        with torch.no_grad():
            mean, std = mean_and_std(at).double().chunk(2, dim=1)  # n×D
        tangents_mean, tangents_std = jacobian(mean_and_std, at).double().chunk(2, dim=1)  # n×D×d
        precision_root = torch.where(self.observed, 1 / std, 0)
        residual = (self.rows - mean) / std
        white_mean = tangents_mean * precision_root[..., None]
        white_std = tangents_std * precision_root[..., None]
        gradient = (
            z.double()
            - (white_mean.mT @ residual[..., None])[..., 0]
            + (white_std.mT @ (1 - residual.square())[..., None])[..., 0]
        )
        identity = torch.eye(z.shape[1], dtype=torch.float64, device=z.device)
        hessian = identity + white_mean.mT @ white_mean + 2 * white_std.mT @ white_std
        return Curvature(gradient, hessian)


def map_latent(
    f: StochasticGenerator,
    rows: Tensor,
    z0: Tensor,
    *,
    observed: Tensor | None = None,
    max_steps: int = 100,
) -> tuple[Tensor, Tensor]:
    r"""Find a mode of the posterior by damped Gauss-Newton steps (Levenberg-Marquardt).

    .. math::
        z \leftarrow z - (H + \lambda\,\mathrm{diag}\,H)^{-1} \nabla, \qquad
        \nabla = -\partial_z \log p(x, z)

    with the Gauss-Newton Hessian H of :meth:`Posterior.curvature`. Each row has a damping λ of its own, which
    falls after a step that gains what the quadratic model promised, holds after one that gains about half of
    it, and rises after one that would lower log p(x, z), which is not taken. A row stops when another
    undamped step would gain less than rounding errors; from then on it does not change.

    Parameters
    ----------
    f : StochasticGenerator
    rows : Tensor, shape (n, D)
        Scaled data; missing entries may be NaN.
    z0 : Tensor, shape (n, d)
        Where to start: h(x). Its dtype is the one ``f`` is evaluated in.
    observed : Tensor, shape (n, D), bool, optional
        Which features are known; all, unless given.
    max_steps : int
        After so many steps the rest are given back as they stand.

    Returns
    -------
    z : Tensor, shape (n, d)
        In the dtype of ``z0``; up to rounding, log p(x, z) is nowhere lower than at ``z0``.
    converged : Tensor, shape (n,), bool
        False where steps ran out, or at a kink, where no derivative is zero.

    Raises
    ------
    InputError
        If the shapes disagree, or an observed entry is not finite.

    Source
    ------
    Not in the paper, which takes h(x) as it is. Marquardt (1963); Nielsen (1999) for the damping.

    Examples
    --------
    >>> f = StochasticGenerator(lambda z: 2 * z, torch.ones_like)
    >>> z, converged = map_latent(f, torch.tensor([[5.0]]).double(), torch.zeros(1, 1).double())
    >>> round(z.item(), 3), converged.item()
    (2.0, True)
    """
    posterior = Posterior(f, rows, observed, z0)
    epsilon = torch.finfo(z0.dtype).eps
    z = z0
    with torch.no_grad():
        objective = -posterior.log_joint(z)
    damping = torch.full_like(objective, 1e-3)
    backoff = torch.full_like(objective, 2)
    converged = torch.zeros_like(objective, dtype=torch.bool)
    for step in range(max_steps + 1):
        at = posterior.curvature(z)
        converged = converged | (at.newton_decrement() <= epsilon**0.75)
        if step == max_steps or bool(converged.all()):
            break
        diagonal = at.hessian.diagonal(dim1=1, dim2=2)
        factor = torch.linalg.cholesky(at.hessian + torch.diag_embed(damping[:, None] * diagonal))
        change = -torch.cholesky_solve(at.gradient[..., None], factor)[..., 0]
        trial = (z + change).to(z0.dtype)
        with torch.no_grad():
            trial_objective = -posterior.log_joint(trial)
        curved = (change[:, None] @ at.hessian @ change[..., None])[:, 0, 0]
        promised = -(at.gradient * change).sum(1) - 0.5 * curved
        rounding = epsilon * objective.abs()  # close to a mode the gain drowns in it
        gain_ratio = (objective - trial_objective + rounding) / (promised + rounding)
        better = gain_ratio >= 0  # false for NaN
        moves = better & ~converged
        z = torch.where(moves[:, None], trial, z)
        objective = torch.where(moves, trial_objective, objective)
        eased = damping * (1 - (2 * gain_ratio.clamp(0, 1) - 1) ** 3).clamp_min(1 / 3)
        damping = torch.where(better, eased, damping * backoff).clamp(1e-12, 1e12)
        backoff = torch.where(better, 2, 2 * backoff).clamp_max(1e6)
    return z, converged


def map_latents(
    f: StochasticGenerator,
    rows: Tensor,
    z0: Tensor,
    *,
    n_starts: int,
    generator: torch.Generator,
    observed: Tensor | None = None,
    max_steps: int = 100,
) -> tuple[Tensor, Tensor]:
    """Run :func:`map_latent` from ``z0`` and from draws of the prior, where the posterior has several modes.

    Parameters
    ----------
    f, rows, z0, observed, max_steps :
        As in :func:`map_latent`.
    n_starts : int
        Starts per row, K: ``z0`` and K − 1 draws of the prior, the same ones for all rows.
    generator : torch.Generator
        Source of the draws, on the CPU.

    Returns
    -------
    z : Tensor, shape (n, K, d)
        Starts that led to the same mode are kept apart.
    converged : Tensor, shape (n, K), bool

    Examples
    --------
    >>> f = StochasticGenerator(lambda z: z**2, lambda z: torch.full_like(z, 0.5))
    >>> z, _ = map_latents(
    ...     f, torch.ones(1, 1).double(), torch.ones(1, 1).double(), n_starts=9,
    ...     generator=torch.Generator().manual_seed(0),
    ... )
    >>> sorted(set(z.flatten().round(decimals=3).tolist()))
    [-0.935, 0.935]
    """
    n, d = z0.shape
    draws = torch.randn(n_starts - 1, d, generator=generator, dtype=torch.float64).to(z0)
    starts = torch.cat([z0[:, None], draws.expand(n, -1, -1)], dim=1)  # n×K×d
    found = [map_latent(f, rows, start, observed=observed, max_steps=max_steps) for start in starts.unbind(1)]
    return torch.stack([z for z, _ in found], 1), torch.stack([converged for _, converged in found], 1)


def laplace(f: StochasticGenerator, rows: Tensor, z: Tensor, *, observed: Tensor | None = None) -> Estimate:
    r"""Approximate the posterior by the Gaussian with its mode and its Gauss-Newton Hessian.

    .. math:: \log p(x) \approx \log p(x \mid \hat z) + \log p(\hat z) + \tfrac d2 \log 2\pi
        - \tfrac12 \log\det H(\hat z)

    Exact where g is linear and σ constant. Of a posterior with several modes it counts one.

    Parameters
    ----------
    f : StochasticGenerator
    rows : Tensor, shape (n, D)
        Scaled data; missing entries may be NaN.
    z : Tensor, shape (n, d)
        The modes, from :func:`map_latent`.
    observed : Tensor, shape (n, D), bool, optional
        Which features are known; all, unless given.

    Returns
    -------
    Estimate
        No standard error; diagnostics ``newton_decrement``: how many nats of log p(x, z) a Newton step would
        still gain, zero at a mode.

    Raises
    ------
    InputError
        If the shapes disagree, or an observed entry is not finite.

    Source
    ------
    Tierney and Kadane (1986).

    Examples
    --------
    x = 2z + ε has variance 5:

    >>> f = StochasticGenerator(lambda z: 2 * z, torch.ones_like)
    >>> value = laplace(f, torch.tensor([[5.0]]).double(), torch.tensor([[2.0]]).double()).values
    >>> torch.allclose(value, torch.distributions.Normal(0.0, 5**0.5).log_prob(torch.tensor([5.0])).double())
    True
    """
    posterior = Posterior(f, rows, observed, z)
    values, at = _laplace(posterior, z)
    return Estimate(values, None, {"newton_decrement": at.newton_decrement()})


def importance(
    f: StochasticGenerator,
    rows: Tensor,
    z: Tensor,
    *,
    n_samples: int,
    generator: torch.Generator,
    observed: Tensor | None = None,
    widening: float = WIDENING,
) -> Estimate:
    r"""Estimate p(x) without bias by importance sampling around the modes of the posterior.

    .. math::
        \log \hat p(x) = \log \frac1S \sum_s w_s, \qquad w_s = \frac{p(x, z_s)}{q(z_s)}, \qquad
        \mathrm{ESS} = \frac{(\sum_s w_s)^2}{\sum_s w_s^2}

    The proposal q is that of :class:`Proposal`. The standard error is that of the mean of the weights carried
    over to its logarithm (the delta method), :math:`\sqrt{(S / \mathrm{ESS} - 1) / (S - 1)}`.

    Parameters
    ----------
    f : StochasticGenerator
    rows : Tensor, shape (n, D)
        Scaled data; missing entries may be NaN.
    z : Tensor, shape (n, d) or (n, K, d)
        One mode per row from :func:`map_latent`, or several from :func:`map_latents`.
    n_samples : int
        S, at least 2.
    generator : torch.Generator
        Source of the draws, on the CPU; all rows share them.
    observed : Tensor, shape (n, D), bool, optional
        Which features are known; all, unless given.
    widening : float
        Factor on the standard deviations of the Laplace fit.

    Returns
    -------
    Estimate
        Diagnostics ``effective_sample_size``, and ``reliable``: whether it reaches 50. No finite sample shows
        a mode that it missed.

    Raises
    ------
    InputError
        If the shapes disagree, an observed entry is not finite, or a parameter is out of range.

    Source
    ------
    Owen (2013), chapter 9, for the standard error and the mixture.

    Examples
    --------
    >>> f = StochasticGenerator(lambda z: 2 * z, torch.ones_like)
    >>> estimate = importance(
    ...     f, torch.tensor([[5.0]]).double(), torch.tensor([[2.0]]).double(), n_samples=1000,
    ...     generator=torch.Generator().manual_seed(0),
    ... )
    >>> exact = torch.distributions.Normal(0.0, 5**0.5).log_prob(torch.tensor(5.0))
    >>> ((estimate.values - exact).abs() < 3 * estimate.standard_error).item()
    True
    """
    if n_samples < 2:
        raise InputError(
            f"The 'n_samples' parameter of importance must be at least 2. Got {n_samples} instead."
        )
    posterior = Posterior(f, rows, observed, z)
    proposal = Proposal(posterior, z, n_samples, widening=widening, prior_share=DEFENSIVE_SHARE)
    draws = proposal.draw(generator)
    chunks = []
    for chunk in torch.arange(n_samples).split(proposal.samples_per_chunk(posterior)):
        samples = proposal.place(draws, chunk)
        with torch.no_grad():
            chunks.append(posterior.log_joint(samples) - proposal.log_prob(samples))
    return estimate_from_weights(torch.cat(chunks))


class Draws(NamedTuple):
    """The random numbers of a proposal, before a row gives them place and scale."""

    normal: Tensor
    """Shape (S, d)."""
    shrinkage: Tensor
    """√(χ²_ν / ν), shape (S, 1): what a normal is divided by to become Student's t."""


class Proposal:
    r"""Where samples of z are drawn for each row: Student's t around each mode, and a share of the prior.

    .. math::
        q(z) = \sum_k \alpha_k\, t_\nu\bigl(z; \hat z_k, w^2 H_k^{-1}\bigr) + \alpha_0 N(z; 0, I), \qquad
        \nu = d + 5

    The tails of t cover what a Gaussian fit leaves out; ν rises with d as otherwise the radius of t would
    spread ever further beyond that of the posterior. The prior's share bounds every weight, so that a
    standard error exists. Modes share the rest as their Laplace approximations of p(x). Each component gets a
    fixed number of draws, and :math:`\alpha_k` is that number's share, so the mixture is stratified.

    Parameters
    ----------
    posterior : Posterior
    z : Tensor, shape (n, d) or (n, K, d)
        The modes.
    n_samples : int
        S, draws per row.
    widening : float
        w.
    prior_share : float
        The prior's share, in [0, 1).

    Raises
    ------
    InputError
        If ``widening`` is not positive.

    Source
    ------
    Hesterberg (1995) for the defensive share; Owen and Zhou (2000) for the stratified mixture.
    """

    def __init__(
        self, posterior: Posterior, z: Tensor, n_samples: int, *, widening: float, prior_share: float
    ) -> None:
        if not 0 < widening < math.inf:
            raise InputError(f"The 'widening' parameter must be positive and finite. Got {widening} instead.")
        modes = z[:, None] if z.ndim == 2 else z  # n×K×d
        fits = [_laplace(posterior, mode) for mode in modes.unbind(1)]
        evidence = torch.stack([values for values, _ in fits], 1)  # n×K
        self.dim = z.shape[-1]
        self.degrees_of_freedom = self.dim + 5
        self.modes = modes.double()
        # Cholesky factors L of the scaled precision H / w² = L Lᵀ.
        self.factors = torch.stack([torch.linalg.cholesky(at.hessian) for _, at in fits], 1) / widening
        by_evidence = (1 - DEFENSIVE_SHARE) * evidence.softmax(1) + DEFENSIVE_SHARE / evidence.shape[1]
        shares = torch.cat(
            [torch.full_like(evidence[:, :1], prior_share), (1 - prior_share) * by_evidence], 1
        )
        upper_ends = shares.cumsum(1).clamp_max(1)
        upper_ends[:, -1] = 1
        steps = (torch.arange(n_samples, dtype=torch.float64, device=z.device) + 0.5) / n_samples
        self.component = torch.searchsorted(
            upper_ends, steps.expand(len(z), -1).contiguous()
        )  # n×S; 0 = prior
        counts = torch.zeros_like(shares).scatter_add_(
            1, self.component, torch.ones_like(self.component).double()
        )
        self.log_shares = (counts / n_samples).double().log()  # n×(K+1); −∞ where no draw fell

    def samples_per_chunk(self, posterior: Posterior) -> int:
        """How many samples per row fit the memory bound."""
        n, n_modes, d = self.modes.shape
        return max(1, MAX_VALUES // (n * max(posterior.rows.shape[1], (n_modes + 1) * d)))

    def draw(self, generator: torch.Generator) -> Draws:
        """Draw the random numbers of all samples, the same for every row."""
        n_samples, nu = self.component.shape[1], self.degrees_of_freedom
        normal = torch.randn(n_samples, self.dim, generator=generator, dtype=torch.float64)
        squares = torch.randn(n_samples, nu, generator=generator, dtype=torch.float64).square()
        return Draws(normal.to(self.modes.device), squares.mean(1, keepdim=True).sqrt().to(self.modes.device))

    def place(self, draws: Draws, which: Tensor) -> Tensor:
        """Turn the draws of the given indices (s,) into samples, shape (s, n, d)."""
        normal, shrinkage = draws.normal[which], draws.shrinkage[which]
        n, n_modes, d = self.modes.shape
        white = (normal / shrinkage).T.expand(n, n_modes, d, len(which))
        around = torch.linalg.solve_triangular(self.factors.mT, white, upper=True) + self.modes[..., None]
        candidates = torch.cat([normal.T.expand(n, 1, d, len(which)), around], 1)  # n×(K+1)×d×s
        chosen = self.component[:, None, None, which].expand(n, 1, d, len(which))
        return candidates.gather(1, chosen)[:, 0].permute(2, 0, 1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z), shape (s, n), for latents of shape (s, n, d); differentiable."""
        nu, d = self.degrees_of_freedom, self.dim
        offsets = z.permute(1, 2, 0)[:, None] - self.modes[..., None]  # n×K×d×s
        squared = (self.factors.mT @ offsets).square().sum(2)  # n×K×s
        constant = math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - 0.5 * d * math.log(nu * math.pi)
        log_scale = self.factors.diagonal(dim1=2, dim2=3).log().sum(2)  # n×K
        around = constant + log_scale[..., None] - 0.5 * (nu + d) * torch.log1p(squared / nu)
        prior = log_prior(z.flatten(0, 1)).reshape(z.shape[:2]).T[:, None]  # n×1×s
        return torch.logsumexp(self.log_shares[..., None] + torch.cat([prior, around], 1), 1).T


def estimate_from_weights(log_weights: Tensor) -> Estimate:
    """Turn log-weights of shape (S, n) into log p(x), its standard error and the effective sample size.

    Examples
    --------
    >>> estimate = estimate_from_weights(torch.tensor([[1e4], [1e4]]).double())
    >>> estimate.values.item(), estimate.standard_error.item()
    (10000.0, 0.0)
    """
    n_samples = len(log_weights)
    total = torch.logsumexp(log_weights, 0)
    effective = torch.exp(2 * total - torch.logsumexp(2 * log_weights, 0))
    standard_error = ((n_samples / effective - 1).clamp_min(0) / (n_samples - 1)).sqrt()
    return Estimate(
        total - math.log(n_samples),
        standard_error,
        {"effective_sample_size": effective, "reliable": effective >= MIN_EFFECTIVE_SAMPLES},
    )


def _laplace(posterior: Posterior, z: Tensor) -> tuple[Tensor, Curvature]:
    """The Laplace approximation of log p(x), and the derivatives that it came from."""
    at = posterior.curvature(z)
    with torch.no_grad():
        log_joint = posterior.log_joint(z)
    half_log_det = torch.linalg.cholesky(at.hessian).diagonal(dim1=1, dim2=2).log().sum(1)
    return log_joint + 0.5 * z.shape[1] * math.log(2 * math.pi) - half_log_det, at
