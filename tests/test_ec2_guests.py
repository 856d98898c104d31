"""A machine of the simulated EC2 is a real one: made from its user data, with SSH and IMDSv2."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ec2.guests import Ec2Guests, card_of
from ec2.harness import A10G, AwsHarness, aws, spec
from ec2.metadata import TOKEN_HEADER, TOKEN_PATH, TTL_HEADER, Imds, MetadataFacts
from ec2.resources import Instance
from ec2.steps import REGION, Ec2User
from metal import firstboot
from metal.machine import Metal
from metal.programs import SHELLED
from support.azure_login import TIMEOUT_S, enter
from support.runs import wait_until

from infra.aws.user_data import user_data
from infra.provider import Vm
from remote import keys
from remote.errors import Unreachable
from remote.ssh import SshConnection

PACE = 60.0
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIUseruseruseruseruseruseruseruseruseruser me"


@pytest.fixture
def guests(tmp_path: Path) -> Ec2Guests:
    """Room for real machines."""
    return Ec2Guests(tmp_path / "guests", pace=PACE)


@pytest.fixture
def harness(tmp_path: Path, guests: Ec2Guests) -> Iterator[AwsHarness]:
    """An account whose machines boot from the data that they were launched with."""
    with aws(tmp_path / "state", hypervisor=guests) as harness:
        yield harness


def launch(harness: AwsHarness, folder: Path, **changes: Any) -> Instance:
    """A machine with the product's own user data that runs; its keys lie in the folder."""
    public, host = keys.generate(folder / "user"), keys.generate(folder / "host")
    private = (folder / "host").read_text()
    wanted = spec(public_key=public, host_private_key=private, host_public_key=host)
    user = Ec2User(harness)
    user.run(**{"UserData": user_data(wanted), "InstanceType": "g4dn.xlarge", **changes})
    harness.advance(20)
    (machine,) = harness.cloud.machines()
    return machine


def log_in(guests: Ec2Guests, machine: Instance, folder: Path) -> SshConnection:
    """Connect as the user in its data, with the pinned key, at the address of now."""
    assert machine.state == "running"
    vm = Vm(
        provider="aws",
        run_id="run-a",
        id=machine.id,
        region=machine.region,
        size=machine.size,
        host=machine.public_ip,
        port=guests.ssh_port,
    )
    return enter(vm, folder / "user", (folder / "host.pub").read_text().strip())


def is_stopping(harness: AwsHarness) -> bool:
    """Whether the one machine stops, with all that belongs to its stop done."""
    (machine,) = harness.cloud.machines()  # waits for whoever changes the world just now
    return machine.state == "stopping"


def inside(guests: Ec2Guests) -> Metal:
    """The inside of the one machine, when its first boot is over."""
    (metal,) = guests.metals.values()
    wait_until(lambda: not metal.store.read().booting)
    return metal


