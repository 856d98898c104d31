"""A score is what the model would really answer, and taking it leaves the model as it was."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import PROMPTS, make_t5
from support.tiny import evaluation, make_config, make_model, make_tokenizer

from trainer.config import TrainerConfig
from trainer.data.codec import Codec, Example
from trainer.data.template import Template
from trainer.errors import DataError, DoesNotFit
from trainer.eval_tables.labels import CostTable, LabelEvalTable
from trainer.scoring.answers import all_answers, possible_answers, read_answer, write_answer
from trainer.scoring.baselines import select_demonstrations, with_demonstrations
from trainer.scoring.constrained import Decoder, Trie, batches_by_length, eval_mode, run_in_batches
from trainer.scoring.evaluate import run
from trainer.scoring.metrics import costs_of_mistakes
from trainer.scoring.result import load_result

MOODS = ["negative", "neutral", "positive"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A decoder-only model in training mode."""
    from transformers import AutoModelForCausalLM

    directory = make_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(str(directory)).train()


@pytest.fixture(scope="module")
def t5() -> Any:
    """An encoder-decoder model of the T5 kind."""
    return make_t5().eval()


def make_falcon() -> Any:
    """A model with ALiBi instead of position ids."""
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    return FalconForCausalLM(
        FalconConfig(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            alibi=True, bos_token_id=0, eos_token_id=1,
        )
    ).eval()  # fmt: skip


def log_share(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The log-probability of an answer after a prompt, computed without cache or padding."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = [model.config.decoder_start_token_id]
            out = model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([start + answer[:-1]]),
            ).logits[0]
        else:
            out = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return float(out.log_softmax(-1)[range(len(answer)), answer].sum())


