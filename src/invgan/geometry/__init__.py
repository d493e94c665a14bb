r"""Geometry of the surface a generator spans: Jacobian, metric, volume, geodesics (paper, sections 1.1-1.2).

Every function takes a map ``f`` that sends each row of its input to its own row of output, ``(n, d)`` to
``(n, ...)``: a module in evaluation mode, or any differentiable function. A module that mixes the rows of a
batch (batch normalisation in training mode) has no Jacobian of this kind.
"""

from invgan.geometry.curves import curve_length, geodesic, geodesic_distance
from invgan.geometry.jacobians import jacobian
from invgan.geometry.lanczos import VolumeEstimate, estimate_log_volume
from invgan.geometry.tangents import LatentMap, Stacked
from invgan.geometry.volumes import Volume, inner_product, log_volume, metric, volume

__all__ = [
    "LatentMap",
    "Stacked",
    "Volume",
    "VolumeEstimate",
    "curve_length",
    "estimate_log_volume",
    "geodesic",
    "geodesic_distance",
    "inner_product",
    "jacobian",
    "log_volume",
    "metric",
    "volume",
]
