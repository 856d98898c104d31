"""Words the safeguards of a machine, for those that are set and for those that will be; pure."""

from __future__ import annotations

from dataclasses import replace

from infra.aws.alarm import AlarmTimes
from infra.aws.safeguard_times import HOUR_S, STOP_EVERY_MIN, ScheduleTimes, latest_limit_s
from infra.catalog.aws import ADDRESS_USD_PER_H
from infra.provider import Safeguard
from infra.renting.safeguards import HourlyRates, with_worst_case
from infra.timestamps import format_utc

PRICE_CAP = "price cap"
SPOT_REQUEST = "spot request"
SCHEDULES = "schedules"
ALARM = "alarm"
SELF_RELEASE = "self-release"
DISK = "disk"
DOCTOR = "`qft doctor --provider aws` prints the commands"
NO_ROLE = "the account has no role `{}` by which EventBridge Scheduler could stop machines"


def price_cap(cap_usd_per_h: float | None) -> Safeguard:
    """The cap of a spot request, USD per hour; None if it has none."""
    if cap_usd_per_h is not None:
        detail = f"EC2 interrupts the machine before it costs more than {cap_usd_per_h} USD/h"
        return Safeguard(name=PRICE_CAP, is_set=True, detail=detail)
    return Safeguard(
        name=PRICE_CAP,
        is_set=False,
        detail="no cap: the price is at most the on-demand price",
        hint="set `vm.max_price`",
    )


def spot_request(expires_s: float | None, *, until_s: float) -> Safeguard:
    """The end of the spot request, and whether the limit lies before it."""
    if expires_s is None:
        return Safeguard(
            name=SPOT_REQUEST,
            is_set=False,
            detail="it has no end: EC2 may restart the machine by itself after an interruption",
            hint="`qft down --delete`; the next machine's has one",
        )
    latest_s = latest_limit_s(expires_s)
    ends = f"it ends at {format_utc(expires_s)}"
    if until_s > latest_s:
        return Safeguard(
            name=SPOT_REQUEST,
            is_set=True,
            detail=f"{ends}, before the budget does: `qft` moves to another machine in time, after"
            " the checkpoint is home; without `qft` this one ends there",
            latest_limit_s=latest_s,
        )
    return Safeguard(
        name=SPOT_REQUEST,
        is_set=True,
        detail=f"{ends}: EC2 restarts and replaces nothing by itself after that, and may delete the"
        " disk of a machine that is stopped then",
        latest_limit_s=latest_s,
    )


def schedules(times: ScheduleTimes, *, is_set: bool) -> Safeguard:
    """Schedules that are set, or will be."""
    verb = "stops" if is_set else "will stop"
    until = "until the disk goes" if times.cancel_s is not None else _until(times)
    return Safeguard(
        name=SCHEDULES,
        is_set=True,
        detail=f"EventBridge Scheduler {verb} the machine at {format_utc(times.stop_s)} unless that"
        f" is renewed, and every {STOP_EVERY_MIN} minutes {until}",
        stops_at_s=times.stop_s,
    )


def alarm(times: AlarmTimes, *, is_set: bool) -> Safeguard:
    """An alarm that is set, or will be."""
    verb = "stops" if is_set else "will stop"
    hours = times.periods * times.period_s / HOUR_S
    return Safeguard(
        name=ALARM,
        is_set=True,
        detail=f"CloudWatch {verb} the machine when it has run for {hours:.1f} hours, by"
        f" {format_utc(times.stops_at_s)} if it is never restarted",
        stops_at_s=times.stops_at_s,
    )


def self_release(until_s: float) -> Safeguard:
    """The machine's own shutdown, which takes no right at all."""
    return Safeguard(
        name=SELF_RELEASE,
        is_set=True,
        detail="the machine switches itself off at the limit, 10 minutes after training ended, or"
        " after 45 minutes without trainer and SSH connection; it takes a system that works",
        stops_at_s=until_s,
    )


def disk(times: ScheduleTimes | None, *, usd_per_day: float) -> Safeguard:
    """Until when the disk bills; `times` is None if no schedule removes it."""
    costs = f"it costs ${usd_per_day:.2f} a day"
    if times is not None and times.terminate_s is not None:
        detail = f"{costs}; AWS removes it with the machine at {format_utc(times.terminate_s)}"
        return Safeguard(name=DISK, is_set=True, detail=f"{detail} unless that is renewed")
    return Safeguard(
        name=DISK,
        is_set=False,
        detail=f"{costs} until `qft down --delete`, with no end",
        hint="`budget: {disk_days: N}` removes it N days after the limit (needs the schedules)",
    )


def unlisted(name: str, why: object, hint: str = "") -> Safeguard:
    """A safeguard of which it could not be learnt whether it is, or will be, set."""
    return Safeguard(name=name, is_set=False, detail=f"not known: {why}", hint=hint)


def finished(
    found: list[Safeguard], *, now_s: float, price_max: float, idle_usd_per_h: float
) -> list[Safeguard]:
    """The safeguards with what the lack of one can cost, and with the bill that they leave."""
    with_lacks = [_with_price_per_day(one, price_max=price_max) for one in found]
    return with_worst_case(
        with_lacks,
        now_s=now_s,
        rates=HourlyRates(price_max=price_max, idle=idle_usd_per_h, address=ADDRESS_USD_PER_H),
        main=SCHEDULES,
    )


def _with_price_per_day(safeguard: Safeguard, *, price_max: float) -> Safeguard:
    if safeguard.is_set or safeguard.name == DISK or price_max <= 0:
        return safeguard
    costs = f"up to ${price_max * 24:.2f} a day if nothing else ends it"
    return replace(safeguard, detail=f"{safeguard.detail} ({costs})")


def _until(times: ScheduleTimes) -> str:
    return f"for {(times.stops_end_s - times.stop_s) / HOUR_S:.0f} hours"
