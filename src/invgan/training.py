"""One training loop for every model here: what Algorithm 1 and its rivals have in common.

A model says *what* is learned, as a list of updates; the loop says *how*: batches, devices, precision,
weight averaging, early stopping, progress, and checkpoints from which a killed run continues bit for bit.
"""

import contextlib
import copy
import math
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from invgan import artifact
from invgan.errors import InputError, TrainingDivergedError

LOG_EVERY = 50
"""Steps between two looks at the losses: the only times the loop waits for the device."""

SMALL_NETWORK = 1_000_000
"""Parameters below which a second thread only slows a CPU down."""


class Sample:
    """The minibatches of one step: fresh rows and fresh latents at every call, as Algorithm 1 draws them."""

    def __init__(self, rows: Callable[[], Tensor], noise: torch.Generator, batch_size: int) -> None:
        self._rows, self._noise, self._batch_size = rows, noise, batch_size

    def rows(self) -> Tensor:
        """Draw a minibatch of scaled training rows, shape (m, \\*data_shape)."""
        return self._rows()

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal noise of shape (m, \\*shape)."""
        return torch.randn(self._batch_size, *shape, generator=self._noise, device=self._noise.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw noise, uniform on [0, 1), of shape (m, \\*shape)."""
        return torch.rand(self._batch_size, *shape, generator=self._noise, device=self._noise.device)


class Update(NamedTuple):
    """One line of a training algorithm: a loss to descend and the modules that move."""

    name: str
    """Names the loss in the progress bar, the history and the messages."""
    loss: Callable[[Sample], Tensor]
    """Returns a scalar; networks run under autocast, the loss itself in float32."""
    modules: tuple[nn.Module, ...]
    """Only these modules' parameters are changed."""
    learning_rate_factor: float = 1.0


class Trainable(nn.Module, ABC):
    """A model that the loop can train."""

    @abstractmethod
    def updates(self) -> Sequence[Update]:
        """List the updates of one step, in order."""

    @abstractmethod
    def validation_score(self, rows: Tensor) -> Tensor:
        """Score scaled held-out rows with a scalar, higher for a better model; called in evaluation mode."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the same for every update of a model."""

    max_steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    learning_rate_decay: bool = True
    """Cosine decay to zero over ``max_steps``: without it the adversarial game circles, never settles."""
    averaging: float = 0.99
    """Decay of the running average of the weights, which is what is kept and scored; 0 keeps the last."""
    validate_every: int = 100
    patience: int | None = None
    """Stop after this many validations without a new best; None trains to the end. The best is kept."""


@dataclass
class History:
    """What training reported: mean losses over each window of steps, and the validation scores."""

    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    validation_steps: list[int] = field(default_factory=list)
    validation_scores: list[float] = field(default_factory=list)
    best_step: int = 0


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often to save, so that a killed run continues from there to the same weights."""

    path: Path
    every: int = 500
    """Steps between two checkpoints; Ctrl-C saves one more."""
    fingerprint: str = ""
    """Identifies the data and the settings; a checkpoint with another one is refused."""


@dataclass(frozen=True)
class Machine:
    """The hardware to train on, in Lightning Fabric's words."""

    accelerator: str = "auto"
    processes: int = 1
    precision: str = "32-true"


OnLog = Callable[[int, dict[str, float]], None]


def train(
    model: Trainable,
    rows: Tensor,
    validation_rows: Tensor | None,
    *,
    prepare: Callable[[Tensor], Tensor],
    schedule: Schedule,
    seed: int,
    machine: Machine | None = None,
    checkpointing: Checkpointing | None = None,
    on_log: OnLog | None = None,
) -> History:
    """Train a model in place and return its history.

    Parameters
    ----------
    model : Trainable
        Left on the CPU, in evaluation mode, with the averaged weights of its best validation.
    rows, validation_rows : Tensor, shape (n, *data_shape)
        Raw rows; ``prepare`` scales each minibatch on the device, so images may stay uint8 until then.
        Without validation rows the weights at the last step are kept.
    schedule : Schedule
    seed : int
        Determines the order of rows and all noise.
    machine : Machine
    checkpointing : Checkpointing, optional
        If its folder holds a checkpoint, training continues from there.
    on_log : callable, optional
        Called with the number of steps done and the mean losses since the last call.

    Raises
    ------
    TrainingDivergedError
        If a loss stops being finite.
    """
    machine = machine or Machine()
    parallel = machine.processes > 1
    fabric = Fabric(
        accelerator=machine.accelerator,
        devices=machine.processes,
        precision=machine.precision,
        strategy="ddp_spawn" if parallel else "auto",
    )
    arguments = (model, rows, validation_rows, prepare, schedule, seed, checkpointing, on_log)
    if not parallel:
        return _run(fabric, *arguments)
    # Each process trains a copy; the first one's weights come back.
    weights, history = fabric.launch(_run_and_return_weights, *arguments)
    model.load_state_dict(weights)
    model.eval()
    return history


