"""Sizes that a formula reads from a config are those of the model that transformers builds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support.empty_models import build_empty, count
from support.public_configs import MIXTURES, MULTIMODAL, Published
from support.tiny import make_config

from trainer.config import PrecisionChoice, TrainerConfig
from trainer.device.shapes import SUPPORTED, Shape, UnknownShapeError, read_shape
from trainer.estimate.gpus import GPUS
from trainer.estimate.memory import estimate
from trainer.estimate.setup import TrainingSetup
from trainer.estimate.training import estimate_training
from trainer.estimate.weights import adapter_parameters, base_bytes
from trainer.method_table import MethodKind, MethodTable

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {**MIXTURES, **MULTIMODAL}
DENSE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 160, "pad_token_id": 0,
}  # fmt: skip
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 160, "n_positions": 32}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4, "vocab_size": 160}
MOE = {**DENSE, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {**DENSE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MAMBA = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_n_groups": 2}
SHARED = {**QWEN_MOE, "shared_expert_intermediate_size": 40}
STATE = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "head_dim": 16}  # fmt: skip
LATENT = {
    **DENSE, "n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2,
    "moe_intermediate_size": 48, "first_k_dense_replace": 1, "kv_lora_rank": 24,
    "q_lora_rank": 40, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "patch_size": 14,
    "num_attention_heads": 4,
    "image_size": 56,
    "model_type": "siglip_vision_model",
}
QWEN_TOWER = {"depth": 2, "hidden_size": 48, "intermediate_size": 80, "num_heads": 4,
              "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2}  # fmt: skip
SMALL: list[tuple[str, dict[str, Any]]] = [
    ("llama", DENSE),
    ("llama", {**DENSE, "attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {**DENSE, "tie_word_embeddings": True}),
    ("mistral", {**DENSE, "head_dim": None}), ("ministral3", DENSE),
    ("qwen2", DENSE), ("qwen2", {**DENSE, "tie_word_embeddings": True}),
    ("qwen3", DENSE), ("qwen3", {**DENSE, "head_dim": 16, "attention_bias": True}),
    ("gemma", {**DENSE, "head_dim": 16}), ("gemma2", DENSE), ("gemma3_text", DENSE),
    ("gemma3_text", {**DENSE, "head_dim": 24, "attention_bias": True}),
    ("granite", DENSE), ("smollm3", DENSE), ("smollm3", {**DENSE, "attention_bias": True}),
    ("seed_oss", DENSE), ("seed_oss", {**DENSE, "attention_out_bias": True, "mlp_bias": True}),
    ("seed_oss", {**DENSE, "attention_bias": False}),
    ("olmo", DENSE), ("olmo2", DENSE), ("olmo3", DENSE), ("exaone4", DENSE),
    ("ernie4_5", DENSE), ("ernie4_5", {**DENSE, "head_dim": None}),
    ("ernie4_5", {**DENSE, "use_bias": True}),
    ("glm", DENSE), ("glm", {**DENSE, "attention_bias": False}), ("glm4", DENSE),
    ("phi3", DENSE), ("stablelm", DENSE),
    ("stablelm", {**DENSE, "use_qkv_bias": True, "use_parallel_residual": True}),
    ("stablelm", {**DENSE, "qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", DENSE), ("starcoder2", {**DENSE, "use_bias": False}),
    ("cohere", DENSE), ("cohere", {**DENSE, "use_qk_norm": True}), ("cohere2", DENSE),
    ("arcee", DENSE), ("arcee", {**DENSE, "mlp_bias": True}), ("apertus", DENSE),
    ("phi", DENSE), ("phi", {**DENSE, "qk_layernorm": True}),
    ("gpt_neox", DENSE), ("gpt_neox", {**DENSE, "attention_bias": False}),
    ("falcon", {**DENSE, "ffn_hidden_size": 96}),
    ("falcon", {**DENSE, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {**DENSE, "new_decoder_architecture": True, "num_kv_heads": 2,
                "num_ln_in_parallel_attn": 1}),
    ("falcon", {**DENSE, "parallel_attn": False, "multi_query": False, "bias": True}),
    ("falcon", {**DENSE, "new_decoder_architecture": True, "parallel_attn": False}),
    ("gpt2", GPT), ("gpt2", {**GPT, "n_inner": 100, "tie_word_embeddings": False}),
    ("gptj", {**GPT, "rotary_dim": 8}),
    ("opt", {**DENSE, "ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 30}),
    ("opt", {**DENSE, "ffn_dim": 96, "word_embed_proj_dim": 64, "do_layer_norm_before": False}),
    ("bloom", {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 160}),
    ("t5", T5), ("t5", {**T5, "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu"}),
    ("mt5", T5), ("umt5", T5),
    ("mpt", {"d_model": 64, "n_layers": 3, "n_heads": 4, "vocab_size": 160}),
    ("lfm2", {**DENSE, "full_attn_idxs": [1]}),
    ("lfm2", {**DENSE, "block_ff_dim": 700, "conv_bias": True, "layer_types": [
        "conv", "full_attention", "conv"], "tie_embedding": False}),
    ("lfm2", {**DENSE, "block_auto_adjust_ff_dim": False}),
    ("granitemoehybrid", {**MAMBA, **MOE, "shared_intermediate_size": 40, "layer_types": [
        "mamba", "attention", "mamba"]}),
    ("granitemoehybrid", {**MAMBA, **DENSE, "num_local_experts": 0, "attention_bias": True,
                          "shared_intermediate_size": 40, "mamba_conv_bias": False}),
    ("falcon_h1", {**MAMBA, **DENSE, "mamba_d_ssm": 64}),
    ("falcon_h1", {**MAMBA, **DENSE, "mamba_d_ssm": None, "mamba_rms_norm": True,
                   "projectors_bias": True, "mamba_proj_bias": True, "mlp_bias": True,
                   "attention_bias": True, "tie_word_embeddings": True}),
    ("mixtral", MOE), ("gpt_oss", MOE), ("phimoe", {**MOE, "lm_head_bias": True}),
    ("granitemoe", MOE), ("granitemoeshared", {**MOE, "shared_intermediate_size": 40}),
    ("granitemoeshared", MOE), ("minimax_m2", MOE), ("olmoe", {**QWEN_MOE}),
    ("qwen2_moe", SHARED), ("qwen2_moe", {**SHARED, "decoder_sparse_step": 2}),
    ("qwen2_moe", {**SHARED, "qkv_bias": False, "mlp_only_layers": [0, 2]}),
    ("qwen3_moe", QWEN_MOE), ("qwen3_moe", {**QWEN_MOE, "head_dim": 24, "mlp_only_layers": [1]}),
    ("deepseek_v2", {**LATENT, "mlp_bias": True}), ("deepseek_v2", {**LATENT, "q_lora_rank": None}),
    ("deepseek_v3", LATENT), ("deepseek_v3", {**LATENT, "attention_bias": True}),
    ("glm4_moe", {**LATENT, "use_qk_norm": True, "attention_bias": True}), ("glm4_moe", LATENT),
    ("llama4_text", {**MOE, "intermediate_size_mlp": 112, "interleave_moe_layer_step": 2}),
    ("llama4_text", {**MOE, "moe_layers": [0]}),
    ("qwen3_next", {**SHARED, **STATE}),
    ("qwen3_5_text", {**DENSE, **STATE, "num_hidden_layers": 5}),
    ("qwen3_5_moe_text", {**SHARED, **STATE, "layer_types": [
        "linear_attention", "full_attention", "full_attention"]}),
    ("gemma3", {"text_config": {**DENSE, "model_type": "gemma3_text"}, "vision_config": SIGLIP}),
    ("gemma3", {"text_config": {**DENSE, "model_type": "gemma3_text"},
                "vision_config": {**SIGLIP, "vision_use_head": False}}),
    ("llama4", {"text_config": MOE}),
    ("qwen2_vl", {**DENSE, "vision_config": {"depth": 2, "embed_dim": 48, "hidden_size": 64,
                                             "mlp_ratio": 2, "num_heads": 4}}),
    ("qwen2_vl", {"text_config": {**DENSE, "model_type": "qwen2_vl_text"}}),
    ("qwen2_vl", {"text_config": {**DENSE, "tie_word_embeddings": True}}),
    ("qwen3_vl", {"text_config": {**DENSE, "tie_word_embeddings": True}}),
    ("qwen2_5_vl", {**DENSE, "vision_config": QWEN_TOWER, "tie_word_embeddings": True}),
    ("qwen3_vl", {"text_config": DENSE, "tie_word_embeddings": True, "vision_config": {
        **QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}}),
    ("qwen3_vl_moe", {"text_config": QWEN_MOE, "vision_config": QWEN_TOWER}),
    ("qwen3_5", {"text_config": {**DENSE, **STATE, "num_hidden_layers": 4}}),
    ("qwen3_5_moe", {"text_config": {**SHARED, **STATE, "num_hidden_layers": 4}}),
]  # fmt: skip
INSIDE_ONLY = {"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text"}
"""Text models that transformers builds inside of another alone, as above."""
NOT_IN_TRANSFORMERS = {"qwen", "baichuan", "internlm2", "chatglm", "phi3small"}
"""Held by the published number of parameters (`test_common_bases.py`)."""


@pytest.mark.parametrize(
    ("kind", "config"), SMALL, ids=[f"{at}-{kind}" for at, (kind, _) in enumerate(SMALL)]
)
def test_a_formula_gives_what_transformers_builds(kind: str, config: dict[str, Any]) -> None:
    """All parameters, those of linear layers, experts and embeddings are equal, to the last."""
    described = {"model_type": kind, **config}
    shape, truth = read_shape(described), count(build_empty(described))

    assert shape.linear_parameters == truth.linear
    assert shape.expert_parameters == truth.experts
    assert shape.embedding_parameters == truth.embeddings
    assert shape.parameters == truth.total


def test_a_t5_that_is_saved_with_a_head_has_two_matrices() -> None:
    """T5 v1.1 and Flan-T5 say so; transformers 5 keeps both, and marks their config."""
    import transformers

    published = {"model_type": "t5", **T5, "tie_word_embeddings": False}
    one = read_shape({"model_type": "t5", **T5})
    marked = transformers.T5Config.from_dict(published).to_dict()

    for config in (published, marked):
        assert read_shape(config).parameters == one.parameters + 160 * 64


def test_every_architecture_with_a_formula_is_held_by_a_count() -> None:
    """The list of architectures has none that no test above builds."""
    inner = {one.get("model_type") for _, config in SMALL for one in config.values()
             if isinstance(one, dict)}  # fmt: skip
    assert {kind for kind, _ in SMALL} | inner >= SUPPORTED - INSIDE_ONLY - NOT_IN_TRANSFORMERS


def test_the_documents_name_every_architecture_and_its_figures() -> None:
    """`docs/bases.md` lists what has a formula, and the published bases as the formula has them."""
    page = (ROOT / "docs" / "bases.md").read_text(encoding="utf-8")
    work = TrainingSetup(tokens=1, precision=PrecisionChoice.BF16)

    assert {kind for kind in SUPPORTED if f"`{kind}`" not in page} == set()
    for name, one in PUBLIC.items():
        shape = read_shape(one.config)
        gb = base_bytes(shape, work) / 1e9
        row = f"| {name} | {shape.parameters / 1e9:.2f} B | {shape.active_in_all / 1e9:.2f} B | "
        assert f"{row}{gb:.2f} GB | {gb:.2f} GB |" in page


@pytest.mark.parametrize("name", PUBLIC)
def test_published_mixtures_and_multimodal_models_are_counted(name: str) -> None:
    """Parameters equal those built from the published config, and those of the model card.

    The card rounds; bytes in NF4 beside bfloat16 are within 3 % of the counted parameters' bytes.
    """
    one: Published = PUBLIC[name]
    truth, shape = count(build_empty(one.config)), read_shape(one.config)
    work = TrainingSetup(tokens=1, precision=PrecisionChoice.BF16)

    assert shape.parameters == truth.total
    assert shape.linear_parameters == truth.linear
    assert shape.expert_parameters == truth.experts
    assert shape.parameters / 1e9 == pytest.approx(one.billions, rel=0.02)
    assert base_bytes(shape, work) == pytest.approx(truth.bytes_in_nf4, rel=0.03)


@pytest.mark.parametrize("name", PUBLIC)
def test_no_t4_fits_what_it_cannot_hold(name: str, tmp_path: Any) -> None:
    """Where the counted bytes alone are more than a T4 has, the plan says that it does not fit."""
    one: Published = PUBLIC[name]
    bytes_in_nf4 = count(build_empty(one.config)).bytes_in_nf4
    table = make_config(tmp_path, tmp_path, method={"kind": "qlora"}, train={"max_length": 512})
    plan = estimate_training(TrainerConfig.model_validate(table), one.config, gpu=GPUS["T4"])

    assert plan["memory_bytes"]["base"] >= 0.97 * bytes_in_nf4
    if bytes_in_nf4 > GPUS["T4"].memory_bytes:
        assert not plan["fits"]


def test_qwen3_30b_a3b_is_no_model_of_three_billion_that_fits_a_t4(tmp_path: Any) -> None:
    """The mixture of bitsandbytes#1849 has 30.5 billion parameters, of which 3.3 are active."""
    config = MIXTURES["Qwen3-30B-A3B"].config
    table = make_config(tmp_path, tmp_path, method={"kind": "qlora"}, train={"max_length": 512})
    plan = estimate_training(TrainerConfig.model_validate(table), config, gpu=GPUS["T4"])

    assert plan["parameters"] == 30_532_122_624
    assert plan["active_parameters"] / 1e9 == pytest.approx(3.3, abs=0.1)
    assert not plan["fits"]


