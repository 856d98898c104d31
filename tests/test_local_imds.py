"""The metadata service of a local machine answers as Azure documents it."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from infra.local.imds import MetadataService, user_of

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NOW = 1_800_000_000.0

Ask = Callable[..., Any]
Story = Callable[[MetadataService, Ask], Any]


class Reply(Exception):  # noqa: N818  (a refusal as a value)
    """An answer that is not 200."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status} {body}")
        self.status = status


def serving(story: Story, **changes: Any) -> Any:
    """Run a story, written as plain blocking calls, against a service that listens."""

    async def play() -> Any:
        settings: dict[str, Any] = {
            "vm_name": "vm-1",
            "compute": {"name": "vm-1", "location": "local-1", "zone": ""},
            "first_call_s": 0.0,
            "clock": lambda: NOW,
            "on_start_request": lambda: None,
        }
        service = MetadataService(**(settings | changes))
        server = await service.serve()
        port = server.sockets[0].getsockname()[1]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask(path: str, *, data: bytes | None = None, metadata: str | None = "true") -> Any:
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data)
            if metadata is not None:
                request.add_header("Metadata", metadata)
            try:
                with opener.open(request, timeout=120) as reply:
                    body = reply.read().decode()
                    is_json = reply.headers["Content-Type"].startswith("application/json")
            except urllib.error.HTTPError as error:
                with error:
                    raise Reply(error.code, error.read().decode()) from error
            return json.loads(body) if is_json else body

        try:
            return await asyncio.to_thread(story, service, ask)
        finally:
            server.close()
            await server.wait_closed()

    return asyncio.run(play())


def refused(ask: Ask, path: str, **how: Any) -> int:
    """The status of a refusal."""
    with pytest.raises(Reply) as caught:
        ask(path, **how)
    return caught.value.status


def test_quiet_machine_has_no_events() -> None:
    """Without an announcement the document is empty and its incarnation does not move."""

    def story(_: MetadataService, ask: Ask) -> Any:
        return ask(EVENTS), ask(EVENTS)

    assert serving(story) == ({"DocumentIncarnation": 1, "Events": []},) * 2


def test_preemption_is_announced_in_azures_words() -> None:
    """The event has every field of the documentation, and its time is RFC 1123 in GMT."""

    def story(service: MetadataService, ask: Ask) -> Any:
        service.announce_preemption(30)
        return ask(EVENTS)

    document = serving(story)
    (event,) = document["Events"]
    assert document["DocumentIncarnation"] == 2
    assert len(event.pop("EventId")) == 36
    assert email.utils.parsedate_to_datetime(event["NotBefore"]).timestamp() == NOW + 30
    assert event.pop("NotBefore").endswith(" GMT")
    assert event == {
        "EventType": "Preempt",
        "ResourceType": "VirtualMachine",
        "Resources": ["vm-1"],
        "EventStatus": "Scheduled",
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }


def test_started_event_has_no_time_left() -> None:
    """Once begun, the event says so, its time is empty, and the incarnation has moved."""

    def story(service: MetadataService, ask: Ask) -> Any:
        service.announce_preemption(30)
        service.start_preemption()
        return ask(EVENTS)

    document = serving(story)
    (event,) = document["Events"]
    assert document["DocumentIncarnation"] == 3
    assert (event["EventStatus"], event["NotBefore"]) == ("Started", "")


@pytest.mark.parametrize("metadata", [None, "false", ""])
def test_header_is_required(metadata: str | None) -> None:
    """A request without `Metadata: true` is a 400, on every path."""

    def story(_: MetadataService, ask: Ask) -> Any:
        instance = "/metadata/instance?api-version=2021-02-01"
        return [refused(ask, path, metadata=metadata) for path in (EVENTS, instance, "/")]

    assert serving(story) == [400, 400, 400]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/metadata/scheduledevents", 400),
        ("/metadata/instance", 400),
        ("/metadata/nothing?api-version=2020-07-01", 404),
        ("/metadata/instance/compute/nothing?api-version=2021-02-01&format=text", 404),
        ("/metadata/instance/compute/name?api-version=2021-02-01", 400),
        ("/metadata/instance?api-version=2021-02-01&format=text", 400),
    ],
)
def test_nonsense_is_refused(path: str, status: int) -> None:
    """A missing version is a 400, an unknown path a 404, a leaf without format=text a 400."""

    def story(_: MetadataService, ask: Ask) -> Any:
        return refused(ask, path)

    assert serving(story) == status


def test_instance_tells_facts() -> None:
    """Facts come as a tree of strings, or one by one as text, whatever the case of the path."""

    def story(_: MetadataService, ask: Ask) -> Any:
        version = "api-version=2021-02-01"
        return (
            ask(f"/metadata/instance?{version}"),
            ask(f"/metadata/instance/compute?{version}"),
            ask(f"/metadata/instance/compute/LOCATION?{version}&format=text"),
        )

    compute = {"name": "vm-1", "location": "local-1", "zone": ""}
    assert serving(story) == ({"compute": compute}, compute, "local-1")


