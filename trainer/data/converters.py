"""Converts published data sets to rows, one by one; `FORMATS` at the end is the table of them.

Every converter reads a stream and yields rows as dictionaries; what it leaves out is counted by
reason. A row's `group` names what must stay on one side of a split.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer.data.cell import CellError, parse_cell
from trainer.data.rows import Notes, Row, stream_rows
from trainer.data.split import duplicate_key, short_hash
from trainer.errors import DataError

ConvertedRow = dict[str, Any]
TOXIC = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
BENIGN_PUBLISHED = 15_000
EXAMPLES_KEPT = 5
SHAREGPT_PART = re.compile(r"([A-Za-z0-9-]{7})_\d+")  # a later part of a conversation cut in pieces


class PublishedFormat(StrEnum):
    """The published formats that can be converted to rows; `FORMATS` describes each."""

    CONVERSATIONS = "conversations"
    COUNSELLING = "counselling"
    DS1000 = "ds1000"
    INSTRUCTIONS = "instructions"
    JIGSAW = "jigsaw"
    SENTIMENT = "sentiment"


@dataclass(kw_only=True)
class ConversionStats:
    """Counts of a conversion: rows read, kept, left out by reason, mended, and kept by class."""

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)  # the first few of each reason
    notes: Notes = field(default_factory=Notes)  # what was read otherwise than it is written

    def leave_out(self, reason: str, place: str) -> None:
        """Count a row that is not kept, and keep the places of the first few."""
        self.left_out[reason] += 1
        first = self.places.setdefault(reason, [])
        if len(first) < EXAMPLES_KEPT:
            first.append(place)

    def keep(self, *classes: str) -> None:
        """Count a row that is kept, under its classes."""
        self.kept += 1
        self.classes.update(classes)

    def table(self) -> str:
        """Return the counts as lines for a terminal, largest first."""
        lines = [f"{self.read} rows read, {self.kept} kept"]
        for reason, count in self.left_out.most_common():
            places = list(self.places.get(reason, []))
            places += ["..."] * (len(places) < count)
            lines.append(f"  left out: {count:>7}  {reason} ({', '.join(places)})")
        lines += [f"  mended:   {count:>7}  {what}" for what, count in self.mended.most_common()]
        lines += [f"  note: {line}" for line in self.notes.lines()]
        lines += [f"  {count:>7}  {name}" for name, count in self.classes.most_common()]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """How to select rows: `fits` returns whether a text is short enough; None keeps all lengths."""

    seed: int = 0
    benign: int = BENIGN_PUBLISHED
    fits: Callable[[str], bool] | None = None


def jigsaw(path: Path, options: ConvertOptions, stats: ConversionStats) -> Iterator[ConvertedRow]:
    """Yield `{"text", "classifications"}` of the Jigsaw Toxic Comment `train.csv`, in file order.

    The published rule: rows that do not decode or do not fit are dropped, all malicious ones are
    kept, and `choice.benign` of the others are drawn: those whose id has the smallest hash with
    the seed. So the draw depends neither on the order of the file nor on how it is read. The file
    is read twice, and no more than the drawn hashes are held in memory.

    Raises:
        DataError: a column is missing or unknown, or a label is neither 0 nor 1.
    """
    heap: list[int] = []  # the smallest hashes so far, negated
    for _, text, labels, rank in _comments(path, ConversionStats()):
        if labels or (options.fits is not None and not options.fits(text)):
            continue
        if len(heap) < options.benign:
            heapq.heappush(heap, -_ranked(options.seed, rank))
        elif heap:
            heapq.heappushpop(heap, -_ranked(options.seed, rank))
    limit = -heap[0] if heap else -1
    for number, text, labels, rank in _comments(path, stats):
        if options.fits is not None and not options.fits(text):
            stats.leave_out("too long", f"{path.name}:{number}")
        elif not labels and _ranked(options.seed, rank) > limit:
            stats.leave_out("benign and not drawn", f"{path.name}:{number}")
        else:
            stats.keep(*(labels or ("benign",)))
            yield {
                "text": text,
                "classifications": ", ".join(labels) or "N/A",
                "group": duplicate_key(text),
            }


def ds1000(path: Path, _choice: ConvertOptions, stats: ConversionStats) -> Iterator[ConvertedRow]:
    """Yield prompt and reference code of DS-1000, indentation untouched; a group is a family.

    A row that has its test program keeps it as `code_context`, which `eval: {kind: code}` runs.

    The authors ask that these rows never enter a training corpus: use them to prove a pipeline.
    """
    for place, row in _numbered_rows(path, stats):
        problem, code = row.fields.get("prompt"), row.fields.get("reference_code")
        about = row.fields.get("metadata")
        if not isinstance(problem, str) or not isinstance(code, str) or not code.strip():
            stats.leave_out("no prompt or no reference code", place)
        elif not isinstance(about, Mapping) or "library" not in about:
            stats.leave_out("no metadata.library", place)
        else:
            names = (about.get("perturbation_origin_id"), about.get("problem_id"), row.number)
            family = next(name for name in names if name is not None)
            library = str(about["library"])
            stats.keep(library)
            tests = row.fields.get("code_context")
            yield {
                "problem": problem,
                "code": code,
                "library": library,
                **({"code_context": tests} if isinstance(tests, str) and tests.strip() else {}),
                "group": f"{library}/{family}",
            }


def counselling(
    path: Path, _choice: ConvertOptions, stats: ConversionStats
) -> Iterator[ConvertedRow]:
    """Yield Context and Response pairs, each once; all answers to one question are a group."""
    seen: set[str] = set()
    for place, row in _numbered_rows(path, stats):
        context, response = _text(row, "Context"), _text(row, "Response")
        if not context or not response:
            stats.leave_out("an empty Context or Response", place)
            continue
        pair = short_hash(f"{context}\0{response}")
        if pair in seen:
            stats.leave_out("the same pair again", place)
            continue
        seen.add(pair)
        stats.keep()
        yield {"context": context, "response": response, "group": duplicate_key(context)}


def conversations(
    path: Path, _choice: ConvertOptions, stats: ConversionStats
) -> Iterator[ConvertedRow]:
    """Yield `{"messages": [{"role", "content"}]}` of ShareGPT or vicuna conversations.

    A conversation must begin with the human, alternate, and say something in every turn. A system
    message may come first, and a last question without an answer is cut off, as is a `}` too much
    at the end of the last answer; anything else is left out with its reason. Parts of one split
    conversation (`id_0`, `id_8`) are a group.
    """
    names = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
             "assistant": "assistant", "bing": "assistant", "bard": "assistant",
             "system": "system"}  # fmt: skip
    for place, row in _numbered_rows(path, stats):
        turns = _parsed(row.fields.get("conversations", row.fields.get("messages")))
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            stats.leave_out("no list of turns", place)
            continue
        messages = [
            {
                "role": names.get(str(turn.get("from", turn.get("role"))).strip().lower(), ""),
                "content": turn.get("value", turn.get("content")),
            }
            for turn in turns
        ]
        problem, messages = _answered_turns(messages)
        if problem:
            stats.leave_out(problem, place)
            continue
        last = messages[-1]["content"]
        if last.endswith("}") and last.count("}") == last.count("{") + 1 and last.strip("} \n"):
            # Seen at the end of whole conversations of wizard_vicuna: a rest of the JSON around.
            messages[-1]["content"] = last.removesuffix("}")
            stats.mended["a `}` too much at the end"] += 1
        stats.keep(f"{len(messages) // 2 * 2} turns")
        name = str(row.number if row.fields.get("id") is None else row.fields["id"])
        part = SHAREGPT_PART.fullmatch(name)
        yield {"messages": messages, "group": part.group(1) if part else name}


def _parsed(value: object) -> object:
    """Return the list that a cell holds as text; anything else as it is."""
    try:
        return parse_cell(value) if isinstance(value, str) else value
    except CellError:
        return value


def _answered_turns(messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Return what is wrong with a conversation, and its turns up to the last answer."""
    if not all(message["role"] for message in messages):
        return "an unknown speaker", messages
    if not all(isinstance(m["content"], str) and m["content"].strip() for m in messages):
        return "an empty turn", messages
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    if [message["role"] for message in turns] != expected[: len(turns)]:
        return "turns out of order", messages
    if len(turns) % 2:  # nobody answered the last question
        messages = messages[:-1]
    return ("" if len(turns) > 1 else "no answer"), messages


