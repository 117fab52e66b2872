"""Prints two configs: what TensorRT-LLM's converter writes for a model, what it reads of ours.

Run by ``without_tensorrt.py`` with the Hugging Face folder and our checkpoint's.
"""

import json
import sys
from typing import Any

from tensorrt_llm.models import MODEL_MAP
from tensorrt_llm.models.modeling_utils import PretrainedConfig

read = PretrainedConfig.from_checkpoint(sys.argv[2])
kind: Any = getattr(MODEL_MAP[read.architecture], "config_class", None)
written = kind and kind.from_hugging_face(sys.argv[1], dtype=read.dtype).to_dict()
print(json.dumps([written, read.to_dict()]))
