"""Several providers behave as one: the cheapest place first, moves between clouds, no remnants."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.fakecloud import FakeCloud, Killed, World, spec_of
from support.fakeclouds import TwoCloudStory

from infra.errors import NotAllowed, SignedOut, Transient
from infra.offer import Offer, Want
from infra.provider import OnMessage, PowerState, Removed, Traits, Vm, ignore_message
from infra.run.fold import fold
from infra.run.journal import Kind, Outcome, read
from infra.run.plan import Goal, RunPlan
from infra.several import SeveralProviders


@pytest.fixture
def story(tmp_path: Path) -> TwoCloudStory:
    """A run of 50 steps over two clouds, Azure the cheaper one."""
    made = TwoCloudStory(path=tmp_path / "journal.jsonl")
    made.azure.usd_per_h, made.aws.usd_per_h = 0.15, 0.20
    return made


def two(world: World) -> tuple[FakeCloud, FakeCloud]:
    """Two clouds with a region of the same name."""
    return (
        FakeCloud(world=world, name="azure"),
        FakeCloud(world=world, name="aws", regions=("a", "c")),
    )


def offer_at(provider: Offer | FakeCloud, region: str) -> Offer:
    """An offer of one cloud."""
    return Offer(provider=provider.name, region=region, size="small", spot_usd_per_h=0.2)  # type: ignore[union-attr]


def test_the_cheapest_cloud_is_rented_from_and_the_other_left_alone(
    story: TwoCloudStory,
) -> None:
    """An undisturbed run has one machine, where it is cheapest; the other cloud has nothing."""
    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert (story.azure.log, story.aws.log) == (["create a", "delete"], [])


def test_a_run_moves_to_the_other_cloud_with_the_checkpoint_at_home(story: TwoCloudStory) -> None:
    """Evicted, with both its regions full, it is deleted there and goes on in the other cloud."""
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))

    def fill() -> None:
        if "evict" in story.azure.log:
            story.azure.full = {"a", "b"}

    story.between = fill

    ending = story.go()

    state = fold(read(story.path))
    assert ending.outcome is Outcome.DONE
    assert story.azure.log == ["create a", "evict", "delete"]
    assert story.aws.log == ["create a", "delete"]
    assert (state.evictions, state.starts) == (1, 2)
    assert story.work.launches == 2
    assert {str(one.data["offer"]["provider"]) for one in read(story.path)
            if one.kind is Kind.CREATE_INTENDED} == {"azure", "aws"}  # fmt: skip


def test_a_refusal_counts_for_its_own_cloud_only(story: TwoCloudStory) -> None:
    """A region that is full in one cloud says nothing of the region of that name in the other."""
    story.azure.full = {"a", "b"}

    story.go()

    assert story.aws.log == ["create a", "delete"]


def test_no_quota_in_one_cloud_says_nothing_of_the_other(story: TwoCloudStory) -> None:
    """Quota is a pool of one account."""
    story.azure.no_quota = {"a", "b"}

    assert story.go().outcome is Outcome.DONE
    assert story.aws.log == ["create a", "delete"]


def test_one_cloud_signed_out_leaves_the_other(story: TwoCloudStory) -> None:
    """Nobody is signed in to the cheaper cloud: that is told, and the other one does the work."""
    story.azure.signed_out = True

    ending = story.go()

    assert ending.outcome is Outcome.DONE
    assert story.aws.log == ["create a", "delete"]
    assert any("azure could not be asked" in one for one in story.reasons)


def test_both_clouds_signed_out_ends_as_with_one(story: TwoCloudStory) -> None:
    """With nobody left to ask, the error of the first comes through."""
    story.azure.signed_out = story.aws.signed_out = True

    with pytest.raises(SignedOut, match="azure"):
        story.go()


def test_a_create_that_one_cloud_forbids_goes_on_in_the_other(story: TwoCloudStory) -> None:
    """A create that is forbidden in one cloud is not tried again there; the other one is."""

    def create(spec: object) -> Vm:
        del spec
        story.azure.log.append("denied")
        raise NotAllowed("a policy forbids it")

    story.azure.create = create  # type: ignore[method-assign]

    assert story.go().outcome is Outcome.DONE
    assert story.azure.log == ["denied"]
    assert story.aws.log == ["create a", "delete"]


@pytest.mark.parametrize("order", [("azure", "aws"), ("aws", "azure")])
def test_at_the_same_price_the_order_of_the_list_decides(
    story: TwoCloudStory, order: tuple[str, ...]
) -> None:
    """The provider that run.yaml names first is tried first where the job costs the same."""
    story.order = order
    story.azure.usd_per_h = story.aws.usd_per_h

    story.go()

    assert story.clouds[order[0]].log == ["create a", "delete"]


def test_killed_at_any_moment_a_move_rents_one_machine_at_a_time(tmp_path: Path) -> None:
    """Whenever the process dies, the same command goes on: never two machines, nothing left."""
    moments = _moments(tmp_path / "count")
    for kill_at in range(1, moments + 1, 3):
        story = _moving(tmp_path / f"{kill_at}.jsonl")
        story.world.kill_at = kill_at
        with pytest.raises(Killed):
            story.go()
        story.world.kill_at = None

        assert story.go().outcome is Outcome.DONE
        assert (story.azure.vms, story.aws.vms) == ({}, {})
        assert story.most_alive == 1
        assert not (story.azure.vms and story.aws.vms)


def _moving(path: Path) -> TwoCloudStory:
    story = TwoCloudStory(path=path)
    story.azure.usd_per_h = 0.1
    story.plan = RunPlan(goal=Goal.RUN, rehearse_evictions=(25,))

    def fill() -> None:
        if "evict" in story.azure.log:
            story.azure.full = {"a", "b"}
        alive = [vm for cloud in story.clouds.values() for vm in cloud.vms.values()]
        assert len(alive) <= 1

    story.between = fill
    return story


def _moments(path: Path) -> int:
    story = _moving(path)
    story.go()
    return story.world.moments


def test_what_a_run_has_in_both_clouds_is_removed_in_both() -> None:
    """Without a record of where it rented, every cloud is asked, and one failure hides no other."""
    world = World()
    azure, aws = two(world)
    both = SeveralProviders([azure, aws])
    azure.create(spec_of(offer_at(azure, "a"), 1))
    aws.create(spec_of(offer_at(aws, "a"), 1))

    azure.signed_out = True
    with pytest.raises(SignedOut):
        both.delete("run-1")
    assert aws.vms == {}
    azure.signed_out = False

    assert [one.id for one in both.delete("run-1")] == ["azure1"]
    assert both.list_run("run-1") == []


@dataclass
class RefusingCloud(FakeCloud):
    """A cloud that keeps for which runs it cancelled what refused creates had left open."""

    cancelled: list[str] = field(default_factory=list)

    def cancel_refused(self, run_id: str) -> None:
        """Cancel it, if somebody is signed in."""
        self._hiccup()
        self.cancelled.append(run_id)


def test_what_refused_creates_left_open_is_cancelled_in_both() -> None:
    """One failure hides no other."""
    azure, aws = (RefusingCloud(world=World(), name=name) for name in ("azure", "aws"))
    azure.signed_out = True

    with pytest.raises(SignedOut):
        SeveralProviders([azure, aws]).cancel_refused("run-1")

    assert aws.cancelled == ["run-1"]


def test_what_a_refused_create_left_open_goes_before_another_cloud_is_rented_from() -> None:
    """Nobody may look there for hours; at the end it is looked at again, removed or not."""
    azure, aws = (RefusingCloud(world=World(), name=name) for name in ("azure", "aws"))
    both = SeveralProviders([azure, aws], used_by=lambda _run_id: {"azure"})

    both.create(spec_of(offer_at(azure, "a"), 1))
    assert (azure.cancelled, aws.cancelled) == ([], ["run-1"])

    both.delete("run-1")
    assert (azure.cancelled, aws.cancelled) == ([], ["run-1", "run-1"])


def test_a_cloud_that_a_run_never_used_need_not_answer_about_it() -> None:
    """Where the journal says that a run never rented, nobody has to be signed in to end it."""
    world = World()
    azure, aws = two(world)
    azure.signed_out = True
    both = SeveralProviders([azure, aws], used_by=lambda _run_id: {"aws"})
    aws.create(spec_of(offer_at(aws, "c"), 1))

    assert len(both.list_run("run-1")) == 1
    assert len(both.delete("run-1")) == 1
    with pytest.raises(SignedOut):
        both.list_all()


def test_a_cloud_whose_offers_come_late_is_left_out_and_named() -> None:
    """The others' offers are not held up, and the late one is asked once at a time."""
    world = World()
    azure, aws = two(world)
    answer = threading.Event()
    requests: list[int] = []

    def late(want: Want) -> list[Offer]:
        requests.append(1)
        answer.wait(30)
        return FakeCloud.offers(azure, want)

    azure.offers = late  # type: ignore[method-assign]
    both = SeveralProviders([azure, aws], offers_wait_s=0.05)

    assert {one.provider for one in both.offers(Want()) if not one.blocked_by} == {"aws"}
    assert isinstance(both.unanswered()["azure"], Transient)
    both.offers(Want())
    assert len(requests) == 1
    answer.set()


