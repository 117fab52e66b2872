"""JSON files: written whole or not at all, and read with an error for people.

Knows nothing of what stands in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from llm_perf.errors import UserError
from llm_perf.files import write_whole


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError: can't be read, isn't JSON, isn't an object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=file) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", where=file) from None
    if not isinstance(value, dict):
        raise UserError("isn't a JSON object", where=file)
    return value


def read_json(path: Path) -> Any:
    """What :func:`write_json` wrote; None where there is nothing, or nothing whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that ``path`` holds either the old text or all of the new. Raises OSError."""

    def write(file: TextIO) -> None:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")

    write_whole(path, write)
