from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from llm_perf.errors import UserError
from llm_perf.record import Exchange, read_records
from llm_perf.transports.triton import TritonModel, model_from_config
from llm_perf.workload.tokens import load_tokenizer, stop_ids
from llm_perf.workload.workload import Prompt
from tests.client.scripted import ENSEMBLE, FINAL, Say, response

LLMAPI = """
name: "tensorrt_llm" backend: "python"
input { name: "text_input" data_type: TYPE_STRING dims: [-1] }
input { name: "streaming" data_type: TYPE_BOOL dims: [1] optional: true }
input { name: "sampling_param_max_tokens" data_type: TYPE_INT32 dims: [1] optional: true }
output { name: "text_output" data_type: TYPE_STRING dims: [-1] }
model_transaction_policy { decoupled: true }
"""
LATE = """
name: "ensemble" max_batch_size: 4
input { name: "text_input" data_type: TYPE_STRING dims: [1] }
input { name: "max_tokens" data_type: TYPE_INT32 dims: [1] }
input { name: "exclude_input_in_output" data_type: TYPE_BOOL dims: [1] optional: true }
input { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [1] optional: true }
output { name: "text_output" data_type: TYPE_STRING dims: [-1] }
output { name: "sequence_length" data_type: TYPE_INT32 dims: [-1] }
output { name: "num_output_tokens" data_type: TYPE_INT32 dims: [1] }
"""


PERF = (
    LATE
    + """
input { name: "return_perf_metrics" data_type: TYPE_BOOL dims: [1] optional: true }
input { name: "min_tokens" data_type: TYPE_INT32 dims: [1] optional: true }
input { name: "seed" data_type: TYPE_UINT64 dims: [1] optional: true }
input { name: "end_id" data_type: TYPE_INT32 dims: [1] optional: true }
input { name: "temperature" data_type: TYPE_FP32 dims: [1] optional: true }
input { name: "stop_words" data_type: TYPE_STRING dims: [-1] optional: true }
output { name: "arrival_time_ns" data_type: TYPE_INT64 dims: [1] }
output { name: "first_scheduled_time_ns" data_type: TYPE_INT64 dims: [1] }
output { name: "first_token_time_ns" data_type: TYPE_INT64 dims: [1] }
output { name: "kv_cache_reused_blocks" data_type: TYPE_INT32 dims: [1] }
"""
)


def model(config: str, defaults: Mapping[str, int] | None = None) -> TritonModel:
    return model_from_config(text_format.Parse(config, model_config_pb2.ModelConfig()), defaults)


def request(config: str) -> service_pb2.ModelInferRequest:
    prompt = Prompt(index=0, text="päng", input_tokens=1, max_tokens=7)
    data = model(config).request(prompt, "id-1")
    return service_pb2.ModelInferRequest.FromString(data)


def tensors(sent: service_pb2.ModelInferRequest) -> dict[str, tuple[str, list[int], bytes]]:
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(sent.inputs, sent.raw_input_contents, strict=True)
    }


def test_a_batching_model_gets_a_batch_dimension() -> None:
    assert tensors(request(ENSEMBLE)) == {
        "text_input": ("BYTES", [1, 1], b"\x05\0\0\0p\xc3\xa4ng"),
        "max_tokens": ("INT32", [1, 1], b"\x07\0\0\0"),
        "stream": ("BOOL", [1, 1], b"\x01"),
    }


def test_the_llmapi_model_is_asked_by_its_own_names_without_a_batch() -> None:
    assert tensors(request(LLMAPI)) == {
        "text_input": ("BYTES", [1], b"\x05\0\0\0p\xc3\xa4ng"),
        "streaming": ("BOOL", [1], b"\x01"),
        "sampling_param_max_tokens": ("INT32", [1], b"\x07\0\0\0"),
    }


def test_a_model_that_can_not_stream_is_not_asked_to() -> None:
    assert (
        tensors(request(ENSEMBLE.replace("decoupled: true", "decoupled: false")))["stream"][2]
        == b"\0"
    )


def test_the_echo_is_declined_and_the_count_asked_for_where_the_model_can() -> None:
    sent = request(LATE)
    assert tensors(sent)["exclude_input_in_output"][2] == b"\x01"
    assert tensors(sent)["return_num_output_tokens"][2] == b"\x01"
    assert [output.name for output in sent.outputs] == ["text_output", "num_output_tokens"]


def test_requests_carry_id_empty_final_flag_and_only_the_outputs_that_are_read() -> None:
    sent = request(ENSEMBLE)
    assert sent.id == "id-1"
    assert sent.parameters["triton_enable_empty_final_response"].bool_param
    assert [output.name for output in sent.outputs] == [
        "text_output",
        "sequence_length",
        "output_ids",
    ]


def test_a_required_input_that_nothing_fills_is_named() -> None:
    config = ENSEMBLE + 'input { name: "image_input" data_type: TYPE_FP16 dims: [-1] }'
    with pytest.raises(UserError, match="requires the input image_input"):
        model(config)


@pytest.mark.parametrize("missing", ["text_input", "text_output"])
def test_a_model_that_does_not_speak_text_is_refused(missing: str) -> None:
    with pytest.raises(UserError, match=f"no (in|out)put {missing}"):
        model(ENSEMBLE.replace(missing, "something"))


def test_half_a_character_held_back_is_a_response_and_the_null_final_is_not() -> None:
    reader = model(ENSEMBLE)
    held = reader.parse(response(Say("", tokens=1)).SerializeToString())
    assert (held.text, held.tokens, held.speaks) == (b"", 1, True)
    assert not reader.parse(response(Say("", tokens=0)).SerializeToString()).speaks
    final = reader.parse(response(FINAL).SerializeToString())
    assert not final.speaks and final.final and final.tokens is None


