"""Loads the frozen base in the types of the run, and puts a float32 adapter on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.adapters import experts, methods, miss, new_tokens, quantise, saved_modules
from trainer.adapters.expert_methods import expert_problem
from trainer.adapters.experts import ExpertQuantiser
from trainer.adapters.parent import ParentAdapter, adapted_layers
from trainer.adapters.quantised_share import QuantisedShare
from trainer.adapters.residual import require_fit
from trainer.adapters.settings import TENSORS, load_tensors, read_settings
from trainer.adapters.stored_base import StoredBase
from trainer.adapters.unadaptable import unadaptable
from trainer.base_config import base_problems, stored_quantisation
from trainer.base_family import choose_family, quiet_bitsandbytes
from trainer.config import ModelTable, TrainerConfig, TrainTable
from trainer.device.activations import can_checkpoint, set_checkpointing
from trainer.device.deferred_modules import defer_modules
from trainer.device.precision import Precision, choose_precision
from trainer.errors import ConfigError
from trainer.hub import is_hub_id
from trainer.load_failures import readable_failure
from trainer.method_table import MethodKind, MethodTable, Quant
from trainer.schedule import derive_seed
from trainer.secret import Secret

Model = Any  # a transformers model, later wrapped by PEFT; neither ships types


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a base model comes from: a directory, or a hub id with its revision."""

    name: str
    revision: str | None
    trust_remote_code: bool
    token: Secret | None = field(default=None, repr=False, compare=False)
    new_tokens: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether it is a directory of this machine."""
        return self.revision is None

    @property
    def arguments(self) -> dict[str, Any]:
        """What every `from_pretrained` gets."""
        revision = {} if self.revision is None else {"revision": self.revision}
        token = {} if self.token is None else {"token": self.token.reveal()}
        return {"trust_remote_code": self.trust_remote_code, **revision, **token}


def find_source(table: ModelTable, run_dir: Path, token: Secret | None = None) -> Source:
    """Resolve `model.id`: a directory (absolute, or relative to the run directory) or a hub id.

    The hub gets `token`, if there is one; else that of the environment, as its library finds it.

    Raises:
        ConfigError: no such directory exists, and no hub could have a model of that name.
    """
    path = (run_dir / Path(table.id).expanduser()).resolve()
    if path.is_dir():
        return Source(
            name=str(path), revision=None, trust_remote_code=table.trust_remote_code,
            new_tokens=table.new_tokens,
        )  # fmt: skip
    if not is_hub_id(table.id):
        raise ConfigError([f"model.id: there is no directory {path}"])
    return Source(
        name=table.id,
        revision=table.revision,
        trust_remote_code=table.trust_remote_code,
        token=token,
        new_tokens=table.new_tokens,
    )


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer of the base, with new tokens; raises `ConfigError` if there is none."""
    tokenizer = _own_tokenizer(source)
    new_tokens.add_to(tokenizer, source.new_tokens)
    return tokenizer


def _own_tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    with readable_failure(source.name, source.revision):
        return AutoTokenizer.from_pretrained(source.name, **source.arguments)


def load_config(source: Source) -> Any:
    """Load the description of the base (no weights); raises `ConfigError` if there is none.

    With new tokens it says how many rows the embedding will have.
    """
    found = _own_config(source)
    if source.new_tokens:
        new_tokens.grow_config(found, new_tokens.add_to(_own_tokenizer(source), source.new_tokens))
    return found


def _own_config(source: Source) -> Any:
    from transformers import AutoConfig

    with readable_failure(source.name, source.revision):
        return AutoConfig.from_pretrained(source.name, **source.arguments)


def require_usable(model_config: Any, method: MethodTable, source: Source) -> None:
    """Raise `ConfigError` if a base cannot be trained by this method, by its description alone."""
    name = Path(source.name).name if source.local else source.name
    problems = base_problems(model_config.to_dict(), method, name=name)
    if problems:
        raise ConfigError(problems)


def is_seq2seq(model_config: Any) -> bool:
    """Tell whether the base reads with an encoder and writes with a decoder, as T5 does."""
    return bool(getattr(model_config, "is_encoder_decoder", False))


