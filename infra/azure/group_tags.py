"""Reads and changes the tags of a run's resource group: which machines the run has.

The group carries the tags of node 0, as it does for a run with one machine. One more tag names the
other machines with their generations, and one the network, once node 0 does not tell it any more.
Unlike lists, which lag, a group shows its tags at once. All of it is pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.azure.naming import Names
from infra.renting.tags import CREATED, GENERATION, RUN, lower_case_names

NODES = "qft-nodes"
"""The tag that names the machines beside node 0, as `node=generation`, with commas between."""
NETWORK = "qft-network"
"""The tag that says which generation the names of the shared network carry."""
LABEL = "qft-label-"
Tags = Mapping[str, str] | None
_OF_RUN = frozenset({RUN, CREATED, "qft-region"})


def nodes_of(tags: Tags) -> dict[int, int]:
    """Read the generation of each machine beside node 0."""
    found = {}
    for one in lower_case_names(tags).get(NODES, "").split(","):
        node, _, generation = one.strip().partition("=")
        if node.isdigit() and generation.isdigit() and int(node) > 0:
            found[int(node)] = int(generation)
    return found


def is_of_several(tags: Tags) -> bool:
    """Whether the group is, or was, that of several machines."""
    return bool({NODES, NETWORK} & set(lower_case_names(tags)))


def has_node_0(tags: Tags) -> bool:
    """Whether the tags describe a node 0, as those of a run with one machine always do."""
    found = lower_case_names(tags)
    return GENERATION in found or NETWORK not in found


def network_of(tags: Tags) -> int:
    """Read which generation the names of the shared network carry; 0 if nothing says so."""
    found = lower_case_names(tags)
    text = found.get(NETWORK) or found.get(GENERATION, "")
    return int(text) if text.isdigit() else 0


def others_of(tags: Tags, node: int) -> set[int]:
    """Which other machines a run has beside one of them."""
    return (set(nodes_of(tags)) | ({0} if has_node_0(tags) else set())) - {node}


def with_node_0(tags: Tags, described: Mapping[str, str], network: int) -> dict[str, str]:
    """The tags of a group that node 0 joins, whose own tags are `described`."""
    kept = {NODES: _text(nodes_of(tags))} if nodes_of(tags) else {}
    if str(network) != described[GENERATION]:
        kept[NETWORK] = str(network)
    return {**_foreign(tags), **described, **kept}


def with_node(tags: Tags, node: int, described: Mapping[str, str], network: int) -> dict[str, str]:
    """The tags of a group that another machine joins, whose own tags are `described`."""
    nodes = nodes_of(tags) | {node: int(described[GENERATION])}
    made = {
        key: value
        for key, value in described.items()
        if not tags and (key in {RUN, CREATED} or key.startswith(LABEL))
    }
    added = {} if network_of(tags) else {NETWORK: str(network)}
    return {**made, **_but(tags, NODES), **added, NODES: _text(nodes)}


def shared_tags(described: Mapping[str, str], names: Names) -> dict[str, str]:
    """The tags of what the machines of a run share, where one with such tags of its own makes it.

    Node 0 writes its own on it, as where it is alone; those of another machine would name it.
    """
    if names.node == 0:
        return dict(described)
    kept = {key: v for key, v in described.items() if key in _OF_RUN or key.startswith(LABEL)}
    return {**kept, GENERATION: str(names.network_generation or names.generation)}


def without(tags: Tags, names: Names) -> dict[str, str]:
    """The tags of a group whose machine of those names is gone."""
    nodes = {node: one for node, one in nodes_of(tags).items() if node != names.node}
    left = {NODES: _text(nodes)} if nodes else {}
    if names.node:
        return {**_but(tags, NODES), **left}
    labels = {k: v for k, v in (tags or {}).items() if k.lower().startswith(LABEL)}
    network = {NETWORK: str(network_of(tags) or names.generation)}
    return {**_foreign(tags), RUN: names.run_id, **labels, **network, **left}


def _foreign(tags: Tags) -> dict[str, str]:
    """The tags that are not ours."""
    return {key: value for key, value in (tags or {}).items() if not key.lower().startswith("qft-")}


def _but(tags: Tags, name: str) -> dict[str, str]:
    """All tags but one, however it is spelt."""
    return {key: value for key, value in (tags or {}).items() if key.lower() != name}


def _text(nodes: Mapping[int, int]) -> str:
    return ",".join(f"{node}={generation}" for node, generation in sorted(nodes.items()))
