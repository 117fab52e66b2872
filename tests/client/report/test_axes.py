from llm_perf.report.axes import Axis, scale


def test_an_axis_whose_values_are_all_at_its_top_has_a_length() -> None:
    seen = scale(Axis("Score", [1.0, 1.0], zero=False, top=1.0), 0, 100)
    assert seen.low < 1 == seen.high and seen(1.0) == 100
