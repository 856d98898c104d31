"""A scoring that is killed anywhere goes on with the next program, and leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sandboxes import (
    SandboxHere,
    everybodys_python,
    named_processes,
    naming,
    sandboxes_here,
    wait_for,
    wait_for_none,
)

from trainer.code_eval import proof
from trainer.code_eval.client import ParentEnded
from trainer.code_eval.limits import Limits, Outcome
from trainer.code_eval.runner import proven_runner

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="answers run on Linux only; elsewhere they are refused"
)
ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ["result = sum(data)", "result = 0", "result = sum(data) + 0", "raise SystemExit"]
VERDICTS = ["passed", "wrong", "passed", "error"]
SCORER = """
import json, os, signal, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
from support.code_problems import problem, total
from trainer.code_eval.client import parent_of_answers
from trainer.code_eval.limits import Limits
from trainer.scoring.code_verdicts import run_programs
from trainer.scoring.kept_rows import KeptRows

folder, mechanism, dies_after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
answers = json.loads((folder / "answers.json").read_text())

def on_progress(done, of):
    if done == dies_after:
        os.kill(os.getpid(), signal.SIGKILL)

with parent_of_answers(sys.executable) as parent:
    (folder / "parent").write_text(str(parent.process.pid))
    def run(program):
        with (folder / "ran").open("a") as file:
            file.write("x")
        return parent.run(program, mechanism=mechanism, limits=Limits(wall_s=60))
    found = run_programs(
        [problem(total(), row) for row in range(len(answers))], "answer", answers, run=run,
        kept=KeptRows(folder / "verdicts.jsonl", {{"of": "this test"}}), on_progress=on_progress,
    )
print(json.dumps([one.verdict for one in found]))
"""


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxHere]:
    """The first kind of sandbox that this computer can make."""
    for kinds in sandboxes_here():
        found = [one for one in kinds.values() if not one.refusal]
        if not found:
            pytest.skip(f"no sandbox here: {[one.refusal for one in kinds.values()]}")
        yield found[0]


def scorer(folder: Path, box: SandboxHere, *, dies_after: int = -1) -> subprocess.Popen[str]:
    """Start a scorer of the answers in a folder."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCORER.format(root=str(ROOT)),
            folder,
            box.mechanism,
            str(dies_after),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_scoring_goes_on_after_a_kill_at_any_row(box: SandboxHere, tmp_path: Path) -> None:
    """Killed after each row in turn, the scoring runs every answer once and finds all verdicts."""
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    for row in range(1, len(ANSWERS) + 1):
        process = scorer(tmp_path, box, dies_after=row)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    out, _ = scorer(tmp_path, box).communicate()

    assert json.loads(out) == VERDICTS
    assert (tmp_path / "ran").read_text() == "x" * len(ANSWERS)


def test_a_killed_scorer_leaves_no_answer_running(box: SandboxHere, tmp_path: Path) -> None:
    """When the scorer is killed in the middle of an answer, parent and answer end, too."""
    name = f"qft{os.getpid()}"
    code = f"{naming(name)}\nimport time; time.sleep(60)"
    (tmp_path / "answers.json").write_text(json.dumps([code]))
    process = scorer(tmp_path, box)
    wait_for(lambda: bool(named_processes(name)), "the answer does not begin")
    parent = int((tmp_path / "parent").read_text())

    process.kill()
    process.communicate()

    wait_for_none(name)
    wait_for(lambda: not Path(f"/proc/{parent}").exists(), "the parent of answers stays")


def test_an_answer_during_which_the_parent_ends_is_wrong(
    box: SandboxHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verdict is `killed`, and the next program runs behind a new parent."""
    with proven_runner(sys.executable, [], mechanisms=[box.mechanism]) as runner:
        first = runner.parent

        def ends(*_request: object) -> Outcome:
            first.close()
            raise ParentEnded

        monkeypatch.setattr(first, "_ask", ends)
        killed = runner.run("pass", Limits())
        after = runner.run("pass", Limits())

    assert (killed.verdict, killed.error) == ("killed", "parent")
    assert after.verdict == "passed"


OPEN_RUN = """
import os, sys, tempfile
sys.path.insert(0, {root!r})
sys.dont_write_bytecode = True
os.chdir(tempfile.mkdtemp())
import contextlib, select, subprocess, time
from trainer.code_eval import linux, proof, usage
from trainer.code_eval.limits import Outcome
from trainer.code_eval.sandbox import kill

class NoSandboxAtAll:
    def attack(self, name, arguments, *, mechanism, limits):
        program = (
            f"import sys; sys.path.insert(0, {root!r})\\n"
            f"from trainer.code_eval.attacks import attack_task\\n"
            f"attack_task({{name!r}}, {{dict(arguments)!r}})()"
        )
        # Its parent, which it tries to end, is a shell.
        command = ["sh", "-c", '"$0" -c "$1"; true', sys.executable, program]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        text, ends_at, verdict = b"", time.monotonic() + limits.wall_s, "passed"
        while True:
            ready = select.select([process.stdout], [], [], 0.05)[0]
            data = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            text += data
            if process.poll() is not None and not data:
                break
            if time.monotonic() > ends_at or len(text) > 1 << 20:
                verdict = "killed"
                break
        below = [one for one in usage.descendants(os.getpid()) if one != sleeper_of()]
        left = len([one for one in below if one != process.pid])
        for one in below:
            kill(one)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0] not in (0, sleeper_of()):
                continue
        return Outcome(verdict=verdict, output=text.decode("utf-8", "replace"), left=left)

def sleeper_of():
    return current.sleeper.pid

linux.adopt_orphans()
real = proof.decoys
@contextlib.contextmanager
def decoys(ours):
    global current
    with real(ours) as current:
        yield current
proof.decoys = decoys
print("\\n".join(proof.breaches(NoSandboxAtAll(), "none")))
"""


def test_the_proof_fails_without_a_sandbox() -> None:
    """Run as an ordinary program of an ordinary user, the attacks get through and are named."""
    python = everybodys_python()
    if not python:
        pytest.skip("no Python here can be started by an ordinary user")
    as_user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [python, "-c", OPEN_RUN.format(root=str(ROOT))],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        **as_user,  # type: ignore[call-overload]
    )

    found = done.stdout.splitlines()
    missed = {one.what for one in proof.ATTACKS} - set(found)
    # A process that stays is named by the next attack; some kernels refuse user namespaces.
    assert missed <= {"leaving a process behind", "gaining privileges"}, done.stderr
    assert any("behind by leaving a process behind" in line for line in found)
