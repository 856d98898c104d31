"""The experts of a mixture are quantised and adapted, or the base is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.adapters import fresh_base, logits, make
from support.mixtures import EXPERTS, FAMILIES, HIDDEN, LAYERS, WIDE, make_mixture
from support.models import gpt2
from support.rig import outcome, restored, rig, twin_of
from torch.nn.utils import parametrize

from trainer import model as models
from trainer.adapters import experts, methods, quantise
from trainer.adapters.quantised_share import QuantisedShare
from trainer.config import PrecisionChoice, TrainTable, load_config
from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.job.context import JobOptions
from trainer.job.job import run_job
from trainer.method_table import MethodTable, Quant

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is:FutureWarning")
QLORA = {"kind": "qlora", "r": 2, "dropout": 0.0}


def test_three_families_train_and_resume_to_the_same_bits(tmp_path: Path) -> None:
    """Adapters of experts in four bits learn, and an interrupted run is the undisturbed one."""
    for family in ("qwen3_moe", "mixtral", "gpt_oss"):
        place = tmp_path / family
        make_mixture(place / "model", family)
        whole = rig(tiny.make_run(place, rows=12, method=QLORA))
        whole.train(until=6)
        twin = twin_of(whole, place / "twin")
        first = rig(twin)
        first.train(until=3)
        first.save()
        second = restored(twin)
        second.train(until=6)
        losses = [record["loss"] for record in tiny.losses(whole.run_dir)]
        trained = models.trainable(whole.context.model)

        assert outcome(whole) == outcome(second)
        assert losses[-1] < losses[0]
        assert sum("experts" in name for name in trained) == 4 * LAYERS


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_in_four_bits_and_counted(tmp_path: Path, family: str) -> None:
    """At least 90 % of the layers' matrices are in 4 bits, by counting bytes and by the share."""
    make_mixture(tmp_path / "model", family)
    made = rig(tiny.make_run(tmp_path, rows=4, method=QLORA))
    base = fresh_base(made)
    share = quantise.measure(base, MethodTable.model_validate(QLORA).storage)
    packed = sum(t.numel() * 2 for t in base.parameters() if t.dtype is torch.uint8)
    floats = [
        tensor.numel()
        for name, tensor in base.named_parameters()
        if tensor.dim() > 1 and tensor.is_floating_point() and "embed" not in name
    ]
    head = base.get_output_embeddings().weight.numel()
    tied = base.config.get_text_config().tie_word_embeddings

    assert share.quantised == packed
    assert share.matrices == packed + sum(floats) - (0 if tied else head)
    assert share.of_matrices > 0.95
    assert share.problem(partly_quantised=False) is None
    assert len(list(experts.quantised_experts(base))) >= 2


def test_a_pass_through_experts_in_four_bits_is_peft_on_their_values(tmp_path: Path) -> None:
    """Plain transformers and PEFT, on the dequantised weights, give the logits of the training."""
    import bitsandbytes
    import peft
    import transformers

    make_mixture(tmp_path / "model", "olmoe")
    made = rig(tiny.make_run(tmp_path, rows=8, method=QLORA))
    made.train(until=3)
    expected = logits(made.context.model, made)
    (tmp_path / "adapter").mkdir()
    methods.method_of(made.context.model).save(tmp_path / "adapter")
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    base = fresh_base(made)
    with torch.no_grad():
        for name, layer in models.four_bit_layers(base):
            values = bitsandbytes.functional.dequantize_4bit(
                layer.weight.data, layer.weight.quant_state
            )
            plain.get_submodule(name).weight.copy_(values)
        for name in experts.expert_tensors(base):
            path, _, last = name.rpartition(".")
            plain.get_parameter(name).copy_(getattr(base.get_submodule(path), last))
    foreign = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    ours = models.load_adapter(base, tmp_path / "adapter")

    torch.testing.assert_close(logits(foreign, made), expected, rtol=0, atol=1e-6)
    assert torch.equal(logits(ours, made), expected)


def test_nothing_of_a_pass_stays_behind(tmp_path: Path) -> None:
    """After passes with and without checkpointing no expert holds more than its four bits.

    PEFT 0.21.2 leaves what it adds to a parametrised tensor there, one more in every pass.
    """
    make_mixture(tmp_path / "model")
    table = {"gradient_checkpointing": True}
    made = rig(tiny.make_run(tmp_path, rows=4, method=QLORA, train=table))
    made.train(until=2)
    steps = [
        len(module.parametrizations[name])
        for module, name in experts.quantised_experts(made.context.model)
    ]

    assert steps == [1] * (2 * LAYERS)
    assert parametrize._cache == {}


