"""How one request picks its next token, with the meaning TensorRT-LLM gives its sampling settings.

In: a row of logits, the tokens so far and a ``Choice``. Out: logits whose largest entry is the
token to take, so that greedy and sampled requests share a batch. It knows nothing of models, caches
or Triton.

Order and formulas are those of TensorRT-LLM's decoder layers, the same from 0.11 to 1.2
(``cpp/tensorrt_llm/kernels/penaltyKernels.cu``, ``banBadWords.cu``):
embedding bias, temperature, penalties, min_tokens, bad words, then top_k and top_p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList

_COLDEST = 1e-6  # what TensorRT-LLM adds to a temperature, so that 0 is one too
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {  # of executor::SamplingConfig
    "temperature": ("at least 0 and finite", lambda value: 0 <= value < inf),
    "top_k": ("at least 0", lambda value: value >= 0),
    "top_p": ("at most 1", lambda value: value <= 1),
    "min_tokens": ("at least 0", lambda value: value >= 0),
    "repetition_penalty": ("more than 0 and finite", lambda value: 0 < value < inf),
    "presence_penalty": ("finite", isfinite),
    "frequency_penalty": ("finite", isfinite),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The sampling settings of one request; the defaults are TensorRT-LLM's and mean greedy.

    Neither ``top_k`` nor ``top_p``, or a ``top_k`` of 1, is greedy; then ``seed`` changes nothing,
    and ``temperature`` only what the penalties do. The penalties count the tokens of the prompt and
    of the answer. ``end_id`` cannot come up in the first ``min_tokens`` new tokens. The last token
    of a bad word cannot follow its others. ``embedding_bias`` is added to the first logits of the
    vocabulary. Raises ValueError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 0
    min_tokens: int = 0
    end_id: int = -1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bad_words: tuple[tuple[int, ...], ...] = ()
    embedding_bias: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name, (allowed, holds) in _RANGES.items():
            if not holds(getattr(self, name)):
                raise ValueError(f"{name} must be {allowed}, not {getattr(self, name):g}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.top_k == 1 or self.temperature == 0 or (self.top_k == 0 and self.top_p <= 0)

    @property
    def penalises(self) -> bool:
        """Whether tokens that were seen become less likely."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0)

    @property
    def plain(self) -> bool:
        """Whether the logits can stay as they are."""
        bars_end = self.min_tokens > 0 and self.end_id >= 0
        shapes = bars_end or self.penalises or self.bad_words or self.embedding_bias is not None
        return self.greedy and not shapes

    def apply(self, logits: Tensor, new_tokens: int, sequence: Sequence[int] = ()) -> Tensor:
        """Logits [vocabulary] whose largest entry is the choice for new token ``new_tokens``.

        ``sequence`` are the token ids so far, those of the prompt first.
        """
        if self.plain:
            return logits
        logits = self._shaped(logits, new_tokens, sequence)
        if self.greedy:
            return logits
        seed = (self.seed + new_tokens) % 2**64
        generator = torch.Generator(device=logits.device).manual_seed(seed)
        # a logit that overflows, or all of them barred, must not end the engine
        probabilities = self._probabilities(logits.nan_to_num())
        token = torch.multinomial(probabilities, 1, generator=generator)
        return torch.full_like(logits, -torch.inf).index_fill_(0, token, 0.0)

    def _shaped(self, logits: Tensor, new_tokens: int, sequence: Sequence[int]) -> Tensor:
        logits = logits.to(torch.float32, copy=True)
        if self.embedding_bias is not None:
            logits[: len(self.embedding_bias)] += self.embedding_bias.to(logits.device)
        if self.temperature != 1:
            logits /= max(self.temperature, _COLDEST)
        if self.penalises:
            tokens = torch.tensor(sequence, device=logits.device)
            times = torch.bincount(tokens, minlength=len(logits)).to(logits.dtype)
            repeated = logits * self.repetition_penalty, logits / self.repetition_penalty
            penalised = torch.where(logits < 0, *repeated) - self.frequency_penalty * times
            penalised -= self.presence_penalty
            logits = torch.where(times > 0, penalised, logits)
        if 0 <= self.end_id < len(logits) and new_tokens < self.min_tokens:
            logits[self.end_id] = -torch.inf
        for *before, last in self.bad_words:
            if not before or list(sequence[-len(before) :]) == before:
                logits[last] = -torch.inf
        return logits

    def _probabilities(self, logits: Tensor) -> Tensor:
        ordered, tokens = logits.sort(descending=True)
        if self.top_k:
            ordered[self.top_k :] = -torch.inf
        probabilities = ordered.softmax(-1)
        if 0 < self.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities[before >= self.top_p] = 0
        return torch.zeros_like(logits).scatter_(0, tokens, probabilities)


@dataclass(slots=True)
class Trace:
    """What is noted of one request while it runs; times as ``time.perf_counter`` has them, in ns.

    It stays the same object when transformers copies the state of a request that it evicts.
    """

    choice: Choice
    prompt_length: int
    scheduled_ns: int = 0
    first_token_ns: int = 0
    allocated_pages: int = 0  # for the prompt
    reused_pages: int = 0

    def __deepcopy__(self, memo: object) -> Trace:
        return self


class _Choices(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Applies each request's own ``Choice`` to its row of a batch; synchronous batching only."""

    supported_kwargs: dict[str, type] = {"trace": Trace}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[tuple[int, Trace, Any]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.fill_(0)

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        self._rows = []
        for row, request in enumerate(requests_with_new_token):
            trace = request.state.logit_processor_kwargs.get("trace")  # warmup's requests have none
            if trace is not None and not trace.choice.plain:
                self._rows.append((row, trace, request.state))
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:  # noqa: ARG002
        for row, trace, state in self._rows:
            # an evicted request comes back with its answer so far as part of its prompt
            sequence = state.initial_tokens + state.generated_tokens
            new_tokens = len(sequence) - trace.prompt_length
            scores[row] = trace.choice.apply(scores[row], new_tokens, sequence)
        return scores


def choices_processor() -> Any:
    """What a ContinuousBatchingManager takes as ``logit_processor`` to honour a ``trace``."""
    processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([_Choices()]))
    processor.tensors_required = 1  # it counts only the processors that it converted itself
    return processor
