"""Azure may word an answer otherwise than it did in the traffic that was recorded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arm import Cloud
from arm.harness import AzureHarness, azure, spec
from arm.replies import Reply, Request

from infra.azure import AzureProvider
from infra.errors import BadRequest
from infra.provider import PowerState

Wording = Callable[[Request, Reply], Reply]


def speak(monkeypatch: pytest.MonkeyPatch, wording: Wording) -> None:
    """Let the simulated cloud word its answers so."""
    plain = Cloud._answer

    def answer(cloud: Cloud, request: Request) -> Reply:
        reply = plain(cloud, request)
        return wording(request, reply) if request.path.startswith("/subscriptions/") else reply

    monkeypatch.setattr(Cloud, "_answer", answer)


def made(request: Request, reply: Reply) -> bool:
    """Whether this is the answer to the making of a machine."""
    is_machine = re.search(r"(?i)/virtualMachines/[^/]+$", request.path)
    return request.method == "PUT" and reply.status < 300 and bool(is_machine)


def bare(request: Request, reply: Reply) -> Reply:
    """Say no more of a machine that is being made than that it is."""
    if not made(request, reply):
        return reply
    body = {"id": reply.body["id"], "properties": {"provisioningState": "Creating"}}
    return dataclasses.replace(reply, body=body)


def loud(_: Request, reply: Reply) -> Reply:
    """Write ids and states in capitals, which ARM compares without regard to case."""

    def shout(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: shout(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [shout(one) for one in value]
        return value.upper() if key in {"id", "provisioningState", "status"} else value

    return dataclasses.replace(reply, body=shout(reply.body))


def terse(_: Request, reply: Reply) -> Reply:
    """Give no advice when to ask again, and of two ways to follow an operation only one."""
    dropped = {"Retry-After"} | ({"Location"} if "Azure-AsyncOperation" in reply.headers else set())
    kept = {name: value for name, value in reply.headers.items() if name not in dropped}
    return dataclasses.replace(reply, headers=kept)


@pytest.mark.parametrize("wording", [bare, loud, terse])
def test_whole_run_in_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wording: Wording
) -> None:
    """Made, looked at, released, started, listed and removed, whatever the answers look like."""
    speak(monkeypatch, wording)
    with azure(tmp_path) as harness:
        vm = harness.provider().create(spec())
        harness.advance(300)
        assert harness.provider().observe(vm).power is PowerState.RUNNING
        harness.provider().deallocate(vm)
        assert harness.provider().observe(vm).power is PowerState.DEALLOCATED
        harness.provider().start(vm)
        (listed,) = harness.provider().list_all()
        assert listed.host == vm.host
        harness.provider().delete("run-a")
        assert harness.cloud.leftovers() == []


def impatient(harness: AzureHarness) -> AzureProvider:
    """A provider that does not wait to see a machine made."""
    provider = harness.provider()
    provider._settings = dataclasses.replace(provider._settings, accept_wait_s=0.01)
    return provider


def test_machine_is_judged_by_itself_not_by_the_echo_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PUT that is answered as asked, and makes another machine, does not get past."""

    def echo(request: Request, reply: Reply) -> Reply:
        if not made(request, reply):
            return reply
        properties = reply.body["properties"] | {"priority": "Spot", "evictionPolicy": "Deallocate"}
        properties |= {"billingProfile": request.body["properties"]["billingProfile"]}
        return dataclasses.replace(reply, body=reply.body | {"properties": properties})

    speak(monkeypatch, echo)
    with azure(tmp_path) as harness:
        harness.cloud.world.loses_priority = True

        with pytest.raises(BadRequest, match="Regular"):
            impatient(harness).create(spec())

        assert harness.cloud.leftovers() == []
