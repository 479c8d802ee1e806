"""Characters: sets of code points as sorted ranges, with the classes of regular expressions in Rust's syntax.

Categories and cases are those of Python's ``unicodedata``: characters newer than it are in no class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

Set = tuple[tuple[int, int], ...]
"""Ranges, both ends within, in order and apart."""

ALL: Set = ((0, 0xD7FF), (0xE000, 0x10FFFF))
_LAST = 0x10FFFF
DECIMAL, SPACE, WORD = "d", "s", "w"
_SPACES: Set = (
    (9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000),
)  # fmt: skip
_CIRCLED: Set = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))  # alphabetic symbols
ASCII: dict[str, Set] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": ((48, 57),),
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
_LONG = {
    "other": "C", "control": "Cc", "cntrl": "Cc", "format": "Cf", "unassigned": "Cn", "privateuse": "Co",
    "surrogate": "Cs", "letter": "L", "casedletter": "LC", "lowercaseletter": "Ll", "modifierletter": "Lm",
    "otherletter": "Lo", "titlecaseletter": "Lt", "uppercaseletter": "Lu", "mark": "M", "combiningmark": "M",
    "spacingmark": "Mc", "enclosingmark": "Me", "nonspacingmark": "Mn", "number": "N", "decimalnumber": "Nd",
    "digit": "Nd", "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "punct": "P",
    "connectorpunctuation": "Pc", "dashpunctuation": "Pd", "closepunctuation": "Pe", "finalpunctuation": "Pf",
    "initialpunctuation": "Pi", "otherpunctuation": "Po", "openpunctuation": "Ps", "symbol": "S",
    "currencysymbol": "Sc", "modifiersymbol": "Sk", "mathsymbol": "Sm", "othersymbol": "So", "separator": "Z",
    "lineseparator": "Zl", "paragraphseparator": "Zp", "spaceseparator": "Zs",
}  # fmt: skip


def union(*sets: Iterable[tuple[int, int]]) -> Set:
    """What is in one of them."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(one for ranges in sets for one in ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def complement(ranges: Set) -> Set:
    """What is not in it, of all scalar values."""
    out, start = [], 0
    for low, high in union(ranges, ((0xD800, 0xDFFF),)):
        if low > start:
            out.append((start, low - 1))
        start = high + 1
    if start <= _LAST:
        out.append((start, _LAST))
    return tuple(out)


def intersection(a: Set, b: Set) -> Set:
    """What is in both."""
    return complement(union(complement(a), complement(b)))


def difference(a: Set, b: Set) -> Set:
    """What is in the first only."""
    return intersection(a, complement(b))


@lru_cache(6)
def perl(letter: str) -> Set:
    """``\\d``, ``\\s`` or ``\\w``, of Unicode; in upper case what is not in it."""
    if letter.isupper():
        return complement(perl(letter.lower()))
    if letter == SPACE:
        return _SPACES
    if letter == DECIMAL:
        return _categories()["Nd"]
    return _word()


def named(name: str, *, folds: bool = False) -> Set | None:
    """``\\p{name}``: a general category, or one of a few more; ``folded``, if it folds. None of what is not known here
    (scripts, blocks...)."""
    found = _named(re.sub(r"[\s_-]", "", name).lower().removeprefix("is"))
    return _folded(found) if found and folds else found


@lru_cache(128)
def _named(plain: str) -> Set | None:
    if plain in ("any", "ascii", "assigned", "whitespace", "space", "wspace"):
        if plain == "assigned":
            return complement(_categories()["Cn"])
        return {"any": ALL, "ascii": ASCII["ascii"]}.get(plain, _SPACES)
    short = _LONG.get(plain) or next((one for one in _short() if one.lower() == plain), None)
    if short is None or short == "Cs":
        return None
    if short == "LC":
        return union(*(_categories()[one] for one in ("Lu", "Ll", "Lt")))
    return union(*(ranges for one, ranges in _categories().items() if one.startswith(short) and one != "Cs"))


def folded(ranges: Set) -> Set:
    """With all that differ from one of it by case only (simple case folding)."""
    orbits = _orbits()
    if len(ranges) > 64 or sum(high - low for low, high in ranges) > 4096:
        more = [one for orbit in _all_orbits() if any(_within(ranges, one) for one in orbit) for one in orbit]
    else:
        more = [one for low, high in ranges for code in range(low, high + 1) for one in orbits.get(code, ())]
    return union(ranges, ((one, one) for one in more)) if more else ranges


_folded = lru_cache(128)(folded)  # of what has a name


def _within(ranges: Set, code: int) -> bool:
    low, high = 0, len(ranges)
    while low < high:
        middle = (low + high) // 2
        if ranges[middle][1] < code:
            low = middle + 1
        else:
            high = middle
    return low < len(ranges) and ranges[low][0] <= code


def _short() -> list[str]:
    return [*dict.fromkeys(one[0] for one in _categories()), "LC", *_categories()]


@lru_cache(1)
def _categories() -> dict[str, Set]:
    found: dict[str, list[tuple[int, int]]] = {}
    start, last = 0, unicodedata.category("\0")
    for code in range(1, _LAST + 2):
        category = unicodedata.category(chr(code)) if code <= _LAST else ""
        if category != last:
            found.setdefault(last, []).append((start, code - 1))
            start, last = code, category
    return {category: tuple(ranges) for category, ranges in found.items()}


@lru_cache(1)
def _word() -> Set:
    parts = [
        ranges for category, ranges in _categories().items() if category[0] in "LM" or category in ("Nd", "Nl", "Pc")
    ]
    return union(*parts, _CIRCLED, ((0x200C, 0x200D),))


@lru_cache(1)
def _all_orbits() -> tuple[tuple[int, ...], ...]:
    orbits: dict[int, list[int]] = {}
    for category in ("Lu", "Ll", "Lt", "Mn", "Nl", "So"):
        for low, high in _categories()[category]:
            for code in range(low, high + 1):
                folded_code = _simple(code)
                if folded_code != code:
                    orbits.setdefault(folded_code, [folded_code]).append(code)
    return tuple(tuple(orbit) for orbit in orbits.values())


@lru_cache(1)
def _orbits() -> dict[int, tuple[int, ...]]:
    return {code: orbit for orbit in _all_orbits() for code in orbit}


def _simple(code: int) -> int:
    """The simple case folding."""
    text = chr(code)
    full = text.casefold()
    if len(full) == 1:
        return ord(full)
    lower = text.lower()
    # of the full foldings only those that have a lower case of one character have a simple one
    return {0x1FD3: 0x390, 0x1FE3: 0x3B0, 0xFB05: 0xFB06}.get(code, ord(lower) if len(lower) == 1 else code)
