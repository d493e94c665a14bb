"""Which modules the doctests leave out: those whose extra is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("jax") else ["src/invgan/experiments/speed/jax_step.py"]
