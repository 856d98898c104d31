"""Creates one spot machine under a hard cap, or nothing that bills, wherever it is killed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.azure.auto_shutdown import AzureSafeguards
from infra.azure.context import AzureContext
from infra.azure.delete import Deleter
from infra.azure.errors import AlreadyThereError, AzureErrorInfo, ImageRefusedError, translate
from infra.azure.existing import ExistingMachines
from infra.azure.group_tags import shared_tags
from infra.azure.naming import (
    DISK,
    NIC,
    NODE,
    NSG,
    PUBLIC_IP,
    TAG_NAME_CHARS_MAX,
    VM,
    VNET,
    Names,
    check_subscription,
    idle_usd_per_h,
)
from infra.azure.network import NetworkCreator
from infra.azure.observe import VmObserver
from infra.azure.permissions import ensure_registered
from infra.azure.remove import MachineRemover
from infra.azure.run_group import RunGroup, is_made_for, locked_group
from infra.azure.vm import (
    VmOptions,
    check_spec,
    difference_from,
    failure_of,
    image_for,
    refuses_security,
    urn_of,
    vm_body,
    vm_from_answer,
)
from infra.errors import (
    BadRequest,
    Gone,
    NoCapacity,
    NotAllowed,
    ProviderError,
    SignedOut,
    Transient,
)
from infra.provider import PowerState, Vm, VmSpec
from infra.renting.caller import source_prefix
from infra.renting.refusal_cache import RefusalCache
from infra.renting.run_record import RunRecord
from infra.renting.tags import is_of_run, lower_case_names, tags_of
from infra.timestamps import format_utc

if TYPE_CHECKING:
    from infra.azure.sdk import Operation

NAMESPACES = ("Microsoft.Compute", "Microsoft.Network")


@dataclass(frozen=True, kw_only=True)
class VmCreator:
    """Creates the machine of a spec, in an order in which nothing can be lost."""

    context: AzureContext
    observer: VmObserver
    deleter: Deleter
    remover: MachineRemover
    safeguards: AzureSafeguards
    refusal_cache: RefusalCache

    def create(self, spec: VmSpec) -> Vm:
        """Create the machine of `spec`, or return the one that exists; on errors nothing is left.

        Returns when ARM has accepted the machine and has not refused it for `accept_wait_s`. A
        `Transient` or `SignedOut` error leaves a half-made machine on purpose: the next call goes
        on from there.
        """
        check_spec(spec)
        names = self.context.names(spec.run_id, spec.generation, spec.node)
        group_id = self.context.record(spec.run_id, spec.node).ids.get("group", "")
        check_subscription(group_id, names.subscription_id)
        existing, several = self._existing.find(spec)
        if existing is not None:
            return existing
        record = self._begin_record(spec, names)
        try:
            vm = self._create_parts(spec, names, record, several=several)
        except (Transient, SignedOut):
            raise
        except Gone as error:
            gone = NoCapacity(
                f"the machine was taken away while it was being made ({error})",
                hint="evictions can come that early; the next offer is tried",
            )
            self.refusal_cache.note(spec.offer, gone)
            self._clean_up(names, gone, several=several)
            raise gone from error
        except ProviderError as error:
            self.refusal_cache.note(spec.offer, error)
            self._clean_up(names, error, several=several)
            raise
        record = self.context.record(spec.run_id, spec.node)
        return replace(vm, host=record.address, private_host=record.private_address)

    def _begin_record(self, spec: VmSpec, names: Names) -> RunRecord:
        record = self.context.record(spec.run_id, spec.node)
        if record.generation != spec.generation:
            record = replace(RunRecord(path=record.path), generation=spec.generation)
        record.ids |= {
            "group": names.group_id,
            "vm": names.vm_id,
            "disk": names.id_of(DISK, names.disk),
            "card": names.id_of(NIC, names.nic),
            "address": names.id_of(PUBLIC_IP, names.public_ip),
            "firewall": names.id_of(NSG, names.nsg),
            "network": names.id_of(VNET, names.vnet),
        }
        record.note("create", self.context.clock())
        return record

    def _create_parts(self, spec: VmSpec, names: Names, record: RunRecord, *, several: bool) -> Vm:
        ensure_registered(self.context, NAMESPACES)
        source = source_prefix(self.context.caller())
        tags = tags_of(
            spec,
            created_at=format_utc(self.context.clock()),
            idle_usd_per_h=idle_usd_per_h(spec.disk_gb),
            name_chars_max=TAG_NAME_CHARS_MAX,
        )
        region, network = spec.offer.region, NetworkCreator(context=self.context)
        if several:
            names, tags = self._join(spec, names, record, tags, source=source)
        else:
            tags = self._group(spec, names, tags)
        if "vm" not in record.tokens:
            if several:
                network.create_own(record, names, region=region, tags=tags)
            else:
                network.create(record, names, region=region, tags=tags, source=source)
            self.observer.address(record, names)
        if several:
            self.observer.private_address(record, names)
        return self._create_vm(spec, names, record, tags)

    def _join(
        self, spec: VmSpec, names: Names, record: RunRecord, tags: dict[str, str], *, source: str
    ) -> tuple[Names, dict[str, str]]:
        """Join the run's group, and create what its machines share unless a mate has done so.

        One machine at a time: those that come meanwhile find it made. Returns as `RunGroup.join`.
        """
        if spec.node:
            tags = tags | {NODE: str(spec.node)}
        with locked_group(names):
            names, tags = self._run_group.join(spec, names, record, tags)
            if "vm" not in record.tokens:
                NetworkCreator(context=self.context).create_shared(
                    record,
                    names,
                    region=spec.offer.region,
                    tags=shared_tags(tags, names),
                    source=source,
                )
        return names, tags

    @property
    def _run_group(self) -> RunGroup:
        return self.remover.group

    @property
    def _existing(self) -> ExistingMachines:
        return ExistingMachines(
            context=self.context,
            observer=self.observer,
            deleter=self.deleter,
            remover=self.remover,
        )

    def _group(self, spec: VmSpec, names: Names, tags: dict[str, str]) -> dict[str, str]:
        """Create the group, tagged before anything bills; returns the tags it has."""
        groups = self.context.arm.resources.resource_groups
        body = {"location": spec.offer.region, "tags": tags}
        with contextlib.suppress(Gone):  # not made yet
            found = self.context.arm.call("look at the resource group", groups.get, names.group)
            existing_tags = lower_case_names(found.get("tags"))
            if is_made_for(existing_tags, spec):
                return existing_tags
            body["location"] = found["location"]  # a group cannot move; what is in it may differ
        self.context.arm.call(
            f"make the resource group `{names.group}`", groups.create_or_update, names.group, body
        )
        return tags

    # ---- machine ----

    def _create_vm(self, spec: VmSpec, names: Names, record: RunRecord, tags: dict[str, str]) -> Vm:
        settings = self.context.settings
        doing = f"rent {spec.offer.size} in {spec.offer.place}"
        options = VmOptions(
            image=image_for(spec.offer.size, settings.image),
            disk_sku=settings.disk_sku,
            identity=settings.self_release,
            arm=settings.arm_endpoint,
            audience=settings.audience,
        )
        body = vm_body(spec, names=names, tags=tags, options=options)
        done = False
        try:
            operation = self.context.begin_or_resume(
                record, "vm", lambda token: self._begin_vm(doing, names, body, token)
            )
            # Asked for anew, because an answer to a PUT may echo what was asked.
            self._verify(spec, self.observer.get(names))
            self._set_safeguards(spec, names, tags)
            done = self.context.wait(
                record, "vm", operation, wait_s=self.context.settings.accept_wait_s
            )
            self.observer.operations.learn(record, operation, done=done)
            if done:
                self._verify(spec, operation.answer)
        except ImageRefusedError as error:
            raise error.naming(urn_of(body)) from error
        except (AlreadyThereError, Gone):
            # Made by a request whose answer was lost, or the operation's page has expired.
            self.context.clear_tokens(record, "vm")
            done = self._follow(doing, spec, names)
        if done:
            self.context.clear_tokens(record, "vm")
        return self._accepted(spec, names, tags, done=done)

    def _begin_vm(self, doing: str, names: Names, body: dict[str, Any], token: str) -> Operation:
        from infra.azure.sdk import IF_MISSING

        more = {"continuation_token": token} if token else {"match_condition": IF_MISSING}
        machines = self.context.arm.compute.virtual_machines
        ask = (doing, machines.begin_create_or_update, names.group, names.vm)
        try:
            return self.context.arm.begin(*ask, body, **more)
        except ProviderError as error:
            # Sizes and images that know no Trusted Launch have no Secure Boot to switch off either.
            if "securityProfile" not in body["properties"] or not refuses_security(str(error)):
                raise
            del body["properties"]["securityProfile"]
        return self.context.arm.begin(*ask, body, **more)

    def _follow(self, doing: str, spec: VmSpec, names: Names) -> bool:
        """Poll a machine whose operation we do not hold; whether it is made within the wait."""
        deadline = self.context.clock() + self.context.settings.accept_wait_s
        while True:
            answer = self.observer.get(names)
            if not is_of_run(answer.get("tags"), spec.run_id):
                raise NotAllowed(f"`{names.vm}` exists and does not carry our tag")
            self._verify(spec, answer)
            made = str((answer.get("properties") or {}).get("provisioningState")).lower()
            if made in {"failed", "canceled"}:
                code, message = failure_of(answer)
                raise translate(AzureErrorInfo(code=code, message=message, status=200), doing=doing)
            if made == "succeeded":
                return True
            if self.context.clock() >= deadline:
                return False
            self.context.sleep(self.context.settings.polling_s)

    def _set_safeguards(self, spec: VmSpec, names: Names, tags: dict[str, str]) -> None:
        """Set the safeguards as soon as the machine bills."""
        if spec.until_s is None:
            return
        vm = self._accepted(spec, names, tags, done=False)
        self.safeguards.set_safeguards(vm, until_s=spec.until_s)

    @staticmethod
    def _verify(spec: VmSpec, answer: dict[str, Any]) -> None:
        wrong = difference_from(answer, spec) if answer else ""
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
            node=spec.node,
            user=spec.user,
            host_public_key=spec.host_public_key,
            port=self.context.settings.ssh_port,
            metadata_url=self.context.settings.metadata_url,
            power=PowerState.RUNNING if done else PowerState.CREATING,
            created_at=tags["qft-created"],
            price_usd_per_h=spec.offer.spot_usd_per_h,
            idle_usd_per_h=idle_usd_per_h(spec.disk_gb),
        )

    def _clean_up(self, names: Names, error: ProviderError, *, several: bool) -> None:
        """Remove what a failed create made; a failure of that is added to the first one.

        A machine that has mates leaves them what they share.
        """
        try:
            if not several:
                self.deleter.remove(names.run_id)
                return
            with locked_group(names):
                if self._run_group.is_alone(names):
                    self.deleter.remove(names.run_id)
                    return
            self.remover.remove(vm_from_answer({}, names))
        except ProviderError as second:
            error.unfinished = True
            error.add_note(f"removing what had been made failed too: {second}")
            error.hint = f"{error.hint}; `qft down --delete` removes what is left".lstrip("; ")
