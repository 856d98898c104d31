"""A base asked for in four or eight bits is in four or eight bits, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.models import make_falcon
from support.rig import outcome, restored, rig, twin_of
from transformers.models.falcon.modeling_falcon import FalconLinear

from trainer import model as models
from trainer.adapters import quantise
from trainer.config import PrecisionChoice
from trainer.device.precision import Precision
from trainer.errors import ConfigError
from trainer.method_table import MethodKind, MethodTable


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ({"kind": "qlora"}, "Linear4bit"),
        ({"kind": "qlora", "quant": "int8"}, "Linear8bitLt"),
        ({"kind": "lora"}, "FalconLinear"),
    ],
)
def test_every_layer_of_falcon_is_stored_as_configured(
    tmp_path: Path, method: dict[str, Any], kind: str
) -> None:
    """All eight linear layers of Falcon's two blocks are quantised, and untouched without it."""
    make_falcon(tmp_path / "model")
    made = rig(tiny.make_run(tmp_path, rows=8, method=method))
    blocks = made.context.model.get_base_model().transformer.h
    layers = [module.base_layer for module in blocks.modules() if hasattr(module, "base_layer")]

    assert len(layers) == 8
    assert {type(layer).__name__ for layer in layers} == {kind}


@pytest.mark.parametrize("precision", [PrecisionChoice.BF16, PrecisionChoice.FP16])
def test_every_layer_of_falcon_is_quantised_in_the_precision_of_a_gpu(
    tmp_path: Path, precision: PrecisionChoice
) -> None:
    """Also while transformers makes every new tensor a 16-bit one, as it does on a GPU."""
    place = make_falcon(tmp_path / "model")
    source = models.Source(name=str(place), revision=None, trust_remote_code=False)
    rounded = Precision(compute=precision, autocast=True, loss_scaling=False, reason="")
    base = models.load_base(
        source, MethodTable(kind=MethodKind.QLORA), precision=rounded, device=torch.device("cpu")
    )

    assert len(list(models.four_bit_layers(base))) == 8


def test_falcon_in_four_bits_learns_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """The loss of a quantised Falcon falls, and an interrupted run is the undisturbed one."""
    make_falcon(tmp_path / "model")
    whole = rig(tiny.make_run(tmp_path, rows=20, method={"kind": "qlora"}))
    whole.train(until=12)
    twin = twin_of(whole, tmp_path / "twin")
    first = rig(twin)
    first.train(until=5)
    first.save()
    second = restored(twin)
    second.train(until=12)
    losses = [record["loss"] for record in tiny.losses(whole.run_dir)]

    assert outcome(whole) == outcome(second)
    assert losses[-1] < losses[0]


class Scaled(torch.nn.Linear):
    """Computes something else than a linear layer."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return twice of it."""
        return 2 * super().forward(given)


class Stateful(torch.nn.Linear):
    """Computes a linear layer as long as nobody changes its mind."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.doubled = False

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return it, or twice of it."""
        return super().forward(given) * (2 if self.doubled else 1)


class Grouped(torch.nn.Linear):
    """Wants its vectors cut into groups."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Return each group's own product."""
        return given.view(-1, 5, 7) @ self.weight


def test_only_what_computes_a_linear_layer_becomes_one() -> None:
    """A layer that scales, that has attributes of its own, or wants groups stays what it is."""
    with torch.device("meta"):
        odd: list[torch.nn.Module] = [Scaled(4, 4), Stateful(), Grouped(4, 4)]
        model = torch.nn.ModuleList([FalconLinear(4, 2), FalconLinear(4, 2, bias=False), *odd])

    assert quantise.simplify(model) == 2
    assert [type(module) for module in model] == [torch.nn.Linear] * 2 + [
        Scaled, Stateful, Grouped,
    ]  # fmt: skip


def test_a_base_of_which_nothing_can_be_quantised_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no layer could be quantised, the run ends before training and names the layers."""
    make_falcon(tmp_path / "model")
    monkeypatch.setattr(quantise, "simplify", lambda _model: 0)

    with pytest.raises(ConfigError, match=r"no layer of this FalconForCausalLM .*FalconLinear"):
        rig(tiny.make_run(tmp_path, rows=8, method={"kind": "qlora"}))
