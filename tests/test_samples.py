"""A few held-out rows are answered while a model is trained, and the training does not notice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.models import t5
from support.rig import FACTS, Rig, outcome, restored, rig, twin_of

from trainer.__main__ import main
from trainer.config import TrainerConfig
from trainer.data.codec import Example
from trainer.errors import Preempted
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.rundir.fingerprint import flatten_config
from trainer.rundir.samples import (
    SAMPLINGS_MAX,
    TEXT_MAX,
    SampledAnswer,
    SampledRow,
    SampleLog,
    read_sample_log,
    read_samples,
    shortened,
)
from trainer.saving.manifest import Damaged
from trainer.training.samples import choose_samples
from trainer.training.sampling_schedule import (
    sampling_interval,
    samplings,
    tokens_limit,
    wants_samples,
)

STEPS = 7
DUE = [0, 3, 6, 7]


def lay_out(directory: Path, **tables: dict[str, Any]) -> Path:
    """Make a run of seven steps with nine held-out rows, validated every third step."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = tiny.make_rows(directory / "eval.jsonl", 9)
    train = {"steps": STEPS, "micro_batch": 2, "lr": 3e-2, "validate_every": 3}
    given = {"train": train | tables.pop("train", {}), "data": {"eval": str(rows)}}
    return tiny.make_run(directory, rows=20, **(given | tables))


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the samples of a run."""
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return a finished run that was sampled before, twice between, and after."""
    made = rig(lay_out(tmp_path_factory.mktemp("undisturbed")))
    made.train(until=STEPS)
    return made


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "qlora"},
        pytest.param({"kind": "qlora", "quant": "int8"}, marks=pytest.mark.slow),
        pytest.param({"kind": "nola", "bases": 40}, marks=pytest.mark.slow),
        pytest.param({"kind": "dylora"}, marks=pytest.mark.slow),
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_samples_change_no_bit_of_the_training(tmp_path: Path, method: dict[str, Any]) -> None:
    """Adapter, moments and log are those of a run without samples, whatever the method."""
    runs = [
        rig(lay_out(tmp_path / str(count), method=method, train={"samples": count}))
        for count in (0, 5)
    ]
    for made in runs:
        made.train(until=STEPS)

    assert outcome(runs[0]) == outcome(runs[1])
    assert not (runs[0].run_dir / "samples.jsonl").exists()
    assert [line["step"] for line in lines(runs[1].run_dir)] == [x for x in DUE for _ in range(5)]


def test_a_sample_is_what_the_library_generates(undisturbed: Rig) -> None:
    """After the last step the five rows have the greedy answers of transformers itself."""
    model, samples = undisturbed.context.model, undisturbed.context.samples
    assert samples is not None
    model.eval()
    expected = []
    for item in samples.examples:
        given = torch.tensor([item.prompt_ids])
        out = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=samples.tokens_max,
            do_sample=False,
            pad_token_id=3,
        )[0, given.shape[1] :].tolist()
        stopped = 1 in out
        kept = out[: out.index(1)] if stopped else out
        expected.append((item.row, samples.tokenizer.decode(kept), stopped))
    model.train()
    last = [line for line in lines(undisturbed.run_dir) if line["step"] == STEPS]

    assert [(one["row"], one["text"], one["stopped"]) for one in last] == expected


def test_the_same_rows_are_answered_every_time(undisturbed: Rig) -> None:
    """Each line has its row's prompt and right answer as they are in the file."""
    rows = tiny.make_rows(undisturbed.run_dir / "rows.jsonl", 9).read_text().splitlines()
    written = lines(undisturbed.run_dir)

    assert len({line["row"] for line in written}) == 5
    for line in written:
        row = json.loads(rows[line["row"] - 1])
        assert line["prompt"] == f"{row['text']}\nmood: "
        assert line["gold"] == row["mood"]


def notice_in_sampling(made: Rig, *, step: int) -> None:
    """Raise the flag in the third pass of the sampling after `step`."""
    passes: list[int] = []
    samples = made.context.samples
    assert samples is not None
    status: list[str | None] = []

    def hook(_module: Any, _arguments: Any) -> None:
        if status[-1:] and status[-1] and made.state.counters.step == step:
            passes.append(1)
            if len(passes) == 3:
                made.context.flag.set(seconds_left=30, reason="test")

    made.context.model.register_forward_pre_hook(hook)
    made.context = replace(made.context, samples=replace(samples, on_status=status.append))


