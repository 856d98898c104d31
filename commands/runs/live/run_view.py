"""Builds the page of a run from what is at home of it, whether it still goes on or not.

While it does, that is its journal and what its driver copies (`commands/runs/live_files.py`); once
the adapter is fetched, it is what `qft report` reads. The cloud and the machine are never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from commands.runs.checkpoint_sync import SCORES
from commands.runs.config import LoadedConfig
from commands.runs.fetched_run import RESULTS, gather_facts
from commands.runs.home import RunFolder, is_locked
from commands.runs.judge.result import FILE as JUDGED
from commands.runs.judge.result import current_result
from commands.runs.live.changes import Sections
from commands.runs.live_files import METRICS, STATUS
from commands.runs.receipt import last_status
from infra.durable import write_json
from infra.run.fold import fold
from infra.run.heartbeat import Heartbeat, read_heartbeat
from infra.run.journal import read
from infra.run.state import RunState
from infra.timestamps import format_utc
from trainer.pages import html
from trainer.pages.report import sections, write
from trainer.pages.run_files import Json, build_report
from trainer.pages.timeline_layout import NAMES
from trainer.rundir.samples import SAMPLES
from trainer.rundir.status import Phase
from trainer.saving.manifest import LOG, directory_name, steps_present
from trainer.text import duration

CONFIG = "config.json"
OVER = (Phase.PREEMPTED, Phase.FAILED, Phase.DONE)


@dataclass(frozen=True, kw_only=True)
class View:
    """The page of a run at one moment."""

    sections: Sections
    ended: bool
    """Whether the run has an ending; when somebody asks for it again, it has none any more."""


@dataclass(kw_only=True)
class RunView:
    """Looks at one run; `scratch` is an empty directory of its own."""

    folder: RunFolder
    loaded: LoadedConfig
    scratch: Path
    clock: Callable[[], float]
    """Seconds since 1970."""

    def signature(self) -> tuple[object, ...]:
        """Return what changes whenever a file of the run does: sizes and times of all of them."""
        out = [self.loaded.out / name for name in (METRICS, "adapter", JUDGED, *RESULTS)]
        live = [self.folder.live / name for name in (METRICS, STATUS, SAMPLES)]
        scores = [self.folder.root / "scores" / name for name in SCORES]
        files = [self.folder.journal, self.folder.checkpoints, *live, *scores, *out]
        return tuple(_signature(path) for path in files)

    def build(self) -> View:
        """Read the files and make the sections.

        Raises `ValueError` for a log that is none, and what reading a journal raises.
        """
        state = fold(read(self.folder.journal))
        report = self._report(state)
        shown = [(key, str(made)) for key, made in sections(report, self.scratch)]
        now = self._now(state, report)
        return View(sections=[("live", str(now)), *shown], ended=state.ending is not None)

    def write(self) -> Path:
        """Write the page and its data into the run's out folder; return the page.

        Raises `OSError` if that cannot be written.
        """
        state = fold(read(self.folder.journal))
        facts = self._report(state)["facts"]
        self.loaded.out.mkdir(parents=True, exist_ok=True)
        write(self.scratch, self.loaded.out, facts, name=self.folder.name)
        return self.loaded.out / "report.html"

    def _report(self, state: RunState) -> Json:
        """Gather everything about the run as it is now."""
        self._lay_out(state)
        until_s = None if state.ending else self.clock()
        facts = gather_facts(self.folder, self.loaded, results=self.scratch, until_s=until_s)
        return build_report(self.scratch, facts)

    def _sources(self) -> dict[str, Path]:
        """Return where the files of the run are now, by their names in a run directory.

        What lies in the out folder before anything was fetched is of another run.
        """
        sources = {CONFIG: self.folder.payload / CONFIG}
        if fold(read(self.folder.journal)).fetched and (self.loaded.out / "adapter").is_dir():
            names = (METRICS, "memory.json", "adapter", *RESULTS)
            return sources | {name: self.loaded.out / name for name in names}
        scores = self.folder.root / "scores"
        sources |= {name: scores / name for name in SCORES if not name.startswith(".")}
        return sources | {METRICS: self._log(), SAMPLES: self.folder.live / SAMPLES}

    def _log(self) -> Path:
        """Return the log that is copied while somebody drives, else that of a checkpoint here."""
        live = self.folder.live / METRICS
        if live.exists():
            return live
        steps = steps_present(self.folder.checkpoints)
        logs = (self.folder.checkpoints / directory_name(step) / LOG for step in steps)
        return next((log for log in logs if log.exists()), live)

    def _lay_out(self, state: RunState) -> None:
        """Let the scratch directory have what a run directory would have now."""
        sources = self._sources()
        for path in [*self.scratch.iterdir()]:
            if path.name not in sources:
                path.unlink()
        for name, source in sources.items():
            link = self.scratch / name
            if link.is_symlink() and link.readlink() == source.absolute():
                continue
            link.unlink(missing_ok=True)
            if source.exists():
                link.symlink_to(source.absolute())
        if not (self.scratch / CONFIG).exists():  # it was begun by a version that kept none
            write_json(self.scratch / CONFIG, self.loaded.config.trainer_tables)
        if "adapter" in sources and (judged := current_result(self.loaded.out)):
            write_json(self.scratch / JUDGED, judged)
        if STATUS not in sources:
            write_json(self.scratch / STATUS, self._status_of(state).to_json())

    def _status_of(self, state: RunState) -> Heartbeat:
        """Return the trainer's last status at home, corrected by what the journal has of it.

        Without a driver there is none, or an old one; a run that was ended trains no more.
        """
        last = last_status(self.folder, self.folder.live)
        if not state.launches:
            return last
        working = Phase.TRAINING if state.launched and not state.trained else ""
        phase = (
            Phase.PREEMPTED if state.ending and last.phase not in OVER else last.phase or working
        )
        step = max(last.step or 0, state.step)
        return replace(last, phase=phase, step=step, steps=last.steps or state.steps)

    def _now(self, state: RunState, report: Json) -> object:
        """Return the section that says how far the run is at this moment."""
        status = self._status()
        rows = [(word, fact) for word, fact in self._rows(state, status, report) if fact]
        return html.section("Now", html.table(("", ""), rows), key="live")

    def _rows(self, state: RunState, status: Heartbeat, report: Json) -> Iterator[tuple[str, str]]:
        facts = report["facts"]
        training = state.launched and not state.ending
        yield "the run", self._stage(state, status, facts)
        if not state.ending and not is_locked(self.folder):
            yield "driven by", f"nobody: `qft run {self.folder.name}` goes on with the run"
        done = report["curves"]["loss"][-1][0] if report["curves"]["loss"] else state.step
        steps = status.steps or state.steps
        yield "step", f"{done:,} of {steps:,}" if steps else ""
        yield "time left", duration(status.eta_s) if training and status.eta_s else ""
        own = facts["timeline"]["own"]
        mark = " at the listed spot price" if facts["listed"] else ""
        yield "cost so far", "" if own else f"${facts['usd']:.4f}{mark}"
        yield "as of", format_utc(self.clock() if not state.ending else _last_s(facts))

    def _stage(self, state: RunState, status: Heartbeat, facts: Json) -> str:
        if state.ending:
            return f"ended: {state.ending.reason}"
        if state.launched and status.phase:
            return status.phase
        spans = facts["timeline"]["spans"]
        return NAMES[spans[-1]["activity"]] if spans else "not begun"

    def _status(self) -> Heartbeat:
        try:
            return read_heartbeat((self.scratch / STATUS).read_bytes())
        except OSError:  # none came yet
            return Heartbeat()


def _last_s(facts: Json) -> float:
    spans = facts["timeline"]["spans"]
    return float(spans[-1]["end_s"]) if spans else 0.0


def _signature(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:  # not there yet
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino
