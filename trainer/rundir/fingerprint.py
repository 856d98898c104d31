"""Records what a run depends on, so that a resume continues the same run or says what changed.

A changed config or data file would make another run: it is refused with a readable difference.
Other hardware or library versions continue the same run, though not bit for bit, and say so.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config import TrainerConfig

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers", "numpy")

# A change of these continues to make sense if the user asks for it: nothing learnt is thrown away.
CHANGEABLE = frozenset(
    {
        "train.steps", "train.epochs", "train.lr", "train.warmup", "train.schedule",
        "train.max_grad_norm", "train.weight_decay", "train.micro_batch", "train.threads",
        "train.gradient_checkpointing", "train.exact", "eval", "data.eval",
    }
)  # fmt: skip
# Not even asked about: they decide when the state is saved, or where files come from, not what is
# learnt. The day is seen in the tokens, which are compared, if a template depends on it at all.
IRRELEVANT = frozenset(
    {
        "model.id", "model.revision", "model.token_env", "data.train", "data.eval", "data.day",
        "method.partly_quantised", "method.from", "train.samples",
        "eval.general",
    }
)  # fmt: skip
# Fields that runs of earlier versions did not know. At their default they are left out of the
# facts, so that such a run is still the same run.
ADDED_LATER: frozenset[str] = frozenset(
    {
        "data.answers",
        "data.ignore",
        "data.text",
        "data.too_long",
        "eval.forgetting",
        "eval.rows",
        "method.init",
        "method.partly_quantised",
        "method.save",
        "model.new_tokens",
        "train.exact",
    }
)

Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a resume on these facts means."""

    refused: tuple[str, ...]  # differences that nobody allowed
    inexact: tuple[str, ...]  # differences after which bits may differ

    def require(self) -> None:
        """Raise `ConfigError` with every refused difference and the way out."""
        if self.refused:
            raise ConfigError(
                [
                    "this run began with other settings; going on would mix two runs:",
                    *(f"  {line}" for line in self.refused),
                    (
                        "hint: restore them, start a run of another name, or allow what may "
                        "change with `--allow-change KEY`"
                    ),
                ]
            )


def take_fingerprint(
    config: TrainerConfig,
    *,
    data: Facts,
    base: Facts,
    hardware: Mapping[str, Any],
    tokens: Mapping[str, str] = MappingProxyType({}),
) -> Facts:
    """Gather everything that the result depends on as one JSON-safe table.

    `data` holds the SHA-256 of each data file, `tokens` that of the examples made of them, `base`
    the identity of model and tokenizer.
    """
    return {
        "config": flatten_config(config),
        "data": dict(data),
        "tokens": dict(tokens),
        "day": None if config.data.day is None else config.data.day.isoformat(),
        "base": dict(base),
        "hardware": dict(hardware),
        "versions": {
            "python": platform.python_version(),
            "trainer": own_sha256(),
            **installed_versions(),
        },
    }


def compare(old: Mapping[str, Any], new: Mapping[str, Any], *, allowed: Iterable[str]) -> Verdict:
    """Judge a resume of the run described by `old` with the facts `new`.

    Raises:
        ConfigError: `allowed` names a key that may never change within a run.
    """
    permitted = permitted_keys(allowed)
    refused: list[str] = []
    inexact: list[str] = []
    validates = (new.get("config") or {}).get("train.validate_every") is not None
    for part in ("config", "data", "base"):
        for key, before, after in differences(old.get(part), new.get(part)):
            line = f"{key}: was {_show(before)}, is {_show(after)}"
            if key in permitted or key.split(".", maxsplit=1)[0] in permitted:
                scores_only = key == "data.eval" and not validates
                if not key.startswith("eval.") and not scores_only:
                    inexact.append(line)
            else:
                refused.append(line + ("" if _changeable(key) else " (this may never change)"))
    refused += [] if refused else _other_tokens(old, new, permitted)
    for part in ("hardware", "versions"):
        for key, before, after in differences(old.get(part), new.get(part)):
            inexact.append(f"{key}: was {_show(before)}, is {_show(after)}")
    return Verdict(refused=tuple(refused), inexact=tuple(inexact))


