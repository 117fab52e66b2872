from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.spec.located import load_located

GOOD = """\
backend: reference
models:
  tiny:
    source: model
    tp: 2
precisions: [fp16, fp8]
calibration:
  data: prompts.jsonl
matrix:
  max_batch_size: [4, 8]
  isl_osl: ["128,64", [256, 32]]
build:
  max_num_tokens: 1024
triton:
  enable_kv_cache_reuse: true
measure:
  data: prompts.jsonl
  concurrency: 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text('{"text_input": "x"}\n')
    return tmp_path


def write(folder: Path, text: str) -> Path:
    file = folder / "deployment.yaml"
    file.write_text(text)
    return file


def test_the_matrix_is_model_by_precision_by_lengths_by_batch(folder: Path) -> None:
    names = [cell.name for cell in load_deployment(write(folder, GOOD)).cells()]
    assert len(names) == len(set(names)) == 8
    assert names[0] == "tiny_fp16_tp2_pp1_isl128_osl64_bs4"
    assert names[-1] == "tiny_fp8_tp2_pp1_isl256_osl32_bs8"


def test_lists_of_build_flags_multiply_the_cells_and_show_in_their_names(folder: Path) -> None:
    flags = "  max_beam_width: [1, 4]\n  use_paged_context_fmha: [enable, disable]\nbuild:"
    cells = load_deployment(write(folder, GOOD.replace("build:", flags))).cells()
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names)) == 8 * 4
    assert names[0].endswith("_bs4_max_beam_width-1_use_paged_context_fmha-enable")
    assert dict(cells[-1].build) == {"max_beam_width": 4, "use_paged_context_fmha": "disable"}


def test_a_flag_is_what_the_file_says_else_what_the_cell_says_else_the_default(
    folder: Path,
) -> None:
    file = load_deployment(write(folder, GOOD))
    cell = file.cells()[0]
    assert file.given_flags(cell) == {
        "max_batch_size": 4,
        "max_input_len": 128,
        "max_seq_len": 128 + 64,
        "max_num_tokens": 1024,
    }
    assert file.flag(cell, "tokens_per_block") == 32  # of 1.2
    old = load_deployment(write(folder, f'release: "0.11.0"\n{GOOD}'))
    assert old.flag(cell, "tokens_per_block") == 64
    wider = GOOD.replace("max_num_tokens: 1024", "max_seq_len: 4096")
    assert load_deployment(write(folder, wider)).flag(cell, "max_seq_len") == 4096


def test_a_flag_of_another_release_is_told_as_such(folder: Path) -> None:
    text = GOOD.replace("max_num_tokens: 1024", "kv_cache_type: paged")
    load_deployment(write(folder, text))
    with pytest.raises(
        UserError, match=r"has no flag kv_cache_type \(TensorRT-LLM 0\.13\.0 to 1\.2 takes it\)"
    ):
        load_deployment(write(folder, f'release: "0.11.0"\n{text}'))


def test_calibration_data_is_a_file_a_folder_or_the_name_of_a_data_set(folder: Path) -> None:
    def data(text: str) -> object:
        return load_deployment(write(folder, GOOD.replace(*text.split("|")))).calibration_data()

    assert data("  data: prompts.jsonl|  data: prompts.jsonl") == folder / "prompts.jsonl"
    assert data("  data: prompts.jsonl\nmatrix|  data: model\nmatrix") == folder / "model"
    assert data("  data: prompts.jsonl\nmatrix|  data: abisee/x\nmatrix") == "abisee/x"
    assert data("calibration:\n  data: prompts.jsonl\n|") == "cnn_dailymail"


def test_paths_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(folder, GOOD)
    monkeypatch.chdir("/")
    assert load_deployment(file).resolve("prompts.jsonl") == folder / "prompts.jsonl"


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        (
            "enable_kv_cache_reuse",
            "enable_kv_cache_reus",
            15,
            "did you mean 'enable_kv_cache_reuse'?",
        ),
        ("max_num_tokens", "max_num_token", 13, "did you mean 'max_num_tokens'?"),
        ("    tp: 2", "    tpp: 2", 5, "did you mean 'tp'?"),
        ("matrix:", "matrx:", 9, "did you mean 'matrix'?"),
        ("  concurrency: 4", "  limits: ttft<1s", 18, "ttft of a run is many"),
        (
            "measure:",
            "study: {limits: ttft.max<1s}\nmeasure:",
            16,
            "ttft.max<1s can't be searched for",
        ),
        (
            "measure:",
            "study: {limits: ttft.p95<1s, budget: soon}\nmeasure:",
            16,
            "'soon' is no length of time",
        ),
        ("measure:", "study: {limit: ttft.p95<1s}\nmeasure:", 16, "did you mean 'limits'?"),
        (
            "measure:",
            "study:\n- limits: x.p1<1\nmeasure:",
            17,
            "study.0.limits: there is no metric",
        ),
        ("measure:", "study: [2]\nmeasure:", 16, "study.0: must be a block of keys, not 2"),
        ("measure:", "tune: []\nmeasure:", 16, "tune: must be a block of keys, not a list"),
        ("fp16, fp8", "fp16, fp9", 6, "there is no precision 'fp9'; did you mean 'fp8'?"),
        ("backend: reference", "backend: tensort", 1, "there is no backend 'tensort'"),
        ("tp: 2", "tp: 0", 5, "greater than 0"),
        ("tp: 2", "tp: two", 5, "valid integer"),
        ("tp: 2", "tp: {a: 1}", 5, "tp: input should be a valid integer, not a block of keys"),
        ("tp: 2", "tp: [2]", 5, "tp: input should be a valid integer, not a list"),
        ("[4, 8]", "[4, 4]", 10, "4 is listed twice"),
        ("[4, 8]", "[]", 10, "the list is empty"),
        ('"128,64"', '"128"', 11, "write input and output length as ISL,OSL"),
        ('"128,64"', '"128,x"', 11, "valid integer"),
        ("    source: model\n", "", 3, "the key 'source' is missing"),
        ("source: model", "source: nowhere/at/all", 4, "is no Hugging Face id"),
        ("source: model", "source: ./nowhere", 4, "there is no folder"),
        ("source: model", "source: .", 4, "has no config.json"),
        ("  tiny:", "  ti/ny:", 3, "use letters, digits"),
        ("  data: prompts.jsonl\nmatrix", "  data: nothing.jsonl\nmatrix", 8, "there is no file"),
        ("max_batch_size", "max_batch_siz", 9, "did you write 'max_batch_siz' for it?"),
        ("max_num_tokens: 1024", "max_num_tokens: many", 13, "write a whole number"),
        ("max_num_tokens: 1024", "max_num_tokens: true", 13, "write a whole number"),
        ("max_num_tokens: 1024", "max_output_len: 64", 13, "write max_seq_len"),
        ("max_num_tokens: 1024", "tp_size: 2", 13, "set tp of the model"),
        ("max_num_tokens: 1024", "use_custom_all_reduce: enable", 13, "remove it"),
        ("max_num_tokens: 1024", "use_paged_context_fmha: on", 13, "write one of: enable, disable"),
        ("max_num_tokens: 1024", "max_decoder_seq_len: 9", 13, "write max_seq_len"),
        ("max_num_tokens: 1024", "output_dir: x", 13, "trtllm-deploy sets it"),
        (
            'isl_osl: ["128,64", [256, 32]]',
            'isl_osl: "1,1"\n  fast_build: [true, 2]',
            12,
            "write true",
        ),
        ('isl_osl: ["128,64", [256, 32]]', 'isl_osl: "1,1"\n  fast_build: []', 12, "is empty"),
        ("  max_batch_size", "  max_num_tokens: 8\n  max_batch_size", 10, "stands in 'build:' too"),
        ("backend: reference", 'backend: llmapi\nrelease: "0.11.0"', 1, "0.11.0 has no llmapi"),
        (
            "  max_batch_size",
            "  enable_kv_cache_reuse: [true, false]\n  max_batch_size",
            10,
            "stands in 'triton:' too",
        ),
        ("  max_batch_size", "  gpu_weights_percent: [0.5, 2]\n  max_batch_size", 10, "equal to 1"),
        ("  max_batch_size", "  max_queue_size: [[1]]\n  max_batch_size", 10, "isn't one value"),
        ("matrix:", 'release: "0.11.0"\nmatrix:\n  cuda_graph_mode: true', 11, "no such setting"),
        ("calibration:\n  data: prompts.jsonl", "calibration:\n  data: a/b/c", 8, "no data set"),
        ("precisions: [fp16, fp8]", "precisions: [fp16, fp8]\nfallback: fp17", 7, "did you mean"),
        ("    tp: 2", "    tp: 2\n    tp: 1", 6, "key 'tp' stands twice (first on line 5)"),
        ("fp16, fp8]", "fp16, fp8", 7, "not valid YAML at column 12"),
        ("enable_kv_cache_reuse: true", "enable_kv_cache_reuse: enable", 15, "valid boolean"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    folder: Path, old: str, new: str, line: int, says: str
) -> None:
    assert old in GOOD
    file = write(folder, GOOD.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_deployment(file)
    text = str(caught.value)
    assert text.startswith(f"{file}:{line}: "), text
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize("text", ["", "[]", "just words", "- a\n- b\n"])
def test_what_is_no_mapping_is_no_deployment_file(folder: Path, text: str) -> None:
    with pytest.raises(UserError, match="isn't a deployment file"):
        load_deployment(write(folder, text))


keys = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1, max_size=4)
values = st.recursive(
    st.integers(-(10**39), 10**39)
    | st.booleans()
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=5))
def test_yaml_is_read_as_yaml_reads_it_and_every_key_has_a_line(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]
) -> None:
    import yaml

    file = tmp_path_factory.mktemp("yaml") / "f.yaml"
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=False)
    file.write_text(text)
    located = load_located(file)
    assert located.value == value
    lines = text.splitlines()
    for key in value:
        assert lines[located.line((key,)) - 1].lstrip("'\"? ").startswith(key)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    file = tmp_path_factory.mktemp("yaml") / "f.yaml"
    file.write_bytes(text)
    try:
        load_deployment(file)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("scalar", ["2024-99-99", "0b_", "!!float abc"])
def test_a_scalar_that_is_no_value_is_one_line(folder: Path, scalar: str) -> None:
    with pytest.raises(UserError, match="not valid YAML"):
        load_deployment(write(folder, f"{GOOD}more: {scalar}\n"))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
HOSTILE = {
    "aliases": (BOMB, "more than 20000 values, with what aliases stand for"),
    "merges": (
        "a0: &a0 {x: 1, y: 2}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
        "more than 20000 values",
    ),
    "values": ("a: [" + "1, " * 25_000 + "1]", "more than 20000 values"),
    "depth": ("a: " + "[" * 100 + "]" * 100, "nests too deep"),
    "bytes": ("#" * (4 * 2**20 + 1), "is larger than 4 MiB"),
    "itself": ("a: &a [*a]", "an alias refers to itself"),
    "digits": (f"a: {'9' * 4000}", "a number with more than 40 digits"),
    "NUL": ('a: "x\\0y"', "a NUL or half a character"),
    "half a character": ('a: "\\ud800"', "a NUL or half a character"),
    "a key": ('"x\\0y": 1', "a NUL or half a character"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_document_that_no_person_writes_is_one_line(folder: Path, kind: str) -> None:
    text, what = HOSTILE[kind]
    file = write(folder, text)
    with pytest.raises(UserError, match=what) as caught:
        load_deployment(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("source", ["~nosuchuser/model", "~nosuchuser"])
def test_the_home_of_nobody_is_no_folder(folder: Path, source: str) -> None:
    text = GOOD.replace("source: model", f"source: {source}")
    with pytest.raises(UserError, match=r"there is no folder .*nosuchuser"):
        load_deployment(write(folder, text))
    with pytest.raises(UserError, match=r"there is no file .*nosuchuser"):
        load_deployment(write(folder, GOOD.replace("prompts.jsonl", "~nosuchuser/x.jsonl")))


def test_calibration_data_that_never_ends_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="/dev/zero is no file or folder"):
        load_deployment(write(folder, GOOD.replace("data: prompts.jsonl", "data: /dev/zero")))


@pytest.mark.parametrize(
    ("release", "said"),
    [('"1.3.0"', "there is no data for TensorRT-LLM 1.3.0"), ("1.2", 'write it in quotes: "1.2"')],
)
def test_a_release_without_data_is_told_with_its_line(
    folder: Path, release: str, said: str
) -> None:
    with pytest.raises(UserError, match=rf"yaml:1: release: .*{re.escape(said)}"):
        load_deployment(write(folder, f"release: {release}\n{GOOD}"))
