"""What a scoring writes: `eval-before.json` and `eval-after.json`, for every kind of answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.config import TrainerConfig
from trainer.data.codec import Example, tokens_sha256
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.scoring.kept_rows import KeptRows
from trainer.scoring.predict import OnProgress
from trainer.untrusted import NotPlain, parse

RESULT_BYTES_MAX = 256 << 20


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The score of one stage, all of it plain JSON.

    `value` with its 95 % interval `low`..`high` is the headline, named by `metric`; `better` says
    which way is the better one. `stop_rate` and `parse_failures` (a count of rows) are of free
    answers, None and 0 where nothing was generated; `out_of_vocabulary` counts words that are no
    labels. `loss` is the loss of the right answers (`trainer.scoring.loss_figures`), None where it
    was not measured.

    `details["documents"]` has one table for each row in the order of the file, whatever the kind:
    `row` (its number in the file), `prompt`, `gold` (the right answer), `free` (what the model
    wrote), `stopped`, and `score` (0 to 1: how right it is); a kind may add more.
    """

    version: int = 1
    stage: str
    kind: str
    metric: str
    decoding: str
    value: float
    low: float
    high: float
    n: int
    stop_rate: float | None
    parse_failures: int
    out_of_vocabulary: int
    seconds: float
    details: dict[str, Any]
    better: Literal["higher", "lower"] = "higher"
    loss: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """What one scoring works on: the model of one stage, and the run that it belongs to.

    `scratch` is where rows that are done are kept until all are, so that a killed scoring goes on.
    """

    run_dir: Path
    scratch: Path
    config: TrainerConfig
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    stage: Literal["before", "after"]
    on_progress: OnProgress
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What decides about the score beside rows and stage: rows kept under other facts are void."""
    peers: Peers = ALONE
    """The ranks that share the batches; each computes all figures from what is gathered."""

    def keep(self, name: str, items: Sequence[Example], **settings: object) -> KeptRows:
        """Return the file that keeps what is done of one pass over some examples.

        `settings` are plain values that decide about the pass beside the examples.
        """
        facts = {"stage": self.stage, "tokens": tokens_sha256(items), **settings, **self.facts}
        return KeptRows(self.scratch / f"{name}.jsonl", facts)


def load_result(path: Path) -> EvalResult | None:
    """Return a result written earlier, or None if there is none that can be read."""
    try:
        return EvalResult(**parse(path.read_bytes(), bytes_max=RESULT_BYTES_MAX))
    except (FileNotFoundError, NotPlain, TypeError):
        return None
