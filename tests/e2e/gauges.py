"""What a server says of its engine."""

import re
import urllib.request

from trtllm_deploy.serve.launch import ModelServer


def series(server: ModelServer) -> dict[tuple[str, str], float]:
    """TensorRT-LLM's Prometheus series, by family and by the label that tells them apart."""
    url = f"http://127.0.0.1:{server.ports.metrics}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        page = response.read().decode()
    label = r"(?:request_type|memory_type|kv_cache_block_type|general_type|\w+_specific_metric)"
    found = re.findall(rf'^(nv_trt_llm_\w+)\{{.*?{label}="(\w+)".*\}} (\S+)$', page, re.M)
    return {(family, name): float(value) for family, name, value in found}
