"""Holds all that must survive an interruption, saved and restored by the same code path.

There is no random-generator state and no data position: both are functions of the step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from trainer.device.device_queue import copy_to_host
from trainer.method_table import OptimizerKind
from trainer.rundir.samples import SampleLog, read_sample_log
from trainer.rundir.status import MetricsLog, last_step, parse_log
from trainer.saving.checkpoint import Snapshot, check_same_tensors
from trainer.saving.manifest import Damaged
from trainer.saving.memory_savings import NO_SAVINGS, MemorySavings, read_savings

BEST = "best/"  # in front of a parameter's name: its value at the best validation


@dataclass(kw_only=True)
class Counters:
    """What is counted over the whole run, across interruptions."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # without padding
    target_tokens: int = 0  # of those, the ones learnt from
    skipped: int = 0  # steps without an update, because a gradient was not finite
    skipped_in_a_row: int = 0
    micro_batch: int = 0  # sequences per forward pass; shrinks if memory runs out
    train_s: float = 0.0  # time spent in steps that survived
    usd: float = 0.0  # what those seconds cost at the price the machine was rented at
    resumes: int = 0
    redone_steps: int = 0
    inexact_from: int | None = None  # first step computed on other hardware or versions


@dataclass(frozen=True, kw_only=True)
class Best:
    """How validation went: the lowest loss, after which step, and how many came since."""

    step: int = 0  # 0: no loss was finite yet
    loss: float | None = None
    since: int = 0  # validations without a lower loss


