"""What holds for every test: its random numbers, and which doctests are left out."""

from importlib.util import find_spec

import pytest
import torch

# jax is an extra
collect_ignore = [] if find_spec("jax") else ["src/invgan/experiments/speed/jax_step.py"]


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run():
    """Seed what a test draws for itself, by itself or by a layer that PyTorch initialises."""
    torch.manual_seed(0)