def device_precision(train: TrainTable, *, device: torch.device, seq2seq: bool) -> Precision:
    """Choose the arithmetic for the device at hand."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return choose_precision(
        train.precision, device=device.type, capability=capability, seq2seq=seq2seq
    )


def load_base(  # noqa: PLR0913 - what is loaded, where to, and two that may be left out
    source: Source,
    method: MethodTable,
    *,
    precision: Precision,
    device: torch.device,
    on_share: Callable[[QuantisedShare], None] | None = None,
    stored: StoredBase | None = None,
) -> Model:
    """Load the frozen base on `device`, quantised if the method says so.

    Attention is SDPA where the architecture has it. Nothing is upcast to float32: PEFT's
    `prepare_model_for_kbit_training` would double the memory of the embeddings for no gain.
    `on_share` hears how much of a base will be quantised before a weight is read, and may raise.
    From `stored` the quantised weights are read, if they are there; bits and model are the same.

    Raises:
        ConfigError: there is no such model, it is not one that generates text, some of its weights
            are missing, none of its layers can be quantised, or it does not fit (`DoesNotFit`).
        ConnectionError: the hub does not answer; try again.
    """

    def on_empty(model: Model, experts: ExpertQuantiser) -> bool:
        if on_share is not None:
            on_share(quantise.measure(model, method.storage, experts=experts.names))
        if stored is not None:
            stored.experts = experts
        return True

    with nullcontext() if stored is None else stored.within():
        base = _read(source, method, precision=precision, device=device, on_empty=on_empty)
    base.requires_grad_(requires_grad=False)
    if method.storage is not Quant.NONE:
        quantise.require_quantised(base)
        forbid_repacking(base)
    elif on_share is not None:
        on_share(quantise.measure(base, method.storage))
    if source.new_tokens:
        new_tokens.grow(base, _own_tokenizer(source), source.new_tokens)
    return base


def empty_base(
    source: Source, method: MethodTable, *, precision: Precision, device: torch.device
) -> Model:
    """Return the quantised base as `load_base` has it before it reads a weight: all shape, no size.

    Which layers are quantised, and how, is thus decided in the very same way.

    Raises:
        ConfigError, ConnectionError: as `load_base` does.
    """
    empty: list[Model] = []

    def on_empty(model: Model, experts: ExpertQuantiser) -> bool:  # noqa: ARG001
        empty.append(model)
        return False

    _read(source, method, precision=precision, device=device, on_empty=on_empty)
    quantise.require_quantised(empty[0])
    return empty[0]


def _read(
    source: Source, method: MethodTable, *, precision: Precision, device: torch.device,
    on_empty: Callable[[Model, ExpertQuantiser], bool],
) -> Any:  # fmt: skip
    """Let transformers load the base and return it, or None if `on_empty` has enough."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # the log is a file
    quiet_bitsandbytes()
    model_config = _own_config(source)
    require_usable(model_config, method, source)
    family = choose_family(model_config)
    dtype = DTYPES[precision.compute]
    arguments: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, **source.arguments}
    already = stored_quantisation(model_config.to_dict())
    if already is not None:  # as wanted; but its arithmetic is this device's
        model_config.quantization_config = {**already, "bnb_4bit_compute_dtype": dtype}
    elif method.storage is not Quant.NONE:
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=not method.storage.four_bit,
            load_in_4bit=method.storage.four_bit,
            bnb_4bit_quant_type=str(method.storage) if method.storage.four_bit else "fp4",
            bnb_4bit_use_double_quant=method.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    with (
        readable_failure(source.name, source.revision),
        quantise.all_matrices(method.storage, on_empty=on_empty) as quantiser,
    ):
        base, loading = family.from_pretrained(
            source.name, config=model_config, output_loading_info=True, **arguments
        )
        _require_all_weights(base, loading["missing_keys"])
        quantiser.install(base)
        return base


def _require_all_weights(base: Model, missing: Iterable[str]) -> None:
    """Raise `ConfigError` if a weight was not found: it would be random, and new at each start."""
    lacking = sorted(set(missing) & {name for name, _ in base.named_parameters()})
    if lacking:
        what = f"{len(lacking)} weights of a {type(base).__name__}, such as {lacking[0]}"
        raise ConfigError([f"model.id: the files lack {what}: config.json is of another base"])


def forbid_repacking(model: Model) -> int:
    """Keep every 4-bit layer from repacking its weights in place; return how many layers there are.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 converts a layer to an inference-only layout in the
    first forward pass in eval mode (`Linear4bit.forward`); a training pass after it then computes
    with the wrong weights and no error. The layer decides by this attribute.
    """
    layers = list(four_bit_layers(model))
    for _, layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def four_bit_layers(model: Model) -> Iterator[tuple[str, Any]]:
    """Yield the name and the module of every 4-bit linear layer."""
    from bitsandbytes.nn import Linear4bit

    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            yield name, module


