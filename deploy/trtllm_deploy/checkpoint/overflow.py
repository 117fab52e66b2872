"""Numbers that float16 can't hold: where a model makes them, or has them among its weights.

Comes in: a layer that is about to run in float32, or a weight. Goes out: a sentence on the first
that float16 would turn to Inf. Knows nothing of checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_MOST = 65504.0  # the largest number of float16 (IEEE 754 binary16)


class Overflow:
    """The first number beyond float16 that was seen; ``said`` is empty while there is none.

    ``mask`` [prompts, tokens] is 0 where padding stands: what is computed there counts for nothing.
    """

    def __init__(self, mask: Tensor) -> None:
        self.said = ""
        self._mask = mask

    def watch(self, index: int, layer: nn.Module) -> None:
        """Look at what the layer hands on, and at what goes into and comes out of its linears.

        An engine keeps all of these in its dtype, also where the layer's own output is small.
        """
        layer.register_forward_hook(
            lambda _, __, output: self._see("hidden states", f"after layer {index}", output)
        )
        for name, linear in layer.named_modules():
            if isinstance(linear, nn.Linear):
                linear.register_forward_hook(self._around(f"of layers.{index}.{name}"))

    def weight(self, name: str, weight: Tensor) -> None:
        """Look at a weight."""
        self._say("weights", f"of {name}", weight.abs().max().item())

    def _around(self, where: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._see("inputs", where, inputs)
            self._see("outputs", where, output)

        return hook

    def _see(self, what: str, where: str, seen: Any) -> None:
        state: Tensor = seen[0] if isinstance(seen, tuple) else seen
        if self.said or not state.numel():
            return
        largest = state.abs().amax(-1)
        if state.dim() == 3:  # an expert sees some tokens, among them padding's
            largest = largest * self._mask.to(state.device)
        self._say(what, where, largest.max().item())

    def _say(self, what: str, where: str, largest: float) -> None:
        if _MOST < largest < float("inf") and not self.said:
            self.said = f"{what} {where} reach {largest:.4g}, float16 ends at {_MOST:.0f}"
