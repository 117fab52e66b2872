"""Write grafana/dashboards/triton.json from panels.yaml; with --check, see that it is current."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "grafana"
TARGET = FOLDER / "dashboards/triton.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 6, 8  # of a panel; a row is 24 wide


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    rows = yaml.safe_load((FOLDER / "panels.yaml").read_text("utf-8"))
    panels: list[dict[str, Any]] = []
    for row, (title, graphs) in enumerate(rows.items()):
        top = (HEIGHT + 1) * row
        place = {"h": 1, "w": 24, "x": 0, "y": top}
        panels.append({"type": "row", "title": title, "gridPos": place, "panels": []})
        panels += [
            _panel(name, graph, WIDTH * column, top + 1)
            for column, (name, graph) in enumerate(graphs.items())
        ]
    return {
        "uid": "trtllm-triton",
        "title": "Triton with TensorRT-LLM",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {"list": [_model_choice()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }


def _model_choice() -> dict[str, Any]:
    return {
        "name": "model",
        "type": "query",
        "datasource": SOURCE,
        "query": "label_values(nv_inference_request_success, model)",
        "refresh": 2,  # whenever the time range changes
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(title: str, graph: dict[str, Any], x: int, y: int) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "description": graph.get("about", ""),
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": graph["unit"], "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}
            for number, (legend, expression) in enumerate(graph["lines"].items())
        ],
    }


def main(check: bool) -> int:
    """Write or check; the exit code."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if not check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text("utf-8") != text:
        print(f"{TARGET.name} isn't what {Path(__file__).name} writes: run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
