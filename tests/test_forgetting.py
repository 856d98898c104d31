"""General questions and the distance from the base say what a fine-tuned model forgot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.models import gpt2, load, make_adapter, t5
from support.tokenizers_built import KINDS, build

from trainer.config import TrainerConfig
from trainer.errors import DataError, Preempted
from trainer.eval_tables.loss import LossEvalTable
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.scoring.forgetting.drift import draw_tokens
from trainer.scoring.forgetting.knowledge import (
    choice_examples,
    knowledge_change,
    knowledge_figures,
)
from trainer.scoring.forgetting.measure import add_forgetting
from trainer.scoring.forgetting.shipped import LETTERS, MultipleChoice, openings, questions
from trainer.scoring.result import EvalResult, ScoringRequest

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
Table = dict[str, Any]


def nothing(_done: int, _total: int) -> None:
    """Hear of progress, and go on."""


@dataclass(kw_only=True)
class Base:
    """A tiny base with what is measured of it before training."""

    folder: Path
    model: Any
    tokenizer: Any
    before: Table

    def measure(self, run: Path, **more: Any) -> Table:
        """Measure the base before training in another run directory."""
        return measure(run, self.model, self.tokenizer, stage="before", **more)

    def after(self, run: Path, model: Any, before: Mapping[str, Any] | None = None) -> Table:
        """Measure a fine-tuned model against this base."""
        keep_before(run, self.before if before is None else before)
        return measure(run, model, self.tokenizer, stage="after")


def measure(
    run: Path,
    model: Any,
    tokenizer: Any,
    *,
    stage: Any,
    on_progress: Callable[[int, int], None] = nothing,
    **settings: Any,
) -> Table:
    """Return what is measured of a model in a run directory; empty if nothing is."""
    config = TrainerConfig.model_validate(
        {
            "model": {"id": "m"},
            "data": {"train": "t", "eval": "e", "prompt": "{text}: ", "completion": "{mood}"},
            "train": {"max_length": 64},
            "eval": {"kind": "loss", "forgetting": True, **settings},
        }
    )
    request = ScoringRequest(
        run_dir=run,
        scratch=run / ".scoring",
        config=config,
        model=model,
        tokenizer=tokenizer,
        stage=stage,
        on_progress=on_progress,
    )
    found = add_forgetting(request, result_with({})).details
    return dict(found.get("forgetting") or {})


def result_with(details: Table) -> EvalResult:
    """Return a score with these details."""
    return EvalResult(
        stage="before", kind="loss", metric="nats_per_token", decoding="none", value=1, low=1,
        high=1, n=1, stop_rate=None, parse_failures=0, out_of_vocabulary=0, seconds=0.0,
        details=details,
    )  # fmt: skip


def keep_before(run: Path, forgetting: Mapping[str, Any]) -> None:
    """Write what was measured before training, as a score has it."""
    run.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(result_with({"forgetting": forgetting})))
    (run / "eval-before.json").write_text(text)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Return a tiny base, measured once."""
    root = tmp_path_factory.mktemp("base")
    folder = tiny.make_model(root / "model")
    model, tokenizer = load(folder).eval(), tiny.make_tokenizer()
    before = measure(root / "run", model, tokenizer, stage="before")
    return Base(folder=folder, model=model, tokenizer=tokenizer, before=before)


