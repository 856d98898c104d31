"""The proof for a CUDA card ends in time, tells all it could do, and does it for real on a CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from gpu import rounds
from gpu.card import by_driver
from gpu.lines import Figure, Line, Result, table, write_json
from gpu.proof import Models, Proof, available_bytes, choose_disk, driver
from gpu.running import Budget, Ended
from gpu.usage import parse
from support.cards import KERNELS, OUT_OF_MEMORY, SCALE, Played, place

REAL_DRIVER = driver
ROOT = Path(__file__).resolve().parent.parent


def proof(tmp_path: Path, played: Played, *, limit_s: float = 480) -> tuple[int, dict[str, Any]]:
    """Play a whole pass; return its exit code and what gpu.json holds."""
    budget = Budget(limit_s=limit_s, clock=lambda: played.now_s, began_s=0)
    out = tmp_path / "out" / "gpu.json"
    work = tmp_path / "work"
    work.mkdir()
    made = Proof(runner=played, budget=budget, work=work, out=out, on_message=lambda _text: None)
    code = made.run(lacking=())
    found: dict[str, Any] = json.loads(out.read_text())
    return code, found


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the played machine leaves has six steps, and there is room for any model."""
    monkeypatch.setattr("gpu.proof.Scale", lambda: SCALE)
    monkeypatch.setattr("gpu.proof.SCALES", {})
    monkeypatch.setattr("gpu.proof.file_bytes", lambda _model: 0)
    monkeypatch.setattr("gpu.proof.RUNS_BYTES", 0)
    monkeypatch.setattr("gpu.proof.driver", lambda _card: "580.1")


def test_a_good_card_has_every_line_done(tmp_path: Path) -> None:
    """All sizes, both kinds of arithmetic and three optimizers are trained, resumed, verified."""
    code, found = proof(tmp_path, Played(takes_s=4))

    assert code == 0
    assert {line["result"] for line in found["lines"]} == {"done"}
    names = [line["what"] for line in found["lines"]]
    settings = ["1b bf16", "3b bf16", "8b bf16", "8b fp16", "1b fp16", "1b bf16 adamw8bit"]
    for value in [*settings, "1b bf16 paged_adamw8bit"]:
        for act in ("load and train", "SIGKILL and resume", "verify"):
            assert f"{value}: {act}" in names
    for model in ("1b", "3b", "8b"):
        for peer in ("Trainer", "TRL", "TRL with Liger"):
            assert f"{model} bf16: {peer}" in names
    for kernel in KERNELS:
        assert f"1b bf16 kernel {kernel}: SIGKILL and resume" in names
    assert found["card"] == "NVIDIA Test"
    assert found["driver"] == "580.1"


def test_an_error_is_that_of_its_line_and_the_others_go_on(tmp_path: Path) -> None:
    """A size that does not fit fails its line, leaves out what builds on it, and ends nothing."""
    played = Played(
        faults=lambda command: OUT_OF_MEMORY if "8b-bf16-adamw-calm" in command else None
    )
    code, found = proof(tmp_path, played)
    by_name = {line["what"]: line for line in found["lines"]}

    assert code == 1
    assert by_name["8b bf16: load and train"]["result"] == "FAILED"
    assert by_name["8b bf16: load and train"]["error"] == (
        "exit 78: torch.OutOfMemoryError: 2 GiB too much"
    )
    assert by_name["8b bf16: load and train"]["log"].startswith("said\n")
    for act in ("SIGKILL and resume", "verify"):
        assert by_name[f"8b bf16: {act}"]["result"] == "not run"
    assert by_name["8b fp16: verify"]["result"] == "done"
    assert by_name["8b bf16: TRL"]["result"] == "done"


@pytest.mark.parametrize("takes_s", [30.0, 70.0, 119.0, 1000.0])
def test_the_whole_ends_within_its_budget(tmp_path: Path, takes_s: float) -> None:
    """However long processes take, all end in eight minutes, and what was left out is named."""
    played = Played(takes_s=takes_s)
    _, found = proof(tmp_path, played)

    assert played.now_s <= 480
    lines = found["lines"]
    assert len(lines) >= 20
    left_out = [line for line in lines if line["result"] == "not run"]
    assert left_out
    assert all("no time left" in line["error"] or "there is no" in line["error"]
               or "could not" in line["error"] for line in left_out)  # fmt: skip
    trained = [line["what"] for line in lines if line["what"].endswith("load and train")]
    assert trained[0] == "8b bf16 first start: load and train"


