"""Find a ``tritonserver`` that runs here: the container's own, or the nvidia-pytriton wheel's.

Out: its binary, and the flags and environment that it needs here. Knows nothing of what it serves.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_perf.errors import UserError

_CONTAINER_TRITON = Path("/opt/tritonserver/bin/tritonserver")


@dataclass(frozen=True, slots=True)
class Triton:
    """A ``tritonserver`` that can run here: its binary, the flags and the environment it needs."""

    binary: Path
    flags: tuple[str, ...]
    environment: Mapping[str, str]


def find_triton(cache_dir: Path, program: str | None = None) -> Triton:
    """The container's Triton, else the wheel's with its backend folder assembled in ``cache_dir``.

    With ``program``, a path or a name on PATH, that one. Raises UserError when this machine has
    neither, or it isn't one.
    """
    if program is not None:
        binary = shutil.which(program)
        if binary is None:
            raise UserError("is no program that can be started", where=program)
        return Triton(Path(binary).absolute(), (), _python_environment())
    on_path = shutil.which("tritonserver")
    if on_path or _CONTAINER_TRITON.exists():
        return Triton(Path(on_path or _CONTAINER_TRITON), (), _python_environment())
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise UserError(
            "no tritonserver on this machine",
            fix="pip install 'trtllm-deploy[local]', or run inside a Triton container",
        )
    return _triton_from_wheel(Path(spec.origin).parent, cache_dir)


def _triton_from_wheel(package: Path, cache_dir: Path) -> Triton:
    """The wheel keeps backend and stubs apart; Triton wants them in one ``python/`` folder."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = package / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise UserError(f"nvidia-pytriton has no Triton python stub for Python {version}")
    python_backend = cache_dir / f"backends-{version}" / "python"
    python_backend.mkdir(parents=True, exist_ok=True)
    backend_files = package / "tritonserver/backends/python"
    for source in (
        backend_files / "libtriton_python.so",
        backend_files / "triton_python_backend_utils.py",
        stub,
    ):
        _link(source, python_backend / source.name)
    # The stub links libpython: any other libpython on the path ends in undefined symbols.
    libraries = [
        sysconfig.get_config_var("LIBDIR"),
        str(package.parent / "nvidia_pytriton.libs"),
        *filter(None, [os.environ.get("LD_LIBRARY_PATH")]),
    ]
    return Triton(
        package / "tritonserver/bin/tritonserver",
        (f"--backend-directory={python_backend.parent}",),
        {"LD_LIBRARY_PATH": os.pathsep.join(libraries), **_python_environment()},
    )


def _link(source: Path, target: Path) -> None:
    """Point ``target`` at ``source``, also when several launches do so at once."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.symlink_to(source)
    temporary.replace(target)


def _python_environment() -> Mapping[str, str]:
    """What makes the stubs find the packages of this interpreter, ``trtllm_deploy`` among them.

    A stub finds its site-packages from the first ``python3`` on PATH, virtual environment or not.
    The wheel's stubs ignore PYTHONPATH; others do not.
    """
    packages = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    specs = map(importlib.util.find_spec, ("trtllm_deploy", "llm_perf"))
    ours = (str(Path(str(each.origin)).parents[1]) for each in specs if each)
    places = [*packages, *ours, os.environ.get("PYTHONPATH", "")]
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(place for place in places if place)),
    }
