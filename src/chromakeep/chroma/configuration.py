"""Configuration of a collection: what Chroma's three generations of settings come to, and the model they name."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from chromakeep.errors import SourceBroken

# types/src/hnsw_configuration.rs of Chroma 1.5: the defaults, and the legacy metadata key of each parameter
DEFAULTS: dict[str, Any] = {
    "space": "l2",
    "ef_construction": 100,
    "ef_search": 100,
    "max_neighbors": 16,
    "resize_factor": 1.2,
    "sync_threshold": 1000,
    "batch_size": 100,
}
LEGACY = {
    "hnsw:space": "space",
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:resize_factor": "resize_factor",
    "hnsw:sync_threshold": "sync_threshold",
    "hnsw:batch_size": "batch_size",
}


class Configuration(msgspec.Struct, frozen=True):
    """The settings that matter here. ``model`` is the embedding function, as ``name`` or ``name:model``, if any.

    ``settings`` are all of the index, ``function`` is what is stored of the embedding function, ``schema`` the schema
    as stored: plain JSON, only to be passed on.
    """

    space: str
    sync_threshold: int
    max_neighbors: int
    model: str | None
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    function: dict[str, Any] = msgspec.field(default_factory=dict)
    schema: dict[str, Any] = msgspec.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.space, self.sync_threshold, self.max_neighbors, self.model))

    def shown(self) -> dict[str, Any]:
        """As Chroma's HTTP API shows it: ``configuration_json``."""
        hnsw = {name: value for name, value in self.settings.items() if name != "batch_size"}
        return {"hnsw": hnsw, "spann": None, "embedding_function": self.function or None}


def configuration(schema: Any, config: Any, legacy: dict[str, Any]) -> Configuration:
    """By the rule of Chroma 1.5 (types/src/collection_schema.rs), from both columns and the segment's ``hnsw:*`` keys.

    The schema's vector index, else the configuration's; if that is all defaults, the metadata. The key
    ``hnsw_configuration`` of 0.5 and 0.6 is not consulted, as 1.x does not. Raises SourceBroken.
    """
    parsed, stored = _json(schema), _json(config)
    index = _dig(parsed, "keys", "#embedding", "float_list", "vector_index", "config")
    index = index or _dig(parsed, "defaults", "float_list", "vector_index", "config")
    function = _dig(index, "embedding_function") or _dig(stored, "embedding_function")
    chosen = {**_dig(index, "hnsw"), "space": index.get("space")} if index else _dig(stored, "vector_index", "hnsw")
    settings = {name: default if chosen.get(name) is None else chosen[name] for name, default in DEFAULTS.items()}
    if settings == DEFAULTS:
        settings |= {LEGACY[key]: value for key, value in legacy.items() if key in LEGACY and value is not None}
    space, threshold, neighbors = settings["space"], settings["sync_threshold"], settings["max_neighbors"]
    if space not in ("l2", "cosine", "ip"):
        raise SourceBroken(f"a collection has the space {str(space)[:40]!r}")
    if not all(type(number) is int and 0 < number < 1 << 62 for number in (threshold, neighbors)):
        raise SourceBroken("a collection's index settings are no positive numbers")
    return Configuration(space, threshold, neighbors, _model(function), settings, function, parsed)


def _json(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) and text.strip() else None
    except (ValueError, RecursionError):
        raise SourceBroken("a collection's configuration is no JSON") from None
    return value if isinstance(value, dict) else {}


def _dig(value: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _model(function: dict[str, Any]) -> str | None:
    """``name`` or ``name:model`` of an embedding function's configuration; only told, never built."""
    name, settings = function.get("name"), _dig(function, "config")
    if not isinstance(name, str):
        return None
    model = next(
        (settings[key] for key in ("model_name", "model", "model_id") if isinstance(settings.get(key), str)), None
    )
    told = f"{name}:{model}" if model else name
    return "".join(c for c in told if c.isprintable())[:200]
