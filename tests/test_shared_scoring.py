"""Several ranks that share a scoring write the bytes of one, whatever interrupts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from support import tiny
from support.scored_answers import CHAT_TEMPLATE, asks, turns, write
from support.socket_ranks import Ended, all_values, on_ranks

from trainer.code_eval.limits import Outcome
from trainer.code_eval.problems import Problem
from trainer.config import TrainerConfig
from trainer.errors import PeerLost, Preempted
from trainer.group.alone import ALONE
from trainer.group.peers import Peers
from trainer.model import load_for_inference
from trainer.rundir.layout import scoring_scratch
from trainer.scoring import constrained, evaluate
from trainer.scoring.code_verdicts import run_programs
from trainer.scoring.forgetting import measure
from trainer.scoring.forgetting.shipped import openings, questions
from trainer.scoring.kept_rows import KeptRows

KINDS: dict[str, dict[str, Any]] = {
    "label": {"kind": "label", "labels": ["red", "green", "blue"], "shots": 1},
    "text": {"kind": "text", "measures": ["exact", "tokens_f1"], "tokens_max": 6, "shots": 1},
    "choice": {"kind": "choice", "options": ["red", "green", "blue"], "shots": 1},
    "loss": {"kind": "loss", "shots": 1, "forgetting": True},
    "chat": {"kind": "chat", "measures": ["exact"], "tokens_max": 5},
}
QUICK: dict[str, Any] = {"shots": 0}
PARTS = 8
"""General questions and openings of a text that are asked here, of sixty and more."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a scoring of fourteen rows have five batches, and ask few general questions."""
    settings = {**(constrained.batches_by_length.__kwdefaults__ or {}), "rows": 3}
    monkeypatch.setattr(measure, "questions", lambda: questions()[:PARTS])
    monkeypatch.setattr(measure, "openings", lambda: openings()[:PARTS])
    monkeypatch.setattr(measure, "TOKENS_MAX", 20)
    monkeypatch.setattr(constrained.batches_by_length, "__kwdefaults__", settings)
    torch.set_num_threads(1)


