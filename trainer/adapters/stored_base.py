"""Stores a base once it is quantised: the next start on this machine reads four bits only.

Quantising is most of what loading costs, and after each eviction the same result is computed again.
What is stored is what transformers' own loading leaves in the model, tensor by tensor under the
names of the model: a stored base has the same bits, and everything before and after the reading
(the empty model, tied weights, computed buffers) is done by the same code as without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.adapters.experts import ExpertQuantiser
from trainer.adapters.stored_files import (
    BaseFolder,
    NoMemory,
    NotStorable,
    NotWhole,
    Stopped,
    Stored,
)
from trainer.text import gigabytes

FORMAT = 1
FOUR_BIT, EIGHT_BIT, EXPERT = "4bit", "int8", "expert"
SCALES = "SCB"
"""What bitsandbytes calls the scales of the rows of an int8 matrix."""

OnMessage = Callable[[str], None]


def store_folder(environment: Mapping[str, str]) -> Path:
    """Return where this machine stores quantised bases: beside the hub's cache, not in a run."""
    if home := environment.get("HF_HOME"):  # somebody chose a disk with room for bases
        return Path(os.path.expandvars(home)).expanduser() / "qft" / "bases"
    top = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(top)).expanduser() / "qft" / "bases"


def folder_name(model: str, facts: Mapping[str, Any]) -> str:
    """Return the name of a base in the store: the model's, and a hash of all it depends on."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", model)[-60:].lstrip(".-")
    return f"{plain or 'base'}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


@dataclass(kw_only=True)
class StoredBase:
    """One base in the store: read instead of quantised, or written once it was quantised.

    Use it for one loading, in the order `begin_reading` (which may be left out), `within`,
    `begin_writing`, `close`.
    """

    folder: BaseFolder
    name: str
    on_message: OnMessage
    experts: ExpertQuantiser = field(default_factory=ExpertQuantiser)
    """What quantises the experts of the model that is being loaded; it has their scales."""
    _captured: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None
    _reading: Future[Stored | None] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _writer: threading.Thread | None = None

    def begin_reading(self) -> None:
        """Read and verify what is stored, in a thread of its own, while others import libraries."""
        reading: Future[Stored | None] = Future()

        def read() -> None:
            try:
                reading.set_result(self.folder.read(self.name))
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                reading.set_exception(error)

        self._reading = reading
        threading.Thread(target=read, name="read-base", daemon=True).start()

    @contextmanager
    def within(self) -> Iterator[None]:
        """While inside, transformers takes weights from the store, if they are there and whole.

        Otherwise it reads and quantises as ever, and what it leaves is remembered for the store.
        """
        from transformers import PreTrainedModel

        original = PreTrainedModel._load_pretrained_model  # noqa: SLF001 - there is no hook

        def load(model: Any, state_dict: Any, files: Any, load_config: Any, **more: Any) -> Any:
            info = self._restore(model, load_config)
            if info is not None:
                return info, None
            found = original(model, state_dict, files, load_config, **more)
            try:
                self._captured = capture(model, found[0], load_config, self.experts)
            except NotStorable as reason:
                self.on_message(f"the quantised base is not stored on this machine: {reason}")
            return found

        patched: Any = PreTrainedModel
        patched._load_pretrained_model = staticmethod(load)  # noqa: SLF001
        try:
            yield
        finally:
            patched._load_pretrained_model = staticmethod(original)  # noqa: SLF001

    def _restore(self, model: Any, load_config: Any) -> Any:
        """Fill the model from the store and return what transformers records of loading, or None.

        Nothing of the model is changed unless all of it fits.
        """
        reading, self._reading = self._reading, None
        try:
            stored = self.folder.read(self.name) if reading is None else reading.result()
            if stored is None:
                return None
            require_fit(model, stored, load_config, self.experts)
        except NoMemory:
            self.on_message("too little memory is free to read the stored quantised base")
            return None
        except (NotWhole, OSError, KeyError, TypeError, ValueError) as error:
            self.folder.remove(self.name)
            self.on_message(
                f"the stored quantised base cannot be used ({error}): it is quantised anew"
            )
            return None
        info = fill(model, stored, load_config, self.experts)
        self.on_message(
            f"the quantised base is read from this machine's disk: {gigabytes(stored.size)}"
        )
        return info

    def begin_writing(self) -> None:
        """Write what was quantised to the store, in a thread of its own; without that, do nothing.

        Tensors are read from the model meanwhile: nothing may change a frozen base in place. (The
        methods that do so, PiSSA and OLoRA, want one that is not quantised.)
        """
        if self._captured is None:
            return
        tensors, facts = self._captured
        self._captured = None

        def write() -> None:
            try:
                size = self.folder.write(self.name, tensors, facts, stop=self._stop)
            except Stopped:
                return
            except (OSError, RuntimeError, NotStorable) as error:  # CUDA's errors are the second
                self.on_message(f"the quantised base is not stored on this machine: {error}")
                return
            if size:
                self.on_message(
                    f"the quantised base is stored on this machine ({gigabytes(size)}): the next "
                    "start reads it instead of quantising again"
                )

        self._writer = threading.Thread(target=write, name="store-base", daemon=True)
        self._writer.start()

    def wait(self) -> None:
        """Return once nothing is being written."""
        if self._writer is not None:
            self._writer.join()

    def close(self) -> None:
        """Give up what is still being written, and leave nothing of it."""
        self._captured = self._reading = None
        self._stop.set()
        self.wait()


def capture(
    model: Any, info: Any, load_config: Any, experts: ExpertQuantiser
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors that transformers has just put into a model, and what goes with them.

    Raises:
        NotStorable: the model keeps more than tensors, or lies on several devices.
    """
    _device_of(load_config)
    tensors: dict[str, torch.Tensor] = {}
    kinds: dict[str, str] = {}
    absent: list[str] = []
    for name, module, last, tensor in _places(model):
        if tensor.device.type == "meta":
            absent.append(name)
            continue
        tensors[name] = tensor.detach()
        for part, value in _scales(module, last, tensor, experts.scales.get(name)).items():
            tensors[f"{name}.{part}"] = value.detach()
        if kind := _kind(module, last, name, experts):
            kinds[name] = kind
    conversions = load_config.weight_mapping or []
    facts = {
        "kinds": kinds,
        "absent": sorted(absent),
        "missing": sorted(info.missing_keys),
        "unexpected": sorted(info.unexpected_keys),
        "conversions": [at for at, one in enumerate(conversions) if one.was_used()],
    }
    return tensors, facts


