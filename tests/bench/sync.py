"""Sync: pushes and pulls beside rsync, scp and OpenSSH's sftp, over loopback and a slow line.

The server is OpenSSH's own. The slow line is a proxy that holds every byte back for half of a round
trip. `qft` hashes both ends, verifies and fsyncs every file; the other tools do none of it. Its
time begins before it connects, as in `qft run`, which is running already; the start of a new Python
with its libraries is in `also` as `start_s`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from support import slow_proxy, sshd

from bench.measure import Limit, Measure, Ratio, Sample, Unavailable, Variant, Workplace
from bench.processes import Ended, run_process

RTT_MS = 50
SETTLED_S = 2.5  # a file that changed less than 2 s ago is hashed again
FAILED = tuple(range(1, 256))  # of a transfer that is cut on purpose
CLIENT = """
import json, sys, time
began_s = time.perf_counter()
from pathlib import Path
import fabric, paramiko
from remote.ssh import Host, connect
from remote.sync.api import pull, push
from remote.sync.plan import SyncOptions
act, local, remote, host, port, user, key, host_key, cache = sys.argv[1:]
there = Host(address=host, port=int(port), user=user, key_path=Path(key), host_key=host_key)
options = SyncOptions(python=sys.executable, cache_dir=Path(cache))
started_s = time.perf_counter()
with connect(there) as connection:
    if act == "push":
        push(connection, Path(local), remote, options=options)
    else:
        pull(connection, remote, Path(local), options=options)
done_s = time.perf_counter()
print(json.dumps({"start_s": started_s - began_s, "sync_s": done_s - started_s}))
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A server, the port by which it is reached, and the files on this side."""

    server: sshd.Sshd
    port: int
    python: Path
    root: Path
    here: Path

    @property
    def source(self) -> Path:
        """What is pushed."""
        return self.here / "source"

    @property
    def hashes(self) -> Path:
        """Where `qft` keeps the hashes of what is on this side, as in a run."""
        return self.here / "hashes"

    @property
    def there(self) -> Path:
        """The folder of the server below which everything is."""
        return self.server.home / "qft"

    def qft(self, act: str, *, good_codes: Sequence[int] = (0,), name: str = "qft") -> Ended:
        """Push or pull in a fresh process."""
        local = self.source if act == "push" else self.here / name
        remote = f"qft/{name}" if act == "push" else "qft/source"
        server = self.server
        words = [act, str(local), remote, "127.0.0.1", str(self.port), server.user]
        return run_process(
            [self.python, "-c", CLIENT, *words, server.client_key, server.host_key, self.hashes],
            environment={**os.environ, "PYTHONPATH": str(self.root)},
            good_codes=good_codes,
        )

    def ssh_options(self, port_option: str) -> list[str]:
        """Return the options of OpenSSH's clients, which call the port `-p` or `-P`."""
        return [
            port_option, str(self.port), "-i", str(self.server.client_key),
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR",
        ]  # fmt: skip

    def rsync(self, act: str, *, good_codes: Sequence[int] = (0,), name: str = "rsync") -> Ended:
        """Run rsync with the times of files, by which it knows again what is unchanged."""
        shell = " ".join(["ssh", *self.ssh_options("-p")])
        remote = f"{self.server.user}@127.0.0.1:qft/"
        ends = [f"{self.source}/", f"{remote}{name}/"]
        if act == "pull":
            ends = [f"{remote}source/", f"{self.here / name}/"]
        command = [program("rsync"), "-a", "--partial", "-e", shell, *ends]
        return run_process(command, good_codes=good_codes)

    def scp(self, act: str) -> Ended:
        """Run scp."""
        remote = f"{self.server.user}@127.0.0.1:qft/"
        ends = [str(self.source), f"{remote}scp"]
        if act == "pull":
            ends = [f"{remote}source", str(self.here / "scp")]
        return run_process([program("scp"), "-r", "-q", *self.ssh_options("-P"), *ends])

    def sftp(self, act: str) -> Ended:
        """Run OpenSSH's sftp on a batch of one command."""
        batch = self.here / "batch"
        put, get = f"put -r {self.source} qft/sftp", f"get -r qft/source {self.here / 'sftp'}"
        batch.write_text(f"{put if act == 'push' else get}\n")
        where = f"{self.server.user}@127.0.0.1"
        return run_process([program("sftp"), "-q", "-b", batch, *self.ssh_options("-P"), where])


def program(name: str) -> str:
    """Return where a program is; raises `Unavailable` if it is not installed."""
    found = shutil.which(name)
    if found is None:
        package = "rsync" if name == "rsync" else "openssh-client"
        raise Unavailable(f"{name} is not installed: apt-get install {package}")
    return found


@contextmanager
def open_line(place: Workplace, rtt_ms: float) -> Iterator[Line]:
    """Start a server and, for a round trip, the proxy before it."""
    if sshd.SSHD is None:
        raise Unavailable("OpenSSH's server is not installed: apt-get install openssh-server")
    (place.folder / "source").mkdir(parents=True)
    with ExitStack() as opened:
        server = opened.enter_context(sshd.serve(place.folder / "server"))
        port = server.port
        if rtt_ms:
            proxy = slow_proxy.run_proxy_process(port, delay_s=rtt_ms / 2000)
            port = opened.enter_context(proxy)
        line = Line(
            server=server, port=port, python=place.python, root=place.root, here=place.folder
        )
        line.there.mkdir()
        yield line


def write_files(folder: Path, number: int, size: int) -> None:
    """Write files of random bytes, a hundred in a folder."""
    for at in range(number):
        file = folder / f"{at // 100:03}" / f"{at:05}"
        file.parent.mkdir(exist_ok=True)
        with file.open("wb") as opened:
            for start in range(0, size, 1 << 20):
                opened.write(os.urandom(min(1 << 20, size - start)))