@pytest.mark.parametrize("kind", ["llama", "t5", "falcon"])
def test_answers_are_weighed_as_the_model_weighs_them(kind: str, llama: Any, t5: Any) -> None:
    """At a single fork, shares are the model's own, whatever padding and caches do."""
    model = {"llama": llama, "t5": t5}.get(kind) or make_falcon()
    answers = [[20, 21], [30], [40, 41, 42]]
    decoder = Decoder(model, eos_ids=[1], pad_id=3)
    with eval_mode(model):
        weights = decoder.score_choices(decoder.prefill(PROMPTS), Trie(answers, eos_id=1))
        expected = torch.tensor(
            [[log_share(model, prompt, [answer[0]]) for answer in answers] for prompt in PROMPTS]
        ).softmax(dim=-1)

    assert torch.allclose(weights.float(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_forks_below_forks_multiply(kind: str, llama: Any, t5: Any) -> None:
    """An answer that goes on where another ends is told apart by the end token."""
    model = llama if kind == "llama" else t5
    decoder = Decoder(model, eos_ids=[1], pad_id=3)
    with eval_mode(model):
        weights = decoder.score_choices(
            decoder.prefill(PROMPTS), Trie([[20], [20, 30], [50]], eos_id=1)
        )
        for prompt, found in zip(PROMPTS, weights, strict=True):
            first = torch.tensor([log_share(model, prompt, [token]) for token in (20, 50)])
            second = torch.tensor([log_share(model, prompt, [20, token]) for token in (1, 30)])
            a, b = first.softmax(0)
            end, on = second.softmax(0)
            assert torch.allclose(found.float(), torch.stack([a * end, a * on, b]), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_free_answers_equal_the_librarys_greedy_search(kind: str, llama: Any, t5: Any) -> None:
    """Batched and padded, our loop writes what `generate` writes for each prompt alone."""
    model = llama if kind == "llama" else t5
    decoder = Decoder(model, eos_ids=[1], pad_id=3)
    with eval_mode(model):
        written = decoder.generate(decoder.prefill(PROMPTS), tokens_max=6)
        for prompt, found in zip(PROMPTS, written, strict=True):
            alone = model.generate(
                input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
                do_sample=False, max_new_tokens=6, eos_token_id=1, pad_token_id=3,
            )[0].tolist()  # fmt: skip
            new = alone[1:] if model.config.is_encoder_decoder else alone[len(prompt) :]
            assert list(found.tokens) == [token for token in new if token != 1]
            assert found.stopped == (1 in new)


def test_nothing_of_the_model_changes(llama: Any) -> None:
    """Modes, random state and the next training step are those of a model never asked."""
    llama.train()
    llama.lm_head.eval()

    def step() -> torch.Tensor:
        torch.manual_seed(5)
        loss = llama(input_ids=torch.tensor([PROMPTS[3]]), labels=torch.tensor([PROMPTS[3]])).loss
        llama.zero_grad()
        loss.backward()
        return llama.model.layers[0].mlp.up_proj.weight.grad.clone()  # type: ignore[no-any-return]  # torch's own

    before, random = step(), torch.get_rng_state()
    with eval_mode(llama):
        decoder = Decoder(llama, eos_ids=[1], pad_id=3)
        decoder.generate(decoder.prefill(PROMPTS), tokens_max=3)
        torch.rand(3)
        assert not llama.training

    assert torch.equal(torch.get_rng_state(), random)
    assert [llama.training, llama.lm_head.training] == [True, False]
    assert torch.equal(step(), before)


def test_batches_hold_every_place_once_within_their_limits() -> None:
    """Long prompts come first, alone if need be; nobody is left out."""
    found = list(batches_by_length([3, 50, 4, 4, 200, 5], tokens=100, rows=3))

    assert found == [[4], [1, 5], [2, 3, 0]]


def test_a_batch_for_which_memory_runs_out_is_run_in_halves() -> None:
    """Every place is answered once, progress never goes back, and one row too big is said so."""
    answered: list[int] = []
    reported: list[tuple[int, int]] = []

    def answer(batch: list[int], fitting: int = 3) -> None:
        if len(batch) > fitting:
            raise torch.OutOfMemoryError("test")
        answered.extend(batch)

    run_in_batches([[1]] * 9, answer, lambda done, total: reported.append((done, total)))

    assert sorted(answered) == list(range(9))
    assert reported == [(0, 9), (2, 9), (4, 9), (6, 9), (9, 9)]
    with pytest.raises(DoesNotFit, match="one held-out row does not fit"):
        run_in_batches([[1]] * 2, lambda batch: answer(batch, 0), lambda *_: None)


def test_a_run_scores_every_row_and_leaves_a_whole_file(llama: Any, tmp_path: Path) -> None:
    """The result counts all rows in both ways of answering, is on the disk, and is read back."""
    run_dir, config = evaluation(tmp_path)
    reported: list[tuple[int, int]] = []
    result = run(
        run_dir, config, llama, make_tokenizer(), stage="before",
        on_progress=lambda done, total: reported.append((done, total)),
    )  # fmt: skip

    assert reported == [(0, 9), (9, 9)] * 2  # the answers, and the loss of the right ones
    assert load_result(tmp_path / "eval-before.json") == result
    assert (result.n, result.metric, result.low <= result.value <= result.high) == (
        9, "accuracy", True,
    )  # fmt: skip
    for way in ("bound", "free"):
        assert sum(map(sum, result.details[way]["confusion"])) == 9
    assert [document["row"] for document in result.details["documents"]] == list(range(1, 10))
    right = sum(document["gold"] == document["bound"] for document in result.details["documents"])
    assert result.value == pytest.approx(right / 9)
    assert result.parse_failures == sum(
        not read_answer(document["free"], config.label_table).readable  # type: ignore[arg-type]  # set above
        for document in result.details["documents"]
    )


def test_sets_of_labels_are_scored(llama: Any, tmp_path: Path) -> None:
    """A multi-label table runs the same way, the word for none included."""
    run_dir, config = evaluation(tmp_path, kind="multilabel", labels=MOODS[:2], none="positive")
    result = run(
        run_dir, config, llama, make_tokenizer(), stage="after", on_progress=lambda *_: None
    )

    assert (result.metric, result.n) == ("micro_f1", 9)
    assert [row["gold"] for row in result.details["documents"]] == [
        ["negative"], ["neutral"], [], ["negative"], ["neutral"], [], ["negative"], ["neutral"], [],
    ]  # fmt: skip
    assert result.details["bound"]["figures"]["hamming_loss"]["value"] <= 1


def test_a_wrong_label_to_learn_is_found_before_training(llama: Any, tmp_path: Path) -> None:
    """The rows to learn from are read with the same eyes as the held-out ones."""
    run_dir, config = evaluation(tmp_path)
    rows = (tmp_path / "eval.jsonl").read_text(encoding="utf-8")
    (tmp_path / "train.jsonl").write_text(rows.replace("neutral", "dunno", 1), encoding="utf-8")
    data = config.data.model_copy(update={"train": "train.jsonl"})
    config = config.model_copy(update={"data": data})
    with pytest.raises(DataError, match=r"train\.jsonl:2: 'dunno' is not among the labels"):
        run(run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None)


def test_a_label_outside_the_list_is_an_error_with_its_row(llama: Any, tmp_path: Path) -> None:
    """All such rows are named at once, and no result is written."""
    run_dir, config = evaluation(tmp_path, labels=MOODS[:2])
    with pytest.raises(DataError) as caught:
        run(run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None)

    assert [f"eval.jsonl:{row}" for row in (3, 6, 9)] == [
        problem.split(": ")[0] for problem in caught.value.problems
    ]
    assert "'positive' is not among the labels (negative, neutral)" in str(caught.value)
    assert load_result(tmp_path / "eval-before.json") is None


@pytest.mark.parametrize(
    ("text", "labels", "unknown", "readable"),
    [
        (" toxic, insult", {"toxic", "insult"}, (), True),
        ("Toxic\nINSULT", {"toxic", "insult"}, (), True),
        ('["toxic", "threat"]', {"toxic", "threat"}, (), True),
        ("toxic, rude.", {"toxic"}, ("rude",), True),
        ("n/a", set(), (), True),
        ("", set(), (), False),
        ("rude", set(), ("rude",), False),
    ],
)
def test_sets_are_read_in_every_usual_form(
    text: str,
    labels: set[str],
    unknown: tuple[str, ...],
    readable: bool,  # noqa: FBT001 - a case
) -> None:
    """Comma lists, line lists and JSON lists are one; foreign words are counted, not lost."""
    table = LabelEvalTable(kind="multilabel", labels=["toxic", "insult", "threat"])
    answer = read_answer(text, table)

    assert (set(answer.labels), answer.unknown, answer.readable) == (labels, unknown, readable)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" Positive\nbecause", "positive"), ("neutral.", "neutral"), ("positively", None),
        ("not positive", None), ("", None), ('"negative"', "negative"),
    ],
)  # fmt: skip
def test_a_single_label_opens_the_answer_or_is_not_there(text: str, label: str | None) -> None:
    """The first words of the first line are the label; a label inside other words is none."""
    answer = read_answer(text, LabelEvalTable(kind="label", labels=MOODS))

    assert answer.labels == (frozenset([label]) if label else frozenset())
    assert answer.readable == (label is not None)