def test_time_follows_the_experts_that_are_chosen(tmp_path: Any) -> None:
    """A mixture takes the time of what one token passes, and the memory of all it has."""
    mixture = read_shape(MIXTURES["Mixtral-8x7B"].config)
    dense = {**MIXTURES["Mixtral-8x7B"].config, "model_type": "mistral"}
    one = read_shape(dense)
    table = TrainerConfig.model_validate(
        make_config(tmp_path, tmp_path, method={"kind": "lora"}, train={"max_length": 512})
    )
    seconds = [
        estimate_training(table, shape, gpu=GPUS["A100"])["step_seconds"]
        for shape in (mixture, one)
    ]

    # Two of eight experts: attention is the same, the feed-forward part twice that of Mistral.
    assert 1.6 < seconds[0] / seconds[1] < 2.0
    assert mixture.parameters > 6 * one.parameters


FIRST = dict(reversed(SMALL))
ADAPTED = (
    "llama", "phi3", "opt", "falcon", "t5", "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss",
    "deepseek_v3", "glm4_moe", "llama4", "granitemoeshared", "qwen3_next", "qwen3_5_moe", "gemma3",
    "qwen2_5_vl", "qwen3_vl_moe",
)  # fmt: skip


# PEFT 0.21 asks transformers 5.23 by a name that the latter is about to drop.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ADAPTED)
def test_the_adapter_has_the_numbers_that_the_trainer_puts_on(kind: str) -> None:
    """Experts have a pair of matrices each, what sees has none, PEFT's blind spots are left out."""
    import peft

    from trainer import model as models
    from trainer.adapters import methods
    from trainer.adapters.saved_modules import SavedModules

    described = {"model_type": kind, **FIRST[kind]}
    base, method = build_empty(described), MethodTable(kind=MethodKind.LORA, r=4)
    settings = methods.settings(
        method,
        targets=models.find_targets(base, method),
        experts=models.find_experts(base, method),
        saved=SavedModules(names=(), tied=False),
        seq2seq=models.is_seq2seq(base.config),
    )
    adapted = peft.get_peft_model(base, settings)
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)

    assert adapter_parameters(read_shape(described), TrainingSetup(tokens=1, r=4)) == trained


