"""Tells by the names of a repository's files what it holds: a base model, or something else.

What transformers loads is a `config.json`, weights under one of four names, and a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from trainer import untrusted

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Read as tables of tensors only: nothing in them is executed."""
TOKENIZERS = (
    *("*token*", "*vocab*", "*spiece*", "*bpe*", "*.model", "*.tiktoken", "tekken.json"),
    "merges.txt",
)
"""A tokenizer has a file of one of these names."""
DESCRIBING = (
    *("config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
    *("spiece*", "sentencepiece*", "chat_template*", "additional_chat_templates/*.jinja"),
)
"""What is fetched to describe a base."""
CODE = ("*.py",)
DESCRIPTION_BYTES_MAX = 256 << 20
"""Of one file; the largest tokenizers have 35 MB."""
OTHER_WEIGHTS = {
    "*.gguf": "GGUF files of llama.cpp",
    "consolidated*.pth": "weights in the format of Meta's own code",
    "consolidated*.safetensors": "weights in the format of Mistral's own code",
    "tf_model*.h5": "weights for TensorFlow",
    "flax_model*.msgpack": "weights for Flax",
    "*.onnx": "weights for ONNX",
    "*.pth": "pickled weights of another program",
    "*.pt": "pickled weights of another program",
    "*.bin": "weights under a name that transformers does not load",
    "*.safetensors": "weights under a name that transformers does not load",
}
"""Weights that transformers does not train from, the most telling kind first."""


def model_problem(
    model: str, files: Iterable[str], info: Any, *, trust_remote_code: bool
) -> tuple[str, str] | None:
    """Return why a repository is no base and what to take instead; None if it can be one.

    `info` is what the hub tells of it: its card may name the base that it was made from.
    """
    names = [name for name in files if "/" not in name]
    original = _original(info)
    instead = f"take the original, perhaps `{original}`" if original else "take the original model"
    has_weights = any(name in names for name in (*SAFETENSORS, *PICKLES))
    others = next((what for like, what in OTHER_WEIGHTS.items() if _any(names, like)), "")
    if "adapter_config.json" in names and not has_weights:
        base = f"model: {{id: {original}}}" if original else "its base as `model.id`"
        return (
            f"`{model}` is an adapter, and no base"
            + (f": its base is `{original}`" * bool(original)),
            f"write `{base}`, and `method: {{from: {model}}}` to go on from the adapter",
        )
    if _any(names, "*.gguf") and not has_weights:
        return f"`{model}` holds GGUF files only, which are for inference", instead
    if "model_index.json" in names:
        return f"`{model}` is a pipeline of diffusers, and no language model", "take another model"
    if "config.json" not in names:
        return f"`{model}` has no config.json: transformers cannot load it", _subfolder(
            files, instead
        )
    if not has_weights:
        held = f"holds {others}, and none" if others else "holds no weights"
        return f"`{model}` {held} that transformers trains from", (
            f"{instead}: it needs `{SAFETENSORS[0]}`, or `{SAFETENSORS[1]}` with its shards"
        )
    if not trust_remote_code and not any(_any(names, like) for like in TOKENIZERS):
        return f"`{model}` holds no tokenizer", instead
    return None


def description_names(files: Mapping[str, int | None], *, code: bool) -> list[str]:
    """Return the files that describe a base: its config and its tokenizer, no weights."""
    wanted = (*DESCRIBING, *CODE * code)
    return [
        name
        for name, size in files.items()
        if any(fnmatchcase(name, like) and name.count("/") == like.count("/") for like in wanted)
        and (size or 0) <= DESCRIPTION_BYTES_MAX
    ]


def weights_bytes(files: Mapping[str, int | None]) -> int | None:
    """Return the size of the weights that are loaded, in bytes; None if it is not told."""
    for (single, index), shards in (
        (SAFETENSORS, "*-of-*.safetensors"),
        (PICKLES, "pytorch_model-*-of-*.bin"),
    ):
        names = [single] if single in files else []
        if not names and index in files:
            names = [name for name in files if "/" not in name and fnmatchcase(name, shards)]
        if names:
            sizes = [files[name] for name in names]
            given = [size for size in sizes if size is not None]
            return sum(given) if len(given) == len(sizes) else None
    return None


def _any(names: Iterable[str], like: str) -> bool:
    return any(fnmatchcase(name, like) for name in names)


def _subfolder(files: Iterable[str], instead: str) -> str:
    """Return what to do about a repository whose model lies in a folder of it."""
    deep = next((name for name in files if name.endswith("/config.json")), "")
    folder = untrusted.text(deep.rpartition("/")[0]) or ""
    if not folder:
        return instead
    return f"a model lies in its folder `{folder}`: `hf download` it, and name that directory"


def _original(info: Any) -> str:
    """Return the model that a card names as the one it was made from; empty if it names none."""
    card = getattr(info, "card_data", None)
    base = getattr(card, "base_model", None)
    first = base[0] if isinstance(base, list) and base else base
    return untrusted.text(first, most=200) or ""
