"""The engine's statistics as the Prometheus series of TensorRT-LLM's own Triton backend.

Names and labels are those of ``inflight_batcher_llm/src/custom_metrics_reporter``.
"""

import ctypes

import triton_python_backend_utils as pb_utils

_LABELS = {
    "request": "request_type",
    "runtime_memory": "memory_type",
    "kv_cache_block": "kv_cache_block_type",
    "inflight_batcher": "inflight_batcher_specific_metric",
    "general": "general_type",
    "iteration": "iteration_specific_metric",  # ours: TensorRT-LLM's backend has none
}


class Series:
    """A gauge for each of an engine's ``statistics``.

    They are never freed. Freed with the model they are gone for the one that replaces it, which has
    the same names and labels, and the server crashes; freed with the process, the stub does
    (seen: Triton 2.51).
    """

    def __init__(self, model, version, statistics):
        self._gauges = {}
        for group, label in _LABELS.items():
            family = pb_utils.MetricFamily(
                name=f"nv_trt_llm_{group}_metrics",
                description=f"TRT LLM {group.replace('_', ' ')} metrics",
                kind=pb_utils.MetricFamily.GAUGE,
            )
            _keep(family)
            for name in statistics[group]:
                labels = {"model": model, "version": version, label: name}
                self._gauges[group, name] = family.Metric(labels=labels)
                _keep(self._gauges[group, name])

    def show(self, statistics):
        """Set the gauges."""
        for (group, name), gauge in self._gauges.items():
            gauge.set(statistics[group][name])


def _keep(something):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(something))
