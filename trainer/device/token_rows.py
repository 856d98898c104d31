"""Lets products over a batch leave out its padding, where every row of a product stands alone.

The rows of a product x W are the tokens of a padded batch. What comes out at padding is never seen:
attention masks it, and the gradient there is zero. A product of fewer rows gives the others the
same bits on most processors, but no library promises it: so `rows_stand_alone` tries it first.
Sums over tokens, such as the gradient of a weight, are still of the padded batch: their terms would
be grouped in another way.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch

ROWS_MIN = 64
"""Of fewer tokens, products are computed by other code in some libraries."""
SPARED_MIN = 0.04
"""The share of padding from which on the copies are worth it."""
TRIED_ROWS = (64, 65, 67, 90, 203, 346)
TRIED_EVERY = 6
"""So many rows of a product that is tried have one that is left out."""


class TokenRows:
    """Where the tokens of one padded batch are, and the way from them to the batch and back."""

    def __init__(self, mask: torch.Tensor) -> None:
        """Take the attention mask of the batch, [rows, length]."""
        flat = mask.flatten() != 0
        self.shape = tuple(mask.shape)
        self._tokens = flat.nonzero().squeeze(1)
        self.count = len(self._tokens)
        self._places = torch.full((len(flat),), self.count)
        self._places[self._tokens] = torch.arange(self.count)
        self._last: tuple[Any, int, torch.Tensor] | None = None

    @property
    def are_worth_it(self) -> bool:
        """Whether there is padding enough to leave out, and rows enough to compute."""
        spared = 1 - self.count / len(self._places)
        return self.count >= ROWS_MIN and spared >= SPARED_MIN

    def fit(self, x: torch.Tensor) -> bool:
        """Tell whether x is of this batch: [rows, length, columns]."""
        return x.dim() == 3 and tuple(x.shape[:2]) == self.shape

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens of x, [tokens, columns], without a graph."""
        with torch.no_grad():
            return x.reshape(-1, x.shape[-1]).index_select(0, self._tokens)

    def take_shared(self, x: torch.Tensor) -> torch.Tensor:
        """Do the same for layers that one after the other read the same x, once for all."""
        if self._last is not None:
            source, version, taken = self._last
            if source() is x and x._version == version:  # noqa: SLF001  # torch's count of changes
                return taken
        taken = self.take(x)
        self._last = weakref.ref(x), x._version, taken  # noqa: SLF001
        return taken

    def room(self, like: torch.Tensor, columns: int) -> torch.Tensor:
        """Return a tensor to write [tokens, columns] into, with a last row of zeros for `put`."""
        room = like.new_empty(self.count + 1, columns)
        room[-1].zero_()
        return room

    def put(self, room: torch.Tensor) -> torch.Tensor:
        """Return [rows, length, columns] of such a tensor: zeros where there is padding.

        It is no view, so that a model may change in place what a layer of its returns.
        """
        batch = room.new_empty(*self.shape, room.shape[1])
        torch.index_select(room, 0, self._places, out=batch.view(-1, room.shape[1]))
        return batch

    def product(
        self,
        taken: torch.Tensor,
        matrix: torch.Tensor,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return a room with the product of the tokens and a matrix, and a bias, if any."""
        room = self.room(taken, matrix.shape[1])
        if bias is None:
            torch.mm(taken, matrix, out=room[:-1])
        else:
            torch.addmm(bias, taken, matrix, out=room[:-1])
        return room


class RowWatch:
    """Knows the token rows of the batch that a model computes."""

    def __init__(self) -> None:
        self.rows: TokenRows | None = None

    def watch(self, model: Any) -> None:
        """Look at the attention mask of every batch that `model` is called with by its name."""
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def rows_of(self, x: torch.Tensor) -> TokenRows | None:
        """Return the rows that suffice for x; None if all are needed, or outside of training."""
        rows = self.rows
        usual = torch.is_grad_enabled() and x.dtype is torch.float32
        return rows if rows is not None and usual and rows.fit(x) else None

    def _note(self, _model: Any, _inputs: Any, named: Any) -> None:
        mask = named.get("attention_mask")
        self.rows = None
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and torch.is_grad_enabled():
            rows = TokenRows(mask)
            self.rows = rows if rows.are_worth_it else None


@cache
def rows_stand_alone(out: int, inside: int, threads: int) -> bool:  # noqa: ARG001 - of the answer
    """Tell whether a row of a product has the same bits whatever other rows there are.

    Tried are both products of a layer with a weight [out, inside], in float32 with so many threads.
    """
    generator = torch.Generator().manual_seed(out)
    weight = torch.randn(out, inside, generator=generator)
    for count in TRIED_ROWS:
        places = count + count // (TRIED_EVERY - 1) + 1
        mask = torch.tensor([at % TRIED_EVERY > 0 for at in range(places)])[None]
        rows = TokenRows(mask)
        for columns, matrix in ((inside, weight.t()), (out, weight)):
            x = torch.randn(places, columns, generator=generator)
            few = rows.product(rows.take(x), matrix)[:-1]
            if not torch.equal(few, rows.take(x @ matrix)):
                return False
    return True


def pads_only_past_tokens(model: Any) -> bool:
    """Tell whether padding reaches no token of this model, and no weight's sum over tokens.

    It may through an encoder's shape, which is not the decoder's; through experts, whose tokens are
    counted together; and through a convolution or a state that goes on from token to token.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    names = (name for name, _ in model.named_parameters())
    if any("expert" in name or "router" in name or "moe" in name for name in names):
        return False
    conv = torch.nn.modules.conv._ConvNd  # noqa: SLF001  # what all of them derive from
    return not any(isinstance(module, conv) for module in model.modules())
