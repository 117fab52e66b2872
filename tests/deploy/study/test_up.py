"""What every server of a study is told alike."""

import pytest

from llm_perf.api import Conditions, Endpoint
from trtllm_deploy.study.up import Up


@pytest.mark.parametrize(("protocol", "sent"), [("grpc", 1), ("openai", 0)])
def test_the_temperature_is_said_so_that_each_server_takes_the_likeliest_token(
    protocol: str, sent: int
) -> None:
    up = Up(Endpoint("localhost:1", protocol, "m"), "http://localhost:2/metrics")
    conditions = up.conditions(Conditions(5))
    assert conditions.defaults == {"temperature": sent}
    assert (conditions.request_timeout_s, conditions.server_metrics_url) == (5, up.metrics_url)
