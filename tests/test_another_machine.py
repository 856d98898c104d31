"""Terms that a machine cannot get any more take another one, once its checkpoint is home."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from support.fakecloud import FakeCloud
from support.fakeclouds import TwoCloudStory

from commands.ui.snapshot import take_snapshot
from infra.errors import NeverStarts
from infra.offer import Offer, Want
from infra.provider import Safeguard, StopReason, Traits, Vm, VmSpec
from infra.run import actions as act
from infra.run.budget import Bill, Budget
from infra.run.cards import with_other_cards_blocked
from infra.run.context import TurnReport
from infra.run.decide import Seen
from infra.run.fold import fold
from infra.run.journal import Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.run.replacement import LEAD_S, reason_for_another
from infra.run.state import RunState
from infra.timestamps import format_utc

HOUR_S = 3600.0


@dataclass
class FixedTermsCloud(FakeCloud):
    """A cloud that fixes the cap and the latest limit of a machine when it is made."""

    caps: dict[str, float | None] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    down_for_good: set[str] = field(default_factory=set)
    """Machines that nothing starts any more."""

    def create(self, spec: VmSpec) -> Vm:
        """Make the machine under the cap of now, to be held to an hour after its limit."""
        made = super().create(spec)
        vm = replace(made, created_at=format_utc(self.world.now_s))
        self.caps.setdefault(vm.id, spec.max_price_usd_per_h)
        if spec.until_s is not None:
            self.latest.setdefault(vm.id, spec.until_s + HOUR_S)
        return vm

    def update_max_price(self, vm: Vm, max_price_usd_per_h: float | None) -> float | None:
        """Return the cap in force, which nothing changes."""
        del max_price_usd_per_h
        self._hiccup()
        if vm.id in self.down_for_good:
            raise NeverStarts(f"`{vm.id}` never starts again: its spot request has ended")
        return self.caps[vm.id]

    def set_safeguards(
        self, vm: Vm, *, until_s: float, disk_days: float | None = None
    ) -> list[Safeguard]:
        """Hold the machine to its request's end."""
        del disk_days
        latest_s = self.latest.get(vm.id)
        is_set = latest_s is None or until_s <= latest_s
        return [Safeguard(name="request", is_set=is_set, detail="ends", latest_limit_s=latest_s)]


@pytest.fixture
def story(tmp_path: Path) -> TwoCloudStory:
    """A run on one cloud of fixed terms, with a cap of 0.20 USD/h and a budget of ten hours."""
    made = TwoCloudStory(path=tmp_path / "journal.jsonl", order=("aws",))
    cloud = FixedTermsCloud(world=made.world, name="aws", regions=("a", "c"), card="T4")
    cloud.traits = Traits(rents=True, evicts=True, has_safeguards=True, cap_changes=False)
    made.aws = made.cloud = made.work.cloud = made.clouds["aws"] = cloud
    made.want = Want(max_price_usd_per_h=0.20)
    made.plan = RunPlan(goal=Goal.RUN, has_safeguards=True, budget=Budget(hours=10))
    return made


def interrupt_at(story: TwoCloudStory, step: int) -> None:
    """Kill the driver when the checkpoint of a step is at home, as Ctrl-C would."""

    def interrupt() -> None:
        if story.work.home >= step:
            story.between = lambda: None
            raise KeyboardInterrupt

    story.between = interrupt
    with pytest.raises(KeyboardInterrupt):
        story.go()


def test_another_cap_takes_another_machine_after_the_checkpoint_is_home(
    story: TwoCloudStory,
) -> None:
    """A running machine whose cap cannot change is saved, removed, and rented anew at once."""
    interrupt_at(story, 20)
    story.want = Want(max_price_usd_per_h=0.30)

    assert story.go().outcome is Outcome.DONE

    assert story.aws.log == ["create a", "delete", "create a", "delete"]
    assert list(story.aws.caps.values()) == [0.20, 0.30]  # type: ignore[attr-defined]
    reasons = [one.data["reason"] for one in read(story.path) if one.kind is Kind.DELETE_INTENDED]
    assert reasons[0] == (
        "the machine's price cap is 0.2 USD/h, and 0.3 USD/h is asked for: aws fixes it when the"
        " machine is made"
    )
    assert fold(read(story.path)).step == 50
    assert story.work.launches == 2


