"""Algorithm 1 for dense networks as one jitted scan in JAX: what the speed benchmark compares with.

Plain JAX and nothing of this library: the same four updates, Adams, batch normalisation, schedule and
weight averages as :class:`invgan.gan.GAN` under :func:`invgan.training.train` has.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

BETAS, RATE, AVERAGING, MOMENTUM = (0.5, 0.999), 1e-3, 0.99, 0.1

Tree = Any


def compile_steps(
    sizes: Mapping[str, Sequence[int]], rows: Any, n_centers: int, batch_size: int, n_steps: int
) -> Callable[[], float]:
    """Compile ``n_steps`` training steps and return what runs them and gives the last step's loss.

    Parameters
    ----------
    sizes : mapping of sequences of int
        Widths of the layers of "g", "d" and "h".
    rows : array, shape (n, D)
        Scaled training rows.
    n_centers, batch_size, n_steps : int
    """
    d = sizes["g"][0]
    keys = iter(jax.random.split(jax.random.key(0), 8))
    networks = {name: _network(next(keys), widths) for name, widths in sizes.items()}
    sigma = {"weight": jax.random.uniform(next(keys), (sizes["g"][-1], n_centers))}
    centers = jax.random.normal(next(keys), (n_centers, d))
    parameters = {name: network[0] for name, network in networks.items()} | {"sigma": sigma}
    statistics = {name: network[1] for name, network in networks.items()}
    data = jnp.asarray(rows)

    def discriminate(moved: Tree, fixed: Tree, state: Tree, keys: Tree) -> Any:
        fake, g = _forward(fixed["g"], state["g"], jax.random.normal(keys[1], (batch_size, d)))
        real_logits, first = _forward(moved["d"], state["d"], _batch(data, keys[0], batch_size))
        fake_logits, second = _forward(moved["d"], first, jax.lax.stop_gradient(fake))
        loss = jax.nn.softplus(-real_logits).mean() + jax.nn.softplus(fake_logits).mean()
        return loss, state | {"g": g, "d": second}

    def generate(moved: Tree, fixed: Tree, state: Tree, keys: Tree) -> Any:
        fake, g = _forward(moved["g"], state["g"], jax.random.normal(keys[0], (batch_size, d)))
        logits, critic = _forward(fixed["d"], state["d"], fake)
        return jax.nn.softplus(-logits).mean(), state | {"g": g, "d": critic}

    def reconstruct(moved: Tree, fixed: Tree, state: Tree, keys: Tree) -> Any:
        x = _batch(data, keys[0], batch_size)
        z, h = _forward(moved["h"], state["h"], x)
        squared = (z**2).sum(1)[:, None] - 2 * z @ centers.T + (centers**2).sum(1)
        std = jax.lax.rsqrt(jnp.exp(-squared / d) @ (moved["sigma"]["weight"] ** 2).T + 0.01)
        mean, g = _forward(fixed["g"], state["g"], z)
        likelihood = (0.5 * ((mean - x) / std) ** 2 + jnp.log(std)).sum(1).mean()
        m, v = z.mean(0), z.var(0)
        return likelihood + 0.5 * (v + m**2 - 1 - jnp.log(v)).sum(), state | {"g": g, "h": h}

    def invert(moved: Tree, fixed: Tree, state: Tree, keys: Tree) -> Any:
        z = jax.random.normal(keys[0], (batch_size, d))
        x, g = _forward(moved["g"], state["g"], z)
        back, h = _forward(moved["h"], state["h"], x)
        return ((z - back) ** 2).sum(1).mean(), state | {"g": g, "h": h}

    updates = [(discriminate, "d"), (generate, "g"), (reconstruct, ("h", "sigma")), (invert, ("h", "g"))]
    moments = [
        jax.tree.map(jnp.zeros_like, [{name: parameters[name] for name in names}] * 2) for _, names in updates
    ]

    def step(carry: Tree, index: Any) -> Any:
        parameters, statistics, moments, averages, key = carry
        rate = RATE * (1 + jnp.cos(jnp.pi * index / n_steps)) / 2
        after = []
        for (loss_of, names), (first, second) in zip(updates, moments, strict=True):
            key, *fresh = jax.random.split(key, 3)
            moved = {name: parameters[name] for name in names}
            (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
                moved, parameters, statistics, fresh
            )
            first = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * g, first, gradients)
            second = jax.tree.map(lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * g**2, second, gradients)
            unbias = [1 - beta ** (index + 1) for beta in BETAS]
            moved = jax.tree.map(
                lambda p, m, v, u=unbias: p - rate * (m / u[0]) / (jnp.sqrt(v / u[1]) + 1e-8),
                moved,
                first,
                second,
            )
            parameters = parameters | moved
            after.append([first, second])
        decay = jnp.minimum(AVERAGING, 1 - 1 / (index + 1))
        averages = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averages, parameters)
        return (parameters, statistics, after, averages, key), loss

    carry = (parameters, statistics, moments, parameters, jax.random.key(1))
    indices = jnp.arange(n_steps, dtype=jnp.float32)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, indices)).lower(carry).compile()
    return lambda: float(run(carry)[1][-1])


def _network(key: Any, widths: Sequence[int]) -> tuple[Tree, Tree]:
    """Weights and running statistics of a perceptron with batch normalisation before each activation."""
    layers, statistics = [], []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        key, for_weight, for_bias = jax.random.split(key, 3)
        bound = n_in**-0.5
        layer = {
            "weight": jax.random.uniform(for_weight, (n_in, n_out), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(for_bias, (n_out,), minval=-bound, maxval=bound),
        }
        if i < len(widths) - 2:
            layer |= {"scale": jnp.ones(n_out), "shift": jnp.zeros(n_out)}
            statistics.append({"mean": jnp.zeros(n_out), "var": jnp.ones(n_out)})
        layers.append(layer)
    return layers, statistics


def _forward(layers: Tree, statistics: Tree, x: Any) -> tuple[Any, Tree]:
    """Outputs in training mode, and the running statistics after it."""
    after: list[Tree] = []
    for layer, running in zip(layers, [*statistics, None], strict=True):
        x = x @ layer["weight"] + layer["bias"]
        if running is None:
            return x, after
        mean, var = x.mean(0), x.var(0)
        unbiased = var * len(x) / (len(x) - 1)
        after.append(
            {
                "mean": (1 - MOMENTUM) * running["mean"] + MOMENTUM * mean,
                "var": (1 - MOMENTUM) * running["var"] + MOMENTUM * unbiased,
            }
        )
        x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * layer["scale"] + layer["shift"])
    raise AssertionError("the last layer has no batch normalisation")


def _batch(data: Any, key: Any, batch_size: int) -> Any:
    return data[jax.random.randint(key, (batch_size,), 0, len(data))]