@pytest.fixture(scope="module")
def tuned(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the base under an adapter of random numbers, far from it."""
    return make_adapter(base.folder, tmp_path_factory.mktemp("adapter") / "adapter")


def continuations(before: Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of each opening and of its continuation."""
    return [
        (
            [int(one) for one in row["opening"].split()],
            [int(one) for one in row["continuation"].split()],
        )
        for row in before["drift"]["continuations"]
    ]


def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the log-probability of every word at every place of one text."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits.double().log_softmax(dim=-1)


def test_a_base_whose_adapter_is_zero_has_not_moved(base: Base, tmp_path: Path) -> None:
    """The drift of an adapter as it begins is exactly 0, and no answer changes."""
    import peft

    model = peft.get_peft_model(
        load(base.folder),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    ).eval()
    after = base.after(tmp_path, model)

    assert (after["drift"]["value"], after["drift"]["low"], after["drift"]["high"]) == (0, 0, 0)
    assert after["knowledge"]["answers"] == base.before["knowledge"]["answers"]
    change = after["change"]["knowledge"]
    assert (change["value"], change["newly_right"], change["newly_wrong"]) == (0, 0, 0)
    assert change["low"] < 0 < change["high"]


def test_the_drift_is_that_of_a_plain_loop(base: Base, tuned: Any, tmp_path: Path) -> None:
    """Mean of log p_base - log p_tuned, one text after the other, gives the same figure.

    The divergence itself, summed over all words at every place instead of those drawn, is near it.
    """
    drawn, summed, count = 0.0, 0.0, 0
    for head, tail in continuations(base.before):
        places = range(len(head) - 1, len(head) + len(tail) - 1)
        was, now = (log_probabilities(model, head + tail)[places] for model in (base.model, tuned))
        drawn += float((was - now).gather(1, torch.tensor(tail)[:, None]).sum())
        summed += float((was.exp() * (was - now)).sum())
        count += len(tail)
    drift = base.after(tmp_path, tuned)["drift"]

    assert (drift["tokens"], drift["n"], drift["not_numbers"]) == (count, 64, 0)
    assert drift["value"] == pytest.approx(drawn / count, abs=1e-6)
    assert 0 < drift["low"] < drift["value"] < drift["high"]
    assert abs(drift["value"] - summed / count) < 1.5 * (drift["high"] - drift["low"])


def test_the_base_goes_on_with_each_opening(base: Base) -> None:
    """Each continuation has 1 to 128 tokens and an end token at its end only; no two are alike."""
    found = continuations(base.before)
    texts = [base.tokenizer.decode(head) for head, _ in found]

    assert texts == [*openings()]
    assert all(1 <= len(tail) <= 128 and 1 not in tail[:-1] for _, tail in found)
    assert all(tail[-1] == 1 or len(tail) == 128 for _, tail in found)
    assert len({tuple(tail) for _, tail in found}) == 64
    assert base.before["drift"]["tokens"] == sum(len(tail) for _, tail in found)


def test_tokens_are_drawn_from_the_model_s_distribution() -> None:
    """A uniform draw gives the token in whose stretch of the cumulative distribution it falls."""
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    draws = [0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.5999, 0.6001, 0.999999]
    found = draw_tokens(logits.repeat(len(draws), 1), np.array(draws))
    many = draw_tokens(logits.repeat(4000, 1), np.random.default_rng(0).random(4000))
    shares = [Counter(many)[token] / 4000 for token in range(4)]

    assert found == [0, 0, 1, 1, 2, 2, 3, 3]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.03)


def test_a_letter_is_chosen_by_its_probability_alone(base: Base) -> None:
    """Each answer is the letter that a plain loop finds most probable after the question."""
    expected = ""
    for one in questions():
        ids = base.tokenizer(f"{one.prompt} ", add_special_tokens=False)["input_ids"]
        last = log_probabilities(base.model, ids)[-1]
        letters = base.tokenizer.convert_tokens_to_ids([*LETTERS])
        expected += LETTERS[int(last[letters].argmax())]

    assert base.before["knowledge"]["answers"] == expected
    assert base.before["knowledge"]["at_chance"]


@pytest.mark.parametrize("kind", KINDS)
def test_letters_are_tokens_as_the_tokenizer_writes_them(kind: str) -> None:
    """Prompt and letter together are the tokens of the whole text, and four prompts are one."""
    tokenizer = build(kind)
    for one, four in zip(
        questions(), choice_examples(tokenizer, questions(), seq2seq=False), strict=True
    ):
        whole = [f"{one.prompt} {letter}" for letter in LETTERS]
        expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
        start = len(tokenizer("a")["input_ids"]) > len(
            tokenizer("a", add_special_tokens=False)["input_ids"]
        )

        assert [list(example.input_ids[start:]) for example in four] == expected
        assert len({example.prompt_ids for example in four}) == 1


def test_shares_of_questions_have_wilson_s_interval() -> None:
    """Right answers are counted by topic; no number is a wrong answer; chance is said."""
    items = [MultipleChoice(topic="t", text="?", options=("a", "b", "c", "d"), right=1)] * 22
    none_right = knowledge_figures(items, [[0.9, 0.1, 0.0, 0.0]] * 21 + [None])
    all_right = knowledge_figures(items, [[0.1, 0.9, 0.0, 0.0]] * 22)
    change = knowledge_change(none_right, all_right, resamples=1000)

    assert none_right["low"] == 0
    assert none_right["high"] == pytest.approx(0.1487, abs=1e-4)
    assert (none_right["not_numbers"], none_right["at_chance"]) == (1, False)
    assert all_right["topics"] == {"t": {"right": 22, "n": 22}}
    assert change is not None
    assert (change["value"], change["newly_right"], change["newly_wrong"]) == (1, 22, 0)
    assert change["low"] == pytest.approx(1 - 0.1487, abs=1e-4)


