"""The parts of a job in hours, each from what is known of it and a rate with its source; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from commands.runs.config import LoadedConfig
from commands.runs.planning.extra_hours import samples_seconds
from commands.runs.planning.job_estimate import JobPart
from commands.runs.planning.job_inputs import JobInputs
from commands.runs.planning.scoring_hours import ScoringWork, seconds_of_scoring
from infra.catalog.gpus import Driver
from infra.catalog.vendors import find_size
from infra.offer import Offer
from infra.renting.eviction_rate import HOUR, NO_BAND, evictions_per_h, hourly_band
from trainer.config import EvictionBand
from trainer.estimate.gpus import TrainingGpu
from trainer.estimate.span import NOTHING, Span
from trainer.estimate.step_time import reading_seconds
from trainer.estimate.training import hours_span, setup_of
from trainer.saving.interval import EVICTED_PER_H, choose_interval

HOUR_S = 3600.0
MINUTE_H = 1 / 60

RENT_H = Span(low=1.5, likely=3.0, high=10.0) * MINUTE_H
RENT_SOURCE = "published: Azure takes 2 to 6 min for a machine (skypilot#3695, 2024)"
RENT_BY_PROVIDER: Mapping[str, tuple[Span, str]] = MappingProxyType(
    {
        "aws": (
            Span(low=0.7, likely=2.0, high=8.0) * MINUTE_H,
            "published: EC2 runs a machine within 95 s (one account, 2026-10); its boot is assumed",
        )
    }
)
"""Where it takes another time to rent a machine and to reach it."""
SET_UP_H = Span(low=3.0, likely=6.0, high=14.0) * MINUTE_H
SET_UP_SOURCE = "our own: 3 GB of packages in 12 min on two busy cores (2026-11-22)"
DRIVER_H = Span(low=5.0, likely=10.0, high=15.0) * MINUTE_H
DRIVER_SOURCE = "published: a driver for the A10 takes 12 min (skypilot#3718, 2024)"
PRESENT_H = Span(low=0.1, likely=0.3, high=1.0) * MINUTE_H
PRESENT_SOURCE = "our own: a look at a machine that is set up (2026-11-22)"
UPLOAD_BYTES_PER_S = Span(low=1e6, likely=4e6, high=30e6)
UPLOAD_SOURCE = "assumed: 8 to 240 Mbit/s"
MEASURED_FACTOR = 2.0
"""By which a network may be slower or faster than it was the last time."""
LOOPBACK_BYTES_PER_S = Span(low=10e6, likely=30e6, high=60e6)
LOOPBACK_SOURCE = "our own: SFTP on this computer (2026-11-22)"
DOWNLOAD_BYTES_PER_S = Span(low=40e6, likely=120e6, high=400e6)
READ_BYTES_PER_S = Span(low=100e6, likely=300e6, high=1000e6)
LOAD_SOURCE = "assumed: 40 to 400 MB/s from the hub, 0.1 to 1 GB/s from the disk"
SAVE_BYTES_PER_S = 70e6
"""Our own: 480 MB were durable after 5 to 7 s (docs/benchmarks.md, 2026-11-22)."""
FETCH_H = Span(low=0.2, likely=0.7, high=3.0) * MINUTE_H


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how long a machine takes beside the work itself."""

    rented: bool = True
    here: bool = False
    """Whether this computer plays it, so that nothing is installed or fetched."""
    provider: str = ""
    installs_driver: bool = False
    evicted_per_h: Span = NOTHING
    """Share of such machines that are evicted within an hour."""
    band: EvictionBand | None = None
    published: str = ""
    """What the vendor publishes about evictions, for people; empty if nothing."""
    rehearsed: int = 0
    """Evictions that run.yaml asks for, beside those."""


def machine_of(loaded: LoadedConfig, offer: Offer | None, *, here: bool) -> Machine:
    """Return what is known of the machine that a run would have; `here` this computer plays it."""
    vm = loaded.config.vm
    rehearsed = len(vm.rehearse_evictions) if vm.provider != "ssh" else 0
    if here:
        rehearsed += len(vm.local.timed_evictions)
    rented = vm.provider != "ssh" and not here
    return Machine(
        rented=rented,
        here=here,
        provider=offer.provider if offer is not None else "",
        installs_driver=rented and installs_driver(loaded, offer),
        evicted_per_h=evicted_per_h(offer) if rented else NOTHING,
        band=_band(offer) if rented else None,
        published=_published(offer) if rented else "",
        rehearsed=rehearsed,
    )


def installs_driver(loaded: LoadedConfig, offer: Offer | None) -> bool:
    """Tell whether set-up installs a driver: the image brings none, or not the size's kind."""
    image = loaded.config.vm.image
    if offer is not None and offer.provider == "aws":
        return loaded.config.vm.aws.lacks_driver
    if image is not None:
        return bool(image.note(loaded.config.vm.card))
    size = find_size(offer.size, provider=offer.provider) if offer is not None else None
    return size is not None and size.driver is Driver.GRID


