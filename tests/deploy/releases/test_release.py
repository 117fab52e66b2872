import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.releases.release import (
    Tensor,
    load_release,
    release_names,
    release_of,
    spans,
    stand_in,
    tensor,
)


def test_the_releases_with_engines_are_known_in_their_order() -> None:
    old = [f"0.{minor}.0" for minor in range(11, 18)]
    late = ("0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.1", "1.2")
    assert release_names() == (*old, *late)


def test_a_release_file_says_only_what_differs_from_its_neighbour() -> None:
    """Entry by entry: what isn't said is the neighbour's, what is ``gone`` isn't there."""
    before, after = load_release("0.18.2"), load_release("0.19.0")
    assert after.commands["trtllm-build"] == before.commands["trtllm-build"]
    assert "tokenizer_dir" not in before.models["tensorrt_llm"].parameters
    assert after.models["tensorrt_llm"].required == {
        "tokenizer_dir",
        "xgrammar_tokenizer_info_path",
        "guided_decoding_backend",
    }
    assert "visual_model_path" not in after.models["preprocessing"].parameters
    assert "0.16.0" in after.interpolated
    assert not load_release("0.16.0").interpolated


def test_what_a_release_requires_its_templates_have() -> None:
    for name in release_names():
        for model in load_release(name).models.values():
            assert model.required <= set(model.parameters), (name, model.name)


def test_a_version_between_two_releases_takes_the_lower_and_says_so() -> None:
    between, lower = load_release("0.18.1"), load_release("0.17.0")
    assert (between.name, between.interpolated) == ("0.18.1", "all is that of 0.17.0")
    assert between.models == lower.models
    assert stand_in("0.18.1") == "0.17.0"


@pytest.mark.parametrize(
    ("version", "release"),
    [("1.2.1", "1.2"), ("1.2.0rc3", "1.2"), ("0.12", "0.12.0"), ("0.17.0.post1", "0.17.0")],
)
def test_a_version_of_a_known_release_needs_no_stand_in(version: str, release: str) -> None:
    assert (release_of(version), stand_in(version)) == (release, None)
    assert load_release(version).models == load_release(release).models


@pytest.mark.parametrize("version", ["1.3.0", "0.10.0", "10", "", "main", "9" * 5000])
def test_what_no_release_stands_for_is_refused(version: str) -> None:
    with pytest.raises(UserError, match=r"known are 0\.11\.0"):
        load_release(version)


def test_releases_are_told_in_spans() -> None:
    names = release_names()
    assert spans(names) == "0.11.0 to 1.2"
    assert spans(["0.12.0", "1.2", "0.13.0"]) == "0.12.0 to 0.13.0, 1.2"
    assert spans([]) == ""


def test_an_unknown_release_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"0\.10\.0.*known are 0\.11\.0, 0\.12\.0"):
        load_release("0.10.0")


def test_releases_differ_where_tensorrt_llm_changed() -> None:
    old, new = (
        {each.name: each for each in load_release(name).models["ensemble"].inputs}
        for name in ("0.11.0", "1.2")
    )
    assert (old["text_input"].dims, new["text_input"].dims) == ((-1,), (1,))
    assert "min_length" in old
    assert "min_length" not in new
    assert {"min_tokens", "seed", "return_num_output_tokens"} <= set(new)


def test_every_wire_of_an_ensemble_ends_at_a_declared_tensor() -> None:
    for name in release_names():
        models = load_release(name).models
        ensemble = models["ensemble"]
        made = {each.name for each in ensemble.inputs}
        for step in ensemble.steps:
            assert set(step.input_map) <= {each.name for each in models[step.model].inputs}
            assert set(step.output_map) <= {each.name for each in models[step.model].outputs}
            assert set(step.input_map.values()) <= made
            made |= set(step.output_map.values())
        assert {each.name for each in ensemble.outputs} <= made


def test_a_tensor_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor x"):
        tensor("x", "TYPE_INT32[-1] optionall")


@given(
    st.sampled_from(["TYPE_INT32", "TYPE_STRING", "${logits_datatype}"]),
    st.lists(st.integers(-1, 9), min_size=1, max_size=4).map(tuple),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_tensor_line_says_what_it_says(
    dtype: str, dims: tuple[int, ...], optional: bool, reshape: bool, ragged: bool
) -> None:
    words = ["optional"] * optional + ["reshape"] * reshape + ["ragged"] * ragged
    text = " ".join([f"{dtype}[{', '.join(map(str, dims))}]", *words])
    assert tensor("x", text) == Tensor("x", dtype, dims, optional, reshape, ragged)
