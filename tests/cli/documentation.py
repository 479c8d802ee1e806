"""The JSON objects in docs/reference.md, and how a real one is held against them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

REFERENCE = (Path(__file__).parent.parent.parent / "docs" / "reference.md").read_text()
DOCUMENTED = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", REFERENCE, re.M | re.S)]


def documented(command: str, kind: str | None = None, *, ok: bool = True) -> dict[str, Any]:
    def fits(example: dict[str, Any]) -> bool:
        return (example["command"], example.get("kind")) == (command, kind) and ("code" in example) != ok

    (found,) = [example for example in DOCUMENTED if fits(example)]
    return found


def same_fields(real: Any, example: Any, where: str = "") -> None:
    """Fields and their order, and what is in lists and objects as far as both have some."""
    if isinstance(real, dict) and isinstance(example, dict):
        assert list(real) == list(example), where
        for name in real:
            same_fields(real[name], example[name], f"{where}.{name}")
    elif isinstance(real, list) and isinstance(example, list):
        for item in real if example else []:
            same_fields(item, example[0], f"{where}[]")
    elif real is not None and example is not None:
        number = (int, float)
        assert isinstance(real, number if isinstance(example, number) else type(example)), where