def test_the_same_cap_keeps_the_machine(story: TwoCloudStory) -> None:
    """Going on with the run as it is takes no other machine."""
    interrupt_at(story, 20)

    assert story.go().outcome is Outcome.DONE
    assert story.aws.log == ["create a", "delete"]


@pytest.mark.parametrize(
    ("cap", "log"),
    [
        (0.30, ["start a", "delete", "create a", "delete"]),
        (0.10, ["delete", "create a", "delete"]),
    ],
)
def test_a_machine_that_is_down_is_started_once_more_only_under_a_lower_cap(
    story: TwoCloudStory, cap: float, log: list[str]
) -> None:
    """Work on its disk is brought home first, unless that would cost more than the new cap."""
    interrupt_at(story, 20)
    (vm,) = story.aws.vms.values()
    story.world.sleep(5)
    story.aws.progress(vm).saved = 25  # saved on its disk, and not at home
    story.aws._halt(vm, StopReason.EVICTED)
    journal = story.journal()
    journal.append(Kind.PROGRESS, step=25, steps=50)
    before = len(story.aws.log)
    story.want = Want(max_price_usd_per_h=cap)

    assert story.go().outcome is Outcome.DONE
    assert story.aws.log[before:] == log


def test_a_machine_that_never_starts_again_is_replaced_in_its_only_place(
    story: TwoCloudStory,
) -> None:
    """Where one place is on offer, it is removed and rented anew there, not tried for ever."""
    cloud = story.aws
    assert isinstance(cloud, FixedTermsCloud)
    cloud.regions = ("a",)
    interrupt_at(story, 20)
    (vm,) = cloud.vms.values()
    cloud._halt(vm, StopReason.EVICTED)
    cloud.down_for_good.add(vm.id)

    assert story.go().outcome is Outcome.DONE
    assert cloud.log == ["create a", "delete", "create a", "delete"]


def test_a_trained_machine_that_never_starts_again_is_left_to_a_person(
    story: TwoCloudStory,
) -> None:
    """Its disk may hold an adapter that is not home: nothing of ours removes it."""
    cloud = story.aws
    assert isinstance(cloud, FixedTermsCloud)
    interrupt_at(story, 20)
    (vm,) = cloud.vms.values()
    story.journal().append(Kind.TRAINED)
    cloud._halt(vm, StopReason.EVICTED)
    cloud.down_for_good.add(vm.id)

    with pytest.raises(NeverStarts):
        story.go()
    assert cloud.log == ["create a"]


def test_a_budget_raised_past_the_end_of_the_request_takes_another_machine(
    story: TwoCloudStory,
) -> None:
    """A machine that cannot be held to the new limit is replaced, its checkpoint home."""
    interrupt_at(story, 20)
    story.plan = replace(story.plan, budget=Budget(hours=20))

    assert story.go().outcome is Outcome.DONE
    assert story.aws.log == ["create a", "delete", "create a", "delete"]
    assert any("can be held to" in one.data.get("reason", "") for one in read(story.path))


def test_a_budget_raised_within_the_request_keeps_the_machine(story: TwoCloudStory) -> None:
    """Half an hour more is within what the machine can be held to."""
    interrupt_at(story, 20)
    story.plan = replace(story.plan, budget=Budget(hours=10.5))

    assert story.go().outcome is Outcome.DONE
    assert story.aws.log == ["create a", "delete"]


def test_a_limit_that_moves_on_by_itself_keeps_the_machine_until_shortly_before_its_end() -> None:
    """A price below the cap makes the budget last longer: that alone replaces nothing early."""
    made_s, latest_s = 1_000_000.0, 1_000_000.0 + 11 * HOUR_S
    vm = Vm(provider="aws", run_id="r", id="i", region="a", size="s", created_at=format_utc(made_s))
    state = RunState(vm=vm, latest_limit_s=latest_s, safeguards_until_s=latest_s + HOUR_S)

    assert reason_for_another(state, made_s + 5 * HOUR_S) == ""
    assert reason_for_another(state, latest_s - LEAD_S) != ""
    assert reason_for_another(state, made_s + 0.5 * HOUR_S) != ""
    within = replace(state, safeguards_until_s=latest_s)
    assert reason_for_another(within, latest_s - LEAD_S) == ""


