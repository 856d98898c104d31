"""A token for the machine reaches its trainer's memory; no disk, log, command or environment."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import model_hub, sshd, tiny
from support.model_hub import ModelHub, Repository
from support.runs import make_project

from remote.job import Job, JobState
from remote.on_machine import job_agent
from remote.ssh import connect
from trainer.secret import Secret, hidden_in_output

BASE = "meta/llama"
SCAN_S = 0.05
TIMEOUT_S = 120.0
READ_TWICE = """
import os, resource, sys
from trainer.secret import read_secret
secret = read_secret()
again = sys.stdin.read()
child = os.popen("cat; cat /proc/self/environ").read()
print([secret.reveal(), again, child.count("hf_"), resource.getrlimit(resource.RLIMIT_CORE)[0]])
"""


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    """A hub on loopback."""
    with model_hub.running() as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Sshd]:
    """A machine with OpenSSH's server."""
    with sshd.serve(tmp_path / "machine") as running:
        yield running


@contextmanager
def processes_watched(token: str, but: set[int]) -> Iterator[dict[str, set[str]]]:
    """Look again and again for `token` at every process, and for the trainer's core limit."""
    over, seen = threading.Event(), {"leaks": set[str](), "core limits": set[str]()}

    def watch() -> None:
        while not over.wait(SCAN_S):
            for folder in Path("/proc").glob("[0-9]*"):
                if int(folder.name) in but:
                    continue
                for name in ("cmdline", "environ"):
                    content = content_of(folder / name)
                    if token.encode() in content:
                        seen["leaks"].add(f"{name}: {content_of(folder / 'cmdline')!r}")
                    if name == "cmdline" and b"--token-stdin" in content:
                        limits = content_of(folder / "limits").decode().splitlines()
                        seen["core limits"] |= {
                            " ".join(line.split()[4:6]) for line in limits if "core" in line
                        }

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def content_of(path: Path) -> bytes:
    """What is in a file of /proc; nothing if its process is gone or somebody else's."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def files_with(token: str, *roots: Path) -> list[str]:
    """The files below some folders that contain the token."""
    return [
        str(path)
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and token.encode() in path.read_bytes()
    ]


def pickled(model: Path) -> dict[str, bytes]:
    """The files of a model with its weights as an older pickle of tensors."""
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    return {path.name: path.read_bytes() for path in model.iterdir()}


def test_a_gated_base_trains_with_a_token_that_is_nowhere(
    hub: ModelHub, server: sshd.Sshd, tmp_path: Path
) -> None:
    """The machine fetches the base with the token; nothing there or here contains it but memory.

    To verify the steps on the machine afterwards takes no token: the base is in the cache there.
    """
    token = hub.sign_up("ann", "fineGrained", ("repo.content.read",))
    files = pickled(tiny.make_model(tmp_path / "made"))
    hub.models[BASE] = Repository(files=files, gated="manual", private=True, readers={"ann"})
    wrapper = server.home.parent / "enter"
    first, _, rest = wrapper.read_text().partition("\n")
    wrapper.write_text(f"{first}\nexport HF_ENDPOINT=http://127.0.0.1:9 OMP_NUM_THREADS=1\n{rest}")
    ssh = {
        "host": "127.0.0.1",
        "port": server.port,
        "user": server.user,
        "key": str(server.client_key),
        "host_key": server.host_key,
        "gpu": False,
        "python": sys.executable,
    }
    project = make_project(
        tmp_path / "project",
        vm={"provider": "ssh", "ssh": ssh, "max_price": None},
        model={"id": BASE, "token_env": "HF_READ"},
        train={"steps": 3},
    )
    env = project.environment() | {
        "HF_HUB_OFFLINE": "",
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_READ": token,
    }

    process = subprocess.Popen(
        [sys.executable, str(tiny.ROOT / "cli.py"), "train", "--plain"],
        cwd=project.folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # The user's own command was started with the variable: that one process has it.
    with processes_watched(token, {process.pid}) as seen:
        output = process.communicate(timeout=10 * TIMEOUT_S)[0]

    assert process.returncode == 0, output
    weights = [one for one in hub.requests if one[1].endswith("/pytorch_model.bin")]
    assert {(method, at) for method, _, at in weights} >= {("GET", token)}
    assert {at for _, _, at in weights} == {token}
    assert seen == {"leaks": set(), "core limits": {"1 1"}}
    run_dir = next((server.home / "qft").glob("tiny-*"))
    assert (run_dir / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert list((server.home / ".cache/huggingface/hub").rglob("pytorch_model.bin")) != []
    # Nor is a service asked to convert the weights, which transformers would hand the token to.
    assert [path for _, path, _ in hub.requests if "/commits/" in path or "/discuss" in path] == []
    assert files_with(token, tmp_path) == []
    assert token not in output
    del env["HF_READ"]
    verified = subprocess.run(
        [sys.executable, str(tiny.ROOT / "cli.py"), "verify"],
        cwd=project.folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "bit for bit" in verified.stdout, verified.stderr
    recorded = json.loads((project.home / "runs" / "tiny" / "run.json").read_text())["base"]
    assert recorded == {
        "id": BASE,
        "revision": "main",
        "commit": model_hub.COMMIT,
        "sent": False,
    }


def test_every_start_gets_the_secret_anew(server: sshd.Sshd) -> None:
    """A job that is started again reads the secret again; one without gets an empty stdin."""
    with connect(server.host()) as connection:
        job = Job(connection=connection, directory="qft/job")
        for secret in ("hf_one", "hf_two", ""):
            job.start(["sh", "-c", "echo got $(cat)"], env={}, cwd=".", secret=secret)
            ends_at = time.monotonic() + TIMEOUT_S
            while job.status().state is JobState.RUNNING and time.monotonic() < ends_at:
                time.sleep(0.02)
        log = job.tail().data.decode()

    assert log.splitlines() == ["got hf_one", "got hf_two", "got"]
    assert files_with("hf_one", server.home / "qft") == [str(server.home / "qft/job/job.log")]


def test_a_secret_that_a_pipe_might_not_hold_is_refused() -> None:
    """Writing it could wait for a reader for ever, so a long one ends the start."""
    with pytest.raises(OSError, match="too long"):
        job_agent.open_secret("x" * (job_agent.SECRET_BYTES_MAX + 1))


def test_stdin_is_empty_once_the_secret_was_read() -> None:
    """Neither a later read nor a child gets it, and no crash writes it to a disk."""
    done = subprocess.run(
        [sys.executable, "-c", READ_TWICE],
        input="hf_abc\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=tiny.ROOT,
    )
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    lowest = 1 if limit == resource.RLIM_INFINITY or limit >= 1 else 0

    assert done.stdout.strip() == str(["hf_abc", "", 0, lowest])


def test_what_the_trainer_prints_hides_the_secret(capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback or a message with the token in it is written with three stars there."""
    with hidden_in_output(Secret("hf_abc")):
        print("Bearer hf_abc")  # noqa: T201 - what is tested
        print("error: hf_abc", file=sys.stderr)  # noqa: T201 - as above
    with hidden_in_output(None):
        os.write(1, b"hf_abc")

    out, err = capfd.readouterr()
    assert (out, err) == ("Bearer ***\nhf_abc", "error: ***\n")
