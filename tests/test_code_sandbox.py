"""Right and wrong answers are told apart in every sandbox, and hostile ones do no harm.

Each attack has an effect outside that is looked at: a file, a connection, a process. On a computer
that cannot make one of the sandboxes the refusal is what is tested.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.code_problems import array, indented, missing, problem, total
from support.sandboxes import (
    LIMITS,
    MECHANISMS,
    SandboxHere,
    named_processes,
    naming,
    sandboxes_here,
    wait_for_none,
)

from trainer.code_eval import proof
from trainer.code_eval.problems import program_for
from trainer.errors import NoSandbox

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="answers run on Linux only; elsewhere they are refused"
)


@pytest.fixture(scope="module")
def every_kind() -> Iterator[dict[str, SandboxHere]]:
    """Both kinds of sandbox, behind one parent of answers."""
    yield from sandboxes_here()


@pytest.fixture(params=MECHANISMS)
def box(request: pytest.FixtureRequest, every_kind: dict[str, SandboxHere]) -> SandboxHere:
    """One kind of sandbox; where it cannot be made, that is said, and the other one must do."""
    found = every_kind[request.param]
    if found.refusal:
        with pytest.raises(NoSandbox, match=r"cannot be made here|does not hold against"):
            proof.proven_mechanism(found.parent, mechanisms=[found.mechanism])
        pytest.skip(f"no `{found.mechanism}` here, and it is refused: {found.refusal}")
    return found


@pytest.fixture
def outside() -> Iterator[Path]:
    """A folder that everybody may write to, with a key of our own in it."""
    with tempfile.TemporaryDirectory(prefix="qft-outside-") as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "key.pem").write_text("SECRET-" + secrets.token_hex(8))
        (folder / "key.pem").chmod(0o600)
        yield folder


@pytest.mark.parametrize(
    ("tests", "code", "verdict", "error"),
    [
        (total, "result = sum(data)", "passed", ""),
        (total, "result = data[0]", "wrong", "AssertionError"),
        (total, "result = sum(x for x in data)", "wrong", "AssertionError"),
        (total, "", "error", "KeyError"),
        (total, "result = None\n", "wrong", "AssertionError"),
        (total, "result = sum(data", "error", "SyntaxError"),
        (total, "result = sum(dta)", "error", "NameError"),
        (indented, "    result = sorted(data)", "passed", ""),
        (indented, "result = sorted(data)", "error", "IndentationError"),
        (array, "result = data.mean(0)", "passed", ""),
        (array, "result = data.mean(1)", "wrong", "AssertionError"),
        (missing, "result = data", "error", "ModuleNotFoundError"),
        (total, "raise SystemExit(0)", "error", "SystemExit"),
    ],
)  # fmt: skip
def test_right_and_wrong_answers_differ(
    box: SandboxHere, tests: object, code: str, verdict: str, error: str
) -> None:
    """What a test program accepts has passed; every other answer is wrong, or names its error."""
    assert callable(tests)
    found = box.run(program_for(problem(tests()), code), replace(LIMITS, memory_bytes=1 << 30))

    assert (found.verdict, found.error) == (verdict, error)
    assert found.left == 0


FORGED = """
import os
for at in range(3, 256):
    try:
        os.write(at, {message})
    except OSError:
        continue
os._exit(0)
"""
STUBBORN = """
import signal, time
for number in (1, 2, 14, 15):
    signal.signal(number, signal.SIG_IGN)
