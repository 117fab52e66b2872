"""Runs a program as if a TensorRT-LLM source tree were installed, on a machine without TensorRT.

    python without_tensorrt.py TREE PROGRAM [ARGUMENT]...

The tree's Python is executed as it is. What it imports and isn't here (TensorRT, the C++ bindings,
MPI, ...) is made up: modules of which every name exists and does nothing. Only what the checkpoint
classes ask of them is true: TensorRT's data types, a Hugging Face config, a GPU's capability.
The packages' own ``__init__`` import all of TensorRT-LLM, so they aren't executed; what they hand
on is looked up in the modules that they take it from.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

TREE = Path(sys.argv[1]).resolve()
# packages whose __init__ loads libraries or all models
_NOT_EXECUTED = frozenset(
    f"tensorrt_llm{name}"
    for name in (
        *("", ".models", ".bindings", ".runtime", ".executor", ".llmapi", ".hlapi", "._torch"),
        *(
            ".auto_parallel",
            ".commands",
            ".profiler",
            ".inputs",
            ".serve",
            ".scaffolding",
            ".tokenizer",
        ),
    )
)
_WITHOUT_CPP = ("tensorrt_llm.bindings", "tensorrt_llm._torch", "tensorrt_llm._ipc_utils")


class DataType(enum.Enum):
    """TensorRT's, numbered as in its Python module."""

    FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64, INT4, FP4 = range(11)

    @property
    def itemsize(self) -> float:
        return {"FLOAT": 4, "INT32": 4, "HALF": 2, "BF16": 2, "INT64": 8}.get(self.name, 1)


class KVCacheType(enum.Enum):
    """That of the C++ bindings."""

    CONTINUOUS, PAGED, DISABLED = range(3)


class StrEnum(str, enum.Enum):
    """That of the package strenum: auto() is the member's name."""

    @staticmethod
    def _generate_next_value_(name: str, *_: Any) -> str:
        return name

    def __str__(self) -> str:
        return str(self.value)


class LowercaseStrEnum(StrEnum):
    """That of the package strenum: auto() is the member's name in lower case."""

    @staticmethod
    def _generate_next_value_(name: str, *_: Any) -> str:
        return name.lower()


class HuggingFaceConfig(types.SimpleNamespace):
    """A config.json as transformers 4 gives it: its keys are attributes."""

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> HuggingFaceConfig:
        read = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        rope = read.pop("rope_parameters", {})
        kind = rope.get("rope_type", "default")
        return cls(
            **read,
            rope_theta=rope.pop("rope_theta", 10000.0),
            rope_scaling=None if kind == "default" else {**rope, "type": kind},
        )


_SHORT = {"fp8": "FP8", "bfloat16": "BF16", "float16": "HALF", "float32": "FLOAT", "fp4": "FP4"}
_TYPES = {**_SHORT, **{each.name.lower(): each.name for each in DataType if each.name[0] in "IUB"}}
_TRUE: dict[str, Any] = {
    **{f"tensorrt.{short}": DataType[name] for short, name in _TYPES.items()},
    "tensorrt.DataType": DataType,
    "tensorrt_llm.bindings.KVCacheType": KVCacheType,
    "transformers.PretrainedConfig": HuggingFaceConfig,
    "transformers.AutoConfig": HuggingFaceConfig,
    "transformers.GemmaConfig": HuggingFaceConfig,
    "transformers.Gemma2Config": HuggingFaceConfig,
}


class _Anything(type):
    """A class of which every attribute is another one, and that does nothing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return anything(f"{cls.__name__}.{name}")

    def __call__(cls, *given: Any, **named: Any) -> Any:
        if len(given) == 1 and not named and isinstance(given[0], (type, types.FunctionType)):
            return given[0]  # used as a decorator
        if len(given) == 3 and isinstance(given[2], dict):
            return type(*given)  # used as a metaclass
        return anything(f"{cls.__name__}()")

    def __iter__(cls) -> Any:
        return iter(())

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __or__(cls, _: Any) -> Any:
        return cls

    __ror__ = __and__ = __add__ = __radd__ = __sub__ = __mul__ = __lshift__ = __or__

    def __bool__(cls) -> bool:
        return False

    def __index__(cls) -> int:
        return 0

    def __lt__(cls, _: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__

    def __instancecheck__(cls, _: object) -> bool:
        return False


def anything(name: str) -> Any:
    """What does nothing, by that name."""
    return _Anything(name, (), {"__mro_entries__": lambda bases: ()})


class _Module(types.ModuleType):
    """A module that isn't here, or a package whose ``__init__`` isn't executed."""

    def __getattr__(self, name: str) -> Any:
        full = f"{self.__name__}.{name}"
        if full in _TRUE:
            return _TRUE[full]
        if name == "__version__":
            return "10.0.0"
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if name == "BaseEnumMeta":
            return enum.EnumMeta
        if full == "tensorrt_llm.models.MODEL_MAP":
            return _Models()
        if _source(full):
            return importlib.import_module(full)
        found = self._handed_on().get(name)
        if found:
            return getattr(importlib.import_module(found, self.__name__), name)
        return anything(full)

    def _handed_on(self) -> dict[str, str]:
        """Names that the package's own ``__init__`` takes from modules of the tree."""
        file = _source(self.__name__)
        if file is None or self.__name__ not in _NOT_EXECUTED:
            return {}
        return {
            name.asname or name.name: f"{'.' * each.level}{each.module or ''}"
            for each in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(each, ast.ImportFrom)
            for name in each.names
        }