@pytest.mark.parametrize("stop", [0, 7])
def test_a_notice_in_the_middle_of_a_sampling_costs_nothing(
    undisturbed: Rig, tmp_path: Path, stop: int
) -> None:
    """A sampling is given up at once, and the next start does it again to the same words."""
    run = twin_of(undisturbed, tmp_path)
    first = rig(run)
    notice_in_sampling(first, step=stop)
    with pytest.raises(Preempted):
        first.train(until=STEPS)
    cut = [*first.state.samples.answers]
    if stop:
        first.save()
    second = restored(run)
    second.train(until=STEPS)

    assert cut == [step for step in DUE if step < stop]
    assert outcome(second) == outcome(undisturbed)
    assert lines(run) == lines(undisturbed.run_dir)


def test_killed_after_a_checkpoint_the_samples_are_cut_back_and_done_again(
    undisturbed: Rig, tmp_path: Path
) -> None:
    """Also with the disk lost, the samples before the checkpoint come from it."""
    run = twin_of(undisturbed, tmp_path)
    first = rig(run)
    first.train(until=4)
    first.save()
    first.train(until=6)
    ahead = [*read_samples(run / "samples.jsonl").answers]
    second = restored(run)
    second.train(until=4)
    cut_back = [*read_samples(run / "samples.jsonl").answers]
    (run / "samples.jsonl").unlink()  # as on a new machine
    third = restored(run)
    third.train(until=STEPS)

    assert (ahead, cut_back) == ([0, 3, 6], [0, 3])
    assert lines(run) == lines(undisturbed.run_dir)


def test_a_begun_run_forgets_the_samples_of_another_try(undisturbed: Rig, tmp_path: Path) -> None:
    """Without a checkpoint, what an earlier try left behind is written anew."""
    run = twin_of(undisturbed, tmp_path)
    (run / "samples.jsonl").write_bytes((undisturbed.run_dir / "samples.jsonl").read_bytes())
    made = rig(run)
    made.train(until=1)

    assert [*read_samples(run / "samples.jsonl").answers] == [0]


def test_a_training_that_ends_early_is_sampled_at_its_end(undisturbed: Rig, tmp_path: Path) -> None:
    """The last state has samples, also where so many validations are not all sampled."""
    run = twin_of(undisturbed, tmp_path)
    config = json.loads((run / "config.json").read_text())
    config["train"] |= {"validate_every": 1, "stop_after": 1, "lr": 10, "steps": 79}
    (run / "config.json").write_text(json.dumps(config))
    made = rig(run)
    made.train(until=79)
    ended = made.state.counters.step

    assert ended < 10
    assert [*made.state.samples.answers] == sorted({*range(0, ended, 2), ended})


def test_samples_of_other_rows_are_not_gone_on_with(undisturbed: Rig, tmp_path: Path) -> None:
    """After another number of rows the samples begin anew, and the training goes on."""
    run = twin_of(undisturbed, tmp_path)
    first = rig(run)
    first.train(until=4)
    first.save()
    config = json.loads((run / "config.json").read_text())
    config["train"]["samples"] = 2
    (run / "config.json").write_text(json.dumps(config))
    second = restored(run)
    second.train(until=STEPS)

    assert [line["step"] for line in lines(run)] == [6, 6, 7, 7]
    assert outcome(second) == outcome(undisturbed)


def test_a_model_that_cannot_answer_is_trained_all_the_same(
    undisturbed: Rig, tmp_path: Path
) -> None:
    """An error in a sampling is said in the log, and the training has the same bits."""
    run = twin_of(undisturbed, tmp_path)
    made = rig(run)
    original = made.context.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("use_cache"):
            raise TypeError("no cache in this architecture")
        return original(*args, **kwargs)

    made.context.model.forward = forward
    made.train(until=STEPS)

    assert outcome(made) == outcome(undisturbed)
    assert "no samples after step 3: TypeError: no cache in this architecture" in made.messages
    assert not (run / "samples.jsonl").exists()


