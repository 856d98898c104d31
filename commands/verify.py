"""`qft verify`: replays some steps of a run in a fresh process and compares every bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.runs import factory
from commands.runs.config import LoadedConfig
from commands.runs.extras import demand, needed_to_train
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, environment, pick_run, qft_home
from commands.runs.local_trainer import local_run_dir, start
from commands.runs.running_machine import recorded_machine, running_machine, ssh_host
from commands.runs.workload import OURS
from commands.runs.workload_config import RemoteLayout
from commands.ui.errors import Exit, HostError, TrainingError, UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import log, print_data, print_json
from infra.provider import Vm
from infra.run.fold import fold
from infra.run.journal import read
from infra.untrusted import NotPlain, number, parse, table, text, texts, whole
from remote import errors, job, ssh
from remote.clean_environment import clean, strip_clean_environment

REPLAY_S_MAX = 4 * 3600.0
REPLAY_BYTES_MAX = 1 << 20

EXAMPLES = {
    "qft verify --steps 5": "replay five steps from the newest checkpoint",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="How many steps to do again.", show_default="a few"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Do some steps again and compare every bit."""
    verdict = verify(run, steps=steps, on_message=log)
    if as_json:
        print_json(verdict.to_json())
    else:
        print_data("\n".join(verdict.lines()))
    if not verdict.equal:
        raise typer.Exit(Exit.TRAINING)


@dataclass(frozen=True, kw_only=True)
class ReplayAnswer:
    """The answer of a replay, checked value by value."""

    after_step: int
    """The checkpoint that it began from; 0 is the first weights."""
    steps: int
    equal: bool
    """Whether every compared bit was the same."""
    first_difference: dict[str, str | float | None] | None
    params: str | None
    """Digest of the parameters after the last step."""
    checkpoint_compared: int | None
    caveats: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReplayVerdict:
    """What the replay found, and where it ran."""

    run: str
    where: str
    replay: ReplayAnswer

    @property
    def equal(self) -> bool:
        """Whether every compared bit was the same."""
        return self.replay.equal

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"run": self.run, "where": self.where, **asdict(self.replay)}

    def lines(self) -> list[str]:
        """Return the lines to print."""
        found = self.replay
        done = f"{found.steps} steps of `{self.run}` after step {found.after_step}"
        same = "every loss and parameter is the same, bit for bit"
        other = f"NOT the same: {json.dumps(found.first_difference)}"
        lines = [f"replayed {done}, {self.where}", same if self.equal else other]
        lines += [f"parameters {found.params}"] if found.params else []
        return [*lines, *(f"note: {note}" for note in found.caveats)]


def verify(wanted: str, *, steps: int | None, on_message: Callable[[str], None]) -> ReplayVerdict:
    """Replay on the machine if it runs, since only its hardware gives the same bits; else here.

    Raises UsageError if there is nothing to replay from, TrainingError if the replay failed.
    """
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    vm = running_machine(loaded, recorded_machine(folder))
    more = ["--json", *(["--steps", str(steps)] if steps else [])]
    if vm is not None:
        on_message("replaying on the machine")
        found, where = _replay_on_machine(folder, loaded, vm, more), "on the machine"
    else:
        if not (loaded.out / "metrics.jsonl").exists():
            raise UsageError(
                f"there is no log of `{folder.name}` at home to compare with",
                hint=f"`qft fetch {folder.name}` brings it",
            )
        demand(needed_to_train(loaded.config), "`qft verify`", qft_home(environment()))
        on_message("replaying on this computer")
        with local_run_dir(loaded, folder) as run_dir:
            done = start("verify", "--run-dir", str(run_dir), *more)
        found, where = read_replay(done.stdout, code=done.returncode), "on this computer"
    return ReplayVerdict(run=folder.name, where=where, replay=found)


def _replay_on_machine(
    folder: RunFolder, loaded: LoadedConfig, vm: Vm, more: list[str]
) -> ReplayAnswer:
    layout = RemoteLayout(run_id=fold(read(folder.journal)).run_id)
    try:
        with ssh.connect(ssh_host(folder, loaded, vm)) as connection:
            helper = factory.helper_python(loaded.config.vm)
            running = job.Job(connection=connection, directory=layout.job, python=helper).status()
            if running.state is job.JobState.RUNNING:
                raise UsageError("the trainer is at work", hint="verify when it is done")
            if not running.argv:
                raise UsageError("nothing was trained on this machine yet")
            python = strip_clean_environment(running.argv)[0]
            words = [python, "-m", "trainer", "verify", "--run-dir", "../run", *more]
            if loaded.config.model.token_env:  # trained there, the base is in the cache there
                words = ["env", "HF_HUB_OFFLINE=1", *words]
            words = clean(words, ours=python.startswith(OURS))
            go = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "verify", layout.code, *words]
            done = connection.run(go, timeout_s=REPLAY_S_MAX, check=False)
    except errors.RemoteError as error:
        raise HostError(str(error), hint=error.hint) from error
    return read_replay(done.stdout, code=done.exit_code)


def read_replay(lines: str, *, code: int) -> ReplayAnswer:
    """Parse the output of a replay, which is not trusted; TrainingError if it is no answer."""
    try:
        found = parse(lines, bytes_max=REPLAY_BYTES_MAX)
    except NotPlain as error:
        what = f"the replay ended with exit code {code} and no answer ({error})"
        raise TrainingError(what) from error
    answer = table(found)
    steps, after = whole(answer.get("steps")), whole(answer.get("after_step"))
    if steps is None or after is None or not isinstance(answer.get("equal"), bool):
        raise TrainingError(f"the replay ended with exit code {code} and no answer")
    differs = answer.get("first_difference")
    return ReplayAnswer(
        after_step=after,
        steps=steps,
        equal=answer["equal"],
        first_difference=_difference(differs) if isinstance(differs, dict) else None,
        params=text(answer.get("params"), most=100),
        checkpoint_compared=whole(answer.get("checkpoint_compared")),
        caveats=tuple(text(one) or "" for one in texts(answer.get("caveats"), most=100) or ()),
    )


def _difference(answer: dict[str, Any]) -> dict[str, str | float | None]:
    """Read a step, a key and two values, each a number or a short text."""
    return {
        key: _value(answer.get(key))
        for key in ("step", "key", "logged", "replayed")
        if key in answer
    }


def _value(value: object) -> str | float | None:
    count = whole(value)
    return count if count is not None else number(value) if text(value) is None else text(value)
