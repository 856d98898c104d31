"""Measures on the machine what a training step needs, and leaves model and state as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trainer.device.determinism import Determinism
from trainer.device.host_memory import free_memory, resident_bytes, watched_peak
from trainer.device.out_of_memory import give_memory_back
from trainer.saving.state import TrainingState
from trainer.text import gigabytes
from trainer.training.longest import Pass
from trainer.training.passes import backward_pass
from trainer.training.train_context import TrainContext

ROOM = 0.05
ROOM_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one pass needed: bytes, of the device where nothing else is said."""

    allocated_bytes: int
    """What tensors took at most; on a CPU, the whole process."""
    reserved_bytes: int
    """What the allocator took for them; on a CPU, what counts against the limit that holds."""
    extra_bytes: int
    """What the pass took beyond what was there before it, with what a save will take of a host."""
    host_bytes: int
    """What the process took of the host's memory at most."""


@dataclass(frozen=True, kw_only=True)
class DeviceLimit:
    """What a device, or a limit on this process, still gives, and which it is, in words."""

    free_bytes: int
    reach_bytes: int
    """With what is taken already: as much as a peak may be."""
    name: str

    @property
    def used_bytes(self) -> int:
        """What counts against the limit already."""
        return self.reach_bytes - self.free_bytes

    @property
    def usable_bytes(self) -> float:
        """What is free, less what a pass does not show: the interpreter, a log, an allocator."""
        return self.free_bytes * (1 - ROOM) - ROOM_BYTES

    def lacking(self, extra_bytes: int | None) -> Shortage:
        """Return the shortage of a pass that takes so much more than is taken already."""
        room = self.free_bytes - round(self.usable_bytes)
        need = None if extra_bytes is None else self.used_bytes + extra_bytes + room
        return Shortage(need_bytes=need, limit_bytes=self.reach_bytes, limit=self.name)


@dataclass(frozen=True, kw_only=True)
class Shortage:
    """A pass that does not fit; `need_bytes` is None where an error alone showed it."""

    need_bytes: int | None = None
    limit_bytes: int | None = None
    limit: str = ""

    def to_text(self) -> str:
        """Return both figures, as far as they are there."""
        if self.limit_bytes is None:
            return "memory ran out"
        limit = f"{gigabytes(self.limit_bytes)}: {self.limit}"
        need = "more" if self.need_bytes is None else gigabytes(self.need_bytes)
        return f"{need} of {limit}"


def measure(context: TrainContext, state: TrainingState, one: Pass) -> Measured:
    """Run a pass forward and backward as a step does, with gradients and moments beside it.

    Gradients are thrown away, moments too if there were none; random generators, parameters, loss
    scale and counters stay as they were. Raises what the device raises if memory runs out.
    """
    device = context.accelerator.device
    give_memory_back()
    limit = device_limit(device)
    with _unchanged(context, state):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        with watched_peak() as host:
            saved_bytes = _run(context, state, one)
        if device.type != "cuda":
            extra = host.extra + saved_bytes
            return Measured(
                allocated_bytes=host.peak,
                reserved_bytes=extra + (limit.used_bytes if limit else host.before),
                extra_bytes=extra,
                host_bytes=host.peak,
            )
        torch.cuda.synchronize(device)
        allocated = torch.cuda.max_memory_allocated(device)
        return Measured(
            allocated_bytes=allocated,
            reserved_bytes=torch.cuda.max_memory_reserved(device),
            extra_bytes=allocated - before,
            host_bytes=host.peak,
        )


def _run(context: TrainContext, state: TrainingState, one: Pass) -> int:
    """Do the pass, and return the bytes of the copies that a save of the state makes."""
    context.method.before_step(state.counters.step)
    moments = state.moments_to_come()  # kept until the end of this function
    matrices = (one for one in context.model.buffers() if one.requires_grad)  # of NOLA
    for tensor in (*state.parameters.values(), *matrices):  # as from the second pass of a step on
        tensor.grad = torch.zeros_like(tensor)
    determinism = Determinism(exact=context.determinism.exact)
    if not context.determinism.strict:
        determinism.strict = False
    while True:
        try:
            with determinism.enforced():
                backward_pass(context, state, one.examples, targets=max(1, one.targets), seed=0)
            break
        except RuntimeError as error:
            if not determinism.relax(error):
                raise
    present = [value for each in state.optimizer.state.values() for value in each.values()]
    kept = [*state.parameters.values(), *moments, *present]
    return sum(value.nbytes for value in kept if isinstance(value, torch.Tensor))


@contextmanager
def _unchanged(context: TrainContext, state: TrainingState) -> Iterator[None]:
    """Bring back what a pass changes besides the gradients, and throw those away."""
    random = torch.get_rng_state()
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    lengths = _grown_by_length(context.model)
    modes = [(module, module.training) for module in context.model.modules()]
    context.model.train()  # before its first step it is not yet, and recomputes nothing
    try:
        yield
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        for module, training in modes:
            module.training = training
        context.method.materialize()  # what it made of gradients goes, too
        for module, name, value in lengths:
            setattr(module, name, value)
        torch.set_rng_state(random)
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)
        give_memory_back()


def _grown_by_length(model: Any) -> list[tuple[Any, str, Any]]:
    """Return the tables of places that grow with the longest text that was read, as they are.

    A training in the order of its rows would grow them later.
    """
    return [
        (module, name, value.clone() if isinstance(value, torch.Tensor) else value)
        for module in model.modules()
        if hasattr(module, "max_seq_len_cached")
        for name, value in [*vars(module).items(), *module._buffers.items()]  # noqa: SLF001
        if name == "max_seq_len_cached" or isinstance(value, torch.Tensor)
    ]


def device_limit(device: torch.device) -> DeviceLimit | None:
    """Return what the device has for more tensors; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        name = f"the memory of {torch.cuda.get_device_name(device)}"
        reserved = torch.cuda.memory_reserved(device)
        unused = reserved - torch.cuda.memory_allocated(device)
        return DeviceLimit(free_bytes=free + unused, reach_bytes=free + reserved, name=name)
    found = free_memory()
    if found is None:
        return None
    reach = found.limit_bytes if found.own else resident_bytes() + found.bytes
    return DeviceLimit(free_bytes=found.bytes, reach_bytes=reach, name=found.limit)
