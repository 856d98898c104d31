"""The table `method`: which parameters are trained, and how the frozen ones are kept."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EMBEDDINGS = frozenset({"embed_tokens", "word_embeddings", "wte", "embed_in", "tok_embeddings"})
HEADS = frozenset({"lm_head", "embed_out"})
"""What these two layers are called in the architectures of transformers."""
RANK_MAX = 1024
ALPHA = 16
BASES = 256  # per matrix, unless `method.bases` says otherwise


class MethodKind(StrEnum):
    """How the base is adapted; the kinds that begin with q keep it quantised."""

    LORA = "lora"
    QLORA = "qlora"
    DORA = "dora"  # LoRA with the length of every row trained apart from its direction
    QDORA = "qdora"
    RSLORA = "rslora"  # LoRA scaled by alpha/sqrt(r), on any base
    DYLORA = "dylora"  # every rank up to r in one run
    QDYLORA = "qdylora"
    NOLA = "nola"  # a combination of seeded random bases, on any base
    MISS = "miss"  # one matrix a layer, on sums of its inputs

    @property
    def quantised(self) -> bool | None:
        """Whether the kind asks for a quantised base; None if it goes with any."""
        if self in {MethodKind.RSLORA, MethodKind.NOLA}:
            return None
        return self.startswith("q")

    @property
    def on_any_base(self) -> MethodKind:
        """The same kind without a word about the base: `lora` of `qlora`."""
        return MethodKind(self.removeprefix("q")) if self.quantised else self

    @property
    def adapter_files(self) -> tuple[str, ...]:
        """The names in `adapter/` after a training: what its `save` writes, and the receipt."""
        if self is MethodKind.NOLA:
            return ("adapter_config.json", "qft.json", "nola.json", "nola.safetensors")
        plain = ("adapter_config.json", "adapter_model.safetensors", "qft.json")
        return (*plain, "ranks.json", "ranks.safetensors") if self.dylora else plain

    @property
    def dora(self) -> bool:
        """Whether lengths are trained apart from directions."""
        return self in {MethodKind.DORA, MethodKind.QDORA}

    @property
    def dylora(self) -> bool:
        """Whether every rank up to r is trained."""
        return self in {MethodKind.DYLORA, MethodKind.QDYLORA}


class Quant(StrEnum):
    """How the frozen weights are stored; `auto` is nf4 for the q kinds and none for the others."""

    AUTO = "auto"
    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"
    NONE = "none"

    @property
    def four_bit(self) -> bool:
        """Whether a weight takes four bits."""
        return self in {Quant.NF4, Quant.FP4}


class AdapterInit(StrEnum):
    """The first weights of an adapter, by PEFT's `init_lora_weights`; the last four are refused."""

    DEFAULT = "default"  # A random, B zero
    GAUSSIAN = "gaussian"  # the same with a normal distribution of width 1/r
    ORTHOGONAL = "orthogonal"  # A and B random with orthogonal rows, so that their product is zero
    PISSA = "pissa"  # the largest singular values of each weight, which the base loses
    OLORA = "olora"  # the first columns of each weight's QR decomposition, which the base loses
    EVA = "eva"
    CORDA = "corda"
    LORA_GA = "lora_ga"
    LOFTQ = "loftq"

    @property
    def changes_base(self) -> bool:
        """Whether the weights of the base are another matrix afterwards: the residual."""
        return self in {AdapterInit.PISSA, AdapterInit.OLORA}

    @property
    def unavailable(self) -> str:
        """Why it cannot be had, with what to take instead; empty if it can."""
        if self in {AdapterInit.EVA, AdapterInit.CORDA, AdapterInit.LORA_GA}:
            return (
                "needs a pass over the data before the training, which is not made here; take "
                "`init: gaussian`, or `init: pissa` with `kind: lora`"
            )
        if self is AdapterInit.LOFTQ:
            return (
                "quantises the base by itself, and the base is quantised by `quant`; take "
                "`init: gaussian`"
            )
        return ""


class OptimizerKind(StrEnum):
    """AdamW with 32-bit moments, with 8-bit ones, or with 8-bit ones that page to the host."""

    ADAMW = "adamw"
    ADAMW8BIT = "adamw8bit"
    PAGED_ADAMW8BIT = "paged_adamw8bit"


