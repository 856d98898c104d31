"""What can be checked of the models without a card: sizes, bytes in NF4, the forecasts for cards.

    python -m gpu.checks MODEL [MODEL …]

prints a JSON list of lines. Sizes are those of the model that transformers builds, with no memory
behind it; bytes in NF4 come from one layer of the real shape that bitsandbytes quantises here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from typing import Any

from gpu.jobs import SCALES, Scale
from gpu.lines import Figure, Line, Result
from gpu.shapes import LONGEST, MODELS, PUBLISHED, elements, tensors

CARDS = ("T4", "A10", "A100", "H100")
NEAR = 0.001
ROWS_MAX = 1024
Checked = tuple[bool, str, dict[str, Figure]]
"""Whether it is right, what is said of it, and what was measured."""


class UnsuitableError(Exception):
    """This card or this Python cannot do it, which is no mistake of anybody."""


def main(names: Sequence[str]) -> int:
    """Check each model, and print the lines."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # as the trainer has it: a compiler takes seconds
    lines = []
    for name in names:
        config = MODELS[name]
        lines.append(attempt(f"{name}: parameters", partial(parameters, name, config)))
        lines.append(attempt(f"{name}: bytes in NF4", partial(base, name, config)))
        for card in CARDS:
            what = f"{name}: forecast for {card}"
            lines.append(attempt(what, partial(estimate, name, config, card)))
    sys.stdout.write(json.dumps([asdict(line) for line in lines]) + "\n")
    return 0


def attempt(what: str, check: Callable[[], Checked]) -> Line:
    """Do one check; what it raises is the error of its line, and what is missing is not run."""
    try:
        right, message, figures = check()
    except (ImportError, UnsuitableError) as error:
        return Line(what=what, result=Result.NOT_RUN, error=str(error))
    except Exception as error:  # noqa: BLE001 - a line with its error, and the next one
        return Line(what=what, result=Result.FAILED, error=f"{type(error).__name__}: {error}")
    if right:
        return Line(what=what, result=Result.DONE, message=message, figures=figures)
    return Line(what=what, result=Result.FAILED, error=message, figures=figures)


def parameters(name: str, config: Mapping[str, Any]) -> Checked:
    """Compare the parameters that transformers makes with the closed formula and our files."""
    from trainer.device.shapes import read_shape

    model = empty(name)
    built = sum(value.numel() for value in model.parameters())
    computed = read_shape(config).parameters
    written = sum(elements(shape) for _, shape in tensors(config))
    counts = {"transformers": built, "the formula": computed, "the files": written}
    if name in PUBLISHED:
        counts["the publisher"] = PUBLISHED[name]
    figures = {"parameters": Figure(value=built, unit="parameters")}
    if len(set(counts.values())) == 1:
        return True, f"{built:,}, as {', '.join(counts)} say", figures
    text = ", ".join(f"{who} {count:,}" for who, count in counts.items())
    return False, text, figures


def base(name: str, config: Mapping[str, Any]) -> Checked:
    """Compare the bytes of the base in NF4 with the closed formula."""
    import torch

    from trainer.config import PrecisionChoice
    from trainer.device.shapes import read_shape
    from trainer.estimate.setup import TrainingSetup
    from trainer.estimate.weights import base_bytes

    model = empty(name)
    head = model.get_output_embeddings()
    linears = [
        one for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not head
    ]
    weights = sum(one.weight.numel() for one in linears)
    others = sum(value.numel() for value in model.parameters()) - weights
    largest = max(linears, key=lambda one: one.weight.numel())
    rows, columns = largest.weight.shape
    # A layer as it is, or as much of it as a CPU quantises in a moment.
    measured = weights * quantised_bytes(min(rows, ROWS_MAX), columns) + 2 * others
    work = TrainingSetup(tokens=LONGEST, precision=PrecisionChoice.BF16)
    computed = base_bytes(read_shape(config), work)
    figures = {
        "base": Figure(value=measured, unit="bytes"),
        "forecast_base": Figure(value=computed, unit="bytes"),
    }
    message = f"{measured / 1e9:.3f} GB by a layer of bitsandbytes, {computed / 1e9:.3f} by formula"
    return abs(measured / computed - 1) < NEAR, message, figures


def quantised_bytes(rows: int, columns: int) -> float:
    """Return the bytes that one weight takes in a layer that bitsandbytes has quantised here."""
    import torch
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(
        torch.randn(rows, columns, dtype=torch.bfloat16),
        quant_type="nf4",
        compress_statistics=True,
    )
    kept = [packed, state.absmax, state.state2.absmax]
    return float(sum(one.numel() * one.element_size() for one in kept) / (rows * columns))


def estimate(name: str, config: Mapping[str, Any], card: str) -> Checked:
    """Return what `qft plan` would say of this training on a card; nothing is measured."""
    from trainer.config import TrainerConfig
    from trainer.estimate.gpus import GPUS
    from trainer.estimate.training import estimate_training

    scale = SCALES.get(name, Scale())
    estimated = estimate_training(
        TrainerConfig.model_validate(
            {
                "model": {"id": "./model"},
                "method": {"kind": "qlora", "r": 8, "alpha": 16, "dropout": 0.05},
                "data": {"train": "rows", "prompt": "{a}", "completion": "{b}", "loss_on": "all"},
                "train": {
                    "steps": scale.steps,
                    "batch_size": scale.batch_size,
                    "micro_batch": scale.micro_batch,
                    "max_length": scale.max_length,
                },
            }
        ),
        config,
        gpu=GPUS[card],
    )
    memory = estimated["memory_bytes"]
    figures = {
        "forecast_allocated": Figure(value=memory["allocated"], unit="bytes"),
        "forecast_reserved": Figure(value=memory["reserved"], unit="bytes"),
    }
    most = estimated["largest_micro_batch"]
    fits = "fits" if estimated["fits"] else "does not fit"
    message = f"{fits} with {scale.micro_batch} sequences at a time; at most {most or 0}"
    return True, f"{message} of {scale.batch_size}", figures


@cache
def empty(name: str) -> Any:
    """Return the model that transformers makes of its config, with no memory behind it."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**MODELS[name]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
