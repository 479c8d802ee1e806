"""Schemas: what Chroma 1.5.9 makes of the metadata, configuration and schema that a collection is created with.

A collection has one schema, from which its configuration is told. What it is made of, first that counts: a schema that
asks for anything, a configuration that does, the ``hnsw:*`` of the metadata, the defaults. A ``spann`` index becomes
``hnsw`` with nothing but its space, as in every Chroma of one node. Of the settings only space, ``ef_construction``,
``ef_search`` and ``max_neighbors`` mean anything here; the others are kept and shown. So
is an index of sparse vectors, which a Chroma of one node refuses: it tells clients what to embed how, and ``search`` is
exact without it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any

from chromakeep.engine import Refused

Json = dict[str, Any]

DOCUMENT, EMBEDDING = "#document", "#embedding"
INDEXES = {
    "string": "string_inverted_index",
    "int": "int_inverted_index",
    "float": "float_inverted_index",
    "bool": "bool_inverted_index",
}
"""The index of each kind of metadata value."""

HNSW: Json = {
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "num_threads": os.cpu_count() or 1,
    "batch_size": 100,
    "sync_threshold": 1000,
    "resize_factor": 1.2,
}
SPACES = ("l2", "cosine", "ip")
SHOWN = ("ef_construction", "ef_search", "max_neighbors", "resize_factor", "sync_threshold")
LEGACY = {
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:num_threads": "num_threads",
    "hnsw:batch_size": "batch_size",
    "hnsw:sync_threshold": "sync_threshold",
    "hnsw:resize_factor": "resize_factor",
}
_LEAST = {"batch_size": 2, "sync_threshold": 2}
_OFF: Json = {"enabled": False, "config": {}}
_ON: Json = {"enabled": True, "config": {}}
_UNRECONCILED = "Failed to reconcile schema"


def schema_of(
    metadata: Mapping[str, Any] | None, configuration: Mapping[str, Any] | None, schema: Mapping[str, Any] | None
) -> Json:
    """The whole schema of a new collection. Raises ``Refused``, 400."""
    settings = _settings(metadata or {}, configuration or {})
    function = (configuration or {}).get("embedding_function")
    plain = settings == {"space": "l2", "hnsw": HNSW}
    if schema is not None:
        _check(schema)
        given = _completed(schema)
        asks = not _is_plain(given) or schema.get("cmek") is not None  # a key of the customer's, which nothing uses
        if (asks or not _is_sourced(schema)) and not (plain and _is_default(function)):
            raise Refused(400, f"{_UNRECONCILED}: Cannot set both collection config and schema simultaneously")
        if asks:
            return given
    made = _default()
    for config in _configs(made):
        config.update(copy.deepcopy(settings))
        if function is not None:
            config["embedding_function"] = function
    return made


def configuration_of(schema: Mapping[str, Any]) -> Json:
    """The ``configuration_json`` that goes with it."""
    config = schema["keys"][EMBEDDING]["float_list"]["vector_index"]["config"]
    hnsw = {"space": config["space"]} | {name: config["hnsw"][name] for name in SHOWN}
    return {"hnsw": hnsw, "spann": None, "embedding_function": config.get("embedding_function")}


def changed(schema: Mapping[str, Any], configuration: Mapping[str, Any]) -> Json:
    """The schema after a ``new_configuration``, whose ``spann`` means nothing."""
    made: Json = copy.deepcopy(dict(schema))
    for config in _configs(made):
        config["hnsw"] |= _floated(_given(configuration.get("hnsw")))
        if configuration.get("embedding_function") is not None:
            config["embedding_function"] = configuration["embedding_function"]
    return made


def grown(schema: Mapping[str, Any], seen: Iterable[tuple[str, str]]) -> Json:
    """The schema as it is shown: with a copy of the defaults for each (key, kind) that records have had."""
    keys: Json = {key: dict(kinds) for key, kinds in schema["keys"].items()}
    for key, kind in seen:
        keys.setdefault(key, {}).setdefault(kind, schema["defaults"].get(kind, {}))
    return {"defaults": schema["defaults"], "keys": keys}


def filterable(schema: Mapping[str, Any]) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
    """The (key, kind) that the schema has no index for, and those that it expressly has one for. A key ``""`` stands
    for all that it does not name, the kind ``fts`` for the text of documents."""
    off: set[tuple[str, str]] = set()
    on: set[tuple[str, str]] = set()
    for key, kinds in [("", schema["defaults"]), *schema["keys"].items()]:
        for kind, index in INDEXES.items():
            if key != DOCUMENT and (asked := kinds.get(kind, {}).get(index)):
                (on if asked["enabled"] else off).add((key, kind))
    if not _enabled(schema["keys"].get(DOCUMENT), "string", "fts_index"):
        off.add((DOCUMENT, "fts"))
    return frozenset(off), frozenset(on - {("", kind) for kind in INDEXES})


def _default() -> Json:
    vectors: Json = {"space": "l2", "hnsw": dict(HNSW)}
    of_embedding = {"enabled": True, "config": vectors | {"source_key": DOCUMENT}}
    return {
        "defaults": {
            "string": {"fts_index": dict(_OFF), "string_inverted_index": dict(_ON)},
            "float_list": {"vector_index": {"enabled": False, "config": copy.deepcopy(vectors)}},
            "sparse_vector": {
                "sparse_vector_index": {
                    "enabled": False,
                    "config": {"embedding_function": {"type": "unknown"}, "bm25": False},
                }
            },
            **{kind: {INDEXES[kind]: dict(_ON)} for kind in ("int", "float", "bool")},
        },
        "keys": {
            EMBEDDING: {"float_list": {"vector_index": of_embedding}},
            DOCUMENT: {"string": {"fts_index": dict(_ON), "string_inverted_index": dict(_OFF)}},
        },
    }


def _completed(schema: Mapping[str, Any]) -> Json:
    """The schema that was asked for, with the defaults for what it does not say."""
    made = _default()
    for kind, indexes in made["defaults"].items():
        _merge(indexes, _given(_given(schema.get("defaults")).get(kind)))
    for key, kinds in _given(schema.get("keys")).items():
        if key in made["keys"]:
            for kind, indexes in made["keys"][key].items():
                _merge(indexes, _given(_given(kinds).get(kind)))
        else:
            made["keys"][key] = {kind: value for kind, value in _given(kinds).items() if value is not None}
    return made


def _merge(indexes: Json, given: Mapping[str, Any]) -> None:
    for name, have in indexes.items():
        if not (asked := _given(given.get(name))):
            continue
        have["enabled"] = asked.get("enabled", have["enabled"])
        config = {key: value for key, value in _given(asked.get("config")).items() if value is not None}
        config.pop("spann", None)
        if "hnsw" in have["config"]:
            config["hnsw"] = have["config"]["hnsw"] | _floated(_given(config.get("hnsw")))
        have["config"] |= config


def _check(schema: Mapping[str, Any]) -> None:
    """What can be asked for at all. Raises ``Refused`` in Chroma's words."""
    defaults = _given(schema.get("defaults"))
    if _enabled(defaults, "float_list", "vector_index"):
        raise _invalid("Vector index cannot be enabled by default. It can only be enabled on #embedding field.")
    if _enabled(defaults, "sparse_vector", "sparse_vector_index"):
        raise _invalid(
            "Sparse vector index cannot be enabled by default. Please enable sparse vector index on specific keys. "
            "At most one sparse vector index is allowed for the collection."
        )
    if _enabled(defaults, "string", "fts_index"):
        raise _invalid(
            "Full text search / regular expression index cannot be enabled by default. "
            "It can only be enabled on #document field."
        )
    for key, kinds in _given(schema.get("keys")).items():
        if key.startswith("#") and key not in (DOCUMENT, EMBEDDING):
            raise _invalid(f"key cannot begin with '#'. Keys starting with '#' are reserved for system use: {key}")
        if key != DOCUMENT and _enabled(kinds, "string", "fts_index"):
            raise _invalid(f"Full text search / regular expression index can only be enabled on #document field: {key}")
        if key != EMBEDDING and _enabled(kinds, "float_list", "vector_index"):
            raise _invalid(f"Vector index can only be enabled on #embedding field: {key}")
        sparse = _given(_given(_given(kinds).get("sparse_vector")).get("sparse_vector_index"))
        if sparse.get("enabled") and _given(sparse.get("config")).get("bm25"):
            raise Refused(
                400, f"{_UNRECONCILED}: Invalid schema input: BM25 weights are not computed here: leave out bm25: {key}"
            )
        vectors = _given(_given(_given(_given(kinds).get("float_list")).get("vector_index")).get("config"))
        if vectors.get("source_key") not in (None, DOCUMENT):
            raise _invalid("Vector index can only source from #document")


