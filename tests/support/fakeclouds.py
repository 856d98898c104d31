"""Two spot clouds made of plain values, and one run that may rent from either of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from infra.offer import Offer, Want
from infra.provider import Provider, Vm
from infra.run.context import RunContext, TurnReport
from infra.run.journal import Kind, read
from infra.run.providers_used import providers_used
from infra.run.state import RunEnd
from infra.run.supervisor import Supervisor
from infra.several import SeveralProviders
from support.fakecloud import FakeCloud, FakeWorkload, Story, spec_of


@dataclass
class TravellingWorkload(FakeWorkload):
    """Trains on the machines of whichever cloud has one."""

    clouds: dict[str, FakeCloud] = field(default_factory=dict)

    def connect(self, vm: Vm) -> None:
        """Answer from the machine's own cloud."""
        self.cloud = self.clouds[vm.provider]
        super().connect(vm)


@dataclass
class TwoCloudStory(Story):
    """A run over `azure` (regions a and b) and `aws` (regions a and c), both of plain values."""

    order: tuple[str, ...] = ("azure", "aws")
    want: Want = field(default_factory=Want)
    reasons: list[str] = field(default_factory=list)
    """What was waited for, each change once."""

    def __post_init__(self) -> None:
        self.azure = FakeCloud(world=self.world, name="azure", card="T4")
        self.aws = FakeCloud(world=self.world, name="aws", regions=("a", "c"), card="T4")
        self.cloud = self.azure
        self.clouds = {"azure": self.azure, "aws": self.aws}
        self.work: TravellingWorkload = TravellingWorkload(
            world=self.world, cloud=self.azure, clouds=self.clouds
        )

    def on_turn(self, report: TurnReport) -> None:
        """Keep what is waited for, too."""
        reason = getattr(report.action, "reason", "")
        if reason and reason not in self.reasons:
            self.reasons.append(reason)
        super().on_turn(report)

    def used_by(self, run_id: str) -> set[str] | None:
        """The clouds that the journal names, as the commands find them."""
        del run_id
        return providers_used(read(self.path))

    def provider(self) -> Provider:
        """Both clouds as one, as a new process makes them."""
        return SeveralProviders(
            [self.clouds[name] for name in self.order], used_by=self.used_by, offers_wait_s=10.0
        )

    def go(self) -> RunEnd:
        """Drive the run until it ends or the process is killed."""
        journal = self.journal()
        if not journal.events:
            journal.append(Kind.RUN_STARTED, run_id="run-1", name="run")
        else:
            journal.append(Kind.RUN_RESUMED, changed=False)
        context = RunContext(
            provider=self.provider(),
            workload=self.work,
            journal=journal,
            make_spec=lambda offer, generation: replace(
                spec_of(offer, generation), max_price_usd_per_h=self.want.max_price_usd_per_h
            ),
            want=self.want,
            clock=self.world.clock,
            sleep=self.world.sleep,
            on_turn=self.on_turn,
            order=by_price,
        )
        plan = replace(self.plan, policy=self.policy, several_providers=len(self.order) > 1)
        return Supervisor(context).run(plan)

    @property
    def most_alive(self) -> int:
        """The most machines that ran at once, at least as far as each cloud counts."""
        return max(one.most_alive for one in self.clouds.values())


def by_price(offers: object) -> list[Offer]:
    """The cheapest first; equal ones stay in order."""
    assert isinstance(offers, list)
    return sorted(offers, key=lambda one: one.spot_usd_per_h)