def test_gradient_checkpointing_changes_no_bit(tmp_path: Path) -> None:
    """Experts that are dequantised again in the backward pass give the same adapter."""
    make_mixture(tmp_path / "model")
    found = []
    for checkpointing in (False, True):
        table = {"gradient_checkpointing": checkpointing}
        place = tmp_path / str(checkpointing)
        place.mkdir()
        (place / "model").symlink_to(tmp_path / "model")
        made = rig(tiny.make_run(place, rows=4, method=QLORA, train=table))
        made.train(until=2)
        found.append({k: v.clone() for k, v in models.trainable(made.context.model).items()})

    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ({"kind": "qdora"}, "method.kind: qdora cannot adapt the experts"),
        ({"kind": "qdylora"}, "method.kind: qdylora cannot adapt the experts"),
        ({"kind": "nola", "quant": "nf4"}, "method.kind: nola cannot adapt the experts"),
        ({"kind": "qlora", "dropout": 0.1}, "method.dropout: PEFT has no dropout"),
    ],
)
def test_a_method_without_a_form_for_experts_is_refused(
    tmp_path: Path, method: dict[str, Any], reason: str
) -> None:
    """The message names what cannot be, and the layers to name instead, which then work."""
    make_mixture(tmp_path / "model")
    run = tiny.make_run(tmp_path, rows=4, method={"dropout": 0.0, **method})
    with pytest.raises(ConfigError, match=reason) as refused:
        rig(run)
    advice = "targets: [k_proj, o_proj, q_proj, v_proj]"
    named = {**method, "targets": ["k_proj", "o_proj", "q_proj", "v_proj"]}
    other = rig(tiny.make_run(tmp_path, rows=4, method=named))

    assert advice in str(refused.value)
    assert not any("experts" in name for name in models.trainable(other.context.model))


def test_experts_can_be_named_as_targets(tmp_path: Path) -> None:
    """`targets: [down_proj]` adapts that tensor of the experts only."""
    make_mixture(tmp_path / "model")
    made = rig(tiny.make_run(tmp_path, rows=4, method={**QLORA, "targets": ["down_proj"]}))
    shapes = {
        name: tuple(value.shape) for name, value in models.trainable(made.context.model).items()
    }

    assert set(shapes.values()) == {(2 * EXPERTS, WIDE), (HIDDEN, 2 * EXPERTS)}
    assert len(shapes) == 2 * LAYERS


def test_layers_that_peft_would_take_for_experts_are_left_out(tmp_path: Path) -> None:
    """PEFT reads the names of shared experts as those of experts: said, and refused by name."""
    make_mixture(tmp_path / "model", "deepseek_v3")
    made = rig(tiny.make_run(tmp_path, rows=4, method=QLORA))
    base = fresh_base(made)
    method = MethodTable.model_validate(QLORA)
    lines = models.describe_targets(base, method)
    wanted = MethodTable.model_validate({**QLORA, "targets": ["gate_proj"]})

    assert lines[-1] == "frozen, not adapted: down_proj, gate_proj, up_proj"
    with pytest.raises(ConfigError, match=r"method\.targets: `gate_proj`: PEFT takes it for"):
        models.find_targets(base, wanted)


@pytest.fixture
def mamba(tmp_path: Path) -> Path:
    """A place with a random Mamba, whose sizes are small."""
    import transformers

    tiny.make_tokenizer().save_pretrained(str(tmp_path / "model"))
    sizes = transformers.MambaConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=16, pad_token_id=3
    )
    transformers.MambaForCausalLM(sizes).save_pretrained(str(tmp_path / "model"))
    return tmp_path


def test_layers_that_mamba_reads_past_an_adapter_are_left_out(mamba: Path) -> None:
    """PEFT raises on `out_proj` (peft#2556), and `dt_proj` would learn nothing: it is said."""
    lora = {"kind": "lora", "r": 2, "dropout": 0.0}
    run = tiny.make_run(mamba, rows=4, method=lora, train={"steps": 2})
    messages: list[str] = []
    run_job(JobOptions(run_dir=run), messages.append)
    base = fresh_base(rig(run))
    named = MethodTable.model_validate({**lora, "targets": ["out_proj"]})

    assert "frozen, not adapted: dt_proj, out_proj" in messages
    with pytest.raises(ConfigError, match="`out_proj`: a MambaForCausalLM reads its weight past"):
        models.find_targets(base, named)


