"""What rented machines share works for any vendor: refusals, tags, first boot, safeguards."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from arm.harness import HOST_PRIVATE, HOST_PUBLIC, spec

from infra.errors import BadRequest, NoCapacity, NotAllowed, OverQuota, Transient
from infra.provider import PowerState, Safeguard
from infra.renting.checks import Check, checked
from infra.renting.first_boot import cloud_config
from infra.renting.gather import run_all
from infra.renting.refusal_cache import RefusalCache
from infra.renting.safeguards import HourlyRates, try_set, with_worst_case
from infra.renting.tags import tags_of, vm_from_tags


def cache(path: Path, clock: Callable[[], float]) -> RefusalCache:
    """A cache of a vendor that believes in a lack of capacity for three minutes."""
    return RefusalCache(
        path=path,
        clock=clock,
        ttl_s={NoCapacity: 180.0, OverQuota: 600.0},
        quota_covers=lambda refusal, size, listed: size[0] == refusal.size[0] and not listed,
    )


def test_refusals_are_believed_for_as_long_as_their_vendor_says(tmp_path: Path) -> None:
    """A lack of capacity counts for its size and zone, until the vendor's own time is over."""
    now = [1000.0]
    made = cache(tmp_path / "refusals.json", lambda: now[0])
    offer = dataclasses.replace(spec().offer, size="g5.xlarge", region="r", zone="r-a")

    made.note(offer, NoCapacity("full"))
    made.note(offer, Transient("busy"))

    found = made.against("G5.XLARGE", "r", zone="r-a", quota_is_listed=True)
    assert found is not None
    assert (found.clears, found.why) == (True, "full")
    assert made.against("g5.xlarge", "r", zone="r-b", quota_is_listed=True) is None
    now[0] += 181
    assert made.against("g5.xlarge", "r", zone="r-a", quota_is_listed=True) is None


def test_the_vendor_says_which_sizes_a_lack_of_quota_covers(tmp_path: Path) -> None:
    """A refusal for quota counts for other sizes of its region where the vendor's rule says so."""
    made = cache(tmp_path / "refusals.json", lambda: 1000.0)

    made.note(dataclasses.replace(spec().offer, size="g5.xlarge", region="r"), OverQuota("none"))

    assert made.against("g4dn.xlarge", "r", quota_is_listed=False) is not None
    assert made.against("g4dn.xlarge", "r", quota_is_listed=True) is None
    assert made.against("p4d.24xlarge", "r", quota_is_listed=False) is None
    assert made.against("g4dn.xlarge", "other", quota_is_listed=False) is None


def test_a_machine_is_read_back_from_its_tags_alone() -> None:
    """Whatever case a policy gives their names, tags name run, place, user, key and prices."""
    wanted = spec(region="r", size="g5.xlarge", zone="r-a")
    tags = tags_of(wanted, created_at="2026-11-30", idle_usd_per_h=0.014, name_chars_max=127)

    found = vm_from_tags(
        {name.upper(): value for name, value in tags.items()},
        provider="other",
        id_of=lambda run_id, generation: f"{run_id}/{generation}",
        default_idle_usd_per_h=1.0,
    )

    assert found is not None
    assert (found.provider, found.id, found.power) == ("other", "run-a/1", PowerState.REMNANTS)
    assert (found.region, found.zone, found.size) == ("r", "r-a", "g5.xlarge")
    assert (found.idle_usd_per_h, found.host_public_key) == (0.014, HOST_PUBLIC)
    assert vm_from_tags({}, provider="x", id_of=str.format, default_idle_usd_per_h=0) is None
    with pytest.raises(BadRequest, match="longer than 256"):
        tags_of(
            spec(labels={"name": "x" * 257}),
            created_at="",
            idle_usd_per_h=0,
            name_chars_max=127,
        )


def test_first_boot_without_self_release_starts_no_service() -> None:
    """The host key is installed, and nothing runs that nobody asked for."""
    text = cloud_config(host_private_key=HOST_PRIVATE, host_public_key=HOST_PUBLIC).decode()

    document = json.loads(text.removeprefix("#cloud-config\n"))
    assert document["ssh_keys"]["ed25519_public"] == HOST_PUBLIC
    assert [one["path"] for one in document["write_files"]] == [
        "/etc/ssh/sshd_config.d/60-qft.conf"
    ]
    assert (document["bootcmd"], "runcmd" in document) == ([], False)


def test_safeguards_name_the_bill_that_they_leave_possible() -> None:
    """One that cannot be set is a finding; with none that ends the bill, its lack is priced."""

    def refuse() -> Safeguard:
        raise NotAllowed("no right", hint="ask somebody")

    found = [try_set("schedule", refuse, permission_hint="ask for a role")]
    priced = with_worst_case(
        found, now_s=0.0, rates=HourlyRates(price_max=0.5, idle=0.01), main="schedule"
    )

    assert (found[0].is_set, found[0].hint) == (False, "ask for a role")
    assert "nothing stops it by itself: $12.24 a day" in priced[0].detail
    assert (
        with_worst_case(found, now_s=0, rates=HourlyRates(price_max=0, idle=1), main="x") == found
    )


def test_questions_that_are_late_or_refused_cost_no_answer() -> None:
    """What came in time counts; the rest is named, and nobody waits for it."""
    answers: list[str] = []
    problems: list[str] = []
    enough = threading.Event()

    def refuse() -> None:
        raise NotAllowed("not yours")

    def linger() -> None:
        enough.wait(30)

    jobs: list[Callable[[], None]] = [lambda: answers.append("here"), refuse, linger]
    run_all(jobs, problems, wait_s=0.5)
    enough.set()

    assert answers == ["here"]
    assert problems == ["not yours", "1 of 3 questions were not answered in 0.5 s"]


def test_a_check_that_cannot_be_made_is_a_finding() -> None:
    """A refusal while checking is shown with its hint instead of ending the doctor."""

    def refuse() -> Check:
        raise NotAllowed("no right", hint="ask somebody")

    found = checked("quota", refuse, required=False)

    assert (found.name, found.ok, found.detail, found.fix) == (
        "quota",
        False,
        "no right",
        "ask somebody",
    )
    assert not found.required
