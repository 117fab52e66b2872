"""Token ids of many interleaved streams in, their text out, piece by piece and never broken.

The pieces of a stream put together are ``decode`` of all its tokens: no half character is sent, no
space between tokens is lost, and what is still incomplete when the stream ends is flushed as
``decode`` has it (U+FFFD). Knows nothing of Triton.

A stream must be announced with ``open`` before its first tokens; tokens of a key that was not are
taken for a whole answer. It ends with its last allowed token, with its end token, or with an empty
chunk, which is how TensorRT-LLM reports an end token. Streams that end in no such way are
forgotten: the one untouched longest beyond ``capacity``, and any that is idle when its key is
opened again.

Two open streams under one key (two clients with the same request id, or with none) cannot be told
apart by their tokens. Then a chunk that begins amid a character continues the oldest one waiting:
right as long as streams take turns, which is how in-flight batching produces them.
"""

import time
from collections import OrderedDict, deque

BROKEN = "\ufffd"  # what decode makes of an incomplete character
IDLE_SECONDS = 60.0


class Stream:
    """One stream that has its key to itself."""

    def __init__(self, decode, end_id, most_tokens):
        self.tokens = []  # the last piece's tokens as context, then the unsent ones
        self._decode = decode
        self._end_id = end_id
        self._left = most_tokens
        self._context = 0  # how many of ``tokens`` are context
        self.sent = 0  # how many characters of decode(tokens) are sent

    def ends_with(self, tokens):
        """Count the new tokens; true when they are the last."""
        self._left -= len(tokens)
        return self._left <= 0 or not tokens or tokens[-1] == self._end_id

    def unsent(self):
        """The text, broken at its end, that waits for more tokens."""
        return self._decode(self.tokens)[self.sent :]

    def add(self, tokens, final):
        """The text that the new tokens complete, all that is left when final."""
        self.tokens += tokens
        text = self._decode(self.tokens)
        whole = len(text) if final else len(text.rstrip(BROKEN))
        piece = text[self.sent : whole]
        self.sent = max(self.sent, whole)
        if piece and whole == len(text):
            del self.tokens[: self._context]
            self._context = len(self.tokens)
            self.sent = len(self._decode(self.tokens))
        return piece


class SharedKey:
    """Several streams under one key."""

    def __init__(self, decode, context, first):
        self.streams = 2
        self._decode = decode
        self._fresh = (context, len(decode(context)))  # what goes before a chunk that stands alone
        self._chunks = 0
        self._waiting = deque()  # (number of its chunk, tokens that end amid a character, sent)
        if first.unsent():
            self._waiting.append((0, first.tokens, first.sent))

    def add(self, tokens):
        """The text that the new tokens of one of the streams complete."""
        self._chunks += 1
        overtaken = self._chunks - 8 * self.streams  # its stream is gone
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

    def __init__(self, decode, context, capacity=4096, clock=time.monotonic):
        self._decode = decode
        self._context = context
        self._capacity = capacity
        self._clock = clock
        self._open = OrderedDict()  # key -> [last touched, Stream or SharedKey]

    def __len__(self):
        return len(self._open)

    def open(self, key, end_id, most_tokens):
        """A stream begins that ends with ``end_id`` or after ``most_tokens``."""
        now = self._clock()
        known = self._open.pop(key, None)
        if known is None or now - known[0] > IDLE_SECONDS:
            entry = Stream(self._decode, end_id, most_tokens)
        elif isinstance(known[1], SharedKey):
            entry = known[1]
            entry.streams += 1
        else:
            entry = SharedKey(self._decode, self._context, known[1])
        self._open[key] = [now, entry]
        if len(self._open) > self._capacity:
            self._open.popitem(last=False)

    def add(self, key, tokens):
        """The text that the new tokens of a stream complete, possibly none."""
        known = self._open.get(key)
        if known is None:
            return self._decode(tokens)
        known[0] = self._clock()
        self._open.move_to_end(key)
        entry = known[1]
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