def _run_and_return_weights(fabric: Fabric, model: Trainable, *arguments: Any) -> Any:
    history = _run(fabric, model, *arguments)
    return model.state_dict(), history


def _run(
    fabric: Fabric,
    model: Trainable,
    rows: Tensor,
    validation_rows: Tensor | None,
    prepare: Callable[[Tensor], Tensor],
    schedule: Schedule,
    seed: int,
    checkpointing: Checkpointing | None,
    on_log: OnLog | None,
) -> History:
    model.to(fabric.device).train()
    run = _Run(model, schedule, seed, fabric)
    if checkpointing is not None and checkpointing.path.exists():
        run.restore(checkpointing)
    rows = rows.to(fabric.device)
    validate = None
    if validation_rows is not None:
        held_out = prepare(validation_rows.to(fabric.device)).float()
        validate = _validation(held_out)
    draw = _row_sampler(rows, prepare, schedule.batch_size, seed, fabric)
    names = [update.name for update in run.updates]

    with _interrupts() as interrupted, _threads_for(model, fabric.device):
        while run.step < schedule.max_steps and not run.stopped(schedule):
            window = []
            for _ in range(min(LOG_EVERY, schedule.max_steps - run.step)):
                window.append(run.advance(draw))
                if validate is not None and run.step % schedule.validate_every == 0:
                    run.validate(validate)
                due = checkpointing is not None and run.step % checkpointing.every == 0
                if due or interrupted() or run.stopped(schedule):
                    break
            losses = torch.stack(window).cpu()  # steps×updates
            _check_finite(losses, names, first_step=run.step - len(window) + 1)
            run.record(names, losses)
            if on_log is not None and fabric.is_global_zero:
                on_log(run.step, {name: values[-1] for name, values in run.history.losses.items()})
            if (
                checkpointing is not None
                and fabric.is_global_zero
                and (interrupted() or run.step % checkpointing.every == 0)
            ):
                run.save(checkpointing)
            if interrupted():
                where = f"; the same fit continues from {checkpointing.path}" if checkpointing else ""
                raise KeyboardInterrupt(f"stopped after step {run.step}{where}")

    run.finish(validate)
    model.cpu().eval()
    return run.history