def evicted_per_h(offer: Offer | None) -> Span:
    """Return the share of an offer's machines that is evicted within an hour, by its band."""
    band, period = (offer.eviction_band, offer.eviction_period) if offer is not None else ("", "")
    rate = evictions_per_h(band, period)
    return Span(low=rate.low_per_h, likely=rate.per_h, high=rate.high_per_h)


def at_rate(amount: float, per_s: Span) -> Span:
    """Return the hours that an amount takes; the low rate gives the high end."""
    return Span(
        low=amount / per_s.high / HOUR_S,
        likely=amount / per_s.likely / HOUR_S,
        high=amount / per_s.low / HOUR_S,
    )


def job_parts(
    inputs: JobInputs, found: Mapping[str, Any], gpu: TrainingGpu, machine: Machine
) -> tuple[JobPart, ...]:
    """Return the parts of a job in the order in which they happen; none if the steps are unknown.

    `found` is what `trainer.estimate.training.estimate_rows` says of the training.
    """
    if found["hours"] is None or inputs.shape is None:
        return ()
    parts = [*_before(inputs, machine)]
    scoring = score_part("score before", inputs, gpu, before=True, here=machine.here)
    parts += [scoring] if scoring else []
    parts.append(train_part(inputs, found, gpu))
    again = score_part("score after", inputs, gpu, here=machine.here)
    parts += [again] if again else []
    parts.append(fetch_part(inputs, machine))
    lost = evictions_part(parts, inputs, found["step_seconds"], machine)
    parts.insert(len(parts) - 1 - bool(again), lost)
    return tuple(replace(part, billed=machine.rented) for part in parts)


def _before(inputs: JobInputs, machine: Machine) -> list[JobPart]:
    """Return what comes before the first row is read."""
    load = at_rate(inputs.base_bytes, READ_BYTES_PER_S)
    if not inputs.base_sent and not machine.here:
        load += at_rate(inputs.base_bytes, DOWNLOAD_BYTES_PER_S)
    send = send_part("send", inputs.sent_bytes, inputs, machine)
    if machine.here:
        return [
            JobPart(name="set-up", hours=PRESENT_H, source=PRESENT_SOURCE, measured=True),
            send,
            JobPart(name="load", hours=load, source=LOAD_SOURCE),
        ]
    set_up, source = SET_UP_H, SET_UP_SOURCE
    if machine.installs_driver:
        set_up, source = set_up + DRIVER_H, f"{source}; {DRIVER_SOURCE}"
    if not machine.rented:  # whether it was set up before is not known
        set_up = replace(set_up, low=PRESENT_H.low)
    parts = [
        JobPart(name="set-up", hours=set_up, source=source, measured=not machine.installs_driver),
        send,
        JobPart(name="load", hours=load, source=LOAD_SOURCE),
    ]
    hours, source = RENT_BY_PROVIDER.get(machine.provider, (RENT_H, RENT_SOURCE))
    return [JobPart(name="rent", hours=hours, source=source), *parts] if machine.rented else parts


def train_part(inputs: JobInputs, found: Mapping[str, Any], gpu: TrainingGpu) -> JobPart:
    """Return the steps, and the losses on held-out rows between them."""
    hours = found["hours"]
    train, lengths, shape = inputs.tables.train, inputs.lengths, inputs.shape
    if train.validate_every and lengths is not None and lengths.eval_rows and shape is not None:
        tokens = max(1, round(lengths.eval_tokens))
        setup = replace(
            setup_of(inputs.tables, gpu.precision, tokens=tokens),
            micro_batch=found["micro_batch"] or 1,
        )
        each = reading_seconds(shape, setup, gpu=gpu, rows=lengths.eval_rows)
        hours += found["steps"] // train.validate_every * each / HOUR_S
    if lengths is not None and lengths.eval_rows and shape is not None:
        hours += (
            samples_seconds(shape, inputs.tables, gpu, steps=found["steps"], lengths=lengths)
            / HOUR_S
        )
    source = gpu.source or "nobody has published a speed of this card"
    return JobPart(name="train", hours=hours_span(hours, gpu), source=source)


def score_part(
    name: str, inputs: JobInputs, gpu: TrainingGpu, *, before: bool = False, here: bool = False
) -> JobPart | None:
    """Return what scoring the held-out rows takes, and what is measured beside it.

    None if nothing is scored. `on_gpu`: what a GPU alone measures is measured.
    """
    table, lengths, shape = inputs.tables.scored, inputs.lengths, inputs.shape
    if table is None or lengths is None or shape is None or not lengths.eval_rows:
        return None
    work = ScoringWork(config=inputs.tables, shape=shape, gpu=gpu, on_gpu=not here)
    seconds = seconds_of_scoring(work, lengths, before=before)
    return JobPart(name=name, hours=hours_span(seconds / HOUR_S, gpu), source=gpu.source)


