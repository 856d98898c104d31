"""Reads an adapter_config.json as untrusted input: a closed list of checked, plain values.

PEFT imports modules that such a file names (`auto_mapping`, `megatron_core`), so it gets to see
only what is checked here. No library is needed for the check.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.placeholder_files import describe_placeholder
from trainer.errors import ConfigError
from trainer.untrusted import NotPlain, number, parse, text, texts, whole

if TYPE_CHECKING:
    import torch

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
RANKS = "ranks.json"  # beside them, of an adapter of every rank (`trainer/adapters/dylora.py`)
BYTES_MAX = 4 << 20
RANK_MAX = 1024
TARGETS_MAX = 100_000
TOKEN_MAX = 1 << 24
TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
NAMES_CODE = ("auto_mapping", "megatron_config", "runtime_config")
"""What makes PEFT or a program after it import something; null in every adapter trained here."""
CHANGES_SHAPE = ("rank_pattern", "alpha_pattern", "layer_replication")
"""What makes an adapter another one than this program trains."""
PLAIN_KEYS = frozenset(
    {
        "peft_type", "peft_version", "task_type", "inference_mode", "base_model_name_or_path",
        "revision", "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora",
        "fan_in_fan_out", "megatron_core", "qalora_group_size", "init_lora_weights", "bias",
        "loftq_config", "eva_config", "modules_to_save", "ensure_weight_tying",
        "target_parameters", "miss_dropout", "mini_r", "init_weights",
    }
)  # fmt: skip
"""What may be set in an adapter that is gone on from: it is understood, or changes no weight."""
BASE_KEPT_BY = (None, True, False, "gaussian", "orthogonal", "eva")
"""The values of `init_lora_weights` that leave the weights of the base as they are."""
_MODULE = re.compile(r"[\w.]{1,300}")


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What PEFT needs to know of a LoRA, by PEFT's own names, or of a MiSS adapter.

    MiSS has no scale: its `lora_alpha` is `r`.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    task_type: str | None
    lora_dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    ensure_weight_tying: bool = False
    trained_rows: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """PEFT's `trainable_token_indices`: layers, and the tokens whose rows are trained."""
    miss: bool = False
    target_parameters: tuple[str, ...] = ()
    """Tensors of experts, each by the end of its name."""
    base_model_name_or_path: str | None = None
    """A word for people: nothing is loaded from there."""

    @property
    def holds_weights(self) -> bool:
        """Whether weights of the base itself, or rows of them, are among the tensors."""
        return bool(self.modules_to_save or self.trained_rows)

    def for_peft(self) -> dict[str, Any]:
        """The arguments of PEFT's `LoraConfig`, or of its `MissConfig`."""
        fields = {**asdict(self), "target_modules": list(self.target_modules)}
        if fields.pop("miss"):
            kept = ("r", "target_modules", "task_type", "base_model_name_or_path")
            miss = {"miss_dropout": self.lora_dropout, "init_weights": True}
            return {**{key: fields[key] for key in kept}, **miss, "inference_mode": True}
        fields["modules_to_save"] = list(self.modules_to_save) or None
        if rows := fields.pop("trained_rows"):
            fields["trainable_token_indices"] = {name: list(ids) for name, ids in rows}
        if self.target_parameters:
            fields["target_parameters"] = list(self.target_parameters)
        else:
            del fields["target_parameters"]
        return {**fields, "bias": "none", "inference_mode": True}

    def to_json(self) -> dict[str, Any]:
        """The same as a new `adapter_config.json`."""
        return {**self.for_peft(), "peft_type": "MISS" if self.miss else "LORA"}


def read_settings(directory: Path) -> AdapterSettings:
    """Return the checked settings of the adapter in `directory`.

    Raises:
        ConfigError: there are none, or they are not those of an adapter that is trained here; the
            message names the file and the setting.
    """
    found = _read(directory)
    problems = [f"{directory / CONFIG}: `{key}` {why}" for key, why in _offences(found)]
    if problems:
        raise ConfigError(problems)
    return _checked(found)


def read_foreign_settings(directory: Path) -> AdapterSettings:
    """Return the settings of an adapter that others may have trained, to train it further.

    Raises:
        ConfigError: as `read_settings` does, or a setting is one that training here would drop,
            so that another adapter would come of it; the message names every such setting.
    """
    found = _read(directory)
    offences = dict(_offences(found))
    for key in sorted(found.keys() - PLAIN_KEYS - {*NAMES_CODE}):
        if found[key]:
            offences[key] = "is set, which cannot be trained further here"
    if found.get("bias", "none") != "none":
        offences["bias"] = "is not `none`: biases are not trained here"
    if found.get("init_lora_weights") not in BASE_KEPT_BY:
        offences["init_lora_weights"] = (
            f"is {text(found['init_lora_weights'], most=40)}: the adapter goes with a changed base;"
            " PEFT writes one for the original base with `path_initial_model_for_weight_conversion`"
        )
    if offences:
        raise ConfigError([f"{directory / CONFIG}: `{k}` {why}" for k, why in offences.items()])
    return _checked(found)


