"""A word in; the token sequences out with which it can stand in an answer.

TensorRT-LLM ends an answer at token ids. A word encoded by itself is one spelling of several: with
a SentencePiece tokenizer "ion" alone is the piece that begins a word, which no "station" has;
" ion" alone has a space too many; and "." may come as part of ".\\n". So a spelling is any token
that holds the whole word, or the tokens over which it lies when it is encoded between other text:
some that is common, and what completes each token of the vocabulary that begins or ends within it.
An answer ends with the token that completes the word, which may bring a character more.
"""

from functools import cached_property
from itertools import product

_BEFORE = ("", "a", "Z", "1", " ", "a ", "\n", ".", ",", ":", ")", '"', "。", "的")
_AFTER = ("", "a", "1", " ", " a", "\n", ".", ",", ":", '"', "。", "的")
_LONGEST = 8  # characters of a word that a token is looked for to begin or end with
_ANCHOR = "a"  # a letter before tokens keeps a decoder from taking their first space


class Spellings:
    """The spellings of words in a tokenizer of the ``tokenizers`` library."""

    def __init__(self, fast):
        self._fast = fast
        self._anchor = fast.encode(_ANCHOR, add_special_tokens=False).ids

    def of(self, word, exact=False):
        """All spellings, lists of ids; the one of the word by itself comes first.

        ``exact``: only those without another character, for a word that may not come up: to bar
        "ass" is not to bar "class".
        """
        if not word:
            return []
        found = {tuple(self._fast.encode(word, add_special_tokens=False).ids): None}
        pairs = list(dict.fromkeys(self._contexts(word)))
        texts = [before + word + after for before, after in pairs]
        encoded = self._fast.encode_batch(texts, add_special_tokens=False)
        for (before, _), each in zip(pairs, encoded, strict=True):
            for ids in _over(each, len(before), len(before) + len(word)):
                if ids in found:
                    break
                text = self._text(ids)
                if word in text:
                    found |= {ids: None} if text == word or not exact else {}
                    break
        found |= {
            (token,): None
            for token, text in enumerate(self._vocabulary)
            if text == word or (word in text and not exact)
        }
        # what ends with another spelling ends there already
        last = {ids for ids in found if not any(ids[at:] in found for at in range(1, len(ids)))}
        return [list(ids) for ids in found if ids in last]

    def _contexts(self, word):
        """What may stand before and behind the word."""
        yield from product(_BEFORE, _AFTER)
        for size in range(1, min(len(word), _LONGEST)):
            begin, end = word[:size], word[-size:]
            for text in self._vocabulary:
                if text.endswith(begin):
                    yield text[:-size], ""
                if text.startswith(end):
                    yield from ((before, text[size:]) for before in ("", "a", " "))

    def _text(self, ids):
        text = self._fast.decode([*self._anchor, *ids], skip_special_tokens=False)
        return text.removeprefix(_ANCHOR)

    @cached_property
    def _vocabulary(self):
        """The text of each token, as it reads within an answer."""
        rows = [[*self._anchor, each] for each in range(self._fast.get_vocab_size())]
        texts = self._fast.decode_batch(rows, skip_special_tokens=False)
        return [text.removeprefix(_ANCHOR) for text in texts]


def _over(encoded, start, end):
    """The tokens over a part of a text; then with the next, as its space counts to none."""
    over = [at for at, (a, b) in enumerate(encoded.offsets) if a < end and b > start]
    for more in (0, 1) if over else ():
        yield tuple(encoded.ids[over[0] : over[-1] + 1 + more])