def test_a_job_without_validation_is_sampled_before_and_after(tmp_path: Path) -> None:
    """Where rows are only scored, there are samples of the first and the last step.

    A replay of its steps takes none, since it writes nothing.
    """
    run = lay_out(
        tmp_path,
        train={"validate_every": None, "steps": 2, "samples": 2},
        eval={"kind": "label", "labels": list(tiny.MOODS)},
    )
    messages: list[str] = []
    run_job(JobOptions(run_dir=run), messages.append)

    assert [line["step"] for line in lines(run)] == [0, 0, 2, 2]
    assert len([text for text in messages if text.startswith("sample after step 2, row ")]) == 2

    (run / "samples.jsonl").unlink()
    assert main(["verify", "--run-dir", str(run)]) == 0
    assert not (run / "samples.jsonl").exists()


TURNS = [("user", "more"), ("assistant", "fine"), ("user", "hello"), ("assistant", "bye")]


@pytest.mark.parametrize(
    ("row", "data", "prompt", "right"),
    [
        ({"text": "the sky", "mood": "negative"}, {}, "the sky\nmood: ", "negative"),
        (
            {"talk": [{"role": role, "content": words} for role, words in TURNS]},
            {"messages": "talk", "chat": "markers", "prompt": "", "completion": ""},
            "### HUMAN:\nmore\n\n### RESPONSE:\nfine\n\n### HUMAN:\nhello\n\n### RESPONSE:\n",
            "bye",
        ),
        ({"text": "the skies"}, {"text": "text", "prompt": "", "completion": ""}, "the s", "kies"),
    ],
    ids=["prompts", "conversations", "texts"],
)
def test_each_kind_of_rows_has_its_samples(
    tmp_path: Path, row: dict[str, Any], data: dict[str, Any], prompt: str, right: str
) -> None:
    """Of a conversation the last answer is asked for, of a text the second half."""
    for name in ("rows.jsonl", "eval.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    config = tiny.make_config(
        tiny.make_model(tmp_path / "model"),
        tmp_path / "rows.jsonl",
        data={"eval": "../eval.jsonl"} | data,
        train={"validate_every": 1, "steps": 1, "batch_size": 1},
    )
    made = rig(tiny.write_config(tmp_path / "run", config))
    made.train(until=1)
    first = lines(made.run_dir)[0]

    assert (first["prompt"], first["gold"]) == (prompt, right)


def test_an_encoder_decoder_is_sampled(tmp_path: Path) -> None:
    """A base of encoder and decoder answers the rows, too."""
    t5(tmp_path / "model")
    made = rig(lay_out(tmp_path, train={"steps": 1}))
    made.train(until=1)

    assert [line["step"] for line in lines(made.run_dir)] == [0] * 5 + [1] * 5
    assert not [text for text in made.messages if text.startswith("no samples")]


def test_forged_samples_in_a_checkpoint_are_refused(undisturbed: Rig, tmp_path: Path) -> None:
    """What is not built as a trainer writes it, or is of a step to come, is damaged."""
    made = rig(twin_of(undisturbed, tmp_path))
    good = undisturbed.state.snapshot(FACTS)
    forged: list[Any] = [
        7,
        {"rows": [[1, "a", "b"]], "answers": [[0, []]]},
        {"rows": [[1, "a", "b"]], "answers": [[STEPS + 1, [["x", True]]]]},
        {"rows": [[1, "a" * (TEXT_MAX + 1), "b"]], "answers": []},
        {"rows": [["1", "a", "b"]], "answers": []},
    ]
    for samples in forged:
        with pytest.raises(Damaged, match="samples"):
            made.state.restore(replace(good, state={**good.state, "samples": samples}))

    assert made.state.samples == SampleLog()


@pytest.mark.parametrize(
    "data",
    [b"", b"no JSON\n", b'{"step": 1}\n', b'{"step": 0, "row": 1, "prompt": 3}\n', b"[" * 99],
)
def test_a_file_that_is_no_log_of_samples_shows_nothing(tmp_path: Path, data: bytes) -> None:
    """Whatever came home instead of samples is read as none."""
    path = tmp_path / "samples.jsonl"
    path.write_bytes(data)

    assert read_samples(path) == SampleLog()


