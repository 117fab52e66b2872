"""Numbers 0 to 9999 in words, in English and in Chinese, and which of them a model may learn from.

In goes a number, out comes text. Knows nothing of tokens, models or files.
"""

import random
from collections.abc import Callable

LIMIT = 10_000

# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
_DIGITS = "零一二三四五六七八九"


def english(n: int) -> str:
    """American English, with hyphens and no "and": 742 → seven hundred forty-two."""
    words = []
    if n >= 1000:
        words += [_ONES[n // 1000], "thousand"]
    if n % 1000 >= 100:
        words += [_ONES[n % 1000 // 100], "hundred"]
    rest = n % 100
    if rest >= 20:
        words.append(_TENS[rest // 10] + (f"-{_ONES[rest % 10]}" if rest % 10 else ""))
    elif rest or n == 0:
        words.append(_ONES[rest])
    return " ".join(words)


def chinese(n: int) -> str:
    """Mandarin, 二 for every 2, one 零 for an inner gap: 11 → 十一, 1010 → 一千零一十."""
    if n < 10:
        return _DIGITS[n]
    if n < 20:
        return "十" + (_DIGITS[n % 10] if n % 10 else "")
    text, gap = "", False
    for unit, sign in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = n // unit % 10
        if digit:
            text += ("零" if gap and text else "") + _DIGITS[digit] + sign
        gap = not digit
    return text


LANGUAGES: dict[str, tuple[Callable[[int], str], str]] = {
    # The answer's first character is part of the line: a space after the English colon only.
    "en": (english, "{} in words: "),
    "zh": (chinese, "{} 用中文:"),
}


def prompt(n: int, language: str) -> str:
    """What the model is asked, without trailing space: `4711 in words:` or `4711 用中文:`."""
    return LANGUAGES[language][1].format(n).rstrip()


def line(n: int, language: str) -> str:
    """Prompt and answer: `4711 in words: four thousand seven hundred eleven`."""
    words, asked = LANGUAGES[language]
    return asked.format(n) + words(n)


def held_out(language: str) -> list[int]:
    """A tenth of all numbers, shuffled, from 100 up: the smaller ones hold the vocabulary."""
    chosen = random.Random(f"held out {language}")  # seeded by text: the same on every platform
    return chosen.sample(range(100, LIMIT), LIMIT // 10)


def taught(language: str) -> list[int]:
    """The numbers a model may learn from, in order: all that are not held out."""
    unseen = set(held_out(language))
    return [n for n in range(LIMIT) if n not in unseen]