time.sleep(600)
"""
ENDINGS = {
    "leaves at once": ("import os; os._exit(0)", "error"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "killed"),
    "kills itself": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "killed"),
    "never ends": ("while True: pass", "timeout"),
    "sleeps through signals": (STUBBORN, "timeout"),
    "prints without end": ("while True: print('y' * 1000)", "output"),
    "takes too much memory": ("x = bytearray(b'x') * (1 << 30)", "memory"),
    "takes too much address space": ("x = bytearray(1 << 40)", "memory"),
    "forges a verdict": (FORGED.format(message=b'["passed", "", ""]'), "wrong"),
    "forges a whole message": (
        FORGED.format(message=b"0" * 32 + b'["passed", "", ""]'.ljust(4064)), "wrong"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDINGS)
def test_an_answer_that_gives_no_result_has_not_passed(box: SandboxHere, what: str) -> None:
    """However an answer ends by force, by itself or by deceit, its verdict says so."""
    code, verdict = ENDINGS[what]
    limits = replace(LIMITS, wall_s=0.5) if verdict == "timeout" else LIMITS

    assert box.answer(code, limits).verdict == verdict
    assert box.answer("result = sum(data)").verdict == "passed"


def test_keys_are_not_read(box: SandboxHere, outside: Path) -> None:
    """Neither a key in a file, nor what is in the environment and memory of others, comes out."""
    key = (outside / "key.pem").read_text()
    code = (
        "import os\nfound = []\n"
        f"paths = [{str(outside / 'key.pem')!r}, '/root/.ssh', {str(Path.home())!r}]\n"
        "for at in [*range(1, 40), os.getppid()]:\n"
        "  paths += [f'/proc/{at}/environ', f'/proc/{at}/mem']\n"
        "for path in paths:\n"
        "  try: found.append(open(path).read(9))\n"
        "  except (OSError, ValueError): pass\n"
        "  try: found += os.listdir(path)\n"
        "  except OSError: pass\n"
        "raise ValueError(sorted({str(one)[:7] for one in found if 'SEC' in str(one)}), "
        f"{str(outside)!r} in str(found))"
    )

    found = box.answer(code)

    assert (found.error, found.message) == ("ValueError", "([], False)")
    assert key not in found.message


def test_nothing_of_ours_is_readable(box: SandboxHere) -> None:
    """The trainer's own code, this checkout and the tests cannot be opened by an answer."""
    code = f"open({__file__!r}).read()"

    assert box.answer(code).error in {"FileNotFoundError", "PermissionError"}


def test_the_parent_cannot_be_killed(box: SandboxHere) -> None:
    """Signals to parent, scorer and everybody hit nobody outside: the next answer passes."""
    sleeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"])
    try:
        before = box.parent.process.pid
        box.answer(
            "import os, signal\n"
            f"for one in (os.getppid(), {before}, {sleeper.pid}, {os.getpid()}):\n"
            "  try: os.kill(one, signal.SIGKILL)\n"
            "  except OSError: pass\n"
        )
        assert sleeper.poll() is None
        assert box.parent.process.poll() is None
        assert box.answer("result = sum(data)").verdict == "passed"
    finally:
        sleeper.kill()
        sleeper.wait()


def test_nothing_is_written_or_removed_outside(box: SandboxHere, outside: Path) -> None:
    """An answer makes no file elsewhere and removes none, not even where everybody may."""
    code = (
        "import os, shutil\n"
        f"for path in ({str(outside / 'canary')!r}, '/usr/qft-canary'):\n"
        "  try: open(path, 'w').close()\n"
        "  except OSError: pass\n"
        f"try: os.symlink('/etc/passwd', {str(outside / 'link')!r})\n"
        "except OSError: pass\n"
        f"try: os.chmod({str(outside / 'key.pem')!r}, 0o666)\n"
        "except OSError: pass\n"
        f"shutil.rmtree({str(outside)!r}, ignore_errors=True)\n"
        "open('mine.txt', 'w').write('in its own folder')\n"
    )

    assert box.run(code).verdict == "passed"  # it came to its end
    assert [path.name for path in outside.iterdir()] == ["key.pem"]
    assert (outside / "key.pem").stat().st_mode & 0o777 == 0o600
    assert not Path("/usr/qft-canary").exists()


def test_what_an_answer_leaves_in_its_folder_is_gone_for_the_next(box: SandboxHere) -> None:
    """Each answer begins in an empty folder."""
    box.answer("open('a.txt', 'w').write('x'); import os; os.symlink('/etc', 'link')")

    found = box.answer("import os; raise ValueError(os.listdir('.'))")

    assert found.message == "[]"


@pytest.mark.parametrize("kind", ["large", "many"])
def test_the_disk_is_not_filled(box: SandboxHere, kind: str) -> None:
    """Of a large file and of many files only what the limits allow gets written."""
    write = {
        "large": "for at in range(8):\n  open(f'{at}', 'wb').write(b'x' * (8 << 20))",
        "many": "for at in range(2000): open(f'{at}', 'w').close()",
    }[kind]

    found = box.answer(f"{write}\nresult = sum(data)")

    assert found.verdict in {"error", "memory"}


