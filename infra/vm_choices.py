"""Reads what a table `vm` may name several of: providers, GPUs and the regions of each vendor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from infra.catalog.gpus import UnknownGpu
from infra.catalog.regions import RegionList
from infra.catalog.vendors import CATALOGS, resolve_gpu_at

ANY = "any"
DEFAULT_GPU = "T4"
GPUS_MAX = 16
"""Of one machine at most."""
ProviderName = Literal["local", "azure", "aws", "ssh"]
CloudName = Literal["azure", "aws"]
"""The providers that rent, so that a run may take whichever is cheapest."""
CLOUDS: tuple[str, ...] = get_args(CloudName)


def branch_of(value: object) -> str:
    """Return which branch of a union of one name and several a value is of."""
    return "kind several" if isinstance(value, list | tuple) else "kind one"


def allow_any(schema: dict[str, Any]) -> None:
    """Let the schema for editors allow `any` where one name may stand."""
    schema["oneOf"][0]["enum"].append(ANY)


def listed(value: object) -> list[str]:
    """Return one name, or several, as a list without what is no name."""
    some = value if isinstance(value, list | tuple) else [value]
    return [one for one in some if isinstance(one, str) and one]


def without_list(value: object) -> object:
    """Return the entry of a list that has only one; any other value as it is."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def each_once(value: str | list[str]) -> str | list[str]:
    """Return the value; raises `ValueError` for a list that names the same twice."""
    names = listed(value)
    twice = next((one for one in names if names.count(one) > 1), "")
    if twice:
        raise ValueError(f"`{twice}` is listed twice")
    return value


def region_code(name: str, providers: object) -> str:
    """Return a region's code as the vendor spells it that has the region; as written if none."""
    codes = [(one, one.code(name)) for one in _region_lists(listed(providers))]
    spelled = [code for one, code in codes if code in one.regions]
    return (spelled or [code for _, code in codes] or [name])[0]


def card_notes(providers: Sequence[str], gpu: str) -> list[str]:
    """Return what to say of a GPU's name where a provider rents out another card for it."""
    notes = [resolve_gpu_at(one, gpu).note for one in providers] if gpu else []
    return [*dict.fromkeys(note for note in notes if note)]


def gpu_faults(vm: object) -> list[str]:
    """Return what is wrong with the GPU of a table `vm` as its user wrote it, with the key.

    A GPU that no vendor named there rents out, or not so many in one machine, is found here without
    asking anybody. Like the regions it is no part of the table's own check.
    """
    if not isinstance(vm, dict):
        return []
    catalogs = [CATALOGS[name] for name in _providers(vm) if name in CATALOGS]
    faults, too_many = [], []
    cards = _cards(vm)
    for name in cards or [""]:
        try:
            unknown = [one.gpu_problem(name) for one in catalogs]
            fewer = [one.gpu_problem(name, _gpu_count(vm)) for one in catalogs]
        except UnknownGpu:  # reported where the table itself is checked
            continue
        if unknown and all(unknown):
            faults.append(f"vm.gpu: {'; '.join(unknown)}")
        elif fewer and all(fewer):
            too_many.append(f"vm.gpus: {'; '.join(fewer)}")
    # Of several cards one that can be had is enough.
    return faults + (too_many if len(too_many) == len(cards or [""]) else [])


def _gpu_count(vm: Mapping[str, Any]) -> int:
    """Return how many cards a table `vm` asks for; 1 for what the table's own check refuses."""
    count = vm.get("gpus", 1)
    return count if type(count) is int and 0 < count <= GPUS_MAX else 1


def region_faults(vm: object) -> list[str]:
    """Return what is wrong with the regions of a table `vm` as its user wrote it, with the keys.

    A region that the vendor does not have, or where it sells no machine with the GPU, is found
    here without asking anybody. Of several vendors a name is right if one of them has it. It is no
    part of the table's own check, since a run that rents already must be read again whatever its
    regions are called.
    """
    if not isinstance(vm, dict) or not isinstance(vm.get("regions"), list):
        return []
    named = listed(vm["regions"])
    lists = {name: CATALOGS[name].region_list for name in _providers(vm) if name in CATALOGS}
    found = _unknown(named, lists.values()) or _unsold(vm, named, lists)
    if found and len(lists) == 1:
        ((provider, regions),) = lists.items()
        found[-1] = followed(found[-1], regions.where(_gpu_of(vm, provider)))
    return [f"vm.regions: {problem}" for problem in found]


def _unknown(named: Sequence[str], lists: Any) -> list[str]:
    """Return a problem for each name that is a region of none of the vendors."""
    found = []
    for name in named:
        problems = [one.name_problem(name) for one in lists]
        if problems and all(problems):
            found.append("; ".join(problems))
    return found


def _unsold(
    vm: Mapping[str, Any], named: Sequence[str], lists: Mapping[str, RegionList]
) -> list[str]:
    """Return why the GPU is sold in none of the named regions; empty if it is in one of them."""
    found = []
    for provider, regions in lists.items():
        there = [name for name in named if not regions.name_problem(name)]
        gpu = _gpu_of(vm, provider)
        problem = regions.sale_problem(gpu, there) if gpu else ""
        if there and not problem:
            return []
        found += [problem] if problem else []
    return found


def followed(problem: str, listing: str) -> str:
    """Return a problem with a list behind it; after a question that begins a sentence."""
    if problem.endswith("?"):
        return f"{problem} {listing[:1].upper()}{listing[1:]}"
    return f"{problem}; {listing}"


def _providers(vm: Mapping[str, Any]) -> list[str]:
    provider = vm.get("provider")
    return [*CLOUDS] if provider == ANY else listed(provider)


def _cards(vm: Mapping[str, Any]) -> list[str]:
    gpu = vm.get("gpu", DEFAULT_GPU)
    return [] if gpu == ANY else listed(gpu)


def _gpu_of(vm: Mapping[str, Any], provider: str) -> str:
    """Return what the GPU's name means to a provider; empty for several, any or none that is."""
    cards = _cards(vm)
    if len(cards) != 1:
        return ""
    try:
        return resolve_gpu_at(provider, cards[0]).gpu.name
    except UnknownGpu:  # reported where the table itself is checked
        return ""


def _region_lists(providers: Sequence[str]) -> list[RegionList]:
    """Return what is known of the regions of those providers that have any."""
    return [CATALOGS[name].region_list for name in providers if name in CATALOGS]
