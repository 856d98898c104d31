"""A spot machine under a hard cap, or nothing that bills; never two, killed wherever it may be."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.azure import network
from infra.azure import vm as machine
from infra.azure.auto_shutdown import Watchdog
from infra.azure.context import Account
from infra.azure.delete import Teardown
from infra.azure.errors import AlreadyThereError, Fault, ImageRefusedError, translate
from infra.azure.images import image_for, refuses_security
from infra.azure.naming import (
    ADDRESS,
    CARD,
    DISK,
    FIREWALL,
    GENERATION,
    NETWORK,
    VM,
    Names,
    check_subscription,
    idle_usd_per_h,
    is_of_run,
    tags_of,
    told_by,
    vm_from_tags,
)
from infra.azure.observe import Looking
from infra.azure.refusal_cache import Memory
from infra.azure.registration import ensure_registered
from infra.azure.run_record import RunRecord
from infra.provider import (
    BadRequest,
    Gone,
    NoCapacity,
    NotAllowed,
    Observation,
    PowerState,
    ProviderError,
    SignedOut,
    Transient,
    Vm,
    VmSpec,
)
from infra.timestamps import format_utc

if TYPE_CHECKING:
    from infra.azure.sdk import Operation

NETWORK_WAIT_S = 300.0
NAMESPACES = ("Microsoft.Compute", "Microsoft.Network")


@dataclass(frozen=True, kw_only=True)
class Creation:
    """Makes the machine of a spec, in an order in which nothing can be lost."""

    account: Account
    looking: Looking
    teardown: Teardown
    watchdog: Watchdog
    memory: Memory

    def create(self, spec: VmSpec) -> Vm:
        """The machine of `spec`, the one that exists already, or an error and nothing left.

        Returns when ARM has accepted the machine and has not refused it for `accept_wait_s`. A
        `Transient` or `SignedOut` error leaves a half-made machine on purpose: the next call goes
        on from there.
        """
        machine.check(spec)
        names = self.account.names(spec.run_id, spec.generation)
        known = self.account.record(spec.run_id).ids.get("group", "")
        check_subscription(known, names.subscription_id)
        existing = self._existing(spec)
        if existing is not None:
            return existing
        record = self._begin_record(spec, names)
        try:
            vm = self._make(spec, names, record)
        except (Transient, SignedOut):
            raise
        except Gone as error:
            gone = NoCapacity(
                f"the machine was taken away while it was being made ({error})",
                hint="evictions can come that early; the next offer is tried",
            )
            self.memory.note(spec.offer, gone)
            self._clean_up(spec.run_id, gone)
            raise gone from error
        except ProviderError as error:
            self.memory.note(spec.offer, error)
            self._clean_up(spec.run_id, error)
            raise
        record = self.account.record(spec.run_id)
        return replace(vm, host=record.address)

    def _existing(self, spec: VmSpec) -> Vm | None:
        """The run's machine if it stands; an unusable one of an earlier generation is removed."""
        group = self.teardown.settled_group(spec.run_id)
        if group is None:
            return None
        tags = group.get("tags") or {}
        found = vm_from_tags(
            tags,
            subscription_id=self.account.settings.subscription_id,
            power=PowerState.CREATING,
        )
        if found is None or found.run_id != spec.run_id:
            raise NotAllowed(
                f"the resource group `{group.get('name')}` exists and does not carry our tag",
                hint="rename the run with `name:`, or remove that group yourself",
            )
        seen = self.looking.observe(found)
        if found.generation == spec.generation:
            return self._same_generation(spec, _as_seen(found, seen))
        if seen.power in {PowerState.CREATING, PowerState.STARTING, PowerState.RUNNING}:
            return _as_seen(found, seen)
        self.teardown.remove(spec.run_id)
        return None

    def _same_generation(self, spec: VmSpec, found: Vm) -> Vm | None:
        """A machine that this very create made earlier: take it, or finish what failed."""
        if found.power in {PowerState.REMNANTS, PowerState.GONE}:
            return None
        if found.power is PowerState.FAILED:
            self.teardown.remove(spec.run_id)
            return None
        if found.power is PowerState.CREATING:
            # `_make` resumes, by token or by looking; but a machine that is being made with keys
            # that this caller does not know is somebody else's, and is only reported.
            return None if _same_key(found.host_public_key, spec.host_public_key) else found
        answer = self._get(self.account.names(spec.run_id, spec.generation))
        if machine.not_as_asked(answer, spec):  # such as under a cap that was changed since
            self.teardown.remove(spec.run_id)
            return None
        return found

    def _begin_record(self, spec: VmSpec, names: Names) -> RunRecord:
        record = self.account.record(spec.run_id)
        if record.generation != spec.generation:
            record = replace(RunRecord(path=record.path), generation=spec.generation)
        record.ids |= {
            "group": names.group_id,
            "vm": names.vm_id,
            "disk": names.id_of(DISK, names.disk),
            "card": names.id_of(CARD, names.card),
            "address": names.id_of(ADDRESS, names.address),
            "firewall": names.id_of(FIREWALL, names.firewall),
            "network": names.id_of(NETWORK, names.network),
        }
        record.note("create", self.account.clock())
        return record

    def _make(self, spec: VmSpec, names: Names, record: RunRecord) -> Vm:
        ensure_registered(self.account, NAMESPACES)
        source = network.source_prefix(self.account.caller())
        tags = tags_of(spec, created_at=format_utc(self.account.clock()))
        tags = self._group(spec, names, tags)
        if "vm" not in record.tokens:
            self._network(spec, names, record, tags=tags, source=source)
        return self._machine(spec, names, record, tags)

    def _group(self, spec: VmSpec, names: Names, tags: dict[str, str]) -> dict[str, str]:
        """The group with the intent in its tags, before anything that bills; the tags it has."""
        groups = self.account.arm.resources.resource_groups
        body = {"location": spec.offer.region, "tags": tags}
        with contextlib.suppress(Gone):
            found = self.account.arm.call("look at the resource group", groups.get, names.group)
            known = told_by(found.get("tags"))
            same_key = _same_key(known.get("qft-host-key", ""), spec.host_public_key)
            if same_key and known.get(GENERATION) == str(spec.generation):
                return known
            body["location"] = found["location"]  # a group cannot move; what is in it may differ
        self.account.arm.call(
            f"make the resource group `{names.group}`", groups.create_or_update, names.group, body
        )
        return tags

    # ---- network ----

    def _network(
        self, spec: VmSpec, names: Names, record: RunRecord, *, tags: dict[str, str], source: str
    ) -> None:
        client = self.account.arm.network
        region = spec.offer.region
        record.caller, record.caller_at = source, self.account.clock()
        parts = [
            Part(
                key="firewall",
                name=names.firewall,
                client=client.network_security_groups,
                body=network.firewall(region=region, tags=tags, source=source),
            ),
            Part(
                key="network",
                name=names.network,
                client=client.virtual_networks,
                body=network.network(region=region, tags=tags),
            ),
            Part(
                key="address",
                name=names.address,
                client=client.public_ip_addresses,
                body=network.address(region=region, tags=tags),
            ),
        ]
        waiting = [(part.key, self._put(record, names, part)) for part in parts]
        for key, operation in waiting:
            self._settle(record, key, operation)
        card = Part(
            key="card",
            name=names.card,
            client=client.network_interfaces,
            body=network.card(
                region=region,
                tags=tags,
                subnet_id=f"{names.id_of(NETWORK, names.network)}/subnets/{network.SUBNET}",
                address_id=names.id_of(ADDRESS, names.address),
                firewall_id=names.id_of(FIREWALL, names.firewall),
            ),
        )
        self._settle(record, "card", self._put(record, names, card))
        self.looking.address(record, names)

    def _put(self, record: RunRecord, names: Names, part: Part) -> Operation:
        def begin(token: str) -> Operation:
            more = {"continuation_token": token} if token else {}
            return self.account.arm.begin(
                f"make the {part.key}",
                part.client.begin_create_or_update,
                names.group,
                part.name,
                part.body,
                **more,
            )

        return self.account.pursue(record, part.key, begin)

    def _settle(self, record: RunRecord, key: str, operation: Operation) -> None:
        try:
            done = self.account.settle(record, key, operation, wait_s=NETWORK_WAIT_S)
        except Gone as error:  # the operation's page expired: the PUT is repeated, harmlessly
            self.account.finished(record, key)
            raise Transient(f"Azure forgot how making the {key} went: it is asked again") from error
        if not done:
            raise Transient(f"Azure has been making the {key} for {NETWORK_WAIT_S:.0f} s")
        self.account.finished(record, key)

    # ---- machine ----

    def _machine(self, spec: VmSpec, names: Names, record: RunRecord, tags: dict[str, str]) -> Vm:
        settings = self.account.settings
        doing = f"rent {spec.offer.size} in {spec.offer.place}"
        make = machine.Make(
            image=image_for(spec.offer.size, settings.image),
            disk_sku=settings.disk_sku,
            identity=settings.self_release,
            arm=settings.arm_endpoint,
            audience=settings.audience,
        )
        body = machine.body(spec, names=names, tags=tags, make=make)
        done = False
        try:
            operation = self.account.pursue(
                record, "vm", lambda token: self._begin_machine(doing, names, body, token)
            )
            self._verify(spec, self._get(names))  # an answer to a PUT may echo what was asked
            self._protect(spec, names, tags)
            done = self.account.settle(
                record, "vm", operation, wait_s=self.account.settings.accept_wait_s
            )
            self.looking.orders.learn(record, operation, done=done)
            if done:
                self._verify(spec, operation.answer)
        except ImageRefusedError as error:
            raise error.naming(machine.urn_of(body)) from error
        except (AlreadyThereError, Gone):
            # Made by a request whose answer was lost, or the operation's page has expired.
            self.account.finished(record, "vm")
            done = self._follow(doing, spec, names)
        if done:
            self.account.finished(record, "vm")
        return self._accepted(spec, names, tags, done=done)

    def _begin_machine(
        self, doing: str, names: Names, body: dict[str, Any], token: str
    ) -> Operation:
        from infra.azure.sdk import IF_MISSING

        more = {"continuation_token": token} if token else {"match_condition": IF_MISSING}
        machines = self.account.arm.compute.virtual_machines
        ask = (doing, machines.begin_create_or_update, names.group, names.vm)
        try:
            return self.account.arm.begin(*ask, body, **more)
        except ProviderError as error:
            # Sizes and images that know no Trusted Launch have no Secure Boot to switch off either.
            if "securityProfile" not in body["properties"] or not refuses_security(str(error)):
                raise
            del body["properties"]["securityProfile"]
        return self.account.arm.begin(*ask, body, **more)

    def _follow(self, doing: str, spec: VmSpec, names: Names) -> bool:
        """Watch a machine whose operation we do not hold; whether it is made within the wait."""
        deadline = self.account.clock() + self.account.settings.accept_wait_s
        while True:
            answer = self._get(names)
            if not is_of_run(answer.get("tags"), spec.run_id):
                raise NotAllowed(f"`{names.vm}` exists and does not carry our tag")
            self._verify(spec, answer)
            made = str((answer.get("properties") or {}).get("provisioningState")).lower()
            if made in {"failed", "canceled"}:
                code, message = machine.failure_of(answer)
                raise translate(Fault(code=code, message=message, status=200), doing=doing)
            if made == "succeeded":
                return True
            if self.account.clock() >= deadline:
                return False
            self.account.sleep(self.account.settings.polling_s)

    def _get(self, names: Names) -> dict[str, Any]:
        machines = self.account.arm.compute.virtual_machines
        return dict(
            self.account.arm.call(
                "look at the machine", machines.get, names.group, names.vm, expand="instanceView"
            )
        )

    def _protect(self, spec: VmSpec, names: Names, tags: dict[str, str]) -> None:
        """Set what ends the bill without us while we are sure to be alive: the machine bills."""
        if spec.until_s is None:
            return
        vm = self._accepted(spec, names, tags, done=False)
        self.watchdog.set_safeguards(vm, until_s=spec.until_s)

    @staticmethod
    def _verify(spec: VmSpec, answer: dict[str, Any]) -> None:
        wrong = machine.not_as_asked(answer, spec) if answer else ""
        if wrong:
            raise BadRequest(
                f"Azure made a machine that was not asked for: {wrong}; it is removed",
                hint="this would cost more than you allowed: please report it",
            )

    def _accepted(self, spec: VmSpec, names: Names, tags: dict[str, str], *, done: bool) -> Vm:
        return Vm(
            provider="azure",
            run_id=spec.run_id,
            id=names.id_of(VM, names.vm),
            region=spec.offer.region,
            size=spec.offer.size,
            zone=spec.offer.zone,
            generation=spec.generation,
            user=spec.user,
            host_public_key=spec.host_public_key,
            port=self.account.settings.ssh_port,
            metadata_url=self.account.settings.metadata_url,
            power=PowerState.RUNNING if done else PowerState.CREATING,
            created_at=tags["qft-created"],
            price_usd_per_h=spec.offer.spot_usd_per_h,
            idle_usd_per_h=idle_usd_per_h(spec.disk_gb),
        )

    def _clean_up(self, run_id: str, error: ProviderError) -> None:
        """Remove what a failed create made; a failure of that is told beside the first one."""
        try:
            self.teardown.remove(run_id)
        except ProviderError as second:
            error.unfinished = True
            error.add_note(f"removing what had been made failed too: {second}")
            error.hint = f"{error.hint}; `qft down --delete` removes what is left".lstrip("; ")


def _same_key(one: str, other: str) -> bool:
    """Whether two public lines are one key, whatever their comments."""
    return one.split()[:2] == other.split()[:2]


def _as_seen(vm: Vm, seen: Observation) -> Vm:
    return replace(
        vm, host=seen.host, port=seen.port, power=seen.power, metadata_url=seen.metadata_url
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of the network: what it is called, who makes it, and from what."""

    key: str
    name: str
    client: Any
    body: dict[str, Any]
