"""The launcher starts the ranks, passes on orders, and outlives none of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from support import tiny

from trainer.eviction import PreemptionFlag
from trainer.group.launch import Ended, Launch, rank_environment, run_ranks
from trainer.group.rank_exit import PEER_LOST, choose
from trainer.secret import Secret

WAIT_S = 60.0
PROGRAM = """
import argparse, os, pathlib, signal, sys, time
from trainer.group.launch import end_with_parent
parser = argparse.ArgumentParser()
for name in ("--rank", "--ranks", "--listen-fd", "--launcher"):
    parser.add_argument(name, type=int)
parser.add_argument("--store")
args = parser.parse_args()
end_with_parent(args.launcher)
folder = pathlib.Path({folder!r})
def leave(number, frame):
    sys.exit(75)
signal.signal(signal.SIGTERM, leave)
def wait():
    (folder / f"rank-{{args.rank}}").write_text(str(os.getpid()))
    while True:
        time.sleep(0.02)
{body}
"""


def command(folder: Path, body: str) -> list[str]:
    """A small program in the place of the trainer."""
    return [sys.executable, "-c", PROGRAM.format(folder=str(folder), body=body)]


def launch(
    folder: Path,
    body: str,
    *,
    cards: Sequence[str | None] = (None, None),
    flag: PreemptionFlag | None = None,
    token: Secret | None = None,
    leave_s: float = 30.0,
) -> tuple[Ended, list[str]]:
    """Run the ranks to their end; return how they ended and all messages."""
    messages: list[str] = []
    ended = run_ranks(
        Launch(
            command=command(folder, body),
            cards=cards,
            environ={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
            token=token,
            calm_s=0.2,
            leave_s=leave_s,
        ),
        flag or PreemptionFlag(time.monotonic),
        on_message=messages.append,
        clock=time.monotonic,
        sleep=time.sleep,
    )
    return ended, messages


def await_ranks(folder: Path, count: int) -> list[int]:
    """Wait until so many ranks have written their process number; return those."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        texts = [path.read_text() for path in sorted(folder.glob("rank-*"))]
        if len(texts) == count and all(texts):
            return [int(text) for text in texts]
        time.sleep(0.02)
    raise AssertionError("the ranks did not start")


def test_every_rank_gets_its_number_card_token_and_the_store(tmp_path: Path) -> None:
    """Rank 0 inherits the listening socket; the token comes over stdin and in no argument."""
    body = (
        "import socket\n"
        "host, port = args.store.split(':')\n"
        "if args.rank == 0:\n"
        "    server = socket.socket(fileno=args.listen_fd)\n"
        "    for _ in range(args.ranks - 1): server.accept()\n"
        "else:\n"
        "    socket.create_connection((host, int(port)), 30).close()\n"
        "words = [os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['OMP_WAIT_POLICY'],"
        " sys.stdin.read(), str('s3cret' in ' '.join(sys.argv))]\n"
        "(folder / f'found-{args.rank}').write_text(' '.join(map(str, words)))\n"
    )
    ended, messages = launch(tmp_path, body, cards=("5", "7", "2"), token=Secret("s3cret"))

    assert [end.code for end in ended.ends] == [0, 0, 0]
    assert [(tmp_path / f"found-{rank}").read_text() for rank in range(3)] == [
        f"{card} PASSIVE s3cret False" for card in ("5", "7", "2")
    ]
    assert messages == []


def test_the_launchers_notice_reaches_every_rank(tmp_path: Path) -> None:
    """A flag that is set becomes one SIGTERM for each rank, which then saves and leaves."""
    flag = PreemptionFlag(time.monotonic)

    def notice() -> None:
        await_ranks(tmp_path, 2)
        flag.set(seconds_left=30, reason="SIGTERM")

    thread = threading.Thread(target=notice)
    thread.start()
    ended, _ = launch(tmp_path, "wait()", flag=flag)
    thread.join()

    assert [end.code for end in ended.ends] == [75, 75]
    assert choose(ended.ends) == 75


def test_after_a_crash_the_others_get_a_sigterm(tmp_path: Path) -> None:
    """The killed rank decides, the other had time to save, and the last words are shown."""
    body = (
        "if args.rank == 1:\n"
        "    print('a last word', file=sys.stderr, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "wait()"
    )
    ended, messages = launch(tmp_path, body)

    assert [end.code for end in ended.ends] == [75, 137]
    assert choose(ended.ends) == 137
    assert messages == ["[card 1] a last word"]


def test_a_rank_that_will_not_leave_is_killed(tmp_path: Path) -> None:
    """Who ignores the SIGTERM is killed when its time is over, and counts as a crash."""
    body = (
        f"if args.rank == 0: sys.exit({PEER_LOST})\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "wait()"
    )
    ended, _ = launch(tmp_path, body, leave_s=0.3)

    assert [(end.code, end.killed_by_launcher) for end in ended.ends] == [
        (PEER_LOST, False),
        (137, True),
    ]
    assert choose(ended.ends) == 137


def test_a_stopped_rank_is_not_waited_for(tmp_path: Path) -> None:
    """A rank under SIGSTOP can save nothing, so it is killed as soon as others have left."""
    body = (
        "if args.rank == 0:\n"
        "    while not (folder / 'rank-1').exists(): time.sleep(0.02)\n"
        f"    sys.exit({PEER_LOST})\n"
        "(folder / 'rank-1').touch()\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    began_s = time.monotonic()
    ended, _ = launch(tmp_path, body, leave_s=600.0)

    assert choose(ended.ends) == 137
    assert time.monotonic() - began_s < WAIT_S


def test_no_rank_survives_a_killed_launcher(tmp_path: Path) -> None:
    """The kernel kills every rank when the launcher dies, whatever the rank is doing."""
    program = f"""
import os, sys, time
from trainer.eviction import PreemptionFlag
from trainer.group.launch import Launch, run_ranks
run_ranks(
    Launch(command={command(tmp_path, "wait()")!r}, cards=[None] * 3, environ=os.environ),
    PreemptionFlag(time.monotonic), on_message=print, clock=time.monotonic, sleep=time.sleep,
)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=tiny.ROOT)
    ranks = [psutil.Process(number) for number in await_ranks(tmp_path, 3)]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    gone, alive = psutil.wait_procs(ranks, timeout=WAIT_S)

    assert (len(gone), alive) == (3, [])


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """What cannot be started raises, and nothing is waited for."""
    missing = Launch(command=[str(tmp_path / "absent")], cards=[None, None], environ=os.environ)

    with pytest.raises(FileNotFoundError):
        run_ranks(
            missing, PreemptionFlag(time.monotonic), on_message=print,
            clock=time.monotonic, sleep=time.sleep,
        )  # fmt: skip


def test_ranks_wait_passively_unless_the_user_chose_otherwise() -> None:
    """What the trainer set for one process is not for several; what a user set stays."""
    ours = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000000"}

    assert rank_environment(ours, None) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert rank_environment({}, "3") == {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "3"}
    assert rank_environment({"OMP_WAIT_POLICY": "ACTIVE"}, None) == {"OMP_WAIT_POLICY": "ACTIVE"}
