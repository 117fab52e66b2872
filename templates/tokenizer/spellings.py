"""A word in; the token sequences out with which it can stand in an answer.

TensorRT-LLM ends an answer at token ids. A word encoded by itself is one spelling of several: with
a SentencePiece tokenizer "ion" alone is the piece that begins a word, which no "station" has;
" ion" alone has a space too many; and "." may come as part of ".\\n". So a spelling is any token
that holds the whole word, or the tokens over which it lies when it is encoded between other text.
An answer ends with the token that completes the word, which may bring a character more.
"""

from functools import cached_property

_BEFORE = ("", "a", "Z", "1", " ", "a ", "\n", ".", ",", ":", ")", '"', "。", "的")
_AFTER = ("", "a", "1", " ", " a", "\n", ".", ",", ":", '"', "。", "的")
_ANCHOR = "a"  # a letter before tokens keeps a decoder from taking their first space


class Spellings:
    """The spellings of words in a tokenizer of the ``tokenizers`` library."""

    def __init__(self, fast):
        self._fast = fast
        self._anchor = fast.encode(_ANCHOR, add_special_tokens=False).ids

    def of(self, word):
        """All spellings, lists of ids; the one of the word by itself comes first."""
        alone = self._fast.encode(word, add_special_tokens=False).ids
        found = {tuple(alone): None} if alone else {}
        for before in _BEFORE:
            for after in _AFTER:
                text = before + word + after
                for ids in self._over(text, len(before), len(before) + len(word)):
                    if word in self._text(ids):
                        found[ids] = None
                        break
        found.update({(token,): None for token, text in self._vocabulary if word in text})
        # what ends with another spelling ends there already
        last = {ids for ids in found if not any(ids[at:] in found for at in range(1, len(ids)))}
        return [list(ids) for ids in found if ids in last]

    def _over(self, text, start, end):
        """The tokens over text[start:end], then with the token behind, for its leading space."""
        encoded = self._fast.encode(text, add_special_tokens=False)
        over = [at for at, (a, b) in enumerate(encoded.offsets) if a < end and b > start]
        for more in (0, 1) if over else ():
            yield tuple(encoded.ids[over[0] : over[-1] + 1 + more])

    def _text(self, ids):
        text = self._fast.decode([*self._anchor, *ids], skip_special_tokens=False)
        return text.removeprefix(_ANCHOR)

    @cached_property
    def _vocabulary(self):
        """(id, text) of each token, as it reads within an answer."""
        ids = range(self._fast.get_vocab_size())
        rows = [[*self._anchor, each] for each in ids]
        texts = self._fast.decode_batch(rows, skip_special_tokens=False)
        return [(each, text.removeprefix(_ANCHOR)) for each, text in zip(ids, texts, strict=True)]
