import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from trtllm_deploy.releases.release import Tensor, load_release, release_names, tensor


def test_the_first_and_the_last_release_with_engines_are_known() -> None:
    assert release_names() == ("0.11.0", "1.2")


def test_an_unknown_release_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"0\.12\.0.*known are 0\.11\.0, 1\.2"):
        load_release("0.12.0")


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