class TrainingState:
    """The adapter, the optimizer, the loss scale, the counters and the log of one run."""

    def __init__(
        self,
        *,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: Any | None,
        log: MetricsLog,
        make_optimizer: Callable[[OptimizerKind | None], torch.optim.Optimizer] | None = None,
    ) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.savings = NO_SAVINGS
        self._make_optimizer = make_optimizer  # of a kind, or of the configured one
        self.scaler = scaler
        self.log = log
        self.samples = SampleLog()
        self.counters = Counters()
        self.best = Best()
        self.best_adapter: dict[str, torch.Tensor] = {}  # on the host; empty if none is kept

    def judge(self, loss: float, *, keep: bool) -> bool:
        """Record a validation; tell whether it is the best so far, and `keep` the adapter."""
        gained = math.isfinite(loss) and (self.best.loss is None or loss < self.best.loss)
        if gained:
            self.best = Best(step=self.counters.step, loss=loss)
            if keep:
                self.best_adapter = {k: _to_host(v) for k, v in self.parameters.items()}
        else:
            self.best = replace(self.best, since=self.best.since + 1)
        return gained

    def adopt_best(self) -> None:
        """Make the best adapter the present one, if one was kept."""
        with torch.no_grad():
            for name, value in self.best_adapter.items():
                self.parameters[name].copy_(value)

    def save_memory(self, savings: MemorySavings) -> None:
        """Compute with these savings from the next step on; another optimizer begins afresh.

        Raises:
            RuntimeError: the optimizer would be another one, and has moments already.
        """
        if savings.optimizer is not self.savings.optimizer:
            if self.optimizer.state or self._make_optimizer is None:
                raise RuntimeError("moments of one optimizer are not those of another")
            self.optimizer = self._make_optimizer(savings.optimizer)
        self.savings = savings

    def snapshot(self, fingerprint: Mapping[str, Any]) -> Snapshot:
        """Copy everything to the host; training may go on while the copy is written.

        A card copies in the order of its queue, and may not be done: wait for `Snapshot.ready`.
        """
        tensors, plain = self._optimizer_state()
        device = next(iter(self.parameters.values())).device
        adapter, optimizer = (copy_to_host(each, device) for each in (self.parameters, tensors))
        return Snapshot(
            step=self.counters.step,
            adapter={
                **adapter.tensors,
                **{BEST + name: value for name, value in self.best_adapter.items()},
            },
            optimizer=optimizer.tensors,
            ready=optimizer.synchronize,  # it was launched last
            state={
                "counters": asdict(self.counters),
                "optimizer": plain,
                "best": asdict(self.best),
                "scaler": self.scaler.state_dict() if self.scaler else None,
                **({} if self.savings == NO_SAVINGS else {"savings": self.savings.to_json()}),
                **({"samples": self.samples.to_json()} if self.samples.answers else {}),
            },
            log=self.log.to_bytes(),
            fingerprint=fingerprint,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Become what `snapshot` holds, or raise `Damaged` before anything has changed."""
        counters = _read_counters(snapshot)
        lines = parse_log(snapshot.log)
        if len(lines) != counters.step or last_step(snapshot.log) != counters.step:
            raise Damaged(f"its log has {len(lines)} lines for {counters.step} steps")
        best, best_adapter = _read_best(snapshot), best_tensors(snapshot.adapter)
        samples = _read_samples(snapshot)
        if best_adapter:
            check_same_tensors("best adapter", dict(self.parameters), best_adapter)
        check_same_tensors("adapter", dict(self.parameters), present_tensors(snapshot.adapter))
        plain = snapshot.state.get("optimizer")
        if not isinstance(plain, dict):
            raise Damaged("its optimizer is missing")
        scaler = snapshot.state.get("scaler")
        if _kinds(scaler) != _kinds(self.scaler.state_dict() if self.scaler else None):
            raise Damaged("its loss scale is missing or foreign")
        before = self.optimizer, self.savings
        self.save_memory(_read_savings(snapshot))
        try:
            moments = self._match_moments(snapshot, plain)
        except Damaged:
            self.optimizer, self.savings = before
            raise
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(snapshot.adapter[name])
        for name, values in moments.items():
            self.optimizer.state[self.parameters[name]] = values
        if self.scaler is not None:
            self.scaler.load_state_dict(scaler)
        self.log = MetricsLog(self.log.path, lines)
        self.samples = samples
        self.counters = counters
        self.best, self.best_adapter = best, best_adapter

    def _optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Split the optimizer's state into tensors and plain values, keyed `parameter/entry`."""
        tensors: dict[str, torch.Tensor] = {}
        plain: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                target = tensors if isinstance(value, torch.Tensor) else plain
                target[f"{name}/{entry}"] = value
        return tensors, plain

    def _match_moments(self, snapshot: Snapshot, plain: dict[str, Any]) -> dict[str, Any]:
        """Return the optimizer state by parameter, checked against what this optimizer would make.

        A parameter without any state (no update yet) is fine; half a state is not.
        """
        expected, expected_plain = self._fresh_optimizer_state()
        present = {key.rpartition("/")[0] for key in (*snapshot.optimizer, *plain)}
        wanted = {k: v for k, v in expected.items() if k.rpartition("/")[0] in present}
        wanted_plain = {k: v for k, v in expected_plain.items() if k.rpartition("/")[0] in present}
        check_same_tensors("optimizer", wanted, snapshot.optimizer)
        if _kinds(wanted_plain) != _kinds(plain):
            raise Damaged("its optimizer lacks entries or has foreign ones")
        moments: dict[str, dict[str, Any]] = {}
        for key, value in snapshot.optimizer.items():
            name, _, entry = key.rpartition("/")
            # Into the memory that the optimizer chose: a paged tensor claims to be the host's, and
            # a plain one of the host in its place would be refused by the kernels of the GPU.
            moments.setdefault(name, {})[entry] = expected[key].copy_(value)
        for key, value in plain.items():
            name, _, entry = key.rpartition("/")
            moments.setdefault(name, {})[entry] = value
        return moments

    def moments_to_come(self) -> list[torch.Tensor]:
        """Return tensors as the optimizer makes them in its first step, none if it has them."""
        return [] if self.optimizer.state else [*self._fresh_optimizer_state()[0].values()]

    def _fresh_optimizer_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the state that the optimizer makes in its first step, and forget it again.

        The step has length zero, so parameters stay; only a fresh optimizer may be asked.
        """
        if self.optimizer.state:
            raise RuntimeError("a state is restored into a fresh optimizer only")
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        made = self._optimizer_state()
        self.optimizer.state.clear()
        return made


def present_tensors(adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a snapshot's adapter without those of the best validation."""
    return {name: value for name, value in adapter.items() if not name.startswith(BEST)}


def best_tensors(adapter: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the best validation in a snapshot's adapter, none if none is kept."""
    return {k.removeprefix(BEST): v for k, v in adapter.items() if k.startswith(BEST)}


def digest(parameters: Mapping[str, torch.Tensor]) -> str:
    """Return 16 hex digits that change with any bit of any parameter, cheap enough for every step.

    Per tensor the bit patterns are summed as integers, which is exact and does not depend on the
    order of summation; the sums are hashed. Full SHA-256s are in every checkpoint's manifest.
    """
    sums, order = bit_sums(parameters)
    return hash_sums(sums.cpu(), order)


def bit_sums(parameters: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Return the sum of each float32 tensor's bit patterns modulo 2^64, and whose each is.

    Tensors of one shape are summed together on a card, which takes longer to be given hundreds of
    sums than to do them: the first result is of tensor `order[0]`, and so on.
    """
    bits = [value.detach().contiguous().view(torch.int32) for value in parameters.values()]
    groups: dict[object, list[int]] = {}
    for at, value in enumerate(bits):
        groups.setdefault(value.shape if value.is_cuda else at, []).append(at)
    sums = [_row_sums([bits[at] for at in places]) for places in groups.values()]
    return torch.cat(sums), [at for places in groups.values() for at in places]


def _row_sums(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of each of some int32 tensors of one shape."""
    rows = tensors[0] if len(tensors) == 1 else torch.stack([*tensors])
    return rows.reshape(len(tensors), -1).sum(dim=1, dtype=torch.int64)


def hash_sums(sums: torch.Tensor, order: Sequence[int]) -> str:
    """Return the digest of sums on the host, whatever order they are in."""
    placed = torch.empty_like(sums)
    placed[torch.tensor(order)] = sums
    return hashlib.sha256(placed.numpy().tobytes()).hexdigest()[:16]


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def _to_host(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _kinds(table: object) -> dict[str, type] | None:
    """Return the type of every value of a table, None if it is none."""
    return {k: type(v) for k, v in table.items()} if isinstance(table, dict) else None


def _read_counters(snapshot: Snapshot) -> Counters:
    raw = snapshot.state.get("counters")
    names = {field.name for field in fields(Counters)}
    if not isinstance(raw, dict) or set(raw) != names:
        raise Damaged("its counters are missing or foreign")
    numbers = {k: v for k, v in raw.items() if not (k == "inexact_from" and v is None)}
    for name, value in numbers.items():
        kinds = (int, float) if name in {"train_s", "usd"} else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= 0:
            raise Damaged(f"its counter {name} is {json.dumps(value)[:40]}")
    counters = Counters(**raw)
    if counters.step != snapshot.step:
        raise Damaged(f"its counters are about step {counters.step}")
    return counters


def _read_savings(snapshot: Snapshot) -> MemorySavings:
    """Return what was switched on to save memory; checkpoints of most runs say nothing."""
    try:
        return read_savings(snapshot.state.get("savings"))
    except ValueError as error:
        raise Damaged(str(error)) from error


def _read_samples(snapshot: Snapshot) -> SampleLog:
    """Return the answers to a few rows so far; checkpoints of runs without them say nothing."""
    try:
        found = read_sample_log(snapshot.state.get("samples"))
    except ValueError as error:
        raise Damaged(str(error)) from error
    if max(found.answers, default=0) > snapshot.step:
        raise Damaged(f"its samples are of step {max(found.answers)}")
    return found


def _read_best(snapshot: Snapshot) -> Best:
    """Return how validation went; checkpoints of runs without it need not say."""
    raw = snapshot.state.get("best", asdict(Best()))
    if not isinstance(raw, dict) or set(raw) != {field.name for field in fields(Best)}:
        raise Damaged("its best validation is missing or foreign")
    for name in ("step", "since"):
        if type(raw[name]) is not int or not 0 <= raw[name] <= snapshot.step:
            raise Damaged(f"its best validation has {name} {json.dumps(raw[name])[:40]}")
    loss = raw["loss"]
    if (loss is None) != (raw["step"] == 0) or not isinstance(loss, float | None):
        raise Damaged(f"its best validation has loss {json.dumps(loss)[:40]}")
    return Best(**raw)
