"""Nothing is installed on a machine but files whose hash a lock names, and the locks are whole."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import sshd, wheels

from remote.errors import CommandFailed
from remote.setup import lock_requirements, python_env
from remote.setup.apply import ReadyMachine, apply
from remote.setup.facts import PYTHON_MAX, PYTHON_MIN
from remote.setup.steps import SetupGoal
from remote.ssh import connect

ROOT = Path(__file__).parents[1]
LOCKS = ("cpu", "cu128", "cu130")
GROUP = re.compile(r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def pins(cuda: str) -> dict[str, str]:
    """What a lock installs, by name."""
    return {name: version for name, version, _ in GROUP.findall(python_env.requirements(cuda))}


@pytest.mark.parametrize("cuda", LOCKS)
def test_every_line_of_a_lock_is_a_pin_with_hashes(cuda: str) -> None:
    """Besides comments a lock has only exact versions, each with the hash of at least one file."""
    text = python_env.requirements(cuda)
    rest = GROUP.sub("", text)

    assert [line for line in rest.splitlines() if line and not line.startswith("# ")] == []
    assert len(pins(cuda)) > (60 if cuda == "cpu" else 70)


@pytest.mark.parametrize("cuda", LOCKS)
def test_a_lock_is_made_from_its_inputs(cuda: str) -> None:
    """Whoever edits an `.in` file without making the lock again is told."""
    inputs = lock_requirements.inputs_of(python_env.REQUIREMENTS / f"{cuda}.in")
    required = dict(
        line.split("==")
        for path in inputs
        for line in path.read_text().splitlines()
        if not line.startswith("#")
    )
    locked = {name.replace("_", "-").lower(): version for name, version in pins(cuda).items()}

    assert (
        f"{lock_requirements.INPUTS}{lock_requirements.digest(inputs)}\n"
        in python_env.requirements(cuda)
    )
    assert len(required) > 15
    assert {name: locked[name.replace("_", "-").lower()] for name in required} == required


@pytest.mark.parametrize("cuda", LOCKS)
def test_a_lock_has_the_tested_versions(cuda: str) -> None:
    """What the tests run with and a machine gets are the same, but for torch and its build."""
    tested = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
    differing = {
        name for name, version in pins(cuda).items() if tested.get(name, version) != version
    }

    assert differing == (set() if cuda == "cu130" else {"torch"})
    assert len(tested.keys() & pins(cuda).keys()) > 50


@pytest.mark.parametrize(("cuda", "major"), [("cu128", "12"), ("cu130", "13")])
def test_a_lock_brings_the_cuda_of_its_name(cuda: str, major: str) -> None:
    """Torch's own libraries of that CUDA generation are locked too, and none of another one."""
    names = pins(cuda)
    runtime = [name for name in names if name.startswith("nvidia-cudnn")]

    assert runtime == [f"nvidia-cudnn-cu{major}"]
    assert names["cuda-bindings"].startswith(f"{major}.")
    assert "triton" in names
    assert not {"torchvision", "torchaudio"} & names.keys()


@pytest.mark.parametrize("cuda", LOCKS)
def test_a_compiled_package_has_a_wheel_for_every_python(cuda: str) -> None:
    """Torch, numpy and PyYAML, built per version, have a file for each Python that is accepted."""
    pythons = PYTHON_MAX[1] - PYTHON_MIN[1] + 1
    groups = {name: hashes for name, _, hashes in GROUP.findall(python_env.requirements(cuda))}

    for name in ("torch", "numpy", "pyyaml", "pydantic-core"):
        assert groups[name].count("--hash") >= pythons


@pytest.mark.parametrize("cuda", LOCKS)
def test_a_lock_names_no_place_to_download_from(cuda: str) -> None:
    """The index is the machine's own affair, and neither links nor options are in a lock."""
    text = python_env.requirements(cuda)

    assert "://" not in text
    assert set(re.findall(r"--\w+", text)) == {"--hash"}


def test_the_disk_that_is_required_grows_with_the_lock() -> None:
    """The room for an environment is over three times its wheels, more for CUDA 12."""
    assert 10e9 < python_env.size_bytes("cu130") < python_env.size_bytes("cu128") < 16e9
    assert 1e9 < python_env.size_bytes("cpu") < 2e9


def test_the_set_for_machines_without_a_gpu_is_the_other_without_cuda() -> None:
    """Torch's other build, and of all else the same files as with CUDA, but what is NVIDIA's."""
    bare, full = pins("cpu"), pins("cu130")
    hashes = {name: found for name, _, found in GROUP.findall(python_env.requirements("cpu"))}
    whole = {name: found for name, _, found in GROUP.findall(python_env.requirements("cu130"))}

    assert bare["torch"] == f"{full['torch']}+cpu"
    assert {name for name in full.keys() - bare.keys() if not name.startswith("nvidia-")} == {
        "cuda-bindings",
        "cuda-pathfinder",
        "cuda-toolkit",
        "triton",
    }
    assert not [name for name in bare if "nvidia" in name or "cuda" in name]
    assert {name for name in hashes if hashes[name] != whole[name]} == {"torch"}


