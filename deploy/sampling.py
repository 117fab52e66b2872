"""How one request picks its next token, with the meaning TensorRT-LLM gives its sampling settings.

In: a row of logits and a ``Choice``. Out: logits whose largest entry is the token to take, so that
greedy and sampled requests share a batch. It knows nothing of models, caches or Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList


@dataclass(frozen=True, slots=True)
class Choice:
    """The sampling settings of one request; the defaults are TensorRT-LLM's and mean greedy.

    Neither ``top_k`` nor ``top_p``, or a ``top_k`` of 1, is greedy; then ``temperature`` and
    ``seed`` change nothing. ``end_id`` cannot come up in the first ``min_tokens`` new tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0
    min_tokens: int = 0
    end_id: int = -1

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.top_k == 1 or self.temperature == 0 or (self.top_k == 0 and self.top_p == 0)

    @property
    def plain(self) -> bool:
        """Whether the logits can stay as they are."""
        return self.greedy and (self.min_tokens == 0 or self.end_id < 0)

    def apply(self, logits: Tensor, new_tokens: int) -> Tensor:
        """Logits [vocabulary] whose largest entry is the choice for new token ``new_tokens``."""
        if self.end_id >= 0 and new_tokens < self.min_tokens:
            logits = logits.clone()
            logits[self.end_id] = -torch.inf
        if self.greedy:
            return logits
        generator = torch.Generator(device=logits.device).manual_seed(self.seed + new_tokens)
        token = torch.multinomial(self._probabilities(logits), 1, generator=generator)
        return torch.full_like(logits, -torch.inf).index_fill_(0, token, 0.0)

    def _probabilities(self, logits: Tensor) -> Tensor:
        ordered, tokens = (logits / self.temperature).sort(descending=True)
        if self.top_k:
            ordered[self.top_k :] = -torch.inf
        probabilities = ordered.softmax(-1)
        if 0 < self.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities[before >= self.top_p] = 0
        return torch.zeros_like(logits).scatter_(0, tokens, probabilities)


class _Choices(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Applies each request's own ``Choice`` to its row of a batch; synchronous batching only."""

    supported_kwargs: dict[str, type] = {"choice": Choice, "prompt_length": int}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, Choice]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.fill_(0)

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        self._rows = []
        for row, request in enumerate(requests_with_new_token):
            state = request.state
            settings = state.logit_processor_kwargs
            if settings:
                # an evicted request comes back with its answer so far as part of its prompt
                length = len(state.initial_tokens) + state.generated_len()
                self._rows.append((row, length - settings["prompt_length"], settings["choice"]))
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:  # noqa: ARG002
        for row, new_tokens, choice in self._rows:
            scores[row] = choice.apply(scores[row], new_tokens)
        return scores


def choices_processor() -> Any:
    """What a ContinuousBatchingManager takes as ``logit_processor`` to honour ``choice_kwargs``."""
    processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([_Choices()]))
    processor.tensors_required = 1  # it counts only the processors that it converted itself
    return processor


def choice_kwargs(choice: Choice, prompt_length: int) -> dict[str, Any]:
    """The keyword arguments of ``add_request`` for a choice; none when there is nothing to do."""
    return {} if choice.plain else {"choice": choice, "prompt_length": prompt_length}
