"""`qft init`: a run.yaml to start from; with the user's rows at hand, one that fits them.

Whatever is guessed from the rows is said, so that a wrong guess is seen before it is trained.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from commands.runs import config
from commands.runs.extras import REHEARSES, told_of
from commands.ui.errors import UsageError
from infra.durable import write_bytes
from trainer.config import EvalTable, problems

TEMPLATE = """\
# One fine-tuning run. `qft audit` shows what would be trained, `qft plan` what it would cost;
# `qft run` does it. Editors can check this file against the output of `qft init --schema`.
name: {name}

vm:
  provider: local        # rehearse on this computer; `azure` rents, `ssh` is a machine you have
  gpu: T4
  max_price: 0.25        # USD per hour, hard: the cloud itself enforces it
budget: {{usd: 5.00, hours: 24, evictions: 20}}

# A hub id, or a directory beside this file. This one is small enough to rehearse on a laptop.
model:  {{id: HuggingFaceTB/SmolLM2-135M}}
method: {{kind: qlora, r: 8, alpha: 16, dropout: 0.1, targets: all-linear}}
data:
  train: train.jsonl     # .jsonl, .json, .csv, .tsv or .parquet
  eval:  eval.jsonl      # held out: never trained on, only scored
{templates}
train:      {{steps: {steps}, batch_size: 8, lr: 2.0e-4, max_length: 1024}}
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
ANSWERS = (
    *("label", "labels", "class", "category", "sentiment", "completion", "response", "answer"),
    *("output", "target", "reply", "summary"),
)
"""Names that a column of answers usually has, surest first."""
QUESTIONS = ("instruction", "input", "context", "question", "prompt", "text", "comment", "message")
PLAIN = str | int | float  # what a template can write, as it can a list of words
NOTHING = frozenset({"n/a", "na", "none", "no label", "nothing", "-"})
"""What people write where none of the labels holds."""
ESCAPED = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
HELD_OUT, HELD_OUT_MAX, SEED = 0.1, 0.3, 0
SCORED_ROWS = 30  # fewer leave an interval too wide to tell an adapter from its base
BATCH, EPOCHS, STEPS_MIN, BLANK_STEPS = 8, 3, 20, 200
LABELS_MAX, ROWS_PER_LABEL_MIN = 50, 3
NO_LABEL: str = EvalTable.model_fields["none"].default


