from __future__ import annotations

import signal

from hypothesis import settings

# Where a shell starts the tests in the background, SIGINT is ignored, and so it would be in every
# process that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None)  # no test is about time
settings.load_profile("shared machine")
