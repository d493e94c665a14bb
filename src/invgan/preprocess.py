"""Scaling between the user's units and the networks', fitted on training rows and saved with the model."""

import torch
from torch import Tensor, nn


class AffineScaling(nn.Module):
    r"""Shift and scale each coordinate: :math:`u = (x - \text{shift}) / \text{scale}`.

    A density over u becomes one over x by adding :attr:`log_abs_det` :math:`= -\sum_i \log \text{scale}_i`.

    Parameters
    ----------
    shift, scale : Tensor, shape of one row, or of one number that holds for every coordinate, float64
    data_shape : tuple of int
        Shape of one row.

    Examples
    --------
    >>> scaling = AffineScaling.standardize(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    >>> scaling(torch.tensor([[2.0, 6.0]])).tolist()  # a constant column keeps its unit
    [[1.0, 1.0]]
    >>> round(AffineScaling.to_unit_range(torch.tensor([[[[0, 16]]]])).log_abs_det, 4)  # -2 log 8
    -4.1589
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("shift", shift.double())
        self.register_buffer("scale", scale.double())
        self.data_shape = data_shape

    @classmethod
    def standardize(cls, rows: Tensor) -> "AffineScaling":
        """Bring every column of a table to mean 0 and standard deviation 1; a constant one to 0."""
        rows = rows.double()
        mean, std = rows.mean(0), rows.std(0, correction=0)
        # Rounding leaves a constant column of large values a tiny spread; it is constant all the same.
        constant = std <= 1e-12 * rows.abs().amax(0)
        return cls(mean, torch.where(constant, 1.0, std), tuple(rows.shape[1:]))

    @classmethod
    def to_unit_range(cls, rows: Tensor) -> "AffineScaling":
        """Bring all values, by one common scale, from the range they span to [-1, 1], the range of tanh."""
        low, high = rows.min().double(), rows.max().double()
        half_range = (high - low) / 2
        return cls((high + low) / 2, torch.where(half_range > 0, half_range, 1.0), tuple(rows.shape[1:]))

    @property
    def log_abs_det(self) -> float:
        """log |det du/dx|, in nats: the same for every row."""
        return -self.scale.expand(self.data_shape).log().sum().item()

    def forward(self, rows: Tensor) -> Tensor:
        """Scale rows; the result has the input's floating-point precision, float32 for integers."""
        dtype = rows.dtype if rows.is_floating_point() else torch.float32
        return ((rows - self.shift) / self.scale).to(dtype)

    def inverse(self, scaled: Tensor) -> Tensor:
        """Return scaled rows to the user's units."""
        return (scaled * self.scale + self.shift).to(scaled.dtype)