@dataclass(frozen=True, kw_only=True)
class Guess:
    """How rows become prompt and completion, as far as their names and contents tell."""

    prompt: str = ""
    completion: str = ""
    messages: str = ""
    labels: tuple[str, ...] = ()
    none: str = ""
    """What stands for no label at all, if the answers are sets of labels."""

    @property
    def said(self) -> str:
        """The guess in words."""
        if self.messages:
            return f"each row is a conversation in `{self.messages}`"
        kind = f"one of {len(self.labels)} labels" if self.labels else "a text"
        if self.none:
            kind = f"any of {len(self.labels)} labels, {self.none!r} for none of them"
        return f"from {self.prompt!r} the model learns {self.completion!r}, {kind}"


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, and what was guessed on the way."""

    config: Path
    files: Mapping[Path, int]
    """Files of rows, with how many each holds."""
    guess: Guess | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = {str(path): count for path, count in self.files.items()}
        return {
            "config": str(self.config),
            "rows": rows,
            "guess": self.guess.said if self.guess else None,
        }

    def lines(self) -> list[str]:
        """What to say."""
        said = [f"wrote {self.config}"]
        said += [f"wrote {path}, {count} rows" for path, count in self.files.items()]
        said += [f"note: {lack}" for lack in told_of(REHEARSES)]
        if self.guess is None:
            return [*said, "next: name your rows and your model in it, then `qft audit`"]
        return [*said, f"guessed: {self.guess.said}", "next: `qft audit` shows it row by row"]


def write(directory: str, rows: str = "") -> Written:
    """Write `run.yaml` into a directory, and the rows beside it, split, if a file of them is given.

    Raises Usage rather than overwrite a file, and for rows that cannot be read.
    """
    folder = Path(directory)
    target = folder / "run.yaml"
    if target.exists():
        raise _occupied(target)
    if not rows:
        _write({target: _template(name="my-run", guess=None, steps=BLANK_STEPS)})
        return Written(config=target, files={}, guess=None)
    fields = _read(Path(rows))
    guess = _guess(fields)
    kept, held_out = _split(fields, guess)
    steps = max(STEPS_MIN, -(-len(kept) * EPOCHS // BATCH))
    sides = {folder / "train.jsonl": kept, folder / "eval.jsonl": held_out}
    text = _template(name=_name(Path(rows)), guess=guess, steps=steps)
    _write({**{path: _lines(side) for path, side in sides.items()}, target: text})
    counts = {path: len(side) for path, side in sides.items()}
    return Written(config=target, files=counts, guess=guess)


def schema() -> str:
    """The JSON schema of `run.yaml`."""
    return config.schema()


def _template(*, name: str, guess: Guess | None, steps: int) -> str:
    """The text of a run.yaml."""
    words = dict(BLANK)
    if guess is not None:
        words = {
            "prompt": _quoted(guess.prompt),
            "completion": _quoted(guess.completion),
            "labels": _quoted(guess.labels),
        }
    templates = TEMPLATES.format_map(words)
    scored = f"eval:       {{kind: label, labels: {words['labels']}}}\n"
    if guess is not None and guess.none:
        none = _quoted(guess.none)
        scored = f"eval:       {{kind: multilabel, labels: {words['labels']}, none: {none}}}\n"
    if guess is not None and guess.messages:
        templates = f"  messages: {_quoted(guess.messages)}\n  chat: markers"
    if guess is not None and not guess.labels:
        scored = ""
    name = name if yaml.safe_load(name) == name else _quoted(name)  # `2024` is a number, `on` a yes
    return TEMPLATE.format(name=name, templates=templates, steps=steps, scored=scored)


def _quoted(value: object) -> str:
    """Words as YAML reads them back: JSON but for what YAML allows, or keeps, as an escape only."""
    text = json.dumps(value, ensure_ascii=False)
    return ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _read(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a file. Raises Usage with everything that is wrong with it."""
    from trainer.data.rows import DataError, read_rows

    try:
        rows = read_rows(path)
    except DataError as error:
        raise UsageError(
            f"`{path}` cannot be used",
            problems=config.gathered(list(error.problems))[:20],
            hint="mend the file, then type the same command again",
        ) from error
    return [row.fields for row in rows]


def _guess(rows: Sequence[Mapping[str, Any]]) -> Guess:
    """Find the answer among the columns, and what it is the answer to. Raises Usage if unclear."""
    from trainer.data.converters import published_format
    from trainer.data.template import as_text

    shared = [name for name in rows[0] if all(name in row for row in rows)]
    for name in shared:
        if all(_is_talk(row[name]) for row in rows):
            return Guess(messages=_nameable(name))
    plain = [name for name in shared if all(_is_plain(row[name]) for row in rows)]
    folded = {name.strip().casefold(): name for name in plain}
    answer = next((folded[name] for name in ANSWERS if name in folded), "")
    asked = [folded[name] for name in QUESTIONS if name in folded and folded[name] != answer]
    others = [name for name in plain if name != answer]
    if not answer or not others:
        published = published_format(shared)
        hint = f"name it one of {', '.join(ANSWERS)}; or write run.yaml by hand: `qft init`"
        if published:
            hint = f"`qft data {published} FILE` turns this published form into rows"
        raise UsageError(
            f"no telling which of the columns {', '.join(map(repr, rows[0]))} is the answer",
            hint=hint,
        )
    longest = max(others, key=lambda name: sum(len(str(row[name])) for row in rows))
    titles = [(_nameable(name), name.strip().capitalize()) for name in asked or [longest]]
    prompt = "".join(f"{title}: {{{name}}}\n" for name, title in titles)
    counts = Counter(as_text(answer, row[answer]).strip() for row in rows)
    labels, none = _labels(counts)
    title = answer.strip().capitalize()
    if counts[""]:
        fix = f"write `{none}` there" if none else "fill or remove them"
        raise UsageError(
            f"{counts['']} rows have nothing in `{answer}`, the answer to learn",
            hint=f"{fix}, then type the same command again",
        )
    guess = Guess(prompt=f"{prompt}{title}:", completion=f" {{{answer}}}", labels=labels, none=none)
    _check_labels(answer, guess)
    return guess


