"""Convolutional networks, for images: the paper's Tables 5-7, and the same shape at any image size.

Every stage halves (or doubles) the image with a 4x4 kernel at stride 2. Tables 5-7 are the case of 32x32
pixels: three stages between 4x4 and 32x32.
"""

import math
from itertools import pairwise

from torch import Tensor, nn

SMALLEST_SIDE = 8
"""Images with a shorter side than this leave nothing to convolve: they go through the MLPs, flattened."""


def n_stages(height: int, width: int) -> int:
    """Count the halvings that bring the shorter side of an image to about four pixels.

    Examples
    --------
    >>> n_stages(8, 8), n_stages(28, 28), n_stages(32, 32), n_stages(64, 48)
    (1, 3, 3, 4)
    """
    return max(1, round(math.log2(min(height, width) / 4)))


class CenterCrop(nn.Module):
    """Cut the middle out of an image, where halving and doubling do not return to the same size."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, image: Tensor) -> Tensor:
        top = (image.shape[-2] - self.height) // 2
        left = (image.shape[-1] - self.width) // 2
        return image[..., top : top + self.height, left : left + self.width]


def conv_generator(latent_dim: int, image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Build Table 5's generator: a linear layer, then transposed convolutions up to the image, then tanh.

    Parameters
    ----------
    latent_dim : int
        Dimension d of the latent space.
    image_shape : (C, H, W)
        Shape of one image; its values lie in [-1, 1].

    Examples
    --------
    >>> import torch
    >>> conv_generator(50, (3, 32, 32))(torch.zeros(2, 50)).shape
    torch.Size([2, 3, 32, 32])
    """
    channels, height, width = image_shape
    stages = n_stages(height, width)
    start = (math.ceil(height / 2**stages), math.ceil(width / 2**stages))
    widths = [128] * max(stages - 1, 1) + [64] * (stages > 1)
    layers: list[nn.Module] = [
        nn.Linear(latent_dim, 128 * start[0] * start[1]),
        nn.Unflatten(1, (128, *start)),
        nn.ReLU(),
    ]
    for width_in, width_out in pairwise(widths):
        layers += [nn.ConvTranspose2d(width_in, width_out, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
    if (start[0] * 2**stages, start[1] * 2**stages) != (height, width):
        layers.append(CenterCrop(height, width))
    return nn.Sequential(*layers)


def conv_encoder(image_shape: tuple[int, int, int], n_outputs: int) -> nn.Sequential:
    """Build Table 6's discriminator (one output, the logit) or Table 7's inference network (d outputs).

    Parameters
    ----------
    image_shape : (C, H, W)
        Shape of one image; its values lie in [-1, 1].
    n_outputs : int
        Width of the last, linear layer.

    Examples
    --------
    >>> import torch
    >>> conv_encoder((1, 28, 28), 50)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 50])
    """
    channels, height, width = image_shape
    layers: list[nn.Module] = []
    width_in = channels
    for stage in range(n_stages(height, width)):
        width_out = 64 if stage == 0 else 128
        layers += [nn.Conv2d(width_in, width_out, 4, stride=2, padding=1), nn.ReLU()]
        width_in, height, width = width_out, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width_in * height * width, n_outputs))