def test_a_machine_whose_request_has_ended_is_not_started_again(story: TwoCloudStory) -> None:
    """Down until after its latest limit, it is removed, and another one goes on from home."""
    story.plan = replace(story.plan, budget=Budget(hours=10))
    interrupt_at(story, 20)
    (vm,) = story.aws.vms.values()
    story.aws._halt(vm, StopReason.EVICTED)
    story.world.sleep(12 * HOUR_S)
    journal = story.journal()
    journal.append(
        Kind.STOP_SEEN,
        power="deallocated",
        reason="evicted",
        detail="",
        since_s=story.world.now_s - 12 * HOUR_S,
        step=20,
        ran=True,
    )

    assert story.go().outcome is Outcome.DONE
    assert story.aws.log == ["create a", "delete", "create a", "delete"]


T4 = Offer(provider="azure", region="a", size="s", gpu="T4", spot_usd_per_h=0.1)
A10G = Offer(provider="aws", region="b", size="t", gpu="A10G", spot_usd_per_h=0.1)
TRAINED = RunState(offer=T4, cards=("T4",), home_step=10, starts=1)


@pytest.mark.parametrize(
    ("want", "blocked"),
    [
        (Want(), False),
        (Want(gpu="T4"), True),
        (Want(gpus=("T4", "A10G")), False),
        (Want(gpus=("L4", "A10G")), True),
    ],
)
def test_another_card_is_blocked_unless_any_will_do_or_both_are_named(
    want: Want, *, blocked: bool
) -> None:
    """A run that was trained on a T4 goes on with an A10G only if its user lets it."""
    same, other = with_other_cards_blocked([T4, A10G], TRAINED, want)

    assert same.blocked_by == ""
    assert bool(other.blocked_by) is blocked
    assert not blocked or "`vm.gpu: [T4, A10G]`" in other.blocked_by


def test_before_anything_is_trained_any_card_may_be_taken() -> None:
    """What began nowhere has no card to stay on."""
    begun = replace(TRAINED, cards=(), home_step=0)

    assert with_other_cards_blocked([A10G], begun, Want(gpu="T4")) == (A10G,)


def test_a_move_to_another_card_says_that_it_is_not_bit_for_bit() -> None:
    """The line of the run names the clouds and the card."""
    report = TurnReport(
        state=TRAINED,
        seen=Seen(),
        action=act.Create(offer=A10G, generation=2),
        bill=Bill(usd=0, compute_h=0, idle_h=0, usd_per_h_now=0),
        now_s=0,
    )

    assert take_snapshot(report, simulated=False).phase == (
        "renting t in b at $0.100/h, from azure to aws; another card (T4 before): not bit for bit"
    )


def test_the_cards_of_a_run_are_in_its_state(tmp_path: Path) -> None:
    """A run with any card that moves to the other cloud's has both in its record."""
    story = TwoCloudStory(path=tmp_path / "journal.jsonl")
    story.azure.usd_per_h, story.aws.usd_per_h, story.aws.card = 0.1, 0.2, "A10G"
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))

    def fill() -> None:
        if "evict" in story.azure.log:
            story.azure.full = {"a", "b"}

    story.between = fill

    assert story.go().outcome is Outcome.DONE
    assert fold(read(story.path)).cards == ("T4", "A10G")


def test_a_run_that_may_not_change_its_card_ends_with_the_reason(tmp_path: Path) -> None:
    """With one card named, the other cloud's other card is refused, and the line says why."""
    story = TwoCloudStory(path=tmp_path / "journal.jsonl", want=Want(gpu="T4"))
    story.azure.usd_per_h, story.aws.usd_per_h, story.aws.card = 0.1, 0.2, "A10G"
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))

    def lose() -> None:
        if "evict" in story.azure.log:
            story.azure.no_quota = {"a", "b"}

    story.between = lose
    ending = story.go()

    assert ending.outcome is Outcome.CLOUD_REFUSED
    assert "not bit for bit" in ending.reason
    assert story.aws.log == []