def test_the_network_is_not_reached(box: SandboxHere, outside: Path) -> None:
    """Neither a port of this computer, nor a socket's path, nor an abstract name is reached."""
    abstract = f"qft-test-{secrets.token_hex(6)}"
    listeners = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    listeners[0].bind(("127.0.0.1", 0))
    listeners[1].bind(str(outside / "socket"))
    listeners[2].bind(f"\0{abstract}")
    (outside / "socket").chmod(0o777)
    for listener in listeners:
        listener.listen()
        listener.setblocking(False)
    port = listeners[0].getsockname()[1]
    code = (
        "import socket\n"
        f"for family, address in ((2, ('127.0.0.1', {port})), (1, {str(outside / 'socket')!r}), "
        f"(1, '\\0{abstract}')):\n"
        "  try: socket.socket(family).connect(address)\n"
        "  except OSError: pass\n"
        "import urllib.request\n"
        f"urllib.request.urlopen('http://127.0.0.1:{port}/', timeout=1)\n"
    )

    found = box.answer(code)

    assert (found.verdict, found.error) == ("error", "URLError")
    for listener in listeners:
        with listener, pytest.raises(BlockingIOError):
            listener.accept()


def test_a_fork_bomb_is_bounded(box: SandboxHere) -> None:
    """Of two hundred forks no more than the limit run, and none is left afterwards."""
    name = f"qft{secrets.token_hex(5)}"
    code = (
        f"import os, time\n{naming(name)}\ncount = 0\n"
        "try:\n  for _ in range(200):\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n"
        "    count += 1\nexcept OSError: pass\nraise ValueError(count)"
    )

    found = box.answer(code)

    assert found.error == "ValueError"
    assert int(found.message) <= LIMITS.processes
    assert found.left == 0
    assert named_processes(name) == []


def test_a_daemon_does_not_stay(box: SandboxHere) -> None:
    """A process in a session of its own that ignores signals ends with its answer."""
    name = f"qft{secrets.token_hex(5)}"
    code = (
        "import os, signal, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        f"    {naming(name)}\n    for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "    time.sleep(60)\n  os._exit(0)\ntime.sleep(0.2)\nresult = sum(data)"
    )

    found = box.answer(code)

    assert found.left == 0
    wait_for_none(name)


HUNGRY = """
import os, time
ends = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        taken = bytearray(b"x") * (128 << 20)
        os.write(ends[1], b"%8d" % os.getpid())
        time.sleep(60)
        os._exit(0)
os.set_blocking(ends[0], False)
done = b""
for _ in range(30):
    time.sleep(0.05)
    try:
        done += os.read(ends[0], 64)
    except BlockingIOError:
        continue
holding = [one for one in done.split() if os.waitpid(int(one), os.WNOHANG) == (0, 0)]
raise ValueError(len(holding))
"""


def test_memory_of_several_children_counts_together(box: SandboxHere) -> None:
    """Four children that take half of the memory each do not all hold it at one time."""
    found = box.answer(HUNGRY)

    assert found.verdict == "memory" or int(found.message) < 3


def test_no_privilege_is_gained(box: SandboxHere) -> None:
    """Neither another user, nor a namespace, nor tracing, nor sudo is to be had."""
    code = (
        "import ctypes, os, subprocess\nlibrary, got = ctypes.CDLL(None), []\n"
        "try: os.setuid(0); got.append('root')\nexcept OSError: pass\n"
        "if library.unshare(0x10000000) == 0: got.append('namespace')\n"
        "if library.ptrace(0, 0, 0, 0) == 0: got.append('trace')\n"
        "try: subprocess.run(['sudo', '-n', 'true'], check=True); got.append('sudo')\n"
        "except (OSError, subprocess.SubprocessError): pass\n"
        "raise ValueError(got)"
    )

    assert box.answer(code).message == "[]"


def test_the_words_of_an_error_are_short_and_printable(box: SandboxHere) -> None:
    """An error's name and text are cut, and cannot move a terminal's cursor."""
    found = box.answer("raise type('E' * 500, (Exception,), {})('\\x1b[2J' + 'x' * 10_000)")

    assert len(found.error) <= 60
    assert len(found.message) <= 300
    assert found.message.isprintable()


def test_a_sandbox_holds_against_every_attack_of_the_proof(box: SandboxHere) -> None:
    """The proof that comes before the first answer finds nothing that gets through."""
    assert box.breaches == []
    box.run("pass")
    assert box.parent.facts["sandbox"]["mechanism"] == box.mechanism
