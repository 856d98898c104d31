"""One DyLoRA run trains every rank, and each can be cut out, compared and loaded by plain PEFT."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.adapters import logits, plain_peft
from support.rig import Rig, rig

from trainer.__main__ import main
from trainer.adapters import methods
from trainer.adapters.dylora import DyLora, compare_ranks, cut, draw_rank, ranks_to_compare
from trainer.data.examples import collate
from trainer.errors import ConfigError
from trainer.loss import summed_cross_entropy
from trainer.results.export import export
from trainer.training.objective import mean_loss

R = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Return a finished DyLoRA training of ranks 1 to 8."""
    made = rig(
        tiny.make_run(
            tmp_path_factory.mktemp("trained"),
            rows=20,
            method={"kind": "dylora", "r": R},
            train={"steps": 16},
        )
    )
    made.train(until=16)
    return made


def dylora_of(made: Rig) -> DyLora:
    """Return the DyLoRA method of a rig."""
    dylora = methods.method_of(made.context.model)
    assert isinstance(dylora, DyLora)
    return dylora


def test_the_draw_depends_on_seed_and_step_and_covers_all_ranks() -> None:
    """The same step draws the same rank; every stretch of steps has its share of each rank."""
    drawn = [draw_rank(0, step, R) for step in range(8000)]
    whole = sum(rank**-0.5 for rank in range(1, R + 1))

    assert drawn == [draw_rank(0, step, R) for step in range(8000)]
    assert drawn != [draw_rank(1, step, R) for step in range(8000)]
    for start in range(0, 8000, 80):
        counts = Counter(drawn[start : start + 80])
        for rank in range(1, R + 1):
            assert abs(counts[rank] - 80 * rank**-0.5 / whole) < 3


def test_one_rank_is_always_drawn_where_there_is_one() -> None:
    """With r = 1 every step has rank 1."""
    assert {draw_rank(seed, 7 * seed, 1) for seed in range(50)} == {1}