@pytest.mark.parametrize(
    ("ended", "lacking", "code", "result"),
    [
        (Ended(code=1, seconds=1, error="ImportError: libcuda.so.1"), (), 1, "FAILED"),
        (Ended(code=-9, stopped=True, seconds=150), (), 1, "FAILED"),
        (Ended(code=0, seconds=1, out="[]"), (), 1, "FAILED"),
        (Ended(code=1, seconds=1, error="no pydantic"), ("pydantic",), 0, "not run"),
    ],
)
def test_a_card_that_could_not_be_looked_for_is_not_called_absent(
    tmp_path: Path, ended: Ended, lacking: tuple[str, ...], code: int, result: str
) -> None:
    """If the trainer cannot say what the machine has, that is a line, and no figure is made up."""
    played = Played(faults=lambda command: ended if "probe" in command else None)
    budget = Budget(limit_s=480, clock=lambda: played.now_s, began_s=0)
    message: list[str] = []
    out = tmp_path / "gpu.json"
    made = Proof(runner=played, budget=budget, work=tmp_path, out=out, on_message=message.append)

    assert made.run(lacking=lacking) == code
    first = json.loads(out.read_text())["lines"][0]
    assert (first["what"], first["result"]) == ("what this machine is", result)
    assert "could not be found out" in message[0]
    assert not any("1b bf16" in command for command in played.commands)


def test_what_is_timed_runs_alone_and_the_most_telling_comes_first() -> None:
    """Speed is measured with one lane; kills run side by side; paging to the host is last."""
    planned = rounds.card_rounds(4, ("norm:1",))
    first, second, *_ = planned

    assert {one.name: one.lanes for one in planned} == {
        "speed": 1, "kills": 4, "more-speed": 1, "more-kills": 4, "rest": 1,
    }  # fmt: skip
    assert [unit.job.name for unit in first.units] == ["8b bf16", "1b bf16", "1b bf16"]
    assert [unit.acts[0][0] for unit in first.units] == [rounds.TRAIN, rounds.TRAIN, rounds.PEERS]
    assert [unit.job.name for unit in second.units] == [
        "8b bf16",
        "1b bf16",
        "1b bf16 kernel norm:1",
    ]
    paged = planned[3].units[-1].job
    assert paged.optimizer == "paged_adamw8bit"
    assert paged.r * 2048 >= 100_000  # smaller tensors are not paged


@pytest.mark.parametrize(
    ("memory_bytes", "cores", "lanes"),
    [(150e9, 16, 4), (80e9, 16, 2), (15.8e9, 8, 1), (150e9, 2, 1), (None, 16, 1), (0, 64, 1)],
)
def test_small_cards_and_computers_do_one_thing_at_a_time(
    memory_bytes: float | None, cores: int, lanes: int
) -> None:
    """Trainings share a card only if it has 30 GB and the computer three cores for each."""
    assert rounds.lanes_for(memory_bytes, cores) == lanes


def test_a_disk_without_room_leaves_out_the_large_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 8B model is not begun on a disk that cannot hold it, and the line says what it needs."""
    monkeypatch.setattr("gpu.proof.file_bytes", {"1b": 2_500_000_000, "8b": 16e9}.get)
    played = Played()
    models = Models(place=place(tmp_path, played), free=lambda: 10_000_000_000)

    assert models.problem("1b") is None
    text = models.problem("8b")
    assert text is not None
    assert text.startswith("no room: the 8b model needs 16 GB")
    assert models.problem("8b") == text
    assert played.commands == [f"gpu.weights {tmp_path / 'models'} 1b"]


def test_models_are_written_to_memory_only_where_there_is_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared memory is taken from the computer's own, so a small one writes to its disk."""
    wanted = tmp_path / "new" / "disk"

    monkeypatch.setattr("gpu.proof.file_bytes", lambda _model: 9 << 30)
    assert choose_disk(wanted) == wanted
    assert wanted.is_dir()
    assert choose_disk(None, memory_bytes=8 << 30) == Path(tempfile.gettempdir())
    assert available_bytes() > 0