def test_every_possible_answer_is_read_back_as_itself() -> None:
    """Writing and reading a set of labels are inverse, for all sets there are."""
    table = LabelEvalTable(kind="multilabel", labels=["a", "b c", "d"])
    sets = list(all_answers(table))

    assert len(set(sets)) == 8
    assert [read_answer(write_answer(labels, table), table).labels for labels in sets] == sets


def test_a_result_stands_beside_its_baselines(llama: Any, tmp_path: Path) -> None:
    """The commonest answer gets its third of balanced rows, and regression learns the rest."""
    run_dir, config = evaluation(tmp_path)
    result = run(
        run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None
    )
    found = result.details["baselines"]

    assert found["majority"]["figures"]["exact_match"]["value"] == pytest.approx(1 / 3)
    assert found["tfidf_regression"]["figures"]["exact_match"]["value"] > 0.9
    assert found["tfidf_regression"]["rows"] == 9


def test_the_base_is_prompted_with_demonstrations_too(llama: Any, tmp_path: Path) -> None:
    """Few-shot figures stand beside the baselines, from the same draw each time."""
    run_dir, config = evaluation(tmp_path, shots=3)
    found = [
        run(run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None)
        for _ in range(2)
    ]
    reported = [result.details["baselines"]["few_shot"] for result in found]

    assert reported[0] == reported[1]
    assert (reported[0]["rows"], reported[0]["fewest"]) == (3, 3)
    assert 0 <= reported[0]["figures"]["exact_match"]["value"] <= 1


def test_demonstrations_come_before_the_prompt_one_of_each_answer_first() -> None:
    """The draw takes turns among answers and not the file's order; a question keeps its own end."""
    rows = [(f"{at} is ", mood) for at, mood in enumerate(["good"] * 9 + ["bad"])]
    tokenizer = make_tokenizer()
    codec = Codec.from_tokenizer(tokenizer, max_length=100, seq2seq=False)
    prompt = Template.parse("{text} is ")
    item = Example((2, 3, 1), (-100, -100, 1), "q is ", "good", 1, 2)
    demonstrations = select_demonstrations(rows, 3)
    prompts = with_demonstrations([item], demonstrations, codec, prompt)
    text = "".join(f"{text_shown}{mood}\n\n" for text_shown, mood in demonstrations) + "q is "

    assert {mood for _, mood in demonstrations[:2]} == {"good", "bad"}
    assert select_demonstrations(rows[::-1], 3) == demonstrations
    assert prompts.fewest == 3
    assert list(prompts.items[0].prompt_ids) == [*codec.prefix, *codec.encode([text], prompt)[0]]
    assert prompts.items[0].labels[-1:] == (1,)
    short = replace(codec, max_length=len(prompts.items[0].prompt_ids) - 1)
    assert with_demonstrations([item], demonstrations, short, prompt).fewest == 2


def test_with_too_many_sets_those_that_were_learnt_are_listed() -> None:
    """Every label alone and every learnt set can be answered; the rest is small sets, up to 256."""
    table = LabelEvalTable(kind="multilabel", labels=[f"l{at}" for at in range(300)])
    few = LabelEvalTable(kind="multilabel", labels=[f"l{at}" for at in range(12)])
    learnt = frozenset(f"l{at}" for at in range(9))
    listed = list(all_answers(few, [learnt]))

    assert len(list(all_answers(table, [learnt]))) == 301
    assert len(listed) == len(set(listed)) == 256
    assert listed[13] == learnt
    assert learnt not in set(all_answers(few))
    assert possible_answers(few) == 4096


