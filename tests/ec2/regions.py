"""The regions, zones and sizes that the simulated EC2 sells: data of the provider, dated.

Sizes and on-demand prices are those of us-east-1 of July 2026; which zones sell what is AWS's state
of August 2026. Zone letters are an account's own shuffle of the zone ids.
"""

from __future__ import annotations

from dataclasses import dataclass

SPOT_SHARE = 0.36
"""Spot price as a share of on demand in the first zone of a region."""
ZONE_STEP = 0.02
"""By how much the price rises from zone to zone."""


@dataclass(frozen=True, kw_only=True)
class InstanceSize:
    """One instance type."""

    name: str
    vcpus: int
    memory_mib: int
    gpu: str
    gpus: int
    gpu_mib: int
    nvme_gb: int
    on_demand_usd_per_h: float

    @property
    def family(self) -> str:
        """Such as `g5`."""
        return self.name.partition(".")[0]


_ROWS = """
    g4dn.xlarge     4  16  T4    1  16384   125  0.526
    g4dn.2xlarge    8  32  T4    1  16384   225  0.752
    g4dn.4xlarge   16  64  T4    1  16384   225  1.204
    g4dn.8xlarge   32 128  T4    1  16384   900  2.176
    g4dn.12xlarge  48 192  T4    4  16384   900  3.912
    g4dn.16xlarge  64 256  T4    1  16384   900  4.352
    g5.xlarge       4  16  A10G  1  22888   250  1.006
    g5.2xlarge      8  32  A10G  1  22888   450  1.212
    g5.4xlarge     16  64  A10G  1  22888   600  1.624
    g5.8xlarge     32 128  A10G  1  22888   900  2.448
    g5.12xlarge    48 192  A10G  4  22888  3800  5.672
    g5.16xlarge    64 256  A10G  1  22888  1900  4.096
    g5.24xlarge    96 384  A10G  4  22888  3800  8.144
    g6.xlarge       4  16  L4    1  22888   250  0.8048
    g6.2xlarge      8  32  L4    1  22888   450  0.9776
    g6.4xlarge     16  64  L4    1  22888   600  1.3232
    g6.8xlarge     32 128  L4    1  22888   900  2.0144
    g6.12xlarge    48 192  L4    4  22888  3760  4.6016
    t3.micro        2   1  -     0      0     0  0.0104
"""


def _size(row: str) -> InstanceSize:
    name, vcpus, memory, gpu, gpus, gpu_mib, nvme, price = row.split()
    return InstanceSize(
        name=name,
        vcpus=int(vcpus),
        memory_mib=int(memory) * 1024,
        gpu="" if gpu == "-" else gpu,
        gpus=int(gpus),
        gpu_mib=int(gpu_mib),
        nvme_gb=int(nvme),
        on_demand_usd_per_h=float(price),
    )


SIZES = {size.name: size for size in map(_size, _ROWS.strip().splitlines())}


@dataclass(frozen=True, kw_only=True)
class Region:
    """One region: its zones in the account's letters, with the ids behind them."""

    name: str
    zones: dict[str, str]
    """The id of each zone by its name, such as `use1-az4` by `us-east-1c`."""
    unsold: dict[str, frozenset[str]]
    """The families that a zone does not sell, by its name."""
    opt_in: bool = False
    """Whether an account has to enable it first."""

    def sells(self, size: str, zone: str) -> bool:
        """Whether a zone sells a size."""
        family = size.partition(".")[0]
        return size in SIZES and family not in self.unsold.get(zone, frozenset())


_GPU = frozenset({"g4dn", "g5", "g6"})
_G5 = frozenset({"g5", "g6"})
_NONE: frozenset[str] = frozenset()


def _region(
    name: str, short: str, ids: str, *, lack_all: str = "", lack_g5: str = "", opt_in: bool = False
) -> Region:
    """A region whose zones a, b, c … have the ids of those numbers."""
    zones = {
        f"{name}{letter}": f"{short}-az{number}"
        for letter, number in zip("abcdef", ids, strict=False)
    }
    return Region(
        name=name,
        zones=zones,
        unsold={
            zone: _GPU if zone[-1] in lack_all else _G5 if zone[-1] in lack_g5 else _NONE
            for zone in zones
        },
        opt_in=opt_in,
    )


REGIONS = {
    region.name: region
    for region in (
        _region("us-east-1", "use1", "124635", lack_all="e"),
        _region("us-east-2", "use2", "123"),
        _region("us-west-2", "usw2", "1234", lack_all="d"),
        _region("eu-west-1", "euw1", "123"),
        _region("eu-central-1", "euc1", "231"),
        _region("eu-west-3", "euw3", "123"),
        _region("eu-west-2", "euw2", "231", lack_g5="c"),
        _region("eu-north-1", "eun1", "123", lack_g5="c"),
        _region("ca-central-1", "cac1", "124", lack_g5="c"),
        _region("ap-northeast-1", "apne1", "412", lack_g5="c"),
        _region("ap-northeast-2", "apne2", "123"),
        _region("ap-south-1", "aps1", "132", lack_g5="c"),
        _region("ap-southeast-2", "apse2", "312", lack_g5="b"),
        _region("sa-east-1", "sae1", "123", lack_g5="b"),
        _region("ap-east-1", "ape1", "123", lack_g5="c", opt_in=True),
        _region("us-west-1", "usw1", "13", lack_g5="ab"),
        _region("ap-southeast-1", "apse1", "123", lack_g5="abc"),
        _region("ap-northeast-3", "apne3", "123", lack_g5="abc"),
        _region("eu-south-1", "eus1", "123", lack_g5="abc", opt_in=True),
        _region("af-south-1", "afs1", "123", lack_g5="abc", opt_in=True),
        _region("me-south-1", "mes1", "123", lack_g5="abc", opt_in=True),
    )
}


def region_of_zone(zone: str) -> Region:
    """The region of a zone by the zone's name."""
    return REGIONS[zone[:-1]]
