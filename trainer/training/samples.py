"""Lets a model answer a few fixed held-out rows while it is trained, for people to look at.

The answers are a function of the parameters alone and nothing depends on them: they can be given
up in the middle and done again, and a model that cannot answer is trained all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.adapters.adapter_method import AdapterMethod
from trainer.data.codec import Example
from trainer.device.out_of_memory import give_memory_back
from trainer.errors import PeerLost, Preempted
from trainer.eviction import PreemptionFlag
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.group.rounds import on_all
from trainer.rundir.samples import SampledAnswer, SampledRow, shortened
from trainer.saving.state import TrainingState
from trainer.scoring.chosen_rows import choose_rows
from trainer.scoring.constrained import eval_mode
from trainer.scoring.free_answers import answer_freely
from trainer.untrusted import text

SHOWN_MAX = 100
"""Characters of an answer in the log."""


def choose_samples(items: Sequence[Example], rows: int) -> tuple[Example, ...]:
    """Return the examples to answer, by their words: of a conversation, its last answer."""
    last = {item.row: item for item in items}
    return choose_rows(tuple(last.values()), rows)


def sampled_row(item: Example, tokenizer: Any) -> SampledRow:
    """Return what is shown of an example; a plain text is gone on with from its middle."""
    prompt, right = item.prompt, item.completion
    if not prompt:
        prompt, right = (
            tokenizer.decode(tokens, skip_special_tokens=True)
            for tokens in (item.prompt_ids, item.input_ids[item.prompt_length :] or item.labels)
        )
    return SampledRow(row=item.row, prompt=shortened(prompt), right=shortened(right))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Which rows are answered, by what, and when."""

    model: Any
    tokenizer: Any
    method: AdapterMethod
    autocast: Callable[[], AbstractContextManager[Any]]
    flag: PreemptionFlag
    on_message: Callable[[str], None]
    on_status: Callable[[str | None], None]
    path: Path | None
    """Where they are written; None: they are kept in memory and in checkpoints only."""
    examples: Sequence[Example]
    rows: Sequence[SampledRow]
    """Of each example, what is shown."""
    stop_ids: Sequence[int]
    tokens_max: int
    interval: int | None  # steps; None: only before the first one and after the last
    last_step: int
    peers: Peers = ALONE
    """The ranks that share the rows; the log is in the state of each."""

    def begin(self, state: TrainingState) -> None:
        """Make log and file those of the present state: cut back, and of no other rows."""
        state.samples = state.samples.of(self.rows)
        if self.path is not None and (state.samples.answers or self.path.exists()):
            state.samples.write(self.path)

    def are_missing(self, state: TrainingState, *, ended: bool) -> bool:
        """Tell whether the present state is to be sampled and was not; `ended`: it is the last."""
        step = state.counters.step
        due = ended or step in {0, self.last_step}
        due = due or (self.interval is not None and step % self.interval == 0)
        return due and step not in state.samples.answers

    def run(self, state: TrainingState) -> None:
        """Answer the rows with the present parameters, and keep that in log and file.

        What goes wrong is said, and costs nothing but the samples.

        Raises:
            Preempted: a notice came, to any of the ranks; nothing was recorded.
            PeerLost: another rank is gone; nothing was recorded.
        """
        self.on_status(f"answering {len(self.rows)} held-out rows")
        try:
            answers = self._answer()
        except (Preempted, PeerLost):
            raise
        except Exception as error:  # noqa: BLE001 - a look at answers never ends a training; it is said
            step = state.counters.step
            self.on_message(f"no samples after step {step}: {type(error).__name__}: {error}")
        else:
            self._record(state, answers)
        finally:
            self.on_status(None)
        give_memory_back()

    def _answer(self) -> list[SampledAnswer]:
        def on_pass(_module: Any, _arguments: Any) -> None:
            if self.flag.notice is not None:
                raise Preempted

        on_all(self.peers, self.method.materialize)
        hook = self.model.register_forward_pre_hook(on_pass)
        try:
            with eval_mode(self.model), self.autocast():
                found = answer_freely(
                    self.model,
                    self.tokenizer,
                    self.examples,
                    tokens_max=self.tokens_max,
                    stop_ids=self.stop_ids,
                    on_progress=lambda _done, _total: None,
                    peers=self.peers,
                )
        finally:
            hook.remove()
        return [SampledAnswer(text=shortened(one.text), stopped=one.stopped) for one in found]

    def _record(self, state: TrainingState, answers: Sequence[SampledAnswer]) -> None:
        step = state.counters.step
        state.samples = state.samples.with_answers(step, answers)
        if self.path is not None:
            state.samples.write(self.path)
        for row, answer in zip(self.rows, answers, strict=True):
            cut = len(answer.text) > SHOWN_MAX or not answer.stopped
            shown = f"{text(answer.text, most=SHOWN_MAX)}{'…' * cut}"
            self.on_message(f'sample after step {step}, row {row.row}: "{shown}"')
