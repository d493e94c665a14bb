"""Networks: multi-layer perceptrons, convolutions (the paper's Tables 5-10), the RBF variance network."""

from invgan.networks.convolutional import conv_encoder, conv_generator
from invgan.networks.critics import Critic, build_critic
from invgan.networks.mlp import mlp
from invgan.networks.presets import Networks, build, default_latent_dim, initialize
from invgan.networks.rbf import RBFVariance
from invgan.networks.spectral import SpectralNorm, settle, spectrally_normalized
from invgan.networks.steady import SteadyProducts, steady_product

__all__ = [
    "Critic",
    "Networks",
    "RBFVariance",
    "SpectralNorm",
    "SteadyProducts",
    "build",
    "build_critic",
    "conv_encoder",
    "conv_generator",
    "default_latent_dim",
    "initialize",
    "mlp",
    "settle",
    "spectrally_normalized",
    "steady_product",
]
