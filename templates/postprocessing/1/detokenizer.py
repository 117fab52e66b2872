"""Token ids of many interleaved streams in, their text out, piece by piece and never broken.

The pieces of a stream put together are ``decode`` of all its tokens: no half character is sent, no
space between tokens is lost, and what is still incomplete when the stream ends is flushed as
``decode`` has it (U+FFFD). Only the tokens of the last piece are decoded again, as context for the
new ones, so a chunk costs the same at any length of the answer: about 2.5 µs for one token, where
decoding 2048 tokens takes 80 µs (``benchmarks/detokenizer.py``). Knows nothing of Triton.

What it cannot: take back what is sent. SentencePiece's byte tokens decode to U+FFFD all along a run
of them that holds one broken character; here the whole characters before it stay. A decoder that
changes text at a distance, such as a space that the next word removes, is not for it.

A stream must be announced with ``open`` before its first tokens; tokens of a key that was not are
taken for a whole answer. It ends with its last allowed token, with one of the words that end it, or
with an empty chunk, which is how TensorRT-LLM reports an end token. Streams that end without such a
sign are forgotten when idle; so is the one that is idle longest, beyond ``capacity``.

Two open streams under one key (two clients with the same request id, or with none) cannot be told
apart by their tokens. Then a chunk that begins amid a character continues the oldest one waiting:
right as long as streams take turns, which is how in-flight batching produces them.
"""

import time
from collections import OrderedDict, deque

BROKEN = "\ufffd"  # what decode makes of an incomplete character
LONGEST_CHARACTER = 4  # bytes, and so tokens
MOST_WAITING = 32  # tokens without an end of a character; no text has as many
MOST_OVERTAKEN = 1024  # chunks of others, while one amid a character waits
IDLE_SECONDS = 600.0  # a stream may wait in TensorRT-LLM's queue before its first token


class Stream:
    """One stream that has its key to itself."""

    def __init__(self, decode, end_words, most_tokens):
        self.tokens = []  # the last piece's tokens as context, then the unsent ones
        self.context = 0  # how many of ``tokens`` are context
        self.sent = 0  # characters of decode(context)
        self.left = most_tokens
        self._decode = decode
        self._end_words = {tuple(word) for word in end_words}
        self._lengths = {len(word) for word in end_words}
        self._last = ()  # tokens, as many as the longest of these words has
        self._longest = max(self._lengths, default=1)

    def ends_with(self, tokens):
        """Note the new tokens; true when they are the last."""
        self.left -= len(tokens)
        self._last = (*self._last, *tokens)[-self._longest :]
        return (
            self.left <= 0
            or not tokens
            or any(self._last[-length:] in self._end_words for length in self._lengths)
        )

    def add(self, tokens, final):
        """The text that the new tokens complete, all that is left when final."""
        known = len(self.tokens)
        self.tokens += tokens
        if final:
            end, text = len(self.tokens), self._decode(self.tokens)
        else:
            end, text = self._whole(known)
        piece = text[self.sent :]
        if piece:
            del self.tokens[: self.context]
            self.context = end - self.context
            self.sent = len(self._decode(self.tokens[: self.context]))
        elif end - self.context > MOST_WAITING:  # special tokens, which have no text
            del self.tokens[self.context :]
        return piece

    def _whole(self, known):
        """The most tokens that end with a whole character, and their text; ``known`` have none."""
        most = len(self.tokens)
        for end in range(most, max(known, most - LONGEST_CHARACTER), -1):
            text = self._decode(self.tokens[:end])
            if not text.endswith(BROKEN):
                return end, text
        if known - self.context > MOST_WAITING:
            return most, self._decode(self.tokens)
        return self.context, ""


class SharedKey:
    """Several streams under one key."""

    def __init__(self, decode, context, first):
        self.streams = 2
        self._decode = decode
        self._fresh = (context, len(decode(context)))  # what goes before a chunk that stands alone
        self._chunks = 0
        self._waiting = deque()  # (number of its chunk, tokens that end amid a character, sent)
        if len(first.tokens) > first.context:
            self._waiting.append((0, first.tokens, first.sent))

    def add(self, tokens):
        """The text that the new tokens of one of the streams complete."""
        self._chunks += 1
        overtaken = self._chunks - min(8 * self.streams, MOST_OVERTAKEN)  # its stream is gone
        while self._waiting and self._waiting[0][0] < overtaken:
            self._waiting.popleft()
        start, sent = self._beginning(tokens)
        text = self._decode(start + tokens)
        whole = max(sent, len(text.rstrip(BROKEN)))
        if whole < len(text):
            self._waiting.append((self._chunks, start + tokens, whole))
        return text[sent:whole]

    def _beginning(self, tokens):
        if self._decode(tokens).startswith(BROKEN):
            for index, (_, start, sent) in enumerate(self._waiting):
                text = self._decode(start + tokens)[sent:]
                if text == BROKEN or not text.startswith(BROKEN):
                    del self._waiting[index]
                    return start, sent
        return self._fresh


class Detokenizer:
    """The open streams by key. ``context`` are tokens of some plain text, such as a letter."""

    def __init__(self, decode, context, capacity=16384, clock=time.monotonic):
        self._decode = decode
        self._context = context
        self._capacity = capacity
        self._clock = clock
        self._open = OrderedDict()  # key -> [last touched, Stream or SharedKey], oldest first

    def __len__(self):
        return len(self._open)

    def open(self, key, end_words, most_tokens):
        """A stream begins that ends with one of the words, or after ``most_tokens``."""
        known = self._touch(key)
        if known is None:
            entry = Stream(self._decode, end_words, most_tokens)
        elif isinstance(known, SharedKey):
            entry = known
            entry.streams += 1
        else:
            entry = SharedKey(self._decode, self._context, known)
        self._open[key] = [self._clock(), entry]
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)

    def add(self, key, tokens):
        """The text that the new tokens of a stream complete, possibly none."""
        entry = self._touch(key)
        if entry is None:
            return self._decode(tokens)
        if isinstance(entry, SharedKey):
            if tokens:
                return entry.add(tokens)
            entry.streams -= 1
            if entry.streams == 0:
                del self._open[key]
            return ""
        final = entry.ends_with(tokens)
        if final:
            del self._open[key]
        return entry.add(tokens, final)

    def left(self, key):
        """How many tokens may still come; None for a key that no stream has to itself."""
        return getattr(self._open.get(key, (None, None))[1], "left", None)

    def _touch(self, key):
        """Forget what is idle; the key's stream or streams, if it has any."""
        now = self._clock()
        while self._open and now - next(iter(self._open.values()))[0] > IDLE_SECONDS:
            self._open.popitem(last=False)
        if key not in self._open:
            return None
        self._open.move_to_end(key)
        self._open[key][0] = now
        return self._open[key][1]
