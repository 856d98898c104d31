"""One rank of a few that shard a tiny base between them: compares it with the whole base.

Started as a program with rank, world size, a file for the store, the model's folder and a request
as JSON; prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


def compare_ranks(model: Path, folder: Path, size: int, **request: Any) -> list[dict[str, Any]]:
    """Start so many ranks on one model, and return what each found."""
    store = folder / "store"
    store.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ranks = [
        subprocess.Popen(
            [
                sys.executable, "-m", "support.shard_rank",
                str(rank), str(size), str(store), str(model), json.dumps(request),
            ],
            env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    found = [one.communicate(timeout=TIMEOUT_S) for one in ranks]
    for rank, (_, error) in zip(ranks, found, strict=True):
        if rank.returncode:
            raise AssertionError(error)
    return [json.loads(output.splitlines()[-1]) for output, _ in found]


@dataclass(frozen=True)
class FileRanks:
    """The ranks of a group, as far as loading and portions need them."""

    rank: int
    size: int

    def mine(self, count: int) -> range:
        """Return every so manieth piece."""
        return range(self.rank, count, self.size)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


def main() -> None:
    """Compute with the whole base, then with the sharded one, and print how they differ."""
    import torch
    import torch.distributed as dist

    rank, size = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=size)
    request = json.loads(sys.argv[5])
    act = _measure if "tokens" in request else _compare
    try:
        found = act(FileRanks(rank, size), Path(sys.argv[4]), request)
    finally:
        dist.destroy_process_group()
    sys.stdout.write(json.dumps(found) + "\n")


def _compare(peers: Any, folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from trainer import model as models
    from trainer.config import TrainTable
    from trainer.device.activations import offloaded
    from trainer.device.precision import choose_precision
    from trainer.device.unpacked import unpackable
    from trainer.group.shard import await_all, load_sharded
    from trainer.kernels.fewer_copies import use_fewer_copies
    from trainer.method_table import MethodTable
    from trainer.model import Source

    method = MethodTable.model_validate(request["method"])
    train = TrainTable(gradient_checkpointing=request.get("checkpointing", False))
    device = torch.device("cpu")
    precision = choose_precision(train.precision, device="cpu", capability=None, seq2seq=False)
    source = Source(name=str(folder), revision=None, trust_remote_code=False)

    def load(place: torch.device) -> Any:
        return models.load_base(source, method, precision=precision, device=place)

    def adapted(base: Any) -> Any:
        model = models.attach_adapter(base, method, train)
        draws = torch.Generator().manual_seed(5)
        for value in models.trainable(model).values():
            value.data.normal_(generator=draws).mul_(0.05)
        use_fewer_copies(model)
        return model

    def written_by(model: Any) -> Any:
        model.eval()
        return model.generate(input_ids=ids[:1, :6], max_new_tokens=4, do_sample=False)

    def outcome(base: Any) -> dict[str, Any]:
        with torch.no_grad():
            before = base(input_ids=ids).logits
        first = written_by(base)
        model = adapted(base).train()
        with offloaded(model, pinned=False) if request.get("offloading") else _nothing():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        written = written_by(model)
        gradients = {name: one.grad for name, one in models.trainable(model).items()}
        return {
            "first": first,
            "before": before,
            "loss": loss.detach(),
            "written": written,
            **gradients,
        }

    ids = torch.arange(3, 51).reshape(2, 24) + peers.rank
    whole = load(device)
    unpacked = len(list(unpackable(whole)))
    wanted = outcome(whole)
    base, sharded = load_sharded(load, method, peers, device=device, wait=await_all)
    alone = sharded.led(peers, lambda: written_by(base))
    found = outcome(base)
    return {
        "alone": None if alone is None else torch.equal(alone, wanted["first"]),
        "gradients": len([name for name in wanted if "lora" in name]),
        "without": [name for name, value in found.items() if value is None],
        "different": [
            name for name, value in wanted.items() if not torch.equal(value, found[name])
        ],
        "whole_bytes": sharded.whole_bytes,
        "local_bytes": sharded.local_bytes,
        "scales_bytes": sum(_scales(one) for one in sharded.blocks),
        "unpackable": [unpacked, len(list(unpackable(base)))],
    }


def _measure(peers: Any, folder: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the peak of the tensors of a pass on the sharded base, with gradients before it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from support.measured_step import most_at_once, tensors_of
    from trainer import model as models
    from trainer.config import TrainTable
    from trainer.device.precision import choose_precision
    from trainer.group.shard import await_all, load_sharded
    from trainer.method_table import MethodTable
    from trainer.model import Source

    method = MethodTable.model_validate(request["method"])
    train = TrainTable(gradient_checkpointing=request.get("checkpointing", False))
    device = torch.device("cpu")
    precision = choose_precision(train.precision, device="cpu", capability=None, seq2seq=False)
    source = Source(name=str(folder), revision=None, trust_remote_code=False)

    def load(place: torch.device) -> Any:
        return models.load_base(source, method, precision=precision, device=place)

    if request.get("whole"):
        base, local = load(device), 0
    else:
        base, sharded = load_sharded(load, method, peers, device=device, wait=await_all)
        local = sharded.local_bytes
    model = models.attach_adapter(base, method, train).train()
    trained = models.trainable(model)
    for value in trained.values():
        value.grad = torch.zeros_like(value)
    ids = torch.arange(request["rows"] * request["tokens"]).reshape(request["rows"], -1) % 300
    seen: dict[int, int] = {}
    for tensor in tensors_of(model):
        held = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        seen[held.untyped_storage().data_ptr()] = held.untyped_storage().nbytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as passes:
        model(input_ids=ids, labels=ids).loss.backward()
    numbers = sum(one.numel() for one in trained.values())
    return {
        "static": sum(seen.values()) + 4 * numbers,  # and gradients
        "peak": sum(seen.values()) + 4 * numbers + most_at_once(passes),
        "trained": numbers,
        "local_bytes": local,
    }


def _scales(block: Any) -> int:
    from trainer.group.shard import packed_layers

    total = 0
    for layer in packed_layers(block):
        state = layer.quant_state
        total += state.absmax.nbytes
        total += state.state2.absmax.nbytes if state.nested else 0
    return total


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


if __name__ == "__main__":
    main()