class _Models(dict[str, Any]):
    """MODEL_MAP as the tree writes it, each class imported when it is asked for."""

    def __init__(self) -> None:
        text = (TREE / "tensorrt_llm/models/__init__.py").read_text(encoding="utf-8")
        for each in ast.parse(text).body:
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "MODEL_MAP":
                assert isinstance(each.value, ast.Dict)
                for key, value in zip(each.value.keys, each.value.values, strict=True):
                    if isinstance(key, ast.Constant):  # not those that the C++ library names
                        self[key.value] = ast.unparse(value)
                    elif isinstance(key, ast.Name):  # a constant of a model's own module
                        named = getattr(sys.modules["tensorrt_llm.models"], key.id)
                        self[named] = ast.unparse(value)

    def __getitem__(self, name: str) -> Any:
        return getattr(sys.modules["tensorrt_llm.models"], super().__getitem__(name))


def _source(name: str) -> Path | None:
    base = TREE.joinpath(*name.split("."))
    for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if name.startswith("tensorrt_llm") and file.is_file():
            return file
    return None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        top, file = name.split(".")[0], _source(name)
        if top == "tensorrt_llm":
            if file and name not in _NOT_EXECUTED and not name.startswith(_WITHOUT_CPP):
                inside = [str(file.parent)] if file.name == "__init__.py" else None
                return importlib.util.spec_from_file_location(
                    name, file, submodule_search_locations=inside
                )
        elif not _asked_by_tree() or top in _HERE:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = [str(TREE.joinpath(*name.split(".")))]
        return spec

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


_HERE = set(sys.stdlib_module_names) | {
    each.split(".")[0]
    for each in (
        *("torch", "numpy", "safetensors", "pydantic", "pydantic_core", "yaml"),
        *("typing_extensions", "tqdm", "filelock", "psutil", "packaging", "huggingface_hub"),
    )
    if importlib.util.find_spec(each)
}


def _asked_by_tree() -> bool:
    frame: types.FrameType | None = sys._getframe(2)
    while frame and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return bool(frame and str(TREE) in frame.f_code.co_filename)


def _dataclass_of_old(cls: Any = None, /, **options: Any) -> Any:
    """Python 3.10's: a default may be an instance of another dataclass."""

    def make(each: Any) -> Any:
        each = _dataclass(each, **options)
        if each.__hash__ is None:
            each.__hash__ = object.__hash__
        return each

    return make if cls is None else make(cls)


_dataclass = dataclasses.dataclass


def install() -> None:
    """Make the tree importable as ``tensorrt_llm``."""
    import torch.distributed.tensor  # some trees name it, and import torch alone
    from torch.utils._triton import has_triton_package

    has_triton_package()  # remembers the answer before triton is made up

    strings = types.ModuleType("strenum")
    strings.StrEnum = StrEnum  # type: ignore[attr-defined]
    strings.LowercaseStrEnum = LowercaseStrEnum  # type: ignore[attr-defined]
    sys.modules["strenum"] = strings
    torch.compile = lambda function=None, **_: function or (lambda each: each)  # type: ignore
    sys.modules["pynvml"] = _Module("pynvml")  # torch may have imported the real one
    hopper = types.SimpleNamespace(major=9, minor=0)
    torch.cuda.get_device_properties = lambda *_: hopper  # type: ignore[assignment,return-value]
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # type: ignore[assignment]
    dataclasses.dataclass = _dataclass_of_old  # type: ignore[assignment]
    sys.meta_path.insert(0, _Finder())


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
