"""A sound repository and engine to plant mistakes in: rendered, and built by the stand-in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.standins import install
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.repository import render_repository
from trtllm_deploy.check.facts import Launch
from trtllm_deploy.check.preflight import judge
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.spec.settings import TritonSettings

TOKENIZER = Path(__file__).parents[3] / "examples/number-words/model"
VERSIONS = {"0.11.0": "0.11.0", "1.2": "1.2.1"}
CHECKPOINT: dict[str, Any] = {
    **{"architecture": "Qwen2ForCausalLM", "dtype": "float16", "logits_dtype": "float32"},
    **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "head_size": 128},
    **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
}
FLAGS = {
    **{"max_batch_size": 8, "max_input_len": 2048, "max_seq_len": 3072, "max_beam_width": 1},
    **{"max_num_tokens": 8192, "use_paged_context_fmha": "enable", "workers": 1},
    **{"output_timing_cache": "timing.cache"},
}
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 80 * 2**30, "9.0")


@dataclass
class Site:
    """What a test plants its mistake in."""

    root: Path
    release: str
    launch: Launch = field(init=False)

    def __post_init__(self) -> None:
        self._build()
        settings = {"gpu_device_ids": "0", "decoding_mode": "top_k_top_p", "max_beam_width": 1}
        settings |= {"enable_kv_cache_reuse": True, "kv_cache_free_gpu_mem_fraction": 0.8}
        settings |= {"batch_scheduler_policy": "max_utilization", "enable_chunked_context": True}
        settings |= {"max_tokens_in_paged_kv_cache": 8 * 3072, "accumulate_tokens": True}
        render_repository(
            RepositoryJob(
                self.repository, self.release, self.engine, TOKENIZER, 8, TritonSettings(**settings)
            ),
            "tensorrt",
        )
        self.launch = Launch(
            world_size=1,
            gpus=(H100,),
            tensorrt_llm=VERSIONS[self.release],
            lengths=(2048, 1024),
            shared_memory=2**30,
            locked_memory=2**30,
        )

    def copy(self, root: Path) -> Site:
        """The same in another place."""
        other = object.__new__(Site)
        other.root, other.release, other.launch = root, self.release, self.launch
        shutil.copytree(self.root, root)
        for config in root.rglob("config.pbtxt"):
            config.write_text(config.read_text().replace(str(self.root), str(root)))
        return other

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def engine(self) -> Path:
        return self.root / "engine"

    def _build(self) -> None:
        checkpoint = self.root / "checkpoint"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text(json.dumps(CHECKPOINT))
        header = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        shard = len(header).to_bytes(8, "little") + header + b"\0"
        (checkpoint / "rank0.safetensors").write_bytes(shard)
        environment = {**os.environ, **install(self.root / "bin", self.release)}
        given = {"checkpoint_dir": checkpoint, "output_dir": self.engine, **FLAGS}
        flags = [text for key, value in given.items() for text in (f"--{key}", str(value))]
        command = [str(self.root / "bin" / "bin" / "trtllm-build"), *flags]
        subprocess.run(command, env=environment, cwd=self.root, check=True, capture_output=True)

    def config(self, model: str) -> Path:
        return self.repository / model / "config.pbtxt"

    def edit(self, model: str, old: str, new: str) -> None:
        """Replace a pattern that the config has."""
        text, count = re.subn(old, new, self.config(model).read_text(), flags=re.DOTALL)
        assert count
        self.config(model).write_text(text)

    def write(self, key: str, value: str, model: str = "tensorrt_llm") -> None:
        """Set a parameter, as a person's editor does."""
        text = self.config(model).read_text()
        entry = rf'parameters \{{\s*key: "{re.escape(key)}"\s*value: \{{[^}}]*\}}\s*\}}'
        text = re.sub(entry, "", text)
        text += f'\nparameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        self.config(model).write_text(text)

    def build(self, path: str, value: object) -> None:
        """Set an entry of the engine's config.json."""
        file = self.engine / "config.json"
        config = json.loads(file.read_text())
        inner = config
        *folders, last = path.split(".")
        for each in folders:
            inner = inner.setdefault(each, {})
        inner[last] = value
        file.write_text(json.dumps(config))

    def start(self, **changed: Any) -> None:
        """Launch it otherwise."""
        self.launch = replace(self.launch, **changed)

    def findings(self) -> list[Finding]:
        return judge(self.repository, self.launch)