def _other_tokens(
    old: Mapping[str, Any], new: Mapping[str, Any], permitted: frozenset[str]
) -> list[str]:
    """Say of which rows the tokens are no longer those of the run, with what may be the cause.

    Where config, rows or tokenizer differ, that is told instead. Earlier versions recorded none.
    """
    was, is_now = (one.get("tokens") or {} for one in (old, new))
    causes = [
        f"{key} was {before}, is {after}"
        for key, before, after in [
            *differences(old.get("versions"), new.get("versions")),
            *differences({"data.day": old.get("day")}, {"data.day": new.get("day")}),
        ]
        if key in {"data.day", "tokenizers", "transformers"}
    ] or ["is it another chat template?"]
    return [
        f"tokens of {key}: were {_show(before)}, are {_show(after)}: the same rows give other "
        f"tokens than when the run began ({'; '.join(causes)})"
        for key, before, after in differences(was, is_now)
        if key in was and key in is_now and key not in permitted
    ]


def permitted_keys(allowed: Iterable[str]) -> frozenset[str]:
    """Complete short names (`steps`) and check that each key may change at all.

    Raises:
        ConfigError: one may never change within a run.
    """
    permitted: set[str] = set()
    for key in allowed:
        fits = sorted(full for full in CHANGEABLE if full == key or full.split(".")[-1] == key)
        if not fits and not key.startswith("eval."):
            may = ", ".join(sorted(CHANGEABLE))
            raise ConfigError([f"--allow-change {key}: this can never change; what may: {may}"])
        permitted.update(fits or [key])
    if permitted & {"train.steps", "train.epochs"}:  # one is given instead of the other
        permitted |= {"train.steps", "train.epochs"}
    return frozenset(permitted)


def differences(old: object, new: object) -> list[tuple[str, Any, Any]]:
    """List (key, before, after) of all keys on which two tables differ, None where one lacks it."""
    before = old if isinstance(old, Mapping) else {}
    after = new if isinstance(new, Mapping) else {}
    keys = sorted({*before, *after})
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def flatten_config(config: TrainerConfig) -> Facts:
    """Spell the config as `table.field: value`, without what does not influence the result.

    `eval: none` is left out: a run without the table is the same one, only scored.
    """
    dumped = config.model_dump(mode="json", exclude={"checkpoint"})
    if config.train.validate_every is None:  # then the others have no say either
        for field in ("validate_every", "stop_after", "keep_best"):
            del dumped["train"][field]
    given = config.model_dump(mode="json", exclude_defaults=True)
    return {
        f"{table}.{field}": value
        for table, fields in dumped.items()
        if isinstance(fields, dict)
        for field, value in fields.items()
        if f"{table}.{field}" not in IRRELEVANT
        and (f"{table}.{field}" not in ADDED_LATER or field in (given.get(table) or {}))
    }


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_sha256(root: Path, *, cache: Path) -> str:
    """Return one SHA-256 over the names and contents of all files under `root`.

    Gigabytes take long and a resumed run starts often, so hashes are kept in the file `cache` by
    size, modification time and inode. Raises `OSError` if `root` cannot be read.
    """
    cached = _read_cache(cache)
    fresh: dict[str, str] = {}
    total = hashlib.sha256()
    for path in sorted(entry for entry in root.rglob("*") if entry.is_file()):
        facts = path.stat()
        key = f"{path}:{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ino}"
        fresh[key] = cached.get(key) or file_sha256(path)
        total.update(f"{path.relative_to(root)}\0{fresh[key]}\n".encode())
    if fresh != cached:
        with suppress(OSError):  # no room: it is computed again next time
            cache.write_text(json.dumps(fresh, indent=1), encoding="utf-8")
    return total.hexdigest()


def installed_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute, without importing them."""
    from importlib import metadata  # late: half of what this file takes to import

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def own_sha256() -> str:
    """Return one SHA-256 over the source files of this package, whatever their times."""
    total = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package)}\0{file_sha256(path)}\n".encode())
    return total.hexdigest()


def cpu_model() -> str:
    """Return the processor's name as Linux has it, or what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor()
    return platform.machine()


def _changeable(key: str) -> bool:
    return key in CHANGEABLE or key.split(".", maxsplit=1)[0] in CHANGEABLE


def _read_cache(path: Path) -> dict[str, str]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _show(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:28] + "…" + text[-28:]