def place_limit(model: Model) -> int | None:
    """Return how many tokens the model has learnt places for, None if places are computed.

    Beyond it there is nothing to look up (GPT-2, OPT): on a GPU that ends the whole process.
    """
    reading = quantise.text_prefix(model)
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if not isinstance(module, torch.nn.Embedding) or not name.startswith(reading):
            continue
        if last == "wpe" or "position" in last:
            limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            return int(limit or module.num_embeddings)
    return None


def require_places(model: Model, longest: int) -> None:
    """Raise `ConfigError` if a row of `longest` tokens is more than the model can read."""
    limit = place_limit(model)
    if limit is not None and longest > limit:
        has = f"a row has {longest} tokens, and {type(model).__name__} has places for {limit}"
        raise ConfigError([f"train.max_length: {has}; set it to {limit} or less"])


def attach_adapter(
    base: Model, method: MethodTable, train: TrainTable, *, parent: ParentAdapter | None = None
) -> Model:
    """Put a trainable adapter on `base`; its first weights depend on the seed only, or on `parent`.

    Raises:
        ConfigError: a target is no linear layer of this model (the message lists the candidates),
            or the tensors of `parent` are not those of an adapter on this base.
    """
    import peft

    torch.manual_seed(derive_seed(train.seed, "adapter"))
    every = method.targets == "all-linear"
    targets = (
        find_targets(base, method)
        if parent is None
        else adapted_layers(parent, _linear_names(base), every=every)
    )
    saved = saved_modules.find_saved(base, method.save, targets=targets)
    adapted_experts = (
        find_experts(base, method) if parent is None else sorted(parent.settings.target_parameters)
    )
    settings = methods.settings(
        method,
        targets=targets,
        saved=saved,
        experts=adapted_experts,
        rows=new_tokens.trained_rows(base),
        seq2seq=is_seq2seq(base.config),
    )
    if method.kind is MethodKind.MISS:
        miss.require_linears(base, method, targets)
    require_fit(base, method, targets=targets, experts=adapted_experts)
    on_gpu = base.device.type == "cuda"
    with warnings.catch_warnings():  # the names of transformers 5, which 6 will drop
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        with experts.shown_plain(base):
            model = peft.get_peft_model(base, settings)
    wanted, able = train.gradient_checkpointing, can_checkpoint(base)
    if wanted is True and not able:
        raise ConfigError(
            [f"train.gradient_checkpointing: {type(base).__name__} cannot; use `auto`"]
        )
    set_checkpointing(base, on=bool((on_gpu and able) if wanted == "auto" else wanted))
    base.config.use_cache = False
    experts.adapt_in_four_bits(model)
    saved_modules.record_saved(model, saved)
    saved_modules.train_in_float32(model)
    new_tokens.train_in_float32(model)
    methods.equip(model, method, train)
    if parent is not None:
        methods.begin_from(model, parent)
    for name, parameter in trainable(model).items():
        if parameter.dtype is not torch.float32:
            raise TypeError(f"{name} is {parameter.dtype}; trained parameters must be float32")
    return model


def load_adapter(base: Model, directory: Path) -> Model:
    """Put a finished adapter on `base` for inference; PEFT sees only settings that were checked.

    Raises:
        ConfigError: the adapter is none that is trained here.
    """
    import peft

    settings = read_settings(directory)
    with warnings.catch_warnings():  # as above
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        config = miss.peft_settings(settings)
        saved = methods.saved_format(directory)
        if saved.peft_loads:
            if not (directory / TENSORS).is_file():  # or PEFT would unpickle an older format
                raise ConfigError([f"{directory}: there is no {TENSORS}"])
            with experts.shown_plain(base):
                model = peft.PeftModel.from_pretrained(base, str(directory), config=config)
            experts.adapt_in_four_bits(model)
            if settings.holds_weights:  # copied in the type of the base, to which PEFT rounds
                saved_modules.train_in_float32(model)
                new_tokens.train_in_float32(model)
                peft.set_peft_model_state_dict(model, load_tensors(directory / TENSORS))
            return model.eval()
        matrices = saved.lora(directory, None)
        model = peft.PeftModel(base, config)
        outcome = peft.set_peft_model_state_dict(model, matrices)
    if outcome.unexpected_keys:
        odd = ", ".join(outcome.unexpected_keys[:3])
        raise ConfigError([f"{directory}: the base has no place for {odd}"])
    return model.eval()


