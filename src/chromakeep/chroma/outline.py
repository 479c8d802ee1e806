"""Outlines: with what a collection is created on a server, so that it becomes what it was elsewhere.

What Chroma 1.5.9 does with it, as measured:

* a configuration and a schema of one's own exclude each other; a schema says all that a configuration does, and more;
* ``hnsw:*`` in the metadata decides where the configuration is all defaults or missing, and else is not looked at; with
  a schema of one's own it is refused, but may be put into the metadata later, where it means nothing;
* of collections made before 1.0 the server tells a configuration that is all defaults, while their index is what the
  metadata says.

Nothing that a configuration names is built or imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import msgspec

from chromakeep.chroma.configuration import DEFAULTS, LEGACY
from chromakeep.errors import UsageError
from chromakeep.records import Definition

_PREFIX = "hnsw:"
_EMBEDDING, _DOCUMENT = "#embedding", "#document"
_MACHINE = "num_threads"  # the number of cores of the server's machine, not of the collection
_RUNNING = "source_attached_function_id"
_NAMED = re.compile(r"\b((?:configuration|schema)(?:\.[A-Za-z0-9_#-]+)+): ")
_PLAIN: dict[str, dict[str, bool]] = {
    **{kind: {f"{kind}_inverted_index": True} for kind in ("int", "float", "bool")},
    "string": {"string_inverted_index": True, "fts_index": False},
}  # the indexes of a key of which nothing is said
_DISPENSABLE = ("batch_size", "resize_factor", "sync_threshold", "ef_search", "max_neighbors", "ef_construction")


class Outline(msgspec.Struct):
    """``body``: what is posted, without a name; of the metadata perhaps only what may be there from the beginning.

    ``space``: what must come of it. ``dropped``: what the server would not take, so far.
    """

    body: dict[str, Any]
    space: str
    dropped: list[str] = msgspec.field(default_factory=list)

    def without(self, message: str) -> bool:
        """Leave out what the server refuses with this message, else the next thing that can be done without; the space
        never. False: there is nothing left to leave out."""
        named = _NAMED.search(message)
        if named and named[1].endswith(".space"):
            return False
        if named and _remove(self.body, named[1].split(".")):
            self.dropped.append(named[1])
            return True
        metadata = self.body.get("metadata") or {}
        if any(key.startswith(_PREFIX) for key in metadata):
            self.body["metadata"] = {k: v for k, v in metadata.items() if not k.startswith(_PREFIX)} or None
            return True
        for path in (*[f"configuration.hnsw.{name}" for name in _DISPENSABLE], "configuration.embedding_function"):
            if _remove(self.body, path.split(".")):
                self.dropped.append(path)
                return True
        return False


def resolved(
    configuration: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None, schema: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The configuration with the ``hnsw:*`` metadata where that is what the index was made by."""
    found = {name: value for name, value in (configuration or {}).items() if value is not None}
    legacy = _legacy(found, metadata, schema)
    if legacy:
        found["hnsw"] = {**_mapping(found.get("hnsw")), **legacy}
        found["hnsw"].pop("batch_size", None)  # no configuration tells it
    return {"hnsw": None, "spann": None, "embedding_function": None, **found}


def is_own(schema: Mapping[str, Any] | None) -> bool:
    """Whether a schema says more than a configuration could: which keys are indexed, or for what the vectors stand.

    The keys that a server adds for the metadata it has met, indexed as is the default, are not the collection's own.
    """
    if not isinstance(schema, Mapping) or not schema:
        return False
    try:
        return _is_own(deepcopy(dict(schema)))
    except (KeyError, TypeError, AttributeError):
        return True  # of a shape that is not known: carried as it is


