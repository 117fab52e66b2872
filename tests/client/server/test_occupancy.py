"""What an engine was doing is read from its page, TensorRT-LLM's and vLLM's alike."""

from llm_perf.server.scrape import summarise

# as Triton shows the gauges of TensorRT-LLM's backend (custom_metrics_reporter.cc)
TRTLLM = """
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 9
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm"} 40
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="tensorrt_llm"} 4
nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="total_context_tokens"} 12
nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests"} 7
"""
VLLM = """
vllm:num_requests_running{model_name="m"} 3
vllm:num_requests_waiting{model_name="m"} 2
vllm:kv_cache_usage_perc{model_name="m"} 0.75
"""


def test_equal_states_are_counted_and_idle_ones_left_out() -> None:
    idle = TRTLLM.replace("} 8", "} 0").replace("} 1\n", "} 0\n")
    engine = summarise([TRTLLM, idle, TRTLLM])["engine"]
    assert engine["columns"][0] == "scheduled" and engine["columns"][-1] == "times"
    assert engine["rows"] == [[8, 1, 1, 19, 4, 40, 2]]


def test_vllm_tells_a_share_of_its_cache_and_nothing_of_a_step() -> None:
    assert summarise([VLLM])["engine"]["rows"] == [[3, 2, None, None, 0.25, 1, 1]]


def test_a_page_without_an_engine_has_no_states() -> None:
    assert "engine" not in summarise(["nv_gpu_utilization 0.5\n"])
