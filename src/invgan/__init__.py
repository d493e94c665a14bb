"""Likelihoods of samples under a GAN, and anomaly detection that can be trusted.

An implementation of "Estimate the Implicit Likelihoods of GANs with Application to Anomaly Detection"
(Ren, Li, Zhou, Li, WWW 2020).
"""

from typing import TYPE_CHECKING, Any

from invgan.errors import InputError, TrainingDivergedError

if TYPE_CHECKING:
    from invgan.detectors import ImplicitLikelihood, InvGAN, load

__version__ = "0.1.0"

__all__ = ["ImplicitLikelihood", "InputError", "InvGAN", "TrainingDivergedError", "load"]


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import; `invgan --help` and `import invgan.errors` do without it.
    if name in ("ImplicitLikelihood", "InvGAN", "load"):
        from invgan import detectors

        return getattr(detectors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