def test_each_machine_is_observed_where_it_is() -> None:
    """Two machines of the same region name are told apart by their provider."""
    world = World()
    azure, aws = two(world)
    both = SeveralProviders([azure, aws])
    first, second = both.create(spec_of(offer_at(azure, "a"), 1)), both.create(
        spec_of(offer_at(aws, "a"), 1)
    )  # fmt: skip
    both.deallocate(first)

    assert both.observe(first).power is PowerState.DEALLOCATED
    assert both.observe(second).power is PowerState.RUNNING
    assert {vm.id for vm in both.list_all()} == {"azure1", "aws1"}


def test_a_machine_of_a_provider_that_is_not_listed_is_refused_by_name() -> None:
    """Nobody is asked about a machine that is another one's; the message says what to add."""
    azure, aws = two(World())
    stranger = Vm(provider="local", run_id="r", id="x", region="a", size="small")

    with pytest.raises(NotAllowed, match="at `local`"):
        SeveralProviders([azure, aws]).observe(stranger)


def test_traits_are_those_of_the_machines_own_provider() -> None:
    """What differs between the members is asked of the machine's own."""
    azure, aws = two(World())
    aws.traits = Traits(rents=True, evicts=True, cap_changes=False, capacity_ttl_s=180.0)
    both = SeveralProviders([azure, aws])
    vm = aws.create(spec_of(offer_at(aws, "a"), 1))

    assert both.traits_of(vm).cap_changes is False
    assert both.traits.cap_changes is False
    assert both.capacity_ttls_s() == {"aws": 180.0}


