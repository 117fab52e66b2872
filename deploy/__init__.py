"""From one deployment file to TensorRT-LLM checkpoints, engines, Triton repositories, servers."""
