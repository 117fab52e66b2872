"""The model's tokenizer, here only to count: text in, number of tokens out.

Reads ``tokenizer.json`` with the Rust ``tokenizers`` library; nothing else of the model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.errors import UserError

_BATCH = 1024  # encodings keep offsets and more; a batch bounds what lives at once


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Counts tokens as the model would see them."""

    path: Path
    _encoder: Any

    def count(self, texts: Sequence[str], *, special: bool) -> list[int]:
        """Tokens per text; ``special`` adds what the model wants around a prompt (BOS, …)."""
        counts: list[int] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            encodings = self._encoder.encode_batch_fast(batch, add_special_tokens=special)
            counts += [len(encoding) for encoding in encodings]
        return counts


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load ``tokenizer.json``, given itself or by its folder.

    Raises ``UserError`` with the file's name when it is not there or does not load.
    """
    from tokenizers import Tokenizer as Encoder

    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            "no such tokenizer file",
            where=file,
            fix="give the model's folder with its tokenizer.json (transformers' "
            "AutoTokenizer(…).save_pretrained writes one)",
        )
    try:
        encoder = Encoder.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"the tokenizer does not load: {error}",
            where=file,
            fix="give a tokenizer.json that this release of tokenizers reads",
        ) from error
    encoder.no_padding()
    encoder.no_truncation()  # some files carry a limit, and counts must not
    return Tokenizer(file, encoder)