def require_fit(model: Any, stored: Stored, load_config: Any, experts: ExpertQuantiser) -> None:
    """Raise `NotWhole` unless the stored tensors are those of this empty model, each of its shape.

    What is read depends on the name of the folder only; this is the proof that it was the right
    one.
    """
    _device_of(load_config)
    facts, left = stored.facts, set(stored.tensors)
    for name, module, last, tensor in _places(model):
        if name in facts["absent"]:
            continue
        kind = facts["kinds"].get(name)
        if name not in stored.tensors or kind != _kind(module, last, name, experts):
            raise NotWhole(f"it has no {name} as this model has it")
        if kind is None and stored.tensors[name].shape != tensor.shape:
            raise NotWhole(f"its {name} has another shape")
        if kind in {FOUR_BIT, EXPERT}:
            size = tensor.numel() if kind == EXPERT else module.in_features * module.out_features
            if stored.tensors[name].numel() * 2 != size + size % 2:
                raise NotWhole(f"its {name} has another shape")
        left -= {name, *(f"{name}.{part}" for part in _parts_of(stored.tensors, name))}
    if left:
        raise NotWhole(f"it has {min(left)}, which this model has not")


def fill(model: Any, stored: Stored, load_config: Any, experts: ExpertQuantiser) -> Any:
    """Put stored tensors into an empty model; return what transformers records of loading.

    It is what `convert_and_load_state_dict_in_model` of transformers 5.23 does with the tensors
    that it has read and converted.
    """
    from transformers.core_model_loading import LoadStateDictInfo

    device, facts = _device_of(load_config), stored.facts
    for name, module, last, _ in list(_places(model)):
        if name in facts["absent"]:
            continue
        kind = facts["kinds"].get(name)
        value = stored.tensors[name].to(device)
        scales = {
            part: stored.tensors[f"{name}.{part}"].to(device)
            for part in _parts_of(stored.tensors, name)
        }
        if kind is not None and kind != EXPERT:
            module._is_hf_initialized = True  # noqa: SLF001 - as transformers marks it
        if kind == EXPERT:
            experts.scales[name] = scales
        new = _parameter(kind, value, scales, module, buffer=last in module._buffers)  # noqa: SLF001
        new._is_hf_initialized = True  # noqa: SLF001
        setattr(module, last, new)
    conversions = load_config.weight_mapping or []
    model._weight_conversions = [conversions[at] for at in facts["conversions"]]  # noqa: SLF001
    return LoadStateDictInfo(
        missing_keys=set(facts["missing"]),
        unexpected_keys=set(facts["unexpected"]),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )


