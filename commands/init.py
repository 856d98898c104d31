"""`qft init`: writes a run.yaml to start from; given a file of rows, one that fits them.

Whatever is guessed from the rows is printed, so that a wrong guess is seen before it is trained.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from commands.runs import config
from commands.runs.column_guess import Guess, guess_columns
from commands.runs.extras import REHEARSES, missing_packages_text
from commands.runs.prepared_rows import prepared_rows
from commands.ui.errors import UsageError
from commands.ui.options import Json, examples
from commands.ui.output import log, print_data, print_json
from infra.durable import write_bytes
from trainer.data.row import Notes, Row
from trainer.data.split import is_held_out
from trainer.data.template import Template, as_text
from trainer.eval_tables.any_kind import UNASKED

TEMPLATE = """\
# One fine-tuning run. `qft audit` shows what would be trained, `qft plan` what it would cost;
# `qft run` does it. Editors can check this file against the output of `qft init --schema`.
name: {name}

vm:
  provider: local        # rehearse on this computer; `azure` and `aws` rent, `any` rents where the
                         # job is cheapest, `ssh` is a machine you have
  gpu: T4
  max_price: 0.25        # USD per hour, hard: the cloud itself enforces it
budget: {{usd: 5.00, hours: 24, evictions: 20}}

# A hub id, or a directory beside this file. This one is small enough to rehearse on a laptop.
model:  {{id: {base}}}
method: {{kind: qlora, r: 8, alpha: 16, dropout: 0.1, targets: all-linear}}
data:
  train: train.jsonl     # .jsonl, .json, .csv, .tsv or .parquet
  eval:  eval.jsonl      # held out: never trained on, only scored, before and after
{templates}
train:      {{steps: {steps}, batch_size: 8, lr: 2.0e-4, max_length: {length}}}
checkpoint: {{every: auto, keep: 2}}
{scored}"""
TEMPLATES = """\
  prompt:     {prompt}     # {{field}} names a field of every row
  completion: {completion}"""
BLANK = {
    "prompt": '"Text: {text}\\nLabel:"',
    "completion": '" {label}"',
    "labels": "[negative, neutral, positive]",
}
ESCAPED = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
HELD_OUT, HELD_OUT_MAX, SEED = 0.1, 0.3, 0
SCORED_ROWS = 30  # fewer leave an interval too wide to tell an adapter from its base
BATCH, EPOCHS, STEPS_MIN, BLANK_STEPS = 8, 3, 20, 200
LENGTH, LENGTH_MAX = 1024, 8192
BASE, CHAT_BASE = "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-0.6B"
"""The second one for what its chat template takes: reasoning, tools, turns in any order."""
MARKERS = "markers         # plain headings; `template` for a base that has a chat template"
FRAME_TOKENS = 16
"""What stands around an answer at most, such as its end token; it counts for `max_length`."""

EXAMPLES = {
    "qft init": "a run.yaml to edit",
    "qft init --data rows.csv": "one that names the columns of rows.csv",
    "qft init --schema": "the schema, for editors",
}

app = typer.Typer()


@app.command(epilog=examples(EXAMPLES))
def command(
    directory: Annotated[str, typer.Argument(help="Where to write run.yaml.")] = ".",
    *,
    rows: Annotated[
        str,
        typer.Option(
            "--data", metavar="FILE", help="Your rows; the run.yaml then names its columns."
        ),
    ] = "",
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of run.yaml instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a run.yaml to start from."""
    if schema:
        print_data(config.schema())
        return
    written = write(directory, rows)
    if as_json:
        print_json(written.to_json())
    else:
        log("\n".join(written.lines()))


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files that were written, and what was guessed from the rows."""

    config: Path
    files: Mapping[Path, int]
    """Files of rows, with how many each holds."""
    guess: Guess | None
    notes: tuple[str, ...] = ()
    """What was read or written otherwise than it stands in the file."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rows = {str(path): count for path, count in self.files.items()}
        return {
            "config": str(self.config),
            "rows": rows,
            "guess": self.guess.description if self.guess else None,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the lines to print."""
        lines = [f"wrote {self.config}"]
        lines += [f"wrote {path}, {count} rows" for path, count in self.files.items()]
        lines += [f"note: {lack}" for lack in missing_packages_text(REHEARSES)]
        if self.guess is None:
            return [*lines, "next: name your rows and your model in it, then `qft audit`"]
        lines += [f"note: {note}" for note in self.notes]
        guessed = f"guessed: {self.guess.description}"
        return [*lines, guessed, "next: `qft audit` shows it row by row"]


def write(directory: str, rows: str = "") -> Written:
    """Write `run.yaml` into a directory, and the rows beside it, split, if a file of them is given.

    Raises UsageError rather than overwrite a file, and for rows that cannot be read.
    """
    folder = Path(directory)
    target = folder / "run.yaml"
    if target.exists():
        raise _occupied(target)
    if not rows:
        _write({target: _template(name="my-run", guess=None, steps=BLANK_STEPS)})
        return Written(config=target, files={}, guess=None)
    found, read_notes = _read(Path(rows))
    guess = guess_columns(found)
    kept, held_out = _split(prepared_rows(found, guess), found, guess)
    steps = max(STEPS_MIN, -(-len(kept) * EPOCHS // BATCH))
    length, length_notes = _length([*kept, *held_out], guess)
    sides = {folder / "train.jsonl": kept, folder / "eval.jsonl": held_out}
    plain = not guess.messages or _turns_are_plain([*kept, *held_out], guess)
    text = _template(name=_name(Path(rows)), guess=guess, steps=steps, length=length, plain=plain)
    _check_as_audit_does(Path(rows), text, list(sides.values()))
    _write({**{path: _lines(side) for path, side in sides.items()}, target: text})
    counts = {path: len(side) for path, side in sides.items()}
    notes = (*read_notes, *guess.notes, *length_notes)
    return Written(config=target, files=counts, guess=guess, notes=notes)


def _length(rows: Sequence[Row], guess: Guess) -> tuple[int, list[str]]:
    """Return a `max_length` at which no answer is refused, and a note if it is not the usual one.

    No token is shorter than a byte. Beyond `LENGTH_MAX` that is too cautious to be affordable.
    """
    texts = (
        (turn.get("content") for turn in row.fields[guess.answer])
        if guess.messages
        else (as_text(guess.answer, row.fields[guess.answer]),)
        for row in rows
    )
    longest = max(len(str(text or "").encode()) for row in texts for text in row)
    length = LENGTH
    while length < min(longest + FRAME_TOKENS, LENGTH_MAX):
        length *= 2
    notes = [f"`max_length` is {length}: the longest answer has {longest} bytes"]
    return length, notes if length > LENGTH else []


def _check_as_audit_does(path: Path, text: str, sides: Sequence[Sequence[Row]]) -> None:
    """Raise UsageError if `qft audit` would refuse a run.yaml with these rows."""
    made = config.RunConfig.model_validate(yaml.safe_load(text))
    templates = [Template.parse(one) for one in (made.data.prompt, made.data.completion)]
    faults = [
        f"{path}:{number}: {problem}"
        for side in sides
        for number, problem in config.row_problems(side, templates, made)
    ]
    if faults:
        raise UsageError(
            f"`{path}` cannot be used",
            problems=config.gathered(faults)[:20],
            hint="mend the file, then type the same command again",
        )


def _turns_are_plain(rows: Sequence[Row], guess: Guess) -> bool:
    """Tell whether plain headings have a place for all that is said in these conversations."""
    from trainer.data.chat.conversation import read_conversation
    from trainer.data.chat.markers import require_plain_turns
    from trainer.data.template import MissingFieldError

    for row in rows:
        try:
            found = read_conversation(row.fields, guess.messages, ignore=guess.ignored)
        except MissingFieldError:
            continue  # no style of writing takes it, which is told as the audit tells it
        try:
            require_plain_turns(found)
        except MissingFieldError:
            return False
    return True


def _template(
    *, name: str, guess: Guess | None, steps: int, length: int = LENGTH, plain: bool = True
) -> str:
    """Fill in the text of a run.yaml; `plain` tells whether turns need no chat template."""
    words = dict(BLANK)
    if guess is not None:
        words = {
            "prompt": _quoted(guess.prompt),
            "completion": _quoted(guess.completion),
            "labels": _quoted(guess.labels),
        }
    templates = TEMPLATES.format_map(words)
    if guess is not None and guess.messages:
        templates = f"  messages: {_quoted(guess.messages)}\n  chat: "
        templates += MARKERS if plain else "template        # the base's own"
        templates += f"\n  ignore: {_quoted(guess.ignored)}" if guess.ignored else ""
    if guess is not None and guess.text:
        templates = f"  text: {_quoted(guess.text)}"
    name = name if yaml.safe_load(name) == name else _quoted(name)  # `2024` is a number, `on` a yes
    return TEMPLATE.format(
        name=name,
        base=BASE if plain else CHAT_BASE,
        templates=templates,
        steps=steps,
        length=length,
        scored=_scored(guess, words["labels"]),
    )


def _scored(guess: Guess | None, labels: str) -> str:
    """Return the line `eval` of a run.yaml: how its held-out rows are scored, and how many."""
    if guess is None:
        return f"eval:       {{kind: label, labels: {labels}}}\n"
    if guess.none:
        return f"eval:       {{kind: multilabel, labels: {labels}, none: {_quoted(guess.none)}}}\n"
    if guess.labels:
        return f"eval:       {{kind: label, labels: {labels}}}\n"
    kind = "chat" if guess.messages else "loss" if guess.text else "text"
    rows = UNASKED[kind].rows
    return (
        f"eval:       {{kind: {kind}, rows: {rows}}}   # rows at most; `eval: none` scores none\n"
    )


def _quoted(value: object) -> str:
    """Quote a value as YAML reads it back: JSON, with escapes where YAML takes nothing else."""
    text = json.dumps(value, ensure_ascii=False)
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _read(path: Path) -> tuple[list[Row], list[str]]:
    """Read the rows of a file, and what is to be said about how they were read.

    Raises UsageError with everything that is wrong with it.
    """
    from trainer.data.rows import read_rows
    from trainer.errors import DataError

    notes = Notes()
    try:
        rows = read_rows(path, notes)
    except DataError as error:
        raise UsageError(
            f"`{path}` cannot be used",
            problems=config.gathered(list(error.problems))[:20],
            hint="mend the file, then type the same command again",
        ) from error
    return rows, notes.lines()


def _split(
    rows: Sequence[Row], originals: Sequence[Row], guess: Guess
) -> tuple[list[Row], list[Row]]:
    """Hold out a tenth, more where that is too little to score; equal questions stay together.

    They are compared as they stand in the file, so that no change of ours moves a row across.
    """
    template = Template.parse(guess.prompt or f"{{{guess.messages or guess.text}}}")
    share = max(HELD_OUT, min(HELD_OUT_MAX, SCORED_ROWS / max(1, len(rows))))
    sides: tuple[list[Row], list[Row]] = ([], [])
    written = {row.number: row.fields for row in originals}
    for row in rows:
        cells = [written[row.number].get(name) for name in template.fields]
        group = json.dumps(cells, sort_keys=True, default=str)
        sides[is_held_out(group, share=share, seed=SEED)].append(row)
    if not all(sides):
        raise UsageError(
            f"{len(rows)} rows hold too few different questions to hold some out",
            hint="name the files yourself: `qft init`, then edit run.yaml",
        )
    return sides


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row.fields, ensure_ascii=False, default=str) + "\n" for row in rows)


def _name(path: Path) -> str:
    """Name a run after a file."""
    stem = path.name.partition(".")[0].casefold()
    kept = "".join(char if char.isascii() and char.isalnum() else "-" for char in stem)
    return kept.strip("-")[:30].strip("-") or "my-run"


def _occupied(path: Path) -> UsageError:
    return UsageError(f"`{path}` is there already", hint="`qft init DIRECTORY` takes another")


def _write(files: Mapping[Path, str]) -> None:
    """Write all of the files or, if one cannot be written, none.

    What a killed attempt left is the same to the byte, and stays. Raises UsageError for anything
    else that is there.
    """
    missing = {path: text.encode() for path, text in files.items() if not _holds(path, text)}
    for path in missing:
        if path.exists():
            raise _occupied(path)
    made: list[Path] = []
    try:
        for path, data in missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data, mode=0o644)
            made.append(path)
    except OSError:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()
