"""One `run.yaml`, checked whole before anything is rented: every fault at once, with the fix in it.

Each room owns its tables (`infra.config`, `trainer.config`); this file puts them together.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, ValidationError

from commands.runs import base_files
from commands.runs.absolute_key import with_absolute_key
from commands.runs.base_tensors import save_faults
from commands.runs.base_tokens import token_faults
from commands.runs.general_rows import general_faults
from commands.runs.home import check_name
from commands.runs.judge_table import JudgeTable
from commands.runs.plain_values import plain_faults
from commands.runs.plan_table import PlanTable
from commands.runs.row_counts import RowCounts, answer_problem, row_length_problem, unseen_labels
from commands.runs.track_table import TrackTable
from commands.runs.written_numbers import number_problem
from commands.runs.yaml_values import SHOWN_MAX, Misread, read_tables
from commands.ui.errors import UsageError
from infra.config import BudgetTable, VmTable
from infra.vm_choices import gpu_faults, region_faults
from remote import keys
from remote.errors import RemoteError, shorten
from trainer import hub
from trainer.base_config import base_problems
from trainer.config import (
    CheckpointTable,
    ModelTable,
    TrainerConfig,
    TrainTable,
)
from trainer.config_errors import describe_errors
from trainer.data_table import DataTable
from trainer.eval_tables.any_kind import EvalTable
from trainer.eval_tables.scored_config import ScoredConfig
from trainer.method_table import MethodTable

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from trainer.data.row import Row
    from trainer.data.template import Template

FAULTS_SHOWN = 40
MESSAGE_CHARS_MAX = 1000
TRAINER_TABLES = ("model", "method", "data", "train", "checkpoint", "eval")


class RunConfig(ScoredConfig):
    """Everything that a run needs to know, as its user wrote it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    name: str = Field(
        description="Names the run, its folders and its cloud resources: a-z, 0-9, -."
    )
    vm: VmTable = Field(default_factory=VmTable)
    budget: BudgetTable = Field(default_factory=BudgetTable)
    model: ModelTable
    method: MethodTable = Field(default_factory=MethodTable)
    data: DataTable
    train: TrainTable = Field(default_factory=TrainTable)
    checkpoint: CheckpointTable = Field(default_factory=CheckpointTable)
    eval: EvalTable | None = None
    plan: PlanTable | None = Field(
        default=None,
        description="What `qft plan` counts with while the data files are not here; `qft run` "
        "needs the files.",
    )

    track: TrackTable | None = Field(
        default=None,
        description="Where the metrics go, such as `[trackio, mlflow]`; sent from this computer.",
    )
    judge: JudgeTable | None = Field(
        default=None,
        description="Who compares answers at `qft eval --judge`; it stays on this computer.",
    )

    @property
    def trainer_tables(self) -> dict[str, Any]:
        """The tables that go to the machine."""
        return self.model_dump(mode="json", include=set(TRAINER_TABLES), exclude_none=True)


@dataclass(frozen=True, kw_only=True)
class LoadedConfig:
    """A checked config and where it came from; relative paths start at the file's folder."""

    config: RunConfig
    path: Path

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.path.parent

    @property
    def simulated(self) -> bool:
        """Whether this computer plays the machine, so that nobody is charged."""
        return self.config.vm.provider == "local"

    @property
    def own_machine(self) -> bool:
        """Whether the machine is the user's own, so that nothing is rented."""
        return self.config.vm.provider == "ssh"

    @property
    def model_folder(self) -> Path | None:
        """The base model's directory, or None when `model.id` is a hub id."""
        candidate = self.folder / Path(self.config.model.id).expanduser()
        return candidate if candidate.is_dir() else None

    @property
    def data_files(self) -> dict[str, Path]:
        """The data files here by their keys, with absolute paths; the machine fetches a hub's.

        The keys are `train`, or `train.0` and so on where several are listed, and `eval` if named.
        """
        return {
            key: self.folder / Path(name).expanduser()
            for key, name in self.config.data.files.items()
            if hub.parse(name) is None
        }

    @property
    def general_file(self) -> Path | None:
        """The file of `eval.general` here; None if none is named, or the machine fetches it."""
        name = None if self.config.scored is None else self.config.scored.general
        here = name is not None and hub.parse(name) is None
        return self.folder / Path(name).expanduser() if name and here else None

    @property
    def out(self) -> Path:
        """Where the results of the run go."""
        return self.folder / "out" / self.config.name