def test_what_constrained_answers_cannot_express_is_counted(llama: Any, tmp_path: Path) -> None:
    """A held-out set that nobody learnt, among too many to list, is told and scored as wrong."""
    labels = [f"{mood}{at}" for mood in MOODS for at in range(4)]
    run_dir, config = evaluation(tmp_path, kind="multilabel", labels=labels)
    whole = ", ".join(labels)
    for name, answer in (("train", labels[0]), ("eval", whole)):
        row = json.dumps({"text": "so", "mood": answer}) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(row, encoding="utf-8")
    data = config.data.model_copy(update={"train": "train.jsonl"})
    config = config.model_copy(update={"data": data})
    result = run(
        run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None
    )

    assert result.details["answers"] == {"possible": 4096, "listed": 256, "right_not_listed": 1}
    assert result.details["bound"]["figures"]["exact_match"]["value"] == 0


def test_conversations_that_end_in_a_label_are_scored(llama: Any, tmp_path: Path) -> None:
    """The last answer is the label, and the baselines learn from the turns before it."""
    conversation = [
        {"messages": [{"role": "user", "content": f"mood {at}"},
                      {"role": "assistant", "content": MOODS[at % 3]}]}
        for at in range(9)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in conversation)
    rows = tmp_path / "eval.jsonl"
    rows.write_text(text, encoding="utf-8")
    data = {"train": str(rows), "eval": "eval.jsonl", "messages": "messages", "chat": "markers"}
    whole = make_config(tmp_path / "model", rows, eval={"kind": "label", "labels": MOODS})
    config = TrainerConfig.model_validate(whole | {"data": data})
    result = run(
        tmp_path, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None
    )

    assert [document["gold"] for document in result.details["documents"][:3]] == [
        [mood] for mood in MOODS
    ]
    assert set(result.details["baselines"]) == {"majority", "tfidf_regression"}
    with pytest.raises(ValueError, match=r"`eval.shots` writes prompts"):
        TrainerConfig.model_validate(
            whole | {"data": data, "eval": {"kind": "label", "labels": MOODS, "shots": 2}}
        )


def test_the_gain_is_measured_on_the_same_rows(llama: Any, tmp_path: Path) -> None:
    """After training the change per row has an interval, also around a change of zero."""
    run_dir, config = evaluation(tmp_path)
    for stage in ("before", "after"):
        result = run(
            run_dir, config, llama, make_tokenizer(), stage=stage, on_progress=lambda *_: None
        )

    gain = result.details["gain"]
    assert (gain["metric"], gain["value"]) == ("exact_match", 0.0)
    assert gain["low"] < 0 < gain["high"]
    assert gain["high"] == pytest.approx(-gain["low"])


def test_costs_choose_thresholds(llama: Any, tmp_path: Path) -> None:
    """With costs, the price of the answers stands beside that of the cheapest thresholds."""
    run_dir, config = evaluation(tmp_path, costs={"negative": {"miss": 50.0}})
    details = run(
        run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None
    ).details
    paid = sum(
        (50.0 if label == "negative" else 1.0)
        * (label in row["gold"] and label not in row["bound"])
        + (label in row["bound"] and label not in row["gold"])
        for row in details["documents"]
        for label in MOODS
    )

    assert details["costs"]["as_answered"] == pytest.approx(paid / 9)
    assert set(details["costs"]["thresholds"]) == set(MOODS)
    with pytest.raises(ValueError, match="`costs` names joyful"):
        evaluation(tmp_path, costs={"joyful": {"miss": 5}})


def test_thresholds_found_on_one_half_hold_on_the_other() -> None:
    """Probabilities that tell right from wrong cost nothing with thresholds, whatever was said."""
    table = LabelEvalTable(kind="multilabel", labels=["a"], costs={"a": CostTable(miss=9)})
    right = np.array([[True], [True], [False], [False]] * 3)
    shares = np.where(right, 0.4, 0.2)
    found = costs_of_mistakes(right, np.zeros_like(right), shares, table)

    assert found is not None
    assert (found["as_answered"], found["with_thresholds"]) == (4.5, 0.0)
    assert found["thresholds"]["a"] == pytest.approx(0.3)


def test_a_result_is_plain_json(llama: Any, tmp_path: Path) -> None:
    """The file holds no NaN and no type that only Python knows."""
    run_dir, config = evaluation(tmp_path)
    run(run_dir, config, llama, make_tokenizer(), stage="before", on_progress=lambda *_: None)

    def refuse(name: str) -> None:
        pytest.fail(f"{name} is not JSON")

    text = (tmp_path / "eval-before.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse)["version"] == 1
