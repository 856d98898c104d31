"""Removes what is left of a run in a resource group that lost our tag, piece by piece.

A person or a policy may take the tags off a group, or write others. What then still carries our tag
goes; what carries none is not touched, only its compute is released where this computer wrote down
that it had made the machine. The group goes if it holds nothing else and was written down as ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.azure.context import AzureContext
from infra.azure.naming import DISK, KINDS, Names, ids_of, node_of
from infra.azure.release_compute import ComputeRelease
from infra.azure.resources import Parts
from infra.errors import NotAllowed
from infra.provider import OnMessage
from infra.renting.run_record import RunRecord
from infra.renting.tags import GENERATION, is_of_run, lower_case_names


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """Removes what carries our tag from a group that does not."""

    context: AzureContext
    parts: Parts

    def remove(
        self,
        record: RunRecord,
        names: Names,
        group: dict[str, Any],
        *,
        deadline: float,
        on_message: OnMessage,
    ) -> None:
        """Remove every tagged piece; raise `NotAllowed` if something of ours must stay."""
        message = f"the resource group `{group.get('name')}` does not carry our tag"
        listed = self.parts.inventory(names)
        every = self._machines(names, record, listed)
        groups = {
            one.ids.get("group", "").lower()
            for one in (record, *self.context.records_of_nodes(names.run_id))
        }
        recorded = str(group.get("id") or "").lower() in groups
        tagged = [id_ for one in every for id_ in self._tagged(one)]
        ours = [id_ for one in every for id_ in self._removable(one, tagged)]
        ours.sort(key=lambda id_: id_ in [x for one in every for x in one.shared_ids()])
        if not tagged and not recorded:
            raise NotAllowed(
                f"{message}: not touched", hint="remove it in the portal if it is yours"
            )
        on_message(f"{message}: only what does is removed from it")
        for one in every:  # releasing loses nothing, and what it bills is ours
            mine = self.context.record(one.run_id, one.node) if one.node else record
            ComputeRelease(context=self.context).release(one, mine, on_message)
        record.removing += [
            [_kind(id_), id_] for id_ in ours if [_kind(id_), id_] not in record.removing
        ]
        record.note("delete", self.context.clock())
        for id_ in ours:
            if self.parts.get(id_) is not None:
                self.parts.remove_id(id_, deadline)
        ids = ids_of(every)
        left = [
            id_ for id_ in ids if (recorded or id_ in tagged) and self.parts.get(id_) is not None
        ]
        if left:
            raise _untagged_remain(message, left)
        others = [one for one in self.parts.inventory(names) if not _is_gone(self.parts, one, ids)]
        if recorded and not others:
            self.parts.remove_empty_group(record, names)

    def _machines(
        self, names: Names, record: RunRecord, listed: Sequence[dict[str, Any]]
    ) -> list[Names]:
        """The names of every machine of the run that tags or this computer's memory speak of."""
        found = {(0, max(record.generation, 1))}
        found |= {(one.node, one.generation) for one in self.context.records_of_nodes(names.run_id)}
        for one in listed:
            text = lower_case_names(one.get("tags")).get(GENERATION, "")
            if is_of_run(one.get("tags"), names.run_id) and text.isdigit():
                found.add((node_of(one.get("tags")), int(text)))
        return [
            Names(
                subscription_id=names.subscription_id,
                run_id=names.run_id,
                generation=generation,
                node=node,
            )
            for node, generation in sorted(found)
        ]

    def _tagged(self, names: Names) -> list[str]:
        """The ids of what carries our tag, in the order of removal; lists lag, so each is asked.

        Azure gives a disk no tags: it is ours if it is the one of a machine that is, or if nothing
        holds it any more and this computer wrote down that it had it made.
        """
        found: list[str] = []
        record = self.context.record(names.run_id, names.node)
        for id_ in ids_of([names]):
            view = self.parts.get(id_)
            if view is None:
                continue
            mine = is_of_run(view.get("tags"), names.run_id)
            if id_ == names.id_of(DISK, names.disk):
                holder = str(view.get("managedBy") or "").lower()
                written = record.ids.get("disk", "").lower() == id_.lower()
                mine |= holder == names.vm_id.lower() and names.vm_id in found
                held = holder and self.parts.get(names.vm_id) is not None
                mine |= written and not held
            if mine:
                found.append(id_)
        return found

    def _removable(self, names: Names, tagged: Sequence[str]) -> list[str]:
        """Of the tagged pieces of one machine those that can go: what a machine uses stays."""
        mine = [id_ for id_ in ids_of([names]) if id_ in tagged]
        stays = names.vm_id not in mine and self.parts.get(names.vm_id) is not None
        return [] if stays else mine


def _untagged_remain(message: str, left: Sequence[str]) -> NotAllowed:
    """The error for pieces of the run that carry no tag, but are on record as ours."""
    names = ", ".join(f"`{id_.rpartition('/')[2]}`" for id_ in left)
    error = NotAllowed(
        f"{message}, nor does everything of the run in it; {names} stay: the compute is released, "
        "a disk or an address among them goes on billing",
        hint="put the tag `qft-run` back on the group and repeat this, or remove them in the "
        "portal",
    )
    error.unfinished = True
    return error


def _kind(id_: str) -> str:
    return KINDS[id_.partition("/providers/")[2].rpartition("/")[0].lower()]


def _is_gone(parts: Parts, listed: dict[str, Any], ids: Sequence[str]) -> bool:
    """Whether something that a list still shows is one of ours, and gone."""
    id_ = str(listed.get("id") or "")
    mine = next((one for one in ids if one.lower() == id_.lower()), "")
    return bool(mine) and parts.get(mine) is None