def sentiment(
    path: Path, _choice: ConvertOptions, stats: ConversionStats
) -> Iterator[ConvertedRow]:
    """Yield `{"text", "label"}` of pairs whose label is 0/1 or a word, in any order of columns."""
    names = {
        "0": "negative", "0.0": "negative", "neg": "negative",
        "1": "positive", "1.0": "positive", "pos": "positive",
    }  # fmt: skip
    for place, row in _numbered_rows(path, stats):
        text = _text(row, "text") or _text(row, "review") or _text(row, "sentence")
        label = _text(row, "label") or _text(row, "sentiment")
        if not text or not label:
            stats.leave_out("no text or no label", place)
            continue
        label = names.get(label.lower(), label.lower())
        stats.keep(label)
        yield {"text": text, "label": label, "group": duplicate_key(text)}


def instructions(
    path: Path, _choice: ConvertOptions, stats: ConversionStats
) -> Iterator[ConvertedRow]:
    """Yield Alpaca rows; `request` is the instruction with its input behind it if there is one.

    Any of the three may be code, whose first line is indented: nothing is stripped.
    """
    for place, row in _numbered_rows(path, stats):
        instruction, given, answer = (
            _raw_text(row, name) for name in ("instruction", "input", "output")
        )
        if not instruction.strip() or not answer.strip():
            stats.leave_out("no instruction or no output", place)
            continue
        bare = given.strip().lower().strip(".<>") in {"", "no input", "noinput", "none"}
        stats.keep("without input" if bare else "with input")
        yield {
            "request": instruction if bare else f"{instruction}\n\n{given}",
            "answer": answer,
            "group": duplicate_key(f"{instruction} {given}"),
        }