def ask(url: str, path: str, *, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Ask a metadata service; status and text."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(  # noqa: S310  (loopback)
        f"{url}{path}", headers=named, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def token_of(url: str, ttl: str = "60") -> dict[str, str]:
    """The header with a session token."""
    _, token = ask(url, TOKEN_PATH, method="PUT", **{TTL_HEADER: ttl})
    return {TOKEN_HEADER: token}


# ---- machines ----


def test_a_machine_is_made_from_its_user_data_and_shuts_itself_down(
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path
) -> None:
    """Its one user logs in past the pinned key; `shutdown` inside stops it and its request.

    The disk is there at the next start, behind another address.
    """
    machine = launch(harness, tmp_path)
    metal = inside(guests)
    with log_in(guests, machine, tmp_path) as connection:
        done = connection.run("echo kept > note; id -u; uname -r", timeout_s=TIMEOUT_S)
        assert done.stdout.split() == ["1000", "6.14.0-1018-aws"]
        refused = connection.run("shutdown -h now", timeout_s=TIMEOUT_S, check=False)
        assert refused.exit_code == 1
        before = machine.public_ip
        with contextlib.suppress(Unreachable):  # the connection ends with the machine
            connection.run("sudo -n shutdown -h now", timeout_s=TIMEOUT_S, check=False)
    wait_until(lambda: is_stopping(harness))
    harness.advance(120)

    request = harness.cloud.world.request_of(machine)
    assert machine.reason_code == "Client.InstanceInitiatedShutdown"
    assert request is not None
    assert (request.state, request.status) == ("disabled", "instance-stopped-by-user")
    assert not any(line.startswith("compute") for line in harness.cloud.ledger.billing())
    Ec2User(harness).call("start_instances", InstanceIds=[machine.id])
    harness.advance(20)
    with log_in(guests, machine, tmp_path) as connection:
        assert connection.run("cat note", timeout_s=TIMEOUT_S).stdout.strip() == "kept"
    assert machine.public_ip != before
    assert metal.store.read().boot_count == 2


def test_the_program_in_the_user_data_ends_an_idle_machine(
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path
) -> None:
    """With nobody there, `qft-watch` shuts the machine down: no role, no laptop, no credential."""
    guests.hurry = ("--every-s", "0.1", "--idle-s", "0")
    machine = launch(harness, tmp_path)

    wait_until(lambda: is_stopping(harness))

    assert machine.reason_code == "Client.InstanceInitiatedShutdown"


def test_an_interrupted_machine_comes_back_with_its_disk(
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path
) -> None:
    """IMDSv2 announces the stop by the machine's own clock; EC2 restarts the same disk."""
    machine = launch(harness, tmp_path)
    with log_in(guests, machine, tmp_path) as connection:
        connection.run("echo kept > note", timeout_s=TIMEOUT_S)
    url = guests.metadata_url
    headers = token_of(url)
    action = "/latest/meta-data/spot/instance-action"
    assert ask(url, action, **headers)[0] == 404

    harness.cloud.interrupt(machine, notice_s=120)
    status, text = ask(url, action, **headers)
    notice = json.loads(text)
    ahead_s = datetime.fromisoformat(notice["time"]).timestamp() - time.time()
    harness.advance(125)
    processes = guests.processes(machine)
    harness.advance(400)

    assert (status, notice["action"]) == (200, "stop")
    assert -TIMEOUT_S < ahead_s <= 120 / PACE
    assert processes == 0
    with log_in(guests, machine, tmp_path) as connection:
        assert connection.run("cat note", timeout_s=TIMEOUT_S).stdout.strip() == "kept"


def test_a_relaunched_machine_has_an_empty_disk(
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path
) -> None:
    """What EC2 launches by itself after a terminate is made from the same user data, anew."""
    machine = launch(harness, tmp_path)
    with log_in(guests, machine, tmp_path) as connection:
        connection.run("echo kept > note", timeout_s=TIMEOUT_S)
    assert (guests.directory / machine.id / "disk/note").exists()

    harness.cloud.terminate_behind(machine)
    harness.advance(300)
    (other,) = harness.cloud.machines()

    assert [path.name for path in guests.directory.iterdir()] == [other.id]
    assert other.id != machine.id
    with log_in(guests, other, tmp_path) as connection:
        assert connection.run("ls", timeout_s=TIMEOUT_S).stdout == ""


@pytest.mark.parametrize(
    ("name", "output", "code"),
    [("Deep Learning Base", "NVIDIA A10G, 595.91.07", 0), ("ubuntu/images", "", 127)],
    ids=["base", "plain"],
)
def test_the_image_decides_about_the_driver(  # noqa: PLR0917  (fixtures and cases)
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path, name: str, output: str, code: int
) -> None:
    """The deep-learning image shows the card of the size; plain Ubuntu has no driver."""
    images = harness.cloud.world.images.values()
    image = next(one for one in images if one.region == REGION and one.name.startswith(name))
    machine = launch(harness, tmp_path, InstanceType=A10G, ImageId=image.id)
    query = "nvidia-smi --query-gpu=name,driver_version --format=csv,noheader"

    with log_in(guests, machine, tmp_path) as connection:
        shown = connection.run(query, timeout_s=TIMEOUT_S, check=False)

    assert (shown.stdout.strip(), shown.exit_code) == (output, code)


def test_a_shell_that_is_ended_in_its_first_moments_ends_as_killed(tmp_path: Path) -> None:
    """A machine that goes down while a command begins has not carried it out with success."""
    ended = tmp_path / "sed"
    ended.write_text("#!/bin/sh\nkill -9 $$\n")
    ended.chmod(0o755)
    shell = tmp_path / "sh"
    shell.write_text("#!/bin/sh\n" + SHELLED["sh"].format(root=tmp_path, kernel=""))

    done = subprocess.run(
        ["/bin/sh", str(shell), "-c", "echo key"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, b"")


def test_cards_are_those_of_the_size() -> None:
    """Some sizes have four cards or eight; many have none."""
    counts = {size: card_of(size)["cards"] for size in ("g4dn.12xlarge", "g5.48xlarge", "t3.micro")}

    assert counts == {"g4dn.12xlarge": 4, "g5.48xlarge": 8, "t3.micro": 0}


# ---- user data ----


def login(document: dict[str, Any]) -> tuple[str, str, bool]:
    """Who logs in to a machine with this cloud-config."""
    text = f"#cloud-config\n{json.dumps(document)}".encode()
    return firstboot.login_of(firstboot.document_of(text, bytes_max=16384))


def test_users_are_made_as_cloud_init_makes_them() -> None:
    """Without `users` it is the image's own; with it only those named; without a key nobody."""
    user = {"name": "qft", "ssh_authorized_keys": [KEY], "sudo": "ALL=(ALL) NOPASSWD:ALL"}

    assert login({"users": [user]}) == ("qft", KEY, True)
    assert login({"users": ["default", {**user, "sudo": "ALL=(ALL) ALL"}]}) == ("qft", KEY, False)
    assert login({"ssh_authorized_keys": [KEY]}) == ("ubuntu", KEY, True)
    assert login({"users": [{"name": "qft"}], "ssh_authorized_keys": [KEY]}) == ("qft", "", False)
    assert login({}) == ("ubuntu", "", True)


@pytest.mark.parametrize(
    ("document", "offence"),
    [
        ({"users": [{"ssh_authorized_keys": ["ssh-ed25519 A"]}]}, "no user"),
        ({"users": [{"name": "qft", "ssh_authorised_keys": ["ssh-ed25519 A"]}]}, "no user"),
        ({"users": [{"name": "qft", "ssh_authorized_keys": "ssh-ed25519 A"}]}, "no user"),
        ({"users": [{"name": "qft", "ssh_authorized_keys": ["A"]}]}, "no user"),
        ({"users": {"name": "qft"}}, "not a list"),
    ],
)
def test_users_that_cloud_init_would_not_make_are_refused(
    document: dict[str, Any], offence: str
) -> None:
    """A misspelt key or a key that is none would lock everybody out of a machine that bills."""
    with pytest.raises(ValueError, match=offence):
        login(document)


def test_user_data_may_be_compressed_and_is_limited() -> None:
    """cloud-init takes gzip; EC2 takes 16 KB before base64."""
    text = f"#cloud-config\n{json.dumps({'runcmd': ['x' * 20000]})}".encode()

    assert firstboot.document_of(gzip.compress(text), bytes_max=16384)["runcmd"]
    with pytest.raises(ValueError, match="more than the cloud's 16384"):
        firstboot.document_of(text, bytes_max=16384)


# ---- the metadata service ----


@pytest.fixture
def facts() -> dict[str, Any]:
    """What a metadata service tells, to be changed by a test."""
    return {"instance_id": "i-1", "zone": "us-east-1a", "user_data": b"#cloud-config\n{}\n"}


@pytest.fixture
def imds(facts: dict[str, Any]) -> Iterator[Imds]:
    """A metadata service."""
    service = Imds(facts=lambda: MetadataFacts(**facts))
    yield service
    service.close()


def test_metadata_needs_a_session_token(imds: Imds, facts: dict[str, Any]) -> None:
    """401 without one, with a foreign one, and after its time; 403 where the service is off."""
    path = "/latest/meta-data/instance-id"
    headers = token_of(imds.url)
    now_s = time.time()
    answers = [ask(imds.url, path)[0], ask(imds.url, path, **{TOKEN_HEADER: "x"})[0]]
    answers.append(ask(imds.url, path, **headers)[0])
    imds.clock = lambda: now_s + 61
    answers.append(ask(imds.url, path, **headers)[0])
    headers = token_of(imds.url)
    imds.forget_tokens()
    answers.append(ask(imds.url, path, **headers)[0])
    facts["needs_token"] = False
    answers.append(ask(imds.url, path)[0])
    facts["enabled"] = False
    answers.append(ask(imds.url, path)[0])

    assert answers == [401, 401, 200, 401, 401, 200, 403]
    assert [status for _, path_, status in imds.requests if path_ == path] == answers


@pytest.mark.parametrize("ttl", ["0", "21601", "soon", ""])
def test_a_token_lives_for_six_hours_at_most(imds: Imds, ttl: str) -> None:
    """A time to live that is missing, no number or out of range is a 400."""
    assert ask(imds.url, TOKEN_PATH, method="PUT", **{TTL_HEADER: ttl})[0] == 400


def test_a_token_is_not_for_whoever_asks_through_a_proxy(imds: Imds) -> None:
    """A forwarded request is refused, and so is a GET for a token."""
    forwarded = {TTL_HEADER: "60", "X-Forwarded-For": "10.0.0.1"}

    assert ask(imds.url, TOKEN_PATH, method="PUT", **forwarded)[0] == 403
    assert ask(imds.url, TOKEN_PATH)[0] == 405


def test_notices_are_there_only_while_something_is_ahead(imds: Imds, facts: dict[str, Any]) -> None:
    """404 for nothing; then action and time; a recommendation has a time of its own."""
    headers = token_of(imds.url)
    at_s = datetime(2026, 11, 29, 8, 22, tzinfo=UTC).timestamp()
    notice, rebalance = "spot/instance-action", "events/recommendations/rebalance"
    before = [
        ask(imds.url, f"/latest/meta-data/{one}", **headers)[0] for one in (notice, rebalance)
    ]
    facts.update(action="terminate", action_at_s=at_s, rebalance_s=at_s - 60)

    after = [
        json.loads(ask(imds.url, f"/latest/meta-data/{one}", **headers)[1])
        for one in (notice, rebalance)
    ]

    assert before == [404, 404]
    assert after == [
        {"action": "terminate", "time": "2026-11-29T08:22:00Z"},
        {"noticeTime": "2026-11-29T08:21:00Z"},
    ]


def test_user_data_is_readable_inside(
    harness: AwsHarness, guests: Ec2Guests, tmp_path: Path
) -> None:
    """Every process of a machine can read what it was launched with, by a session token."""
    machine = launch(harness, tmp_path, MetadataOptions={"HttpTokens": "required"})

    status, text = ask(guests.metadata_url, "/latest/user-data", **token_of(guests.metadata_url))

    assert (status, text.encode()) == (200, base64.b64decode(machine.user_data))
    assert ask(guests.metadata_url, "/latest/user-data")[0] == 401
