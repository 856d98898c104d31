"""What is expected bounds what is accepted: sizes, names and pace; a refusal gives room back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ssh_servers
from support.runs import make_project

from commands.runs.config import load
from commands.runs.result_files import STEPS_MAX, expected
from remote.errors import Damaged, RemoteError, TooSlow, Untrusted
from remote.on_machine import tree_ops
from remote.ssh import SshConnection, connect
from remote.sync.api import pull
from remote.sync.manifest import Limits, is_included, read_tree
from remote.sync.plan import SyncOptions
from remote.sync.sftp import DATA, Sftp, packet
from remote.sync.transfer import MinimumSpeed

SHA = "0" * 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssh_servers.RunningServer]:
    """A machine."""
    with ssh_servers.start_server("openssh", tmp_path_factory.mktemp("door")) as opened:
        yield opened


@pytest.fixture
def connection(server: ssh_servers.RunningServer) -> Iterator[SshConnection]:
    """A connection to it."""
    with connect(server.host) as opened:
        yield opened


def test_an_adapter_of_60_gb_is_refused_by_what_its_rank_can_make(tmp_path: Path) -> None:
    """The list of files alone decides; the message names file, size and bound."""
    limits = expected(load(make_project(tmp_path).config)).limits
    offered = {"adapter/adapter_model.safetensors": [60_000_000_000, SHA]}

    with pytest.raises(Untrusted, match=r"a size of 60\.0 GB; 6\d\.\d MB are allowed") as caught:
        read_tree(offered, limits=limits, host="h")
    assert "nothing of it was copied" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "size", "fits"),
    [
        ("adapter/adapter_model.safetensors", 60_000, True),
        ("adapter/adapter_config.json", 17 << 20, False),
        ("metrics.jsonl", 250 * 250, True),
        ("metrics.jsonl", 250 * 1000 + (1 << 20) + 1, False),
        ("tb/events.out.tfevents.1.2", 64 << 20, False),
        ("status.json", (1 << 20) + 1, False),
        ("eval-after.json", 200 << 20, True),
        ("eval-after.json", 300 << 20, False),
    ],
)
def test_every_result_has_a_size_that_follows_from_the_config(
    tmp_path: Path, path: str, size: int, *, fits: bool
) -> None:
    """250 steps have a log of some 60 KB; no description has megabytes."""
    limits = expected(load(make_project(tmp_path).config)).limits
    if fits:
        assert read_tree({path: [size, SHA]}, limits=limits, host="h")
        return
    with pytest.raises(Untrusted, match="are allowed"):
        read_tree({path: [size, SHA]}, limits=limits, host="h")


def test_rank_and_base_bound_the_tensors(tmp_path: Path) -> None:
    """More rank is more bytes; a base that is not here is bounded by rank alone."""
    small = expected(load(make_project(tmp_path / "a", method={"r": 4}).config))
    large = expected(load(make_project(tmp_path / "b", method={"r": 64}).config))
    hub = make_project(tmp_path / "c", model={"id": "me/unknown"}, method={"r": 4})
    unknown = expected(load(hub.config))

    assert small.tensor_bytes_max < large.tensor_bytes_max < unknown.tensor_bytes_max
    assert unknown.tensor_bytes_max < 2e9
    assert small.steps_max == 250


def test_epochs_bound_the_steps_by_the_rows(tmp_path: Path) -> None:
    """Without `train.steps` no log can have more lines than its rows allow."""
    project = make_project(tmp_path, train={"steps": None, "epochs": 3})
    size = (tmp_path / "train.jsonl").stat().st_size

    assert 9 <= expected(load(project.config)).steps_max <= 3 * size < STEPS_MAX


@pytest.mark.parametrize(
    ("kind", "named", "stays"),
    [
        ("lora", "adapter_model.safetensors", "nola.json"),
        ("dylora", "ranks.safetensors", "nola.safetensors"),
        ("nola", "nola.safetensors", "adapter_model.safetensors"),
    ],
)
def test_each_kind_has_its_own_files(tmp_path: Path, kind: str, named: str, stays: str) -> None:
    """Another kind's file beside an adapter would have it read as that kind."""
    method = {"kind": kind, "r": 4, "dropout": 0.0}
    include = expected(load(make_project(tmp_path, method=method).config)).results

    assert is_included(f"adapter/{named}", include)
    assert not is_included(f"adapter/{stays}", include)


@pytest.mark.parametrize(
    "path",
    [
        *("trainer.py", "adapter/trainer.py", "adapter/adapter_model.bin", "Metrics.jsonl"),
        *(
            "metrics.jsonl\n",
            "metrics.jsonl/x",
            "adapter",
            "tb/x.py",
            "report.html",
            "../status.json",
        ),
        *(
            "tb/events.out.tfevents.1.2/x",
            "tb/events.out.tfevents.1.2.py",
            "eval-later.json",
            "../status.json",
        ),
        *("trainer.log", "receipt.json", "status.json.py", "adapter/../trainer.py", "", "/"),
    ],
)
def test_names_beside_the_contract_do_not_come(tmp_path: Path, path: str) -> None:
    """Only whole names count; what is made here (log, receipt, report) is not asked for."""
    assert not is_included(path, expected(load(make_project(tmp_path).config)).results)


