"""Spectral normalisation: layers that stretch no input by more than a factor of one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralNorm(nn.Module):
    r"""Divide a layer's weight by its largest singular value.

    .. math:: W_{\mathrm{SN}} = W / \sigma(W), \qquad \sigma(W) = u^\top W v

    A convolution's weight counts as a matrix of one row per output channel. While training, one step of the
    power iteration per use keeps u and v near the leading singular vectors; :meth:`settle` makes them exact.
    In evaluation mode they stay as they are, so the layer is a fixed function.

    Parameters
    ----------
    layer : nn.Linear or nn.Conv2d
        Its bias is left alone.

    Source
    ------
    Miyato et al. (2018), "Spectral normalization for generative adversarial networks", Algorithm 1.

    Examples
    --------
    >>> layer = SpectralNorm(nn.Linear(2, 2, bias=False)).eval()
    >>> layer.load_state_dict({"layer.weight": 5 * torch.eye(2)}, strict=False)
    _IncompatibleKeys(missing_keys=['left', 'right'], unexpected_keys=[])
    >>> layer.settle()
    >>> layer(torch.tensor([[1.0, 3.0]])).tolist()
    [[1.0, 3.0]]
    """

    left: Tensor
    right: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        n_rows, n_columns = layer.weight.flatten(1).shape
        self.register_buffer("left", layer.weight.new_zeros(n_rows))
        self.register_buffer("right", layer.weight.new_zeros(n_columns))

    @torch.no_grad()
    def settle(self) -> None:
        """Set u and v to the leading singular vectors of the present weight."""
        matrix = self.layer.weight.flatten(1).double()
        # The smaller Gram matrix has the same leading vector, at a fraction of a decomposition's cost.
        tall = matrix if len(matrix) > len(matrix.T) else matrix.T
        leading = torch.linalg.eigh(tall.T @ tall).eigenvectors[:, -1]
        image = F.normalize(tall @ leading, dim=0)
        left, right = (image, leading) if tall is matrix else (leading, image)
        self.left.copy_(left)
        self.right.copy_(right)

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.layer.weight
        with torch.autocast(inputs.device.type, enabled=False):
            matrix, left, right = weight.flatten(1), self.left, self.right
            if self.training:
                with torch.no_grad():
                    right = F.normalize(matrix.T @ left, dim=0)
                    left = F.normalize(matrix @ right, dim=0)
                    self.left.copy_(left)
                    self.right.copy_(right)
            normalized = weight / (left @ matrix @ right)
        return torch.func.functional_call(self.layer, {"weight": normalized}, (inputs,))


def spectrally_normalized(network: nn.Module) -> nn.Module:
    """Wrap every linear layer and convolution in a network, in place, and return it.

    Examples
    --------
    >>> spectrally_normalized(nn.Sequential(nn.Linear(2, 1), nn.ReLU()))[0]
    SpectralNorm(
      (layer): Linear(in_features=2, out_features=1, bias=True)
    )
    """
    for name, child in network.named_children():
        if isinstance(child, nn.Linear | nn.Conv2d):
            setattr(network, name, SpectralNorm(child))
        else:
            spectrally_normalized(child)
    return network


def settle(network: nn.Module) -> None:
    """Make the spectral norms of all of a network's normalised layers exact."""
    for layer in network.modules():
        if isinstance(layer, SpectralNorm):
            layer.settle()
