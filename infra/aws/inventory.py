"""Lists what a run has in a region: instances, spot requests, volumes, security groups.

Everything is found by its tag. EC2 may launch an instance from our request without our tags, so
that the instances of our requests are ours, too. What was made seconds ago may be missing in lists
by tag; what is on record is looked up by its id as well, and counts only if it carries our tag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import NotYetVisibleError
from infra.aws.machine_view import (
    LIVE_REQUEST_STATES,
    LIVE_STATES,
    SHUTTING_DOWN,
    MachineView,
    instances_of,
    node_of,
    run_of,
    state_of,
    tags_of_answer,
    view_of,
)
from infra.aws.security_group import is_shared
from infra.errors import NotAllowed, SignedOut, Transient
from infra.renting.gather import run_all
from infra.renting.tags import GENERATION, RUN

REGIONS_WAIT_S = 240.0
"""How long all regions together may take; an answer comes within seconds as a rule."""
FILTER_VALUES_MAX = 200
"""EC2 refuses a filter of more values."""
Row = dict[str, Any]
Filters = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """What carries our tag in one region, terminated instances and closed requests included."""

    region: str
    instances: list[Row] = field(default_factory=list)
    requests: list[Row] = field(default_factory=list)
    volumes: list[Row] = field(default_factory=list)
    groups: list[Row] = field(default_factory=list)
    untagged: list[Row] = field(default_factory=list)
    """Instances that this computer has on record and that lost our tag: not ours to remove."""

    @property
    def live_requests(self) -> list[Row]:
        """Spot requests that may still launch or restart an instance."""
        return [one for one in self.requests if one.get("State") in LIVE_REQUEST_STATES]

    @property
    def live_instances(self) -> list[Row]:
        """Instances that nobody has terminated."""
        return [one for one in self.instances if state_of(one) in LIVE_STATES]

    @property
    def ending_instances(self) -> list[Row]:
        """Instances that are being terminated: their disk and address are still there."""
        return [one for one in self.instances if state_of(one) == SHUTTING_DOWN]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left that bills, or could come back."""
        return not (
            self.live_requests
            or self.live_instances
            or self.ending_instances
            or self.volumes
            or self.groups
            or self.untagged
        )

    @property
    def has_only_groups(self) -> bool:
        """Whether security groups are all that is left."""
        return not self.is_empty and replace(self, groups=[]).is_empty

    def of_run(self, run_id: str) -> Inventory:
        """The part of it that belongs to one run."""
        requests = [one for one in self.requests if run_of(one) == run_id]
        ids = {str(one.get("SpotInstanceRequestId")) for one in requests}
        return Inventory(
            region=self.region,
            instances=[
                one
                for one in self.instances
                if run_of(one) == run_id or str(one.get("SpotInstanceRequestId")) in ids
            ],
            requests=requests,
            volumes=[one for one in self.volumes if run_of(one) == run_id],
            groups=[one for one in self.groups if run_of(one) == run_id],
        )

    def of_node(self, node: int, generation: int | None = None) -> Inventory:
        """The part of a run's that belongs to one node alone, or to one machine of that node.

        A security group that machines share is no part of it, nor one while others are there.
        """

        def mine(row: Row) -> bool:
            is_named = generation in {None, _generation_of(row)}
            return is_named and node_of(row) == node

        requests = [one for one in self.requests if mine(one)]
        ids = {str(one.get("SpotInstanceRequestId")) for one in requests}
        part = Inventory(
            region=self.region,
            instances=[
                one
                for one in self.instances
                if (mine(one) if run_of(one) else str(one.get("SpotInstanceRequestId")) in ids)
            ],
            requests=requests,
            volumes=[one for one in self.volumes if mine(one)],
            untagged=self.untagged,
        )
        if self.nodes() - {node}:
            return part
        return replace(
            part, groups=[one for one in self.groups if mine(one) and not is_shared(one)]
        )

    def nodes(self) -> set[int]:
        """The nodes of a run that have something which bills, or could come back."""
        rows = [*self.live_instances, *self.ending_instances, *self.live_requests, *self.volumes]
        launched = {str(one.get("SpotInstanceRequestId")): node_of(one) for one in self.requests}
        return {
            node_of(one) if run_of(one) else launched.get(str(one.get("SpotInstanceRequestId")), 0)
            for one in rows
        }

    @property
    def has_several(self) -> bool:
        """Whether a run is known to have several machines, or to have had them."""
        return bool(self.nodes() - {0}) or any(is_shared(one) for one in self.groups)

    def runs(self) -> list[str]:
        """The runs that something in it belongs to."""
        rows = [*self.instances, *self.requests, *self.volumes, *self.groups]
        return sorted({run for one in rows if (run := run_of(one))})

    def request_of(self, instance: Mapping[str, Any]) -> Row | None:
        """The spot request that an instance came from; None if it is not among these."""
        id_ = instance.get("SpotInstanceRequestId")
        return next(
            (one for one in self.requests if id_ and one.get("SpotInstanceRequestId") == id_), None
        )

    def views(self) -> list[MachineView]:
        """Its instances with their requests, the one that was launched last first."""
        found = [view_of(one, self.request_of(one)) for one in self.instances]
        return sorted(found, key=lambda one: one.launched_s or 0.0, reverse=True)


