"""`qft init`: a run.yaml that works once three names in it are changed."""

from __future__ import annotations

from pathlib import Path

from commands import config
from commands.errors import Usage
from infra.durable import write_bytes

TEMPLATE = """\
# One fine-tuning run. `qft plan` shows what it would cost; `qft run` does it.
# Editors can check this file against the output of `qft init --schema`.
name: my-run

vm:
  provider: local        # rehearse on this computer; `azure` rents, `ssh` is a machine you have
  gpu: T4
  max_price: 0.25        # USD per hour, hard: the cloud itself enforces it
budget: {usd: 5.00, hours: 24, evictions: 20}

model:  {id: microsoft/phi-1_5}          # a hub id, or a directory beside this file
method: {kind: qlora, r: 8, alpha: 16, dropout: 0.1, targets: all-linear}
data:
  train: train.jsonl                     # one JSON object per line
  eval:  eval.jsonl
  prompt:     "Text: {text}\\nLabel:"     # {field} names a field of every row
  completion: " {label}"
train:      {steps: 1000, batch_size: 8, lr: 2.0e-4, max_length: 1024}
checkpoint: {every: auto, keep: 2}
eval:       {kind: label, labels: [negative, neutral, positive]}
"""


def write_template(directory: str) -> Path:
    """Write `run.yaml` into a directory. Raises Usage rather than overwrite one."""
    folder = Path(directory)
    target = folder / "run.yaml"
    if target.exists():
        raise Usage(f"`{target}` is there already", hint="choose another directory")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(target, TEMPLATE.encode(), mode=0o644)
    return target


def schema() -> str:
    """The JSON schema of `run.yaml`."""
    return config.schema()
