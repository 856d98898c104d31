"""What services that train by the token ask for the same rows: one dated table, looked up by hand.

They train a LoRA adapter on their own machines and bill each token of each epoch. A row says from
which page its prices are and on which day they stood there. OpenAI is left out: its page says that
fine-tuning closes to new customers.
"""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 1e6
BILLION = 1e9


@dataclass(frozen=True, kw_only=True)
class Tier:
    """The price of bases up to one size, USD per million trained tokens."""

    parameters_max: float
    usd: float
    """Of supervised fine-tuning, a LoRA adapter."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service, with the page and the day of its prices."""

    name: str
    page: str
    seen: str
    """ISO 8601."""
    tiers: tuple[Tier, ...]
    """The smallest bases first."""
    minimum_usd: float = 0.0
    """What a job costs at least."""


SERVICES = (
    Service(
        name="Together",
        page="together.ai/pricing; docs.together.ai on fine-tuning: no minimum",
        seen="2026-02-13",
        tiers=(
            Tier(parameters_max=16 * BILLION, usd=0.48),
            Tier(parameters_max=69 * BILLION, usd=1.50),
            Tier(parameters_max=100 * BILLION, usd=2.90),
        ),
    ),
    Service(
        name="Fireworks",
        page="fireworks.ai/pricing",
        seen="2026-06-30",
        tiers=(
            Tier(parameters_max=16 * BILLION, usd=0.50),
            Tier(parameters_max=80 * BILLION, usd=3.00),
            Tier(parameters_max=300 * BILLION, usd=6.00),
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class ServiceCost:
    """What one service asks for the job."""

    name: str
    usd: float
    seen: str
    page: str


def service_costs(
    parameters: float | None,
    tokens: float | None,
    *,
    services: tuple[Service, ...] = SERVICES,
) -> tuple[ServiceCost, ...]:
    """Return what each service that takes a base of that size asks for so many trained tokens.

    Empty if the size or the tokens are not known. Whether a service offers the very base, only its
    own list says.
    """
    if not parameters or not tokens:
        return ()
    found = []
    for service in services:
        tier = next((one for one in service.tiers if parameters <= one.parameters_max), None)
        if tier is not None:
            usd = max(tokens / MILLION * tier.usd, service.minimum_usd)
            found.append(
                ServiceCost(name=service.name, usd=usd, seen=service.seen, page=service.page)
            )
    return tuple(found)
