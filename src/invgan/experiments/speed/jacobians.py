"""J_g on Table 5's generator, against everything PyTorch has for it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, jvp, vmap

from invgan.experiments.speed.timing import (
    DEVICE,
    convolution_rates,
    count_operations,
    matrix_rate,
    take_turns,
)
from invgan.geometry import jacobian
from invgan.geometry.jacobians import MAX_BYTES
from invgan.networks import conv_generator, initialize
from invgan.training import single_precision

LATENT_DIM, IMAGE = 50, (1, 32, 32)


@torch.no_grad()
def run(*, quick: bool) -> dict[str, Any]:
    """Time a Jacobian per row by each way, and relate this library's to the rate of bare convolutions."""
    n = 4 if quick else (256 if DEVICE.type == "cuda" else 32)
    few, rounds = (1, 1) if quick else (2, 5)
    g = conv_generator(LATENT_DIM, IMAGE)
    draws = torch.Generator().manual_seed(0)
    initialize(g, draws)
    g.eval().requires_grad_(False).to(DEVICE)
    as_scored = conv_generator(LATENT_DIM, IMAGE).eval().requires_grad_(False).to(DEVICE)
    as_scored.load_state_dict(g.state_dict())
    as_scored.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    z = torch.randn(n, LATENT_DIM, generator=draws).to(DEVICE)

    def one(at: Tensor) -> Tensor:
        return g(at[None])[0].flatten()

    ways = {  # how, and on how many rows: the slow ones would take minutes on all
        "this library": (lambda z: jacobian(as_scored, z), n),
        "this library, layers hidden in a function": (lambda z: jacobian(lambda z: as_scored(z), z), n),
        "vmap(jacfwd)": (lambda z: vmap(jacfwd(one))(z), n),
        "jvp loop": (lambda z: _by_jvp_loop(g, z), n),
        "vmap(jacrev)": (lambda z: vmap(jacrev(one))(z), few),
        "autograd.functional.jacobian": (
            lambda z: torch.stack([torch.autograd.functional.jacobian(one, at) for at in z]),
            few,
        ),
    }
    with single_precision(DEVICE):
        found = {name: way(z[:few]) for name, (way, _) in ways.items()}
        reference = jacobian(g.double(), z[:few].double())
        g.float()
        turns = {name: (lambda way=way, rows=rows: way(z[:rows])) for name, (way, rows) in ways.items()}
        seconds = take_turns(turns, rounds=rounds)
        per_row = {name: seconds[name] / rows for name, (_, rows) in ways.items()}
        forward = count_operations(lambda: g(z[:1]))
        images = MAX_BYTES // (4 * 64 * 16 * 16) if DEVICE.type == "cpu" else n * LATENT_DIM
        convolutions = convolution_rates(g, z[:1], images, rounds=rounds)
        matrices = matrix_rate(torch.float32, rounds=rounds)
    ours = per_row["this library"]
    rate = LATENT_DIM * forward / ours
    rivals = {name: time for name, time in per_row.items() if not name.startswith("this library")}
    return {
        "latent_dim": LATENT_DIM,
        "rows": {name: rows for name, (_, rows) in ways.items()},
        "milliseconds_per_row": {name: 1e3 * time for name, time in per_row.items()},
        "times_slower_than_this_library": {name: time / ours for name, time in rivals.items()},
        "best_rival": min(rivals, key=lambda name: rivals[name]),
        "largest_error": {
            name: ((values - reference).abs().max() / reference.abs().max()).item()
            for name, values in found.items()
        },
        "operations_of_a_forward_pass": forward,
        "operations_per_second": rate,
        "convolutions_alone_operations_per_second": convolutions,
        "share_of_the_convolution_rate": {name: rate / value for name, value in convolutions.items()},
        "share_of_the_float32_matrix_rate": rate / matrices,
    }


def _by_jvp_loop(g: nn.Module, z: Tensor) -> Tensor:
    columns = []
    for k in range(z.shape[1]):
        tangent = torch.zeros_like(z)
        tangent[:, k] = 1
        columns.append(jvp(g, (z,), (tangent,))[1].flatten(1))
    return torch.stack(columns, 2)
