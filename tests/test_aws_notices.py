"""EC2's notices reach the trainer by IMDSv2, and no answer of that service ends a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from support.imdsv2 import INTERRUPTION_PATH, REBALANCE_PATH, TOKEN_PATH, Imds, Reply, serving
from support.runs import wait_until

from trainer.eviction import MetadataPoll, PreemptionFlag
from trainer.notices.aws import (
    NOTICE_S,
    TOKEN_RENEWAL_S,
    AwsNotices,
    interruption_in,
    recommends_rebalance,
)
from trainer.notices.metadata import ANSWER_BYTES_MAX, Announced, StatusError, read_url

NOW = datetime(2026, 11, 29, 8, 20, tzinfo=UTC)
STOP = {"action": "stop", "time": "2026-11-29T08:22:00Z"}
REBALANCE = {"noticeTime": "2026-11-29T08:19:00Z"}


@pytest.fixture
def imds() -> Iterator[Imds]:
    """A metadata service that announces nothing."""
    with serving(Imds()) as service:
        yield service


def look(notices: AwsNotices) -> Announced:
    """Ask once."""
    return notices.announced(NOW, timeout_s=60)


def poll(
    imds: Imds, messages: list[str], *, until: Callable[[PreemptionFlag], bool]
) -> PreemptionFlag:
    """Poll fast until the flag is as it should be; the flag's own clock stands still."""
    flag = PreemptionFlag(lambda: 100.0)
    asking = MetadataPoll(
        url=imds.url,
        api="aws",
        flag=flag,
        now=lambda: NOW,
        on_message=messages.append,
        poll_s=0.01,
        first_call_s_max=60.0,
    )
    asking.start()
    wait_until(lambda: until(flag))
    asking.close()
    return flag


def test_an_interruption_raises_the_flag_with_its_deadline(imds: Imds) -> None:
    """The notice is read with a token of IMDSv2, and leaves the time that EC2 gives."""
    imds.documents[INTERRUPTION_PATH] = STOP
    flag = poll(imds, [], until=lambda flag: flag.notice is not None)

    assert flag.notice is not None
    assert (flag.notice.reason, flag.seconds_left) == ("eviction notice", 120.0)
    assert imds.requests == [f"PUT {TOKEN_PATH}", f"GET {INTERRUPTION_PATH}"]


def test_a_recommendation_requests_a_checkpoint_and_never_the_end(imds: Imds) -> None:
    """It is told once, and the notice that follows is still heard."""
    imds.documents[REBALANCE_PATH] = REBALANCE
    messages: list[str] = []
    flag = poll(imds, messages, until=lambda _: len(imds.requests) > 8)

    assert flag.save_requested
    assert flag.notice is None
    assert messages == ["this machine may be taken away soon: saving a checkpoint"]
    imds.documents[INTERRUPTION_PATH] = STOP
    assert look(AwsNotices(imds.url)) == Announced(seconds_left=120.0)


def test_nothing_announced_is_no_message(imds: Imds) -> None:
    """404 is how EC2 says that there is no notice."""
    messages: list[str] = []
    flag = poll(imds, messages, until=lambda _: len(imds.requests) > 8)

    assert (flag.notice, flag.save_requested, messages) == (None, False, [])


def test_one_token_serves_many_requests_and_is_renewed_before_it_ends(imds: Imds) -> None:
    """A token is asked for once, and again when half of its six hours have passed."""
    now = [0.0]
    notices = AwsNotices(imds.url, clock=lambda: now[0])
    for now[0] in (0.0, 1.0, TOKEN_RENEWAL_S, TOKEN_RENEWAL_S + 1):
        assert look(notices) == Announced()

    assert len(imds.tokens) == 2


def test_a_token_that_is_no_longer_accepted_is_renewed_at_once(imds: Imds) -> None:
    """A 401, as after a restart of the service, costs one more request and no notice."""
    notices = AwsNotices(imds.url)
    look(notices)
    imds.tokens.append("of somebody else")
    imds.documents[INTERRUPTION_PATH] = STOP

    assert look(notices) == Announced(seconds_left=120.0)


def test_a_service_that_refuses_every_token_gets_two_requests(imds: Imds) -> None:
    """A 401 with a new token is an error, not a loop."""
    imds.replies = [(200, b"token", {}), (401, b"", {}), (200, b"token", {}), (401, b"", {})]

    with pytest.raises(StatusError, match="401"):
        look(AwsNotices(imds.url))
    assert len(imds.requests) == 4


