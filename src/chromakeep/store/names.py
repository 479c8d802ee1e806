"""What an object's name may be, so that no name can leave a root, and every store takes it without escapes."""

from __future__ import annotations

import re

from chromakeep.errors import StoreDenied

MAX_NAME = 512
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}(?:/[A-Za-z0-9._-]{1,200})*")
_PREFIX = re.compile(r"(?:[A-Za-z0-9._-]{1,200}/)*[A-Za-z0-9._-]{0,200}")


def is_name(name: str) -> bool:
    """Whether ``name`` can be an object's: non-empty segments of ASCII letters, digits and ``._-``, none ``.``, ``..``.

    A segment has at most 200 characters and the name 512.
    """
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None and not {".", ".."} & set(name.split("/"))


def checked(name: str) -> str:
    """The name itself. Raises StoreDenied for what cannot be one (it may come from a hostile object)."""
    if not is_name(name):
        raise StoreDenied(f"{name[:80]!r} is not the name of an object")
    return name


def checked_prefix(prefix: str) -> str:
    """The prefix itself. Raises StoreDenied for one that no name can begin with."""
    folders = prefix.split("/")[:-1]
    if len(prefix) > MAX_NAME or not _PREFIX.fullmatch(prefix) or {".", ".."} & set(folders):
        raise StoreDenied(f"{prefix[:80]!r} is not the beginning of a name")
    return prefix
