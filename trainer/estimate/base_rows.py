"""What a row of the table of common bases is, and how rows of one architecture are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES_OF_16_BITS, BYTES_OF_32_BITS = 2, 4


@dataclass(frozen=True, kw_only=True)
class CommonBase:
    """A base that many fine-tune: its sizes, as its published `config.json` has them."""

    id: str
    """On the Hugging Face hub."""
    billions: float
    """Parameters as published (the model card, or the hub's count of its safetensors), / 1e9.

    A matrix that lies in memory once counts once, also where the files have it twice.
    """
    config: Mapping[str, Any]
    """Those keys of its `config.json` that `read_shape` needs, and how long its texts may be."""
    gated: bool = False
    """Whether its owner asks for an account and consent before the download."""
    same_sizes: tuple[str, ...] = ()
    """Other names, of the same sizes: variants tuned further, or older ids."""
    weight_bytes: float = BYTES_OF_16_BITS
    """Bytes per parameter of the files that are downloaded: 4 where they are float32."""

    @property
    def parameters(self) -> int:
        """The published number of parameters."""
        return round(self.billions * 1e9)

    @property
    def download_bytes(self) -> int:
        """How many bytes of weights are fetched."""
        return round(self.parameters * self.weight_bytes)


@dataclass(frozen=True)
class Columns:
    """The keys of a `config.json` in which the bases of one architecture differ, in order."""

    keys: tuple[str, ...]
    common: Mapping[str, Any]

    def base(
        self,
        name: str,
        billions: float,
        *sizes: int,
        same: str = "",
        gated: bool = False,
        weight_bytes: float = BYTES_OF_16_BITS,
        **more: Any,
    ) -> CommonBase:
        """Return the base of a row.

        `sizes` are in the order of the columns, `same` are other names with blanks between, `more`
        are keys of the config that only some bases have.
        """
        stored = {"torch_dtype": "float32"} if weight_bytes == BYTES_OF_32_BITS else {}
        keyed = dict(zip(self.keys, sizes, strict=True))
        return CommonBase(
            id=name,
            billions=billions,
            config={**self.common, **stored, **keyed, **more},
            gated=gated,
            same_sizes=tuple(same.split()),
            weight_bytes=weight_bytes,
        )


def columns(keys: str, **common: Any) -> Columns:
    """Return columns named by keys with blanks between, and what is `common` to all rows."""
    return Columns(tuple(keys.split()), common)