def texts_of_all_kinds() -> Iterator[str]:
    """Yield texts that JSON, UTF-8 or a limit could lose."""
    yield from ("", "größer\n\t\0", "\ud800 torn", "\N{PARTY POPPER}" * (TEXT_MAX + 5), '"\\')


def test_samples_are_the_same_after_a_checkpoint_and_in_their_file(tmp_path: Path) -> None:
    """Any text comes back as it was kept, through either way."""
    kept = [shortened(text) for text in texts_of_all_kinds()]
    log = SampleLog(
        rows=tuple(SampledRow(row=at, prompt=text, right=text) for at, text in enumerate(kept))
    ).with_answers(4, [SampledAnswer(text=text, stopped=bool(text)) for text in kept])
    log.write(tmp_path / "samples.jsonl")

    assert read_sample_log(json.loads(json.dumps(log.to_json()))) == log
    assert read_samples(tmp_path / "samples.jsonl") == log
    assert max(map(len, kept)) == TEXT_MAX


def test_a_copy_that_is_on_its_way_shows_the_whole_steps(undisturbed: Rig, tmp_path: Path) -> None:
    """Of a file cut off at any byte, the steps that are all there are read."""
    data = (undisturbed.run_dir / "samples.jsonl").read_bytes()
    path = tmp_path / "samples.jsonl"
    ends = [at + 1 for at, byte in enumerate(data) if byte == ord("\n")]
    for number, end in enumerate(ends, 1):
        path.write_bytes(data[: end + 10])
        found = read_samples(path)

        assert [*found.answers] == (DUE[: number // 5] if number > 5 else DUE[:1])
        assert len(found.rows) == min(number, 5)


def test_rows_are_chosen_by_their_words() -> None:
    """Another order of the file gives the same rows, whatever their numbers are."""
    words = [f"question {at}" for at in range(40)]
    chosen = []
    for seed in (1, 2):
        random.Random(seed).shuffle(words)  # noqa: S311  (test data)
        items = [Example((1, 2), (2,), word, "yes", at, 1) for at, word in enumerate(words)]
        chosen.append({item.prompt for item in choose_samples(items, 5)})

    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 5


@pytest.mark.parametrize(
    ("every", "steps", "interval", "times"),
    [
        (None, 100, None, 2),
        (50, 100, 50, 3),
        (30, 100, 30, 5),
        (1, SAMPLINGS_MAX, 1, SAMPLINGS_MAX + 1),
        (1, 1000, 25, 41),
        (7, 100_000, 2506, 41),
    ],
)
def test_very_many_validations_are_not_all_sampled(
    every: int | None, steps: int, interval: int | None, times: int
) -> None:
    """A run is sampled at every validation, or at so many that about forty are left."""
    assert sampling_interval(every, steps) == interval
    assert samplings(every, steps) == times
    if interval is not None and every is not None:
        assert interval % every == 0
        assert steps // interval <= SAMPLINGS_MAX


@pytest.mark.parametrize(
    ("longest", "room", "tokens"),
    [(3, None, 16), (40, None, 80), (900, None, 128), (40, 50, 50), (40, 0, 1)],
)
def test_a_sample_is_as_long_as_it_may_be(longest: int, room: int | None, tokens: int) -> None:
    """Twice the longest right answer, 16 to 128 tokens, and never beyond the base's places."""
    assert tokens_limit(longest, room) == tokens


def test_samples_are_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    """Another number of samples is the same run; unused held-out rows are not answered."""
    tables = {
        "model": {"id": "m"},
        "data": {"train": "a", "eval": "b", "prompt": "{x}", "completion": "{y}"},
    }
    some, none = (
        TrainerConfig.model_validate(
            {**tables, "eval": "none", "train": {"samples": n, "validate_every": 5}}
        )
        for n in (5, 0)
    )
    unused = TrainerConfig.model_validate({**tables, "eval": "none"})

    assert flatten_config(some) == flatten_config(none)
    assert [wants_samples(one) for one in (some, none, unused)] == [True, False, False]
