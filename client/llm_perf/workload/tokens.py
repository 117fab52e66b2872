"""The model's tokenizer, here to count and to know its vocabulary: text in, numbers out.

Reads ``tokenizer.json`` with the Rust ``tokenizers`` library, other files as ``encoders`` does;
nothing else of the model is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from llm_perf.workload.encoders import load_other

_BATCH, _CHARACTERS = 1024, 2**21  # encodings keep offsets and more: bounds what lives at once
_PIECE = 2**16  # characters; an encoding takes some 55 bytes for each
_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json")
_SMALL_FILES = [
    *("tokenizer*", "tekken.json", "*.model", "added_tokens.json", "chat_template*"),
    *("config.json", "generation_config.json", "special_tokens_map.json"),
]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/(?!.*\.(json|model)$)[\w.-]+", re.ASCII)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_WORD = re.compile(r"\S(?= \S)")  # what a word's space comes after


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Counts tokens as the model would see them."""

    path: Path
    _encoder: Any

    def count(self, texts: Sequence[str], *, special: bool) -> list[int]:
        """Tokens per text; ``special`` adds what the model wants around a prompt (BOS, …).

        Without it, texts over 64 Ki characters are counted in pieces that begin with a word:
        exact where the tokenizer splits at words first, else off by at most one per piece.
        """
        if special:
            return self._count(texts)
        pieces = [_pieces(text) for text in texts]
        counts = iter(self._count([each for part in pieces for each in part], special=False))
        return [sum(islice(counts, len(part))) for part in pieces]

    def _count(self, texts: Sequence[str], *, special: bool = True) -> list[int]:
        counts: list[int] = []
        while len(counts) < len(texts):
            batch = list(texts[len(counts) : len(counts) + _BATCH])
            sizes = accumulate(map(len, batch))
            few = sum(size <= _CHARACTERS for size in sizes)
            encodings = self._encoder.encode_batch_fast(
                batch[: max(few, 1)], add_special_tokens=special
            )
            counts += [len(encoding) for encoding in encodings]
        return counts

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of one text."""
        ids: list[int] = self._encoder.encode(text, add_special_tokens=special).ids
        return ids

    def token(self, number: int) -> str:
        """The token with this id as the vocabulary spells it."""
        return str(self._encoder.id_to_token(number))

    def vocabulary(self) -> list[str]:
        """The text of each token by itself, special tokens left out; the order is the ids'."""
        ids = sorted(self._encoder.get_vocab(with_added_tokens=False).values())
        texts: list[str] = self._encoder.decode_batch([[each] for each in ids])
        return texts


def _pieces(text: str) -> list[str]:
    pieces, start = [], 0
    while len(text) - start > _PIECE:
        words = _WORD.finditer(text, start + _PIECE // 2, start + _PIECE)
        end = max((word.start() + 1 for word in words), default=start + _PIECE)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load ``tokenizer.json``, SentencePiece's ``.model`` or ``tekken.json``.

    Given itself, by its folder, or by a Hugging Face id, of which the small files are fetched into
    the cache. Tokens that only ``tokenizer_config.json`` or ``added_tokens.json`` name are added.
    Raises ``UserError`` with the file's name when it is not there or does not load.
    """
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Encoder

    file = _find(Path(path))
    settings, added = _read(file, "tokenizer_config.json"), _added(file)
    try:
        other = load_other(file, settings, {text: n for n, (text, _) in added.items()})
        if other is not None:
            return Tokenizer(file, other)
        encoder = Encoder.from_file(str(file))
    except UserError:
        raise
    except Exception as error:  # the libraries raise bare Exception
        raise UserError(
            f"the tokenizer does not load: {error}",
            where=file,
            fix="give a tokenizer.json that this release of tokenizers reads",
        ) from error
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    missing = [(text, more) for _, (text, more) in sorted(added.items()) if text not in known]
    encoder.add_tokens([AddedToken(text, **more) for text, more in missing])
    encoder.no_padding()
    encoder.no_truncation()  # some files carry a limit, and counts must not
    return Tokenizer(file, encoder)


def _find(path: Path) -> Path:
    """The tokenizer's file; raises ``UserError`` where there is none."""
    if not path.exists() and _HUB_ID.fullmatch(str(path)):
        path = _fetch(str(path))
    if path.is_dir():
        models = [path / name for name in _FILES] + sorted(path.glob("*.model"))
        path = next((file for file in models if file.is_file()), path / _FILES[0])
    if not path.is_file():
        raise UserError(
            "no such tokenizer file",
            where=path,
            fix="give the model's folder with its tokenizer.json (transformers' "
            "AutoTokenizer(…).save_pretrained writes one), or its Hugging Face id",
        )
    return path


def _fetch(name: str) -> Path:
    """The folder of a model's small files in the Hugging Face cache, filled where it has none."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_SMALL_FILES))
    except Exception as error:  # of several libraries
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"is no file or folder, and not to be had from Hugging Face: {why}",
            where=name,
            fix="give the model's folder, or an id that is in the cache or can be fetched",
        ) from error


def _added(file: Path) -> dict[int, tuple[str, dict[str, bool]]]:
    """Tokens by their id, with how they match, that ``tokenizer.json`` may lack."""
    beside = _read(file, "added_tokens.json")
    found: dict[int, tuple[str, dict[str, bool]]] = {
        number: (text, {"normalized": False})
        for text, number in beside.items()
        if type(number) is int
    }
    decoder = _read(file, "tokenizer_config.json").get("added_tokens_decoder")
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        text = token.get("content") if isinstance(token, dict) else None
        if number.isdecimal() and isinstance(text, str) and text:
            flags = {key: token[key] for key in _FLAGS if isinstance(token.get(key), bool)}
            found[int(number)] = text, flags
    return found


def stop_ids(path: Path) -> dict[str, int]:
    """``end_id`` and ``pad_id`` of the model whose ``tokenizer.json`` this is.

    From ``eos_token_id`` and ``pad_token_id`` of ``generation_config.json``, else ``config.json``.
    Of several ends the tokenizer's own ``eos_token`` counts, else the first; without a pad the end
    pads. Empty where the files don't say: the server then has to know by itself where to stop.
    """
    known = {**_read(path, "config.json"), **_read(path, "generation_config.json")}
    ends = known.get("eos_token_id")
    ends = [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
    if not ends:
        return {}
    own = _own_end(path) if len(ends) > 1 else None
    end = next((end for end in ends if end == own), ends[0])
    pad = known.get("pad_token_id")
    return {"end_id": end, "pad_id": pad if type(pad) is int else end}


def _own_end(path: Path) -> int | None:
    """The id of ``eos_token`` in ``tokenizer_config.json``."""
    name = _read(path, "tokenizer_config.json").get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    own = _read(path, path.name).get("added_tokens")
    tokens = [each for each in own if isinstance(each, dict)] if isinstance(own, list) else []
    known: dict[Any, Any] = {text: number for number, (text, _) in _added(path).items()}
    known |= {each.get("content"): each.get("id") for each in tokens}
    number = known.get(name) if isinstance(name, str) else None
    return number if type(number) is int else None


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads(path.with_name(name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    # a null says no more than a missing key does
    known = config if isinstance(config, dict) else {}
    return {key: value for key, value in known.items() if value is not None}
