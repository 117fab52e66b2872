"""A tokenizer folder in; text to ids, and the ids that end and pad an answer, out.

Needs ``tokenizers`` where the folder has a tokenizer.json, else ``transformers``.
"""

import json
from pathlib import Path


class Tokenizer:
    """What a tokenizer folder says: text to ids, and the ids that end and pad an answer."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():  # transformers would take it for a name and ask the network
            raise FileNotFoundError(f"there is no tokenizer_dir {folder}")
        self._model = self._read("config.json") | self._read("generation_config.json")
        self.config = self._read("special_tokens_map.json") | self._read("tokenizer_config.json")
        if (self.folder / "tokenizer.json").exists():
            import tokenizers

            fast = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            fast.no_truncation()
            fast.no_padding()
            self.encode = lambda text, special: fast.encode(text, add_special_tokens=special).ids
            self.vocabulary = fast.get_vocab_size()
            self._id_of = fast.token_to_id
        else:
            import transformers

            slow = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.encode = lambda text, special: slow.encode(text, add_special_tokens=special)
            self.vocabulary = len(slow)
            self._id_of = slow.convert_tokens_to_ids
        self.vocabulary = self._model.get("vocab_size", self.vocabulary)  # maybe with room to spare
        self.end_ids = self._special("eos_token")
        self.pad_id = (self._special("pad_token") or self.end_ids or [-1])[0]

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