class MethodTable(BaseModel):
    """Which parameters are trained, and how the frozen ones are kept."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )

    parent: str | None = Field(
        default=None,
        alias="from",
        min_length=1,
        description="Adapter to go on from: a directory, a finished run, or OWNER/NAME[@REVISION].",
    )
    kind: MethodKind = Field(
        default=MethodKind.QLORA,
        description="lora, dora, rslora, dylora, nola or miss; qlora, qdora, qdylora: quantised.",
    )
    r: int = Field(default=8, ge=1, le=RANK_MAX, description="Rank of the adapter.")
    alpha: float = Field(
        default=ALPHA, gt=0, description="Adapter scale; the update is alpha/r times B·A."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in front of the adapter.")
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        default="all-linear", description="Every linear layer but the head, or names of layers."
    )
    save: tuple[Annotated[str, Field(max_length=300, pattern=r"^[\w.]+$")], ...] = Field(
        default=(),
        description="Layers trained whole beside the adapter, such as embed_tokens and lm_head.",
    )
    quant: Quant = Field(default=Quant.AUTO, description="Storage of the frozen weights.")
    double_quant: bool = Field(
        default=True, description="Quantise the scales of 4-bit weights too: 4.13 bits, not 4.5."
    )
    init: AdapterInit = Field(
        default=AdapterInit.DEFAULT,
        description="First weights: default, gaussian; orthogonal, pissa or olora: unquantised.",
    )
    partly_quantised: bool = Field(
        default=False,
        description="Train although less than 90 % of the layers' weights can be quantised.",
    )
    optimizer: OptimizerKind = Field(default=OptimizerKind.ADAMW, description="Optimizer.")
    bases: int | None = Field(
        default=None, ge=1, le=65536, description="Random bases per matrix (nola only); 256."
    )

    @property
    def target_names(self) -> tuple[str, ...] | None:
        """The last parts of the names in `targets`; None if every linear layer is adapted."""
        if self.targets == "all-linear":
            return None
        return tuple(sorted({name.rpartition(".")[2] for name in self.targets}))

    @property
    def saved_matrices(self) -> int:
        """How many of embedding and head are trained whole, as far as their names are usual."""
        names = {name.rpartition(".")[2] for name in self.save}
        return bool(names & EMBEDDINGS) + bool(names & HEADS)

    @property
    def combined(self) -> int | None:
        """How many bases a matrix is a combination of, None if it is trained itself."""
        return (self.bases or BASES) if self.kind is MethodKind.NOLA else None

    @property
    def storage(self) -> Quant:
        """The storage of the frozen weights with `auto` resolved."""
        if self.quant is not Quant.AUTO:
            return self.quant
        return Quant.NF4 if self.kind.quantised else Quant.NONE

    @model_validator(mode="after")
    def _kind_and_quant_agree(self) -> MethodTable:
        quantised = self.storage is not Quant.NONE
        if self.kind is MethodKind.MISS:
            self._check_miss()
        if self.kind.quantised is not None and quantised != self.kind.quantised:
            other = f"q{self.kind}" if quantised else self.kind.removeprefix("q")
            raise ValueError(
                f"`kind: {self.kind}` and `quant: {self.quant}` contradict each other: "
                "the kinds that begin with q keep the base in nf4, fp4 or int8, "
                f"the others keep it unquantised (none); did you mean `kind: {other}`?"
            )
        if self.kind is MethodKind.QDORA and self.storage is Quant.INT8:
            raise ValueError(
                "`kind: qdora` needs `quant: nf4` or `fp4`: PEFT's DoRA takes the scales of an "
                "8-bit layer away before its first pass"
            )
        if self.save and self.kind is MethodKind.NOLA:
            raise ValueError(
                "`save` does not go with `kind: nola`, whose file holds coefficients only; "
                "take lora or qlora"
            )
        if self.bases is not None and self.kind is not MethodKind.NOLA:
            raise ValueError(f"`bases` belongs to `kind: nola`; {self.kind} has none")
        return self

    def _check_miss(self) -> None:
        """Raise `ValueError` for what does not go with MiSS."""
        if self.storage is not Quant.NONE:
            raise ValueError(
                f"`kind: miss` goes with an unquantised base only, and `quant` is {self.quant}; "
                "take `kind: qlora`, or leave `quant` out"
            )
        if self.alpha != ALPHA:
            raise ValueError("`alpha` does not go with `kind: miss`, which has no scale")
        if self.save:
            raise ValueError("`save` does not go with `kind: miss`; take `kind: lora`")
        if self.init is not AdapterInit.DEFAULT:
            raise ValueError(
                f"`init: {self.init}` does not go with `kind: miss`, which begins at zero"
            )

    @model_validator(mode="after")
    def _init_fits(self) -> MethodTable:
        named = f"`init: {self.init}`"
        if self.init is AdapterInit.DEFAULT:
            return self
        if self.init.unavailable:
            raise ValueError(f"{named} {self.init.unavailable}")
        if self.parent is not None:
            raise ValueError(f"{named}: the adapter in `from` has its weights already; keep one")
        if self.kind is MethodKind.NOLA:
            raise ValueError(f"{named} does not go with `kind: nola`, which trains coefficients")
        if self.init is AdapterInit.GAUSSIAN:
            return self
        if self.storage is not Quant.NONE:
            raise ValueError(
                f"{named} needs the weights of an unquantised base, and `quant` is {self.storage}; "
                "take `kind: lora`, or `init: gaussian`"
            )
        if self.kind.dylora or (self.init.changes_base and self.kind.dora):
            raise ValueError(f"{named} does not go with `kind: {self.kind}`; take `kind: lora`")
        if self.init is AdapterInit.ORTHOGONAL and self.r % 2:
            raise ValueError(f"{named} needs an even rank, and `r` is {self.r}")
        if self.init.changes_base and self.r > RANK_MAX // 2:
            raise ValueError(
                f"{named} is saved with twice the rank, which may be {RANK_MAX}; `r` is {self.r}"
            )
        return self
