"""The one kind of error that is for people: what is wrong, where, and how to mend it.

Both commands print it as one line and exit with code 2; anything else is a bug.
"""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Input that the user can mend.

    ``what`` says what is wrong, ``where`` the file, line or key, ``fix`` what to write instead.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        line: int | None = None,
        fix: str | None = None,
    ) -> None:
        place = f"{where}:{line}" if where is not None and line is not None else where
        text = f"{place}: {what}" if place is not None else what
        super().__init__(" ".join((f"{text}; {fix}" if fix else text).split()))