def _parameter(
    kind: str | None, value: torch.Tensor, scales: dict[str, torch.Tensor], module: Any, *,
    buffer: bool,
) -> Any:  # fmt: skip
    """Return what a module holds: a buffer, a parameter, or one of bitsandbytes'."""
    import bitsandbytes

    if kind == FOUR_BIT:
        return bitsandbytes.nn.Params4bit.from_prequantized(
            data=value, quantized_stats=scales, requires_grad=False, device=value.device,
            module=module,
        )  # fmt: skip
    if kind == EIGHT_BIT:
        return bitsandbytes.nn.Int8Params(
            value, requires_grad=False, has_fp16_weights=False, CB=value, SCB=scales[SCALES]
        )
    if buffer:
        return value
    return torch.nn.Parameter(value, requires_grad=kind is None and value.is_floating_point())


def _places(model: Any) -> Iterator[tuple[str, Any, str, torch.Tensor]]:
    """Yield every place of a model that a file of weights can fill, in the model's order.

    Raises:
        NotStorable: a module keeps something that is no tensor.
    """
    for path, module in model.named_modules():
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            raise NotStorable(f"{path} keeps more than tensors")
        lasting = (
            (last, one)
            for last, one in module._buffers.items()  # noqa: SLF001 - torch has no other way
            if last not in module._non_persistent_buffers_set  # noqa: SLF001
        )
        for last, tensor in (*module._parameters.items(), *lasting):  # noqa: SLF001
            if tensor is not None:
                yield f"{path}.{last}" if path else last, module, last, tensor


def _kind(module: Any, last: str, name: str, experts: ExpertQuantiser) -> str | None:
    """Return how a place of a model is quantised; None if it is not."""
    if name in experts.names:
        return EXPERT
    kinds = {"Linear4bit": FOUR_BIT, "Linear8bitLt": EIGHT_BIT}
    return kinds.get(type(module).__name__) if last == "weight" else None


def _scales(
    module: Any, last: str, tensor: Any, of_expert: Mapping[str, torch.Tensor] | None
) -> Mapping[str, torch.Tensor]:
    """Return what belongs to a quantised tensor, by bitsandbytes' names."""
    if of_expert is not None:
        return of_expert
    kind = type(module).__name__ if last == "weight" else ""
    if kind == "Linear4bit":
        found: Mapping[str, torch.Tensor] = tensor.quant_state.as_dict(packed=True)
        return found
    return {SCALES: tensor.SCB} if kind == "Linear8bitLt" else {}


def _parts_of(tensors: Mapping[str, torch.Tensor], name: str) -> list[str]:
    """Return under which names something belongs to a quantised tensor."""
    every = (
        "absmax", "quant_map", "nested_absmax", "nested_quant_map",
        "quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4", SCALES,
    )  # fmt: skip
    return [part for part in every if f"{name}.{part}" in tensors]


def _device_of(load_config: Any) -> Any:
    """Return the only device of a model; raises `NotStorable` if there are more."""
    devices = {str(one) for one in (load_config.device_map or {"": "cpu"}).values()}
    if len(devices) != 1 or "disk" in devices:
        raise NotStorable(f"it lies on several devices: {', '.join(sorted(devices))}")
    device = devices.pop()
    return torch.device("cuda", int(device)) if device.isdecimal() else torch.device(device)