def test_a_base_that_cannot_compute_in_four_bits_is_refused(mamba: Path) -> None:
    """Mamba multiplies by a packed weight itself: told before training, and not as a traceback."""
    run = tiny.make_run(mamba, rows=4, method=QLORA, train={"steps": 2})
    with pytest.raises(ConfigError, match="cannot read a text with quantised weights; try `kind:"):
        run_job(JobOptions(run_dir=run), lambda _text: None)
    base = models.load_base(
        models.find_source(load_config(run / "config.json").model, run),
        MethodTable.model_validate(QLORA),
        precision=Precision(
            compute=PrecisionChoice.FP32, autocast=False, loss_scaling=False, reason=""
        ),
        device=torch.device("cpu"),
    )

    assert quantise.measure(base, Quant.NF4).of_matrices == 1.0  # no table of decays in it


def test_a_mixture_in_eight_bits_is_refused_unless_accepted(tmp_path: Path) -> None:
    """No experts are kept in 8 bits: the share is said, and `partly_quantised` accepts it."""
    make_mixture(tmp_path / "model", "olmoe")
    method = {**QLORA, "quant": "int8", "targets": ["q_proj"]}
    messages: list[str] = []
    run = tiny.make_run(tmp_path, rows=4, method=method, train={"steps": 1})
    with pytest.raises(ConfigError) as refused:
        run_job(JobOptions(run_dir=run), messages.append)
    accepted = {**method, "partly_quantised": True}
    run = tiny.make_run(tmp_path, rows=4, method=accepted, train={"steps": 1})
    run_job(JobOptions(run_dir=run), messages.append)
    record = json.loads((run / "adapter" / "qft.json").read_text(encoding="utf-8"))["quantised"]
    attention, stacks = 4 * HIDDEN * HIDDEN, 3 * EXPERTS * HIDDEN * WIDE
    routers = EXPERTS * HIDDEN
    share = attention / (attention + stacks + routers)

    assert f"only {share * 100:.1f} % of the weights" in str(refused.value)
    assert "use `quant: nf4`" in str(refused.value)
    assert record["of_matrices"] == pytest.approx(share, abs=1e-6)
    assert any(f"{share * 100:.1f} % of the weights in its layers" in line for line in messages)


def test_t5_says_that_a_part_of_it_stays_in_float32(tmp_path: Path) -> None:
    """T5's `wo` are never quantised: its share is computed from the config's own numbers."""
    from support.models import t5

    t5(tmp_path / "model")
    run = tiny.make_run(tmp_path, rows=4, method={"kind": "qlora"}, train={"steps": 1})
    with pytest.raises(ConfigError, match=r"8,192 of 40,960 would stay in 16 bits or more"):
        run_job(JobOptions(run_dir=run), lambda _text: None)


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "phi"])
def test_what_is_no_matrix_counts_for_nothing(tmp_path: Path, kind: str) -> None:
    """Learnt places, biases and norms leave the share at the whole."""
    if kind == "gpt2":
        gpt2(tmp_path / "model")
    else:
        make(kind, tmp_path / "model")
    base = fresh_base(rig(tiny.make_run(tmp_path, rows=4, method={"kind": "qlora"})))
    share = quantise.measure(base, Quant.NF4)

    assert (share.of_matrices, share.quantised) == (1.0, share.quantised_matrices)
    assert 0.2 < share.of_base < 1


def test_the_share_of_a_whole_is_never_rounded_up() -> None:
    """99.96 % is said as 99.9 %, and 89.99 % is below nine tenths."""
    nearly = QuantisedShare(
        storage="nf4", weights=20_000, quantised=9_996, matrices=10_000, quantised_matrices=9_996
    )
    below = QuantisedShare(
        storage="nf4", weights=20_000, quantised=8_999, matrices=10_000, quantised_matrices=8_999
    )

    assert "99.9 % of the weights" in nearly.to_text()
    assert nearly.problem(partly_quantised=False) is None
    assert "only 90.0 %" in str(below.problem(partly_quantised=False))
    assert below.problem(partly_quantised=True) is None


def test_an_unquantised_mixture_is_adapted_by_plain_peft(tmp_path: Path) -> None:
    """With `kind: lora` the experts stay as they are, and are adapted all the same."""
    make_mixture(tmp_path / "model", "mixtral")
    made = rig(tiny.make_run(tmp_path, rows=4, method={"kind": "lora", "dropout": 0.0}))
    made.train(until=2)
    base = fresh_base(made)
    lora = MethodTable.model_validate({"kind": "lora"})
    again = models.attach_adapter(base, lora, TrainTable(steps=1))

    assert sum("experts" in name for name in models.trainable(made.context.model)) == 4 * LAYERS
    assert set(models.trainable(again)) == set(models.trainable(made.context.model))
