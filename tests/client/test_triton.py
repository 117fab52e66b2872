from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from client.errors import UserError
from client.triton import TritonModel, model_from_config
from client.workload import Prompt

from .scripted import ENSEMBLE, FINAL, Say, response

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


def model(config: str) -> TritonModel:
    return model_from_config(text_format.Parse(config, model_config_pb2.ModelConfig()))


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
    assert [output.name for output in sent.outputs] == ["text_output", "sequence_length"]


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
    assert (held.text, held.tokens, held.empty) == (b"", 1, False)
    assert reader.parse(response(Say("", tokens=0)).SerializeToString()).empty
    final = reader.parse(response(FINAL).SerializeToString())
    assert final.empty and final.final and final.tokens is None


def test_ids_are_counted_where_they_are_all_there_is() -> None:
    reader = model(ENSEMBLE.replace("sequence_length", "other"))
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.outputs.add(name="output_ids", datatype="INT32", shape=[1, 1, 3])
    message.infer_response.raw_output_contents.append(b"\x09\0\0\0" * 3)
    assert reader.parse(message.SerializeToString()).tokens == 3


@pytest.mark.parametrize("raw", [b"\xff\xff", b"\x12\x03abc"])
def test_an_unreadable_response_is_an_error_not_a_crash(raw: bytes) -> None:
    assert "unreadable response" in str(model(ENSEMBLE).parse(raw).error)