class _Run:
    """Everything about a training run that a checkpoint must hold."""

    def __init__(self, model: Trainable, schedule: Schedule, seed: int, fabric: Fabric) -> None:
        self.model, self.schedule, self.fabric = model, schedule, fabric
        self.updates = model.updates()
        self.averaged = copy.deepcopy(model).eval()
        self.best: dict[str, Tensor] | None = None
        self.best_score = -math.inf
        self.noise = torch.Generator(fabric.device).manual_seed(seed + fabric.global_rank)
        self.step = 0
        self.draws = 0
        self.history = History()
        self.parameters = [
            [parameter for module in update.modules for parameter in module.parameters()]
            for update in self.updates
        ]
        # One optimiser per update: h and g each take part in two, with gradients of different size.
        self.optimizers = [
            torch.optim.Adam(
                parameters,
                lr=schedule.learning_rate * update.learning_rate_factor,
                betas=schedule.betas,
                fused=fabric.device.type in ("cpu", "cuda"),
            )
            for update, parameters in zip(self.updates, self.parameters, strict=True)
        ]

    def advance(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Take one step through all updates; return their losses without waiting for them."""

        def next_rows() -> Tensor:
            self.draws += 1
            return draw(self.draws - 1)

        sample = Sample(next_rows, self.noise, self.schedule.batch_size // self.fabric.world_size)
        losses = []
        for update, parameters, optimizer in zip(self.updates, self.parameters, self.optimizers, strict=True):
            # Autocast is entered per update: around the whole loop it would keep stale low-precision weights.
            with self.fabric.autocast():
                loss = update.loss(sample)
            # Gradients are taken for these parameters only: the other networks' are not even computed.
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            self._apply(optimizer, update, parameters, gradients)
            losses.append(loss.detach())
        self.step += 1
        self._average()
        return torch.stack(losses)

    def _apply(
        self,
        optimizer: torch.optim.Optimizer,
        update: Update,
        parameters: list[nn.Parameter],
        gradients: Sequence[Tensor | None],
    ) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.fabric.world_size > 1:
            present = [gradient for gradient in gradients if gradient is not None]
            joined = self.fabric.all_reduce(
                torch.cat([gradient.flatten() for gradient in present]), reduce_op="mean"
            )
            for gradient, mean in zip(
                present, joined.split([gradient.numel() for gradient in present]), strict=True
            ):
                gradient.copy_(mean.view_as(gradient))
        progress = self.step / self.schedule.max_steps if self.schedule.learning_rate_decay else 0.0
        rate = self.schedule.learning_rate * update.learning_rate_factor
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
        optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def _average(self) -> None:
        # A plain mean over the first steps, so that the initial weights leave no trace.
        decay = min(self.schedule.averaging, 1 - 1 / self.step)
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
        for average, current in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            average.copy_(current)

    def validate(self, score: Callable[[Trainable], Tensor]) -> None:
        value = score(self.averaged).item()
        self.history.validation_steps.append(self.step)
        self.history.validation_scores.append(value)
        if value > self.best_score:
            self.best_score = value
            self.best = {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}
            self.history.best_step = self.step

    def stopped(self, schedule: Schedule) -> bool:
        """Tell whether the last ``patience`` validations brought no new best."""
        since_best = sum(step > self.history.best_step for step in self.history.validation_steps)
        return schedule.patience is not None and since_best >= schedule.patience

    def record(self, names: list[str], losses: Tensor) -> None:
        self.history.steps.append(self.step)
        for name, mean in zip(names, losses.mean(0).tolist(), strict=True):
            self.history.losses.setdefault(name, []).append(mean)

    def finish(self, score: Callable[[Trainable], Tensor] | None) -> None:
        if score is not None and self.step not in self.history.validation_steps:
            self.validate(score)
        if self.best is None:
            self.history.best_step = self.step
        self.model.load_state_dict(self.averaged.state_dict() if self.best is None else self.best)

    def save(self, checkpointing: Checkpointing) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        for update, optimizer in zip(self.updates, self.optimizers, strict=True):
            for index, state in optimizer.state_dict()["state"].items():
                for key, tensor in state.items():
                    tensors[f"optimizer.{update.name}.{index}.{key}"] = tensor
        tensors["noise"] = self.noise.get_state()
        artifact.write(
            checkpointing.path,
            kind="checkpoint",
            metadata={
                "fingerprint": checkpointing.fingerprint,
                "step": self.step,
                "draws": self.draws,
                "best_score": self.best_score if self.best else None,
                "history": asdict(self.history),
            },
            tensors=tensors,
        )

    def restore(self, checkpointing: Checkpointing) -> None:
        saved = artifact.read(checkpointing.path, kind="checkpoint")
        if saved.metadata["fingerprint"] != checkpointing.fingerprint:
            raise InputError(
                f"{checkpointing.path}: this checkpoint belongs to another fit (other data or settings); "
                "delete it to start afresh, or give the data and settings it was made with."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in saved.tensors.items()
                if name.startswith(prefix)
            }

        self.model.load_state_dict(part("model."))
        self.averaged.load_state_dict(part("averaged."))
        if saved.metadata["best_score"] is not None:
            device = self.fabric.device
            self.best = {name: tensor.to(device) for name, tensor in part("best.").items()}
            self.best_score = saved.metadata["best_score"]
        for update, optimizer in zip(self.updates, self.optimizers, strict=True):
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(f"optimizer.{update.name}.").items():
                index, key = name.split(".")
                states.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
        self.noise.set_state(saved.tensors["noise"])
        self.step, self.draws = saved.metadata["step"], saved.metadata["draws"]
        self.history = History(**saved.metadata["history"])


def _row_sampler(
    rows: Tensor, prepare: Callable[[Tensor], Tensor], batch_size: int, seed: int, fabric: Fabric
) -> Callable[[int], Tensor]:
    """Make a function from a draw's number to its minibatch: shuffled epochs, with no state to save."""
    per_epoch = len(rows) // batch_size
    order: dict[int, Tensor] = {}

    def draw(number: int) -> Tensor:
        epoch, position = divmod(number, per_epoch)
        if epoch not in order:
            order.clear()
            shuffled = np.random.default_rng([seed, epoch]).permutation(len(rows))
            order[epoch] = torch.from_numpy(shuffled).to(rows.device)
        batch = order[epoch][position * batch_size : (position + 1) * batch_size]
        return prepare(rows[batch[fabric.global_rank :: fabric.world_size]]).float()

    return draw


def _validation(rows: Tensor) -> Callable[[Trainable], Tensor]:
    @torch.no_grad()
    def score(model: Trainable) -> Tensor:
        return model.validation_score(rows)

    return score


def _check_finite(losses: Tensor, names: list[str], *, first_step: int) -> None:
    bad = ~losses.isfinite()
    if bad.any():
        step, update = bad.nonzero()[0].tolist()
        raise TrainingDivergedError(
            f"the {names[update]} loss became {losses[step, update].item()} at step {first_step + step}; "
            "try a smaller learning_rate, another loss, or look for extreme values in the data."
        )


@contextlib.contextmanager
def _threads_for(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Train a small network on one thread: handing its tiny operations around costs more than they do."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and sum(parameter.numel() for parameter in model.parameters()) < SMALL_NETWORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is read between steps; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    pressed = False

    def handler(signum: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def progress_bar(description: str, total: int, *, enabled: bool) -> Iterator[OnLog | None]:
    """Show steps, every loss and the time left on standard error.

    Yields
    ------
    callable or None
        To be given to :func:`train` as ``on_log``.
    """
    if not enabled:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, losses="")

        def on_log(step: int, losses: dict[str, float]) -> None:
            text = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
            progress.update(task, completed=step, losses=text)

        yield on_log
        progress.update(task, completed=total)