def outline(definition: Definition, *, schemas: bool = True) -> Outline:
    """How to create this collection. ``schemas``: False for a server that knows none. Raises ``UsageError``."""
    metadata = own_metadata(definition)
    for key, value in metadata.items():
        if not _is_scalar(value):  # 1.5.9 dies of it
            raise UsageError(
                f"{definition.name}: the value of {key!r} in the collection's metadata is a {type(value).__name__}",
                hint="Chroma takes text, numbers, true and false there",
            )
    if schemas and is_own(definition.schema):
        plain = {k: v for k, v in metadata.items() if not k.startswith(_PREFIX)}
        body = {"metadata": plain or None, "schema": _portable(definition.schema)}
        return Outline(body, str(_vectors(definition.schema).get("space") or DEFAULTS["space"]))
    found = resolved(definition.configuration, metadata, definition.schema)
    hnsw = {k: v for k, v in _mapping(found["hnsw"]).items() if v is not None and k != _MACHINE}
    size = _mapping(_vectors(definition.schema).get("hnsw")).get("batch_size")
    size = _legacy(definition.configuration or {}, metadata, definition.schema).get("batch_size", size)
    if size is not None and not found["spann"]:
        hnsw.setdefault("batch_size", size)
    wanted = {"hnsw": hnsw or None, "spann": found["spann"], "embedding_function": found["embedding_function"]}
    configuration = {name: value for name, value in wanted.items() if value is not None}
    space = hnsw.get("space") or _mapping(found["spann"]).get("space") or DEFAULTS["space"]
    return Outline({"metadata": metadata or None, "configuration": configuration or None}, str(space))


class Traits(msgspec.Struct, frozen=True):
    """What a collection is, in whatever way its place tells it. ``function``: the embedding function that it names,
    None if none. ``schema``: the values by path of one that says more than a configuration could, else empty.
    ``index`` and ``settings``: its kind and parameters, on which no record depends."""

    space: str
    function: Mapping[str, Any] | None
    schema: Mapping[str, Any]
    index: str
    settings: Mapping[str, Any]


def traits(definition: Definition) -> Traits:
    """Of a collection of any place."""
    found = resolved(definition.configuration, own_metadata(definition), definition.schema)
    vectors = _vectors(definition.schema)
    if is_own(definition.schema):
        found |= {name: vectors[name] for name in ("hnsw", "spann", "embedding_function") if vectors.get(name)}
    index = "spann" if found["spann"] else "hnsw"
    settings = {k: v for k, v in _mapping(found[index]).items() if v is not None and k not in (_MACHINE, "batch_size")}
    if index == "hnsw":
        settings = {k: v for k, v in DEFAULTS.items() if k != "batch_size"} | settings
    space = settings.pop("space", None)
    if is_own(definition.schema):
        space = vectors.get("space") or space
    function = found["embedding_function"]
    named = function if isinstance(function, Mapping) and function.get("name") not in (None, "legacy") else None
    return Traits(
        str(space or DEFAULTS["space"]),
        named and {k: named[k] for k in ("name", "config") if named.get(k)},
        _own_values(definition.schema),
        index,
        settings,
    )


