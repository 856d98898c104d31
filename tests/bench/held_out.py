"""Measures the loss of trained adapters on held-out rows, by one and the same code for all tools.

`HeldOut` starts a process that loads the base once and then waits for adapters, idle meanwhile; run
as `python -m bench.held_out MODEL ROWS.jsonl` this file is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BATCH = 8


class HeldOut:
    """Asks the process that has the base for the loss of one adapter after the other."""

    def __init__(self, requests: IO[str], answers: IO[str], problems: Path) -> None:
        self._requests = requests
        self._answers = answers
        self._problems = problems

    def loss(self, adapter: Path) -> float:
        """Return the mean loss per learnt token, in nats; raises `RuntimeError` with its output."""
        self._requests.write(f"{adapter}\n")
        self._requests.flush()
        answer = self._answers.readline()
        if not answer:
            raise RuntimeError(
                f"the loss could not be measured: {self._problems.read_text()[-2000:]}"
            )
        return float(answer)


@contextmanager
def serve(python: Path, *, model: Path, rows: Path, tests: Path) -> Iterator[HeldOut]:
    """Start the process, and end it when the block is left."""
    problems = rows.with_suffix(".err")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    with problems.open("w") as error:
        process = subprocess.Popen(
            [python, "-m", "bench.held_out", model, rows],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=error, text=True,
        )  # fmt: skip
    if process.stdin is None or process.stdout is None:
        raise AssertionError("both are pipes")
    try:
        yield HeldOut(process.stdin, process.stdout, problems)
        process.stdin.close()  # it ends at the end of its input
        process.wait(timeout=60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main(arguments: Sequence[str]) -> int:
    """Answer each line of stdin, the path of an adapter, with its loss."""
    model, rows = map(Path, arguments)
    lines = rows.read_text(encoding="utf-8").splitlines()
    examples = sorted(map(json.loads, lines), key=lambda row: len(row["input_ids"]))
    base: Any = None
    for line in sys.stdin:
        import torch
        from peft import PeftModel

        if base is None:
            base = _load(model)
        adapted = PeftModel.from_pretrained(base, line.strip()).eval()
        with torch.inference_mode():
            print(_loss(adapted, examples), flush=True)  # noqa: T201 - the answer
        base = adapted.unload()
    return 0


def _load(model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    for module in base.modules():  # bitsandbytes would repack layers for inference on some CPUs
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return base


def _loss(model: Any, examples: Sequence[dict[str, list[int]]]) -> float:
    import torch

    total = tokens = 0.0
    for at in range(0, len(examples), BATCH):
        part = examples[at : at + BATCH]
        longest = max(len(row["input_ids"]) for row in part)

        def padded(name: str, value: int, part: Any = part, longest: int = longest) -> Any:
            rows = [row[name] + [value] * (longest - len(row[name])) for row in part]
            return torch.tensor(rows)

        logits = model(
            input_ids=padded("input_ids", 0),
            attention_mask=torch.tensor(
                [[at < len(row["input_ids"]) for at in range(longest)] for row in part]
            ).long(),
        ).logits
        labels = padded("labels", -100)[:, 1:].flatten()
        total += torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels, reduction="sum"
        ).item()
        tokens += int((labels != -100).sum())
    return total / tokens


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
