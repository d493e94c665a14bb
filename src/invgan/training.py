"""One training loop for every model here: what Algorithm 1 and its rivals have in common.

A model says *what* is learned, as a list of updates; the loop says *how*: batches, devices, precision,
weight averaging, early stopping, progress, and checkpoints from which a killed run continues bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException

from invgan import artifact
from invgan.errors import InputError, TrainingDivergedError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOG_EVERY = 20
"""Steps between two looks at the losses: otherwise the loop does not wait for the device."""

SMALL_NETWORK = 1_000_000
"""Parameters, of a network or a mixture, below which a second thread only slows a CPU down."""

WARM_UP = 3
"""Steps before one is recorded: at first use libraries choose their algorithms."""
VALIDATION_BLOCK = 512
"""Held-out rows scored at once: 5,000 images in one go would take gigabytes."""
MAX_RESIDENT = 2**32
"""Bytes of rows that are kept on the device; of more than that, minibatches are sent there."""


class Sample:
    """The minibatches of one step: fresh rows and fresh latents at every call, as Algorithm 1 draws them.

    With several processes each has its share of the m rows, and of noise that is drawn for all m alike.
    """

    def __init__(
        self, rows: Callable[[], Tensor], noise: torch.Generator, batch_size: int, share: slice
    ) -> None:
        self._rows, self._noise, self._batch_size, self._share = rows, noise, batch_size, share

    def rows(self) -> Tensor:
        """Draw a minibatch of scaled training rows, shape (m, \\*data_shape)."""
        return self._rows()

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal noise of shape (m, \\*shape)."""
        device = self._noise.device
        return torch.randn(self._batch_size, *shape, generator=self._noise, device=device)[self._share]

    def uniform(self, *shape: int) -> Tensor:
        """Draw noise, uniform on [0, 1), of shape (m, \\*shape)."""
        device = self._noise.device
        return torch.rand(self._batch_size, *shape, generator=self._noise, device=device)[self._share]


class Moved(NamedTuple):
    """A module that an update moves at a pace of its own."""

    module: nn.Module
    rate: float = 1.0
    """Multiplies the schedule's learning rate."""
    betas: tuple[float, float] | None = None
    """Adam's decay rates; the schedule's by default."""
    fades_by: float | None = None
    """Share of the training by which the rate has fallen, linearly, to zero."""


class Update(NamedTuple):
    """One line of a training algorithm: a loss to descend and the modules that move."""

    name: str
    """Names the loss in the progress bar, the history and the messages."""
    loss: Callable[[Sample], Tensor]
    """Returns a scalar, a mean over rows; networks run under autocast, the loss itself in float32."""
    modules: tuple[nn.Module | Moved, ...]
    """Only these modules' parameters are changed."""
    max_norm: float | None = None
    """A longer gradient of these parameters is shortened to this: where one row's loss has no bound."""


class Trainable(nn.Module, ABC):
    """A model that the loop can train."""

    recordable: bool = False
    """Whether a step of it is the same operations every time, none of which waits for their results: on an
    accelerator it is then recorded once and played back, several times faster than it is issued."""

    @abstractmethod
    def updates(self) -> Sequence[Update]:
        """List the updates of one step, in order."""

    @abstractmethod
    def validation_score(self, rows: Tensor) -> Tensor:
        """Score scaled held-out rows by a mean over them, higher for a better model; in evaluation mode."""


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
    """What training reported: mean losses over each window of steps, and the validation scores.

    It is the same whether or not the run was interrupted and continued.
    """

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
    """Steps between two checkpoints. The first is made before any step, and Ctrl-C saves one more."""
    fingerprint: str = ""
    """Identifies the data and the settings; a checkpoint with another one is refused."""


@dataclass(frozen=True)
class Machine:
    """The hardware to train on, in Lightning Fabric's words."""

    accelerator: str = "auto"
    processes: int = 1
    """More than one are spawned: a script then needs its ``if __name__ == "__main__":``."""
    precision: str = "32-true"


def convolution_precision(device: torch.device) -> str:
    """Return the precision that convolutions train fastest in: bfloat16 where the hardware computes in it.

    Elsewhere it would be emulated, several times slower than float32.
    """
    native = (
        torch.cuda.is_bf16_supported()
        if device.type == "cuda"
        else getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    )
    return "bf16-mixed" if native else "32-true"


