"""`qft verify`: do some steps of a run again, in a fresh process, and compare every bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import wire
from commands.bench import laid_out, trainer
from commands.config import LoadedConfig
from commands.errors import HostTrouble, TrainingTrouble, Usage
from commands.home import RunFolder, environment, pick_run, qft_home
from commands.machine import host_of, running_now
from commands.session import reopen
from commands.site import Site
from commands.workload import OURS
from infra.journal import read
from infra.provider import Vm
from infra.state import fold
from remote import errors, job, link
from remote.clean import clean, cleaned

REPLAY_S_MAX = 4 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the replay found."""

    run: str
    where: str
    replay: dict[str, Any]

    @property
    def equal(self) -> bool:
        """Whether every compared bit was the same."""
        return self.replay.get("equal") is True

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"run": self.run, "where": self.where, **self.replay}

    def lines(self) -> list[str]:
        """What to print."""
        found = self.replay
        done = f"{found.get('steps')} steps of `{self.run}` after step {found.get('after_step')}"
        same = "every loss and parameter is the same, bit for bit"
        other = f"NOT the same: {json.dumps(found.get('first_difference'))}"
        said = [f"replayed {done}, {self.where}", same if self.equal else other]
        said += [f"parameters {found['params']}"] if found.get("params") else []
        return [*said, *(f"note: {note}" for note in found.get("caveats") or ())]


def verify(wanted: str, *, steps: int | None, say: Callable[[str], None]) -> Verdict:
    """Replay on the machine if it runs, since only its hardware gives the same bits; else here.

    Raises Usage if there is nothing to replay from, TrainingTrouble if the replay failed.
    """
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    vm = running_now(loaded, fold(read(folder.journal)).vm)
    more = ["--json", *(["--steps", str(steps)] if steps else [])]
    if vm is not None:
        say("replaying on the machine")
        text, where = _there(folder, loaded, vm, more), "on the machine"
    else:
        if not (loaded.out / "metrics.jsonl").exists():
            raise Usage(
                f"there is no log of `{folder.name}` at home to compare with",
                hint=f"`qft fetch {folder.name}` brings it",
            )
        say("replaying on this computer")
        with laid_out(loaded, folder) as run_dir:
            done = trainer(run_dir, "verify", *more)
        text, where = _answer(done.stdout, done.returncode), "on this computer"
    return Verdict(run=folder.name, where=where, replay=json.loads(text))


def _there(folder: RunFolder, loaded: LoadedConfig, vm: Vm, more: list[str]) -> str:
    site = Site(run_id=fold(read(folder.journal)).run_id)
    try:
        with link.connect(host_of(folder, loaded, vm)) as connection:
            helper = wire.helper_python(loaded.config.vm)
            running = job.Job(link=connection, directory=site.job, python=helper).status()
            if running.state is job.JobState.RUNNING:
                raise Usage("the trainer is at work", hint="verify when it is done")
            if not running.argv:
                raise Usage("nothing was trained on this machine yet")
            python = cleaned(running.argv)[0]
            words = [python, "-m", "trainer", "verify", "--run-dir", "../run", *more]
            words = clean(words, ours=python.startswith(OURS))
            go = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "verify", site.code, *words]
            done = connection.run(go, timeout_s=REPLAY_S_MAX, check=False)
    except errors.RemoteError as error:
        raise HostTrouble(str(error), hint=error.hint) from error
    return _answer(done.stdout, done.exit_code)


def _answer(text: str, code: int) -> str:
    """The replay's JSON, or TrainingTrouble if it has none."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise TrainingTrouble(f"the replay ended with exit code {code} and no answer")
    return text
