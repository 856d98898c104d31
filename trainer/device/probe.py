"""Prints versions and device as JSON, so that a wrong driver is found before training."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from trainer.exit_codes import ExitCode
from trainer.rundir.fingerprint import cpu_model, installed_versions


def probe() -> dict[str, Any]:
    """Return versions, processor and GPU; `problem` says what stands in the way, or is None."""
    facts: dict[str, Any] = {
        "python": sys.version.split()[0],
        "versions": installed_versions(),
        "cpu": cpu_model(),
        "device": "cpu",
        "gpu": None,
        "capability": None,
        "memory_bytes": None,
        "problem": None,
    }
    try:
        import torch
    except (ImportError, OSError) as error:
        facts["problem"] = f"torch cannot be imported: {error}"
        return facts
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = "cuda"
        facts["gpu"] = properties.name
        facts["capability"] = [properties.major, properties.minor]
        facts["memory_bytes"] = properties.total_memory
    elif torch.version.cuda is not None:
        facts["problem"] = "torch was built for CUDA but finds no usable GPU or driver"
    return facts


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Take none."""


def run(_args: argparse.Namespace) -> int:
    """Print what this machine can do, for the laptop to check before it trains."""
    sys.stdout.write(json.dumps(probe(), indent=1) + "\n")
    return ExitCode.DONE
