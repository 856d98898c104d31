"""What ranks tell each other, and what follows from it, without any process."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from trainer.errors import CardsDisagree, PeerLost, Preempted
from trainer.eviction import PreemptionFlag
from trainer.exit_codes import ExitCode
from trainer.group.alone import ALONE
from trainer.group.exchange import make_buffers
from trainer.group.peers import GiveUp
from trainer.group.waiting import PRESENT, SilentTime, Waiter, Watch
from trainer.group.words import (
    RoundWord,
    StepWord,
    read_round_word,
    read_step_word,
    require_same,
)


def words(*digests: int, step: int = 7) -> list[StepWord]:
    """Return the words of ranks with these digests."""
    return [StepWord(step=step, digest=one, seconds_left=math.inf) for one in digests]


@pytest.mark.parametrize(
    ("digests", "beginning"),
    [
        ((5, 5, 9), "card 2 computed other bits at step 7"),
        ((5, 9), "cards 0 and 1 computed different bits at step 7, and it cannot be told"),
        ((5, 5, 9, 9), "cards 0, 1, 2 and 3 computed different bits at step 7"),
        ((9, 5, 8, 5, 5), "cards 0 and 2 computed other bits at step 7"),
    ],
)
def test_a_majority_shows_which_card_is_wrong(digests: tuple[int, ...], beginning: str) -> None:
    """Without more than half of the cards alike, all are named; the exit code is that of a bug."""
    with pytest.raises(CardsDisagree, match=beginning) as caught:
        require_same(words(*digests))

    assert caught.value.exit_code == ExitCode.BUG


def test_cards_with_the_same_digest_agree_and_other_steps_are_named() -> None:
    """The step is compared first: after different steps other bits are no wonder."""
    require_same(words(-3, -3, -3))

    with pytest.raises(CardsDisagree, match=r"card 0 at 7, card 1 at 8"):
        require_same([*words(1), *words(1, step=8)])


@pytest.mark.parametrize("seconds", [math.inf, 0.0, 29.5])
def test_the_word_of_a_step_survives_its_journey(seconds: float) -> None:
    """Without a notice, and with more or less time."""
    word = StepWord(step=3, digest=-(1 << 63), seconds_left=seconds)

    assert read_step_word(word.to_ints()) == word


def test_the_word_of_a_round_tells_of_any_number_of_tensors() -> None:
    """Which of them have a gradient is packed into integers of 64 bits with a sign."""
    present = frozenset({0, 61, 62, 123, 199})
    word = RoundWord(reason=GiveUp.OUT_OF_MEMORY, count=4, number=1, present=present)

    values = word.to_ints(200)

    assert read_round_word(torch.tensor(values, dtype=torch.int64).tolist()) == word
    assert len(values) == 3 + 4


def test_minus_zero_changes_no_bit_of_a_sum() -> None:
    """What is sent for a tensor without a gradient leaves every value as it is, 0 and -0 too."""
    values = torch.tensor([0.0, -0.0, 1e-45, -3.0, math.inf, -math.inf])
    added = values.clone()
    added += torch.full_like(values, -0.0)

    assert added.view(torch.int32).tolist() == values.view(torch.int32).tolist()


def test_a_gradient_lies_in_the_buffer_as_its_tensor_does_in_memory() -> None:
    """In the order of names, aligned, and with the strides of a tensor that was transposed."""
    tensors = {"b": torch.zeros(3, 5).T, "a": torch.zeros(7), "c": torch.zeros(())}

    buffers = make_buffers(tensors, 2)

    assert [one.stride() for one in buffers.views] == [(1,), (1, 5), ()]
    assert [one.storage_offset() for one in buffers.views] == [0, 16, 32]
    assert buffers.sent.numel() == 2 * buffers.summed.numel() == 64


def test_time_that_the_whole_machine_slept_counts_as_a_second() -> None:
    """Else every rank would take all others for lost when a machine wakes up."""
    now = [0.0]
    silence = SilentTime(lambda: now[0])
    for now[0], value in [(0.0, b"1"), (0.5, b"1"), (600.0, b"1")]:
        silence.look(value)

    assert silence.seconds == 1.5
    silence.look(b"2")
    assert silence.seconds == 0.0


class Store:
    """A store of rank 1's view: rank 0 says what it is told to."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {"beat/0": b"1", "left/0": PRESENT.encode()}

    def set(self, key: str, value: str) -> None:
        """Keep a value."""
        self.values[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Return values."""
        return [self.values[key] for key in keys]


class Never:
    """An operation that never ends."""

    def is_completed(self) -> bool:
        """Tell that it has not."""
        return False

    def wait(self) -> Any:
        """Fail the test."""
        raise AssertionError


def waiter_of_rank_1(store: Store, flag: PreemptionFlag, now: list[float]) -> Waiter:
    """Return a waiter whose watch looks at the store in every pause of half a second."""
    watch = Watch(store, rank=1, size=2, clock=lambda: now[0])

    def sleep(_seconds: float) -> None:
        now[0] += 0.5
        watch._poll()

    return Waiter(watch, flag, clock=lambda: now[0], sleep=sleep)


@pytest.mark.parametrize(
    ("left", "error"), [("notice:12.0", Preempted), ("failed: KeyError", PeerLost)]
)
def test_a_wait_ends_when_another_rank_says_that_it_leaves(left: str, error: type) -> None:
    """A notice is passed on with the time that it leaves; anything else is a loss."""
    now, store = [100.0], Store()
    flag = PreemptionFlag(lambda: now[0])
    store.set("left/0", left)
    with pytest.raises(error) as caught:
        waiter_of_rank_1(store, flag, now).wait([Never()])

    assert type(caught.value) is error
    assert now[0] < 102
    assert (flag.seconds_left == 12.0) == (error is Preempted)


@pytest.mark.parametrize(("notices", "within_s"), [(0, 17), (1, 5)])
def test_a_silent_rank_is_waited_for_less_long_once_there_is_a_notice(
    notices: int, within_s: int
) -> None:
    """Up to 15 s without, 3 s with one."""
    now = [100.0]
    flag = PreemptionFlag(lambda: now[0])
    for _ in range(notices):
        flag.set(seconds_left=60, reason="test")
    with pytest.raises(PeerLost, match="card 0 has been silent"):
        waiter_of_rank_1(Store(), flag, now).wait([Never()])

    assert within_s - 3 < now[0] - 100 <= within_s


def test_a_wait_ends_before_the_time_of_a_notice_does() -> None:
    """The rank needs the last seconds to save, even if all others are alive."""
    now = [100.0]
    flag = PreemptionFlag(lambda: now[0])
    flag.set(seconds_left=6, reason="test")
    with pytest.raises(Preempted):
        waiter_of_rank_1(Store(), flag, now).wait([Never()])

    assert now[0] < 103


def test_one_process_alone_computes_no_digest_and_loads_nothing_of_the_exchange() -> None:
    """Its flag is all that it looks at, and the loop imports no file that joins processes."""
    flag = PreemptionFlag(lambda: 0.0)

    def never() -> int:
        raise AssertionError

    assert ALONE.compare(1, flag=flag, digest=never) is False
    flag.set(seconds_left=1, reason="test")
    assert ALONE.compare(1, flag=flag, digest=never) is True
    program = """
import sys, trainer.job.stages
joins = ("exchange", "joined", "shard", "waiting", "words")
print(*(one for one in joins if f"trainer.group.{one}" in sys.modules))
"""
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []
