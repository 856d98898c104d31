"""The table of common bases, and how a text is matched to one of them; no library is needed.

A text is a hub id, or a name as people write it ("Llama-3.1-8B Alpaca", "Qwen-1.8B"). It names a
base by family, version, kind and size. All four must be those of the base: a size or a version that
the table does not have is no base, never the nearest one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from trainer.estimate.base_rows import CommonBase
from trainer.estimate.bases_llama import LLAMA_KIND
from trainer.estimate.bases_mixed import MIXED_KINDS
from trainer.estimate.bases_other import OTHER_KINDS

COMMON_BASES: tuple[CommonBase, ...] = LLAMA_KIND + OTHER_KINDS + MIXED_KINDS
"""Every base of the table, each once."""
SIMILAR = 0.75
SUGGESTED_MAX = 3
DATES_FROM = 100
"""Whole numbers from here on are dates, steps or lengths (2507, 1124, 512), and no versions."""

NOISE = re.compile(
    r"\b(?:\d+[ -]?bits?|(?:bf|fp|float|int|w|a|nf)\d+|r(?!1\b)\d+|\d+k|q\d_k(?:_[sml])?)\b"
    r"|(?<=\d)e\d+t\b"
    r"|\b(?:mini|micro|small|large)[ -]?(?:batch|context|rank)\w*|\bflash[ -]?att\w*"
)
"""Precisions, ranks, lengths and batches: they say nothing of a version, a size or a kind."""
TOKEN = re.compile(
    r"(?P<experts>\d+x\d+)b\b"
    r"|(?P<active>[ae]\d+(?:\.\d+)?)b\b"
    r"|(?P<tenths>\d+b\d)\b"
    r"|(?P<size>\d+(?:\.\d+)?[bm])\b"
    r"|v(?P<named>\d+(?:\.\d+)*)\b"
    r"|(?P<t5>t5)"
    r"|(?P<number>\d+(?:\.\d+)*)"
    r"|(?P<word>[a-z]+)"
)
FAMILIES = (
    "llama", "code llama", "codellama", "tinyllama", "tiny llama", "open llama", "openllama",
    "vicuna", "platypus", "orpheus", "llasa", "devstral", "magistral", "mistral", "mixtral",
    "ministral", "mathstral", "codestral", "zephyr", "solar", "phi", "gemma", "codegemma",
    "functiongemma", "medgemma", "qwen", "qwq", "deepseek r distill llama", "r distill llama",
    "deepseek r distill qwen", "r distill qwen", "deepseek r qwen", "r qwen", "deepseek r",
    "falcon", "stablelm", "stable lm", "stable code", "pythia", "dolly", "redpajama",
    "redpajama incite", "gpt", "gpt j", "gptj", "gpt neox", "gptneox", "gpt neo", "gpt oss", "opt",
    "bloom", "bloomz", "mpt", "t5", "flan t5", "mt5", "ul", "smollm", "olmo", "olmoe", "granite",
    "deepseek", "yi", "internlm", "baichuan", "chatglm", "glm", "starcoder", "afm", "lfm",
    "seed oss", "ernie", "exaone", "apertus", "command", "aya", "hunyuan", "mamba", "nemotron",
    "minitron", "cogito",
)  # fmt: skip
"""How families are written, in lower case and without numbers; what is not here has no base."""
FAMILY_TOKENS_MAX = 5
SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "code llama": "codellama", "tiny llama": "tinyllama", "open llama": "openllama",
        "stable lm": "stablelm", "gptj": "gpt j", "gptneox": "gpt neox", "bloomz": "bloom",
        "redpajama incite": "redpajama", "r distill llama": "deepseek r distill llama",
        "r distill qwen": "deepseek r distill qwen", "r qwen": "deepseek r qwen",
    }
)  # fmt: skip
FIRST_MISSING = frozenset(("starcoder",))
"""Families whose first version is not in the table: their name alone does not mean a later one."""
KINDS = frozenset(
    ("vl", "audio", "omni", "mamba", "moe", "next", "multimodal", "embedding", "reranker", "asr")
)
"""Words that make a model another one of its family, whatever its size."""
KINDS_OF: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "llama": frozenset(("vision", "scout", "maverick")),
        "phi": frozenset(("mini", "small", "medium", "silica", "vision")),
        "mistral": frozenset(("nemo", "small", "medium", "large")),
        "t5": frozenset(("small", "base", "large", "xl", "xxl")),
        "flan t5": frozenset(("small", "base", "large", "xl", "xxl")),
        "gpt": frozenset(("medium", "large", "xl")),
        "gemma": frozenset(("n",)),
        "stablelm": frozenset(("alpha",)),
        "granite": frozenset(("h", "micro", "tiny", "small", "nano")),
        "falcon": frozenset(("h", "deep")),
        "deepseek": frozenset(("lite",)),
        "glm": frozenset(("air", "flash")),
    }
)
"""Such words of one family only: sizes by name, and series."""


@dataclass(frozen=True)
class Name:
    """What a text says of a base."""

    family: str
    version: str
    """Without a `.0` at its end; empty if the text gives none."""
    kinds: frozenset[str]
    size: str | None
    """Such as "8b" or "8x7b"; None if the text gives none. Of several the first one counts."""


def find_common_base(text: str) -> CommonBase | None:
    """Return the base of the table that a hub id or a free text names, None if there is none."""
    by_id = find_by_id(text)
    if by_id is not None:
        return by_id
    name = _read(text)
    if name is None:
        return None
    of_family = [
        (other, base)
        for other, base in _named()
        if (other.family, other.kinds) == (name.family, name.kinds)
    ]
    for same in (_same_size, _rounds_to):
        sized = [(other, base) for other, base in of_family if same(name, other, base)]
        exact = [base for other, base in sized if other.version == name.version]
        if exact:
            return _only(exact)
        if not name.version and sized and name.family not in FIRST_MISSING:
            return _only([base for _, base in sized])
    return None


def find_by_id(model: str) -> CommonBase | None:
    """Return the base with this hub id, in any case and also without its owner, else None."""
    wanted = model.strip().lower()
    return _by_id().get(wanted)


def similar_ids(model: str) -> list[str]:
    """Return ids of the table that are written almost like this one, the most similar first."""
    wanted, every = model.strip().lower(), _by_id()
    with_owner = [key for key in every if "/" in key]
    close = difflib.get_close_matches(wanted, with_owner, n=SUGGESTED_MAX, cutoff=SIMILAR)
    found = [_spelled(key) for key in close]
    if not found:
        bare = wanted.rpartition("/")[2]
        names = [key for key in every if "/" not in key]
        found = [every[key].id for key in difflib.get_close_matches(bare, names, n=1)]
    return list(dict.fromkeys(found))[:SUGGESTED_MAX]


@cache
def _by_id() -> dict[str, CommonBase]:
    """Return every base by its ids in lower case, with their owners and without."""
    found: dict[str, CommonBase] = {}
    for base in COMMON_BASES:
        for name in (base.id, *base.same_sizes):
            found[name.lower()] = base
    for base in COMMON_BASES:
        for name in (base.id, *base.same_sizes):
            found.setdefault(name.lower().rpartition("/")[2], base)
    return found


def _spelled(key: str) -> str:
    """Return an id as its owner spells it."""
    base = _by_id()[key]
    return next(one for one in (base.id, *base.same_sizes) if one.lower() == key)


@cache
def _named() -> tuple[tuple[Name, CommonBase], ...]:
    """Return what every name of the table says, with its base."""
    read = ((_read(text), base) for base in COMMON_BASES for text in (base.id, *base.same_sizes))
    return tuple((name, base) for name, base in read if name is not None)


def _read(text: str) -> Name | None:
    """Return the family, version, kinds and size in a text, None if it names no family."""
    plain = text.strip().lower()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", plain):
        plain = plain.partition("/")[2]
    # "Qwen-1_8B" and "ERNIE_4_5_21B" write a point as an underscore, and a blank, too.
    plain = re.sub(r"(?<![\d.])(\d{1,2})_(\d{1,2})(?![\d.])", r"\1.\2", plain).replace("_", " ")
    plain = re.sub(r"(?<=\d) *(?:b|billion)\b", "b", plain)
    tokens = list(TOKEN.finditer(NOISE.sub(" ", plain)))
    begin, end, family = _family(tokens)
    if not family:
        return None
    rest = tokens[end:]
    words = {one["word"] for one in (*tokens[:begin], *rest) if one["word"]}
    sizes = [at for at, one in enumerate(rest) if _size(one)]
    size = _size(rest[sizes[0]]) if sizes else None
    # "Llama 2 7B": a bare number before the size is a version, one behind it is something else.
    bare = rest[: sizes[0]] if sizes else rest[:1]
    versions = [one["named"] for one in rest if one["named"]]
    versions += [one["number"] for one in bare if one["number"] and _is_version(one["number"])]
    version = re.sub(r"(\.0)+$", "", versions[0]) if versions else ""
    kinds = frozenset(words & (KINDS | KINDS_OF.get(family, frozenset())))
    return Name(family, version, kinds, size)


def _family(tokens: list[re.Match[str]]) -> tuple[int, int, str]:
    """Return where the first family stands and which one it is: the longest that begins there."""
    texts = [one["word"] or one["t5"] or "" for one in tokens]
    for begin in range(len(texts)):
        for end in range(min(len(texts), begin + FAMILY_TOKENS_MAX), begin, -1):
            spelled = " ".join(text for text in texts[begin:end] if text)
            # "R1 Distill Llama" has a number inside.
            if texts[begin] and texts[end - 1] and spelled in FAMILIES:
                return begin, end, SPELLINGS.get(spelled, spelled)
    return 0, 0, ""


def _size(token: re.Match[str]) -> str | None:
    """Return the size that a token is, in one spelling: "1.7b", "8x7b", "0.27b"; else None."""
    if token["experts"]:
        return f"{token['experts']}b"
    if token["tenths"]:
        return f"{token['tenths'].replace('b', '.')}b"
    if not token["size"]:
        return None
    amount, unit = float(token["size"][:-1]), token["size"][-1]
    return f"{amount / (1000 if unit == 'm' else 1):g}b"


def _is_version(number: str) -> bool:
    return "." in number or int(number) < DATES_FROM


def _same_size(wanted: Name, other: Name, _base: CommonBase) -> bool:
    return wanted.size == other.size


def _rounds_to(wanted: Name, _other: Name, base: CommonBase) -> bool:
    """Whether a size is the number of parameters, rounded to as many places as it is written."""
    if wanted.size is None or "x" in wanted.size:
        return False
    amount = wanted.size.removesuffix("b")
    places = len(amount.partition(".")[2])
    return f"{base.billions:.{places}f}" == f"{float(amount):.{places}f}"


def _only(found: list[CommonBase]) -> CommonBase | None:
    """Return the first of bases that a text may mean, None if they are of different sizes."""
    return found[0] if all(one.billions == found[0].billions for one in found) else None
