"""Lets the host launch work without waiting for the card that does it.

A card works through a queue. An event is a place in it: it can be waited for, and the time between
two of them is the card's, not the host's. Numbers are copied to the host in the same order, into
pinned memory, and are there once the event behind them is reached. On a CPU, work is done when it
is launched, and an event is the time of the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trainer.device.out_of_memory import is_out_of_memory

ALIGNED_BYTES = 64
"""Where tensors of a common buffer begin."""


class Event(Protocol):
    """A place in the queue of a device."""

    def synchronize(self) -> None:
        """Return when all that was launched before it is done."""

    def seconds_since(self, earlier: Any) -> float:
        """Return the device's time between an earlier event and this one; waits for both."""


@dataclass(frozen=True)
class HostEvent:
    """A moment on a CPU."""

    at_s: float

    def synchronize(self) -> None:
        """Return: what was launched is done."""

    def seconds_since(self, earlier: HostEvent) -> float:
        """Return the time between both."""
        return self.at_s - earlier.at_s


class CudaEvent:
    """An event on the current stream of a CUDA card.

    A thread that waits for it sleeps: the processor is free for the one that writes a checkpoint.
    """

    def __init__(self, device: torch.device) -> None:
        self._event: Any = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]  # torch has no types here
        self._event.record(torch.cuda.current_stream(device))

    def synchronize(self) -> None:
        """Return when the card has come to it."""
        self._event.synchronize()

    def seconds_since(self, earlier: CudaEvent) -> float:
        """Return the card's time between both, which includes its pauses."""
        self.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1000


def record_event(device: torch.device) -> Event:
    """Return the present place in the queue of `device`."""
    return CudaEvent(device) if device.type == "cuda" else HostEvent(time.perf_counter())


class LaunchLimit:
    """Keeps the host at most `ahead` passes ahead of the one that the device works on."""

    def __init__(self, *, ahead: int = 1) -> None:
        self._ahead = ahead
        self._events: deque[Event] = deque()

    def throttle(self) -> None:
        """Wait until another pass may be launched."""
        while len(self._events) > self._ahead:
            self._events.popleft().synchronize()

    def launched(self, device: torch.device) -> None:
        """Note that a pass was launched."""
        self._events.append(record_event(device))

    def synchronize(self) -> None:
        """Wait until all passes are done."""
        while self._events:
            self._events.popleft().synchronize()


@dataclass(frozen=True, kw_only=True)
class HostCopy:
    """Copies of tensors that are, or soon will be, in the host's memory."""

    tensors: dict[str, torch.Tensor]
    """Of which nothing may be read before `synchronize` has returned."""
    reached: Event

    def synchronize(self) -> None:
        """Return when every value is there."""
        self.reached.synchronize()


def copy_to_host(tensors: Mapping[str, torch.Tensor], device: torch.device) -> HostCopy:
    """Launch copies of `tensors` to the host, as they are at this place of the queue of `device`.

    What is on the host already is copied at once. What is on the card goes into one pinned buffer,
    which torch keeps for the next time; where the host has no memory to pin, it is waited for.
    """
    on_card = {name: one.detach() for name, one in tensors.items() if one.device.type == "cuda"}
    copies = into_pinned(on_card) if on_card else {}
    for name, one in tensors.items():
        if name not in copies:
            copies[name] = one.detach().to("cpu", copy=True).contiguous()
    return HostCopy(tensors={name: copies[name] for name in tensors}, reached=record_event(device))


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def into_pinned(
    tensors: Mapping[str, torch.Tensor], allocate: Callable[[int], torch.Tensor] = _pinned
) -> dict[str, torch.Tensor]:
    """Launch copies into parts of one pinned buffer; return none if the host lacks the memory."""
    places, size = layout(tensors)
    try:
        buffer = allocate(size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {}
    views = views_of(buffer, tensors, places)
    for name, view in views.items():
        view.copy_(tensors[name], non_blocking=True)
    return views


def layout(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, int], int]:
    """Return where in a common buffer each tensor begins, and how many bytes that has."""
    places: dict[str, int] = {}
    end = 0
    for name, one in tensors.items():
        places[name] = end
        end += -(-one.nbytes // ALIGNED_BYTES) * ALIGNED_BYTES
    return places, end


def views_of(
    buffer: torch.Tensor, tensors: Mapping[str, torch.Tensor], places: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Return parts of a buffer of bytes with the types and shapes of `tensors`."""
    return {
        name: buffer[places[name] : places[name] + one.nbytes].view(one.dtype).view(one.shape)
        for name, one in tensors.items()
    }


@contextmanager
def host_sync_refused(device: torch.device | None) -> Iterator[None]:
    """Let every operation that makes the host wait for a CUDA card raise RuntimeError inside.

    Events may be waited for all the same. Without a device, or on a CPU, nothing is refused.
    """
    if device is None or device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
