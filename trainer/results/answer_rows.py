"""Answers a file of rows with one loaded model, in order, each answer written when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.adapters.parent import adapter_sha256
from trainer.atomic import RealDisk, replace_file
from trainer.data.codec import TooLongError
from trainer.data.rows import Row
from trainer.data.template import MissingFieldError, Template
from trainer.data_table import DataTable
from trainer.device.out_of_memory import MEMORY_ERRORS, is_out_of_memory
from trainer.errors import ConfigError, DataError, TrainerError
from trainer.results.generator import Generator, Prompt, to_be_answered
from trainer.rundir.fingerprint import file_sha256
from trainer.scoring.kept_rows import KeptRows

PROGRESS_S = 10.0
CUTS_SHOWN_MAX = 5

RowAnswer = dict[str, Any]
"""What is written for a row: `row`, `answer`, `stopped`, and `left_out` tokens of its prompt."""


@dataclass(frozen=True, kw_only=True)
class RowAnswers:
    """The rows of one file, with the model that answers them."""

    generator: Generator
    rows: Sequence[Row]
    source: Path
    tokens_max: int

    def prompts(self) -> list[Prompt]:
        """Encode all rows before the first is answered.

        Raises:
            DataError: with every row that cannot be answered, as `file:row`.
        """
        fields = [row.fields for row in self.rows]
        prompts, problems = [], []
        for row in self.rows:
            try:
                prompt = self.generator.encode_row(row.fields, others=fields)
                self.generator.new_tokens_max(prompt.ids, wanted=self.tokens_max)
            except (DataError, MissingFieldError, TooLongError) as error:
                problems.append(f"{self.source}:{row.number}: {error}")
            else:
                prompts.append(prompt)
        if problems:
            raise DataError(problems)
        return prompts


def answer_rows(
    answers: RowAnswers,
    write: Callable[[RowAnswer], None],
    *,
    on_note: Callable[[str], None],
    done: int = 0,
) -> None:
    """Answer the rows behind the first `done`, one at a time: each as if it were the only one.

    Raises:
        DataError: rows cannot be answered; all of them are named before any is.
        ConfigError: memory ran out; the row is named.
    """
    prompts = answers.prompts()
    _note_cuts(answers, prompts, on_note)
    for row, prompt in list(zip(answers.rows, prompts, strict=True))[done:]:
        try:
            found = answers.generator.generate(prompt, tokens_max=answers.tokens_max)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            where = f"{answers.source}:{row.number}"
            raise ConfigError([f"{where}: memory ran out; shorten the row ({error})"]) from error
        write(
            {
                "row": row.number,
                "answer": found.text,
                "stopped": found.stopped,
                "left_out": prompt.left_out,
            }
        )


def _note_cuts(
    answers: RowAnswers, prompts: Sequence[Prompt], on_note: Callable[[str], None]
) -> None:
    """Say which prompts were cut and by how much: the first few each, then how many in all."""
    cut = [
        (row.number, prompt)
        for row, prompt in zip(answers.rows, prompts, strict=True)
        if prompt.left_out
    ]
    for number, prompt in cut[:CUTS_SHOWN_MAX]:
        total = len(prompt.ids) + prompt.left_out
        on_note(
            f"({answers.source}:{number}: the prompt was cut: {prompt.left_out} of its {total} "
            "tokens were left out, as in training)"
        )
    if len(cut) > CUTS_SHOWN_MAX:
        most = answers.generator.config.train.max_length
        on_note(
            f"({len(cut)} of {len(prompts)} prompts were cut; `left_out` of each answer says by "
            f"how many tokens; `train.max_length` is {most})"
        )


def check_rows(table: DataTable, rows: Sequence[Row], source: Path | None) -> None:
    """Read what each row is asked with, as far as no model is needed.

    Raises:
        DataError: with every row that cannot be read so, as `file:row` if they are of a file.
    """
    problems = []
    fields = [row.fields for row in rows]
    text = table.prompt if table.text is None else f"{{{table.text}}}"
    template = Template.parse(text)
    template = template.for_rows(fields) if len(rows) > 1 else template
    for row in rows:
        try:
            if table.messages is not None:
                to_be_answered(row.fields, table.messages, ignore=table.ignore)
            else:
                template.render(row.fields)
        except TrainerError as error:
            where = "" if source is None else f"{source}:{row.number}: "
            problems.append(f"{where}{error}")
    if problems:
        raise DataError(problems)


class AnswerFile:
    """Answers that become one file of JSON lines once all are there; until then they are kept."""

    def __init__(
        self,
        target: Path,
        facts: Mapping[str, Any],
        *,
        clock: Callable[[], float],
        on_note: Callable[[str], None],
    ) -> None:
        self._target = target
        self._partial = target.with_name(f"{target.name}.partial")
        self._kept = KeptRows(self._partial, facts)
        self._rows = int(facts["rows"])
        self._clock, self._on_note = clock, on_note
        self._noted_at_s = clock()
        if self.done:
            on_note(f"({self.done} of {self._rows} rows were answered before)")

    @property
    def done(self) -> int:
        """How many rows are answered."""
        return len(self._kept)

    def add(self, answer: RowAnswer) -> None:
        """Keep the next answer, durably, and say now and then how far it is."""
        self._kept.add({str(self.done): answer})
        if self._clock() - self._noted_at_s >= PROGRESS_S:
            self._noted_at_s = self._clock()
            self._on_note(f"({self.done} of {self._rows} rows are answered)")

    def finish(self) -> None:
        """Write the file, whole or not at all, and drop what was kept beside it."""
        answers = [self._kept.get(str(at)) for at in range(self._rows)]
        text = "".join(f"{json.dumps(answer)}\n" for answer in answers)
        replace_file(self._target, text, disk=RealDisk())
        with suppress(FileNotFoundError):  # a file of which another process has taken care
            self._partial.unlink()


@contextmanager
def kept_answers(
    answers: RowAnswers,
    target: Path,
    *,
    adapter: Path | None,
    on_note: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[AnswerFile]:
    """Yield the file of the answers; it is there, whole, once the block ends without an error.

    After an error or a kill, the same rows, tokens, base and adapter go on behind the last answer
    that is kept in `target`.partial; other ones begin anew.
    """
    facts = {
        "rows": len(answers.rows),
        "sha256": file_sha256(answers.source),
        "tokens": answers.tokens_max,
        "adapter": None if adapter is None else adapter_sha256(adapter),
        "config": answers.generator.config.model_dump(mode="json"),
    }
    kept = AnswerFile(target, facts, clock=clock, on_note=on_note)
    yield kept
    kept.finish()
