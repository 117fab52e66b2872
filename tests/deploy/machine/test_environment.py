"""What children see of the shell."""

import pytest

from trtllm_deploy.machine.environment import clean_environment, is_secret

SECRETS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_SECRET_KEY", "GITHUB_PAT", "DB_PASSWD", "MY_APIKEY", "myApiKey", "PGPASSWORD"),
    *("NGC_CLI_API_KEY", "TRITON_AUTH", "NCCL_SECRET", "SSH_PASSPHRASE", "CUDA_TOKEN"),
)
PLAIN = (
    *("PATH", "HOME", "PWD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG"),
    *("UCX_TLS", "OMPI_MCA_btl", "TOKENIZERS_PARALLELISM", "HF_HOME", "TRTLLM_EXAMPLES"),
    *("NVIDIA_VISIBLE_DEVICES", "PYTHONPATH", "OMP_NUM_THREADS", "SLURM_PROCID"),
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_reaches_no_child(name: str) -> None:
    assert is_secret(name)
    assert clean_environment(of={name: "x"}) == {}


@pytest.mark.parametrize("name", PLAIN)
def test_what_a_server_needs_reaches_it(name: str) -> None:
    assert clean_environment(of={name: "x"}) == {name: "x"}


def test_what_nobody_needs_stays_in_the_shell() -> None:
    assert clean_environment({"NCCL_DEBUG": "INFO"}, of={"EDITOR": "vi", "LANG": "C"}) == {
        "LANG": "C",
        "NCCL_DEBUG": "INFO",
    }
