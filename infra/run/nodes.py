"""The journal as each machine of a run with several sees it, and the state of all of them as one.

A run has one journal. Events of node i > 0 carry `"node": i`; without it an event is of node 0, so
that a run with one machine is a run with node 0 alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.run.journal import Event, Journal, JournalDamaged, Kind
from infra.run.state import RunState

NODE = "node"
WHOLE = "run"
"""Of a removal: whether it was that of all that the run had."""
NODES_MAX = 64
FOR_ALL = frozenset({Kind.RUN_STARTED, Kind.RUN_RESUMED})
"""What happens to all machines of a run at once."""


class JournalClosed(Exception):  # noqa: N818  (the run's vocabulary)
    """Whoever drives the run has let go of it: nothing is written any more."""


class NodeJournal:
    """The journal of a run as one of its machines sees it; machines append from threads."""

    def __init__(self, journal: Journal, node: int, lock: threading.Lock) -> None:
        self._journal = journal
        self._node = node
        self._lock = lock
        self._closed = False

    @property
    def node(self) -> int:
        """Which machine it is."""
        return self._node

    @property
    def events(self) -> tuple[Event, ...]:
        """The events of this machine and those of all, oldest first."""
        with self._lock:
            return tuple(events_of(self._journal.events, self._node))

    def append(self, kind: Kind, **data: Any) -> Event:
        """Write one event of this machine; return when it is on the disk.

        Raises OSError as `Journal.append` does, JournalClosed after `close`.
        """
        of_node = {NODE: self._node} if self._node and kind not in FOR_ALL else {}
        with self._lock:
            if self._closed:
                raise JournalClosed
            return self._journal.append(kind, **of_node, **data)

    def close(self) -> None:
        """Write nothing any more, whatever a thread that was left behind still does."""
        with self._lock:
            self._closed = True


def node_of(event: Event) -> int:
    """Return which machine an event is of. Raises JournalDamaged for what is no number of one."""
    found = event.data.get(NODE, 0)
    if type(found) is not int or not 0 <= found < NODES_MAX:
        what = f"event {event.number} ({event.kind}) names no machine: {found!r}"
        raise JournalDamaged(Path("journal.jsonl"), what)
    return found


def node_count(events: Iterable[Event]) -> int:
    """Return how many machines a run has had at a time: one more than the highest number."""
    return 1 + max((node_of(event) for event in events), default=0)


def events_of(events: Iterable[Event], node: int) -> list[Event]:
    """Return the events of one machine and those of all, oldest first."""
    return [event for event in events if event.kind in FOR_ALL or node_of(event) == node]


def together(nodes: Sequence[RunState]) -> RunState:
    """Return the states of the machines of a run as one: sums of what they cost and did.

    What only one can be (machine, offer, ending) is of the first machine that has it.
    """
    first = nodes[0]
    with_vm = next((one for one in nodes if one.vm is not None), first)
    farthest = max(nodes, key=lambda one: one.step)
    trained = next((one for one in nodes if one.trained), first)
    return replace(
        first,
        nodes=tuple(nodes),
        pending=next((one.pending for one in nodes if one.pending is not None), None),
        vm=with_vm.vm,
        offer=with_vm.offer,
        generation=with_vm.generation,
        up=any(one.up for one in nodes),
        starts=sum(one.starts for one in nodes),
        prepared=any(one.prepared for one in nodes),
        launched=any(one.launched for one in nodes),
        launches=max(one.launches for one in nodes),
        step=farthest.step,
        steps=farthest.steps,
        disk_step=max(one.disk_step for one in nodes),
        home_step=max(one.home_step for one in nodes),
        alive_s=max(one.alive_s for one in nodes),
        cards=max((one.cards for one in nodes), key=len),
        evictions=sum(one.evictions for one in nodes),
        rehearsed=frozenset(step for one in nodes for step in one.rehearsed),
        stops=sum(one.stops for one in nodes),
        hangs=sum(one.hangs for one in nodes),
        crashes=farthest.crashes,
        failure=next((one.failure for one in nodes if one.failure is not None), None),
        refusals=tuple(dict.fromkeys(one for node in nodes for one in node.refusals)),
        trained=trained.trained,
        exact=trained.exact,
        inexact_from=trained.inexact_from,
        fetched=next((one.fetched for one in nodes if one.fetched), ""),
        deleted=all(one.deleted or not one.spans for one in nodes)
        and any(n.deleted for n in nodes),
        stopped_by_user=next((one.stopped_by_user for one in nodes if one.stopped_by_user), ""),
        spans=tuple(span for one in nodes for span in one.spans),
    )


def is_removed_whole(events: Sequence[Event]) -> bool:
    """Whether all of a run was removed, what its machines shared too, and nothing asked for since.

    So is a run of which nothing was ever asked for.
    """
    for event in reversed(events):
        if event.kind is Kind.CREATE_INTENDED:
            return False
        if event.kind is Kind.DELETED and event.data.get(WHOLE):
            return True
    return True