def test_shared_memory_needs_room_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much memory with a small /dev/shm, as in a container, is no place either."""
    monkeypatch.setattr("gpu.proof.SHARED", tmp_path)
    roomy = choose_disk(None, memory_bytes=200 << 30)
    monkeypatch.setattr("gpu.proof.RUNS_BYTES", 10**18)
    cramped = choose_disk(None, memory_bytes=10**20)
    monkeypatch.setattr("gpu.proof.SHARED", tmp_path / "nowhere")

    assert roomy == tmp_path
    assert cramped == Path(tempfile.gettempdir())
    assert choose_disk(None, memory_bytes=200 << 30) == Path(tempfile.gettempdir())


def test_the_table_claims_nothing_that_was_not_measured(tmp_path: Path) -> None:
    """A figure that is missing is an empty field, in the table and in the JSON."""
    figures = {
        "tokens_per_s": Figure(value=12345.6, unit="tokens/s"),
        "peak_allocated": Figure(value=6.25e9, unit="bytes"),
        "peak_reserved": Figure(value=7e9, unit="bytes"),
    }
    lines = [
        Line(
            what="a: train", result=Result.DONE, seconds=3.21, message="30 steps", figures=figures
        ),
        Line(what="b: train", result=Result.FAILED, error="exit 78"),
        Line(what="c: train", result=Result.NOT_RUN, error="no time left"),
    ]
    write_json(tmp_path / "deep" / "gpu.json", {"card": None}, lines)
    found = json.loads((tmp_path / "deep" / "gpu.json").read_text())

    assert table(lines).splitlines() == [
        "what      result   seconds  tokens/s  peak            forecast  message",
        "a: train  done     3.2      12,346    6.25 / 7.00 GB            30 steps",
        "b: train  FAILED                                                exit 78",
        "c: train  not run                                               no time left",
    ]
    assert found["card"] is None
    assert found["lines"][0]["figures"]["peak_reserved"] == {"value": 7e9, "unit": "bytes"}
    assert found["lines"][1] == {
        "what": "b: train", "result": "FAILED", "seconds": 0.0, "message": "", "error": "exit 78",
        "figures": {}, "log": "",
    }  # fmt: skip


def test_a_card_on_which_nothing_could_be_trained_is_no_success(tmp_path: Path) -> None:
    """Where the card is there and a package is not, the exit code does not say that all is well."""
    played = Played()
    budget = Budget(limit_s=480, clock=lambda: played.now_s, began_s=0)
    out = tmp_path / "gpu.json"
    made = Proof(
        runner=played, budget=budget, work=tmp_path, out=out, on_message=lambda _text: None
    )

    assert made.run(lacking=("bitsandbytes",)) == 1
    lines = json.loads(out.read_text())["lines"]
    assert {line["result"] for line in lines} == {"not run"}
    assert {line["error"] for line in lines} == {"this Python lacks bitsandbytes"}


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("printf 'NVIDIA H200\\nNVIDIA H200\\n'", {"device": "cuda", "gpu": "NVIDIA H200"}),
        ("echo", {"device": "cpu"}),
        ("echo failed; exit 9", {"device": "cpu"}),
        (None, {"device": "cpu"}),
    ],
)
def test_a_card_is_looked_for_without_torch_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, found: dict[str, str]
) -> None:
    """Without torch the driver's tool is asked, and its absence means that there is no card."""
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))

    assert by_driver() == found


def test_what_was_measured_survives_a_hard_end(tmp_path: Path) -> None:
    """gpu.json holds every line that has ended while the next one is still at work."""
    seen: list[int] = []

    def look(command: str) -> None:
        if "gpu.watched" in command or "gpu.peers" in command:
            path = tmp_path / "out" / "gpu.json"
            seen.append(len(json.loads(path.read_text())["lines"]) if path.exists() else 0)

    proof(tmp_path, Played(faults=look))

    assert seen[:2] == [5, 6]  # what was seen of the card comes first
    assert seen[-1] >= len(seen) // 2


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo 580.159.04", "580.159.04"),
        ("printf '580.1\\n580.1\\n'", "580.1"),
        ("echo 'NVIDIA-SMI has failed'; exit 9", None),
        ("true", None),
        (None, None),
    ],
)
def test_the_drivers_version_is_what_its_tool_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, version: str | None
) -> None:
    """Without the tool, or if it fails, the driver is unknown, which ends nothing."""
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))

    assert REAL_DRIVER(True) == version
    assert REAL_DRIVER(False) is None


LEFT_OUT = (
    *(
        "azure",
        "asyncssh",
        "cryptography",
        "fabric",
        "gguf",
        "paramiko",
        "pyarrow",
        "sentencepiece",
    ),
    *("sklearn", "scipy", "tensorboard", "typer", "pytest"),
)
"""What we depend on elsewhere, and a machine with a card need not have."""


ORDER = ("torch", "numpy", "pydantic")


