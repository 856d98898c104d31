"""Predicts which safeguards an account can set, by looking only; what it cannot see is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from infra.aws import safeguard_texts as texts
from infra.aws.alarm import Alarms, alarm_times
from infra.aws.context import AwsContext
from infra.aws.safeguard_times import ScheduleTimes, request_expiry_s, schedule_times
from infra.aws.schedules import Schedules, role_exists
from infra.catalog.aws import AWS, disk_usd_per_h
from infra.errors import ProviderError
from infra.offer import Want
from infra.provider import Safeguard
from infra.renting.gather import run_all

NO_RUN = "-"
"""The run whose schedules are listed: none has that name, and the right to list is what counts."""


@dataclass(frozen=True, kw_only=True)
class SafeguardPreview:
    """Looks at what may be set; creates nothing."""

    context: AwsContext

    def predict(self, want: Want, *, until_s: float, disk_days: float | None) -> list[Safeguard]:
        """Predict the safeguards of a machine rented now; never raises.

        Waits for AWS's answers for `offers_wait_s` at most.
        """
        now_s = self.context.clock()
        expires_s = request_expiry_s(until_s)
        times = schedule_times(
            now_s=now_s, until_s=until_s, expires_s=expires_s, disk_days=disk_days
        )
        idle_usd_per_h = disk_usd_per_h(want.disk_gb)
        scheduled, alarm = self._account_safeguards(want, times, now_s=now_s, until_s=until_s)
        found = [
            texts.price_cap(want.max_price_usd_per_h),
            texts.spot_request(expires_s, until_s=until_s),
            scheduled,
            *([] if scheduled.is_set else [alarm]),
            texts.self_release(until_s),
            texts.disk(times if scheduled.is_set else None, usd_per_day=idle_usd_per_h * 24),
        ]
        return texts.finished(
            found,
            now_s=now_s,
            price_max=want.max_price_usd_per_h
            or AWS.on_demand_max(gpu=want.gpu, gpu_count=want.gpu_count),
            idle_usd_per_h=idle_usd_per_h,
        )

    def _account_safeguards(
        self, want: Want, times: ScheduleTimes, *, now_s: float, until_s: float
    ) -> tuple[Safeguard, Safeguard]:
        """Schedules and alarm, as far as the account's answers came in time."""
        region = next(iter(want.regions), AWS.regions[0])
        role, schedules, alarms = _Answer(), _Answer(), _Answer()
        run_all(
            [
                lambda: role.take(lambda: role_exists(self.context)),
                lambda: schedules.take(
                    lambda: Schedules(context=self.context).names(NO_RUN, region)
                ),
                lambda: alarms.take(lambda: Alarms(context=self.context).names(NO_RUN, region)),
            ],
            [],
            wait_s=self.context.settings.offers_wait_s,
        )
        return self._schedules(role, schedules, times), _alarm(alarms, now_s, until_s)

    def _schedules(self, role: _Answer, schedules: _Answer, times: ScheduleTimes) -> Safeguard:
        if role.value is False:
            detail = texts.NO_ROLE.format(self.context.settings.schedule_role)
            return Safeguard(name=texts.SCHEDULES, is_set=False, detail=detail, hint=texts.DOCTOR)
        if role.value is True and schedules.value is not None:
            return texts.schedules(times, is_set=False)
        why: object = role.error or schedules.error
        if why is None and role.has_come and schedules.has_come:
            why = "this account may not look at the role that EventBridge Scheduler takes"
        return texts.unlisted(texts.SCHEDULES, why or NOT_ANSWERED, texts.DOCTOR)


NOT_ANSWERED = "AWS did not answer in time what this account may do"


def _alarm(alarms: _Answer, now_s: float, until_s: float) -> Safeguard:
    times = alarm_times(made_at_s=now_s, until_s=until_s)
    if alarms.value is None:
        return texts.unlisted(texts.ALARM, alarms.error or NOT_ANSWERED, texts.DOCTOR)
    if times is None:
        detail = "no alarm looks further ahead than seven days"
        return Safeguard(name=texts.ALARM, is_set=False, detail=detail)
    return texts.alarm(times, is_set=False)


@dataclass
class _Answer:
    """The answer to one look, if it has come."""

    value: object = None
    error: ProviderError | None = None
    has_come: bool = field(default=False)

    def take(self, look: Callable[[], object]) -> None:
        """Look; what is refused is an answer, too."""
        try:
            self.value = look()
        except ProviderError as error:
            self.error = error
        self.has_come = True
