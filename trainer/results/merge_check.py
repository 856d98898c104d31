"""Compares a merged model with its adapter on held-out rows: greedy answers and logits.

    python -m trainer merge-check --run-dir DIR --merged DIR [--base DIR] [--adapter DIR]
        [--onto quantized]

All on the CPU, one model in memory at a time, in float32 if there is room. The merged model is
compared with the adapter on the base it was merged onto: what is left is rounding. If the adapter
was trained on a quantised base, also with the adapter on the other of the two, the original and
the quantised one: what is left is what quantising did. Prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.base_limits import model_rows
from trainer.config import PrecisionChoice, TrainerConfig
from trainer.data.codec import Codec, Example
from trainer.data.examples import load_examples, padding_id
from trainer.device.deferred_modules import defer_modules
from trainer.device.precision import Precision
from trainer.errors import ConfigError, TrainerError
from trainer.exit_codes import ExitCode
from trainer.method_table import MethodKind, MethodTable, Quant
from trainer.results.base_weights import shard_names
from trainer.results.quantized_base import MergeBase
from trainer.rundir.layout import resolve
from trainer.saving.run_day import load_run_config

TOKENS_MAX = 64  # of an answer: models that differ mostly do so early
ROOM = 1.2  # memory that a model takes, over the size of its weights
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """The first logits of a model for prompts [prompts, words], and its greedy answers."""

    logits: torch.Tensor
    answers: tuple[tuple[tuple[int, ...], bool], ...]


def collect_outputs(
    model: Any, prompts: Sequence[Sequence[int]], *, tokens_max: int, eos_id: int, pad_id: int
) -> ModelOutputs:
    """Run the model on the prompts; it is left as it was."""
    from trainer.scoring.constrained import Decoder, batches_by_length, eval_mode

    decoder = Decoder(model, eos_ids=[eos_id], pad_id=pad_id)
    logits: dict[int, torch.Tensor] = {}
    answers: dict[int, tuple[tuple[int, ...], bool]] = {}
    with eval_mode(model):
        for batch in batches_by_length([len(prompt) for prompt in prompts]):
            state = decoder.prefill([prompts[at] for at in batch])
            logits |= zip(batch, state.logits.cpu(), strict=True)
            written = decoder.generate(state, tokens_max=tokens_max)
            answers |= {
                at: (one.tokens, one.stopped) for at, one in zip(batch, written, strict=True)
            }
    places = range(len(prompts))
    return ModelOutputs(
        logits=torch.stack([logits[at] for at in places]),
        answers=tuple(answers[at] for at in places),
    )


def difference(reference: ModelOutputs, merged: ModelOutputs) -> dict[str, Any]:
    """Return rows, how many greedy answers are equal, and how far the first logits are apart."""
    gap = (reference.logits - merged.logits).abs()
    equal = sum(one == other for one, other in zip(reference.answers, merged.answers, strict=True))
    rows = len(reference.answers)
    return {
        "rows": rows,
        "equal": equal,
        "share": equal / rows,
        "logits_difference_max": float(gap.max()),
        "logits_difference_mean": float(gap.mean()),
    }


def compare_models(
    reference: Any, merged: Any, prompts: Sequence[Sequence[int]], *, tokens_max: int, eos_id: int
) -> dict[str, Any]:
    """Compare the greedy answers and the logits of two loaded models."""
    outputs = [
        collect_outputs(model, prompts, tokens_max=tokens_max, eos_id=eos_id, pad_id=eos_id)
        for model in (reference, merged)
    ]
    return difference(outputs[0], outputs[1])


def choose_dtype(weights_bytes: int, width: int, *, free_bytes: int) -> torch.dtype | None:
    """Return float32 if a model fits in it, else bfloat16, else None.

    `weights_bytes` is its size on the disk, `width` the bytes of one number there.
    """
    numbers = weights_bytes / width
    for dtype in (torch.float32, torch.bfloat16):
        if numbers * dtype.itemsize * ROOM <= free_bytes:
            return dtype
    return None


def evenly_spaced(items: Sequence[Example], count: int) -> list[Example]:
    """Return `count` of the items, evenly spread, or all if there are no more."""
    count = min(count, len(items))
    return [items[at * len(items) // count] for at in range(count)]


class CannotCompareError(TrainerError):
    """The merged model is whole, but cannot be compared here; the message says why."""


def compare(  # noqa: PLR0913 - three places and how much
    run_dir: Path, merged: Path, adapter: Path, *, base: Path | None, rows: int,
    on_message: Callable[[str], None], merge_base: MergeBase = MergeBase.ORIGINAL,
) -> dict[str, Any]:  # fmt: skip
    """Return how `merged` differs from `adapter`, as plain JSON.

    The figures at its top are those against the adapter on the `merge_base`.

    Raises:
        CannotCompareError: it does not fit into the memory.
        ConfigError: the run or its base cannot be loaded.
        DataError: its rows cannot be read.
        ConnectionError: the hub does not answer.
    """
    from trainer import model as models

    config = load_run_config(run_dir)
    source = models.find_source(config.model, run_dir)
    if base is not None:
        source = replace(source, name=str(base.absolute()), revision=None)
    tokenizer = models.load_tokenizer(source)
    seq2seq = models.is_seq2seq(models.load_config(source))
    dtype = _dtype_for(merged)
    items, held_out = _load_rows(config, run_dir, tokenizer, seq2seq=seq2seq, rows=rows)
    codec = Codec.from_tokenizer(tokenizer, max_length=config.train.max_length, seq2seq=seq2seq)
    longest = min(max(item.answer_length for item in items), TOKENS_MAX)
    method = config.method.storage
    plain = MethodTable(kind=MethodKind.LORA)

    def outputs_of(place: models.Source, table: MethodTable, adapter: Path | None) -> ModelOutputs:
        arithmetic = Precision(
            compute=_CHOICES[dtype], autocast=False, loss_scaling=False, reason=""
        )
        model = models.load_base(place, table, precision=arithmetic, device=CPU)
        model = models.load_adapter(model, adapter) if adapter else model.eval()
        outputs = collect_outputs(
            model, [item.prompt_ids for item in items], tokens_max=longest,
            eos_id=codec.eos_id, pad_id=padding_id(tokenizer, model_rows(model)),
        )  # fmt: skip
        del model
        gc.collect()
        return outputs

    bases = {MergeBase.ORIGINAL: (plain, "the original base")}
    if method is not Quant.NONE:
        bases[MergeBase.QUANTIZED] = (config.method, f"the {method} base it was trained on")
    if merge_base not in bases:
        raise ConfigError([f"method.quant: {config.method.kind} has no quantised base"])
    answered = outputs_of(replace(source, name=str(merged.absolute()), revision=None), plain, None)
    found: dict[MergeBase, dict[str, Any]] = {}
    for one in sorted(bases, key=lambda one: one is not merge_base):  # the one merged onto is first
        table, named = bases[one]
        found[one] = difference(outputs_of(source, table, adapter), answered)
        same = ", which it was merged onto" if one is merge_base else ""
        on_message(_sentence(f"the adapter on {named}{same}", found[one]))
    trained = found.get(MergeBase.QUANTIZED)
    return {
        "held_out": held_out,
        "dtype": str(dtype).removeprefix("torch."),
        "onto": str(merge_base),
        **found[merge_base],
        "on_original": found[MergeBase.ORIGINAL],
        "as_trained": {"quant": str(method), **trained} if trained else None,
    }


_CHOICES = {torch.float32: PrecisionChoice.FP32, torch.bfloat16: PrecisionChoice.BF16}


def _dtype_for(merged: Path) -> torch.dtype:
    """Return the number format in which a merged model is compared on this computer."""
    import psutil
    from safetensors import safe_open

    shards = [merged / name for name in shard_names(merged)]
    size = sum(path.stat().st_size for path in shards)
    with safe_open(shards[0], framework="pt") as file:
        width = file.get_tensor(next(iter(file.keys()))).element_size()
    free = psutil.virtual_memory().available
    dtype = choose_dtype(size, width, free_bytes=free)
    if dtype is None:
        raise CannotCompareError(
            f"comparing it takes {size / width * 2 * ROOM / 1e9:.1f} GB of memory, and "
            f"{free / 1e9:.1f} GB are free"
        )
    return dtype


def _load_rows(
    config: TrainerConfig, run_dir: Path, tokenizer: Any, *, seq2seq: bool, rows: int
) -> tuple[list[Example], bool]:
    """Return the rows to compare on, and whether they are held out; without those, learnt ones."""
    held_out = config.data.eval
    names = [held_out] if held_out else [one.path for one in config.data.train_sets]
    items = [
        item
        for name in names
        for item in load_examples(
            config.data, resolve(run_dir, name), tokenizer,
            max_length=config.train.max_length, seq2seq=seq2seq,
        ).items
    ]  # fmt: skip
    return evenly_spaced(items, rows), held_out is not None


def _sentence(other: str, found: dict[str, Any]) -> str:
    return (
        f"merged model against {other}: {found['equal']} of {found['rows']} greedy answers equal, "
        f"logits apart by {found['logits_difference_max']:.2g} at most"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the merged model, the adapter and the rows to compare on."""
    parser.add_argument("--run-dir", type=Path, required=True, help="where config.json lies")
    parser.add_argument("--merged", type=Path, required=True, help="directory of the merged model")
    parser.add_argument("--adapter", type=Path, help="the run's own without")
    parser.add_argument("--base", type=Path, help="the base, if it is not where the config says")
    parser.add_argument(
        "--onto",
        dest="merge_base",
        type=MergeBase,
        choices=list(MergeBase),
        default=MergeBase.ORIGINAL,
    )
    parser.add_argument("--rows", type=int, default=32, help="how many rows to ask")


def run(args: argparse.Namespace) -> int:
    """Compare, and print the result as JSON."""

    def on_message(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    defer_modules()
    adapter = args.adapter or args.run_dir / "adapter"
    found = compare(
        args.run_dir, args.merged, adapter,
        base=args.base, rows=max(1, args.rows), on_message=on_message, merge_base=args.merge_base,
    )  # fmt: skip
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return ExitCode.DONE
