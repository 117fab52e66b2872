"""Backends whose server loads the checkpoint itself and reads its settings as one YAML file.

The folder that it is started on holds that file and ``server.json``. How the settings of a
deployment file correspond is told in the backend's settings.yaml, its ``table``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import yaml

from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.linked_engine import LinkedEngine
from trtllm_deploy.backends.model_refusals import Configs, refuse_models
from trtllm_deploy.backends.refusals import refuse_gpus, refuse_without_hf
from trtllm_deploy.backends.server import SAID
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import write_json
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile

OTHERWISE = "remove it, or write it in a file of another backend"


class ConfiguredServer(LinkedEngine, Protocol):
    """A server with a table of settings, and with options of its own under ``options:``."""

    table: Mapping[str, Any]

    @abstractmethod
    def options(self, file: DeploymentFile, cell: Cell) -> dict[str, Any]:
        """What its YAML file says of a cell."""

    @abstractmethod
    def refuse(self, file: DeploymentFile) -> None:
        """Raises UserError with line and fix: what this one doesn't take beside."""

    def check(
        self, file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu], configs: Configs
    ) -> None:
        """Refuse what no such server takes, or would answer otherwise.

        Raises UserError: a checkpoint that it doesn't load, a setting that changes answers and has
        no counterpart, an option that this program gives itself.
        """
        name, spec = self.server.name, file.deployment
        refuse_without_hf(file, name)
        for setting, able in self.table["refused"].items():
            value = getattr(spec.triton, setting)
            if value is not None and value not in able:
                raise file.error(("triton", setting), f"{name} has no {setting} {value}", OTHERWISE)
        for option in spec.options.get(name, {}):
            if option in self.table["ours"]:
                raise file.error(("options", name, option), "trtllm-deploy sets it", "remove it")
        self.refuse(file)
        refuse_gpus(file, cells, gpus)
        refuse_models(file, configs, self.checkpoint_kind)

    def serving(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """The options of a cell, and the name that clients use."""
        options = self.options(file, cell)
        return {"model": cell.model, "world_size": cell.world_size, "options": options}

    def write(self, job: RepositoryJob, options: Mapping[str, Any], **said: Any) -> None:
        """The YAML file with ``options``, and ``server.json`` with ``said``."""
        name = self.server.name
        text = yaml.safe_dump(dict(options), sort_keys=False)
        (job.target / f"{name}.yaml").write_text(text, encoding="utf-8")
        known = {each: job.serving[each] for each in ("model", "world_size")}
        write_json(job.target / SAID, {"server": name, **known, **said})

    def notes(self, file: DeploymentFile, cell: Cell) -> Iterator[str]:
        """What it knows nothing of: build flags."""
        known = {*self.table["limits"], "max_input_len"}
        if lost := sorted({*file.deployment.build, *dict(cell.build)} - known):
            yield f"{self.server.title} has no counterpart of the build flags {', '.join(lost)}"
