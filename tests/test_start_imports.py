"""A start imports what training needs, and searches for no garbage meanwhile."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from trainer.device import garbage
from trainer.device.garbage import collection_paused

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, logging, sys
OPS = "bitsandbytes.backends.cpu.ops"
levels = []
class Watch:
    def find_spec(name, *_more):
        if name == OPS:
            levels.append(logging.getLogger(OPS).level)
sys.meta_path.insert(0, Watch)
from trainer.__main__ import main
code = main(["train", "--run-dir", sys.argv[1]])
names = "torch._inductor", "torch.onnx", "sklearn", "scipy.sparse"
early = [name for name in names if name in sys.modules]
import gc
import torch
frozen = gc.get_freeze_count()
def double(x):
    return 2 * x
marked = torch._dynamo.disable(double)(2), torch.compile(double)(3)
real = torch._dynamo.config.suppress_errors  # what is no mark loads the compiler, whole
late = "torch._inductor" in sys.modules
again = torch._dynamo.disable(double)(4)
from transformers.loss.loss_for_object_detection import linear_sum_assignment
pairs = [int(one) for one in linear_sum_assignment([[4, 1], [2, 8]])[1]]
from scipy.optimize import *
low = float(minimize_scalar(lambda x: (x - 3) ** 2).x)
print(json.dumps([code, early, frozen, marked, real, late, again, pairs, low, levels]))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a program reports that trains in a process of its own."""
    run = tiny.make_run(
        tmp_path_factory.mktemp("start"), rows=4, method={"kind": "qlora"}, train={"steps": 2}
    )
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(run)],
        check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ},
    )  # fmt: skip
    report: list[Any] = json.loads(found.stdout.splitlines()[-1])
    return report


def test_a_training_neither_loads_the_compiler_nor_what_only_scores_need(
    program: list[Any],
) -> None:
    """From the start to the adapter; marks that libraries set for the compiler do not load it."""
    code, early, *_ = program

    assert code == 0
    assert early == []


def test_the_compiler_is_loaded_when_something_needs_it(program: list[Any]) -> None:
    """Marks give the function back as it is, before and after; all else is torch's own."""
    marked, real, late, again = program[3:7]

    assert marked == [4, 6]
    assert real is False
    assert late
    assert again == 8


def test_scipy_is_loaded_when_a_loss_of_object_detection_needs_it(program: list[Any]) -> None:
    """The function that transformers imported early computes, and all others are there."""
    pairs, low = program[7:9]

    assert pairs == [1, 0]
    assert low == pytest.approx(3)


def test_bitsandbytes_does_not_advise_a_package_in_the_log(program: list[Any]) -> None:
    """Whatever imports it first, its warnings about kernels for inference are off by then."""
    assert program[9] == [logging.ERROR]


def test_what_was_imported_is_left_out_of_searches_for_garbage(program: list[Any]) -> None:
    """Hundreds of thousands of objects of torch and transformers, which stay for good."""
    assert program[2] > 100_000


@pytest.mark.parametrize("many", [0, 1 << 30])
def test_a_pause_ends_as_it_began_and_keeps_garbage_only_of_imports(
    monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """Searches go on after it, also after an error; objects are frozen only by a start."""
    monkeypatch.setattr(garbage, "MODULES_MANY", many)
    before = gc.get_freeze_count()
    with pytest.raises(ValueError, match="'unread'"):
        _fail_in_a_pause()
    frozen = gc.get_freeze_count() > before
    if frozen:
        gc.unfreeze()

    assert gc.isenabled()
    assert frozen is (many == 0)


def _fail_in_a_pause() -> None:
    with collection_paused():
        assert not gc.isenabled()
        int("unread")