def test_the_listed_wheels_of_torch_are_those_of_the_lock() -> None:
    """Each accepted Python has exactly the wheel that `cpu.in` lists for it."""
    listed = lock_requirements.listed((python_env.REQUIREMENTS / "cpu.in").read_text())
    (found,) = [
        hashes
        for name, _, hashes in GROUP.findall(python_env.requirements("cpu"))
        if name == "torch"
    ]

    assert tuple(listed) == lock_requirements.PYTHONS
    assert set(re.findall("[0-9a-f]{64}", found)) == {
        one for wheel in listed.values() for one in wheel.hashes
    }


def test_a_build_of_another_version_is_not_put_into_a_set() -> None:
    """Whoever raises torch's version and forgets the wheels without CUDA is told."""
    build = {(3, 11): package("torch", "1.2+cpu")}
    set_of = [package("torch", "1.3"), package("nvidia-cublas", "1"), package("numpy", "2")]

    assert lock_requirements.without_cuda(
        [package("torch", "1.2"), *set_of[1:]], build, (3, 11)
    ) == [
        build[3, 11],
        set_of[2],
    ]
    with pytest.raises(SystemExit, match=r"lists torch 1.2\+cpu, the set has 1\.3"):
        lock_requirements.without_cuda(set_of, build, (3, 11))
    with pytest.raises(SystemExit, match=r"no wheel for Python 3\.12"):
        lock_requirements.without_cuda(set_of, build, (3, 12))


def package(name: str, version: str, *hashes: str) -> lock_requirements.Package:
    """One package of a lock in the making."""
    return lock_requirements.Package(
        name=name, version=version, hashes=frozenset(hashes), size_bytes=7
    )


def test_a_difference_between_pythons_becomes_a_marker() -> None:
    """A package that only some Pythons need is locked for these alone; wheels are joined."""
    text = lock_requirements.render(
        python_env.REQUIREMENTS / "cu130.in",
        {
            (3, 11): [package("both", "1", "aa", "bb"), package("old", "1", "cc")],
            (3, 12): [package("both", "1", "bb", "dd")],
        },
    )

    assert text.partition("# inputs")[2].splitlines()[1:] == [
        "both==1 \\",
        "    --hash=sha256:aa \\",
        "    --hash=sha256:bb \\",
        "    --hash=sha256:dd",
        'old==1 ; python_version == "3.11" \\',
        "    --hash=sha256:cc",
    ]
    assert "# download: 14 bytes" in text


def test_a_package_without_a_wheel_cannot_be_locked() -> None:
    """What would have to be built on the machine is refused when the lock is made."""
    with pytest.raises(SystemExit, match="sdist-only 2 has no wheel"):
        lock_requirements.read({"packages": [{"name": "sdist-only", "version": "2", "wheels": []}]})


@pytest.fixture
def wheel_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of one package, and the folder from which the machine's pip is set up to take it."""
    folder = wheels.make_wheel_dir(tmp_path)
    monkeypatch.setattr(python_env, "REQUIREMENTS", tmp_path / "requirements")
    return folder


@pytest.fixture
def server(tmp_path: Path, wheel_dir: Path) -> Iterator[sshd.Sshd]:
    """A real machine without GPU, whose user has set pip up as companies do."""
    with sshd.serve(tmp_path / "machine") as running:
        wheels.install_python(
            running.home, f"[global]\nno-index = true\nfind-links = {wheel_dir}\n"
        )
        yield running


def test_the_environment_is_made_from_the_lock(server: sshd.Sshd) -> None:
    """The real pip of a real environment installs what the lock names; a second pass is empty."""
    ready = make(server)
    with connect(server.host()) as connection:
        output = connection.run(
            [ready.python, "-c", "import qft_probe; print(qft_probe.WORD)"]
        ).stdout
        again = apply(connection, SetupGoal(), on_message=lambda _: None, sleep=nap)
    folder = (server.home / ready.python).parents[1]

    assert [step.name for step in ready.done] == ["make the Python environment"]
    assert output == "honest\n"
    assert again.done == ()
    assert not (folder / "wheels").exists()


def test_a_file_with_another_hash_is_refused(server: sshd.Sshd, wheel_dir: Path) -> None:
    """A wheel that was replaced on the way is not installed, and the environment is not ready."""
    wheels.make_wheel(wheel_dir, "forged")
    with pytest.raises(CommandFailed, match="DO NOT MATCH THE HASHES"):
        make(server)

    assert list(server.home.glob("qft/venv-*/.ready")) == []
    assert list(server.home.glob("qft/venv-*/lib/*/site-packages/qft_probe*")) == []


def make(server: sshd.Sshd) -> ReadyMachine:
    """Set the machine up for training without a GPU."""
    with connect(server.host()) as connection:
        return apply(connection, SetupGoal(), on_message=lambda _: None, sleep=nap)


def nap(wait_s: float) -> None:
    """Look again sooner than on a machine far away."""
    time.sleep(min(wait_s, 0.1))
