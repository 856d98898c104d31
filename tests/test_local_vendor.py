"""A machine of this computer can play one of EC2: its notices, and its readable first boot."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from support.runs import make_project

from infra.local.imds import MetadataService
from infra.local.imdsv2 import TOKEN_PATH, Imdsv2
from infra.run.fold import fold
from infra.run.journal import Kind
from trainer.notices.aws import AwsNotices
from trainer.notices.metadata import Announced

NOW_S = 1_800_000_000.0
ACTION = "/latest/meta-data/spot/instance-action"
TTL = "x-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "x-aws-ec2-metadata-token"


@pytest.fixture
def clock() -> list[float]:
    """The time, which stands still until a test moves it."""
    return [NOW_S]


@pytest.fixture
def imds(clock: list[float]) -> Imdsv2:
    """The metadata of one instance."""
    compute = {"vmId": "i-1", "vmSize": "g5.xlarge", "location": "us-east-1"}
    return Imdsv2(compute=compute, clock=lambda: clock[0])


def token_of(imds: Imdsv2, ttl: str = "60") -> str:
    """A token that was just made."""
    status, token = imds.answer("PUT", TOKEN_PATH, {TTL: ttl})
    assert status is HTTPStatus.OK
    return str(token)


def test_nothing_is_read_without_a_token_that_holds(imds: Imdsv2, clock: list[float]) -> None:
    """None, a foreign one and one that has ended are a 401, also where nothing is."""
    token = token_of(imds)
    assert imds.answer("GET", ACTION, {TOKEN: token})[0] is HTTPStatus.NOT_FOUND
    clock[0] += 60

    for headers in ({}, {TOKEN: ""}, {TOKEN: "x"}, {TOKEN: token}):
        assert imds.answer("GET", ACTION, headers)[0] is HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "1.5", "x"])
def test_token_is_valid_for_one_second_to_six_hours(imds: Imdsv2, ttl: str) -> None:
    """Any other is a 400, and so is none."""
    assert imds.answer("PUT", TOKEN_PATH, {TTL: ttl})[0] is HTTPStatus.BAD_REQUEST
    assert imds.answer("GET", TOKEN_PATH, {TTL: "60"})[0] is HTTPStatus.METHOD_NOT_ALLOWED


def test_values_of_the_instance_are_text(imds: Imdsv2) -> None:
    """Its id, its type and its region; what is not there is a 404."""
    headers = {TOKEN: token_of(imds)}
    found = {
        name: imds.answer("GET", f"/latest/meta-data/{name}", headers)
        for name in ("instance-id", "instance-type", "placement/region", "iam/info", "")
    }

    assert [answer for status, answer in found.values() if status is HTTPStatus.OK] == [
        "i-1",
        "g5.xlarge",
        "us-east-1",
    ]
    assert imds.answer("POST", ACTION, headers)[0] is HTTPStatus.METHOD_NOT_ALLOWED


def test_trainer_hears_an_interruption_from_it() -> None:
    """Over HTTP, in EC2's words, under the secret path of this machine."""

    async def play() -> list[Announced]:
        service = MetadataService(
            vm_name="vm",
            compute={},
            first_call_s=0.0,
            clock=lambda: NOW_S,
            on_start_request=lambda: None,
            vendor="aws",
            secret="/secret",
        )
        server = await service.serve()
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret/"
        notices, now = AwsNotices(url), datetime.fromtimestamp(NOW_S, UTC)

        async def look() -> Announced:
            return await asyncio.to_thread(notices.announced, now, timeout_s=60)

        found = [await look()]
        service.announce_preemption(7)
        found.append(await look())
        server.close()
        await server.wait_closed()
        return found

    assert asyncio.run(play()) == [Announced(), Announced(seconds_left=7.0)]


@pytest.mark.slow
def test_run_on_such_a_machine_changes_its_host_key_and_hears_its_notice(tmp_path: Path) -> None:
    """One change before anything is sent, one eviction with its notice, and the adapter at home."""
    project = make_project(
        tmp_path / "project",
        vm={"local": {"vendor": "aws", "notice_s": 20}, "rehearse_evictions": [60]},
    )
    done = project.qft("run")
    kinds, state = project.kinds(), fold(project.events())
    made: dict[str, Any] = next(
        event.data["vm"] for event in project.events() if event.kind is Kind.CREATE_ACCEPTED
    )
    changed = [event for event in project.events() if event.kind is Kind.HOST_KEY_CHANGED]

    assert done.returncode == 0, done.stderr
    assert [event.data["public_key"] for event in changed] != [made["host_public_key"]]
    assert len(changed) == kinds.count(Kind.HOST_KEY_INTENDED) == 1
    assert kinds.index(Kind.HOST_KEY_CHANGED) < kinds.index(Kind.PREPARED)
    assert kinds.count(Kind.HOST_KEY_KEPT) == 0
    assert (state.evictions, kinds.count(Kind.START_ACCEPTED)) == (1, 1)
    log = (project.out / "trainer.log").read_text()
    assert "preempted: the state is saved" in log
    assert json.loads((project.out / "receipt.json").read_text())["evictions"] == 1
    assert project.processes() == []
