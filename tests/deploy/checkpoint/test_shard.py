from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.shard import check_shard


def write(file: Path, header: dict[str, Any], data: int) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_shard_or_an_error_for_people(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rank0.safetensors"
    file.write_bytes(content)
    try:
        check_shard(file)
    except UserError as error:
        assert str(file) in str(error)
    else:
        assert content[8:].startswith(b"{")


@pytest.mark.parametrize("entry", [7, {}, {"data_offsets": 3}, {"data_offsets": [0]}])
def test_a_malformed_header_is_an_error_for_people(tmp_path: Path, entry: object) -> None:
    file = tmp_path / "rank0.safetensors"
    header = json.dumps({"weight": entry}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="malformed"):
        check_shard(file)


LIES: dict[str, dict[str, Any]] = {
    "smaller than its shape": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
    "larger than its shape": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
    "another data type": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]},
    "begins behind a hole": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    "ends before it begins": {"dtype": "F32", "shape": [0], "data_offsets": [8, 0]},
    "before the file": {"dtype": "F32", "shape": [4], "data_offsets": [-8, 8]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_told_with_the_tensor_as_safetensors_refuses_it(
    tmp_path: Path, lie: str
) -> None:
    file = tmp_path / "model.safetensors"
    write(file, {"layer.weight": LIES[lie]}, 8)
    with pytest.raises(UserError, match=r"model.*: its header lies about.*layer\.weight"):
        check_shard(file)
    with pytest.raises((SafetensorError, OverflowError)):
        safe_open(file, "np")


def test_tensors_that_share_their_bytes_are_told(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write(file, {"a": entry, "b": entry}, 8)
    with pytest.raises(UserError, match="lies about tensor 'b'"):
        check_shard(file)


@given(shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_safetensors_writes_is_taken(tmp_path: Path, shapes: list[list[int]]) -> None:
    file = tmp_path / "model.safetensors"
    dtypes = (np.float16, np.float32, np.int8)
    tensors = {str(n): np.zeros(shape, dtypes[n % 3]) for n, shape in enumerate(shapes)}
    save_file(tensors, file, metadata={"format": "pt"})
    check_shard(file)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "z.safetensors")
    with pytest.raises(UserError, match="isn't a regular file"):
        check_shard(tmp_path / "z.safetensors")
    with pytest.raises(UserError, match="isn't a regular file"):
        check_shard(Path("/dev/zero"))


def test_a_header_nested_too_deep_is_an_error_for_people(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    text = b"[" * 200_000
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(UserError, match="no readable safetensors header"):
        check_shard(file)
