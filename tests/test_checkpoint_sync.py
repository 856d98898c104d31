"""The newest checkpoint that verifies comes home and goes back, whatever a machine calls newer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import sshd
from support.checkpoints import make_checkpoint

from commands.runs.checkpoint_sync import AGAIN_S, CheckpointSync
from commands.runs.result_files import Expected
from remote.ssh import SshConnection, connect
from remote.sync.plan import SyncOptions
from trainer.method_table import MethodTable
from trainer.saving.manifest import ADAPTER, MANIFEST, directory_name

EXPECTED = Expected(method=MethodTable(), tensor_bytes_max=1 << 20, steps_max=1000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
    """One OpenSSH server for the file."""
    with sshd.serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def connection(server: sshd.Sshd) -> Iterator[SshConnection]:
    """One connection for the file."""
    with connect(server.host()) as opened:
        yield opened


@dataclass
class Place:
    """A run's checkpoints there and here, and what was said of them."""

    there: Path
    home: Path
    connection: SshConnection
    remote: str
    printed: list[str] = field(default_factory=list)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.checkpoint_sync = CheckpointSync(
            connect=lambda _vm: self.connection,
            remote_run=self.remote,
            home=self.home,
            options=SyncOptions(python=sys.executable),
            expected=lambda: EXPECTED,
            on_message=self.printed.append,
            clock=lambda: self.now_s,
        )

    def pull_newest(self) -> None:
        """Copy once."""
        self.checkpoint_sync.pull_newest(self.connection)

    def names(self) -> list[str]:
        """What lies at home, all of it."""
        return sorted(path.name for path in self.home.glob("*"))


@pytest.fixture
def place(server: sshd.Sshd, connection: SshConnection, tmp_path: Path) -> Place:
    """An empty place."""
    remote = f"qft/{tmp_path.name}/run"
    there = server.home / remote / "checkpoints"
    there.mkdir(parents=True)
    return Place(
        there=there, home=tmp_path / "home" / "checkpoints", connection=connection, remote=remote
    )


def tear(folder: Path) -> None:
    """Lose the end of the weights, as a disk without power does."""
    data = (folder / ADAPTER).read_bytes()
    (folder / ADAPTER).write_bytes(data[:-3])


def flip(folder: Path) -> None:
    """Change a bit of the weights."""
    data = (folder / ADAPTER).read_bytes()
    (folder / ADAPTER).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def symlink_away(folder: Path) -> None:
    """Put a link in the place of the weights."""
    (folder / ADAPTER).unlink()
    (folder / ADAPTER).symlink_to("/etc/passwd")


def swell(folder: Path) -> None:
    """Make the weights larger than a job of this adapter can."""
    with (folder / ADAPTER).open("r+b") as file:
        file.truncate(EXPECTED.tensor_bytes_max + 1)


def become_file(folder: Path) -> None:
    """Put a file in the place of the whole checkpoint."""
    shutil.rmtree(folder)
    folder.write_text("x")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "torn": tear,
    "flipped": flip,
    "link": symlink_away,
    "swollen": swell,
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "no weights": lambda folder: (folder / ADAPTER).unlink(),
    "empty": lambda folder: [path.rename(folder.parent / path.name) for path in folder.iterdir()],
    "manifest nonsense": lambda folder: (folder / MANIFEST).write_text("[" * 1000),
    "a file": become_file,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_newer_one_that_does_not_verify_hides_no_good_one(place: Place, name: str) -> None:
    """The one before comes home, the damaged one is said once, and nothing of it stays here."""
    make_checkpoint(place.there, 2)
    make_checkpoint(place.there, 4)
    DAMAGES[name](make_checkpoint(place.there, 6))
    for _ in range(3):
        place.pull_newest()

    assert place.names() == ["step-00000004"]
    assert place.checkpoint_sync.newest_step() == 4
    assert [line for line in place.printed if "step 6" in line] == place.printed
    assert len(place.printed) <= 1
    assert not list(place.home.parent.glob("incoming/*"))