class Scoring:
    """Runs on a tiny model in NF4; each rank has a copy of it."""

    def __init__(self, directory: Path) -> None:
        self._base = tiny.make_model(directory / "base")
        self._models: list[Any] = []

    def config(self, folder: Path, kind: str, *, rows: int = 14, **table: Any) -> TrainerConfig:
        """Lay out a run directory with held-out rows of a kind, and general rows."""
        folder.mkdir(parents=True)
        data = {"prompt": "{ask}: ", "completion": "{answer}"}
        found: list[Any] = asks(rows)
        if kind == "chat":
            data = {"messages": "talk", "chat": "template", "answers": "all"}
            found = [
                {"talk": turns(f"hello {at}", "word", "more?" * (at % 3 + 1), f"word {at}")}
                for at in range(rows)
            ]
        write(folder / "rows.jsonl", found)
        (folder / "general.txt").write_text("some words of my own\n\n" * 30, encoding="utf-8")
        tables = {
            "model": {"id": str(self._base)},
            "method": {"kind": "qlora"},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl", **data},
            "train": {"threads": 1, "max_length": 128},
            "eval": {**KINDS[kind], "general": "general.txt", **table},
        }
        config = TrainerConfig.model_validate(tables)
        while len(self._models) < 3:
            self._models.append(load_for_inference(config, folder, None)[0])
        return config

    def score(
        self,
        folder: Path,
        config: TrainerConfig,
        *,
        peers: Peers = ALONE,
        stage: Literal["before", "after"] = "before",
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> bytes:
        """Score on one rank, and return what is written when that returns."""
        tokenizer = tiny.make_tokenizer()
        tokenizer.chat_template = CHAT_TEMPLATE
        evaluate.run(
            folder, config, self._models[peers.rank], tokenizer, stage=stage,
            on_progress=on_progress, peers=peers,
        )  # fmt: skip
        return read(folder, stage)

    def passes(self) -> list[int]:
        """Count from now on the rows that go through any of the models, in the one number."""
        count = [0]

        def note(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
            count[0] += len(inputs["input_ids"])

        for model in self._models:
            model.register_forward_pre_hook(note, with_kwargs=True)
        return count


def read(folder: Path, stage: str = "before") -> bytes:
    """Return a result as it was written, but for how long it took."""
    lines = (folder / f"eval-{stage}.json").read_bytes().splitlines()
    return b"\n".join(line for line in lines if not line.startswith(b' "seconds":'))


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what an interrupted scoring has kept: by file, the rows by their key."""
    found: dict[str, dict[str, Any]] = {}
    for path in scoring_scratch(folder, "before").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        found[path.stem] = {line["key"]: line["row"] for line in lines}
    return found


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    """The models that all tests here score."""
    return Scoring(tmp_path_factory.mktemp("scoring"))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_write_the_bytes_of_one(kind: str, scoring: Scoring, tmp_path: Path) -> None:
    """Five batches for two and three ranks, so that some have none at the end, in every pass."""
    written = {}
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        config = scoring.config(folder, kind)

        def act(peers: Peers, folder: Path = folder, config: TrainerConfig = config) -> list[bytes]:
            return [
                scoring.score(folder, config, peers=peers, stage=stage)
                for stage in ("before", "after")
            ]

        written[size] = [act(ALONE)] if size == 1 else all_values(on_ranks(size, act))

    assert len(written[3]) == 3
    assert all(one == written[1][0] for found in written.values() for one in found)
    assert json.loads((tmp_path / "3" / "eval-after.json").read_bytes())["details"]["gain"]


def test_ranks_without_a_batch_have_the_scores_of_the_others(
    scoring: Scoring, tmp_path: Path
) -> None:
    """Two rows are one batch, which the first of three ranks computes."""
    config = scoring.config(tmp_path / "alone", "text", rows=2)
    alone = scoring.score(tmp_path / "alone", config)
    config = scoring.config(tmp_path / "three", "text", rows=2)
    three = on_ranks(3, lambda peers: scoring.score(tmp_path / "three", config, peers=peers))

    assert all_values(three) == [alone] * 3


def cut(
    scoring: Scoring, folder: Path, config: TrainerConfig, *, size: int, error: BaseException
) -> list[Ended[bytes]]:
    """Score on some ranks, the last of which is cut off in its third look."""

    def act(peers: Peers) -> bytes:
        calls = iter(range(1, 1000))

        def on_progress(_done: int, _total: int) -> None:
            if next(calls) == 3 and peers.rank == size - 1:
                raise error

        return scoring.score(folder, config, peers=peers, on_progress=on_progress)

    return on_ranks(size, act)


@pytest.mark.parametrize(("first", "then"), [(2, 3), (3, 1), (2, 1), (3, 2)])
def test_a_killed_scoring_goes_on_with_another_number_of_ranks(
    first: int, then: int, scoring: Scoring, tmp_path: Path
) -> None:
    """Only the round under way is lost; what was gathered is not computed again."""
    whole = scoring.score(tmp_path / "whole", scoring.config(tmp_path / "whole", "text", **QUICK))
    folder = tmp_path / "cut"
    config = scoring.config(folder, "text", **QUICK)
    ended = cut(scoring, folder, config, size=first, error=KeyboardInterrupt())
    rows = kept(folder)["answers"]
    count = scoring.passes()

    assert [type(one.error) for one in ended[:-1]] == [PeerLost] * (first - 1)
    assert isinstance(ended[-1].error, KeyboardInterrupt)
    assert len(rows) == 3 * first
    again = on_ranks(then, lambda peers: scoring.score(folder, config, peers=peers))
    assert all_values(again) == [whole] * then
    most, count[0] = count[0], 0
    scoring.score(tmp_path / "counted", scoring.config(tmp_path / "counted", "text", **QUICK))
    assert most <= count[0] - len(rows)


@pytest.mark.parametrize(("first", "then"), [(1, 3), (3, 1)])
def test_rows_of_one_process_are_those_of_ranks(
    first: int, then: int, scoring: Scoring, tmp_path: Path
) -> None:
    """The files that keep rows are the same for any number of ranks, facts included."""
    config = scoring.config(tmp_path / "run", "label", **QUICK)

    def act(peers: Peers) -> bytes:
        return scoring.score(tmp_path / "run", config, peers=peers)

    found = all_values(on_ranks(first, act))[0]
    count = scoring.passes()
    (tmp_path / "run" / "eval-before.json").unlink()

    assert len(kept(tmp_path / "run")["answers"]) == 14
    assert all_values(on_ranks(then, act)) == [found] * then
    assert count == [0]


@pytest.mark.parametrize("size", [2, 3])
def test_a_notice_on_one_rank_ends_scoring_on_all_after_the_same_batch(
    size: int, scoring: Scoring, tmp_path: Path
) -> None:
    """All are told in the round in which the notice came, whose rows are kept."""
    whole = scoring.score(tmp_path / "whole", scoring.config(tmp_path / "whole", "text", **QUICK))
    folder = tmp_path / "cut"
    config = scoring.config(folder, "text", **QUICK)
    ended = cut(scoring, folder, config, size=size, error=Preempted())
    gathered = [len(one.peers.gathered) for one in ended]

    assert [type(one.error) for one in ended] == [Preempted] * size
    assert len(set(gathered)) == 1
    assert len(kept(folder)["answers"]) == min(14, 6 * size)
    assert not (folder / "eval-before.json").exists()
    assert scoring.score(folder, config) == whole


def test_a_file_that_cannot_be_written_ends_all_ranks_alike(
    scoring: Scoring, tmp_path: Path
) -> None:
    """The first rank writes; the others hear that it could not, and of which kind that was."""
    config = scoring.config(tmp_path / "run", "choice", **QUICK)
    (tmp_path / "run" / "eval-before.json").mkdir()
    ended = on_ranks(2, lambda peers: scoring.score(tmp_path / "run", config, peers=peers))

    assert all(isinstance(one.error, OSError) for one in ended)


def problem(row: int) -> Problem:
    """Return a problem whose test program is nothing but the answer."""
    return Problem(row=row, library="", reference="", tests="")


def test_one_rank_runs_the_programs_and_all_have_the_outcomes(tmp_path: Path) -> None:
    """An error of the sandbox on the first rank is one on each; what was judged is kept."""
    ran: list[str] = []

    def judge(peers: Peers, fail_at: int = 0) -> list[str]:
        def run(program: str) -> Outcome:
            ran.append(program)
            if len(ran) == fail_at:
                raise OSError("the sandbox failed")
            return Outcome(verdict="passed", seconds=0.5, message=f"rank {peers.rank}")

        found = run_programs(
            [problem(row) for row in range(3)], "answer", ["a", "b", "c"], run=run,
            kept=KeptRows(tmp_path / "verdicts.jsonl", {}), on_progress=lambda *_: None,
            peers=peers,
        )  # fmt: skip
        return [one.message for one in found]

    failed = on_ranks(3, lambda peers: judge(peers, fail_at=2))

    assert [str(one.error) for one in failed] == ["the sandbox failed"] * 3
    assert all(isinstance(one.error, OSError) for one in failed)
    assert all_values(on_ranks(3, judge)) == [["rank 0"] * 3] * 3
    assert len(ran) == 4
