"""Finds, reads and downloads the weights of the 16-bit base that an adapter is merged into.

    python -m trainer fetch-base --model OWNER/NAME [--revision REVISION]

Fetches description, tokenizer and weights from the hub, each once, into the library's own cache,
and prints the directory. Of several formats of the same weights only one is fetched.
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import TrainerError
from trainer.exit_codes import ExitCode
from trainer.hub import hub_is_silent

if TYPE_CHECKING:  # fetching needs no torch, and loading it takes seconds
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FORMATS = ((INDEX, SINGLE), ("pytorch_model.bin.index.json", "pytorch_model.bin"))
DESCRIBING = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")


class NoBaseError(TrainerError):
    """There is no base to merge into; the message says what is missing."""


def shard_names(base: Path) -> list[str]:
    """Return the files that hold the weights of a model directory, in order.

    Safetensors where there are any, else the older pickles of tensors.

    Raises:
        NoBaseError: there are none, or the index names one that is missing.
    """
    for index, single in FORMATS:
        names = _listed(base, index, single)
        missing = [name for name in names if not (base / name).is_file()]
        if missing:
            raise NoBaseError(f"{base} has no file {missing[0]}")
        if names:
            return names
    raise NoBaseError(f"{base} has no file {SINGLE}")


def _listed(base: Path, index: str, single: str) -> list[str]:
    """Return the files that the index lists, or the single file if it is there."""
    if not (base / index).is_file():
        return [single] if (base / single).is_file() else []
    try:
        listed = json.loads((base / index).read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({str(name) for name in listed})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise NoBaseError(f"{base / index} cannot be read: {error}") from error
    strange = [name for name in names if Path(name).name != name]
    if strange:
        raise NoBaseError(f"{base / index} names {strange[0]}, which lies outside of the model")
    return names


def safetensors_name(name: str) -> str:
    """Return the file name of a shard once it is written as safetensors."""
    return Path(name.removeprefix("pytorch_")).stem + ".safetensors"


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the value of every tensor of a shard, one at a time.

    Raises:
        NoBaseError: it cannot be read, or an older file holds anything but tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    yield name, file.get_tensor(name)
        else:  # a copy each, since tied weights share their memory and safetensors refuses that
            for name, tensor in _load_pickle(path).items():
                yield name, tensor.clone()
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NoBaseError(f"{path} cannot be read: {reason}") from error


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """Return one tensor of a shard by its name; raises as `read_tensors` does."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        whole: torch.Tensor = _load_pickle(path)[name]
        return whole.clone()
    try:
        with safe_open(path, framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise NoBaseError(f"{path} cannot be read: {error}") from error
    return found


def tensor_names(path: Path) -> list[str]:
    """Return the names of a shard's tensors; raises as `read_tensors` does."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return [name for name, _ in read_tensors(path)]
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise NoBaseError(f"{path} cannot be read: {error}") from error


def _load_pickle(path: Path) -> dict[str, Any]:
    """Map a file of `torch.save` into memory, reading tensors only; nothing in it is executed."""
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(found, dict):
        raise NoBaseError(f"{path} holds no table of tensors")
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def stored_name(name: str, names: Collection[str]) -> str:
    """Return the name of a loaded model's tensor in files with these `names`.

    A base may be stored without the first part of its names (GPT-2 is, on the hub), which
    transformers puts in front when it loads one. A multimodal base is loaded whole or as its text
    model alone, and names that otherwise than its files do (Gemma 3, Llama 4, Qwen2.5-VL).
    """
    return next((one for one in _spellings(name) if one in names), name)


def _spellings(name: str) -> Iterator[str]:
    """Yield the names that a tensor may have in files, its own first."""
    yield name
    yield name.partition(".")[2]
    yield f"language_model.{name}"
    rest = name.removeprefix("model.")
    if rest != name:
        text = rest.removeprefix("language_model.")
        yield f"language_model.model.{text}"
        yield f"model.language_model.{text}"
        yield f"model.{text}"


def download(model: str, revision: str) -> Path:
    """Download a base from the hub, as far as it is not there yet; return its directory.

    Endpoint, cache and token are those of `huggingface_hub` (`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`).
    What an earlier fetch left is used where the hub is not reached.

    Raises:
        NoBaseError: there is no such model, no right to read it, or it has no weights.
        ConnectionError: the hub does not answer, and the base was not fetched before.
    """
    directory = _snapshot(model, revision, DESCRIBING, ignored=("*/*",))
    if not (directory / "config.json").is_file():
        raise NoBaseError(f"{model} at {revision} holds no model: it has no config.json")
    commit = directory.name  # should a branch move meanwhile, all files are of one commit
    for index, single in FORMATS:
        wanted = _listed(directory, index, single) or [single]
        _snapshot(model, commit, wanted)
        if _listed(directory, index, single):
            shard_names(directory)
            return directory
    raise NoBaseError(f"{model} at {revision} has neither {SINGLE} nor an index of such files")


def _snapshot(
    model: str, revision: str, names: Sequence[str], *, ignored: Sequence[str] = ()
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # one is of its HTTP library
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
    )

    try:
        found = snapshot_download(
            model, revision=revision, allow_patterns=list(names), ignore_patterns=list(ignored)
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        refused = isinstance(error, HfHubHTTPError) and not hub_is_silent(error)
        if not refused and isinstance(error, HTTPError | LocalEntryNotFoundError):
            raise ConnectionError(f"the hub does not give {model}: {reason}") from error
        raise NoBaseError(f"{model} at {revision} cannot be fetched: {reason}") from error
    return Path(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the base to download."""
    parser.add_argument("--model", required=True, help="OWNER/NAME on the hub")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")


def run(args: argparse.Namespace) -> int:
    """Fetch, and print the directory."""
    try:
        directory = download(args.model, args.revision)
    except ConnectionError as error:
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            raise
        raise NoBaseError(str(error)) from error
    sys.stdout.write(f"{directory}\n")
    return ExitCode.DONE
