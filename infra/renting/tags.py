"""Tags a rented machine, so that it is found again with every local file lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from infra.errors import BadRequest
from infra.provider import PowerState, Vm, VmSpec

RUN = "qft-run"
GENERATION = "qft-generation"
CREATED = "qft-created"
ZONE = "qft-zone"
TAG_VALUE_CHARS_MAX = 256
LABELS_MAX = 20


def tags_of(
    spec: VmSpec, *, created_at: str, idle_usd_per_h: float, name_chars_max: int
) -> dict[str, str]:
    """Build the tags that every part carries: enough to list, reach and remove the machine.

    Holds public facts only; `name_chars_max` is the vendor's limit of a tag's name. Raises
    `BadRequest` for a label that no tag can hold.
    """
    tags = {
        RUN: spec.run_id,
        GENERATION: str(spec.generation),
        CREATED: created_at,
        "qft-region": spec.offer.region,
        ZONE: spec.offer.zone,
        "qft-size": spec.offer.size,
        "qft-user": spec.user,
        "qft-host-key": spec.host_public_key.strip(),
        "qft-cap": "" if spec.max_price_usd_per_h is None else f"{spec.max_price_usd_per_h:.5f}",
        "qft-price": f"{spec.offer.spot_usd_per_h:.6f}",
        "qft-idle": f"{idle_usd_per_h:.6f}",
    }
    for name, value in sorted(spec.labels.items())[:LABELS_MAX]:
        tags[f"qft-label-{re.sub('[<>%&?/]', '-', name)}"[:name_chars_max]] = value
    for name, value in tags.items():
        if len(value) > TAG_VALUE_CHARS_MAX:
            raise BadRequest(f"the tag `{name}` is longer than {TAG_VALUE_CHARS_MAX} characters")
    return tags


def lower_case_names(tags: Mapping[str, str] | None) -> dict[str, str]:
    """Tags by names in lower case: some vendors ignore their case, and policies rewrite it."""
    return {name.lower(): str(value) for name, value in (tags or {}).items()}


def is_of_run(tags: Mapping[str, str] | None, run_id: str) -> bool:
    """Whether tags say that what carries them belongs to that run."""
    return lower_case_names(tags).get(RUN, "").lower() == run_id.lower()


def vm_from_tags(
    found: Mapping[str, str] | None,
    *,
    provider: str,
    id_of: Callable[[str, int], str],
    default_idle_usd_per_h: float,
) -> Vm | None:
    """Read the machine that tags describe, of which only remnants are sure; None if not ours.

    `id_of` gives the provider's id for a run id and a generation.
    """
    tags = lower_case_names(found)
    run_id = tags.get(RUN, "").lower()
    if not run_id:
        return None
    generation = int(tags.get(GENERATION, "1")) if tags.get(GENERATION, "1").isdigit() else 1
    return Vm(
        provider=provider,
        run_id=run_id,
        id=id_of(run_id, generation),
        region=tags.get("qft-region", ""),
        size=tags.get("qft-size", ""),
        zone=tags.get(ZONE, ""),
        generation=generation,
        user=tags.get("qft-user", "qft"),
        host_public_key=tags.get("qft-host-key", ""),
        power=PowerState.REMNANTS,
        created_at=tags.get(CREATED, ""),
        price_usd_per_h=_number(tags.get("qft-price", "")),
        idle_usd_per_h=_number(tags.get("qft-idle", "")) or default_idle_usd_per_h,
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