OnLog = Callable[[int, dict[str, float]], None]


def train(
    model: Trainable,
    rows: Tensor,
    validation_rows: Tensor | None,
    *,
    numbers: np.ndarray | None = None,
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
    numbers : ndarray of int, optional
        Which of the rows to learn from, all by default: with them no copy is made of the others, and rows
        that lie in a file are read minibatch by minibatch.
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
    InputError
        If the batch cannot be drawn or shared out, or the checkpoint is another fit's or cannot be written.
    TrainingDivergedError
        If a loss or the validation score stops being finite.
    KeyboardInterrupt
        After Ctrl-C, once the step is complete and, with checkpointing, saved. A second one stops at once.

    Examples
    --------
    >>> class Mean(Trainable):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mean = nn.ParameterList([torch.zeros(2)])
    ...     def updates(self):
    ...         return [Update("distance", lambda s: (s.rows() - self.mean[0]).square().mean(), (self,))]
    ...     def validation_score(self, rows):
    ...         return -(rows - self.mean[0]).square().mean()
    >>> model = Mean()
    >>> schedule = Schedule(max_steps=100, batch_size=4, learning_rate=0.3, averaging=0)
    >>> history = train(model, torch.tensor([[1.0, 5.0]] * 8), None, prepare=nn.Identity(),
    ...                 schedule=schedule, seed=0)
    >>> model.mean[0].round().tolist()
    [1.0, 5.0]
    """
    # They take two seconds, which loading and scoring a model can do without.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision, Precision

    machine = machine or Machine()
    numbers = np.arange(len(rows)) if numbers is None else numbers
    _check_sizes(len(numbers), schedule, machine)
    device = machine.accelerator
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Chosen by its name, it would be announced on standard error at every fit.
    mixed = machine.precision == "bf16-mixed"
    fabric = Fabric(
        accelerator=device,
        devices=machine.processes,
        plugins=MixedPrecision("bf16-mixed", device) if mixed else Precision(),
        strategy="ddp_spawn" if machine.processes > 1 else "auto",
    )
    launch = _run_in_processes if machine.processes > 1 else _run
    with _interrupts() as interrupted:
        return launch(
            fabric,
            on_log,
            interrupted,
            model,
            rows,
            numbers,
            validation_rows,
            prepare,
            schedule,
            seed,
            checkpointing,
        )


def _check_sizes(n_rows: int, schedule: Schedule, machine: Machine) -> None:
    if schedule.batch_size > n_rows:
        raise InputError(
            f"The 'batch_size' parameter must be at most the number of training rows, {n_rows}. "
            f"Got {schedule.batch_size} instead."
        )
    if machine.processes > n_rows:
        raise InputError(
            f"The 'processes' parameter must be at most the number of training rows, {n_rows}. "
            f"Got {machine.processes} instead."
        )
    if schedule.batch_size % machine.processes:
        raise InputError(
            "The 'batch_size' parameter must be a multiple of the number of processes, "
            f"{machine.processes}, which share each batch evenly. Got {schedule.batch_size} instead."
        )


def _run_in_processes(
    fabric: Fabric, on_log: OnLog | None, interrupted: Tensor, model: Trainable, *arguments: Any
) -> History:
    """Train copies of the model in step; the first process reports, and leaves its weights in the model."""
    interrupted.share_memory_()
    receiver, sender = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    outcome: list[Any] = []

    def listen() -> None:
        with contextlib.suppress(EOFError):  # everyone who could send is gone
            while True:
                report = receiver.recv()
                if not isinstance(report, tuple):
                    outcome.append(report)
                elif on_log is not None:
                    on_log(*report)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    # Bound to the function, because Fabric looks through arguments for modules and stops at our dataclasses.
    work = functools.partial(_work, sender=sender, interrupted=interrupted, model=model, arguments=arguments)
    try:
        fabric.launch(work)
        failure = None
    except ProcessException as error:
        failure = error
    finally:
        sender.close()
        listener.join()
    result = outcome[0] if outcome else failure
    if not isinstance(result, History):
        raise result or RuntimeError("the training processes ended without a result")
    model.eval()
    return result


def _work(
    fabric: Fabric, *, sender: Connection, interrupted: Tensor, model: Trainable, arguments: tuple[Any, ...]
) -> None:
    """Be one of several processes; the given model is shared by all, so each trains a copy."""
    parent = os.getppid()

    def handler(signum: int, frame: object) -> None:
        # The parent tells of a Ctrl-C by its flag; PyTorch sends the same signal when the parent has died.
        if os.getppid() != parent:
            os._exit(1)

    signal.signal(signal.SIGINT, handler)
    if not fabric.is_global_zero:
        interrupted = torch.zeros(())
    copied = copy.deepcopy(model)
    try:
        history = _run(fabric, lambda *log: sender.send(log), interrupted, copied, *arguments)
    except (InputError, TrainingDivergedError, KeyboardInterrupt) as error:
        if not fabric.is_global_zero:
            fabric.barrier()  # until the first process, which meets the same error, has told it and ended
        sender.send(error)
        raise SystemExit(1) from None
    if fabric.is_global_zero:
        model.load_state_dict(copied.state_dict())
        sender.send(history)


def _run(
    fabric: Fabric,
    on_log: OnLog | None,
    interrupted: Tensor,
    model: Trainable,
    rows: Tensor,
    numbers: np.ndarray,
    validation_rows: Tensor | None,
    prepare: Callable[[Tensor], Tensor],
    schedule: Schedule,
    seed: int,
    checkpointing: Checkpointing | None,
) -> History:
    device = fabric.device
    with (
        threads_for(n_parameters(model), device),
        repeatable(device),
        own_global_noise(seed, device) as global_noise,
        _own_stream(device),
    ):
        model.to(device).train()
        if isinstance(prepare, nn.Module):
            prepare = copy.deepcopy(prepare).to(device)
        if rows.nbytes <= MAX_RESIDENT:
            rows = rows.to(device)
        minibatches = _Minibatches(rows, numbers, prepare, schedule.batch_size, seed, fabric)
        held_out = None if validation_rows is None else validation_rows.to(device)
        run = _Run(model, schedule, seed, fabric, global_noise)
        if checkpointing is not None:
            run.restore_or_save(checkpointing)
        while not run.ended():
            run.advance(minibatches)
            stopping = bool(interrupted)
            validating = held_out is not None and run.due(schedule.validate_every)
            logging = run.due(LOG_EVERY)
            saving = checkpointing is not None and (stopping or run.step % checkpointing.every == 0)
            if stopping or validating or logging or saving:
                run.check_losses()
            if held_out is not None and validating:
                run.validate(held_out, prepare)
            if logging or run.ended():
                run.record_losses()
                if on_log is not None and fabric.is_global_zero:
                    on_log(run.step, {name: values[-1] for name, values in run.history.losses.items()})
            if checkpointing is not None and saving:
                run.save(checkpointing)
            if stopping:
                where = f"; the same fit continues from {checkpointing.path}" if checkpointing else ""
                raise KeyboardInterrupt(f"stopped after step {run.step} of {schedule.max_steps}{where}")
        run.finish()
        model.cpu().eval()
    return run.history


class _Run:
    """Everything about a training run that a checkpoint must hold."""

    def __init__(
        self,
        model: Trainable,
        schedule: Schedule,
        seed: int,
        fabric: Fabric,
        global_noise: torch.Generator,
    ) -> None:
        self.model, self.schedule, self.fabric, self.global_noise = model, schedule, fabric, global_noise
        self.updates = model.updates()
        self.averaged = copy.deepcopy(model).eval()
        # Listed once: to go through all modules at every step takes longer than the averaging.
        self.averages: list[Tensor] = list(self.averaged.parameters())
        self.weights: list[Tensor] = list(model.parameters())
        self.best: dict[str, Tensor] | None = None
        # The same on every process: each takes its share of noise drawn for the whole batch.
        self.noise = torch.Generator(fabric.device).manual_seed(seed)
        self.step = 0
        self.draws = 0
        self.window: list[Tensor] = []
        """Each step's losses since they were last recorded."""
        self.history = History(losses={update.name: [] for update in self.updates})
        self.moved = [
            [module if isinstance(module, Moved) else Moved(module) for module in update.modules]
            for update in self.updates
        ]
        groups = [_parameter_groups(moved, schedule) for moved in self.moved]
        self.parameters = [[p for group in update for p in group["params"]] for update in groups]
        on_gpu = fabric.device.type == "cuda"
        # One optimiser per update: h and g each take part in two, with gradients of different size.
        self.optimizers = [
            torch.optim.Adam(update, fused=fabric.device.type in ("cpu", "cuda"), capturable=on_gpu)
            for update in groups
        ]
        self.fading: Tensor | None = None
        """What is taken away of the average at a step, on an accelerator."""
        if on_gpu:  # a step that is played back reads what changes from step to step where it was
            self.fading = torch.zeros((), device=fabric.device)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = torch.zeros((), device=fabric.device)
        self.recorded: _RecordedStep | None = None
        self.draws_per_step = 0

    def due(self, every: int) -> bool:
        """Tell whether to do now what is done every so many steps and after the last."""
        return self.step % every == 0 or self.step == self.schedule.max_steps

    def ended(self) -> bool:
        """Tell whether all steps are done, or the last ``patience`` validations brought no new best."""
        since_best = sum(step > self.history.best_step for step in self.history.validation_steps)
        impatient = self.schedule.patience is not None and since_best >= self.schedule.patience
        return self.step >= self.schedule.max_steps or impatient

    def advance(self, minibatches: _Minibatches) -> None:
        """Take one step through all updates, without waiting for their losses."""

        def next_rows() -> Tensor:
            self.draws += 1
            return minibatches.rows(minibatches.numbers(self.draws - 1))

        self._set_rates()
        if self.recorded is None and self._is_recordable(minibatches):
            self.recorded = _RecordedStep(self, minibatches)
        if self.recorded is None:
            before = self.draws
            losses = self.take_step(next_rows)
            self.draws_per_step = self.draws - before
        else:
            losses = self.recorded.play(self.draws)
            self.draws += self.draws_per_step
        self.step += 1
        self.window.append(losses)

    def _is_recordable(self, minibatches: _Minibatches) -> bool:
        resident = minibatches.device.type == "cuda" and self.fabric.world_size == 1
        return self.model.recordable and resident and self.step >= WARM_UP

    def take_step(self, next_rows: Callable[[], Tensor]) -> Tensor:
        """Go through all updates and average the weights; return the losses."""
        sample = Sample(next_rows, self.noise, self.schedule.batch_size, _share(self.fabric))
        losses = []
        for index, (update, parameters) in enumerate(zip(self.updates, self.parameters, strict=True)):
            with self.fabric.autocast():
                loss = update.loss(sample)
            # Weights in low precision are kept until the outermost autocast ends, and that may be one around
            # the fit: the next step would be taken from the first one's weights.
            torch.clear_autocast_cache()
            # Gradients are taken for these parameters only: the other networks' are not even computed.
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            losses.append(self._apply(index, loss.detach(), gradients))
        self._average()
        return torch.stack(losses)

    def _set_rates(self) -> None:
        if self.fading is not None:
            self.fading.fill_(self._share_of_last())
        progress = self.step / self.schedule.max_steps
        decay = (1 + math.cos(math.pi * progress)) / 2 if self.schedule.learning_rate_decay else 1.0
        for optimizer, modules in zip(self.optimizers, self.moved, strict=True):
            for group, moved in zip(optimizer.param_groups, modules, strict=True):
                fading = 1.0 if moved.fades_by is None else max(0.0, 1 - progress / moved.fades_by)
                rate = self.schedule.learning_rate * decay * moved.rate * fading
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    def _apply(self, index: int, loss: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
        """Move one update's parameters; return its loss over the whole batch."""
        parameters, optimizer = self.parameters[index], self.optimizers[index]
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        loss, *means = self._mean_over_processes([loss, *(g for g in gradients if g is not None)])
        for i, gradient in zip(used, means, strict=True):
            parameters[i].grad = _laid_out_like(parameters[i], gradient)
        max_norm = self.updates[index].max_norm
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def _mean_over_processes(self, tensors: list[Tensor]) -> list[Tensor]:
        if self.fabric.world_size == 1:
            return tensors
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        means = self.fabric.all_reduce(joined, reduce_op="mean").split([tensor.numel() for tensor in tensors])
        return [mean.view(tensor.shape) for mean, tensor in zip(means, tensors, strict=True)]

    def _share_of_last(self) -> float:
        """What share of the average the last weights get."""
        # A plain mean over the first steps, so that the initial weights leave no trace.
        return 1 - min(self.schedule.averaging, 1 - 1 / (self.step + 1))

    @torch.no_grad()
    def _average(self) -> None:
        if self.fading is None:
            torch._foreach_lerp_(self.averages, self.weights, self._share_of_last())
        else:
            changes = torch._foreach_sub(self.weights, self.averages)
            torch._foreach_mul_(changes, self.fading)
            torch._foreach_add_(self.averages, changes)
        for average, current in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            average.copy_(current)

    def check_losses(self) -> None:
        """Raise if a loss since the last record is not finite."""
        losses = torch.stack(self.window).cpu()  # steps×updates
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            position, update = bad[0].tolist()
            step = self.step - len(self.window) + 1 + position
            raise _diverged(f"{self.updates[update].name} loss", losses[position, update].item(), step)

    def record_losses(self) -> None:
        self.history.steps.append(self.step)
        means = torch.stack(self.window).mean(0).tolist()
        for update, mean in zip(self.updates, means, strict=True):
            self.history.losses[update.name].append(mean)
        self.window = []

    @torch.no_grad()
    def validate(self, rows: Tensor, prepare: Callable[[Tensor], Tensor]) -> None:
        """Score the averaged weights, and keep them if they are the best so far."""
        blocks = (prepare(block).float() for block in rows.split(VALIDATION_BLOCK))
        total = sum(self.averaged.validation_score(block).item() * len(block) for block in blocks)
        # Running statistics differ between processes; all must follow one score, or they part ways.
        score = self.fabric.broadcast(total / len(rows))
        if not math.isfinite(score):
            raise _diverged("validation score", score, self.step)
        if score > max(self.history.validation_scores, default=-math.inf):
            self.best = {name: tensor.clone() for name, tensor in self.averaged.state_dict().items()}
            self.history.best_step = self.step
        self.history.validation_steps.append(self.step)
        self.history.validation_scores.append(score)

    def finish(self) -> None:
        """Put the weights to be kept into the model."""
        if self.best is None:
            self.history.best_step = self.step
        self.model.load_state_dict(self.averaged.state_dict() if self.best is None else self.best)

    def restore_or_save(self, checkpointing: Checkpointing) -> None:
        """Continue from a checkpoint; where there is none, make one, and so learn now if that fails."""
        if (checkpointing.path / "manifest.json").exists():
            self._restore(checkpointing)
        else:
            self.save(checkpointing)

    def save(self, checkpointing: Checkpointing) -> None:
        if not self.fabric.is_global_zero:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in (self.best or {}).items()}
        for update, optimizer in zip(self.updates, self.optimizers, strict=True):
            for index, state in optimizer.state_dict()["state"].items():
                for key, tensor in state.items():
                    tensors[f"optimizer.{update.name}.{index}.{key}"] = tensor
        tensors["window"] = torch.stack(self.window) if self.window else torch.empty(0, len(self.updates))
        tensors["noise"] = self.noise.get_state()
        tensors["global_noise"] = self.global_noise.get_state()
        artifact.write(
            checkpointing.path,
            kind="checkpoint",
            metadata={
                "fingerprint": checkpointing.fingerprint,
                "device": self.fabric.device.type,
                "step": self.step,
                "draws": self.draws,
                "history": asdict(self.history),
            },
            tensors=tensors,
        )

    def _restore(self, checkpointing: Checkpointing) -> None:
        saved = artifact.read(checkpointing.path, kind="checkpoint")
        device, saved_device = self.fabric.device, saved.metadata["device"]
        if saved.metadata["fingerprint"] != checkpointing.fingerprint:
            raise InputError(
                f"{checkpointing.path}: this checkpoint belongs to another fit (other data or settings); "
                "delete it to start afresh, or give the data and settings it was made with."
            )
        if saved_device != device.type:
            raise InputError(
                f"{checkpointing.path}: this checkpoint was made on {saved_device}, and {device.type} would "
                f"lead to other weights; delete it to start afresh, or train on {saved_device}."
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in saved.tensors.items()
                if name.startswith(prefix)
            }

        self.model.load_state_dict(part("model."))
        self.averaged.load_state_dict(part("averaged."))
        self.best = {name: tensor.to(device) for name, tensor in part("best.").items()} or None
        for update, parameters, optimizer in zip(self.updates, self.parameters, self.optimizers, strict=True):
            states: dict[int, dict[str, Tensor]] = {}
            for name, tensor in part(f"optimizer.{update.name}.").items():
                index, key = name.split(".")
                like = parameters[int(index)]
                states.setdefault(int(index), {})[key] = (
                    _laid_out_like(like, tensor) if tensor.shape == like.shape else tensor
                )
            optimizer.load_state_dict(optimizer.state_dict() | {"state": states})
        self.window = list(saved.tensors["window"].to(device))
        self.noise.set_state(saved.tensors["noise"])
        self.global_noise.set_state(saved.tensors["global_noise"])
        self.step, self.draws = saved.metadata["step"], saved.metadata["draws"]
        self.history = History(**saved.metadata["history"])


class _RecordedStep:
    """A step's operations, recorded on an accelerator and played back with other rows and other noise.

    Issued one by one, operations as small as these leave the accelerator idle most of the time.
    """

    def __init__(self, run: _Run, minibatches: _Minibatches) -> None:
        self.minibatches = minibatches
        # What is played back reads and writes the same memory every time.
        self.numbers = [minibatches.numbers(0).clone() for _ in range(run.draws_per_step)]
        numbers = iter(self.numbers)
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(run.noise)
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            self.losses = run.take_step(lambda: minibatches.rows(next(numbers)))

    def play(self, first_draw: int) -> Tensor:
        """Take one step with the minibatches from this draw on; return the losses."""
        for draw, numbers in enumerate(self.numbers, first_draw):
            numbers.copy_(self.minibatches.numbers(draw))
        self.graph.replay()
        return self.losses.clone()


def _laid_out_like(parameter: Tensor, values: Tensor) -> Tensor:
    """Return the values in the parameter's order in memory, channels_last for one.

    Fused Adam goes through parameter, gradient and moments by address: other layouts would be mixed up.
    """
    if values.stride() == parameter.stride() and values.device == parameter.device:
        return values
    return torch.empty_like(parameter).copy_(values)


def _diverged(what: str, value: float, step: int) -> TrainingDivergedError:
    return TrainingDivergedError(
        f"the {what} became {value} at step {step}; "
        "try a smaller learning_rate, another loss, or look for extreme values in the data."
    )


def _share(fabric: Fabric) -> slice:
    """Which rows of a batch are this process's."""
    return slice(fabric.global_rank, None, fabric.world_size)


def _parameter_groups(moved: Sequence[Moved], schedule: Schedule) -> list[dict[str, Any]]:
    """One group per module; a parameter that two of them share belongs to the first."""
    seen: set[nn.Parameter] = set()
    groups = []
    for module, _, betas, _ in moved:
        parameters = [p for p in module.parameters() if p.requires_grad and p not in seen]
        seen.update(parameters)
        groups.append({"params": parameters, "betas": betas or schedule.betas})
    return groups


class _Minibatches:
    """Shuffled epochs of rows, with no state to save: a draw's number determines its minibatch."""

    def __init__(
        self,
        rows: Tensor,
        numbers: np.ndarray,
        prepare: Callable[[Tensor], Tensor],
        batch_size: int,
        seed: int,
        fabric: Fabric,
    ) -> None:
        self._rows, self._numbers, self._prepare, self._seed = rows, numbers, prepare, seed
        self._batch_size, self._fabric = batch_size, fabric
        self._order: dict[int, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._rows.device

    def numbers(self, draw: int) -> Tensor:
        """Number the rows of this process's share of a minibatch."""
        epoch, position = divmod(draw, len(self._numbers) // self._batch_size)
        if epoch not in self._order:
            self._order.clear()
            shuffled = np.random.default_rng([self._seed, epoch]).permutation(len(self._numbers))
            self._order[epoch] = torch.from_numpy(self._numbers[shuffled]).to(self.device)
        batch = self._order[epoch][position * self._batch_size : (position + 1) * self._batch_size]
        return batch[_share(self._fabric)]

    def rows(self, numbers: Tensor) -> Tensor:
        """Return the scaled rows of these numbers."""
        return self._prepare(self._rows[numbers].to(self._fabric.device)).float()


@contextlib.contextmanager
def own_global_noise(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Lend PyTorch's global generator, to one thread at a time: layers such as Dropout draw from no other.

    Its state comes back as it was, and the borrower's part in it is yielded, to be saved.
    """
    on_gpu = device.type == "cuda"
    with _NOISE, torch.random.fork_rng(devices=[device] if on_gpu else []):
        generator = torch.cuda.default_generators[device.index] if on_gpu else torch.default_generator
        yield generator.manual_seed(seed)


class _Setting:
    """A setting of the process, which the first thread that needs it changes and the last one restores."""

    def __init__(self, get: Callable[[], Any], change: Callable[[Any], object], value: Any) -> None:
        self._get, self._change, self._value = get, change, value
        self._lock, self._holders, self._before = threading.Lock(), 0, None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._holders:
                self._before = self._get()
                self._change(self._value)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._change(self._before)

    @classmethod
    def of(cls, owner: Any, name: str, value: Any) -> _Setting:
        """The setting that is an attribute of a module."""
        return cls(functools.partial(getattr, owner, name), functools.partial(setattr, owner, name), value)


_NOISE = threading.RLock()
_DETERMINISTIC = _Setting.of(torch.backends.cudnn, "deterministic", True)
_EXACT_PRODUCTS = _Setting.of(torch.backends.cuda.matmul, "allow_tf32", False)
_EXACT_CONVOLUTIONS = _Setting.of(torch.backends.cudnn, "allow_tf32", False)
_SINGLE_BY_DEFAULT = _Setting(torch.get_default_dtype, torch.set_default_dtype, torch.float32)


def n_parameters(model: nn.Module) -> int:
    """Count a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def threads_for(size: int, device: torch.device) -> Iterator[None]:
    """Run a network of so few parameters on one thread: handing its tiny operations around costs more."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and size < SMALL_NETWORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Keep a GPU's convolutions from adding up in an order that changes from run to run."""
    with _DETERMINISTIC.held() if device.type == "cuda" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Issue operations to a stream of their own, the one that is recorded later.

    After steps in another one, the recording of convolutional flows failed: presumably libraries set up what
    they need for each stream at first use, which is refused while it is recorded.
    """
    if device.type != "cuda":
        yield
        return
    stream, surrounding = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(surrounding)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        surrounding.wait_stream(stream)


@contextlib.contextmanager
def single_precision(device: torch.device) -> Iterator[None]:
    """Keep a GPU from rounding what goes into its products to ten bits (TF32)."""
    if device.type != "cuda":
        yield
        return
    with _EXACT_PRODUCTS.held(), _EXACT_CONVOLUTIONS.held():
        yield


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Compute as PyTorch does by itself, whatever is set around: with gradients, in single precision."""
    with contextlib.ExitStack() as settings:
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
            settings.enter_context(torch.autocast(device, enabled=False))
        settings.enter_context(_SINGLE_BY_DEFAULT.held())
        yield


@contextlib.contextmanager
def _interrupts() -> Iterator[Tensor]:
    """Turn the first Ctrl-C into a flag that is read between steps; a second one stops at once."""
    pressed = torch.zeros((), dtype=torch.bool)  # a tensor, because processes can share it
    if threading.current_thread() is not threading.main_thread():
        yield pressed  # only the main thread may handle signals
        return

    def handler(signum: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.fill_(True)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt  # it came after the last step


class _LossProgress(Progress):
    """A progress bar with a line of losses below it."""

    losses = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.losses, style="dim")


@contextlib.contextmanager
def progress_bar(description: str, total: int, *, enabled: bool) -> Iterator[OnLog | None]:
    """Show steps, the time left and every loss on standard error; only one line at the end if it is a file.

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
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("steps, time left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    live = console.is_terminal or console.is_jupyter
    with _LossProgress(*columns, console=console, disable=not live) as progress:
        task = progress.add_task(description, total=total)

        def on_log(step: int, losses: dict[str, float]) -> None:
            progress.losses = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
            progress.update(task, completed=step)

        yield on_log
        # Early stopping ends before all steps are done.
        progress.update(task, total=progress.tasks[0].completed)
    if not live:
        steps = int(progress.tasks[0].completed)
        console.print(f"{description}: {steps} steps  {progress.losses}", soft_wrap=True, highlight=False)
