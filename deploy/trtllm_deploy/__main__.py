"""``python -m trtllm_deploy``."""

from trtllm_deploy.cli.main import main

main()