def load(path: Path) -> LoadedConfig:
    """Read and check a `run.yaml`. Raises UsageError with every fault at once."""
    content = read_tables(path)
    # The way may lead through a folder that goes later; the file itself may be a link.
    vm = content.tables.get("vm")
    faults = [*content.faults, *gpu_faults(vm), *region_faults(vm)]
    return check(content.tables, path.parent.resolve() / path.name, faults=faults)


def check(content: dict[str, Any], path: Path, *, faults: Sequence[str] = ()) -> LoadedConfig:
    """Check what a `run.yaml` holds, its names and the files it points at.

    `faults` were found while it was read. Raises UsageError with every fault at once.
    """
    found = list(faults)
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        found += [*_validation_messages(error), *plain_faults(content)]
    except UnicodeEncodeError:  # half a character in a saved config: no message could show it
        found += plain_faults(content)
    else:
        found += plain_faults(config.model_dump(mode="json")) or _cross_faults(config)
    name = content.get("name")
    if isinstance(name, str):
        try:
            check_name(name)
        except UsageError as error:
            found.append(f"name: {error.message}; {error.hint}")
    found = list(dict.fromkeys(found))
    if config is None or found:
        more = [f"… and {len(found) - FAULTS_SHOWN} more"] * (len(found) > FAULTS_SHOWN)
        raise UsageError(
            f"`{path.name}` has {len(found)} fault{'s' if len(found) > 1 else ''}",
            problems=[*found[:FAULTS_SHOWN], *more],
            hint="`qft init --schema` prints the schema; editors can check as you type",
        )
    vm = with_absolute_key(config.vm, path.parent)
    return LoadedConfig(config=config.model_copy(update={"vm": vm}), path=path)


def _cross_faults(config: RunConfig) -> list[str]:
    """What only shows when the tables are seen together, in the trainer's own words."""
    pinned = config.vm.ssh.host_key if config.vm.ssh else ""
    faults: list[str] = []
    if pinned:
        try:
            keys.parse_line(pinned)
        except RemoteError as error:
            faults.append(f"vm.ssh.host_key: {error}; {error.hint}")
    try:
        TrainerConfig.model_validate(config.trainer_tables)
    except ValidationError as error:
        return [*faults, *_validation_messages(error)]
    late = [
        step for step in config.vm.rehearse_evictions if step >= (config.train.steps or step + 1)
    ]
    return faults + [
        f"vm.rehearse_evictions: step {step} never comes, the run has {config.train.steps} steps"
        for step in late
    ]


def _validation_messages(error: ValidationError) -> list[str]:
    return describe_errors(
        error, RunConfig, explain=_explain, shorten=lambda key: shorten(key, SHOWN_MAX)
    )


def _explain(details: ErrorDetails, message: str) -> str:
    """Add to a message of pydantic's what stands in the file, and what YAML made of it."""
    got = details["input"]
    if isinstance(got, Misread):
        return got.why
    if details["type"] in {"float_parsing", "int_parsing"} and isinstance(got, str):
        whole = details["type"] == "int_parsing"
        return number_problem(got, shown=shorten(got, SHOWN_MAX), whole=whole)
    message = _shown(message)
    if isinstance(got, bool) and details["type"] == "string_type":
        return f"{message}: YAML reads yes, no, on and off as true and false; put it in quotes"
    if details["type"] not in {"missing", "value_error"} and isinstance(got, str | int | float):
        return f"{message}, not `{shorten(str(got), SHOWN_MAX)}`"
    return message


def _shown(message: str) -> str:
    """A message of a length that can be read, whatever the value in it."""
    return message if len(message) < MESSAGE_CHARS_MAX else shorten(message, MESSAGE_CHARS_MAX)


def absent_files(loaded: LoadedConfig) -> list[Path]:
    """Return the data files that are named and not here, and that the table `plan` stands for."""
    if loaded.config.plan is None:
        return []
    return [path for path in loaded.data_files.values() if not path.exists()]


