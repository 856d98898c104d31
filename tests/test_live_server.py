"""The live page is for whoever has its address on this computer, and for nobody else."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from commands.runs.live.access import Request, Route, route, version_of
from commands.runs.live.changes import Snapshot
from commands.runs.live.feed import LISTENERS_MAX, Feed
from commands.runs.live.server import LiveServer

TIMEOUT_S = 60.0
ONE = [("summary", "<section id='summary'>one</section>")]
TWO = [*ONE, ("curves", "<section id='curves'>two</section>")]


@pytest.fixture
def feed() -> Feed:
    """A feed with one version."""
    made = Feed()
    made.publish(ONE, ended=False)
    return made


@pytest.fixture
def server(feed: Feed) -> Iterator[LiveServer]:
    """A server of a page that shows its version and its nonce."""
    made = LiveServer(feed, lambda snapshot, nonce: f"<p>{snapshot.version} {nonce}</p>")
    with made.serving():
        yield made


def ask(
    server: LiveServer,
    path: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
) -> tuple[int, dict[str, str], bytes]:
    """Send one request below the token's path; return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=TIMEOUT_S)
    try:
        target = path if path.startswith("/") else f"/{server.token}/{path}"
        connection.request(method, target, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


class Listener:
    """A browser's event source, read event by event."""

    def __init__(self, server: LiveServer, since: int = 0, last: str = "") -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=TIMEOUT_S)
        headers = {"Last-Event-ID": last} if last else {}
        connection.request("GET", f"/{server.token}/events?since={since}", headers=headers)
        self.answer = connection.getresponse()

    def event(self) -> tuple[str, dict[str, Any]]:
        """The name and the data of the next event; comments are passed over."""
        found: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode()
            assert line, "the stream ended"
            if line == "\n":
                if "data" in found:
                    return found["event"], json.loads(found["data"])
                found = {}
            elif not line.startswith(":"):
                name, _, value = line.rstrip("\n").partition(": ")
                found[name] = value

    def close(self) -> None:
        """Break off."""
        self.answer.close()


def test_the_page_has_headers_that_let_nothing_else_in_or_out(server: LiveServer) -> None:
    """Only scripts with this answer's nonce run; nothing frames, keeps or refers to the page."""
    status, headers, body = ask(server)
    _, again, _ = ask(server)

    assert status == 200
    nonce = body.decode().split()[1].removesuffix("</p>")
    csp = headers["content-security-policy"]
    assert f"script-src 'nonce-{nonce}'" in csp
    assert nonce not in again["content-security-policy"]
    for word in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert word in csp
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "Python" not in headers["server"]


@pytest.mark.parametrize("path", ["/", "/events", "/wrong/", "/favicon.ico", "//", "/%00/", "*"])
def test_without_the_token_there_is_nothing(server: LiveServer, path: str) -> None:
    """A path without the token, or with another one, is not found."""
    status, _, body = ask(server, path if path.startswith("/") else f"/{path}")

    assert (status, body) == (404, b"")


def test_a_part_of_the_token_is_no_token(server: LiveServer) -> None:
    """Neither a shorter nor a longer one is taken, nor what does not begin with it."""
    token = server.token
    for path in (f"/{token[:-1]}/", f"/{token}x/", f"/x/{token}/", f"/{token}", f"/{token}/no"):
        assert ask(server, path)[0] == 404


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:1",
        "attacker.test:{port}",
        "[::1]:{port}",
    ],
)
def test_another_host_is_refused(server: LiveServer, host: str) -> None:
    """A name that was made to point here, to get round the browser's rules, is not ours."""
    assert ask(server, headers={"Host": host.format(port=server.server_port)})[0] == 421


def test_a_tunnel_of_the_same_port_may_call_it_localhost(server: LiveServer) -> None:
    """`ssh -L` to this computer ends in `localhost` with the same port."""
    assert ask(server, headers={"Host": f"localhost:{server.server_port}"})[0] == 200


