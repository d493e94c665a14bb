"""Annealed importance sampling: log p(x) by a path of distributions, the slow check of the fast estimates."""

from typing import NamedTuple

import torch
from torch import Tensor

from invgan.errors import InputError
from invgan.likelihood.pointwise import StochasticGenerator, log_prior
from invgan.likelihood.posterior import (
    MAX_VALUES,
    WIDENING,
    Estimate,
    Posterior,
    Proposal,
    estimate_from_weights,
)

N_LEAPFROG = 4
"""Leapfrog steps per Hamiltonian move."""

TARGET_ACCEPTANCE = 0.65
"""Share of accepted moves that step sizes are tuned to (Neal, 2011, section 5.4.4.3)."""

MAX_STEP = 1.0
"""Largest step in coordinates where the target is about round; from 2 on leapfrog steps diverge."""


def ais(
    f: StochasticGenerator,
    rows: Tensor,
    z: Tensor,
    *,
    n_chains: int,
    n_temperatures: int,
    generator: torch.Generator,
    observed: Tensor | None = None,
    start: str = "laplace",
) -> Estimate:
    r"""Estimate p(x) without bias by chains that move from a simple distribution to the posterior.

    .. math::
        \pi_\beta(z) \propto q(z)^{1 - \beta}\, p(x, z)^\beta, \qquad
        \log w = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \log \frac{p(x, z_{t-1})}{q(z_{t-1})}, \qquad
        \log \hat p(x) = \log \frac1C \sum_c w_c

    Between two temperatures each chain makes one Hamiltonian Monte Carlo move. Its step size is tuned per row
    and temperature in a pilot run with chains of its own, and then kept: tuning during the run would
    cost the estimate its freedom from bias. With ``start="laplace"`` q is the mixture of
    :class:`~invgan.likelihood.posterior.Proposal` less the prior, temperatures are evenly spaced, and moves
    are preconditioned by the Hessian of the best mode: few temperatures do. With ``start="prior"`` q is
    N(0, I), :math:`\beta_t = (t/T)^4`, and nothing depends on ``z``: far slower, and fair to modes that ``z``
    misses.

    Parameters
    ----------
    f : StochasticGenerator
    rows : Tensor, shape (n, D)
        Scaled data; missing entries may be NaN.
    z : Tensor, shape (n, d) or (n, K, d)
        Modes from :func:`~invgan.likelihood.map_latent`; for ``start="prior"`` only shape and dtype count.
    n_chains, n_temperatures : int
        C, at least 2, and T, at least 1. The pilot run adds C/4 chains.
    generator : torch.Generator
        Source of the draws, on the CPU; all rows share them.
    observed : Tensor, shape (n, D), bool, optional
        Which features are known; all, unless given.
    start : {"laplace", "prior"}
        The distribution at β = 0.

    Returns
    -------
    Estimate
        The standard error is taken over chains. Diagnostics ``effective_sample_size`` (in chains),
        ``reliable`` (whether it is at least half the chains), ``acceptance_rate``.

    Raises
    ------
    InputError
        If the shapes disagree, an observed entry is not finite, or a parameter is out of range.

    Source
    ------
    Neal (2001); Wu, Burda, Salakhutdinov and Grosse (2017) for decoders.

    Examples
    --------
    >>> f = StochasticGenerator(lambda z: 2 * z, torch.ones_like)
    >>> estimate = ais(
    ...     f, torch.tensor([[5.0]]).double(), torch.tensor([[2.0]]).double(), n_chains=32,
    ...     n_temperatures=20, generator=torch.Generator().manual_seed(0),
    ... )
    >>> exact = torch.distributions.Normal(0.0, 5**0.5).log_prob(torch.tensor(5.0))
    >>> ((estimate.values - exact).abs() < 3 * estimate.standard_error).item()
    True
    """
    for name, value, least in (("n_chains", n_chains, 2), ("n_temperatures", n_temperatures, 1)):
        if value < least:
            raise InputError(f"The '{name}' parameter of ais must be at least {least}. Got {value} instead.")
    if start not in ("laplace", "prior"):
        raise InputError(f"The 'start' parameter of ais must be 'laplace' or 'prior'. Got {start!r} instead.")
    posterior = Posterior(f, rows, observed, z)
    n_pilot = max(2, n_chains // 4)
    pilot = _Path(posterior, z, n_pilot, n_temperatures, start, generator)
    step_sizes = torch.full((n_temperatures, len(rows)), 0.5, dtype=torch.float64, device=z.device)
    pilot.run(torch.arange(n_pilot), step_sizes, tune=True)
    path = _Path(posterior, z, n_chains, n_temperatures, start, generator)
    chunk = max(1, MAX_VALUES // (rows.numel() + z.numel()))
    runs = [path.run(chains, step_sizes, tune=False) for chains in torch.arange(n_chains).split(chunk)]
    estimate = estimate_from_weights(torch.cat([run.log_weights for run in runs]))
    accepted = torch.cat([run.acceptance for run in runs]).mean(0)
    reliable = estimate.diagnostics["effective_sample_size"] >= n_chains / 2
    diagnostics = estimate.diagnostics | {"reliable": reliable, "acceptance_rate": accepted}
    return estimate._replace(diagnostics=diagnostics)


class _Run(NamedTuple):
    """What chains bring home."""

    log_weights: Tensor
    """Shape (chains, n)."""
    acceptance: Tensor
    """Mean acceptance probability over the moves, shape (chains, n)."""


class _Path:
    """The path of one set of chains, with all of its random numbers drawn beforehand, once for all rows."""

    def __init__(
        self,
        posterior: Posterior,
        z: Tensor,
        n_chains: int,
        n_temperatures: int,
        start: str,
        generator: torch.Generator,
    ) -> None:
        n, d = len(z), z.shape[-1]
        self.posterior = posterior
        ladder = torch.linspace(0, 1, n_temperatures + 1, dtype=torch.float64)
        self.proposal: Proposal | None = None
        if start == "laplace":
            self.proposal = Proposal(posterior, z, n_chains, widening=WIDENING, prior_share=0.0)
            self.draws = self.proposal.draw(generator)
            best = self.proposal.log_shares[:, 1:].argmax(1)
            self.factor = self.proposal.factors[torch.arange(n, device=z.device), best] * WIDENING
        else:
            self.first = torch.randn(n_chains, 1, d, generator=generator, dtype=torch.float64).to(z.device)
            self.factor = torch.eye(d, dtype=torch.float64, device=z.device).expand(n, d, d)
            ladder = ladder**4
        self.ladder: list[float] = ladder.tolist()
        momenta = torch.randn(n_temperatures, n_chains, d, generator=generator, dtype=torch.float64)
        thresholds = torch.rand(n_temperatures, n_chains, generator=generator, dtype=torch.float64)
        # A fixed number of equal steps can lead a harmonic motion back to where it began.
        jitter = 0.6 + 0.4 * torch.rand(n_temperatures, generator=generator, dtype=torch.float64)
        self.jitter: list[float] = jitter.tolist()
        self.momenta, self.log_thresholds = momenta.to(z.device), thresholds.log().to(z.device)

    def run(self, chains: Tensor, step_sizes: Tensor, *, tune: bool) -> _Run:
        """Move the given chains along the path; with ``tune``, fill in the step sizes (T, n) on the way."""
        n = len(self.posterior.rows)
        if self.proposal is None:
            z = self.first[chains].expand(-1, n, -1)
        else:
            z = self.proposal.place(self.draws, chains)
        log_weights = torch.zeros(len(chains), n, dtype=torch.float64, device=z.device)
        acceptance = torch.zeros_like(log_weights)
        start, target, gradient_start, gradient_target = self._ends(z)
        for t, (before, beta) in enumerate(zip(self.ladder[:-1], self.ladder[1:], strict=True)):
            log_weights += (beta - before) * (target - start)
            step = self.jitter[t] * step_sizes[t][:, None]
            momentum = self.momenta[t, chains][:, None].expand_as(z)
            kinetic = 0.5 * momentum.square().sum(2)
            moved = z
            gradient = self._white((1 - beta) * gradient_start + beta * gradient_target)
            for _ in range(N_LEAPFROG):
                momentum = momentum + 0.5 * step * gradient
                moved = moved + step * self._unwhite(momentum)
                ends = self._ends(moved)
                gradient = self._white((1 - beta) * ends[2] + beta * ends[3])
                momentum = momentum + 0.5 * step * gradient
            gain = (1 - beta) * (ends[0] - start) + beta * (ends[1] - target)
            log_ratio = (gain + kinetic - 0.5 * momentum.square().sum(2)).nan_to_num(nan=-torch.inf)
            accepted = self.log_thresholds[t, chains][:, None] < log_ratio
            z = torch.where(accepted[..., None], moved, z)
            start, target = torch.where(accepted, ends[0], start), torch.where(accepted, ends[1], target)
            gradient_start = torch.where(accepted[..., None], ends[2], gradient_start)
            gradient_target = torch.where(accepted[..., None], ends[3], gradient_target)
            probability = log_ratio.clamp_max(0).exp()
            acceptance += probability / len(self.momenta)
            if tune and t + 1 < len(step_sizes):
                change = torch.exp(0.5 * (probability.mean(0) - TARGET_ACCEPTANCE))
                step_sizes[t + 1] = (step_sizes[t] * change).clamp_max(MAX_STEP)
        return _Run(log_weights, acceptance)

    def _ends(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log q and log p(x, ·), shape (chains, n), and their gradients, shape (chains, n, d)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            target = self.posterior.log_joint(z)
            (gradient_target,) = torch.autograd.grad(target.sum(), z)
            if self.proposal is None:
                start = log_prior(z.flatten(0, 1)).reshape(z.shape[:2])
            else:
                start = self.proposal.log_prob(z)
            (gradient_start,) = torch.autograd.grad(start.sum(), z)
        return start.detach(), target.detach(), gradient_start, gradient_target

    def _white(self, gradient: Tensor) -> Tensor:
        """L⁻¹∇: the gradient in the coordinates u = Lᵀz, where the Laplace fit is round."""
        return torch.linalg.solve_triangular(self.factor, gradient.permute(1, 2, 0), upper=False).permute(
            2, 0, 1
        )

    def _unwhite(self, momentum: Tensor) -> Tensor:
        """L⁻ᵀu: from those coordinates back."""
        return torch.linalg.solve_triangular(self.factor.mT, momentum.permute(1, 2, 0), upper=True).permute(
            2, 0, 1
        )
