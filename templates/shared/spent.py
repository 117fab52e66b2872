"""Responses of a decoupled model, read so that what they leave is freed where it may be.

Triton's stub forgets a finished iterator in a thread of its own. If nobody else has it any more, it
frees numpy's memory there without Python's lock, and crashes (seen: 2.51 with Python 3.12). So each
is kept here until that thread has surely been at it.
"""

import time
from collections import deque

_SECONDS = 2.0
_spent = deque()  # (when it was finished, iterator)


def responses(request):
    """The responses to a request, as they come."""
    iterator = request.exec(decoupled=True)
    try:
        yield from iterator
    finally:
        now = time.monotonic()
        _spent.append((now, iterator))
        while now - _spent[0][0] > _SECONDS:
            _spent.popleft()