def _own_values(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """By path, without keys that are indexed as is the default; ``traits`` has the index of the vectors."""
    if not is_own(schema):
        return {}
    keys = _mapping(_mapping(schema).get("keys"))
    plain = {f"keys.{key}." for key, types in keys.items() if key not in (_EMBEDDING, _DOCUMENT) and _is_plain(types)}
    return {
        path: value
        for path, value in _leaves(_portable(schema))
        if not path.startswith(tuple(plain))
        and (".vector_index.config." not in path or path.endswith(".config.source_key"))
    }


def own_metadata(definition: Definition) -> dict[str, Any]:
    """All of the collection's metadata that it can have."""
    return {k: v for k, v in (definition.metadata or {}).items() if v is not None}


def space_of(configuration: Mapping[str, Any] | None) -> str:
    """The space that a server tells."""
    found = configuration or {}
    return str(_mapping(found.get("hnsw") or found.get("spann")).get("space") or DEFAULTS["space"])


def differences(wanted: Outline, configuration: Mapping[str, Any], schema: Mapping[str, Any] | None) -> list[str]:
    """What a server made of an outline in another way, each as one phrase; without what was dropped on purpose."""
    told = []
    asked = wanted.body.get("configuration") or {}
    have = {**_mapping(_vectors(schema).get("hnsw"))}
    have |= _mapping(configuration.get("hnsw") or configuration.get("spann"))
    for name, value in {**_mapping(asked.get("hnsw")), **_mapping(asked.get("spann"))}.items():
        if have.get(name) != value and (name in have or DEFAULTS.get(name) != value):
            told.append(f"{name} is {have.get(name)}, not {value}")
    if asked.get("embedding_function") != configuration.get("embedding_function") and "configuration" in wanted.body:
        told.append("the embedding function is not named")
    if "schema" in wanted.body:
        ours, theirs = (dict(_leaves(_portable(each))) for each in (wanted.body["schema"], schema))
        for path, value in ours.items():
            name = path.rpartition(".")[2]
            if theirs.get(path) != value and (path in theirs or DEFAULTS.get(name) != value):
                told.append(f"{path} is {theirs.get(path)}, not {value}")
    return told


def _legacy(
    configuration: Mapping[str, Any], metadata: Mapping[str, Any] | None, schema: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The settings that ``hnsw:*`` in the metadata decides; none where the configuration or the schema does."""
    if configuration.get("spann") or not _is_default(configuration.get("hnsw")) or is_own(schema):
        return {}
    return {LEGACY[k]: v for k, v in (metadata or {}).items() if k in LEGACY and _is_scalar(v)}


def _is_own(schema: dict[str, Any]) -> bool:
    schema.pop(_RUNNING, None)
    defaults, keys = schema.pop("defaults", None) or {}, schema.pop("keys", None) or {}
    if any(value is not None for value in schema.values()):
        return True
    embedding, document = keys.pop(_EMBEDDING, {}), keys.pop(_DOCUMENT, {})
    common, one = (
        defaults.pop("float_list", {}).get("vector_index", {}),
        embedding.pop("float_list", {}).get("vector_index", {}),
    )
    first, second = common.get("config") or {}, one.get("config") or {}
    if common.get("enabled", False) or not one.get("enabled", True) or second.pop("source_key", _DOCUMENT) != _DOCUMENT:
        return True
    if first and second and first != second:
        return True
    sparse = defaults.pop("sparse_vector", {}).get("sparse_vector_index", {})
    config = {k: v for k, v in (sparse.get("config") or {}).items() if v not in (None, False, {"type": "unknown"})}
    if sparse.get("enabled", False) or config:
        return True
    if embedding or not _same(defaults, _PLAIN):
        return True
    if not _same(document, {"string": {"string_inverted_index": False, "fts_index": True}}):
        return True
    return not all(_same(types, _PLAIN) for types in keys.values())


def _is_plain(types: Any) -> bool:
    """Whether a key is indexed as is the default."""
    try:
        return _same(types, _PLAIN)
    except (KeyError, TypeError, AttributeError):
        return False


def _same(types: Mapping[str, Any], plain: Mapping[str, Mapping[str, bool]]) -> bool:
    """Whether these indexes, as far as they are told, are on and off as ``plain`` says, and none has settings."""
    for kind, indexes in types.items():
        for name, index in (indexes or {}).items():
            if index and (plain[kind][name] != index.get("enabled", True) or index.get("config")):
                return False
    return True


def _vectors(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    found: Any = schema
    for key in ("keys", _EMBEDDING, "float_list", "vector_index", "config"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return dict(_mapping(found))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _portable(schema: Any) -> Any:
    """A schema without what belongs to the machine that it was on, and without nulls."""
    if isinstance(schema, Mapping):
        return {k: _portable(v) for k, v in schema.items() if k not in (_MACHINE, _RUNNING) and v is not None}
    return schema


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _remove(body: dict[str, Any], path: list[str]) -> bool:
    """Remove the value at this path, if it is there and not a space."""
    *heads, last = path
    for head in heads:
        inner = body.get(head)
        if not isinstance(inner, dict):
            return False
        body = inner
    if last == "space" or last not in body or last in ("configuration", "schema"):
        return False
    del body[last]
    return True


def _is_default(hnsw: Any) -> bool:
    return not isinstance(hnsw, Mapping) or all(
        value is None or name == _MACHINE or DEFAULTS.get(name) == value for name, value in hnsw.items()
    )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, bool, int, float))
