"""Cancels the spot requests that refused creates leave open, as soon as EC2 shows them.

AWS says that a request whose price is too low remains open, and an open request may launch a
machine later. Lists show it only after seconds. So that the next zone is asked at once, a refusal
is put on record, and later calls for the run look again until that time has passed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import NotYetVisibleError
from infra.aws.inventory import Inventories, Row
from infra.aws.machine_view import tags_of_answer
from infra.renting.run_record import RunRecord
from infra.renting.tags import CREATED, ZONE

SHOWN_S = 10.0
"""When lists show a spot request that a refused call left open."""


@dataclass(frozen=True, kw_only=True)
class RefusedCreate:
    """What names a create of a run, in its tags and on record."""

    region: str
    zone: str
    created_at: str

    def __str__(self) -> str:
        """As it is on record."""
        return f"{self.region}/{self.zone}/{self.created_at}"

    @classmethod
    def parse(cls, text: str) -> RefusedCreate:
        """Read what `str` wrote."""
        region, zone, created_at = (*text.split("/", 2), "", "")[:3]
        return cls(region=region, zone=zone, created_at=created_at)


@dataclass(frozen=True, kw_only=True)
class RefusedRequests:
    """What refused creates of a run may have left open. Safe to call again after any crash."""

    context: AwsContext

    def note(self, record: RunRecord, tags: Mapping[str, str]) -> None:
        """Record that a request with these tags was refused just now, in the record's region."""
        refused = RefusedCreate(
            region=record.ids["region"], zone=tags.get(ZONE, ""), created_at=tags.get(CREATED, "")
        )
        record.refused_at[str(refused)] = self.context.clock()
        record.save()

    def cancel(self, run_id: str, *, node: int = 0, early: bool = False) -> None:
        """Cancel what lists show of a node by now; a refusal is forgotten once they show all.

        Asks nothing if no create was refused, one request per region else. With `early`, looks
        before lists must show everything, too: what is in the way goes at once.
        """
        refused_at = self.context.record(run_id, node).refused_at
        now_s = self.context.clock()
        due = {one for one, at in refused_at.items() if not 0 <= now_s - at < SHOWN_S}
        some = [RefusedCreate.parse(one) for one in (refused_at if early else due)]
        for region in sorted({one.region for one in some}):
            refused = {one for one in some if one.region == region}
            self._cancel(run_id, node, region, refused)
        if due:
            record = self.context.record(run_id, node)
            record.refused_at = {k: at for k, at in record.refused_at.items() if k not in due}
            record.close() if record.is_closed else record.save()

    def wait(self, run_id: str, node: int = 0) -> list[str]:
        """Return the regions to look at again, when lists show there what was left open."""
        refused_at = self.context.record(run_id, node).refused_at
        now_s = self.context.clock()
        left_s = max((min(at, now_s) + SHOWN_S - now_s for at in refused_at.values()), default=0.0)
        if left_s > 0:
            self.context.sleep(left_s)
        return sorted({RefusedCreate.parse(one).region for one in refused_at})

    def _cancel(
        self, run_id: str, node: int, region: str, refused: Collection[RefusedCreate]
    ) -> None:
        """Cancel the requests of refused creates, then end what they launched meanwhile."""
        inventories = Inventories(context=self.context)
        own = self.context.record(run_id, node).ids.get("request", "")
        rows = inventories.live_requests(region, run_id, node)
        ids = [_id(one) for one in rows if _created_by(one, region) in refused]
        ids = [one for one in ids if one and one != own]
        if not ids:
            return
        words = ", ".join(f"`{one}`" for one in ids)
        self._call(
            region,
            "cancel_spot_instance_requests",
            doing=f"cancel the spot request {words}, which a refused create left open",
            SpotInstanceRequestIds=ids,
        )
        for instance in inventories.live_instances_of(region, ids):
            self._call(
                region,
                "terminate_instances",
                doing=f"terminate `{instance}`, which a refused create launched late",
                InstanceIds=[instance],
            )

    def _call(self, region: str, operation: str, *, doing: str, **parameters: Any) -> None:
        with contextlib.suppress(NotYetVisibleError):  # listed just now: somebody was quicker
            self.context.clients.call("ec2", region, operation, doing=doing, **parameters)


def _created_by(request: Row, region: str) -> RefusedCreate:
    """The create that made a request, by its tags."""
    tags = tags_of_answer(request)
    return RefusedCreate(region=region, zone=tags.get(ZONE, ""), created_at=tags.get(CREATED, ""))


def _id(request: Row) -> str:
    return str(request.get("SpotInstanceRequestId") or "")
