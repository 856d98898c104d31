"""Writes the adapter with which a run of qft begins, for another tool to begin with the same.

python -m bench.initial_adapter RUN_DIR/config.json FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Load the base, attach the adapter as a run does before its first step, and save it."""
    config_path, folder = map(Path, arguments)
    from trainer.job.job import prepare_environment

    prepare_environment()
    import torch

    from trainer import model as models
    from trainer.config import load_config

    config = load_config(config_path)
    source = models.find_source(config.model, config_path.parent)
    device = torch.device("cpu")
    precision = models.device_precision(config.train, device=device, seq2seq=False)
    base = models.load_base(source, config.method, precision=precision, device=device)
    models.attach_adapter(base, config.method, config.train).save_pretrained(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
