"""Sets what ends the bill when everything of ours is dead, and says what could not be set.

price cap      EC2 interrupts a machine above it; part of its spot request
spot request   ends an hour after the limit: EC2 restarts and replaces nothing from then on
schedules      EventBridge Scheduler stops the machine; needs a role, once per account
alarm          CloudWatch stops it, where Scheduler may not be used
self-release   the machine switches itself off, upon which EC2 bills its disk only
disk           goes only if `budget.disk_days` says so
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from infra.aws import safeguard_texts as texts
from infra.aws.alarm import Alarms, alarm_name, alarm_times
from infra.aws.context import AwsContext
from infra.aws.inventory import Inventories
from infra.aws.machine_view import MachineView, view_of
from infra.aws.naming import MachineId, schedule_prefix
from infra.aws.safeguard_preview import SafeguardPreview
from infra.aws.safeguard_times import START_GRACE_S, ScheduleTimes, schedule_times
from infra.aws.schedules import (
    ATTEMPTS,
    ATTEMPTS_UNSURE,
    MachineToEnd,
    Schedules,
    role_exists,
)
from infra.catalog.aws import AWS
from infra.errors import BadRequest, NotAllowed, ProviderError, SignedOut
from infra.offer import Want
from infra.provider import Safeguard, Vm
from infra.renting.safeguards import try_set
from infra.timestamps import format_utc, parse_utc_s


@dataclass(frozen=True, kw_only=True)
class AwsSafeguards:
    """The safeguards of machines; safe to repeat, and meant to be."""

    context: AwsContext

    def set_safeguards(
        self, vm: Vm, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Set every safeguard that may be set, to end compute soon after `until_s` (since 1970).

        `disk_days` after that the machine is removed with its disk; None keeps it. Never raises for
        one that cannot be set: that is a finding, to be shown to the user. Raises `SignedOut`,
        `Transient`, and `NotAllowed` for a run of another account.
        """
        request = self._request(vm)
        expires_s = None if request is None else request.valid_until_s
        times = schedule_times(
            now_s=self.context.clock(), until_s=until_s, expires_s=expires_s, disk_days=disk_days
        )
        machine = self._machine(vm, request)
        scheduled = try_set(
            texts.SCHEDULES, lambda: self._schedules(machine, times), permission_hint=texts.DOCTOR
        )
        found = [
            *_terms(request, until_s=until_s),
            scheduled,
            *self._alarm(machine, vm, until_s=until_s, is_needed=not scheduled.is_set),
            texts.self_release(until_s),
            texts.disk(times if scheduled.is_set else None, usd_per_day=vm.idle_usd_per_h * 24),
        ]
        cap = None if request is None else request.cap_usd_per_h
        return texts.finished(
            found,
            now_s=self.context.clock(),
            price_max=cap or AWS.on_demand_max(size=vm.size),
            idle_usd_per_h=vm.idle_usd_per_h,
        )

    def preview_safeguards(
        self, want: Want, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Predict what `set_safeguards` can set for such a machine; creates nothing, never raises.

        What this account may do is learnt by looking, for `offers_wait_s` at most; what could not
        be learnt counts as missing.
        """
        preview = SafeguardPreview(context=self.context)
        return preview.predict(want, until_s=until_s, disk_days=disk_days)

    def before_start(self, vm: Vm) -> None:
        """Put off the stops of a machine that is about to be started on purpose, for half an hour.

        Its next limit is set when it answers. Silent where it has no schedules. Raises `SignedOut`.
        """
        not_before_s = self.context.clock() + START_GRACE_S
        try:
            moved = self._scheduler.put_off(
                schedule_prefix(vm.run_id, vm.generation, vm.node),
                region_of(vm),
                not_before_s=not_before_s,
            )
        except SignedOut:
            raise
        except ProviderError:
            return  # it may be stopped once more, which is a reason to start it again
        if moved:
            self._note_limit(vm.run_id, vm.node, not_before_s)

    def leftovers(self, run_id: str, region: str, node: int | None = None) -> list[str]:
        """The names of the schedules and alarms of a run, or of a node, that exist in a region.

        An account that may not list them has not made any.
        """
        return [
            *_if_allowed(lambda: self._scheduler.names(run_id, region, node)),
            *_if_allowed(lambda: self._alarms.names(run_id, region, node)),
        ]

    def remove(
        self, run_id: str, region: str, node: int | None = None, generation: int | None = None
    ) -> list[str]:
        """Remove the schedules and alarms of a run in a region; return their names.

        With a node those of that node, with a generation those of one machine of it.
        """

        def mine(names: list[str]) -> list[str]:
            begins = schedule_prefix(run_id, generation, node or 0)
            return [one for one in names if one.startswith(begins)]

        def remove_schedules() -> list[str]:
            names = mine(self._scheduler.names(run_id, region, node))
            return self._scheduler.remove(names, region)

        def remove_alarms() -> list[str]:
            return self._alarms.remove(mine(self._alarms.names(run_id, region, node)), region)

        return [*_if_allowed(remove_schedules), *_if_allowed(remove_alarms)]

    def _request(self, vm: Vm) -> MachineView | None:
        """The machine's spot request; None if EC2 does not show it (yet)."""
        ids, record = MachineId.parse(vm.id), self.context.record(vm.run_id, vm.node)
        row = Inventories(context=self.context).request(
            region_of(vm),
            request_id=record.ids.get("request", "") if record.generation == vm.generation else "",
            instance_id=ids.instance if ids is not None else "",
            run_id=vm.run_id,
            node=vm.node,
        )
        return None if row is None else view_of(None, row)

    def _machine(self, vm: Vm, request: MachineView | None) -> MachineToEnd:
        ids = MachineId.parse(vm.id)
        return MachineToEnd(
            run_id=vm.run_id,
            generation=vm.generation,
            node=vm.node,
            region=region_of(vm),
            account=self.context.account(),
            instance=ids.instance if ids is not None else "",
            request="" if request is None else request.request,
        )

    def _schedules(self, machine: MachineToEnd, times: ScheduleTimes) -> Safeguard:
        exists = role_exists(self.context)
        if exists is False:
            role = self.context.settings.schedule_role
            raise NotAllowed(texts.NO_ROLE.format(role), hint=texts.DOCTOR)
        self._note_limit(machine.run_id, machine.node, times.stop_s)
        self._scheduler.set(machine, times, attempts=ATTEMPTS if exists else ATTEMPTS_UNSURE)
        return texts.schedules(times, is_set=True)

    def _alarm(
        self, machine: MachineToEnd, vm: Vm, *, until_s: float, is_needed: bool
    ) -> list[Safeguard]:
        """Set the alarm where it is needed; remove one that is not needed any more."""
        if not is_needed:
            name = alarm_name(machine)
            _if_allowed(lambda: self._alarms.remove([name], machine.region))
            return []
        made_at_s = parse_utc_s(vm.created_at) or self.context.clock()
        times = alarm_times(made_at_s=made_at_s, until_s=until_s)

        def set_alarm() -> Safeguard:
            if times is None:
                raise BadRequest("no alarm looks further ahead than seven days")
            self._note_limit(machine.run_id, machine.node, until_s)
            self._alarms.set(machine, times)
            return texts.alarm(times, is_set=True)

        return [try_set(texts.ALARM, set_alarm, permission_hint=texts.DOCTOR)]

    def _note_limit(self, run_id: str, node: int, limit_s: float) -> None:
        """Record from when on a stop is ours, before it can happen."""
        record = self.context.record(run_id, node)
        record.ids["limit"] = format_utc(limit_s)
        record.save()

    @cached_property
    def _scheduler(self) -> Schedules:
        return Schedules(context=self.context)

    @cached_property
    def _alarms(self) -> Alarms:
        return Alarms(context=self.context)


def region_of(vm: Vm) -> str:
    """The region of a machine."""
    ids = MachineId.parse(vm.id)
    return ids.region if ids is not None else vm.region


def _terms(request: MachineView | None, *, until_s: float) -> list[Safeguard]:
    """What the spot request itself ends."""
    if request is None:
        why = "EC2 does not show the machine's spot request"
        return [texts.unlisted(name, why) for name in (texts.PRICE_CAP, texts.SPOT_REQUEST)]
    ends = texts.spot_request(request.valid_until_s, until_s=until_s)
    return [texts.price_cap(request.cap_usd_per_h), ends]


def _if_allowed(names: Callable[[], list[str]]) -> list[str]:
    """The names, none if this caller lacks the right: it has then made none of them."""
    try:
        return names()
    except SignedOut:
        raise
    except NotAllowed:
        return []
