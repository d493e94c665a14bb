"""What an accelerator would refuse: operations on tensors of two devices, arrays made of what is not here.

Few machines that run these tests have one. So one is pretended: its tensors report PyTorch's device
without memory ("meta") and hold their numbers here, and what works on them and on others at once fails as it
would there. All else is computed as ever, so results are those of a CPU.
"""

import contextlib

import lightning_fabric
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from invgan import density, detectors
from invgan.estimators.neural import NeuralDetector

THERE = torch.device("meta")
aten = torch.ops.aten
MOVING = (aten._to_copy.default, aten.copy_.default)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""Operations whose indices, the second argument, may be on the CPU."""


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=THERE,
        )

    def __init__(self, held):
        self.held = held

    def __deepcopy__(self, memo):
        with torch.no_grad():
            copied = self.detach().clone()
        return (
            torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied
        )

    def tolist(self):
        return self.held.tolist()

    def new_tensor(self, data, **options):
        return Elsewhere(self.held.new_tensor(data, **options))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        products = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
        if func in products and (args[0].ndim, args[1].ndim) == (1, 2):
            func, args = torch.mv, (args[1].mT, args[0])  # else PyTorch squeezes a result in place
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Makes the tensors that are made on the device, or brought to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    indices = {id(leaf) for leaf in tree_leaves(args[1])} if func in INDEXING else set()
    here = [t for t in tensors if not isinstance(t, Elsewhere) and t.ndim and id(t) not in indices]
    if there and here and func not in MOVING:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got some of two")
    target = kwargs.get("device")
    goes_there = bool(there) if target is None else torch.device(target) == THERE
    if target is not None and goes_there:
        kwargs = {**kwargs, "device": "cpu"}
    known = {id(tensor.held): tensor for tensor in there}

    def held(leaf):
        return leaf.held if isinstance(leaf, Elsewhere) else leaf

    def placed(leaf):
        if not goes_there or not isinstance(leaf, torch.Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf)  # what was changed in place

    found = func(*tree_map(held, args), **tree_map(held, kwargs))
    return args[0] if func is aten.copy_.default else tree_map(placed, found)


class Generator(torch.Generator):
    """Draws here what is to be there, as the CPU's generator does."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.place = torch.device(device)
        return generator

    @property
    def device(self):
        return self.place


class Fabric:
    """One process on the device."""

    device, world_size, global_rank, is_global_zero = THERE, 1, 0, True

    def __init__(self, **options):
        pass

    def autocast(self):
        return contextlib.nullcontext()

    def broadcast(self, value):
        return value


@pytest.fixture
def on_device(monkeypatch):
    """Turn a function into one that runs on the device."""
    autocast = torch.autocast

    def without_low_precision(device_type, *arguments, **options):
        return (
            contextlib.nullcontext()
            if device_type == "meta"
            else autocast(device_type, *arguments, **options)
        )

    def run(function):
        with monkeypatch.context() as patch, Pretended():
            patch.setattr(NeuralDetector, "_device", lambda self: THERE)
            patch.setattr(lightning_fabric, "Fabric", Fabric)
            patch.setattr(torch, "Generator", Generator)
            patch.setattr(torch, "autocast", without_low_precision)
            return function()

    return run


def rows(shape, n, *, gaps=False):
    draws = np.random.default_rng(n)
    X = (
        draws.integers(0, 256, (n, *shape)).astype(np.uint8)
        if len(shape) == 3
        else draws.normal(size=(n, *shape))
    )
    if gaps:
        X = X.astype(float)
        X.reshape(n, -1)[::3, 0] = np.nan
    return X


def test_tensors_of_two_devices_do_not_mix():
    with Pretended():
        there = torch.ones(2, device=THERE)
        assert there.to("cpu").numpy().tolist() == (there + 0).tolist() == [1, 1]
        for mixed in (lambda: there + torch.ones(2), lambda: torch.stack([there, torch.ones(2)])):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(RuntimeError):
            there.numpy()


TABLES = ("DSEBM", "DAGMM", "AnoGAN", "EGBAD", "GANomaly", "ALAD", "VAE", *density.__all__)


@pytest.mark.parametrize(("name", "shape"), [*((name, (3,)) for name in TABLES), ("Glow", (1, 16, 16))])
def test_scores_are_those_of_a_cpu(name, shape, on_device):
    kind = getattr(detectors, name, None) or getattr(density, name)
    parameters = {"max_steps": 2, "batch_size": 16, "random_state": 0}
    parameters |= {"search_steps": 3} if name == "AnoGAN" else {}

    def scores():
        model = kind(**parameters).fit(rows(shape, 60))
        drawn = model.sample(2, random_state=0) if hasattr(model, "sample") else np.zeros(())
        return next(model.model_.parameters()).device, model.score_samples(rows(shape, 20)), drawn

    device, found, drawn = on_device(scores)
    assert device == THERE
    _, expected, expected_drawn = scores()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(drawn, expected_drawn, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (1, 16, 16)], ids=["table", "images"])
@pytest.mark.filterwarnings("ignore::invgan.errors.UnreliableEstimateWarning")
def test_invgan_says_of_rows_what_it_says_on_a_cpu(shape, on_device):
    new = rows(shape, 6, gaps=True)  # in every third

    def everything():
        model = detectors.InvGAN(max_steps=2, batch_size=16, latent_dim=2, random_state=0).fit(
            rows(shape, 60)
        )
        methods = ["aggregate", "joint", "riemannian", "laplace", "importance", "ais"]
        methods += ["ratio"] if len(shape) == 3 else []
        few = {"importance": {"n_samples": 5}, "ais": {"n_samples": 2, "n_temperatures": 2}}
        found = {m: model.log_likelihood(new, m, **few.get(m, {})).values for m in methods}
        found |= dict(zip(("explain", "expected", "std"), model.explanation(new), strict=True))
        return found | {
            "p_values": model.p_values(new),
            "transform": model.transform(new),
            "sample": model.sample(2, random_state=0),
        }

    expected = everything()
    for name, value in on_device(everything).items():
        # A search for a mode magnifies the last digits of single precision.
        np.testing.assert_allclose(value, expected[name], rtol=0.01, atol=0.01, err_msg=name)


def test_rows_with_gaps_are_learned_from(on_device):
    def scores():
        model = detectors.InvGAN(max_steps=2, trim=0.05, random_state=0).fit(rows((3,), 60, gaps=True))
        return model.score_samples(rows((3,), 10))

    np.testing.assert_allclose(on_device(scores), scores(), rtol=1e-5)