@dataclass
class CloudOfSeveral(FakeCloud):
    """A cloud that keeps which single machines it removed."""

    removed: list[str] = field(default_factory=list)

    def remove(self, vm: Vm, on_message: OnMessage = ignore_message) -> list[Removed]:
        """Remove one machine."""
        del on_message
        self.vms.pop(vm.run_id)
        self.removed.append(vm.id)
        return [Removed(kind="machine", id=vm.id)]


def test_one_machine_is_removed_at_its_own_provider_and_the_others_of_its_run_stay() -> None:
    """What the run has elsewhere, and at the same provider, goes on."""
    azure, aws = (CloudOfSeveral(world=World(), name=name) for name in ("azure", "aws"))
    both = SeveralProviders([azure, aws])
    stays = azure.create(spec_of(offer_at(azure, "a"), 1))
    goes = aws.create(spec_of(offer_at(aws, "a"), 1))

    assert [one.id for one in both.remove(goes)] == [goes.id]
    assert (azure.removed, aws.removed) == ([], [goes.id])
    assert [vm.id for vm in both.list_run("run-1")] == [stays.id]


def test_a_run_may_have_several_machines_only_if_every_provider_has_them() -> None:
    """Which one will be rented from is not known before."""
    azure, aws = two(World())
    azure.traits = Traits(rents=True, evicts=True, several_machines=True)
    assert not SeveralProviders([azure, aws]).traits.several_machines

    aws.traits = azure.traits
    assert SeveralProviders([azure, aws]).traits.several_machines


def test_only_the_named_cards_are_offered() -> None:
    """With several cards named, offers of others are left out."""
    azure, aws = two(World())
    azure.card, aws.card = "T4", "A100"
    both = SeveralProviders([azure, aws])

    assert {one.gpu for one in both.offers(Want(gpus=("T4", "A10")))} == {"T4"}
