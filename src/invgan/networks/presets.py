"""The networks of each preset, sized from the data, and their initial weights."""

import math
from typing import NamedTuple

import torch
from torch import nn

from invgan.networks.convolutional import SMALLEST_SIDE, conv_encoder, conv_generator
from invgan.networks.mlp import mlp
from invgan.networks.spectral import settle


class Networks(NamedTuple):
    """The three networks that an adversarial model is made of; shapes are those of one row."""

    generator: nn.Module
    """g: (n, d) → (n, \\*data_shape)."""
    discriminator: nn.Module
    """(n, \\*data_shape) → (n, 1), the logit of being real."""
    inference: nn.Module
    """h: (n, \\*data_shape) → (n, d)."""


def default_latent_dim(data_shape: tuple[int, ...], preset: str | None = None) -> int:
    """Choose d from the data's shape.

    The paper has 50 for images and for Arrhythmia's 274 columns, 2 for section 4.1's six columns. Elsewhere:
    half the columns up to 16 for a table, a quarter of the values up to 50 for an image.

    Examples
    --------
    >>> default_latent_dim((6,)), default_latent_dim((1, 8, 8)), default_latent_dim((3, 32, 32))
    (3, 16, 50)
    >>> default_latent_dim((6,), "paper"), default_latent_dim((274,), "paper")
    (2, 50)
    """
    size = math.prod(data_shape)
    if preset == "paper":
        return 2 if _is_narrow(data_shape) else 50
    return min(16, max(1, size // 2)) if len(data_shape) == 1 else min(50, max(1, size // 4))


def build(data_shape: tuple[int, ...], latent_dim: int, preset: str | None = None) -> Networks:
    """Build the generator, discriminator and inference network of a preset.

    Parameters
    ----------
    data_shape : (D,) or (C, H, W)
        Shape of one row.
    latent_dim : int
        Dimension d of the latent space.
    preset : None or "paper"
        None: two hidden layers of 128 for tables and small images, convolutions for larger ones. "paper":
        Tables 5-7 for images (exactly at 32x32 pixels, by the same rule elsewhere); Tables 8-10 for tables;
        section 4.1's for tables of fewer than 50 columns, which leave no room for Table 8's 50 latent
        dimensions.

    Source
    ------
    Paper, Appendices A and B, and section 4.1. That section gives the discriminator "two fully connected
    layers with 30 hidden nodes" and then "four linear layers and three ReLU layers"; we take the second.
    """
    is_image = len(data_shape) == 3
    size = math.prod(data_shape)
    if is_image and min(data_shape[1:]) >= SMALLEST_SIDE and (preset == "paper" or size >= 256):
        image_shape = (data_shape[0], data_shape[1], data_shape[2])
        return Networks(
            conv_generator(latent_dim, image_shape),
            conv_encoder(image_shape, 1),
            conv_encoder(image_shape, latent_dim),
        )
    if preset == "paper" and _is_narrow(data_shape):
        generator = mlp([latent_dim, 30, 30, size])
        discriminator = mlp([size, 30, 30, 30, 1])
        inference = mlp([size, 30, 30, 30, latent_dim])
    elif preset == "paper":
        generator = mlp([latent_dim, 128, 256, size], batch_norm=True)
        discriminator = mlp([size, 256, 128, 1], batch_norm=True)
        inference = mlp([size, 256, 128, latent_dim], batch_norm=True)
    else:  # smooth activations: log det JᵀJ of a piecewise-linear generator jumps from piece to piece
        generator = mlp([latent_dim, 128, 128, size], activation="silu")
        discriminator = mlp([size, 128, 128, 1])
        inference = mlp([size, 128, 128, latent_dim], activation="silu")
    if is_image:
        generator = nn.Sequential(*generator, nn.Unflatten(1, data_shape))
        discriminator = nn.Sequential(nn.Flatten(), *discriminator)
        inference = nn.Sequential(nn.Flatten(), *inference)
    return Networks(generator, discriminator, inference)


def _is_narrow(data_shape: tuple[int, ...]) -> bool:
    return len(data_shape) == 1 and data_shape[0] < 50


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw PyTorch's default initial weights from a generator of one's own.

    Linear and convolution layers: uniform in :math:`\\pm 1/\\sqrt{\\text{fan-in}}`, weights and biases. Batch
    normalisation: the identity. Spectral normalisation: exact. A module built on the meta device must be
    given memory first (``to_empty``); building there takes no draw from PyTorch's global generator.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     layer = nn.Linear(4, 1)
    >>> initialize(layer.to_empty(device="cpu"), torch.Generator().manual_seed(0))
    >>> bool((layer.weight.abs() <= 0.5).all())
    True
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            # The same two draws as in PyTorch's reset_parameters; for transposed convolutions fan-in is
            # counted over the second dimension, as there.
            fan_in = nn.init._calculate_fan_in_and_fan_out(layer.weight)[0]
            for parameter in (layer.weight, layer.bias):
                if parameter is not None:
                    parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    settle(module)