def test_other_questions_are_not_compared(base: Base, tmp_path: Path) -> None:
    """With another set of questions before and after there is no difference to tell."""
    other = {**base.before, "knowledge": {**base.before["knowledge"], "set": "other"}}

    assert base.after(tmp_path, base.model, other)["change"]["knowledge"] is None


@pytest.mark.parametrize("look", [3, 25])
def test_a_killed_measurement_goes_on_to_the_same_figures(
    base: Base, tmp_path: Path, look: int
) -> None:
    """What was done before a notice stands, and every figure is that of one without."""
    looks, kept = [0], tmp_path / ".scoring"

    def on_progress(_done: int, _total: int) -> None:
        looks[0] += 1
        if looks[0] == look:
            raise Preempted

    with pytest.raises(Preempted):
        base.measure(tmp_path, on_progress=on_progress)
    done = {path.name: path.read_bytes() for path in kept.glob("*")}
    whole = base.measure(tmp_path)

    assert done
    assert whole == base.before
    assert all((kept / name).read_bytes().startswith(rows) for name, rows in done.items())


@pytest.mark.parametrize(
    "forged",
    [
        {"opening": "5 6", "continuation": "7 999999"},
        {"opening": "5 6", "continuation": "7 -1"},
        {"opening": "5 6", "continuation": ""},
        {"opening": "x", "continuation": "7"},
        {"opening": "5 6", "continuation": "7 " * 5000},
        {"opening": 7},
    ],
)
def test_a_record_that_is_not_of_this_base_gives_no_drift(
    base: Base, tmp_path: Path, forged: Table
) -> None:
    """Token ids that came from elsewhere are checked before a model sees them."""
    drift = {**base.before["drift"], "continuations": [{**forged, "nats": 1.0}]}
    found = base.after(tmp_path, base.model, {"drift": drift, "knowledge": {"answers": 3}})

    assert set(found["drift"]) == {"missing"}
    assert set(found["change"]) == {"missing"}


def test_without_a_measurement_before_the_drift_is_missing(base: Base, tmp_path: Path) -> None:
    """A score of before training without it leaves out the drift, and says so."""
    found = base.after(tmp_path, base.model, {})

    assert found["drift"] == {"missing": "it was not measured before training"}
    assert found["change"] == {"knowledge": None, "general": None}
    assert found["knowledge"]["answers"] == base.before["knowledge"]["answers"]


def test_an_encoder_decoder_is_measured(tmp_path: Path) -> None:
    """Its encoder reads question and opening, and its decoder answers and goes on."""
    from transformers import AutoModelForSeq2SeqLM

    t5(tmp_path / "model")
    model = AutoModelForSeq2SeqLM.from_pretrained(str(tmp_path / "model")).eval()
    tokenizer = tiny.make_tokenizer()
    keep_before(tmp_path, measure(tmp_path / "before", model, tokenizer, stage="before"))
    after = measure(tmp_path, model, tokenizer, stage="after")

    assert after["drift"]["value"] == 0
    assert after["drift"]["n"] == 64
    assert len(after["knowledge"]["answers"]) == 60


def test_a_base_with_too_few_places_says_so(tmp_path: Path) -> None:
    """Where a question is longer than the base can read, nothing is measured, and nothing fails."""
    model = gpt2(tmp_path / "model").eval()
    found = measure(tmp_path / "run", model, tiny.make_tokenizer(), stage="before")

    assert found["knowledge"] == {"missing": "the base has places for 64 tokens only"}
    assert found["drift"] == {"missing": "the base has places for 64 tokens only"}