@dataclass(frozen=True, kw_only=True)
class Inventories:
    """Reads inventories; changes nothing."""

    context: AwsContext

    def instance(self, region: str, instance_id: str) -> Row | None:
        """Look at one instance by its id; None if EC2 does not list it."""
        filters = [_filter("instance-id", instance_id)]
        found = self._instances(region, filters, doing=f"look at `{instance_id}`")
        return found[0] if found else None

    def request(
        self,
        region: str,
        *,
        request_id: str = "",
        instance_id: str = "",
        run_id: str = "",
        node: int = 0,
    ) -> Row | None:
        """Look at one spot request, by its id or by an instance of it, or at those of a node.

        The newest is taken; None if there is none.
        """
        by = (
            ("spot-instance-request-id", request_id)
            if request_id
            else ("instance-id", instance_id)
            if instance_id
            else (f"tag:{RUN}", run_id)
        )
        found = self._requests(region, [_filter(*by)], doing="look at the spot request")
        if not (request_id or instance_id):
            found = [one for one in found if node_of(one) == node]
        return max(found, key=lambda one: str(one.get("CreateTime") or ""), default=None)

    def live_requests(self, region: str, run_id: str, node: int) -> list[Row]:
        """The spot requests of a node in a region that may still launch or restart an instance."""
        mine = [_filter(f"tag:{RUN}", run_id)]
        found = self._requests(region, mine, doing=f"list the spot requests in {region}")
        live = Inventory(region=region, requests=found).live_requests
        return [one for one in live if node_of(one) == node]

    def live_instances_of(self, region: str, request_ids: Sequence[str]) -> list[str]:
        """The ids of instances of these spot requests that nobody has terminated."""
        filters = [_filter("spot-instance-request-id", *request_ids)]
        found = self._instances(region, filters, doing=f"list the machines in {region}")
        live = Inventory(region=region, instances=found).live_instances
        return _ids("InstanceId", live)

    def groups(self, region: str, run_id: str) -> list[Row]:
        """The security groups of a run in a region."""
        return self._groups(region, _filter(f"tag:{RUN}", run_id), "")

    def of_run(self, region: str, run_id: str, ids: Mapping[str, str] | None = None) -> Inventory:
        """Everything of one run in a region; `ids` as a record holds them are looked up, too."""
        recorded = dict(ids or {})
        every = self._inventory(region, _filter(f"tag:{RUN}", run_id), recorded)
        mine = every.of_run(run_id)
        lost = [
            one
            for one in every.instances
            if one not in mine.instances
            and state_of(one) in LIVE_STATES
            and one.get("InstanceId") == recorded.get("instance")
        ]
        return replace(mine, untagged=lost)

    def of_account(self, region: str) -> Inventory:
        """Everything of ours in a region."""
        return self._inventory(region, _filter("tag-key", RUN), {})

    def search(self, region: str, run_id: str = "") -> Inventory:
        """Everything of ours in a region, or of one run: one request where there is nothing.

        `DescribeTags` covers all kinds at once; without the right to it each kind is listed.
        """
        filters = [_filter("key", RUN)]
        if run_id:
            filters.append(_filter("value", run_id))
        try:
            tags = self.context.clients.pages(
                "ec2",
                region,
                "describe_tags",
                "Tags",
                doing=f"look for what is ours in {region}",
                Filters=filters,
            )
        except SignedOut:
            raise
        except NotAllowed:
            tags = [{}]
        if not tags:
            return Inventory(region=region)
        return self.of_run(region, run_id) if run_id else self.of_account(region)

    def in_regions(
        self, regions: Sequence[str], look: Callable[[str], Inventory]
    ) -> list[Inventory | Exception]:
        """Look at several regions at once; what was raised stands in the place of its answer."""
        answers: dict[str, Inventory | Exception] = {}

        def ask(region: str) -> None:
            try:
                answers[region] = look(region)
            except Exception as error:  # noqa: BLE001  (handed to the caller, who raises it)
                answers[region] = error

        run_all([partial(ask, one) for one in regions], [], wait_s=REGIONS_WAIT_S)
        late = f"was silent for {REGIONS_WAIT_S:.0f} s"
        return [answers.get(one) or Transient(f"the region {one} {late}") for one in regions]

    def enabled_regions(self) -> list[str]:
        """The regions that the account has enabled."""
        answer = self.context.clients.call(
            "ec2", "us-east-1", "describe_regions", doing="list the regions of the account"
        )
        return sorted(str(one.get("RegionName")) for one in answer.get("Regions") or [])

    # ---- the single looks ----

    def _inventory(self, region: str, mine: dict[str, Any], ids: dict[str, str]) -> Inventory:
        asks = "SpotInstanceRequestId"
        requests = self._requests(region, [mine], doing=f"list the spot requests in {region}")
        if _is_missing(ids.get("request"), asks, requests):
            by_id = [_filter("spot-instance-request-id", ids["request"])]
            requests += self._requests(region, by_id, doing="look at the spot request")
        doing = f"list the machines in {region}"
        instances = self._instances(region, [mine], doing=doing)
        for some in _by_chunks(_ids(asks, requests)):
            of_requests = [_filter("spot-instance-request-id", *some)]
            instances += self._instances(region, of_requests, doing=doing)
        if _is_missing(ids.get("instance"), "InstanceId", instances):
            by_id = [_filter("instance-id", ids["instance"])]
            instances += self._instances(region, by_id, doing=doing)
        return Inventory(
            region=region,
            instances=_unique("InstanceId", instances),
            requests=_unique(asks, requests),
            volumes=self.context.clients.pages(
                "ec2",
                region,
                "describe_volumes",
                "Volumes",
                doing=f"list the disks in {region}",
                Filters=[mine],
            ),
            groups=self._groups(region, mine, ids.get("group", "")),
        )

    def _instances(self, region: str, filters: Filters, *, doing: str) -> list[Row]:
        rows = self.context.clients.pages(
            "ec2", region, "describe_instances", "Reservations", doing=doing, Filters=filters
        )
        return instances_of(rows)

    def _requests(self, region: str, filters: Filters, *, doing: str) -> list[Row]:
        try:
            return self.context.clients.pages(
                "ec2",
                region,
                "describe_spot_instance_requests",
                "SpotInstanceRequests",
                doing=doing,
                Filters=filters,
            )
        except NotYetVisibleError:
            return []

    def _groups(self, region: str, mine: dict[str, Any], recorded: str) -> list[Row]:
        doing = f"list the security groups in {region}"

        def listed(one: dict[str, Any]) -> list[Row]:
            return self.context.clients.pages(
                "ec2",
                region,
                "describe_security_groups",
                "SecurityGroups",
                doing=doing,
                Filters=[one],
            )

        rows = listed(mine)
        if _is_missing(recorded, "GroupId", rows):
            rows += listed(_filter("group-id", recorded))
        return _unique("GroupId", rows)


def _filter(name: str, *values: str) -> dict[str, Any]:
    return {"Name": name, "Values": list(values)}


def _ids(key: str, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(one.get(key)) for one in rows if one.get(key)})


def _is_missing(id_: str | None, key: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether something on record is not among what was listed by tag."""
    return bool(id_) and all(one.get(key) != id_ for one in rows)


def _by_chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    """Ids in lists that one filter may hold."""
    return [ids[at : at + FILTER_VALUES_MAX] for at in range(0, len(ids), FILTER_VALUES_MAX)]


def _unique(key: str, rows: Iterable[Row]) -> list[Row]:
    return list({str(one.get(key)): one for one in rows}.values())


def _generation_of(row: Row) -> int | None:
    """The generation that something carries as a tag; None if it carries none."""
    text = tags_of_answer(row).get(GENERATION, "")
    return int(text) if text.isdigit() else None
