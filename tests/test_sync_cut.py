"""A connection cut anywhere in a transfer leaves whole files only, and the next one goes on."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support import slow_proxy, ssh_servers
from support.trees import make_tree, read_tree

from remote.errors import Unreachable
from remote.on_machine.tree_ops import PARTIAL_DIR
from remote.ssh import SshConnection, connect
from remote.sync.api import pull, push
from remote.sync.plan import SyncOptions, SyncReport

# What is on its way is lost with a connection: 3 channels x 2 chunks, a quarter of the tree.
OPTIONS = SyncOptions(
    chunk_bytes=128 << 10,
    chunks_ahead=2,
    small_bytes=16 << 10,
    channels=3,
    python=sys.executable,
)
TOTAL = 3_004_115
FEW = 6
EVERY_CHUNK = TOTAL // OPTIONS.chunk_bytes


@pytest.fixture(scope="module", params=ssh_servers.KINDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ssh_servers.RunningServer]:
    """A server of each kind for the file."""
    with ssh_servers.start_server(request.param, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


def over(
    server: ssh_servers.RunningServer,
    work: Callable[[SshConnection], SyncReport],
    cut_after: int | None,
) -> int:
    """Do `work` through a proxy of its own; return the bytes that were forwarded."""
    with slow_proxy.run_proxy(server.host.port, cut_after=cut_after) as line:
        host = replace(server.host, port=line.port)
        with connect(host) as connection:
            work(connection)
        return line.forwarded_bytes


def cuts_of(total: int, count: int) -> list[int]:
    """Spread the cuts over the whole transfer, login included."""
    return [total * number // count for number in range(1, count)]


@pytest.mark.parametrize("count", [FEW, pytest.param(EVERY_CHUNK, marks=pytest.mark.slow)])
def test_push_cut_everywhere(server: ssh_servers.RunningServer, tmp_path: Path, count: int) -> None:
    """Wherever a push is cut, only whole files are visible and the next push completes the tree."""
    tree = make_tree(tmp_path / "tree")
    expected = read_tree(tree)
    root = f"qft/push-{count}"
    total = over(
        server, lambda connection: push(connection, tree, f"{root}/whole", options=OPTIONS), None
    )
    resumed = []
    for cut in cuts_of(total, count):
        work = partial(push, local=tree, remote=f"{root}/{cut}", options=OPTIONS)
        with pytest.raises(Unreachable):
            over(server, work, cut)
        assert visible(server.home / root / str(cut)).items() <= expected.items()
        with connect(server.host) as connection:
            report = work(connection)
        assert read_tree(server.home / root / str(cut)) == expected
        assert report.bytes_sent + report.bytes_resumed == TOTAL
        resumed.append(report.bytes_resumed)

    assert resumed[0] < TOTAL * 0.3
    assert resumed[-1] > TOTAL * 0.5


@pytest.mark.parametrize("count", [FEW, pytest.param(EVERY_CHUNK, marks=pytest.mark.slow)])
def test_pull_cut_everywhere(server: ssh_servers.RunningServer, tmp_path: Path, count: int) -> None:
    """Wherever a pull is cut, only whole files are visible and the next pull completes the tree."""
    make_tree(server.home / "qft" / "source")
    expected = read_tree(server.home / "qft" / "source")
    whole = partial(pull, remote="qft/source", local=tmp_path / "whole", options=OPTIONS)
    total = over(server, whole, None)
    sent = []
    for cut in cuts_of(total, count):
        target = tmp_path / str(cut)
        work = partial(pull, remote="qft/source", local=target, options=OPTIONS)
        with pytest.raises(Unreachable):
            over(server, work, cut)
        assert visible(target).items() <= expected.items()
        with connect(server.host) as connection:
            report = work(connection)
        assert read_tree(target) == expected
        sent.append(report.bytes_sent)

    assert sent[0] > TOTAL * 0.7
    assert sent[-1] < TOTAL * 0.5


def test_push_cut_again_and_again(server: ssh_servers.RunningServer, tmp_path: Path) -> None:
    """A push that is cut after every megabyte still ends, and sends little twice."""
    tree = make_tree(tmp_path / "tree", seed=5)
    cuts = 0
    while cuts < 10:
        try:
            work = partial(push, local=tree, remote="qft/again", options=OPTIONS)
            over(server, work, 1_000_000)
            break
        except Unreachable:
            cuts += 1

    assert read_tree(server.home / "qft" / "again") == read_tree(tree)
    assert 2 < cuts < 6


def test_small_files_that_came_before_a_cut_are_kept(
    server: ssh_servers.RunningServer, tmp_path: Path
) -> None:
    """A pull that is cut within a bundle of small files keeps those that came whole."""
    there = server.home / "qft" / "small"
    there.mkdir(parents=True)
    noise = random.Random(7)  # noqa: S311  (test data)
    for number in range(300):
        (there / f"{number:03}").write_bytes(noise.randbytes(10_000))
    work = partial(pull, remote="qft/small", local=tmp_path / "home", options=OPTIONS)
    with pytest.raises(Unreachable):
        over(server, work, 2_000_000)
    kept = visible(tmp_path / "home")
    assert kept.items() <= read_tree(there).items()
    assert 100 < len(kept) < 200

    with connect(server.host) as connection:
        assert work(connection).files_sent == 300 - len(kept)
    assert read_tree(tmp_path / "home") == read_tree(there)


def visible(root: Path) -> dict[str, bytes]:
    """Read the files that somebody over there would see as data."""
    found = read_tree(root) if root.exists() else {}
    return {path: data for path, data in found.items() if PARTIAL_DIR not in path}