def test_a_step_at_rank_b_has_the_gradient_of_a_lora_of_rank_b(tmp_path: Path) -> None:
    """Columns and rows up to b get what a LoRA of rank b, cut out, would give them."""
    fields: dict[str, Any] = {"alpha": 16, "dropout": 0.0}
    big = rig(tiny.make_run(tmp_path / "big", method={"kind": "dylora", "r": R, **fields}))
    dylora_of(big).drawn = 3
    small = rig(tiny.make_run(tmp_path / "small", method={"kind": "lora", "r": 3, **fields}))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in big.state.parameters.items():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 50
        small.state.parameters[name].data = cut({name: parameter.data}, 3)[name]
    expected = gradient_of(small)
    of_b = 3 / torch.arange(1, 4)  # by the chain rule: a column of B counts this much when cut out

    for name, found in gradient_of(big).items():
        inside, outside, factor = (
            (found[:3], found[3:], torch.ones(1))
            if "lora_A" in name
            else (found[:, :3], found[:, 3:], of_b)
        )
        wanted = expected[name] * factor
        assert (inside - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert outside.abs().max() == 0


def test_a_higher_rank_adds_to_a_lower_one() -> None:
    """What the columns of a lower rank do to the base is the same at every higher rank."""
    tensors = {
        f"layer.lora_{side}.weight": torch.randn(shape, generator=torch.Generator().manual_seed(1))
        for side, shape in (("A", (4, 6)), ("B", (5, 4)))
    }

    def change(rank: int) -> torch.Tensor:
        part = cut(tensors, rank)
        return 16 / rank * part["layer.lora_B.weight"] @ part["layer.lora_A.weight"]

    for rank in (2, 3, 4):
        column = tensors["layer.lora_B.weight"][:, [rank - 1]]
        row = tensors["layer.lora_A.weight"][[rank - 1]]
        added = change(rank) - change(rank - 1)
        torch.testing.assert_close(added, 16 / rank * column @ row, rtol=0, atol=1e-4)


def gradient_of(made: Rig) -> dict[str, torch.Tensor]:
    """Return the gradient of the summed loss of four rows."""
    made.context.model.train()
    made.context.model.double()  # or the order of sums in two shapes decides the last digits
    inputs = collate(made.context.examples[:4], 3)
    torch.autograd.backward([summed_cross_entropy(made.context.model, inputs)])
    return {n: p.grad for n, p in made.state.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_every_rank_can_be_cut_out(trained: Rig, tmp_path: Path, rank: int) -> None:
    """The exported adapter of rank b gives in plain PEFT what the model gives dialled to b."""
    adapter = saved(trained, tmp_path)
    done = export(adapter, tmp_path / "plain", rank=rank)
    settings = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    loaded = plain_peft(trained, tmp_path / "plain")
    with dylora_of(trained).at(rank):
        expected = logits(trained.context.model, trained)

    torch.testing.assert_close(logits(loaded, trained), expected, rtol=0, atol=1e-5)
    assert (settings["r"], settings["lora_alpha"], done.rank) == (rank, 8, rank)


def saved(made: Rig, directory: Path) -> Path:
    """Write the adapter as the job would."""
    adapter = directory / "adapter"
    adapter.mkdir()
    methods.method_of(made.context.model).save(adapter)
    return adapter


def test_ranks_are_compared_without_disturbing_the_training(trained: Rig) -> None:
    """The loss of every rank is that of a pass at this rank, and mode and rank are as before."""
    rows = trained.context.examples
    beats: list[tuple[int, int]] = []
    trained.context.model.train()
    model, objective = trained.context.model, trained.context.objective
    measure = partial(mean_loss, model, rows, objective=objective, micro_batch=7)
    found = compare_ranks(model, measure, on_progress=lambda *at: beats.append(at))

    assert trained.context.model.training
    assert dylora_of(trained).chosen == R
    assert list(found) == list(range(1, R + 1))
    assert beats == [(done, R) for done in range(R)]
    trained.context.model.eval()
    with dylora_of(trained).at(2):
        alone = mean_loss(model, rows, objective=objective, micro_batch=1)
    assert found[2] == pytest.approx(alone, rel=1e-5)
    assert len({round(loss, 6) for loss in found.values()}) == R


def test_many_ranks_are_compared_at_1_2_4_8() -> None:
    """Beyond 16 ranks the table has the powers of two and r itself."""
    assert ranks_to_compare(4) == (1, 2, 3, 4)
    assert ranks_to_compare(48) == (1, 2, 4, 8, 16, 32, 48)
    assert ranks_to_compare(64) == (1, 2, 4, 8, 16, 32, 64)


def test_the_best_rank_is_what_is_saved_exported_and_scored(trained: Rig, tmp_path: Path) -> None:
    """The rank of the lowest validation loss is taken, the smaller of equals; else r."""
    dylora = dylora_of(trained)
    (tmp_path / "measured").mkdir()
    (tmp_path / "blind").mkdir()
    dylora.choose({1: 0.9, 2: 0.5, 4: 0.5, 8: 0.6})
    try:
        adapter = saved(trained, tmp_path / "measured")
        measured = export(adapter, tmp_path / "a")
        expected = logits(trained.context.model, trained)
    finally:
        dylora.losses, dylora.chosen = None, R
    blind = export(saved(trained, tmp_path / "blind"), tmp_path / "b")

    assert (measured.rank, blind.rank) == (2, R)
    loaded = plain_peft(trained, adapter)
    torch.testing.assert_close(logits(loaded, trained), expected, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_is_reported(trained: Rig, tmp_path: Path) -> None:
    """A rank that is not there, an adapter of one rank, and an existing target are refused."""
    adapter = saved(trained, tmp_path)
    with pytest.raises(ConfigError, match="9 is not one of 1 to 8"):
        export(adapter, tmp_path / "out", rank=9)
    table = (adapter / "ranks.json").read_text()
    (adapter / "ranks.json").write_text(table.replace('"version": 2', '"version": 1'))
    with pytest.raises(ConfigError, match="of another qft"):
        export(adapter, tmp_path / "out", rank=2)
    (adapter / "ranks.json").unlink()
    with pytest.raises(ConfigError, match="rank 8 only"):  # as best, for nothing was measured
        export(adapter, tmp_path / "out", rank=4)
    with pytest.raises(ConfigError, match="exists already"):
        export(adapter, adapter)
    with pytest.raises(ConfigError, match="there is no adapter"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_whole_job_leaves_a_table_of_ranks_and_exports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` writes adapter/ranks.json from the held-out rows; `export` writes the best rank."""
    held_out = tiny.make_rows(tmp_path / "eval.jsonl", 6)
    run = tiny.make_run(
        tmp_path,
        rows=12,
        method={"kind": "qdylora", "r": 4},
        data={"eval": str(held_out)},
        train={"steps": 4},
    )
    assert main(["train", "--run-dir", str(run)]) == 0
    messages = capsys.readouterr().err
    table = json.loads((run / "adapter" / "ranks.json").read_text())
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    exported = tiny.run_trainer("export", run)
    settings = json.loads((run / "exported" / "adapter_config.json").read_text())

    assert list(table["losses"]) == ["1", "2", "3", "4"]
    assert adapter["r"] == table["best"]
    assert "validation loss by rank: 1:" in messages
    assert exported.returncode == 0, exported.stderr
    assert settings["r"] == table["best"]
    assert f"rank {table['best']}," in exported.stdout
