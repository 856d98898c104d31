"""Advice on memory, applied and estimated again, fits, and nothing smaller of its kind does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from trainer.config import TrainerConfig
from trainer.device.shapes import Shape, read_shape
from trainer.estimate.advice import (
    MemoryAdvice,
    MemoryNeed,
    Override,
    advise_memory,
    card_estimate,
)
from trainer.estimate.gpus import GPUS
from trainer.estimate.training import estimate_training
from trainer.job.fit_memory import advice_lines

LLAMA_7B = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
PHI_2 = {
    "model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
GPT2_XL = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 1600, "n_layer": 48, "n_head": 25}
BASES = {name: read_shape(config) for name, config in (
    ("llama-7b", LLAMA_7B), ("phi-2", PHI_2), ("gpt2-xl", GPT2_XL)
)}  # fmt: skip
LLAMA_13B = read_shape(
    LLAMA_7B | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                "num_attention_heads": 40}
)  # fmt: skip
T4 = GPUS["T4"]


def config_of(method: dict[str, Any] | None = None, **train: Any) -> TrainerConfig:
    """A config with these tables, of rows with a prompt and a completion."""
    return TrainerConfig.model_validate(
        {
            "model": {"id": "owner/base"},
            "method": method or {},
            "data": {"train": "train.jsonl", "prompt": "{a}", "completion": "{b}"},
            "train": {"steps": 10, **train},
        }
    )


def applied(config: TrainerConfig, lines: Sequence[str]) -> TrainerConfig:
    """The config after somebody typed these lines into it."""
    tables = config.model_dump(mode="json", exclude_none=True)
    for line in lines:
        ((key, value),) = yaml.safe_load(line).items()
        table, _, name = key.partition(".")
        tables[table][name] = value
    return TrainerConfig.model_validate(tables)


def fits(config: TrainerConfig, shape: Shape) -> bool:
    """Whether a T4 takes it, by the estimate of a plan."""
    return bool(estimate_training(config, shape, gpu=T4)["fits"])


def advice_on(config: TrainerConfig, shape: Shape) -> tuple[MemoryAdvice, ...]:
    """The advice for a T4."""
    return advise_memory(config, shape, card_estimate(shape, gpu=T4))


def lines_of(one: MemoryAdvice) -> list[str]:
    """The lines to paste."""
    return [str(override) for override in one.overrides]


def smaller(override: Override, config: TrainerConfig) -> list[Override]:
    """The same change one step less far, and not at all."""
    table, _, key = override.key.partition(".")
    before = config.model_dump(mode="json")[table][key]
    steps = {"train.max_length": 64, "method.r": 1, "train.micro_batch": 1}
    less = [Override(key=override.key, value=before)]
    if override.key in steps and isinstance(override.value, int) and override.value >= 64:
        less.append(Override(key=override.key, value=override.value + steps[override.key]))
    return less


def random_config(chance: random.Random) -> TrainerConfig:
    """Any config that a user may have written, from modest to hopeless."""
    kind = chance.choice(["lora", "qlora", "qlora", "qdora", "dylora", "rslora"])
    method = {
        "kind": kind,
        "r": chance.choice([4, 16, 64, 256, 1024]),
        "dropout": chance.choice([0.0, 0.1]),
        "double_quant": chance.random() < 0.5,
        "optimizer": chance.choice(["adamw", "adamw8bit"]),
    }
    if kind == "qlora":
        method["quant"] = chance.choice(["nf4", "fp4", "int8"])
    return config_of(
        method,
        batch_size=chance.choice([4, 16]),
        micro_batch=chance.choice(["auto", 1, 4, 16]),
        max_length=chance.choice([300, 1024, 4096]),
        gradient_checkpointing=chance.choice(["auto", True, False]),
    )


@pytest.mark.parametrize("base", sorted(BASES))
def test_what_is_advised_fits_and_nothing_less_of_it_does(base: str) -> None:
    """Over random configs, pasted lines fit the card; without one, or with less, they do not."""
    chance, shape = random.Random(f"advice {base}"), BASES[base]  # noqa: S311
    found = 0
    for _ in range(30):
        config = random_config(chance)
        advice = advice_on(config, shape)
        assert advice == () or not fits(config, shape)
        for one in advice:
            found += 1
            assert fits(applied(config, lines_of(one)), shape), one
            estimate = estimate_training(applied(config, lines_of(one)), shape, gpu=T4)
            assert estimate["memory_bytes"]["reserved"] == pytest.approx(one.need_bytes)
            for at, override in enumerate(one.overrides):
                if override.key == "method.kind" or "method.kind" in str(one.overrides[at - 1]):
                    continue  # the two go together, and neither is a config alone
                for less in smaller(override, config):
                    typed = [str(less if other == at else each)
                             for other, each in enumerate(one.overrides)]  # fmt: skip
                    assert not fits(applied(config, typed), shape), (one, less)
    assert found >= 5


def test_a_training_that_fits_needs_no_advice() -> None:
    """Phi-2 with a small adapter fits a T4, and nothing is changed about it."""
    assert advice_on(config_of({"r": 4}, micro_batch=1, batch_size=4), BASES["phi-2"]) == ()


def test_what_keeps_the_result_comes_first() -> None:
    """A micro-batch that is too large is cut before rows or rank are touched."""
    config = config_of({"r": 8}, batch_size=32, micro_batch=32, max_length=1024)

    first, *others = advice_on(config, BASES["llama-7b"])

    assert first.keeps_result
    assert [override.key for override in first.overrides] == ["train.micro_batch"]
    assert not any(one.keeps_result for one in others)
    assert others


def test_an_unquantised_base_is_put_into_four_bits_with_its_kind() -> None:
    """LoRA on 13 billion 16-bit weights fits no T4; the lines name the kind that goes with nf4."""
    advice = advice_on(config_of({"kind": "lora"}, micro_batch=1), LLAMA_13B)

    assert [lines_of(one) for one in advice] == [["method.kind: qlora", "method.quant: nf4"]]


def test_nothing_is_advised_where_nothing_helps() -> None:
    """A base of 70 billion weights in 4 bits leaves a T4 no way out."""
    shape = read_shape(LLAMA_7B | {"hidden_size": 8192, "intermediate_size": 28672,
                                   "num_hidden_layers": 80, "num_attention_heads": 64})  # fmt: skip

    assert advice_on(config_of(), shape) == ()


def test_only_changes_that_make_a_config_are_advised() -> None:
    """PiSSA needs the weights themselves, so 4 bits are no advice; orthogonal ranks stay even."""
    pissa = advice_on(config_of({"kind": "lora", "init": "pissa"}), LLAMA_13B)
    config = config_of({"kind": "lora", "init": "orthogonal", "r": 1000}, micro_batch=1)
    shape = read_shape(PHI_2)
    ranks = [override.value for one in advice_on(config, shape) for override in one.overrides
             if override.key == "method.r"]  # fmt: skip

    assert pissa == ()
    assert ranks
    assert [rank for rank in ranks if isinstance(rank, int) and rank % 2] == []


def test_real_rows_decide_how_far_they_are_shortened() -> None:
    """Where the longest row is known, a limit above it would change nothing and is not advised."""
    shape, config = BASES["llama-7b"], config_of({"r": 8}, micro_batch=1, max_length=65536)
    lengths = [100, 30000]
    estimate = card_estimate(shape, gpu=T4, lengths=lengths)

    advice = advise_memory(config, shape, estimate, longest=max(lengths))

    limits = [each.value for one in advice for each in one.overrides
              if each.key == "train.max_length"]  # fmt: skip
    assert limits
    assert all(isinstance(limit, int) and limit < 30000 for limit in limits)


def test_an_estimate_that_is_not_possible_gives_no_advice() -> None:
    """Of a base that cannot be estimated nothing is said, whatever the config."""
    assert advise_memory(config_of(), BASES["phi-2"], lambda _: None) == ()


def test_all_changes_together_are_advised_where_none_is_enough() -> None:
    """A card that takes only the smallest of everything gets one advice, with several lines."""
    config = config_of({"r": 64, "double_quant": False}, micro_batch=4, max_length=2048)

    def estimate(changed: TrainerConfig) -> MemoryNeed:
        short = changed.method.r <= 8 and changed.train.max_length <= 512
        return MemoryNeed(need_bytes=1.0, fits=short and changed.method.double_quant)

    (only,) = advise_memory(config, BASES["phi-2"], estimate)

    assert lines_of(only) == ["method.double_quant: true", "train.max_length: 512", "method.r: 8"]
    assert not only.keeps_result


def test_a_refused_training_lists_the_lines_to_type() -> None:
    """The trainer's refusal has a line for each way, and where to begin if there is none."""
    lora = config_of({"kind": "lora"}, micro_batch=1)
    lines = advice_lines(advice_on(lora, LLAMA_13B))

    assert lines[1] == "  method.kind: qlora and method.quant: nf4"
    assert lines[-1] == "hint: or take a machine with more memory"
    (hint,) = advice_lines(())
    assert hint.startswith("hint: lower `train.max_length` or `method.r`, or ")