def test_ids_are_counted_where_they_are_all_there_is() -> None:
    reader = model(ENSEMBLE.replace("sequence_length", "other"))
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="output_ids", datatype="INT32", shape=[1, 1, 3])
    message.infer_response.raw_output_contents.append(b"\x09\0\0\0" * 3)
    assert reader.parse(message.SerializeToString()).tokens == 3


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x12\x03abc"])
def test_an_unreadable_response_is_an_error_not_a_crash(raw: bytes) -> None:
    assert "unreadable response" in str(model(ENSEMBLE).parse(raw).error)


def asked(config: str, defaults: Mapping[str, int] | None = None, **fields) -> dict[str, bytes]:
    prompt = Prompt(index=0, text="p", input_tokens=1, max_tokens=7, **fields)
    sent = service_pb2.ModelInferRequest.FromString(model(config, defaults).request(prompt, "1"))
    return {name: raw for name, (_, _, raw) in tensors(sent).items()}


def test_sampling_goes_into_the_tensors_of_every_release() -> None:
    sampling = {"seed": 5, "temperature": 0.5, "stop_words": ["a", "bc"]}
    sent = asked(PERF, min_tokens=7, sampling=sampling)
    assert sent["min_tokens"] == b"\x07\0\0\0"
    assert sent["seed"] == b"\x05" + b"\0" * 7
    assert sent["temperature"] == b"\0\0\0\x3f"
    assert sent["stop_words"] == b"\1\0\0\0a\2\0\0\0bc"
    old = PERF.replace('"min_tokens"', '"min_length"').replace('"seed"', '"random_seed"')
    sent = asked(old, min_tokens=7, sampling={"seed": 5})
    assert (sent["min_length"], sent["random_seed"]) == (b"\x07\0\0\0", b"\x05" + b"\0" * 7)
    llmapi = LLMAPI.replace("sampling_param_max_tokens", "sampling_param_seed").replace(
        "streaming", "sampling_param_max_tokens"
    )
    llmapi = llmapi.replace("TYPE_BOOL", "TYPE_INT32")
    assert asked(llmapi, sampling={"seed": 5})["sampling_param_seed"] == b"\x05\0\0\0"


def test_a_parameter_that_the_model_has_no_input_for_is_named() -> None:
    with pytest.raises(UserError, match="no input for min_tokens, top_p"):
        asked(ENSEMBLE, min_tokens=7, sampling={"top_p": 0.5})
    with pytest.raises(UserError, match=r"seed -1 does not fit the input seed \(UINT64\)"):
        asked(PERF, sampling={"seed": -1})


def test_the_models_own_end_is_sent_where_it_is_taken_and_the_prompts_wins() -> None:
    assert asked(PERF, {"end_id": 2, "pad_id": 3})["end_id"] == b"\2\0\0\0"
    assert asked(PERF, {"end_id": 2}, sampling={"end_id": 9})["end_id"] == b"\x09\0\0\0"
    assert "end_id" not in asked(LATE, {"end_id": 2})
    required = PERF.replace("TYPE_INT32 dims: [1] optional: true", "TYPE_INT32 dims: [1]")
    with pytest.raises(UserError, match="requires the input min_tokens"):
        asked(required)


def test_server_times_split_the_first_token_and_counts_are_kept_apart(
    tokenizer_folder: Path,
) -> None:
    reader = model(PERF)
    assert reader.outputs == (
        *("text_output", "num_output_tokens"),
        *("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns"),
        "kv_cache_reused_blocks",
    )
    message = service_pb2.ModelStreamInferResponse()
    numbers = {
        "num_output_tokens": ("INT32", 3, 4),
        "arrival_time_ns": ("INT64", 1000, 8),
        "first_scheduled_time_ns": ("INT64", 1500, 8),
        "first_token_time_ns": ("INT64", 4500, 8),
        "kv_cache_reused_blocks": ("INT32", 2, 4),
    }
    for name, (datatype, value, size) in numbers.items():
        message.infer_response.outputs.add(name=name, datatype=datatype, shape=[1, 1])
        message.infer_response.raw_output_contents.append(value.to_bytes(size, "little"))
    message.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    message.infer_response.raw_output_contents.append(b"\2\0\0\0ab")
    seen = Exchange("1", sent_ns=1, end_ns=9001, messages=[(9001, message.SerializeToString())])
    prompt = Prompt(index=0, text="p", input_tokens=1, max_tokens=7)
    (record,) = read_records([(prompt, seen)], reader.parse, load_tokenizer(tokenizer_folder))
    assert (record.queue_ns, record.prefill_ns, record.network_ns) == (500, 3000, 5500)
    assert record.kv_cache_reused_blocks == 2
    assert (record.server_tokens, record.tokenizer_tokens) == (3, 2)


def test_the_models_own_end_is_read_from_its_folder(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    assert stop_ids(tokenizer) == {}
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "pad_token_id": null}')
    assert stop_ids(tokenizer) == {"end_id": 7, "pad_id": 7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6], "pad_token_id": 4}')
    assert stop_ids(tokenizer) == {"end_id": 5, "pad_id": 4}
    tokenizer.write_text('{"added_tokens": [{"id": 6, "content": "<end>"}]}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}}')
    assert stop_ids(tokenizer) == {"end_id": 6, "pad_id": 4}
    (tmp_path / "config.json").write_text("[1]")
    assert stop_ids(tokenizer) == {"end_id": 6, "pad_id": 4}
