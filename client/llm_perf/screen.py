"""Text of others for the screen: what a server, a file or a log says is never printed raw."""

from __future__ import annotations


def plain(text: object, keep: str = "") -> str:
    """The text with control characters and what can't be seen spelt out, but for those in ``keep``.

    An escape sequence could otherwise clear the screen, retitle the window or hide a line.
    """
    return "".join(
        each
        if each.isprintable() or each in keep
        else each.encode("unicode_escape", errors="surrogatepass").decode("ascii")
        for each in str(text)
    )