def test_files_beside_those_requested_are_counted_and_kept(
    server: ssh_servers.RunningServer, connection: SshConnection, tmp_path: Path
) -> None:
    """Also links and pipes; of what is here, files of other names stay as they are."""
    there = server.home / "qft" / tmp_path.name
    there.mkdir(parents=True)
    (there / "good").write_text("good")
    (there / "trainer.py").write_text("evil")
    (there / "link").symlink_to("/etc/passwd")
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("mine")
    (home / "old").write_text("old")
    options = SyncOptions(include="good|old", delete=True)
    report = pull(connection, f"qft/{tmp_path.name}", home, options=options)

    assert (report.files, report.unmatched, report.removed) == (1, 2, ("old",))
    assert sorted(report.unmatched_names) == ["link", "trainer.py"]
    assert sorted(path.name for path in home.iterdir()) == ["good", "mine"]


@pytest.fixture
def lying(server: ssh_servers.RunningServer, connection: SshConnection) -> Iterator[Path]:
    """The place of our helper there, to be replaced by one that lies."""
    import hashlib

    source = Path(tree_ops.__file__).read_bytes()
    target = server.home / "qft" / f"tree_ops-{hashlib.sha256(source).hexdigest()[:8]}.py"
    target.parent.mkdir(exist_ok=True)
    yield target
    target.unlink(missing_ok=True)


def lie(target: Path, answer: dict[str, Any], packed: bytes = b"") -> None:
    """Have it answer so to every verb."""
    target.write_text(
        "import sys\n"
        "sys.stdin.buffer.read()\n"
        f"sys.stdout.write({tree_ops.ANSWER_MARK!r}); sys.stdout.flush()\n"
        f"if sys.argv[1] == 'pack': sys.stdout.buffer.write({packed!r})\n"
        f"else: sys.stdout.write({json.dumps(answer)!r})\n"
    )


@pytest.mark.parametrize("error", [Untrusted, Damaged])
def test_a_refusal_gives_the_room_back(
    lying: Path,
    connection: SshConnection,
    server: ssh_servers.RunningServer,
    tmp_path: Path,
    error: type[RemoteError],
) -> None:
    """What was set aside for a large file goes when a small one proves false, or it does itself."""
    (server.home / "qft" / "big").mkdir(parents=True, exist_ok=True)
    (server.home / "qft" / "big" / "large").write_bytes(bytes(3_000_000))
    files = {"large": [3_000_000, SHA], "small": [4, SHA]}
    packed = b"evil!" if error is Untrusted else b"evil"
    lie(
        lying,
        {"exists": True, "files": files, "irregular": [], "partial": {}, "hashes": {}},
        packed,
    )
    with pytest.raises(error):
        pull(connection, "qft/big", tmp_path / "home")

    assert not list((tmp_path / "home").iterdir())


def test_a_transfer_that_gets_nowhere_is_given_up() -> None:
    """Over any window below the pace it ends; a pause within a window does not."""
    now_s = 0.0
    minimum_speed = MinimumSpeed(bytes_per_s=10, window_s=60, clock=lambda: now_s, host="h")
    for _ in range(10):
        now_s += 55
        minimum_speed.add(1000)
    now_s += 61
    minimum_speed.add(1000)
    now_s += 61
    with pytest.raises(TooSlow, match="h brought 1 bytes in 61 s"):
        minimum_speed.add(1)


class Trickle:
    """A channel on which a byte comes once a second, for ever."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.now_s = 0.0

    def recv(self, _size: int) -> bytes:
        """Give the next byte."""
        self.now_s += 1
        first, self.data = self.data[:1], self.data[1:]
        return first


def test_a_machine_that_trickles_is_never_silent_and_yet_given_up() -> None:
    """Each byte resets a time-out of silence; only the pace ends it."""
    channel = Trickle(packet(DATA, struct.pack(">II", 1, 100_000), bytes(100_000)))
    minimum_speed = MinimumSpeed(
        bytes_per_s=1000, window_s=120, clock=lambda: channel.now_s, host="h"
    )
    sftp = Sftp(channel=channel, on_bytes=minimum_speed.add)  # type: ignore[arg-type]  # as much as is used
    with pytest.raises(TooSlow):
        sftp._receive()

    assert 119 <= channel.now_s <= 125


def test_limits_name_the_first_pattern_that_fits() -> None:
    """A path that no pattern names has the general bound."""
    limits = Limits(file_bytes_max=1, sizes=((r"a.*", 2), (r"ab", 3)))

    assert [limits.bytes_max(path) for path in ("ab", "a", "b", "xa")] == [2, 2, 1, 1]