def _read(directory: Path) -> dict[str, Any]:
    """Return the table in the config of an adapter; raise `ConfigError` if there is none."""
    path = directory / CONFIG
    _require_content(path)
    try:
        found = parse(path.read_bytes(), bytes_max=BYTES_MAX)
    except FileNotFoundError:
        raise ConfigError([f"{directory}: there is no adapter; train first"]) from None
    except (OSError, NotPlain) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    if not isinstance(found, dict):
        raise ConfigError([f"{path} is no table"])
    if found.get("peft_type") == "MISS":
        dropout = found.get("miss_dropout", 0.0)
        return {**found, "lora_alpha": found.get("r"), "lora_dropout": dropout}
    return found


def _checked(found: dict[str, Any]) -> AdapterSettings:
    """Return what was found, once nothing of it offends."""
    return AdapterSettings(
        r=found["r"],
        lora_alpha=found["lora_alpha"],
        target_modules=tuple(found["target_modules"]),
        task_type=found.get("task_type"),
        lora_dropout=found.get("lora_dropout") or 0.0,
        use_dora=found.get("use_dora") is True,
        use_rslora=found.get("use_rslora") is True,
        fan_in_fan_out=found.get("fan_in_fan_out") is True,
        modules_to_save=tuple(dict.fromkeys(found.get("modules_to_save") or ())),
        ensure_weight_tying=found.get("ensure_weight_tying") is True,
        target_parameters=tuple(found.get("target_parameters") or ()),
        trained_rows=tuple(
            (name, tuple(ids)) for name, ids in (found.get("trainable_token_indices") or {}).items()
        ),
        miss=found["peft_type"] == "MISS",
        base_model_name_or_path=text(found.get("base_model_name_or_path")),
    )


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file; raise `ConfigError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _require_content(path)
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error


def _require_content(path: Path) -> None:
    """Raise `ConfigError` if a pointer or a web page stands in the place of the file."""
    try:
        reason = describe_placeholder(path)
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error}"]) from error
    if reason:
        raise ConfigError([f"{path}: {reason}"])


def _is_rows(item: tuple[str, object]) -> bool:
    """Whether a layer's name and the numbers of its trained tokens are what they should be."""
    name, ids = item
    if _MODULE.fullmatch(name) is None or not isinstance(ids, list) or len(ids) > TARGETS_MAX:
        return False
    return all(whole(one, most=TOKEN_MAX) is not None for one in ids)


def _offences(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings that cannot be as they are, each with the reason."""
    problems: list[tuple[str, str]] = []
    if found.get("peft_type") not in ("LORA", "MISS"):
        kind = text(found.get("peft_type"), most=40)
        problems.append(("peft_type", f"is {kind}: an adapter of another kind"))
    if not whole(found.get("r"), most=RANK_MAX):
        problems.append(("r", f"is no rank from 1 to {RANK_MAX}"))
    alpha = number(found.get("lora_alpha"), most=1e9)
    if alpha is None or alpha <= 0:
        problems.append(("lora_alpha", "is no number above 0"))
    dropout = number(found.get("lora_dropout", 0.0), most=1.0)
    if dropout is None or dropout < 0:
        problems.append(("lora_dropout", "is no share from 0 to 1"))
    experts = texts(found.get("target_parameters") or [], most=TARGETS_MAX)
    if experts is None or not all(_MODULE.fullmatch(one) for one in experts):
        problems.append(("target_parameters", "is no list of names of tensors"))
    targets = texts(found.get("target_modules"), most=TARGETS_MAX)
    if not (targets or (experts and targets == ())) or not all(map(_MODULE.fullmatch, targets)):
        problems.append(("target_modules", "is no list of names of layers"))
    saved = texts(found.get("modules_to_save") or [], most=TARGETS_MAX)
    if saved is None or not all(_MODULE.fullmatch(one) for one in saved):
        problems.append(("modules_to_save", "is no list of names of layers"))
    rows = found.get("trainable_token_indices") or {}
    if not isinstance(rows, dict) or not all(map(_is_rows, rows.items())):
        problems.append(("trainable_token_indices", "is no table of layers and numbers of tokens"))
    if found.get("peft_type") == "MISS":
        problems += [
            (key, "is set, by no training of ours")
            for key, usual in (("init_weights", True), ("modules_to_save", None))
            if found.get(key, usual) is not usual
        ]
    if found.get("task_type") is not None and found["task_type"] not in TASKS:
        problems.append(("task_type", f"is none of {', '.join(TASKS)}"))
    problems += [
        (key, "is neither true nor false")
        for key in ("use_dora", "use_rslora", "fan_in_fan_out", "ensure_weight_tying")
        if not isinstance(found.get(key, False), bool)
    ]
    problems += [
        (key, "names code, which no adapter needs") for key in NAMES_CODE if found.get(key)
    ]
    problems += [(key, "is set, by no training of ours") for key in CHANGES_SHAPE if found.get(key)]
    return problems