@pytest.mark.parametrize("relation", ["cross-site", "same-site", "whatever"])
def test_a_request_from_another_page_is_refused(server: LiveServer, relation: str) -> None:
    """What a page elsewhere sends, with the right address even, is not answered."""
    assert ask(server, headers={"Sec-Fetch-Site": relation})[0] == 403
    assert ask(server, "events", {"Sec-Fetch-Site": relation})[0] == 403
    assert ask(server, headers={"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert ask(server, headers={"Sec-Fetch-Site": "none"})[0] == 200


def test_another_origin_is_refused(server: LiveServer) -> None:
    """An old browser that tells no site tells where a script is from."""
    assert ask(server, "events", {"Origin": "http://example.com"})[0] == 403
    assert ask(server, headers={"Origin": "null"})[0] == 403


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
def test_only_get_is_answered(server: LiveServer, method: str) -> None:
    """Nothing can be changed here, so nothing else is taken."""
    status, headers, body = ask(server, method=method)

    assert (status, body) == (405, b"")
    assert headers["allow"] == "GET"


def test_two_hosts_in_one_request_are_refused() -> None:
    """Neither of two can be told to be the one that was meant."""
    request = Request(method="GET", target="/t/", hosts=["127.0.0.1:5", "127.0.0.1:5"])

    assert route(request, token="t", port=5) == 421
    one = Request(method="GET", target="/t/", hosts=["127.0.0.1:5"])
    assert route(one, token="t", port=5) is Route.PAGE


def test_it_listens_on_this_computer_only(server: LiveServer) -> None:
    """No other address of the computer has the port, and each server has another token."""
    assert server.server_address[0] == "127.0.0.1"
    other = LiveServer(Feed(), lambda _snapshot, _nonce: "")
    other.server_close()
    assert other.token != server.token
    assert len(server.token) >= 32


def test_nonsense_on_the_socket_is_refused(server: LiveServer) -> None:
    """What is no HTTP gets no page and breaks nothing."""
    for data in (b"\x16\x03\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port), TIMEOUT_S) as line:
            line.sendall(data)
            line.settimeout(TIMEOUT_S)
            assert b"summary" not in line.recv(10_000)
    assert ask(server)[0] == 200


def test_no_request_is_logged(server: LiveServer, capfd: pytest.CaptureFixture[str]) -> None:
    """The token is in the path, so no request is logged, nor its refusal."""
    ask(server)
    ask(server, "/wrong/")
    ask(server, method="POST")

    assert capfd.readouterr() == ("", "")


def test_a_change_is_sent_at_once_and_alone(server: LiveServer, feed: Feed) -> None:
    """A listener gets the sections that changed since the version of its page."""
    listener = Listener(server, since=1)
    feed.publish(TWO, ended=False)

    name, data = listener.event()
    assert name == "sections"
    assert data == {"version": 2, "order": ["summary", "curves"], "sections": dict(TWO[1:])}
    feed.publish(TWO[1:], ended=True)
    assert listener.event() == ("end", {"version": 3, "order": ["curves"], "sections": {}})
    listener.close()


def test_who_comes_back_gets_what_was_missed(server: LiveServer, feed: Feed) -> None:
    """The last event that a browser names counts more than the address of its page."""
    feed.publish(TWO, ended=False)
    changed = [("summary", "<section id='summary'>three</section>"), TWO[1]]
    feed.publish(changed, ended=False)
    listener = Listener(server, since=1, last="2")

    assert listener.event()[1]["sections"] == dict(changed[:1])
    listener.close()
    stranger = Listener(server, since=99)
    assert stranger.event()[1]["sections"] == dict(changed)
    stranger.close()


def test_more_than_eight_listeners_are_refused_until_one_leaves(
    server: LiveServer, feed: Feed
) -> None:
    """The ninth gets a status that says so; a place is free again once a browser is gone."""
    with ExitStack() as stack:
        listeners = [Listener(server) for _ in range(LISTENERS_MAX)]
        for one in listeners:
            stack.callback(one.close)
            assert one.answer.status == 200
            one.event()
        assert ask(server, "events")[0] == 503
        assert ask(server)[0] == 200
        listeners[0].close()
        ends_s = time.monotonic() + TIMEOUT_S
        version = 2
        while True:  # that one is gone is found when it is sent something
            version += 1
            feed.publish([*ONE, ("more", str(version))], ended=False)
            late = Listener(server)
            stack.callback(late.close)
            if late.answer.status == 200:
                break
            assert time.monotonic() < ends_s
            time.sleep(0.05)


def test_what_did_not_change_makes_no_version() -> None:
    """The same sections are the same version, and removing one is a change."""
    one = Snapshot().after(ONE, ended=False)

    assert one.after(ONE, ended=False) is one
    assert one.after([], ended=False).version == 2
    assert one.after(ONE, ended=True).version == 2


def test_an_event_is_one_line_whatever_the_html() -> None:
    """Line ends in a section cannot forge a field of an event."""
    snapshot = Snapshot().after([("a", "x\n\nevent: end\ndata: {}\r\n\u2028")], ended=False)
    event = snapshot.event(0).decode()

    assert event.splitlines()[0] == "event: sections"
    assert len(event.rstrip("\n").split("\n")) == 3
    assert json.loads(event.partition("data: ")[2])["sections"]["a"].startswith("x\n\nevent")


@pytest.mark.parametrize(
    ("target", "last", "version"),
    [
        ("/t/events?since=7", None, 7),
        ("/t/events?since=7", "9", 9),
        ("/t/events", None, 0),
        ("/t/events?since=-1", "x", 0),
        ("/t/events?since=" + "9" * 40, None, 0),
        ("/t/events?since=²", None, 0),
    ],
)
def test_a_version_is_a_short_whole_number(target: str, last: str | None, version: int) -> None:
    """Anything else counts as no version, so that everything is sent."""
    assert version_of(target, last) == version