WRONG: list[tuple[str, object]] = [
    ("hidden_size", "4096"), ("hidden_size", None), ("hidden_size", -1), ("hidden_size", 0),
    ("hidden_size", 4096.5), ("hidden_size", 1 << 40), ("hidden_size", True),
    ("intermediate_size", [8192, 8192]), ("intermediate_size", {}),
    ("num_hidden_layers", 1 << 20), ("num_hidden_layers", "many"), ("num_attention_heads", 0),
    ("num_key_value_heads", [2]), ("vocab_size", "big"), ("tie_word_embeddings", "yes"),
    ("attention_bias", 1), ("head_dim", -8), ("model_type", None), ("model_type", ["llama"]),
    ("model_type", "llama\x1b[2J"), ("model_type", "qwen9"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_strange_value_is_refused_in_words(key: str, value: object) -> None:
    """A config with something else than a size is refused in words, without its raw text."""
    with pytest.raises(UnknownShapeError) as caught:
        read_shape({"model_type": "llama", **DENSE, "attention_bias": False, key: value})

    assert "\x1b" not in str(caught.value)


def test_widths_that_are_a_list_are_refused_in_words() -> None:
    """Gemma 3n has a width for each layer; its config is no traceback."""
    with pytest.raises(UnknownShapeError, match="gemma3n_text"):
        read_shape(
            {"model_type": "gemma3n_text", "vocab_size": 262400, "hidden_size": 2048,
             "intermediate_size": [8192] * 3, "num_hidden_layers": 3, "num_attention_heads": 8,
             "num_key_value_heads": 2, "head_dim": 256}
        )  # fmt: skip


STRANGE: tuple[Any, ...] = (
    None, [], {}, "x", "", -1, 0, 1, 3, 1.5, True, False, [1], {"a": 1}, 1 << 31, 1 << 62,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_no_config_whatever_is_a_crash(seed: int) -> None:
    """Configs with values swapped, dropped and nested give sizes or "not known", nothing else."""
    random_source = random.Random(seed)  # noqa: S311 - no secret
    for kind, config in SMALL:
        described = {"model_type": kind, **config}
        keys = [*described, "text_config", "vision_config", "layer_types", "num_experts"]
        for key in random_source.sample(keys, 3):
            described[key] = random_source.choice(STRANGE)
        for part in ("text_config", "vision_config"):
            if isinstance(described.get(part), dict) and described[part]:
                inner = dict(described[part])
                inner[random_source.choice(list(inner))] = random_source.choice(STRANGE)
                described[part] = inner
        try:
            shape = read_shape(described)
        except UnknownShapeError:
            continue
        assert Shape.from_plain(shape.to_plain()) == shape
        assert shape.parameters > 0
        for targets in (None, ("of_no_layer",)):
            work = TrainingSetup(tokens=8, dora=True, targets=targets, checkpointing=False)
            assert estimate(shape, work).reserved > 0
