"""Prints what a training step takes, counted with neither weights nor a GPU.

    python -m trainer step-memory --request request.json

The request is a JSON object of the fields of `StepRequest`; the answer is one of `StepMemory`. No
code of a repository is run. Exit codes: 0 counted, 78 the request is wrong or the base cannot be
built here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from trainer.config_errors import describe_errors
from trainer.device.count import CONFIG_BYTES_MAX, check_numbers
from trainer.device.model_shape import UnknownShapeError
from trainer.device.shapes import named
from trainer.errors import ConfigError
from trainer.exit_codes import ExitCode
from trainer.step_memory.request import TOKENS_MAX, StepMemory, StepRequest
from trainer.untrusted import NotPlain, parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the request to count by."""
    parser.add_argument("--request", type=Path, required=True, help="a file with the request")


def run(args: argparse.Namespace) -> int:
    """Print the memory of a step as JSON; raises `ConfigError` if it cannot be counted."""
    began_s = time.perf_counter()
    request = read_request(args.request)
    found = count(request)
    answer = {**asdict(found), "seconds": round(time.perf_counter() - began_s, 3)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return ExitCode.DONE


def read_request(path: Path) -> StepRequest:
    """Return the checked request in a file; raises `ConfigError` for what is none."""
    try:
        raw = parse(path.read_bytes(), bytes_max=CONFIG_BYTES_MAX)
        request = StepRequest.model_validate(raw)
        check_numbers(request.config)
    except ValidationError as error:
        raise ConfigError(describe_errors(error, StepRequest)) from error
    except (UnknownShapeError, NotPlain, OSError) as error:
        raise ConfigError([str(error)]) from error
    longest = max(request.micro_batches) * max(request.tokens, request.loss_tokens or 0)
    if longest > TOKENS_MAX:
        raise ConfigError([f"tokens: {longest} in a pass are more than {TOKENS_MAX}"])
    return request


def count(request: StepRequest, *, whole: bool = False) -> StepMemory:
    """Return what a step takes; raises `ConfigError` with the reason where it cannot be counted.

    `whole`: every layer is passed, also where all are alike.
    """
    from trainer.step_memory.step import count_step  # torch takes seconds; a wrong request none

    try:
        return count_step(request, whole=whole)
    except ConfigError:
        raise
    except Exception as error:  # whatever a strange config makes the libraries raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConfigError(
            [f"a step of {named(request.config)} cannot be counted: {reason}"]
        ) from error