def check_data_and_model(loaded: LoadedConfig, *, absent: Sequence[Path] = ()) -> list[str]:
    """Check that model and data are there, readable, and fit the templates, before renting.

    Returns what to warn of. Raises UsageError with every fault at once. Reads the data files whole,
    but those in `absent`, which a plan goes on without; loads no model.
    """
    from trainer.data.header import header_problem
    from trainer.data.row import Notes
    from trainer.data.rows import read_rows
    from trainer.data.template import Template, TemplateError
    from trainer.errors import DataError

    table = loaded.config.data
    faults = same_file_twice(loaded.data_files)
    templates: list[Template] = []
    answers: set[str] = set()
    for field, text in (("prompt", table.prompt), ("completion", table.completion)):
        try:
            templates.append(Template.parse(text))
        except TemplateError as error:
            faults.append(f"data.{field}: {error}")
    for key, file in loaded.data_files.items():
        if file in absent:
            continue
        if file.exists() and not (file.is_file() or file.is_dir()):  # to open a pipe would wait
            faults.append(f"data.{key}: {file}: is a pipe or a device, not a data file")
            continue
        notes = Notes()
        try:
            rows = read_rows(file, notes)
        except DataError as error:
            faults += [f"data.{key}: {problem}" for problem in error.problems]
            continue
        counts = None if key == "eval" else RowCounts()
        found = row_problems(rows, templates, loaded.config, counts)
        faults += [f"data.{key}: {file}:{number}: {problem}" for number, problem in found]
        if counts is not None:
            answers |= counts.answers
            most = loaded.config.train.max_length
            if problem := counts.length_problem(too_long=table.too_long, tokens_max=most):
                faults.append(f"data.{key}: {file}: {problem}")
        if found:
            causes = [*notes.lines(), header_problem(row.fields for row in rows)]
            faults += [f"data.{key}: {file}: {cause}" for cause in causes if cause]
    faults = [*gathered(faults), *general_faults(loaded.general_file, table)]
    faults += _model_faults(loaded)
    if faults:
        shown = [_shown(one) for one in faults[:20]]
        if len(faults) > len(shown):
            shown.append(f"… and {len(faults) - len(shown)} more")
        raise UsageError(
            "the data or the model cannot be used; nothing was rented",
            problems=shown,
            hint="mend the file, or what run.yaml says of it (paths begin at its folder), then "
            "`qft audit` shows what would be trained",
        )
    every_file = len(loaded.data_files) == len(table.files) and not absent
    scored = loaded.config.label_table if every_file else None
    unseen = unseen_labels(answers, scored) if scored is not None and answers else []
    names = ", ".join(f"`{one}`" for one in unseen)
    return [f"eval.labels: no row to learn from has {names}"] if unseen else []


def same_file_twice(files: Mapping[str, Path]) -> list[str]:
    """Say which data files to learn from are one file under two names: it would count twice."""
    places: dict[Path, str] = {}
    faults = []
    for key, path in files.items():
        first = places.setdefault(path.resolve(), key)
        if key not in {first, "eval"}:
            faults.append(f"data.{key}: {path}: is `data.{first}` too: list it once, with a weight")
    return faults


def require_weights(loaded: LoadedConfig) -> None:
    """Raise UsageError if the base is a directory here that holds no weights to send."""
    folder = loaded.model_folder
    if folder is not None and not base_files.has_weights(folder):
        raise UsageError(
            f"model.id: `{loaded.config.model.id}` holds no weights; nothing was rented",
            hint=f"it needs `{base_files.SINGLE}`, or `{base_files.INDEX}` and what that lists",
        )


def gathered(faults: list[str]) -> list[str]:
    """One line for a fault that many rows of a file have, with the first row and how many more."""
    rows: dict[tuple[str, str], list[str]] = {}
    for problem in faults:
        found = re.fullmatch(r"(.*?):(\d+): (.*)", problem, flags=re.DOTALL)
        where, row, message = found.groups() if found else ("", "", problem)
        rows.setdefault((where, message), []).append(row)
    lines = []
    for (where, message), numbers in rows.items():
        more = len(numbers) - 1
        same = f" (and {more} more row{'s' * (more > 1)})" if more else ""
        lines.append(f"{where}:{numbers[0]}: {message}{same}" if where else message)
    return lines


def row_problems(
    rows: Sequence[Row],
    templates: Sequence[Template],
    config: RunConfig,
    counts: RowCounts | None = None,
) -> list[tuple[int, str]]:
    """Return what is wrong with the rows of one file, each with its number.

    `counts` takes the rows of a file to learn from, whose lengths then count, too. Held-out rows
    have none; they must be such as can be scored.
    """
    from trainer.data.preferences import describe_preferences
    from trainer.data.template import MissingFieldError
    from trainer.scoring.scored_rows import scored_row_problems

    there = [one.for_rows(row.fields for row in rows) for one in templates]
    found = []
    for row in rows:
        try:
            problem = _row_problem(row.fields, there, config, counts)
        except MissingFieldError as error:
            kind = describe_preferences(row.fields)
            problem = f"{error}; {kind}" if kind else str(error)
        if problem:
            found.append((row.number, problem))
    if counts is None and not found and len(templates) == 2:
        return scored_row_problems(rows, config.data, config.scored)
    return found


