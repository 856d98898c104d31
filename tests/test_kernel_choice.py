"""A run uses the kernels that suit its base and card and prove equal there, and says which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from trainer.config import TrainTable
from trainer.kernels.choose import choose_kernels
from trainer.kernels.equality import find_function_difference, fixed_values, relative_difference
from trainer.kernels.kernel_set import NO_KERNELS, Card, KernelSet

CPU = Card(device=torch.device("cpu"), capability=None, dtype=torch.float32)


@dataclass
class Doubling:
    """Multiplies by two, in one of several ways."""

    way: Callable[[torch.Tensor], torch.Tensor] = lambda x: x + x
    reason: str | None = None
    places: int = 1
    name: str = "doubling"
    version: str = "sum-1"
    inside: int = field(default=0, init=False)

    def unsuitable(self, model: Any, card: Card) -> str | None:  # noqa: ARG002
        """Return what the test says."""
        return self.reason

    def prove(self, card: Card) -> str | None:
        """Compare with a product."""
        return find_function_difference(
            self.way, lambda x: 2 * x, [fixed_values(3, 5, card=card, seed=1)], card=card
        )

    def prepare(self, model: Any) -> int:  # noqa: ARG002
        """Return how many places the test gives it."""
        return self.places

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:  # noqa: ARG002
        """Count that it is on."""
        self.inside += 1
        yield
        self.inside -= 1


def tiny_llama() -> Any:
    """Return a random model that kernels are tried on."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(sizes)


def chosen(kernel: Doubling) -> tuple[KernelSet, list[str]]:
    """Return what is chosen of one kernel, and the messages."""
    messages: list[str] = []
    return (
        choose_kernels(tiny_llama(), CPU, TrainTable(), messages.append, kernels=[kernel]),
        messages,
    )


def test_a_kernel_that_proves_equal_is_used_and_named() -> None:
    """What suits, proves equal and has a place computes, under its name and version."""
    kernel = Doubling()
    kernels, messages = chosen(kernel)
    assert kernels.facts == {"doubling": "sum-1"}
    assert messages == [
        "kernels, each compared with plain operations on this card: doubling (sum-1)"
    ]
    with kernels.enabled({}):
        assert kernel.inside == 1
    assert kernel.inside == 0


def crash(x: torch.Tensor) -> torch.Tensor:
    """Fail as a compiler does that does not know the card."""
    raise RuntimeError(f"no code for a card with {x.numel()} numbers")


def alternate() -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function whose last bits change from call to call."""
    calls = iter(range(1000))
    return lambda x: x + x + (1e-7 * x if next(calls) % 2 else 0 * x)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Doubling(reason="the base has a window"), "the base has a window"),
        (Doubling(places=0), "LlamaForCausalLM has no part that it computes"),
        (Doubling(way=lambda x: x * 2.01), "the value differs from the plain way by 5.0e-03"),
        (
            Doubling(way=lambda x: x + x.detach()),
            "the gradient of input 0 differs from the plain way by 5.0e-01",
        ),
        (Doubling(way=lambda x: x * float("nan")), "the value differs from the plain way by nan"),
        (Doubling(way=alternate()), "the value has other bits when it is computed again"),
        (Doubling(way=crash), "it cannot be run here (RuntimeError: no code for a card with 15"),
    ],
)
def test_a_kernel_that_is_not_equal_is_left_off_with_its_reason(
    kernel: Doubling, reason: str
) -> None:
    """Unsuitable, placeless, wrong, inexact or crashing: plain operations compute, and why is said.

    A wrong gradient counts as a wrong value does.
    """
    kernels, messages = chosen(kernel)
    assert kernels is NO_KERNELS
    (message,) = messages
    assert message.startswith(f"kernels not used: doubling (sum-1): {reason}")


def test_one_line_names_all_that_are_left_off() -> None:
    """Kernels with one reason stand beside each other, and no line is written for each."""
    reasons = {"first": "no card", "second": "too old", "third": "no card", "fourth": None}
    kernels = [Doubling(name=name, reason=reason) for name, reason in reasons.items()]
    messages: list[str] = []
    choose_kernels(tiny_llama(), CPU, TrainTable(), messages.append, kernels=kernels)

    assert messages == [
        "kernels not used: first (sum-1), third (sum-1): no card; second (sum-1): too old",
        "kernels, each compared with plain operations on this card: fourth (sum-1)",
    ]


@dataclass
class Shifting(Doubling):
    """Proves equal on small tensors, and changes a layer of the model that it is used in."""

    model: Any = None

    def prepare(self, model: Any) -> int:
        """Keep the model."""
        self.model = model
        return 1

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:  # noqa: ARG002
        """Add a hundredth to what the last norm returns."""
        norm = self.model.model.norm
        handle = norm.register_forward_hook(lambda _module, _inputs, output: output + 0.01)
        yield
        handle.remove()


def test_a_kernel_that_differs_on_the_model_itself_is_left_off() -> None:
    """What small tensors do not show, two rows through the model do."""
    kernels, (message,) = chosen(Shifting())
    assert kernels is NO_KERNELS
    assert "the logits of this base differ from the plain way by" in message


@dataclass
class Clashing(Shifting):
    """Changes the model only while another kernel is on."""

    other: Doubling = field(default_factory=Doubling)
    name: str = "clashing"

    @contextmanager
    def enabled(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Be harmless alone."""
        if not self.other.inside:
            yield
            return
        with super().enabled(batch):
            yield


def test_kernels_that_differ_only_together_are_all_left_off() -> None:
    """Two kernels that are right each by itself may change the same module."""
    messages: list[str] = []
    first = Doubling()
    kernels = choose_kernels(
        tiny_llama(), CPU, TrainTable(), messages.append, kernels=[first, Clashing(other=first)]
    )
    assert kernels is NO_KERNELS
    (message,) = messages
    assert message.startswith("no kernel is used, since together the logits of this base differ")


def test_other_bits_in_a_repetition_are_allowed_where_bits_are_not_promised() -> None:
    """With `train.exact: false`, an order of summing that changes is no reason against a kernel."""
    kernel = Doubling(way=alternate())
    card = Card(device=CPU.device, capability=None, dtype=torch.float32, exact=False)
    kernels = choose_kernels(tiny_llama(), card, TrainTable(), lambda _text: None, kernels=[kernel])
    assert kernels.facts == {"doubling": "sum-1"}


def test_a_processor_computes_with_plain_operations_and_says_nothing() -> None:
    """Without a card no kernel is looked for."""
    messages: list[str] = []
    assert choose_kernels(None, CPU, TrainTable(), messages.append) is NO_KERNELS
    assert messages == []


def test_a_proof_draws_nothing_from_the_generators_of_the_run() -> None:
    """Numbers of a proof have a generator of their own, so the run's dropout stays what it is."""
    model = tiny_llama()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    choose_kernels(model, CPU, TrainTable(), lambda _text: None, kernels=[Doubling()])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_difference_is_a_share_of_the_length_and_never_hides_a_shape() -> None:
    """The measure is relative, and tensors of different shape are not equal."""
    ones = torch.ones(4)
    assert relative_difference(ones * 1.5, ones) == pytest.approx(0.5)
    assert relative_difference(ones, ones) == 0
    assert not relative_difference(torch.ones(1), ones) <= 1