def _invalid(message: str) -> Refused:
    return Refused(400, f"Validation error: schema: {message}")


def _enabled(kinds: object, kind: str, index: str) -> bool:
    return bool(_given(_given(_given(kinds).get(kind)).get(index)).get("enabled"))


def _settings(metadata: Mapping[str, Any], configuration: Mapping[str, Any]) -> Json:
    """Space and HNSW settings."""
    hnsw, spann = configuration.get("hnsw"), configuration.get("spann")
    if hnsw is not None and spann is not None:
        raise Refused(400, "Multiple vector index configurations provided")
    if spann is not None:
        return {"space": spann.get("space") or "l2", "hnsw": dict(HNSW)}
    legacy = _legacy(metadata)  # what is wrong with it is told even where something else counts
    asked = _floated(_given(hnsw))
    made = {"space": asked.pop("space", "l2"), "hnsw": HNSW | asked}
    if made != {"space": "l2", "hnsw": HNSW}:
        return made
    return legacy


def _legacy(metadata: Mapping[str, Any]) -> Json:
    made: Json = {"space": "l2", "hnsw": dict(HNSW)}
    for key, value in metadata.items():
        if not key.startswith("hnsw:"):
            continue
        name = LEGACY.get(key)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if key == "hnsw:space" and value in SPACES:
            made["space"] = value
        elif name == "resize_factor" and (whole or isinstance(value, float)):
            made["hnsw"][name] = float(value)
        elif name is not None and name != "resize_factor" and whole and value >= _LEAST.get(name, 0):
            made["hnsw"][name] = value
        else:
            raise Refused(400, "Failed to parse hnsw parameters from segment metadata")
    return made


