"""Discriminators whose features can be matched, of one thing or of a pair: a row and its latent, say."""

import torch
from torch import Tensor, nn

from invgan.networks.presets import build

ENCODED = 128
"""Features that an image becomes before a vector is put beside it."""


class Critic(nn.Module):
    """The logit of being real, and the features it is made from.

    Parameters
    ----------
    first : nn.Module
        What happens to the first part before the parts are joined along their second dimension.
    body : nn.Sequential
        From the joined parts to the logit; its last layer is linear.
    """

    def __init__(self, first: nn.Module, body: nn.Sequential) -> None:
        super().__init__()
        self.first, self.body = first, body

    def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
        """Return the logit, shape (n, 1)."""
        return self.body(self._joined(first, *rest))

    def features(self, first: Tensor, *rest: Tensor) -> Tensor:
        """Return what the last layer sees, shape (n, k)."""
        return self.body[:-1](self._joined(first, *rest))

    def _joined(self, first: Tensor, *rest: Tensor) -> Tensor:
        return torch.cat([self.first(first), *rest], 1)


def build_critic(first: tuple[int, ...], *rest: tuple[int, ...]) -> Critic:
    """Build a discriminator on the preset's networks.

    Two vectors are joined to one vector; two images to one with the channels of both; and an image is
    encoded before a vector is joined to it.

    Parameters
    ----------
    first, *rest : tuple of int
        Shapes of the parts: vectors, images of one size, or an image and then vectors.

    Examples
    --------
    >>> critic = build_critic((3, 16, 16), (7,))
    >>> critic(torch.zeros(2, 3, 16, 16), torch.zeros(2, 7)).shape
    torch.Size([2, 1])
    """
    encoder: nn.Module = nn.Identity()
    if any(len(part) < len(first) for part in rest):
        encoder, first = nn.Sequential(build(first, ENCODED).inference, nn.ReLU()), (ENCODED,)
    joined = (first[0] + sum(part[0] for part in rest), *first[1:])
    body = build(joined, 1).discriminator
    assert isinstance(body, nn.Sequential)
    return Critic(encoder, body)
