"""`qft eval`: shows whether the adapter is better than its base, with confidence intervals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.runs.comparing.compare_runs import compare_runs
from commands.runs.comparing.page import comparison_lines
from commands.runs.comparing.scored_run import read_scored_run
from commands.runs.config import LoadedConfig
from commands.runs.extras import demand, needed_to_train
from commands.runs.fetched_run import adapter_of, check_fetched
from commands.runs.find_config import reopen
from commands.runs.home import RunFolder, environment, pick_run, qft_home
from commands.runs.judge.judge_run import JudgeOptions, budget_error, judge_run
from commands.runs.judge.result import current_result, result_lines
from commands.runs.local_trainer import local_run_dir, start
from commands.runs.measured import read_result
from commands.runs.score import Score, read_score, score_lines
from commands.ui.errors import TrainingError, UsageError
from commands.ui.options import Json, Run, examples, fail_after_output
from commands.ui.output import log, print_data, print_json
from commands.ui.wrap import output_width, wrapped
from infra.durable import write_json
from trainer.scoring.forgetting.summary import forgetting_lines
from trainer.scoring.score_words import WORDS

EXAMPLES = {
    "qft eval": "the scores that the run measured",
    "qft eval --again": "measure them anew on this computer",
    "qft eval --compare RUN RUN": "two runs on the rows that both scored",
    "qft eval --judge": "let the model of the table `judge` compare the answers",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(  # noqa: PLR0913 - the options of the command line
    run: Run = "",
    *,
    again: Annotated[bool, typer.Option("--again", help="Measure anew on this computer.")] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare", metavar="RUN RUN", help="Compare two runs on the rows that both scored."
        ),
    ] = None,
    judge: Annotated[
        bool,
        typer.Option("--judge", help="Let the model that run.yaml names compare the answers."),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="With --judge: ask nobody; needs `judge.budget_usd`."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the metric before and after, with intervals."""
    if compare is not None:
        if run or again or judge:
            raise UsageError(
                "`--compare` takes two runs, and neither a third nor `--again` or `--judge`",
                hint="`qft eval RUN --again` measures a run anew; compare it afterwards",
            )
        show_comparison(*compare, as_json=as_json)
        return
    if judge and again:
        raise UsageError(
            "`--again` and `--judge` are two commands",
            hint="`qft eval --again` first; the judge then compares the new answers",
        )
    if yes and not judge:
        raise UsageError("`--yes` goes with `--judge`", hint="leave it out: nobody is asked here")
    if judge:
        show_judgement(run, yes=yes, as_json=as_json)
        return
    found = scores(run, again=again, on_message=log)
    if as_json:
        print_json(found.to_json())
    else:
        print_data("\n".join(found.lines()))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metric of the base and of the adapter."""

    run: str
    before: Score | None
    after: Score | None
    judge: dict[str, Any] = field(default_factory=dict)
    """What `judge.json` holds, if it is of these answers."""
    forgetting: list[str] = field(default_factory=list)
    """What was measured of forgetting, a line each."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `judge` is there only after one, without its single rows."""
        judged = {key: value for key, value in self.judge.items() if key != "documents"}
        return {
            "run": self.run,
            "before": asdict(self.before) if self.before else None,
            "after": asdict(self.after) if self.after else None,
            **({"judge": judged} if judged else {}),
            **({"forgetting": self.forgetting} if self.forgetting else {}),
        }

    def lines(self) -> list[str]:
        """Return the lines to print."""
        measured = dict(score_lines(self.before, self.after, figures=tuple(WORDS)))
        rows = {"before": "not measured", "after": "not measured", **measured}
        lines = [f"{word:<7} {fact}" for word, fact in rows.items()]
        if self.forgetting:
            width = output_width()
            wide = (wrapped(line, width, indent="  ") for line in self.forgetting)
            lines += ["", *(one for broken in wide for one in broken)]
        if self.judge:
            lines += ["", *result_lines(self.judge, output_width())]
        return lines


def show_comparison(first: str, second: str, *, as_json: bool) -> None:
    """Print two runs side by side; raises UsageError if they cannot be compared."""
    home = qft_home(environment())
    folders = [pick_run(home, name, cwd=Path.cwd()) for name in (first, second)]
    if folders[0] == folders[1]:
        raise UsageError(
            f"`{folders[0].name}` is named twice", hint="name two runs: `qft ls --all`"
        )
    compared = compare_runs(*map(read_scored_run, folders))
    if as_json:
        print_json(compared.to_json())
    else:
        print_data("\n".join(comparison_lines(compared, output_width())))


def show_judgement(wanted: str, *, yes: bool, as_json: bool) -> None:
    """Let the judge compare the answers of a run, and print its tables."""
    options = JudgeOptions(yes=yes, environment=environment(), on_message=log)
    result = judge_run(wanted, options)
    if as_json:
        print_json(result)
    else:
        print_data("\n".join(result_lines(result, output_width())))
    if error := budget_error(result, str(result["run"])):
        fail_after_output(error, as_json=as_json)


def scores(wanted: str, *, again: bool, on_message: Callable[[str], None]) -> Scores:
    """Return the fetched scores; with `again`, the adapter is scored anew on this computer."""
    folder = pick_run(qft_home(environment()), wanted, cwd=Path.cwd())
    loaded = reopen(folder)
    if loaded.config.scored is None:
        raise UsageError(
            f"`{folder.name}` holds out no rows, or says `eval: none`",
            hint="name a file in `data.eval` of run.yaml, and leave `eval: none` out",
        )
    check_fetched(folder, loaded)
    if again:
        _score_again(loaded, folder, on_message)
    results = [read_result(loaded.out / f"eval-{stage}.json") for stage in ("before", "after")]
    return Scores(
        run=folder.name,
        before=read_score(loaded.out / "eval-before.json"),
        after=read_score(loaded.out / "eval-after.json"),
        judge=current_result(loaded.out),
        forgetting=forgetting_lines(*results),
    )


def _score_again(
    loaded: LoadedConfig, folder: RunFolder, on_message: Callable[[str], None]
) -> None:
    """Run the trainer's own evaluation here, and put its result beside the adapter.

    The base is measured, too, where the run has no score of it: one of an earlier version.
    """
    demand(needed_to_train(loaded.config), "`qft eval`", qft_home(environment()))
    on_message("measuring on this computer")
    with local_run_dir(loaded, folder) as run_dir:
        before = loaded.out / "eval-before.json"
        if not before.exists():
            write_json(before, _measured(run_dir), mode=0o644)
        shutil.copyfile(before, run_dir / before.name)
        after = _measured(run_dir, "--adapter", str(adapter_of(loaded)))
    write_json(loaded.out / "eval-after.json", after, mode=0o644)


def _measured(run_dir: Path, *arguments: str) -> Any:
    """Return the result of an evaluation here; raise `TrainingError` if there is none."""
    done = start("eval", "--run-dir", str(run_dir), *arguments)
    if done.returncode:
        raise TrainingError(f"the evaluation ended with exit code {done.returncode}")
    return json.loads(done.stdout)