def _labels(counts: Counter[str]) -> tuple[tuple[str, ...], str]:
    """Find the labels among the answers, if these are few; and the word for none, if they are sets.

    Places such as `Salem, OR` share words, too, but have more words than there are places.
    """
    from trainer.scoring.answers import split_labels

    few = min(LABELS_MAX, counts.total() // ROWS_PER_LABEL_MIN)
    sets = {frozenset(split_labels(answer)) for answer in counts} - {frozenset()}
    words = frozenset().union(*sets)
    if any(len(one) > 1 for one in sets) and len(words) <= min(few, len(sets)):
        together = frozenset().union(*(one for one in sets if len(one) > 1))
        none = [word for word in words - together if word.casefold() in NOTHING]
        return tuple(sorted(words - {*none[:1]})), none[0] if none else NO_LABEL
    return tuple(sorted(counts)) if 1 < len(counts) <= few else (), ""


def _check_labels(answer: str, guess: Guess) -> None:
    """Raise Usage if a run.yaml with these labels would be refused."""
    if not guess.labels:
        return
    kind: Literal["multilabel", "label"] = "multilabel" if guess.none else "label"
    try:
        EvalTable(kind=kind, labels=list(guess.labels), none=guess.none or NO_LABEL)
    except ValidationError as error:
        raise UsageError(
            f"the labels in `{answer}` cannot be scored",
            problems=[*problems(error), f"they are {', '.join(map(repr, guess.labels))}"],
            hint="write each in one way in the file, then type the same command again",
        ) from error


def _is_plain(value: object) -> bool:
    """Whether a template can write a cell."""
    if isinstance(value, list):
        return all(isinstance(word, str) for word in value)
    return isinstance(value, PLAIN)


def _nameable(name: str) -> str:
    """A column's name if `{name}` in a template means this column. Raises Usage otherwise."""
    from trainer.data.template import Template, TemplateError

    try:
        named = Template.parse(f"{{{name}}}").parts == (("", name),)
    except TemplateError:
        named = False
    if not named:
        raise UsageError(
            f"no template can name the column {name!r}",
            hint="rename it in the file, to a word without the marks { } ! :",
        )
    return name


def _is_talk(value: object) -> bool:
    """Whether a cell holds turns of a conversation."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)


def _split(
    rows: Sequence[Mapping[str, Any]], guess: Guess
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Hold out a tenth, more where that is too little to score; equal questions stay together."""
    from trainer.data.split import is_held_out
    from trainer.data.template import Template

    asked = Template.parse(guess.prompt or f"{{{guess.messages}}}")
    share = max(HELD_OUT, min(HELD_OUT_MAX, SCORED_ROWS / len(rows)))
    sides: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for row in rows:
        group = json.dumps([row[field] for field in asked.fields], sort_keys=True)
        sides[is_held_out(group, share=share, seed=SEED)].append(row)
    if not all(sides):
        raise UsageError(
            f"{len(rows)} rows hold too few different questions to hold some out",
            hint="name the files yourself: `qft init`, then edit run.yaml",
        )
    return sides


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _name(path: Path) -> str:
    """A run's name after the file's."""
    stem = path.name.partition(".")[0].casefold()
    kept = "".join(char if char.isascii() and char.isalnum() else "-" for char in stem)
    return kept.strip("-")[:30].strip("-") or "my-run"


def _occupied(path: Path) -> UsageError:
    return UsageError(f"`{path}` is there already", hint="`qft init DIRECTORY` takes another")


def _write(files: Mapping[Path, str]) -> None:
    """Write all of the files or, if one cannot be written, none.

    What a killed attempt left is the same to the byte, and stays. Raises Usage for anything else
    that is there.
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