@pytest.mark.parametrize(
    ("named", "step", "state"),
    [(99_999_999, 3, None), (900, 3, None), (900, 900, 3), (1001, 1001, None)],
    ids=["beyond the plan", "of another step", "an older state", "one too far"],
)
def test_a_name_proves_nothing(place: Place, named: int, step: int, state: int | None) -> None:
    """What calls itself newer and is not is refused, before and after it is at home."""
    make_checkpoint(place.there, 4)
    make_checkpoint(place.there, step, named=named, state=state)
    place.pull_newest()
    place.pull_newest()

    assert place.names() == ["step-00000004"]
    assert len(place.printed) == 1
    assert f"step {named}" in place.printed[0]


def test_a_thousand_names_only_delay_the_good_one(place: Place) -> None:
    """Each look asks about a few, and about none twice in a row."""
    make_checkpoint(place.there, 4)
    for step in range(101, 141):
        (place.there / directory_name(step)).mkdir()
    for _ in range(6):
        place.pull_newest()

    assert place.names() == ["step-00000004"]


def test_a_step_that_is_saved_anew_comes_home_after_all(place: Place) -> None:
    """A trainer that sets a damaged one aside does its step again."""
    tear(make_checkpoint(place.there, 6))
    place.pull_newest()
    shutil.rmtree(place.there / directory_name(6))
    make_checkpoint(place.there, 6, weight=1)
    place.now_s += AGAIN_S + 1
    place.pull_newest()

    assert place.names() == ["step-00000006"]


def test_a_damaged_copy_at_home_is_printed_once_and_fetched_again(place: Place) -> None:
    """It does not count, and a good one takes its place."""
    make_checkpoint(place.home, 2)
    flip(make_checkpoint(place.home, 6))
    first = [place.checkpoint_sync.newest_step() for _ in range(3)]
    make_checkpoint(place.there, 6)
    place.pull_newest()

    assert first == [2, 2, 2]
    assert len([line for line in place.printed if "copy at home" in line]) == 1
    assert place.names() == ["step-00000002", "step-00000006"]
    assert place.checkpoint_sync.newest_step() == 6


def test_only_the_files_of_a_checkpoint_come(place: Place) -> None:
    """Whatever else lies beside them stays there."""
    folder = make_checkpoint(place.there, 2)
    (folder / "trainer.py").write_text("raise SystemExit")
    (folder / "pipe").symlink_to("/dev/zero")
    place.pull_newest()

    assert place.checkpoint_sync.newest_step() == 2
    assert len(list((place.home / directory_name(2)).iterdir())) == 6


@pytest.mark.parametrize("name", [*DAMAGES, "whole", "absent"])
def test_the_newest_that_is_whole_decides_what_goes_back(place: Place, name: str) -> None:
    """A damaged newer one on the disk there is no reason to keep ours from the machine."""
    make_checkpoint(place.home, 4)
    if name != "absent":
        folder = make_checkpoint(place.there, 6)
        if name in DAMAGES:
            DAMAGES[name](folder)
    place.checkpoint_sync.push_newest(place.connection)

    assert (place.there / directory_name(4) / MANIFEST).exists() is (name != "whole")


def test_older_ones_go_only_after_a_newer_one_is_whole_at_home(place: Place) -> None:
    """Two that verify are kept."""
    for step in (2, 4, 6):
        make_checkpoint(place.there, step)
        place.pull_newest()

    assert place.names() == ["step-00000004", "step-00000006"]
    assert place.printed == []


@pytest.mark.parametrize("name", DAMAGES)
def test_a_trainer_there_resumes_from_the_newest_that_verifies(tmp_path: Path, name: str) -> None:
    """A name of 99,999,999 steps is set aside and said, and keeps no room after the next save."""
    from trainer.atomic import RealDisk
    from trainer.saving.checkpoint import Store

    printed: list[str] = []
    make_checkpoint(tmp_path, 2)
    make_checkpoint(tmp_path, 4)
    make_checkpoint(tmp_path, 3, named=99_999_999)
    DAMAGES[name](make_checkpoint(tmp_path, 6))
    store = Store(tmp_path, keep=2, disk=RealDisk())
    found = store.load_newest(tensor_bytes_max=EXPECTED.tensor_bytes_max, on_message=printed.append)

    assert found is not None
    assert found.step == 4
    assert len(printed) == 2
    assert "step-99999999 is unusable (its manifest is about step 3)" in printed[0]
    store._rotate()
    left = sorted(path.name for path in tmp_path.glob("step-*"))
    assert left == ["step-00000002", "step-00000004"]
