"""One exit code is made of those of all ranks: the one that the supervisor has to act on."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.exit_codes import ExitCode
from trainer.group.cards import assign_cards, find_cards
from trainer.group.rank_exit import PEER_LOST, RankEnd, choose, culprit, describe, exit_code_of
from trainer.group.rank_output import RankOutput

DONE, PREEMPTED, LOST = int(ExitCode.DONE), int(ExitCode.PREEMPTED), PEER_LOST
KILLED, SEGFAULT = 137, 139


def ends(*codes: int) -> list[RankEnd]:
    """Ranks that ended by themselves with these codes."""
    return [RankEnd(code=code) for code in codes]


@pytest.mark.parametrize(
    ("codes", "wanted", "rank"),
    [
        ((DONE, DONE, DONE), DONE, None),
        ((DONE, PREEMPTED), PREEMPTED, None),
        ((PREEMPTED, LOST, PREEMPTED), PREEMPTED, None),
        ((LOST, KILLED), KILLED, 1),
        ((KILLED, LOST, LOST), KILLED, 0),
        ((PREEMPTED, KILLED), KILLED, 1),
        ((LOST, SEGFAULT), SEGFAULT, 1),
        ((LOST, LOST), ExitCode.FAILED_IO, None),
        ((LOST, ExitCode.FAILED_IO), ExitCode.FAILED_IO, 1),
        ((KILLED, ExitCode.BAD_CONFIG), ExitCode.BAD_CONFIG, 1),
        ((ExitCode.BAD_DATA, LOST), ExitCode.BAD_DATA, 0),
        ((ExitCode.BUG, ExitCode.BAD_CONFIG), ExitCode.BAD_CONFIG, 1),
        ((KILLED, ExitCode.BUG), ExitCode.BUG, 1),
        ((ExitCode.BUG, ExitCode.BUG), ExitCode.BUG, 0),
        ((ExitCode.INTERRUPTED, PREEMPTED), ExitCode.INTERRUPTED, None),
        ((LOST, 3), 3, 1),
    ],
)
def test_the_rank_that_failed_decides(codes: tuple[int, ...], wanted: int, rank: int) -> None:
    """All done is done; else what must change comes first, and who only left comes last."""
    assert choose(ends(*codes)) == wanted
    assert culprit(ends(*codes)) == rank


def test_ranks_that_left_at_a_notice_were_preempted() -> None:
    """Ranks that lose each other while they leave are no failure; a killed one stays a crash."""
    assert choose(ends(LOST, LOST), noticed=True) == PREEMPTED
    assert choose(ends(LOST, KILLED), noticed=True) == KILLED
    assert choose(ends(DONE, DONE), noticed=True) == DONE


def test_a_silent_rank_counts_as_killed_unless_another_failed() -> None:
    """A rank that the launcher had to kill is a crash; one that failed by itself comes before."""
    silent = RankEnd(code=KILLED, killed_by_launcher=True)

    assert choose([RankEnd(code=LOST), silent]) == KILLED
    assert culprit([RankEnd(code=LOST), silent]) == 1
    assert choose([silent, RankEnd(code=SEGFAULT)]) == SEGFAULT
    assert culprit([silent, RankEnd(code=SEGFAULT)]) == 1
    assert "did not answer" in describe(silent)


def test_a_rank_that_did_not_listen_yet_was_preempted() -> None:
    """A SIGTERM of the launcher that kills a starting rank is a notice; another's is a crash."""
    sent = RankEnd(code=143, terminated=True)

    assert choose([sent, RankEnd(code=PREEMPTED)]) == PREEMPTED
    assert choose(ends(143, PREEMPTED)) == 143


def test_a_death_by_signal_is_described_in_words() -> None:
    """`subprocess` counts signals below zero, the exit code has 128 and the signal."""
    assert exit_code_of(-9) == KILLED
    assert exit_code_of(75) == PREEMPTED
    assert describe(RankEnd(code=KILLED)) == "was killed by SIGKILL"
    assert describe(RankEnd(code=255)) == "was killed by signal 127"
    assert describe(RankEnd(code=3)) == "ended with exit code 3"


def test_cards_are_counted_without_asking_cuda(tmp_path: Path) -> None:
    """Device files are counted, since CUDA has numbers of its own; the variable names cards."""
    for name in ("nvidia3", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()

    assert find_cards({}, tmp_path) == ["0", "1", "2"]
    assert find_cards({"CUDA_VISIBLE_DEVICES": "3, 1"}, tmp_path) == ["3", "1"]
    assert find_cards({"CUDA_VISIBLE_DEVICES": "2,-1,0"}, tmp_path) == ["2"]
    assert find_cards({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


def test_ranks_take_the_cards_there_are_or_the_processor() -> None:
    """Fewer cards than wanted give fewer ranks; without any, ranks are processes on the CPU."""
    assert assign_cards(4, ["0", "1"]) == ["0", "1"]
    assert assign_cards(2, ["4", "5", "6"]) == ["4", "5"]
    assert assign_cards(3, []) == [None, None, None]


def test_of_another_rank_warnings_are_shown_and_the_rest_if_it_fails() -> None:
    """A line with a warning or an error has its card in front; others wait for a failure."""
    messages: list[str] = []
    output = RankOutput(1, messages.append)
    output.read(["loading\n", "FutureWarning: old\n", "the config cannot be used:\n", "  lr: no\n"])

    assert messages == ["[card 1] FutureWarning: old"]
    assert output.error == "lr: no"
    output.show_rest()
    assert messages[1:] == [
        "[card 1] loading",
        "[card 1] the config cannot be used:",
        "[card 1]   lr: no",
    ]


def test_the_error_of_a_traceback_is_its_last_line() -> None:
    """The last line of a rank is its error; one without lines has none."""
    output = RankOutput(2, lambda _text: None)

    assert output.error == ""
    output.read(["Traceback:\n", '  File "a.py", line 1\n', "ValueError: too few\n", "\n"])
    assert output.error == "ValueError: too few"