def load_for_inference(
    config: TrainerConfig, run_dir: Path, adapter: Path | None
) -> tuple[Model, Any]:
    """Load a run's base on the device there is, with an adapter if one is given; and its tokenizer.

    Raises:
        ConfigError, ConnectionError: as `load_base` and `load_adapter` do.
    """
    defer_modules()
    source = find_source(config.model, run_dir)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seq2seq = is_seq2seq(load_config(source))
    precision = device_precision(config.train, device=device, seq2seq=seq2seq)
    model = load_base(source, config.method, precision=precision, device=device)
    if adapter is not None:
        model = load_adapter(model, adapter)
    return model.eval(), load_tokenizer(source)


def trainable(model: Model) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name, in a fixed order."""
    named = ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    return dict(sorted(named))


def find_targets(base: Model, method: MethodTable) -> list[str]:
    """Return the last name parts of the linear layers to adapt, sorted.

    Of a multimodal base only layers that read text are adapted. Others have the same last parts, so
    whole names are returned.

    Raises:
        ConfigError: a wanted name fits no linear layer and no experts.
    """
    wanted = _find_last_names(base, method)
    if not quantise.text_prefix(base):
        return wanted
    return sorted(name for name in _linear_names(base) if name.rsplit(".", 1)[-1] in wanted)


def _find_last_names(base: Model, method: MethodTable) -> list[str]:
    """Return the last name parts of the linear layers to adapt; raises as `find_targets` does."""
    linears = sorted({name.rsplit(".", 1)[-1] for name in _linear_names(base)})
    expert_names = experts.last_names(base)
    refused = unadaptable(base, linears, mixture=bool(expert_names))
    if method.targets == "all-linear":
        return [name for name in linears if name not in refused]
    candidates = sorted({*linears, *expert_names})
    unknown = sorted(set(method.targets) - set(candidates))
    if unknown:
        missing = f"the model has no linear layer called {', '.join(unknown)}"
        raise ConfigError([f"method.targets: {missing}; it has {', '.join(candidates)}"])
    wanted = set(method.targets) - set(expert_names)
    problems = [f"`{name}`: {refused[name]}" for name in sorted(wanted & refused.keys())]
    if problems:
        raise ConfigError([f"method.targets: {problem}; leave it out" for problem in problems])
    return sorted(wanted)


def find_experts(base: Model, method: MethodTable) -> list[str]:
    """Return the tensors of experts to adapt, as PEFT's `target_parameters` name them, sorted.

    Raises:
        ConfigError: there are such tensors, and this method cannot adapt them.
    """
    expert_names = experts.last_names(base)
    every = method.targets == "all-linear"
    wanted = [name for last, name in expert_names.items() if every or last in method.targets]
    layers = _find_last_names(base, method)
    problem = expert_problem(method, experts=expert_names, layers=layers)
    if problem is not None:
        raise ConfigError([problem])
    return sorted(wanted)


def describe_targets(base: Model, method: MethodTable) -> list[str]:
    """Return what the user should know of what is adapted: nothing where that is every layer."""
    expert_names = experts.last_names(base)
    reading = quantise.text_prefix(base)
    linears = sorted({name.rsplit(".", 1)[-1] for name in _linear_names(base)})
    refused = unadaptable(base, linears, mixture=bool(expert_names))
    if not expert_names and not reading and not refused:
        return []
    adapted = [*_find_last_names(base, method), *find_experts(base, method)]
    left = sorted({*linears, *expert_names.values()} - set(adapted))
    where = f" of {reading.removesuffix('.')}" if reading else ""
    lines = [f"adapted: {', '.join(adapted)}{where}"]
    if left:
        lines.append(f"frozen, not adapted: {', '.join(left)}")
    return lines


def _linear_names(base: Model) -> Iterator[str]:
    """Yield the name of every linear layer that reads text, but the one that makes the logits."""
    from transformers.pytorch_utils import Conv1D

    head, reading = base.get_output_embeddings(), quantise.text_prefix(base)
    for name, module in base.named_modules():
        if not name.startswith(reading) or module is head or quantise.is_router(module):
            continue
        if isinstance(module, torch.nn.Linear | Conv1D):
            yield name


DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