@pytest.mark.parametrize(
    "reply",
    [
        (403, b"", {}),
        (500, b"", {}),
        (400, b"", {}),
        (302, b"", {"Location": "/latest/meta-data/iam/"}),
        (301, b"", {"Location": "http://192.0.2.1/"}),
        (200, b"", {}),
        (200, b"two\nlines", {}),
        (200, "not ascii \u00e9".encode(), {}),
        (200, b"x" * (ANSWER_BYTES_MAX + 1), {}),
        (200, b"t", {"Content-Length": "-4"}),
        (200, b"t", {"Transfer-Encoding": "chunked"}),
    ],
    ids=lambda reply: f"{reply[0]}-{len(reply[1])}-{''.join(reply[2])}",
)
def test_a_broken_answer_is_one_message_and_survived(imds: Imds, reply: Reply) -> None:
    """Whatever stands in the place of a token, the next good notice is heard."""
    imds.replies = [reply, reply]
    imds.documents[INTERRUPTION_PATH] = STOP
    messages: list[str] = []
    flag = poll(imds, messages, until=lambda flag: flag.notice is not None)

    assert flag.seconds_left == 120.0
    assert len(messages) == 1
    assert messages[0].startswith("eviction notices cannot be heard: ")
    assert not any("iam" in one for one in imds.requests)


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"stop"',
        b'{"action": "stop"' + b" " * ANSWER_BYTES_MAX + b"}",
        b'{"a":' * 80,
        {"action": "none", "time": "2026-11-29T08:22:00Z"},
        {"action": ["stop"], "time": "2026-11-29T08:22:00Z"},
        {"time": "2026-11-29T08:22:00Z"},
    ],
    ids=lambda document: str(document)[:20],
)
def test_nonsense_in_the_place_of_a_notice_is_none(imds: Imds, document: Any) -> None:
    """No action that EC2 documents, no notice; the training goes on, and so does the asking."""
    imds.documents[INTERRUPTION_PATH] = document
    flag = poll(imds, [], until=lambda _: len(imds.requests) > 6)

    assert flag.notice is None


@pytest.mark.parametrize(
    ("when", "expected_s"),
    [
        ("2026-11-29T08:20:30Z", 30.0),
        ("2026-11-29T08:20:30", 30.0),
        ("2026-11-29T09:20:30+01:00", 30.0),
        ("2026-11-29T08:19:00Z", 0.0),
        ("2036-11-29T08:19:00Z", NOTICE_S),
        ("soon", NOTICE_S),
        ("", NOTICE_S),
        (None, NOTICE_S),
        (1e300, NOTICE_S),
        ("9999-12-31T23:59:59-23:59", NOTICE_S),
        ("2026-11-29T08:00:00Z", None),
        ("1970-01-01T00:00:00Z", None),
    ],
)
def test_the_deadline_is_sane_whatever_the_notice_says(
    when: object, expected_s: float | None
) -> None:
    """A wrong time gives a bounded deadline, and one that is long past is of an earlier stop."""
    assert interruption_in({"action": "stop", "time": when}, NOW) == expected_s


@pytest.mark.parametrize("action", ["stop", "terminate", "hibernate"])
def test_every_action_of_ec2_is_the_end(action: str) -> None:
    """Whatever EC2 does with the machine, it no longer runs afterwards."""
    assert interruption_in({**STOP, "action": action}, NOW) == 120.0


@pytest.mark.parametrize("document", [None, [], 3, "noticeTime", {}, {"notice": 1}])
def test_another_document_is_no_recommendation(document: object) -> None:
    """Only a document with the time of a recommendation is one."""
    assert not recommends_rebalance(document)


def test_an_answer_that_drips_is_cut_off(imds: Imds) -> None:
    """The time limit is for the whole answer, not for each of its bytes."""

    def slow() -> bytes:
        time.sleep(0.05)
        return b"{}"

    imds.documents[INTERRUPTION_PATH] = slow
    look(AwsNotices(imds.url))
    headers = {"X-aws-ec2-metadata-token": imds.tokens[-1]}
    with pytest.raises(TimeoutError):
        read_url(imds.url + INTERRUPTION_PATH, headers=headers, timeout_s=0.01)