def send_part(name: str, amount: float, inputs: JobInputs, machine: Machine) -> JobPart:
    """Return what bytes take between here and the machine, at the last measured rate if any."""
    found = inputs.upload
    if found is not None:
        rate = Span.within_factor(found.bytes_per_s, MEASURED_FACTOR)
        source = f"our own: {found.bytes_per_s / 1e6:.1f} MB/s from here on {found.day}"
        return JobPart(name=name, hours=at_rate(amount, rate), source=source, measured=True)
    rate = LOOPBACK_BYTES_PER_S if machine.here else UPLOAD_BYTES_PER_S
    source = LOOPBACK_SOURCE if machine.here else UPLOAD_SOURCE
    return JobPart(name=name, hours=at_rate(amount, rate), source=source, measured=machine.here)


def fetch_part(inputs: JobInputs, machine: Machine) -> JobPart:
    """Return what bringing the adapter home and giving the machine back takes."""
    sent = send_part("fetch", inputs.adapter_bytes, inputs, machine)
    return sent if machine.here else replace(sent, hours=FETCH_H + sent.hours)


def evictions_part(
    parts: Sequence[JobPart], inputs: JobInputs, step_s: float, machine: Machine
) -> JobPart:
    """Return what evictions are expected to cost: new boots, and work done again.

    Their number is the hours of `parts` times the published share. At best the disk is kept, so
    that the machine boots, looks and reads the base; at worst everything before the first step
    comes again on another one. Half a checkpoint interval is lost in the mean, a whole one at
    worst.
    """
    there = sum((part.hours for part in parts), NOTHING)
    named = {part.name: part.hours for part in parts}
    boot = named.get("rent", NOTHING)
    read = at_rate(inputs.base_bytes, READ_BYTES_PER_S)
    anew = sum((named.get(name, NOTHING) for name in ("rent", "set-up", "send", "load")), NOTHING)
    interval_h = _interval_s(inputs, step_s, machine) / HOUR_S
    kept = boot + PRESENT_H + read
    each = Span(
        low=kept.low,
        likely=kept.likely + interval_h / 2,
        high=max(kept.high, anew.high) + interval_h,
    )
    share = machine.evicted_per_h
    number = Span(
        low=there.low * share.low + machine.rehearsed,
        likely=there.likely * share.likely + machine.rehearsed,
        high=there.high * share.high + machine.rehearsed,
    )
    if not machine.rented and not machine.rehearsed:
        number = NOTHING
    return JobPart(
        name="evictions",
        hours=Span(
            low=number.low * each.low,
            likely=number.likely * each.likely,
            high=number.high * each.high,
        ),
        source=_evictions_source(number, machine),
    )


def _evictions_source(number: Span, machine: Machine) -> str:
    expected = f"{number.likely:.1f} expected"
    if machine.rehearsed:
        expected = f"{expected}, {machine.rehearsed} of them rehearsed"
    if not machine.rented:
        return expected
    where = f"the published {machine.published}" if machine.published else "no band is published"
    return f"{expected}: {where}"


def _interval_s(inputs: JobInputs, step_s: float, machine: Machine) -> float:
    """Return the seconds between two checkpoints, with a save as long as its bytes take."""
    save_s = 3 * inputs.adapter_bytes / SAVE_BYTES_PER_S
    chosen = choose_interval(inputs.tables.checkpoint, band=machine.band, save_s=save_s)
    if chosen.interval_steps is not None:
        return chosen.interval_steps * step_s
    return chosen.interval_s or 0.0


def _band(offer: Offer | None) -> EvictionBand | None:
    """Return the published band as the trainer gets it; None if it is none of the known ones."""
    name = hourly_band(offer.eviction_band, offer.eviction_period) if offer is not None else ""
    return next((band for band in EVICTED_PER_H if band.value == name), None)


def _published(offer: Offer | None) -> str:
    """Return an offer's band with its unit; empty if it has none that can be read."""
    if offer is None:
        return ""
    rate = evictions_per_h(offer.eviction_band, offer.eviction_period)
    if rate == NO_BAND:
        return ""
    if offer.eviction_period == HOUR:
        return f"{offer.eviction_band} % an hour"
    return f"{offer.eviction_band} % a {offer.eviction_period}, a rough guide to hours"


def notes_on(inputs: JobInputs, gpu: TrainingGpu) -> tuple[str, ...]:
    """Return what the user should know of how the hours were found, each a sentence."""
    notes = []
    lengths = inputs.lengths
    if lengths is not None and not lengths.counted:
        notes.append(
            f"The rows are not here: {lengths.rows:,} of {lengths.mean_tokens:,.0f} tokens are"
            " taken from `plan` in run.yaml."
        )
    if lengths is not None and lengths.dropped:
        notes.append(f"About {lengths.dropped:.1%} of the rows are too long and left out.")
    if gpu.launch_s:
        notes.append(
            f"The speed of the {gpu.name} is {gpu.source}; nobody has measured qft's own loop on"
            " one."
        )
    return tuple(notes)
