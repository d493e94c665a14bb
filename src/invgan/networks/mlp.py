"""Fully connected networks, for tables."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def mlp(sizes: Sequence[int], *, batch_norm: bool = False, activation: str = "relu") -> nn.Sequential:
    """Stack linear layers with an activation (after batch normalisation, if asked) between them.

    The last layer is linear, as in the paper's Tables 8-10: a discriminator returns the *logit*, its
    sigmoid is part of the loss.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of each hidden layer, and of the output.
    batch_norm : bool
        Normalise each hidden layer over the batch before its activation.
    activation : {"relu", "silu", "tanh"}
        Applied after each hidden layer.

    Examples
    --------
    >>> [type(layer).__name__ for layer in mlp([2, 30, 6])]
    ['Linear', 'ReLU', 'Linear']
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes[:-1]):
        layers.append(nn.Linear(width_in, width_out))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width_out))
        layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
