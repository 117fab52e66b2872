"""The engine's statistics as the Prometheus series of TensorRT-LLM's own Triton backend.

Names and labels are those of ``inflight_batcher_llm/src/custom_metrics_reporter``.
"""

import triton_python_backend_utils as pb_utils

_LABELS = {
    "request": "request_type",
    "runtime_memory": "memory_type",
    "kv_cache_block": "kv_cache_block_type",
    "inflight_batcher": "inflight_batcher_specific_metric",
    "general": "general_type",
}


class Series:
    """A gauge for each of an engine's ``statistics``."""

    def __init__(self, model, version, statistics):
        self._gauges = {}
        self._families = []  # a family that nobody holds takes its gauges with it
        for group, label in _LABELS.items():
            family = pb_utils.MetricFamily(
                name=f"nv_trt_llm_{group}_metrics",
                description=f"TRT LLM {group.replace('_', ' ')} metrics",
                kind=pb_utils.MetricFamily.GAUGE,
            )
            self._families.append(family)
            for name in statistics[group]:
                labels = {"model": model, "version": version, label: name}
                self._gauges[group, name] = family.Metric(labels=labels)

    def show(self, statistics):
        """Set the gauges."""
        for (group, name), gauge in self._gauges.items():
            gauge.set(statistics[group][name])
