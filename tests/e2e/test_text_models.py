"""Preprocessing and postprocessing by themselves on real Triton, tensor by tensor."""

import json
import random
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.serve.launch import ModelServer

MODEL = Path(__file__).parents[2] / "examples/number-words/model"
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
ENDS = [0, 300, 301]
VOCABULARY = 320
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(
    repository: Callable[..., Path],
    triton_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ask]:
    """``ask(model, id="", **inputs)``: the outputs. ``chat`` is preprocessing with a template."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    for file in MODEL.glob("*.json"):
        shutil.copyfile(file, tokenizer / file.name)
    (tokenizer / "chat_template.jinja").write_text("{{ messages[0].content }} in words:")
    (tokenizer / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS}))
    folder = repository("0.11.0")
    for name in ("ensemble", "tensorrt_llm", "tensorrt_llm_bls"):
        shutil.rmtree(folder / name)
    shutil.copytree(folder / "preprocessing", folder / "chat")
    config = (folder / "chat/config.pbtxt").read_text()
    config = config.replace("preprocessing", "chat").replace(str(MODEL), str(tokenizer))
    config += 'parameters { key: "apply_chat_template" value: { string_value: "true" } }\n'
    (folder / "chat/config.pbtxt").write_text(config)
    log = folder.with_name(f"{folder.name}.log")
    with ModelServer(folder, ports=free_ports(), log_file=log, cache_dir=triton_cache) as server:
        server.wait_ready(60)
        client = grpc.InferenceServerClient(server.grpc_url)

        def call(model: str, request_id: str = "", **inputs: Any) -> dict[str, Any]:
            tensors = []
            for name, values in inputs.items():
                array = np.array(values)
                tensor = grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
                tensors.append(tensor.set_data_from_numpy(array))
            result = client.infer(model, tensors, request_id=request_id)
            names = [output.name for output in result.get_response().outputs]
            return {name: result.as_numpy(name) for name in names}

        yield call
        client.close()


def texts(*rows: list[str]) -> Any:
    return np.array([[text.encode() for text in row] for row in rows], object)


def most(*tokens: int) -> Any:
    return np.array(tokens, np.int32).reshape(-1, 1)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text).ids
    return found


def words(word_list: list[list[int]]) -> list[list[int]]:
    """The words of a TensorRT-LLM word list: ids, and where each word ends."""
    tokens, ends = word_list[0], [end for end in word_list[1] if end >= 0]
    return [tokens[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def test_prompts_of_a_batch_are_padded_and_each_has_its_own_words(ask: Ask) -> None:
    said = ask(
        "preprocessing",
        QUERY=texts(["八 in words:"], ["7"]),
        REQUEST_OUTPUT_LEN=most(5, 6),
        STOP_WORDS_DICT=texts([" six", ""], [" eight", " ten"]),
        BAD_WORDS_DICT=texts([" six"], [""]),
        EMBEDDING_BIAS_WORDS=texts([" six", "7"], ["8", "9"]),
        EMBEDDING_BIAS_WEIGHTS=np.array([[1, 2], [-3, 4]], np.float32),
        END_ID=most(9, 10),
        PAD_ID=most(11, 11),
    )
    long, short = ids("八 in words:"), ids("7")
    padding = [11] * (len(long) - len(short))
    assert said["INPUT_ID"].tolist() == [long, short + padding]
    assert said["REQUEST_INPUT_LEN"].tolist() == [[len(long)], [len(short)]]
    assert said["REQUEST_OUTPUT_LEN"].tolist() == [[5], [6]]
    [six, eight, ten] = [ids(word) for word in (" six", " eight", " ten")]
    first, second = map(words, said["STOP_WORDS_IDS"].tolist())
    assert first[0] == six
    assert all(" six" in TOKENIZER.decode(word) for word in first)
    assert eight in second
    assert ten in second
    assert all(any(w in TOKENIZER.decode(word) for w in (" eight", " ten")) for word in second)
    assert said["BAD_WORDS_IDS"].tolist() == [
        [six, [len(six), *[-1] * (len(six) - 1)]],
        [[0] * len(six), [-1] * len(six)],
    ]
    bias = np.zeros((2, VOCABULARY), np.float32)
    bias[0, six], bias[0, ids("7")], bias[1, ids("8")], bias[1, ids("9")] = 1, 2, -3, 4
    assert np.array_equal(said["EMBEDDING_BIAS"], bias)
    assert said["OUT_END_ID"].tolist() == [[9], [10]]
    assert said["OUT_PAD_ID"].tolist() == [[11], [11]]


def test_what_is_not_sent_comes_from_the_tokenizer_or_asks_for_nothing(ask: Ask) -> None:
    said = ask("preprocessing", QUERY=texts(["7"]), REQUEST_OUTPUT_LEN=most(5))
    assert said["OUT_END_ID"].tolist() == said["OUT_PAD_ID"].tolist() == [[0]]
    assert said["STOP_WORDS_IDS"].shape == said["BAD_WORDS_IDS"].shape == (1, 2, 0)
    assert said["EMBEDDING_BIAS"].shape == (1, 0)


def test_a_chat_template_and_all_end_tokens_of_the_model_are_used(ask: Ask) -> None:
    said = ask("chat", QUERY=texts(["7"]), REQUEST_OUTPUT_LEN=most(5))
    assert said["INPUT_ID"].tolist() == [ids("7 in words:")]
    assert said["OUT_END_ID"].tolist() == [[ENDS[0]]]
    assert said["STOP_WORDS_IDS"].tolist() == [[ENDS[1:], [1, 2]]]
    own_end = ask("chat", QUERY=texts(["7"]), REQUEST_OUTPUT_LEN=most(5), END_ID=most(-1))
    assert own_end["STOP_WORDS_IDS"].shape == (1, 2, 0)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"REQUEST_OUTPUT_LEN": most(0)}, "max_tokens must be at least 1"),
        ({"QUERY": texts([""])}, "text_input is empty"),
        ({"QUERY": texts(["a", "b"])}, "text_input has 2 texts in a row of the batch, not one"),
        ({"QUERY": np.array([[b"\xff"]], object)}, "text_input is not UTF-8"),
        ({"EMBEDDING_BIAS_WORDS": texts(["a"])}, "embedding_bias_words and embedding_bias_weights"),
    ],
)
def test_a_wrong_request_says_what_is_wrong(ask: Ask, inputs: Any, reason: str) -> None:
    with pytest.raises(InferenceServerException, match=reason):
        ask("preprocessing", **{"QUERY": texts(["7"]), "REQUEST_OUTPUT_LEN": most(5), **inputs})


def chunk(ask: Ask, key: str, tokens: list[int]) -> str:
    said = ask(
        "postprocessing",
        key,
        TOKENS_BATCH=np.array([[tokens]], np.int32).reshape(1, 1, -1),
        SEQUENCE_LENGTH=most(len(tokens)),
    )
    text: str = said["OUTPUT"].item().decode()
    return text


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    answers=st.lists(TEXT, min_size=1, max_size=6),
    by=st.sampled_from(["max_tokens", "stop word", "end"]),
    chance=st.randoms(use_true_random=False),
)
def test_streams_of_any_text_in_any_order_keep_their_text(
    ask: Ask, answers: list[str], by: str, chance: random.Random
) -> None:
    waiting, pieces = {}, {}
    for text in answers:
        tokens, key = ids(text), str(uuid.uuid4())
        waiting[key], pieces[key] = list(tokens), ""
        if by == "stop word":
            waiting[key] += ids(" stop")
        stops = {"STOP_WORDS_DICT": texts([" stop"])} if by == "stop word" else {}
        limit = len(tokens) if by == "max_tokens" else 1000
        inputs = {"QUERY": texts(["7"]), "REQUEST_OUTPUT_LEN": most(limit), **stops}
        ask("preprocessing", key, STREAMING=np.array([[True]]), **inputs)
    while waiting:
        key = chance.choice(list(waiting))  # not sorted: keys are random
        size = chance.randint(1, 3)
        pieces[key] += chunk(ask, key, waiting[key][:size])
        del waiting[key][:size]
        if not waiting[key]:
            del waiting[key]
            if by == "end":
                pieces[key] += chunk(ask, key, [])
            assert chunk(ask, key, ids("八")[:1]) == "\ufffd"  # nothing is kept of it
    expected = [TOKENIZER.decode(ids(text)) for text in answers]
    if by == "stop word":
        expected = [text + " stop" for text in expected]
    assert list(pieces.values()) == expected


def test_each_prompt_of_a_batch_that_streams_has_its_stream(ask: Ask) -> None:
    inputs = {"QUERY": texts(["7"], ["8"]), "REQUEST_OUTPUT_LEN": most(9, 9)}
    ask("preprocessing", "two", STREAMING=np.array([[True], [True]]), **inputs)
    tokens = ids("八")
    assert [chunk(ask, "two", [token]) for token in tokens for _ in range(2)][-2:] == ["八"] * 2


def test_what_was_not_announced_is_a_whole_answer_each_time(ask: Ask) -> None:
    tokens = ids("八千")
    for end in range(1, len(tokens) + 1):
        assert chunk(ask, "accumulated", tokens[:end]) == TOKENIZER.decode(tokens[:end])


def test_outputs_that_are_declared_are_sent(ask: Ask) -> None:
    tokens = {"TOKENS_BATCH": np.array([[ids("6")]], np.int32), "SEQUENCE_LENGTH": most(1)}
    said = ask("postprocessing", **tokens, CUM_LOG_PROBS=np.array([[-2]], np.float32))
    assert said.pop("OUTPUT").item() == b"6"
    assert said.pop("OUT_CUM_LOG_PROBS").tolist() == [[-2]]
    assert {name: value.tolist() for name, value in said.items()} == {
        "OUT_TOKENS_BATCH": tokens["TOKENS_BATCH"].tolist(),
        "OUT_SEQUENCE_LENGTH": [[1]],
        "OUT_OUTPUT_LOG_PROBS": [[[0]]],
        "OUT_CONTEXT_LOGITS": [[[0]]],
        "OUT_GENERATION_LOGITS": [[[[0]]]],
    }