def _comments(
    path: Path, stats: ConversionStats
) -> Iterator[tuple[int, str, tuple[str, ...], str]]:
    """Yield (record, text, labels, id) of the Jigsaw file; ids are text, their zeros matter."""
    problems: list[str] = []
    checked = False
    for row in stream_rows(path, problems, stats.notes):
        if not checked:
            _check_columns(path, row)
            checked = True
        stats.read += 1
        # Text in CSV, numbers in other formats; of those a row may also lack a field.
        texts = {name: _raw_text(row, name) for name in ("id", "comment_text", *TOXIC)}
        values = {texts[name] for name in TOXIC}
        if not values <= {"0", "1"}:
            stray = ", ".join(sorted(map(repr, values - {"0", "1"})))
            raise DataError([f"{path}:{row.number}: a label must be 0 or 1, not {stray}"])
        labels = tuple(name for name in TOXIC if texts[name] == "1")
        yield row.number, texts["comment_text"], labels, texts["id"]
    _leave_out_broken(path, problems, stats)
    if not checked:
        raise DataError([f"{path}: the file holds no rows", *problems[:1]])


def _check_columns(path: Path, row: Row) -> None:
    wanted = {"id", "comment_text", *TOXIC}
    there = set(row.fields)
    problems = [f"no column `{name}`" for name in sorted(wanted - there)]
    problems += [f"`{name}` is no label known here" for name in sorted(there - wanted)]
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])


def _numbered_rows(path: Path, stats: ConversionStats) -> Iterator[tuple[str, Row]]:
    problems: list[str] = []
    for row in stream_rows(path, problems, stats.notes):
        stats.read += 1
        yield f"{path.name}:{row.number}", row
    _leave_out_broken(path, problems, stats)


def _leave_out_broken(path: Path, problems: Sequence[str], stats: ConversionStats) -> None:
    """Count the rows that could not be read, each by its reason."""
    for problem in problems:
        number, _, text = problem.removeprefix(f"{path}:").partition(": ")
        reason = re.split(r" \(|; ", text)[0]
        stats.read += 1
        stats.leave_out(
            "does not decode" if reason == "not UTF-8" else reason, f"{path.name}:{number}"
        )


def _raw_text(row: Row, name: str) -> str:
    value = row.fields.get(name)
    return "" if value is None else str(value)


def _text(row: Row, name: str) -> str:
    """Return prose or a label without the accidental space around it."""
    return _raw_text(row, name).strip()


def _ranked(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())


Converter = Callable[[Path, ConvertOptions, ConversionStats], Iterator[ConvertedRow]]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How one published format is recognised, and its rows selected and converted."""

    convert: Converter
    columns: frozenset[str] = frozenset()  # a file with these needs more than a template
    selectable: bool = False  # whether `--benign`, `--tokenizer` and `--max-length` apply
    usage_note: str = ""  # what the authors ask of users


FORMATS: Mapping[str, Conversion] = MappingProxyType(
    {
        PublishedFormat.JIGSAW: Conversion(
            convert=jigsaw, columns=frozenset({"comment_text", *TOXIC[:2]}), selectable=True
        ),
        PublishedFormat.DS1000: Conversion(
            convert=ds1000,
            columns=frozenset({"prompt", "reference_code", "metadata"}),
            usage_note="the authors of DS-1000 ask that it never enters a training corpus and is "
            "not put online unpacked: prove a path with it, and publish nothing that learnt it",
        ),
        PublishedFormat.COUNSELLING: Conversion(convert=counselling),
        PublishedFormat.CONVERSATIONS: Conversion(
            convert=conversations, columns=frozenset({"conversations"})
        ),
        PublishedFormat.SENTIMENT: Conversion(convert=sentiment),
        PublishedFormat.INSTRUCTIONS: Conversion(convert=instructions),
    }
)
"""Every published format; `qft data`, `qft init` and the documents name these."""


def published_format(columns: Iterable[str]) -> str:
    """Return the format that a file with these columns has, if a template over them will not do."""
    there = frozenset(columns)
    recognised = (name for name, one in FORMATS.items() if one.columns and one.columns <= there)
    return next(recognised, "")
