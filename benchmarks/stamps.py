"""A Triton model that streams like in-flight batching does: a response per request in each step.

Runs inside Triton as a decoupled python model. Responses carry the time at which they were handed
to Triton, on both clocks: ``perf_counter_ns`` (one for all processes of a host) and ``time_ns``
(perf_analyzer's).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

STEP_S = 0.01
MOST_PER_S = 8000  # responses of all streams together: a pace that Triton keeps on two cores
FINAL: int = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Answers each request ``max_tokens`` times, all requests in step."""

    def initialize(self, _args: dict[str, str]) -> None:
        self._new: deque[tuple[Any, int]] = deque()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            limit = pb_utils.get_input_tensor_by_name(request, "max_tokens").as_numpy()
            self._new.append((request.get_response_sender(), int(limit[0])))

    def finalize(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        active: list[tuple[Any, int]] = []
        while not self._ended.is_set():
            began = time.perf_counter()
            while self._new:
                active.append(self._new.popleft())
            step = max(STEP_S, len(active) / MOST_PER_S)
            active = [(sender, left - 1) for sender, left in active if self._send(sender, left)]
            time.sleep(max(0.0, step - (time.perf_counter() - began)))

    def _send(self, sender: Any, left: int) -> bool:
        text = f"{time.perf_counter_ns()} {time.time_ns()}".encode()
        tensor = pb_utils.Tensor("text_output", np.array([text], dtype=object))
        response = pb_utils.InferenceResponse([tensor])
        sender.send(response, flags=FINAL if left == 1 else 0)
        return left > 1
