"""The program that has imported the libraries and forks once per answer; it owns no secrets.

It runs in the interpreter that answers are scored with, which needs none of the trainer's packages.
Requests are lines of JSON on its standard input, replies are lines on its standard output; it ends
when its input does. Standard library only, Python 3.10 and newer.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from trainer.code_eval import linux
from trainer.code_eval.attacks import attack_task
from trainer.code_eval.cgroups import find_groups
from trainer.code_eval.libraries import DISTRIBUTIONS, MODULES
from trainer.code_eval.limits import Limits
from trainer.code_eval.run_answer import Request, ScorerGone, run_answer
from trainer.code_eval.sandbox import Sandbox, make_sandbox


def main(arguments: Sequence[str]) -> None:
    """Serve requests until the input ends; the arguments are the libraries to import."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    linux.adopt_orphans()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.set_inheritable(replies.fileno(), False)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # what a library prints while it is imported is no reply
    os.dup2(nothing, 2)
    config_folder = tempfile.mkdtemp(prefix="qft-matplotlib-")
    os.environ["MPLCONFIGDIR"] = config_folder
    groups = find_groups()
    try:
        missing = import_libraries(one for one in MODULES if one.partition(".")[0] in arguments)
        gc.collect()
        gc.freeze()  # a child that collects garbage would copy every page of it
        reply(replies, {"ready": True, "missing": missing, **environment()})
        serve(replies, lambda mechanism: make_sandbox(mechanism, groups))
    except ScorerGone:
        return
    finally:
        shutil.rmtree(config_folder, ignore_errors=True)
        if groups is not None:
            groups.remove()


def import_libraries(names: Iterable[str]) -> list[str]:
    """Import the libraries that are there, and return the names of those that are not."""
    missing = []
    warnings.simplefilter("ignore")
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception:  # noqa: BLE001 - broken or not there: an answer that needs it fails
            missing.append(name)
        else:
            if name == "torch":
                module.set_num_threads(1)
    return missing


def environment() -> dict[str, Any]:
    """Return the versions that decide what passes here, and whether this process is root."""
    from importlib import metadata

    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "root": os.geteuid() == 0,
    }


def serve(replies: IO[str], make: Callable[[str], Sandbox]) -> None:
    """Do what each line asks for; a fault of the sandbox is a reply, too."""
    boxes: dict[str, Sandbox] = {}
    waiting = b""
    while True:
        line, newline, rest = waiting.partition(b"\n")
        if not newline:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                return
            waiting += chunk
            continue
        waiting = rest
        request = json.loads(line)
        mechanism = request["mechanism"]
        try:
            if mechanism not in boxes:
                boxes[mechanism] = make(mechanism)
            wanted = Request(
                task=task_of(request),
                box=boxes[mechanism],
                limits=Limits(**request["limits"]),
                keep_output="attack" in request,
            )
            outcome = run_answer(wanted, requests=0)
        except OSError as error:
            reply(replies, {"fault": str(error)})
        else:
            reply(replies, {**asdict(outcome), "sandbox": boxes[mechanism].describe()})


def task_of(request: Mapping[str, Any]) -> Callable[[], None]:
    """Return what a request asks to be done in the sandbox."""
    if "attack" in request:
        return attack_task(request["attack"], request["arguments"])
    program = request["program"]

    def run() -> None:
        sys.path[:] = [path for path in sys.path if path != sys.path[0]]
        sys.argv[:] = [""]
        exec(compile(program, "<test program>", "exec"), {"__name__": "__main__"})  # noqa: S102

    return run


def reply(replies: IO[str], table: Mapping[str, Any]) -> None:
    """Write one line; the scorer that is gone ends this program by the end of its input."""
    try:
        replies.write(json.dumps(table) + "\n")
        replies.flush()
    except BrokenPipeError as error:
        raise ScorerGone from error
