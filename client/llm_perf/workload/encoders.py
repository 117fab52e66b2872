"""Tokenizers that are no ``tokenizer.json``: SentencePiece's ``.model``, Mistral's ``tekken.json``.

Each is its maker's own library (extra ``tokenizers``) behind the few calls that counting takes of
the ``tokenizers`` library.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError


class Ids(list[int]):
    """Token ids, as an encoding has them."""

    @property
    def ids(self) -> list[int]:
        """Themselves."""
        return self


@dataclass(frozen=True, slots=True)
class Encoder:
    """``split`` makes ids of a text, ``spell`` the text of an id out of ``size``.

    ``around`` are put before and after a prompt; ``added`` are tokens that ``split`` doesn't know,
    by text.
    """

    split: Callable[[str], list[int]]
    spell: Callable[[int], str]
    size: int
    around: tuple[list[int], list[int]]
    added: dict[str, int]

    def encode(self, text: str, add_special_tokens: bool = True) -> Ids:
        """Ids of one text."""
        before, after = self.around if add_special_tokens else ([], [])
        return Ids([*before, *self._inner(text), *after])

    def encode_batch_fast(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[Ids]:
        """Ids of each text."""
        return [self.encode(text, add_special_tokens) for text in texts]

    def id_to_token(self, number: int) -> str:
        """The text of a token."""
        names = {each: text for text, each in self.added.items()}
        return names.get(number) or self.spell(number)

    def get_vocab(self, with_added_tokens: bool = False) -> dict[int, int]:
        """All ids, by themselves: two tokens may be spelt alike."""
        del with_added_tokens
        return {number: number for number in range(self.size)}

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of single tokens."""
        return [self.spell(number) for (number,) in ids]

    def _inner(self, text: str) -> list[int]:
        if not self.added:
            return self.split(text)
        names = "|".join(map(re.escape, sorted(self.added, key=len, reverse=True)))
        parts = re.split(f"({names})", text)
        known = self.added
        return [
            n
            for part in parts
            if part
            for n in ([known[part]] if part in known else self.split(part))
        ]


def sentencepiece(file: Path, settings: dict[str, Any], added: dict[str, int]) -> Encoder:
    """Load a ``.model``; BOS and EOS go around a prompt as ``tokenizer_config.json`` says.

    Without a word there, BOS does, as in Llama's and Mistral's own code.
    """
    import sentencepiece as library

    model = library.SentencePieceProcessor(model_file=str(file))
    begins = settings.get("add_bos_token", True) and model.bos_id() >= 0
    ends = settings.get("add_eos_token", False) and model.eos_id() >= 0
    unknown = {text: n for text, n in added.items() if model.piece_to_id(text) == model.unk_id()}
    control = {
        model.id_to_piece(n): n for n in range(model.get_piece_size()) if model.is_control(n)
    }
    return Encoder(
        split=model.encode,
        spell=lambda number: "" if model.is_control(number) else str(model.decode([number])),
        size=model.get_piece_size(),
        around=([model.bos_id()] if begins else [], [model.eos_id()] if ends else []),
        added={**unknown, **{text: n for text, n in control.items() if text in added}},
    )


def tekken(file: Path, document: dict[str, Any]) -> Encoder:
    """Read a ``tekken.json``; ids of text come after the special ones, and BOS begins a prompt."""
    import tiktoken

    config = document["config"]
    special = config["default_num_special_tokens"]
    ranks = {
        base64.b64decode(each["token_bytes"]): each["rank"]
        for each in document["vocab"][: config["default_vocab_size"] - special]
    }
    model = tiktoken.Encoding(
        file.stem, pat_str=config["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    names = {each["token_str"]: each["rank"] for each in document.get("special_tokens") or ()}
    begin = names.get("<s>", 1)
    return Encoder(
        split=lambda text: [special + n for n in model.encode(text, disallowed_special=())],
        spell=lambda n: "" if n < special else model.decode([n - special]),
        size=special + len(ranks),
        around=([begin], []),
        added={},
    )


def load_other(file: Path, settings: dict[str, Any], added: dict[str, int]) -> Any | None:
    """The encoder of a file that is no ``tokenizer.json``; ``None`` for one that may be.

    Raises ``UserError`` where its library isn't there, and whatever that raises.
    """
    try:
        if file.suffix == ".model":
            return sentencepiece(file, settings, added)
        document = json.loads(file.read_text("utf-8")) if file.name == "tekken.json" else {}
        return tekken(file, document) if document else None
    except ImportError as error:
        raise UserError(
            f"takes the package {error.name}",
            where=file,
            fix="pip install 'trtllm-deploy[tokenizers]'",
        ) from error
