"""Clocks and rates: contenders take turns in one process, and medians are compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Seconds, once the device has done all that it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(contenders: Mapping[str, Callable[[], Any]], *, rounds: int) -> dict[str, float]:
    """Return each contender's median seconds; all run once before the clock does."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = now()
            run()
            seconds[name].append(now() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def count_operations(run: Callable[[], Any]) -> int:
    """Count the floating-point operations of matrix products and convolutions: two per multiplication."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matrix_rate(dtype: torch.dtype, *, rounds: int) -> float:
    """Measure operations per second of 2048×2048 matrix products."""
    size = 2048
    a, b = torch.randn(2, size, size, device=DEVICE).to(dtype).unbind()
    return 2 * size**3 / take_turns({"product": partial(torch.mm, a, b)}, rounds=rounds)["product"]


@torch.no_grad()
def convolution_rates(network: nn.Sequential, x: Tensor, n_images: int, *, rounds: int) -> dict[str, float]:
    """Measure operations per second of a network's transposed convolutions, each alone on a batch of images.

    Each in the faster memory format. "all" is their operations over the sum of their times, "best" the
    rate of the fastest layer. ``x`` is one row of the network's input.
    """
    operations, seconds = [], []
    for layer in network:
        if isinstance(layer, nn.ConvTranspose2d):
            batch = torch.randn(n_images, *x.shape[1:], device=DEVICE)
            formats = {}
            for layout in (torch.contiguous_format, torch.channels_last):
                inputs, weight = batch.to(memory_format=layout), layer.weight.to(memory_format=layout)
                settings: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
                formats[str(layout)] = partial(F.conv_transpose2d, inputs, weight, **settings)
            seconds.append(min(take_turns(formats, rounds=rounds).values()))
            operations.append(count_operations(formats["torch.channels_last"]))
        x = layer(x)
    rates = [count / time for count, time in zip(operations, seconds, strict=True)]
    return {"all": sum(operations) / sum(seconds), "best": max(rates)}