def bare_python(directory: Path, *more: str) -> str:
    """Write what makes a Python act as if it had none of that; return the folder for its path."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_spec(name, path=None, target=None):\n"
        f"    absent = name.split('.')[0] in {(*LEFT_OUT, *more)!r}\n"
        "    return None if absent else find(name, path, target)\n"
        "PathFinder.find_spec = staticmethod(find_spec)\n"
    )
    return str(directory)


def test_without_a_card_it_says_so_and_does_what_it_can(tmp_path: Path) -> None:
    """Sizes are right to the last parameter; a tiny job survives kill -9; no figure is made up.

    The Python has torch and its kind only, and the current folder is another one.
    """
    environment = {**os.environ, "PYTHONPATH": bare_python(tmp_path / "bare")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "gpu"), "--out", str(tmp_path), "--work",
         str(tmp_path / "work"), "--folder", str(tmp_path / "nothing")],
        cwd=tmp_path, env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads((tmp_path / "gpu.json").read_text())
    lines = {line["what"]: line for line in found["lines"]}

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no CUDA card can be used here")
    assert {line["result"] for line in found["lines"]} == {"done"}
    assert found["card"] is None
    assert lines["1b: parameters"]["figures"]["parameters"]["value"] == 1_235_814_400
    assert lines["8b: parameters"]["figures"]["parameters"]["value"] == 8_030_261_248
    assert 5.6e9 < lines["8b: bytes in NF4"]["figures"]["base"]["value"] < 5.8e9
    assert {f"8b: forecast for {card}" for card in ("T4", "A10", "A100", "H100")} <= {*lines}
    resumed = lines["tiny bf16: SIGKILL and resume"]
    assert resumed["figures"]["killed_after"]["value"] >= 9
    assert resumed["figures"]["resumed_from"]["value"] >= 6
    assert lines["tiny bf16: verify"]["figures"]["replayed"]["value"] > 0
    measured = {name for line in found["lines"] for name in line["figures"]}
    assert not measured & {"tokens_per_s", "peak_allocated", "peak_reserved", "card_used"}
    assert list((tmp_path / "work").iterdir()) == []  # models and runs are gone


@pytest.mark.parametrize("lacking", [("torch",), ("pydantic",), ("torch", "numpy", "pydantic")])
def test_a_python_that_lacks_what_is_needed_is_reported_so_and_nothing_fails(
    tmp_path: Path, lacking: tuple[str, ...]
) -> None:
    """What cannot be done is not run, with what is missing; that is no failure of the trainer."""
    environment = {**os.environ, "PYTHONPATH": bare_python(tmp_path / "bare", *lacking)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "gpu"), "--out", str(tmp_path), "--folder",
         str(tmp_path / "nothing"), "--work", str(tmp_path / "work")],
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "PATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = {
        line["what"]: line for line in json.loads((tmp_path / "gpu.json").read_text())["lines"]
    }

    assert done.returncode == 0, done.stdout + done.stderr
    assert "no CUDA card can be used here" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    trained = lines["tiny bf16: load and train"]
    assert (trained["result"], trained["error"]) == (
        "not run", f"this Python lacks {', '.join(sorted(lacking, key=ORDER.index))}",
    )  # fmt: skip
    assert "FAILED" not in {line["result"] for line in lines.values()}
    estimate = "done" if lacking == ("torch",) else "not run"
    assert lines["8b: forecast for T4"]["result"] == estimate


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM ends the processes and removes the models; the exit code is that of an interrupt."""
    command = [sys.executable, str(ROOT / "tests" / "gpu"), "--out", str(tmp_path), "--folder",
               str(tmp_path / "nothing"), "--work"]  # fmt: skip
    with subprocess.Popen(
        [*command, str(tmp_path / "work")],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()

    assert first.startswith("no CUDA card")
    assert process.returncode == 130
    assert "interrupted" in rest
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(("has_torch", "python"), [(True, "given"), (False, ".venv")])
def test_make_gpu_takes_the_python_it_is_given_if_that_has_torch(
    tmp_path: Path,
    has_torch: bool,  # noqa: FBT001
    python: str,
) -> None:
    """A card's own Python runs it without installing; elsewhere the tested versions do."""
    given, installed = tmp_path / "given", tmp_path / "venv" / "bin" / "python"
    for path, answers in ((given, int(not has_torch)), (installed, 0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exit {answers}; fi\necho ran $0 $@\n')
        path.chmod(0o755)
    stamp = tmp_path / "venv" / ".installed"
    stamp.touch()
    os.utime(stamp, (2**31, 2**31))  # as if installed after any change
    done = subprocess.run(
        ["make", "--silent", "gpu", f"PYTHON={given}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert f"ran {given if python == 'given' else installed} tests/gpu" in done.stdout
    assert done.stdout.count("ran ") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--parts", "speed,kill"), "no part is called 'kill'; there are: card, speed"),
        (("--parts", "kills"), "`kills` compares with `speed`: name both"),
        (("--limit-s", "-3"), "'-3' is no number of seconds"),
        (("--out", "FILE/below"), "FILE/below cannot be made: Not a directory"),
        (("--work", "FILE"), "FILE cannot be made: File exists"),
    ],
)
def test_a_mistake_of_usage_is_named_before_anything_runs(
    tmp_path: Path, words: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and the last line names the option and what is wrong with it."""
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(SystemExit) as ended:
        parse([word.replace("FILE", str(file)) for word in words])

    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {words[0]}: {named.replace('FILE', str(file))}" in last
