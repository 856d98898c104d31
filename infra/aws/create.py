"""Creates one persistent spot machine under a hard cap, or nothing that bills.

The order in which nothing can be lost: the record names the place before anything is made; the
security group comes first, because its name is unique and so shows a second computer that somebody
was here before; the exact request is on disk before it is sent, so that after a kill it can be sent
again and is answered with the same machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infra.aws.acceptance import Acceptance
from infra.aws.context import AwsContext
from infra.aws.delete import Deleter, close_record
from infra.aws.errors import TokenReusedError, TokenSpentError
from infra.aws.existing import ExistingMachines, ids_of
from infra.aws.image import ImageFinder
from infra.aws.machine_view import tags_of_answer
from infra.aws.mates import FIRST, Mates, MatesFinder
from infra.aws.naming import (
    LEFT,
    SEVERAL,
    TAG_NAME_CHARS_MAX,
    client_token,
    group_name,
    node_tags,
)
from infra.aws.network import SubnetFinder
from infra.aws.observe import VmObserver
from infra.aws.quota import explained, read_quota
from infra.aws.reading import NEW_S
from infra.aws.refused_requests import RefusedRequests
from infra.aws.request import (
    LaunchTarget,
    check_spec,
    disk_gb,
    disk_note,
    idle_usd_per_h,
    run_instances_body,
)
from infra.aws.safeguards import AwsSafeguards
from infra.aws.security_group import SecurityGroups, specify
from infra.aws.vm import vm_from_instance
from infra.catalog.aws import AWS
from infra.errors import (
    PASSING,
    NoCapacity,
    OverQuota,
    PriceAboveCap,
    ProviderError,
    SignedOut,
    Transient,
)
from infra.provider import Vm, VmSpec
from infra.renting.caller import source_prefix
from infra.renting.refusal_cache import RefusalCache
from infra.renting.run_record import RunRecord
from infra.renting.tags import tags_of
from infra.timestamps import format_utc
from infra.untrusted import table

ATTEMPTS_MAX = 20
"""Machines of one generation that may have died in a zone before something else must be wrong."""


@dataclass(frozen=True, kw_only=True)
class VmCreator:
    """Creates the machine of a spec, in an order in which nothing can be lost."""

    context: AwsContext
    observer: VmObserver
    deleter: Deleter
    safeguards: AwsSafeguards
    refused_requests: RefusedRequests
    refusal_cache: RefusalCache

    def create(self, spec: VmSpec) -> Vm:
        """Create the machine of `spec`, or return the one that exists; on errors nothing is left.

        Returns when the machine runs, or when EC2 has accepted it and not taken it back for
        `accept_wait_s`. A refusal is raised at once: a spot request that it left open, and that
        EC2 shows only later, is cancelled by later calls. A `Transient` or `SignedOut` error leaves
        a half-made machine on purpose: the next call goes on from there.
        """
        check_spec(spec)
        self._repeat_pending_request(spec)
        self.refused_requests.cancel(spec.run_id, node=spec.node, early=True)
        existing = self._existing.find(spec)
        if existing is not None:  # wherever it is: what is compared is what it costs, not its place
            there = replace(spec.offer, region=existing.region, zone=existing.zone)
            spec = replace(spec, offer=there)
            self._join(spec, existing)
        mates = Mates() if existing else self._mates.find(spec)
        spec = mates.joined_by(spec)
        try:
            return self._acceptance.finish(spec, existing or self._rent(spec, mates))
        except (Transient, SignedOut):
            raise
        except ProviderError as error:
            refusal = self._with_figures(spec, error)
            self._give_up(spec, refusal)
            raise refusal from error.__cause__

    def _join(self, spec: VmSpec, vm: Vm) -> None:
        """Let a machine that exists have mates, where it was made alone."""
        if spec.nodes == 1:
            return
        self._mates.share(vm)
        record = self.context.record(spec.run_id, spec.node)
        if record.generation == vm.generation and record.ids.get(SEVERAL) != str(spec.nodes):
            record.ids[SEVERAL] = str(spec.nodes)
            record.save()

    def _repeat_pending_request(self, spec: VmSpec) -> None:
        """Send a request again whose answer was not seen: EC2 answers with the same machine.

        An older one needs no answer: what it made is in every list by now.
        """
        record = self.context.record(spec.run_id, spec.node)
        if not record.pending_request:
            return
        if record.generation != spec.generation:
            self.deleter.clear(spec.run_id, node=spec.node, keeps_groups=spec.nodes > 1)
            return
        if self.context.clock() - record.requested_at < NEW_S:
            try:
                self._send(record, record.pending_request)
            except (Transient, SignedOut):
                raise
            except ProviderError as error:  # there is no machine: a new request says why again
                self._note_refusal(record, error)
        record.pending_request = {}
        record.save()

    def _rent(self, spec: VmSpec, mates: Mates) -> Vm:
        """Make what a machine needs, then ask for it; returns as soon as EC2 has accepted it."""
        region = spec.offer.region
        record = self._begin_record(spec)
        image = ImageFinder(context=self.context).find(region, pinned=record.ids.get("image", ""))
        finder = SubnetFinder(context=self.context)
        subnet = finder.find(region, spec.offer.zone, mates=mates.subnet)
        tags = tags_of(
            replace(spec, offer=replace(spec.offer, zone=subnet.zone)),
            created_at=format_utc(self.context.clock()),
            idle_usd_per_h=idle_usd_per_h(spec, disk_gb(spec, image)),
            name_chars_max=TAG_NAME_CHARS_MAX,
        )
        source = source_prefix(self.context.caller())
        is_resumed = "group_name" in record.ids
        record.ids |= {"image": image.id, "zone": subnet.zone}
        shared = mates.group_in(subnet.vpc)
        name = group_name(spec.run_id, spec.generation if spec.nodes == 1 else FIRST)
        record.ids["group_name"] = name = str(shared["GroupName"]) if shared else name
        record.save()
        groups = SecurityGroups(context=self.context)
        group, is_new = (
            (str(shared["GroupId"]), False)
            if shared
            else groups.create(region, subnet.vpc, name=name, run_id=spec.run_id, tags=tags)
        )
        record.ids["group"] = group
        record.caller, record.caller_at = source, self.context.clock()
        record.save()
        is_alone = spec.nodes == 1  # else the group says only that there are mates
        if is_alone and not is_new and not is_resumed and self._existing.appears(spec):
            return self._existing.find(spec) or self._rent(spec, mates)
        groups.allow_source(region, group, source)
        if not is_alone:
            groups.share(region, group)
        target = LaunchTarget(image=image, subnet=subnet, group=group)
        return self._launch(spec, record, target, tags | node_tags(spec.node))

    def _begin_record(self, spec: VmSpec) -> RunRecord:
        """The record of this create; what it says of another machine or place is dropped."""
        record, region = self.context.record(spec.run_id, spec.node), spec.offer.region
        before = record.ids.get("region", region)
        if record.generation != spec.generation or before != region or "region" not in record.ids:
            left = {*record.ids.get(LEFT, "").split(), before} - {region}
            record = record.renewed(spec.generation)
            if spec.nodes > 1 and left:
                record.ids[LEFT] = " ".join(sorted(left))
        record.ids |= {
            "account": self.context.account(),
            "profile": self.context.settings.profile,
            "region": region,
        }
        if spec.nodes > 1:
            record.ids[SEVERAL] = str(spec.nodes)
        for key in ("instance", "request"):
            record.ids.pop(key, None)
        record.save()
        return record

    def _launch(
        self, spec: VmSpec, record: RunRecord, target: LaunchTarget, tags: Mapping[str, str]
    ) -> Vm:
        """Ask for the machine, with the first token whose machine is not dead."""
        zone = target.subnet.zone
        for attempt in range(1, ATTEMPTS_MAX + 1):
            token = client_token(spec.run_id, spec.generation, zone, attempt, spec.node)
            body = run_instances_body(spec, target, tags=tags, token=token)
            try:
                row = self._send(record, body)
            except TokenSpentError:
                continue
            except TokenReusedError:  # by a process whose record is lost
                if self._existing.appears(spec, token=token) and (vm := self._existing.find(spec)):
                    return vm
                continue
            made = vm_from_instance(
                {**row, **specify(tags, "instance")},
                account=self.context.account(),
                region=spec.offer.region,
                settings=self.context.settings,
            )
            if made is not None:
                return replace(made, note=disk_note(spec, target.image))
        raise NoCapacity(
            f"{ATTEMPTS_MAX} machines of this run have ended in {zone} before they were used",
            hint="another zone is tried; `vm.regions` names more of them",
        )

    def _send(self, record: RunRecord, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send the request, recorded before and after; return the machine that EC2 describes."""
        record.pending_request = dict(body)
        record.note("create", self.context.clock())
        doing = f"rent {body['InstanceType']} in {record.ids.get('zone')}"
        answer = self.context.clients.call(
            "ec2", record.ids["region"], "run_instances", doing=doing, once=True, **body
        )
        rows = answer.get("Instances") or []
        if not rows:
            raise Transient(f"cannot {doing} just now: EC2 answered without a machine")
        record.ids |= ids_of(rows[0])
        record.pending_request = {}
        record.save()
        return table(rows[0])

    def _with_figures(self, spec: VmSpec, error: ProviderError) -> ProviderError:
        """A refusal with the price or the quota of now, where EC2 named none."""
        offer = spec.offer
        if isinstance(error, PriceAboveCap) and error.current_usd_per_h is None:
            error.current_usd_per_h = self.observer.price_now(offer.size, offer.region, offer.zone)
        listed = AWS.find(offer.size)
        if not isinstance(error, OverQuota) or listed is None:
            return error
        try:
            quota = read_quota(self.context.clients, offer.region)
        except ProviderError:  # no right to read it: the refusal stays as it came
            return error
        return explained(error, quota, listed.vcpus)

    def _give_up(self, spec: VmSpec, error: ProviderError) -> None:
        """Remove what a failed create made; a failure of that is added to the first one.

        Where another offer may be tried, what EC2 does not show yet is left to the next call.
        """
        self.refusal_cache.note(spec.offer, error)
        record = self.context.record(spec.run_id, spec.node)
        if not {"group_name", "instance"} & set(record.ids):
            close_record(record, may_leave_groups=spec.nodes > 1)
            return
        if record.pending_request:
            self._note_refusal(record, error)
        may_try_another = isinstance(error, PASSING)
        remove = self.deleter.clear if may_try_another else self.deleter.remove_node
        try:
            remove(spec.run_id, node=spec.node, keeps_groups=spec.nodes > 1)
        except ProviderError as second:
            error.unfinished = True
            error.add_note(f"removing what had been made failed too: {second}")
            error.hint = f"{error.hint}; `qft down --delete` removes what is left".lstrip("; ")

    def _note_refusal(self, record: RunRecord, error: ProviderError) -> None:
        """Record that a request made no machine, and may have left a spot request open."""
        tags = tags_of_answer(record.pending_request["TagSpecifications"][0])
        record.pending_request = {}
        record.refusal = [error.kind, str(error), error.hint]
        self.refused_requests.note(record, tags)

    @property
    def _existing(self) -> ExistingMachines:
        return ExistingMachines(context=self.context, observer=self.observer, deleter=self.deleter)

    @property
    def _mates(self) -> MatesFinder:
        return MatesFinder(context=self.context)

    @property
    def _acceptance(self) -> Acceptance:
        return Acceptance(context=self.context, observer=self.observer, safeguards=self.safeguards)
