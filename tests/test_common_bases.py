"""The table of common bases: its sizes are those published, and a text names one base or none."""

from __future__ import annotations

import pytest
from support.empty_models import build_empty, count

from trainer.device.shapes import read_shape
from trainer.estimate.base_rows import CommonBase
from trainer.estimate.common_bases import (
    COMMON_BASES,
    find_by_id,
    find_common_base,
    similar_ids,
)

BY_ID = {base.id: base for base in COMMON_BASES}
PLACES = {"max_position_embeddings", "n_positions", "text_config", "seq_length", "max_seq_len"}
NAMES = [
    ("Llama-3.1-8B Alpaca", "meta-llama/Llama-3.1-8B"),
    ("Llama-3.2-3B rsLoRA r64", "meta-llama/Llama-3.2-3B"),
    ("Llama-2-7B SlimOrca HF eager", "meta-llama/Llama-2-7b-hf"),
    ("llama-2-7b", "meta-llama/Llama-2-7b-hf"),
    ("llama2-70b FSDP", "meta-llama/Llama-2-70b-hf"),
    ("llama-7b", "huggyllama/llama-7b"),
    ("LLaMA 33B", "huggyllama/llama-30b"),
    ("Meta Llama 3 8B fp16", "meta-llama/Meta-Llama-3-8B"),
    ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "meta-llama/Llama-3.1-8B"),
    ("Hermes-3-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("TinyLlama-1.1B Alpaca packed no-GC", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    ("OpenLLaMA-7B", "openlm-research/open_llama_7b"),
    ("Mistral-7B-v0.3 Alpaca", "mistralai/Mistral-7B-v0.3"),
    ("Mistral 7B", "mistralai/Mistral-7B-v0.1"),
    ("Mistral Nemo 12B", "mistralai/Mistral-Nemo-Base-2407"),
    ("Mixtral 8x7B QLoRA", "mistralai/Mixtral-8x7B-v0.1"),
    ("phi-1.5", "microsoft/phi-1_5"),
    ("Phi-2 r 64", "microsoft/phi-2"),
    ("phi-3-mini-4k", "microsoft/Phi-3-mini-4k-instruct"),
    ("Phi-4-14B Conv", "microsoft/phi-4"),
    ("gemma-2b", "google/gemma-2b"),
    ("gemma-2-2b Alpaca", "google/gemma-2-2b"),
    ("Gemma-3-4B-it", "google/gemma-3-4b-pt"),
    ("Gemma 3 270M", "google/gemma-3-270m"),
    ("Qwen-1.8B", "Qwen/Qwen-1_8B"),
    ("Qwen1.5-1.8B", "Qwen/Qwen1.5-1.8B"),
    ("Qwen3-14B Reasoning", "Qwen/Qwen3-14B"),
    ("Qwen2.5-Coder-7B q4_k_m", "Qwen/Qwen2.5-7B"),
    ("Qwen3-30B-A3B", "Qwen/Qwen3-30B-A3B"),
    ("R1-Distill-Qwen-14B", "Qwen/Qwen2.5-14B"),
    ("R1 Distill Qwen 1.5B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    ("T5-3B fp32", "google-t5/t5-3b"),
    ("Flan-T5-XXL 8bit", "google/flan-t5-xxl"),
    ("falcon-7b", "tiiuae/falcon-7b"),
    ("Falcon3-7B", "tiiuae/Falcon3-7B-Base"),
    ("stablelm-base-alpha-3b", "stabilityai/stablelm-base-alpha-3b"),
    ("stablelm-alpha-3b", "stabilityai/stablelm-base-alpha-3b"),
    ("StableLM 2 1.6B", "stabilityai/stablelm-2-1_6b"),
    ("BLOOM 7.1B", "bigscience/bloom-7b1"),
    ("GPT-NeoX-20B", "EleutherAI/gpt-neox-20b"),
    ("Phi-4 14 billion, micro-batch 2, flash attention", "microsoft/phi-4"),
    ("Mistral 7 B large batch", "mistralai/Mistral-7B-v0.1"),
    ("GPT-2 (117M)", "openai-community/gpt2"),
    ("gpt2", "openai-community/gpt2"),
    ("GPT-2 XL", "openai-community/gpt2-xl"),
    ("gpt-oss:20b", "openai/gpt-oss-20b"),
    ("Platypus 30B", "huggyllama/llama-30b"),
    ("Code-Llama2 7B", "codellama/CodeLlama-7b-hf"),
    ("Devstral-24B", "mistralai/Mistral-Small-24B-Base-2501"),
    ("Qwen3-Next-80B-A3B", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("GLM-4.5-Air", "zai-org/GLM-4.5-Air"),
    ("Mistral v0.3 (7B) Conversational", "mistralai/Mistral-7B-v0.3"),
    ("Llama3.2 (1B and 3B) Conversational", "meta-llama/Llama-3.2-1B"),
    ("AFM-4.5B", "arcee-ai/AFM-4.5B"),
    ("Falcon-H1-0.5B Alpaca", "tiiuae/Falcon-H1-0.5B-Base"),
    ("Falcon-H1-1.5B-Deep", "tiiuae/Falcon-H1-1.5B-Deep-Base"),
    ("LFM2-1.2B Conversational", "LiquidAI/LFM2-1.2B"),
    ("ERNIE_4_5_21B_A3B_PT-Conversational", "baidu/ERNIE-4.5-21B-A3B-PT"),
    ("Granite4.0_350M", "ibm-granite/granite-4.0-350m-base"),
    ("Granite-4.0 350M", "ibm-granite/granite-4.0-350m-base"),
    ("granite-4.0-h-tiny", "ibm-granite/granite-4.0-h-tiny-base"),
    ("ERNIE-4.5-21B", "baidu/ERNIE-4.5-21B-A3B-PT"),
    ("Baichuan2-13B", "baichuan-inc/Baichuan2-13B-Base"),
    ("ChatGLM3-6B", "zai-org/chatglm3-6b"),
    ("InternLM2.5-7B", "internlm/internlm2-7b"),
    ("Qwen2.5-VL-7B Vision", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ("Qwen3-VL (8B)", "Qwen/Qwen3-VL-8B-Instruct"),
    ("MPT-7B", "mosaicml/mpt-7b"),
]
NO_BASE = [
    "model", "", "7b", "Llama-9B", "llama-4-8b", "Llama-3.1-7B", "Llama-2-8B", "Llama-3.2-8B",
    "Llama 70B", "Qwen-4B", "Qwen3-7B", "Qwen2.5-VL-9B", "Falcon-Mamba-7B", "Sheared-LLaMA-1.3B",
    "gpt-neo-2.7b", "StarCoder-15B", "phi-5", "gemma-3-9b", "R1-Distill-Llama-14B", "Phi-4-7B",
    "Mistral-7B-v0.4", "bert-base", "T5-7B", "falcon-13b",
]  # fmt: skip


@pytest.mark.parametrize("base", COMMON_BASES, ids=BY_ID)
def test_the_sizes_of_a_base_make_its_published_parameters(base: CommonBase) -> None:
    """What is read from the table's config is within 1 % of the parameters on the model card."""
    assert read_shape(base.config).parameters == pytest.approx(base.parameters, rel=0.01)


def test_the_table_has_ninety_bases_of_every_common_size() -> None:
    """There are at least ninety, no id twice, and each tells how long its texts may be."""
    names = [name.lower() for base in COMMON_BASES for name in (base.id, *base.same_sizes)]

    assert len(COMMON_BASES) >= 90
    assert len(names) == len(set(names))
    assert not {
        base.id
        for base in COMMON_BASES
        if not PLACES & set(base.config) and base.config["model_type"] not in {"t5", "bloom"}
    }


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/stablelm-2-12b", "stabilityai/stablelm-base-alpha-3b", "google/gemma-3-4b-pt",
        "meta-llama/Llama-3.2-1B", "google-t5/t5-small", "arcee-ai/AFM-4.5B",
        "LiquidAI/LFM2-2.6B", "tiiuae/Falcon-H1-0.5B-Base", "ibm-granite/granite-4.0-h-tiny-base",
        "mosaicml/mpt-7b", "Qwen/Qwen3-VL-2B-Instruct", "CohereLabs/aya-expanse-8b",
    ],
)  # fmt: skip
def test_transformers_builds_a_model_of_the_same_size(name: str) -> None:
    """The model that transformers makes of a row's config has as many parameters as are read."""
    config = dict(BY_ID[name].config)

    assert read_shape(config).parameters == count(build_empty(config)).total


def test_the_download_has_the_bytes_of_the_stored_weights() -> None:
    """Two bytes for each parameter; four, also in the config, where the files are float32."""
    flan, phi = BY_ID["google/flan-t5-xxl"], BY_ID["microsoft/phi-2"]

    assert flan.download_bytes == pytest.approx(44.5e9, rel=0.01)
    assert flan.config["torch_dtype"] == "float32"
    assert phi.download_bytes == pytest.approx(5.56e9, rel=0.01)
    assert "torch_dtype" not in phi.config
    assert BY_ID["openai/gpt-oss-20b"].download_bytes == pytest.approx(13.76e9, rel=0.01)


@pytest.mark.parametrize(("text", "base"), NAMES)
def test_a_text_names_its_base_by_family_version_and_size(text: str, base: str) -> None:
    """What people write of a base leads to it, whatever else they write beside it."""
    found = find_common_base(text)

    assert found is not None
    assert found.id == base


@pytest.mark.parametrize("text", NO_BASE)
def test_a_size_or_version_that_is_not_there_is_no_base(text: str) -> None:
    """A known family of another size, version or kind is nothing, never the nearest base."""
    assert find_common_base(text) is None


def test_every_name_of_the_table_leads_to_its_own_row() -> None:
    """Each id, with and without its owner, and as free text, is found as the base it stands for."""
    for base in COMMON_BASES:
        for name in (base.id, *base.same_sizes):
            bare = name.rpartition("/")[2]
            for text in (name, name.upper(), bare, f"{bare.replace('-', ' ')} qlora r16 bs4"):
                found = find_common_base(text)
                assert found is not None, text
                assert found.billions == base.billions, text


def test_an_id_is_found_in_any_case_and_nothing_else_is() -> None:
    """The strict look-up takes ids only: free text with a family and a size is not one."""
    assert find_by_id("MICROSOFT/PHI-2") is BY_ID["microsoft/phi-2"]
    assert find_by_id("Llama-3.1-8B Alpaca") is None
    assert find_by_id("someone/llama-3.1-8b-of-mine") is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("microsoft/ph-2", "microsoft/phi-2"),
        ("micorsoft/phi-2", "microsoft/phi-2"),
        ("microsoft/phi2", "microsoft/phi-2"),
        ("meta-llama/Llama-3.1-8", "meta-llama/Llama-3.1-8B"),
        ("Qwen/Qwen2.5-7B-Instrct", "Qwen/Qwen2.5-7B-Instruct"),
    ],
)
def test_a_misspelt_id_has_the_right_one_first(typed: str, meant: str) -> None:
    """The id that was meant comes first, as its owner spells it."""
    assert similar_ids(typed)[0] == meant


def test_an_id_like_none_has_no_suggestion() -> None:
    """A name that resembles no base of the table gets no guess."""
    assert similar_ids("acme/ticket-sorter") == []
