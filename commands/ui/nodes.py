"""The machines of a run with several, as commands show and choose them; pure, from its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from commands.ui.errors import UsageError
from infra.run.journal import Event, Kind
from infra.run.nodes import FOR_ALL, NODE, node_of
from infra.run.state import RunState


def each_node(state: RunState) -> tuple[RunState, ...]:
    """Return the state of each machine, by its number; of a run with one, that of the run."""
    return state.nodes or (state,)


def view_of(events: Iterable[Event], node: int) -> list[Event]:
    """Return the events of one machine and those of all, the ending of the run among them."""
    for_all = FOR_ALL | {Kind.RUN_ENDED}
    return [event for event in events if event.kind in for_all or node_of(event) == node]


def of_node(node: int) -> Mapping[str, int]:
    """Return what the events of a machine carry: nothing for the first, as in a run with one."""
    return {NODE: node} if node else {}


def leader(state: RunState) -> int:
    """Return which machine leads: the first of the group that was formed last, if it has one up."""
    nodes = each_node(state)
    newest = max(nodes, key=lambda one: (one.launched, one.group))
    up = [member for member in newest.members if member < len(nodes) and nodes[member].up]
    if newest.launched and up:
        return up[0]
    return next((number for number, one in enumerate(nodes) if one.up), 0)


def rank_text(state: RunState, node: int) -> str:
    """Describe the place of a machine in the group that trains: `rank 0 of 3`; empty if none."""
    one = each_node(state)[node]
    group = max(other.group for other in each_node(state))
    if not one.launched or one.group != group or node not in one.members:
        return ""
    return f"rank {one.members.index(node)} of {len(one.members)}"


def node_words(state: RunState, node: int) -> str:
    """Describe in a few words what a machine of a run does, as far as its journal has it."""
    one = each_node(state)[node]
    if one.launched:
        rank = rank_text(state, node)
        return f"trains as {rank}" if rank else "trains"
    if one.up:
        return "ready" if one.prepared else "setting up" if one.running_s else "starting"
    if one.vm is not None:
        return "down"
    if one.pending is not None:
        return "being rented or removed"
    if one.refusals and not one.deleted:
        return "waiting for capacity"
    return "removed" if one.deleted else "not rented yet"


def chosen_node(state: RunState, wanted: int | None, *, name: str) -> int:
    """Return the machine that is meant: the one asked for, or the one that leads.

    Raises UsageError, with those there are, if the run has no such machine.
    """
    count = len(each_node(state))
    if wanted is None:
        return leader(state)
    if 0 <= wanted < count:
        return wanted
    there = "one machine, node 0" if count == 1 else f"machines 0 to {count - 1}"
    raise UsageError(
        f"`{name}` has no node {wanted}: it has {there}",
        hint=f"`qft status {name}` lists them",
    )


def others_text(state: RunState, node: int) -> str:
    """Say which other machines there are beside the one that was chosen; empty if there is none."""
    others = [str(number) for number in range(len(each_node(state))) if number != node]
    return f"node {node}; `--node` takes {', '.join(others)}, too" if others else ""
