"""`qft track`: sends what a run logged to trackers; what they have already is not sent again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.runs.config import LoadedConfig
from commands.runs.extras import missing, remedy
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, environment, pick_run, qft_home
from commands.runs.track_table import TRACKERS, TrackTable
from commands.ui.errors import HostError, UsageError
from commands.ui.options import Json, Run, examples
from commands.ui.output import columns, print_data, print_json

LOCK_S = 60.0
EXAMPLES = {
    "qft track": "to the trackers of `track` in run.yaml",
    "qft track my-run --to mlflow": "to one that run.yaml does not name",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    run: Run = "",
    *,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="|".join(TRACKERS), help="This tracker only; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send what a run logged to trackers; each step arrives once.

    `qft run` does so by itself while a run goes on, if run.yaml has `track`.
    """
    sent = track(run, tuple(to or ()))
    if as_json:
        print_json({"sent": sent})
    else:
        rows = [(name, f"{count} new steps") for name, count in sent.items()]
        print_data(columns(rows))


def track(wanted: str, names: tuple[str, ...]) -> dict[str, int]:
    """Send each tracker what it lacks of a run; return how many steps each got.

    Raises UsageError if there is no tracker, or a package is missing, and HostError, once the
    others have theirs, if one did not take its rows.
    """
    from commands.runs.trackers.track_run import FOLDER
    from infra.durable import LockTimeout, locked

    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    table = chosen(loaded, names)
    try:
        with locked(folder.root / FOLDER / "lock", timeout_s=LOCK_S):
            return _send(folder, loaded, table)
    except LockTimeout as error:
        raise UsageError(f"another `qft` sends `{folder.name}` ({error.holder})") from error


def chosen(loaded: LoadedConfig, names: tuple[str, ...]) -> TrackTable:
    """Return the trackers to send to. Raises UsageError if there are none, or one is unknown."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"`--to {name}`: there are {', '.join(TRACKERS)}")
    table = loaded.config.track
    if names:
        return (table or TrackTable.model_validate(list(names))).with_names(names)
    if table is None:
        raise UsageError(
            f"the run.yaml of `{loaded.config.name}` names no tracker",
            hint="write `track: [trackio]` into it, or type `--to trackio`",
        )
    return table


def _send(folder: RunFolder, loaded: LoadedConfig, table: TrackTable) -> dict[str, int]:
    from commands.runs.trackers.available import PACKAGES, QUIET, make_trackers, redacted
    from commands.runs.trackers.track_run import fill, outbox_of, send_unsent, tracked_run
    from infra.run.fold import fold
    from infra.run.journal import read

    environ = environment()
    outbox = outbox_of(folder, fold(read(folder.journal)))
    run = tracked_run(folder, loaded, fill(outbox, folder, loaded, now_s=time.time()))
    sent: dict[str, int] = {}
    problems: list[str] = []
    hints: list[str] = []
    _set_defaults(QUIET)
    for name, make in make_trackers(loaded, table, environ).items():
        if lacks := missing(PACKAGES[name]):
            problems += [str(lack) for lack in lacks]
            hints.append(remedy(lacks))
            continue
        try:
            sent[name] = send_unsent(make(), name, run, outbox)
        except Exception as error:  # noqa: BLE001 - a tracker's library raises anything
            words = " ".join(str(error).split()) or type(error).__name__
            problems.append(f"{name}: {redacted(words, environ)}")
    if problems:
        kind = UsageError if hints else HostError
        raise kind(
            "not every tracker has the run yet",
            problems=problems,
            hint="; ".join(dict.fromkeys(hints)),
        )
    return sent


def _set_defaults(wanted: Mapping[str, str]) -> None:
    """Set environment variables that the user has not set, for libraries that read nothing else."""
    variables: Any = environment()
    for name, value in wanted.items():
        variables.setdefault(name, value)