def test_first_look_may_be_slow() -> None:
    """Only the first question to the events takes its time; others are answered meanwhile."""

    def story(_: MetadataService, ask: Ask) -> Any:
        import threading
        import time

        began = time.monotonic()
        times: list[float] = []

        def look() -> None:
            ask(EVENTS)
            times.append(time.monotonic() - began)

        first = threading.Thread(target=look)
        first.start()
        time.sleep(0.05)
        look()
        first.join()
        return times

    second, first = serving(story, first_call_s=0.5)
    assert second < first
    assert first >= 0.5


def test_machine_can_agree_to_go_now() -> None:
    """A start request for the announced event is passed on; one for another event is refused."""
    agreed: list[bool] = []

    def story(service: MetadataService, ask: Ask) -> Any:
        service.announce_preemption(30)
        (event,) = ask(EVENTS)["Events"]
        other = json.dumps({"StartRequests": [{"EventId": "0000"}]}).encode()
        refusals = [refused(ask, EVENTS, data=other)]
        refusals += [
            refused(ask, EVENTS, data=bad) for bad in (b"{", b"[]", b"{}", b'{"StartRequests": 1}')
        ]
        assert agreed == []
        ask(EVENTS, data=json.dumps({"StartRequests": [{"EventId": event["EventId"]}]}).encode())
        return refusals

    refusals = serving(story, on_start_request=lambda: agreed.append(True))
    assert refusals == [400] * 5
    assert agreed == [True]


def test_nonsense_requests_are_survived() -> None:
    """What is no HTTP is answered with a 400 or nothing, and the next request is served."""

    async def play() -> list[bytes]:
        service = MetadataService(
            vm_name="v",
            compute={},
            first_call_s=0,
            clock=lambda: NOW,
            on_start_request=lambda: None,
        )
        server = await service.serve()
        port = server.sockets[0].getsockname()[1]
        answers = []
        for data in (
            b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"x"
            * 65540,  # no more than is read before it is refused, so that no reset overtakes it
            b"GET / HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
            b"GET " + EVENTS.encode() + b" HTTP/1.1\r\nMetadata: true\r\n\r\n",
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            answers.append((await reader.read())[:12])
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answers

    assert asyncio.run(play()) == [b"HTTP/1.1 400"] * 5 + [b"HTTP/1.1 200"]


LOOK = """
import os, socket, sys
port, path, user = sys.argv[1:]
if user:
    os.setuid(int(user))  # everything is imported: another user may not be able to read it
with socket.socket() as line:
    line.connect(("127.0.0.1", int(port)))
    line.sendall(f"GET {path} HTTP/1.1\\r\\nMetadata: true\\r\\n\\r\\n".encode())
    print(line.recv(100).split()[1].decode())
"""


def requested_by_processes(*users: str, **changes: Any) -> list[str]:
    """What processes of these users (empty: our own) are answered by one service."""

    async def play() -> list[str]:
        settings: dict[str, Any] = {
            "vm_name": "v",
            "compute": {},
            "first_call_s": 0,
            "clock": lambda: NOW,
            "on_start_request": lambda: None,
        }
        service = MetadataService(**(settings | changes))
        server = await service.serve()
        port = server.sockets[0].getsockname()[1]
        statuses = []
        for user in users:
            ask = partial(
                subprocess.run,
                [sys.executable, "-I", "-S", "-c", LOOK, str(port), EVENTS, user],
                capture_output=True,
                text=True,
                check=True,
            )
            statuses.append((await asyncio.to_thread(ask)).stdout.strip())
        server.close()
        await server.wait_closed()
        return statuses

    return asyncio.run(play())


def test_only_the_machines_own_user_is_answered() -> None:
    """The kernel says whose process asks: another user's gets nothing, whoever that is."""
    ours = os.getuid()
    others = ["65534"] if ours == 0 else []  # only root can become another

    assert requested_by_processes("", *others) == ["200", *["403" for _ in others]]
    assert requested_by_processes("", owner=ours + 1) == ["403"]


def test_only_the_machine_that_knows_its_path_is_answered() -> None:
    """Another machine of the same user does not know what the paths begin with."""

    def story(_: MetadataService, ask: Ask) -> Any:
        return refused(ask, EVENTS), refused(ask, f"/other{EVENTS}"), ask(f"/5ec2e7{EVENTS}")

    assert serving(story, secret="/5ec2e7") == (403, 403, {"DocumentIncarnation": 1, "Events": []})


TABLE = """  sl  local_address rem_address st tx_queue tr tm->when retrnsmt uid timeout inode
   0: 0100007F:9C40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1
   1: 0100007F:9C40 0100007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 2 1
   2: 0100007F:D431 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1001        0 3 1
"""


@pytest.mark.parametrize(("port", "uid"), [(54321, 1001), (1, None)])
def test_the_kernels_table_is_read_as_proc_describes_it(port: int, uid: int | None) -> None:
    """The row of the asker's own end counts, not that of ours; one that is gone has no user."""
    table = TABLE if sys.byteorder == "little" else TABLE.replace("0100007F", "7F000001")

    assert user_of(table, ours=("127.0.0.1", port), theirs=("127.0.0.1", 40000)) == uid
