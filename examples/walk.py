"""Walks every recipe's whole path with its small model: rent, train, be evicted, fetch, report.

    python examples/walk.py [NAME ...]

Each goes through `provider: local` with one eviction; its adapter is then loaded with plain PEFT.
Ends 0 when all arrived, 1 with the names of those that did not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MERGED = ("openllama7b-chat",)  # the published run ended with a merged model


def main(argv: Sequence[str]) -> int:
    """Walk the recipes named, or all of them."""
    names = list(argv) or sorted(
        path.parent.name
        for path in (ROOT / "examples").glob("*/prepare.py")
        if "TINY_MODEL" in path.read_text(encoding="utf-8")
    )
    failed = []
    for name in names:
        begun = time.monotonic()
        print(f"== {name}", flush=True)
        trouble = walk(name)
        print(f"   {trouble or 'arrived'} after {time.monotonic() - begun:.0f} s", flush=True)
        if trouble:
            failed.append(name)
    print(f"{len(names) - len(failed)} of {len(names)} arrived", flush=True)
    return 1 if failed else 0


def walk(name: str) -> str:
    """Run one recipe from its rows to its report; return what went wrong, or nothing."""
    place = ROOT / "examples" / name / "out" / "tiny"
    with tempfile.TemporaryDirectory(prefix="qft-walk-") as home:
        for command in (
            ["examples/recipes.py", name, "--tiny"],
            ["cli.py", "run", str(place / "run.yaml"), "--plain", "--fresh"],
        ):
            done = run(command, home)
            if done.returncode:
                return f"`{' '.join(command)}` exited {done.returncode}:\n{done.stderr[-2000:]}"
    result = place / "out" / f"tiny-{name}"
    if "1 survived" not in done.stdout + done.stderr:
        return "no eviction was survived"
    steps = [
        ["-c", LOAD, str(place / "model"), str(result / "adapter")],
        ["-m", "trainer.report", "--run-dir", str(result), "--name", name],
    ]
    if name in MERGED:
        merged = ["--base", str(place / "model"), "--adapter", str(result / "adapter")]
        steps.append(["-m", "trainer.merge", *merged, "--out", str(place / "merged")])
    for command in steps:
        done = run(command, home)
        if done.returncode:
            return f"`{' '.join(command[:2])}` exited {done.returncode}:\n{done.stderr[-2000:]}"
    return ""


def run(command: Sequence[str], home: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the checkout with a home of its own for the runs."""
    environment = os.environ | {"QFT_HOME": home, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


LOAD = """
import json, sys
import peft, transformers
base, adapter = sys.argv[1:]
seq2seq = json.load(open(base + "/config.json")).get("is_encoder_decoder")
family = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
model = peft.PeftModel.from_pretrained(family.from_pretrained(base), adapter)
learnt = [p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name]
assert any(learnt), "nothing was learnt"
"""


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