def test_an_architecture_without_a_cache_does_not_end_the_run(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base without a cache of keys and values is scored, with the reason in place of figures."""

    def forward(*_args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"no {min(kwargs)} here")

    monkeypatch.setattr(base.model, "forward", forward)
    found = base.measure(tmp_path)

    assert found["knowledge"]["missing"].startswith("TypeError: no ")
    assert found["drift"]["missing"].startswith("TypeError: no ")


def test_on_a_processor_nothing_is_measured_by_itself(base: Base, tmp_path: Path) -> None:
    """By default a GPU measures and a processor does not; the table `eval` decides otherwise."""
    auto, on, off = (LossEvalTable(forgetting=value) for value in ("auto", True, False))

    assert [one.measures_forgetting(on_gpu=True) for one in (auto, on, off)] == [True, True, False]
    assert [one.measures_forgetting(on_gpu=False) for one in (auto, on, off)] == [
        False,
        True,
        False,
    ]
    assert base.measure(tmp_path, forgetting="auto") == {}
    assert base.measure(tmp_path, forgetting=False) == {}


ROWS = [{"text": f"a text of number {at}", "mood": "good"} for at in range(3)]


@pytest.mark.parametrize(
    ("file", "documents"),
    [
        (("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS)), 3),
        (("texts.jsonl", "".join(json.dumps({"text": row["text"]}) + "\n" for row in ROWS)), 3),
        (("text.txt", "words and words\n" * 20), 5),
    ],
)
def test_the_user_s_own_rows_or_text_are_compared(
    base: Base, tuned: Any, tmp_path: Path, file: tuple[str, str], documents: int
) -> None:
    """Rows as those of the run, rows of texts, or a text have a perplexity before and after."""
    name, content = file
    (tmp_path / name).write_text(content)
    settings: Table = {"general": str(tmp_path / name), "forgetting": False}
    before = base.measure(tmp_path, **settings)
    keep_before(tmp_path, before)
    after = measure(tmp_path, tuned, base.tokenizer, stage="after", **settings)
    change = after["change"]["general"]["perplexity"]
    values = [one["general"]["figures"]["perplexity"]["value"] for one in (before, after)]

    assert (before["general"]["documents"], "drift" in before) == (documents, False)
    assert change["value"] == pytest.approx(values[1] - values[0])
    assert change["low"] <= change["value"] <= change["high"]


def test_a_text_s_perplexity_is_that_of_a_plain_loop(base: Base, tmp_path: Path) -> None:
    """Every token of a text counts but the first of each piece of 64."""
    text = "the sky is so very blue today and nobody knows why " * 3
    (tmp_path / "text.txt").write_text(text)
    found = base.measure(tmp_path, general=str(tmp_path / "text.txt"), forgetting=False)
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    nats = []
    for begun in range(0, len(ids), 64):
        piece = ids[begun : begun + 64]
        given = log_probabilities(base.model, piece)
        nats += [-float(given[at, token]) for at, token in enumerate(piece[1:])]

    assert found["general"]["tokens"] == len(nats)
    assert found["general"]["figures"]["perplexity"]["value"] == pytest.approx(
        float(np.exp(np.mean(nats))), rel=1e-6
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", '{"question": "x"}\n', "`text`, `mood`"),
        ("empty.txt", " \n", "the file is empty"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_general_rows_that_cannot_be_used_are_refused(
    base: Base, tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    """The file is named, with what is wrong with it."""
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)

    with pytest.raises(DataError) as error:
        base.measure(tmp_path, general=str(tmp_path / name), forgetting=False)
    assert message in str(error.value)
    assert name in str(error.value)


def test_the_questions_are_fair() -> None:
    """Sixty questions have four different options each; every letter is right as often."""
    items = questions()

    assert len({(one.text, one.options) for one in items}) == 60
    assert all(len(set(one.options)) == 4 for one in items)
    assert Counter(one.right for one in items) == {0: 15, 1: 15, 2: 15, 3: 15}
    assert len(set(openings())) == 64


def test_measuring_changes_no_bit_of_a_run(tmp_path: Path) -> None:
    """A hard training has the same adapter and log with it, and a drift above 0 in its score."""
    runs = {}
    for wanted in (False, True):
        rows = tiny.make_rows(tmp_path / f"eval-{wanted}.jsonl", 5)
        table = {"kind": "loss", "forgetting": wanted}
        runs[wanted] = tiny.make_run(
            tmp_path / str(wanted),
            data={"eval": str(rows)},
            train={"steps": 4, "lr": 0.1, "samples": 0},
            eval=table,
        )
        run_job(JobOptions(run_dir=runs[wanted]), lambda _text: None)
    score = json.loads((runs[True] / "eval-after.json").read_text())

    assert tiny.adapter_bytes(runs[True]) == tiny.adapter_bytes(runs[False])
    assert tiny.losses(runs[True]) == tiny.losses(runs[False])
    assert score["details"]["forgetting"]["drift"]["low"] > 0
    assert not list(runs[True].glob(".scoring*"))