def _row_problem(
    fields: Mapping[str, Any],
    templates: Sequence[Template],
    config: RunConfig,
    counts: RowCounts | None,
) -> str | None:
    """Return what is wrong with one row, so far as it shows without a tokenizer.

    Raises MissingFieldError if it lacks a field, or is no conversation where one is wanted.
    """
    from trainer.data.chat.conversation import read_conversation
    from trainer.data.chat.markers import require_plain_turns
    from trainer.data.examples import text_problem
    from trainer.data.template import Template as Parsed

    if config.data.text is not None:
        return text_problem(Parsed.parse("{" + config.data.text + "}").render(fields))
    texts: list[str] = []
    if config.data.messages is not None:
        found = read_conversation(fields, config.data.messages, ignore=config.data.ignore)
        if config.data.chat == "markers":
            require_plain_turns(found)
        answer = found.answer or "a tool call"
    else:
        texts = [template.render(fields) for template in templates]
        if len(texts) < 2:  # the other template is broken, which is told on its own
            return None
        answer = texts[1]
    if not answer.strip():
        return "the answer to learn is empty; write a word for it (such as N/A), or remove the row"
    if counts is not None and texts:
        counts.add(texts, labelled=config.label_table is not None)
        table, most = config.data, config.train.max_length
        if problem := row_length_problem(texts, too_long=table.too_long, tokens_max=most):
            return problem
    labels = config.label_table
    return None if labels is None else answer_problem(answer, labels)


def _closed(problem: str) -> str:
    """A fault of a file with the mark that closes its name."""
    file, _, message = problem.partition(": ")
    return f"{file}`: {message}"


def _model_faults(loaded: LoadedConfig) -> list[str]:
    folder = loaded.model_folder
    name = loaded.config.model.id
    if folder is not None:
        broken = base_files.faults(folder)
        if broken:
            return [f"model.id: `{name}/{problem}" for problem in map(_closed, broken)]
        try:
            described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return [f"model.id: `{name}` is a directory without config.json"]
        except (ValueError, RecursionError) as error:
            return [f"model.id: `{name}/config.json` is not JSON: {error}"]
        except OSError as error:
            return [f"model.id: `{name}/config.json` cannot be read: {error.strerror}"]
        data = loaded.config.data
        field = "text" if data.text is not None else "messages"
        whole = data.text is not None or data.messages is not None
        if whole and isinstance(described, dict) and described.get("is_encoder_decoder"):
            what = "no text of its own" if field == "text" else "no conversation"
            why = f"is an encoder-decoder, which reads a prompt and {what}"
            return [f"data.{field}: `{name}` {why}; give `prompt` and `completion`"]
        if not isinstance(described, dict):
            return []
        tokens = token_faults(folder, described)
        refused = base_problems(described, loaded.config.method, name=name)
        refused += save_faults(loaded.config.method, folder)
        return [*(f"model.id: `{name}/{problem}" for problem in map(_closed, tokens)), *refused]
    missing = f"there is no directory `{shorten(name, SHOWN_MAX)}` beside {loaded.path.name}"
    if not hub.is_hub_id(name):
        meant, revision = hub.model_in(name)
        if meant:
            whole_id = f"{{id: {meant}{f', revision: {revision}' * bool(revision)}}}"
            problem = f"`{shorten(name, SHOWN_MAX)}` is no hub id; write `model: {whole_id}`"
            return [f"model.id: {problem}"]
        words = "`owner/name` or `name`, of A-Z, a-z, 0-9, `_`, `-` and `.`"
        return [f"model.id: {missing}, and a hub id reads {words}"]
    if "/" not in name:  # `gpt2` is one, and so would be most slips in the name of a directory
        folders = [path.name for path in loaded.folder.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(name, folders, n=1, cutoff=0.8)
        if near:
            hint = f"did you mean `{near[0]}`? A hub id reads `owner/name`"
            return [f"model.id: {missing}; {hint}"]
    return []


def schema() -> str:
    """The JSON schema of `run.yaml`, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)
