"""Starts, stops and evicts machines, and lets the caller's address in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from infra.aws.context import AwsContext
from infra.aws.errors import BUSY_S
from infra.aws.experiments import Experiments
from infra.aws.inventory import Inventories
from infra.aws.machine_view import PENDING, RUNNING, SHUTTING_DOWN, STOPPED, STOPPING, MachineView
from infra.aws.naming import MachineId
from infra.aws.observe import VmObserver, orders_of
from infra.aws.prices import SpotPrices
from infra.aws.reading import LAG_S, read
from infra.aws.safeguards import AwsSafeguards
from infra.aws.security_group import SecurityGroups
from infra.errors import (
    PASSING,
    Gone,
    NeverStarts,
    NoCapacity,
    PriceAboveCap,
    ProviderError,
    Transient,
)
from infra.provider import PowerState, Vm
from infra.renting.caller import source_prefix
from infra.renting.run_record import RunRecord

NOTICE_S = 180.0
"""How long EC2 is left to take a machine for which it has given notice; it needs two minutes."""


@dataclass(frozen=True, kw_only=True)
class PowerControl:
    """Orders about a machine's power."""

    context: AwsContext
    observer: VmObserver
    safeguards: AwsSafeguards

    def start(self, vm: Vm) -> None:
        """Start a stopped machine under its old cap; silent if it runs or is starting.

        Waits `accept_wait_s` at most, to hear of a refusal that comes after the order was accepted.
        Raises `NoCapacity`, `OverQuota`, `PriceAboveCap`, `Gone`; `Transient` while it stops.
        """
        view = self._after_stop(vm)
        if view.state in {PENDING, RUNNING}:
            return
        if view.state == SHUTTING_DOWN:
            raise Gone(f"the machine `{vm.id}` is being terminated")
        if _has_ended_request(view):
            raise _request_ended(view)
        self.allow_caller_ip(vm)
        self.safeguards.before_start(vm)
        record = self._record(vm)
        before = replace(record)
        record.note("start", self.context.clock())
        try:
            self._call(vm, "start_instances", doing=f"start `{view.instance}`", once=True)
        except ProviderError as error:
            refusal = self._refused_start(vm, error)
            if refusal is not error or not isinstance(error, Transient):
                before.save()  # the order must not explain what comes later
            raise refusal from error
        self._follow_start(vm)

    def _after_stop(self, vm: Vm) -> MachineView:
        """Look at a machine once EC2 has finished an earlier stop, which takes its request 40 s.

        Raises `Transient` if that is not done in `accept_wait_s`.
        """
        deadline = self.context.clock() + self.context.settings.accept_wait_s
        while True:
            view = self.observer.look(vm)
            is_marked = view.state == STOPPED and view.status_code == "marked-for-stop"
            if view.state != STOPPING and not is_marked:
                return view
            if self.context.clock() >= deadline:
                raise _still_stopping(view)
            self.context.sleep(self.context.settings.polling_s)

    def deallocate(self, vm: Vm) -> None:
        """Stop the machine and return when EC2 says that it is stopped; silent if it is.

        A machine for which EC2 has given notice is left to EC2: an interrupted first hour is free,
        and a stop of our own makes it cost. Raises `Gone`; a `Transient` after `stop_wait_s`.
        """
        record = self._record(vm)
        began_s, ordered_s = self.context.clock(), 0.0
        wait_s = self.context.settings.stop_wait_s
        while True:
            view, now_s = self.observer.look(vm), self.context.clock()
            if view.state == SHUTTING_DOWN:
                raise Gone(f"the machine `{vm.id}` is being terminated")
            if view.state in {STOPPED, STOPPING}:
                self._note_end(record, view)
            if view.state == STOPPED:
                return
            if _has_notice(view) and now_s - began_s < NOTICE_S:
                if record.requested != "deallocate":
                    record.note("deallocate", now_s)
            elif view.state != STOPPING and now_s - ordered_s >= LAG_S:
                ordered_s = now_s if self._stop(vm, record, view) else 0.0
            if now_s - began_s >= wait_s:
                raise Transient(
                    f"EC2 has been stopping `{view.instance}` for {wait_s:.0f} s; it says"
                    f" `{view.state}`",
                    hint="`qft ls --all` shows when it stops; `stopping` bills no compute",
                )
            self.context.sleep(self.context.settings.polling_s)

    def evict(self, vm: Vm) -> None:
        """Rehearse an interruption by AWS Fault Injection Service.

        Raises `NotAllowed` with the commands that make the role where it is missing; `Gone`;
        `Transient` if the machine does not run.
        """
        view = self.observer.look(vm)
        if view.state == SHUTTING_DOWN:
            raise Gone(f"the machine `{vm.id}` is being terminated")
        if view.state != RUNNING:
            raise Transient(f"`{view.instance}` is {view.state}: only what runs can be interrupted")
        record = self._record(vm)
        before = replace(record)
        record.note("evict", self.context.clock())
        id_ = self._id(vm)
        try:
            Experiments(context=self.context).interrupt(id_, run_id=vm.run_id)
        except Transient:  # it may have been accepted
            raise
        except ProviderError:
            before.save()
            raise

    def allow_caller_ip(self, vm: Vm) -> bool:
        """Let the caller's address of now in to SSH; whether the rule had to change.

        EC2 is asked for the rules, not our memory: another computer may have changed them.
        """
        view = self.observer.look(vm)
        source = source_prefix(self.context.caller())
        record = self._record(vm)
        record.caller, record.caller_at = source, self.context.clock()
        record.save()
        region, groups = self._id(vm).region, SecurityGroups(context=self.context)
        rows = Inventories(context=self.context).groups(region, vm.run_id)
        tagged = {str(one.get("GroupId")) for one in rows}
        ours = [one for one in view.groups if one in tagged or one == record.ids.get("group")]
        changed = [groups.allow_source(region, one, source) for one in ours]
        return any(changed)

    def cap_in_force(self, vm: Vm) -> float | None:
        """The price cap of the machine's spot request, USD per hour; None if it has none.

        EC2 itself fills in the price on demand where none was asked for. Raises `NeverStarts` for a
        stopped machine whose request has ended.
        """
        view = self.observer.look(vm)
        if view.state == STOPPED and _has_ended_request(view):
            raise _request_ended(view)
        return None if view.tags.get("qft-cap") == "" else view.cap_usd_per_h

    def billed_until_s(self, vm: Vm) -> float | None:
        """When a machine that `deallocate` released ceased to bill compute, in s since 1970.

        That is when it began to stop: EC2 does not bill `stopping`.
        """
        record = self._record(vm)
        return record.ended_at or None if record.requested == "deallocate" else None

    # ---- the steps ----

    def _stop(self, vm: Vm, record: RunRecord, view: MachineView) -> bool:
        """Order a stop, and record that it was ours; whether EC2 accepted it. Safe to repeat.

        A refused one is forgotten. EC2 refuses to stop what still boots: not yet.
        """
        before = replace(record)
        record.released_at = self.context.clock()
        record.note("deallocate", record.released_at)
        try:
            self._call(vm, "stop_instances", doing=f"stop `{view.instance}`")
        except Transient:  # looked at again: it may have been accepted
            return False
        except ProviderError:
            before.save()
            raise
        return True

    def _note_end(self, record: RunRecord, view: MachineView) -> None:
        """Record since when a machine that we stop bills no compute, once."""
        if record.requested != "deallocate" or record.ended_at:
            return
        now_s = self.context.clock()
        record.ended_at = max(min(view.changed_s or now_s, now_s), record.requested_at)
        record.save()

    def _follow_start(self, vm: Vm) -> None:
        """Look until it runs, or for `accept_wait_s`; raise if it fell back instead."""
        deadline_s = self.context.clock() + self.context.settings.accept_wait_s
        while self.context.clock() < deadline_s:
            view = self.observer.look(vm)
            orders = orders_of(self.context.record(vm.run_id, vm.node), vm)
            seen = read(view, orders, now_s=self.context.clock())
            if seen.power is PowerState.RUNNING:
                return
            if seen.refusal is not None:
                raise seen.refusal
            self.context.sleep(self.context.settings.polling_s)

    def _refused_start(self, vm: Vm, error: ProviderError) -> ProviderError:
        """What a refused start means: EC2 has three ways to say that there is no spot capacity.

        One of them, `IncorrectSpotRequestState`, also says that the machine has not quite stopped;
        its request then is marked for a stop.
        """
        if not isinstance(error, (Transient, *PASSING)):
            return error
        view = self.observer.look(vm)
        if view.state in {PENDING, RUNNING}:
            return Transient("EC2 has started it meanwhile", retry_after_s=BUSY_S)
        if isinstance(error, Transient) and "IncorrectSpotRequestState" not in str(error):
            return error
        waits_for_us = view.status_code.endswith(("-by-user", "marked-for-stop", "-by-experiment"))
        if isinstance(error, Transient) and (view.state == STOPPING or waits_for_us):
            return _still_stopping(view)
        if dear := self._too_dear(vm, view, error):
            return dear
        if isinstance(error, Transient):
            return NoCapacity(
                f"cannot start `{view.instance}`: its zone has no spot capacity now ({error})",
                hint="EC2 restarts it by itself when its zone has room, and it bills from then on;"
                " `qft run` moves to another place",
            )
        return error

    def _too_dear(self, vm: Vm, view: MachineView, error: ProviderError) -> PriceAboveCap | None:
        """The error for a market price above the machine's cap; None if it is not."""
        if isinstance(error, PriceAboveCap) and error.current_usd_per_h is not None:
            return None
        refused = isinstance(error, PriceAboveCap)
        cap = view.cap_usd_per_h
        price = self._price(vm, view)
        dear = cap is not None and price is not None and price > cap
        if not (dear or refused or view.status_code.endswith("-by-price")):
            return None
        now = f"{price} USD/h now" if price is not None else "more now"
        return PriceAboveCap(
            f"cannot start `{view.instance}`: it costs {now}, above its cap of {cap} USD/h",
            current_usd_per_h=price,
            hint="no API changes the cap of a machine: with a higher `vm.max_price` the run moves"
            " to a new one, after its checkpoint is home",
        )

    def _price(self, vm: Vm, view: MachineView) -> float | None:
        """The spot price at this moment; None if nobody answers."""
        try:
            prices = SpotPrices(context=self.context).read(
                self._id(vm).region, [view.size], fresh_s=0.0
            )
        except ProviderError:  # the refusal is raised all the same
            return None
        return prices.price(view.size, view.zone)

    def _call(self, vm: Vm, operation: str, *, doing: str, once: bool = False) -> dict[str, Any]:
        id_ = self._id(vm)
        return self.context.clients.call(
            "ec2", id_.region, operation, doing=doing, once=once, InstanceIds=[id_.instance]
        )

    def _id(self, vm: Vm) -> MachineId:
        id_ = self.observer.id_of(vm)
        if id_ is None or not id_.instance:
            raise Gone(f"there is no machine `{vm.id}`")
        return id_

    def _record(self, vm: Vm) -> RunRecord:
        """The record of this machine; one of an earlier machine of the run says nothing of it."""
        record = self.context.record(vm.run_id, vm.node)
        if record.generation == vm.generation:
            return record
        id_ = self._id(vm)
        ids = {"account": id_.account, "region": id_.region, "instance": id_.instance}
        return RunRecord(path=record.path, generation=vm.generation, ids=ids)


def _still_stopping(view: MachineView) -> Transient:
    return Transient(
        f"`{view.instance}` is still stopping; EC2 starts it when that is done",
        hint="the same call is safe to repeat",
        retry_after_s=BUSY_S,
    )


def _has_ended_request(view: MachineView) -> bool:
    """Whether no spot request holds the machine any more; False if EC2 shows no request."""
    return bool(view.request_state) and not view.is_request_live


def _request_ended(view: MachineView) -> NeverStarts:
    """The refusal to start what no spot request holds any more: its disk is all that is left."""
    return NeverStarts(
        f"EC2 starts `{view.instance}` no more: its spot request has ended ({view.status_code})",
        hint="`qft run` moves to another machine, from the newest checkpoint that is at home",
    )


def _has_notice(view: MachineView) -> bool:
    """Whether EC2 is about to take a running machine."""
    return view.state == RUNNING and view.status_code.startswith("marked-for-")