def _is_plain(given: Json) -> bool:
    """Whether a completed schema asks for nothing: it may name the function that stands for none."""
    plain = copy.deepcopy(given)
    for config in _configs(plain):
        if _is_default(config.get("embedding_function")):
            config.pop("embedding_function", None)
    sparse = plain["defaults"]["sparse_vector"]["sparse_vector_index"]["config"]
    if _is_default(sparse["embedding_function"]):
        sparse["embedding_function"] = {"type": "unknown"}
    return plain == _default()


def _is_sourced(schema: Mapping[str, Any]) -> bool:
    """Whether what a schema says of vectors, if it does, names their source. Else Chroma takes it for a wish."""
    index = _given(_given(_given(_given(schema.get("keys")).get(EMBEDDING)).get("float_list")).get("vector_index"))
    return not index or _given(index.get("config")).get("source_key") is not None


def _is_default(function: object) -> bool:
    """Of an embedding function."""
    if function is None:
        return True
    return isinstance(function, Mapping) and (function.get("name") == "default" or function.get("type") == "unknown")


def _configs(schema: Json) -> list[Json]:
    places = (schema["defaults"], schema["keys"][EMBEDDING])
    return [place["float_list"]["vector_index"]["config"] for place in places]


def _floated(settings: Mapping[str, Any]) -> Json:
    """Without those that are null; the one that is a float is one."""
    made = {name: value for name, value in settings.items() if value is not None}
    return made | {name: float(made[name]) for name in ("resize_factor",) if name in made}


def _given(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
