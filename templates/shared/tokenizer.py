"""A tokenizer folder in; text to ids, ids to text, and the ids that end and pad an answer, out.

Needs ``tokenizers`` where the folder has a tokenizer.json, else ``transformers``. Preprocessing and
postprocessing each have a copy of this file.
"""

import json
from functools import lru_cache
from pathlib import Path

from spellings import Spellings

_FIELDS = {"single_word", "lstrip", "rstrip", "normalized", "special"}


class Tokenizer:
    """What a tokenizer folder says."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():  # transformers would take it for a name and ask the network
            raise FileNotFoundError(f"there is no tokenizer_dir {folder}")
        self._model = self._read("config.json") | self._read("generation_config.json")
        self.config = self._read("special_tokens_map.json") | self._read("tokenizer_config.json")
        fast, slow = self._load()
        if fast is not None:
            self.encode = lambda text, special: fast.encode(text, add_special_tokens=special).ids
            self.decode = lambda ids, skip=False: fast.decode(ids, skip_special_tokens=skip)
            self.vocabulary = fast.get_vocab_size()
            self._id_of = fast.token_to_id
            self.spellings = lru_cache(maxsize=1024)(Spellings(fast).of)
        else:
            self.encode = lambda text, special: slow.encode(text, add_special_tokens=special)
            self.decode = lambda ids, skip=False: slow.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            self.vocabulary = len(slow)
            self._id_of = slow.convert_tokens_to_ids
            self.spellings = lambda word, _=False: [i] if (i := self.encode(word, False)) else []
        self.vocabulary = self._model.get("vocab_size", self.vocabulary)  # maybe with room to spare
        self.end_ids = self._special("eos_token")
        self.pad_id = (self._special("pad_token") or self.end_ids or [-1])[0]

    def _load(self):
        """tokenizer.json's tokenizer, or the one that transformers makes of the other files.

        That may be one in Python: (None, it). Raises ValueError for a token that can't be had.
        """
        if (self.folder / "tokenizer.json").exists():
            import tokenizers

            fast = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            fast.no_truncation()
            fast.no_padding()
            self._add_missing(fast, tokenizers.AddedToken)
            return fast, None
        import transformers

        made = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        return getattr(made, "backend_tokenizer", None), made

    def _add_missing(self, fast, token):
        """Tokens that only the files beside tokenizer.json name, such as <|im_start|>.

        Without them they are split into pieces, and the end token is never seen.
        """
        named = {text: (each, {}) for text, each in self._read("added_tokens.json").items()}
        for number, each in self.config.get("added_tokens_decoder", {}).items():
            named[each["content"]] = (
                int(number),
                {key: each[key] for key in _FIELDS & each.keys()},
            )
        for text, (number, fields) in sorted(named.items(), key=lambda each: each[1][0]):
            if fast.token_to_id(text) is None:
                fast.add_tokens([token(text, **fields)])
            found = fast.token_to_id(text)
            if found != number:
                raise ValueError(
                    f"{self.folder}: {text!r} is token {number} by its config, {found} in"
                    " tokenizer.json; save the tokenizer anew with transformers' save_pretrained"
                )

    def _special(self, name):
        """The ids of a special token: the tokenizer's, then the others that the model has."""
        token = self.config.get(name)
        token = token["content"] if isinstance(token, dict) else token
        of_model = self._model.get(f"{name}_id")
        ids = [self._id_of(token) if token else None]
        ids += of_model if isinstance(of_model, list) else [of_model]
        return list(dict.fromkeys(each for each in ids if each is not None))

    def _read(self, name):
        file = self.folder / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
