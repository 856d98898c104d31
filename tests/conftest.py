"""What holds for all tests: the same surroundings and examples everywhere, and patience."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from trainer.job.job import prepare_environment

settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

# A token, or a hub that is switched off in the shell, would decide what tests of just these see,
# and a proxy would be asked for hubs on loopback. Libraries read some of it when imported.
for name in [*os.environ]:
    if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
        del os.environ[name]
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers: a test names its own hub
os.environ["HF_TOKEN_PATH"] = "/nonexistent/token"  # nor does anybody's stored token count
for name in ("ETAG", "DOWNLOAD"):  # after ten seconds it would ask a slow hub once more
    os.environ[f"HF_HUB_{name}_TIMEOUT"] = "300"
for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
    os.environ.pop(name, None)
    os.environ.pop(name.upper(), None)
CACHE = Path(tempfile.mkdtemp(prefix="qft-tests-cache-"))
"""Where this process, and all that it starts, keeps what is fetched or stored once for a user."""
os.environ["XDG_CACHE_HOME"] = str(CACHE)
# Programs are started by the hundred here: each would compile all of the code anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["QFT_COUNT_S"] = "0"  # a plan counts no training step: seconds each, tested by itself
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests know what a CPU computes
prepare_environment()  # else the first test that trains would do it, for those after it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script starts it so behind an `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # programs under test inherit it

MODULES_MANY = 100
_frozen_modules = 0
_file: Path | None = None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget bases that another file's tests stored, and keep searches for garbage short."""
    global _file  # noqa: PLW0603  (it counts for the whole process)
    if item.path != _file:
        _file = item.path
        shutil.rmtree(CACHE / "qft", ignore_errors=True)
    freeze_libraries()


def freeze_libraries() -> None:
    """Leave libraries that were loaded meanwhile out of every later search for garbage.

    The trainer searches before it measures memory and after it samples, and going through all of
    torch and transformers took half the time of tests that train.
    """
    global _frozen_modules  # noqa: PLW0603  (it counts for the whole process)
    if len(sys.modules) - _frozen_modules >= MODULES_MANY:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


_failed: dict[str, str] = {}
_uncollected: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the line of each test's first failure."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = str(crash or report.longrepr).strip().splitlines() or ["without a word"]
        _failed.setdefault(report.nodeid, words[0])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Keep what could not be collected: no test of it can be run again."""
    if report.failed:
        _uncollected.append(report.nodeid)


def pytest_unconfigure() -> None:
    """Remove what was kept for the user of these tests."""
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the failures to the file that QFT_TEST_FAILURES names, for `.ci/again.py`."""
    path = os.environ.get("QFT_TEST_FAILURES")
    if path and not hasattr(session.config, "workerinput"):  # workers report to the main process
        record = {"exit_status": int(exitstatus), "failed": _failed, "uncollected": _uncollected}
        Path(path).write_text(json.dumps(record), encoding="utf-8")