@contextmanager
def open_transfer(
    place: Workplace, *, number: int, size: int, rtt_ms: float
) -> Iterator[Sequence[Variant]]:
    """Whole transfers of files that the other side lacks, with each tool and in both directions.

    scp and sftp wait for round trips with each file: minutes for a thousand over a slow line, so
    they are left out there.
    """
    tools = ("qft", "rsync") if number > 1 and rtt_ms else ("qft", "rsync", "scp", "sftp")
    with open_line(place, rtt_ms) as line:
        write_files(line.source, number, size // 20 if place.quick and number == 1 else size)
        shutil.copytree(line.source, line.there / "source")

        def run(tool: str, act: str, _round: int) -> Sample:
            target = (line.there if act == "push" else line.here) / tool
            shutil.rmtree(target, ignore_errors=True)
            work: Callable[[str], Ended] = getattr(line, tool)
            return to_sample(work(act), is_qft=tool == "qft")

        yield [
            Variant(name=f"{tool} {act}", run=partial(run, tool, act))
            for act in ("push", "pull")
            for tool in tools
        ]


@contextmanager
def open_unchanged(
    place: Workplace, *, number: int, size: int, rtt_ms: float
) -> Iterator[Sequence[Variant]]:
    """Transfers of trees that are equal already; scp and sftp cannot tell, and are left out."""
    with open_line(place, rtt_ms) as line:
        write_files(line.source, number, size)
        for target in (line.there / "source", line.here / "qft", line.here / "rsync"):
            shutil.copytree(line.source, target)
        for tool in ("qft", "rsync"):
            shutil.copytree(line.source, line.there / tool)
        time.sleep(SETTLED_S)
        for act in ("push", "pull"):
            line.qft(act)  # hashes both sides for the first time

        def run(tool: str, act: str, _round: int) -> Sample:
            work: Callable[[str], Ended] = getattr(line, tool)
            return to_sample(work(act), is_qft=tool == "qft")

        yield [
            Variant(name=f"{tool} {act}", run=partial(run, tool, act))
            for act in ("push", "pull")
            for tool in ("qft", "rsync")
        ]


@contextmanager
def open_cut(place: Workplace, *, size: int, rtt_ms: float) -> Iterator[Sequence[Variant]]:
    """A transfer whose line is cut in the middle, and the one after it that ends."""
    with open_line(place, 0) as direct:
        write_files(direct.source, 1, size)
        shutil.copytree(direct.source, direct.there / "source")
        total = sum(file.stat().st_size for file in direct.source.rglob("*") if file.is_file())

        def run(tool: str, act: str, _round: int) -> Sample:
            shutil.rmtree((direct.there if act == "push" else direct.here) / tool, True)
            sent_bytes = 0
            for cut_after, codes in ((total // 2, FAILED), (None, (0,))):
                delay_s = rtt_ms / 2000
                with slow_proxy.run_proxy(
                    direct.server.port, delay_s=delay_s, cut_after=cut_after
                ) as proxy:
                    line = replace(direct, port=proxy.port)
                    ended = (line.qft if tool == "qft" else line.rsync)(act, good_codes=codes)
                    sent_bytes += proxy.forwarded_bytes
            return Sample(value=(sent_bytes - total) / total, cpu_s=ended.cpu_s)

        yield [
            Variant(name=f"{tool} {act}", run=partial(run, tool, act))
            for act in ("push", "pull")
            for tool in ("qft", "rsync")
        ]


def to_sample(ended: Ended, *, is_qft: bool) -> Sample:
    """Return the seconds of a transfer."""
    if not is_qft:
        return Sample(value=ended.wall_s, wall_s=ended.wall_s, cpu_s=ended.cpu_s)
    spent = json.loads(ended.out)
    return Sample(
        value=spent["sync_s"],
        wall_s=ended.wall_s,
        cpu_s=ended.cpu_s,
        also={"start_s": spent["start_s"]},
    )


def against_rsync(at_most: float) -> tuple[Ratio, ...]:
    """Bound the seconds of a push and of a pull by those of rsync."""
    return tuple(
        Ratio(of=f"qft {act}", over=(f"rsync {act}",), at_most=at_most) for act in ("push", "pull")
    )


def make_measures() -> Iterator[Measure]:
    """Every case, over both lines."""
    for rtt_ms, where, big_at_most in (
        (0, "loopback", 1 / 0.8),
        (RTT_MS, f"{RTT_MS}ms", 1 / 2),
    ):
        for case, title, number, size, opened, at_most in (
            ("big", "one file of 200 MB", 1, 200 << 20, open_transfer, big_at_most),
            ("small", "1,000 files of 4 KB", 1000, 4096, open_transfer, 1.3),
            ("unchanged", "10,000 unchanged files", 10_000, 64, open_unchanged, 1.0),
        ):
            yield Measure(
                name=f"sync/{case}-{where}",
                title=f"{title}, round trip {rtt_ms} ms",
                unit="s",
                higher_is_better=False,
                open=partial(opened, number=number, size=size, rtt_ms=rtt_ms),
                goals=against_rsync(at_most),
            )
    yield Measure(
        name="sync/cut",
        title="bytes sent again after a cut in the middle of 200 MB, as a share of the file",
        unit="share",
        higher_is_better=False,
        open=partial(open_cut, size=200 << 20, rtt_ms=RTT_MS),
        goals=(Limit(of="qft push", at_most=0.05), Limit(of="qft pull", at_most=0.05)),
    )


MEASURES = tuple(make_measures())
