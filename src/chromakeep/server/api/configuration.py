"""Configuration and schema of a collection, as far as they are wrong in themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chromakeep.engine import Refused
from chromakeep.server.api.json_reader import debug

DOCUMENT, EMBEDDING = "#document", "#embedding"
_PROJECTS = "projects/"


def check_configuration(given: Mapping[str, Any] | None) -> None:
    """Raises ``Refused`` if there are two kinds of index in it."""
    if given and given.get("hnsw") is not None and given.get("spann") is not None:
        raise Refused(400, "Multiple vector index configurations provided")


def fault_of_schema(schema: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a schema of the right shape."""
    if schema is None:
        return None
    if schema.get("source_attached_function_id") is not None:
        return "Cannot set source_attached_function_id. This field is reserved for system use."
    defaults = schema["defaults"]
    vector = _index(defaults, "float_list", "vector_index")
    if vector.get("enabled"):
        return "Vector index cannot be enabled by default. It can only be enabled on #embedding field."
    config = vector.get("config") or {}
    if config.get("hnsw") is not None and config.get("spann") is not None:
        return "Both spann and hnsw config cannot be present at the same time."
    if _index(defaults, "sparse_vector", "sparse_vector_index").get("enabled"):
        return (
            "Sparse vector index cannot be enabled by default. Please enable sparse vector index on specific keys. "
            "At most one sparse vector index is allowed for the collection."
        )
    if _index(defaults, "string", "fts_index").get("enabled"):
        return (
            "Full text search / regular expression index cannot be enabled by default. It can only be enabled on "
            "#document field."
        )
    sparse: list[str] = []
    for key, values in schema["keys"].items():
        if fault := _fault_of_key(key, values, sparse):
            return fault
    if (cmek := schema.get("cmek")) is not None and not is_cmek(cmek["gcp"]):
        return f"CMEK does not match expected pattern: Gcp({debug(cmek['gcp'])})"
    return None


def is_cmek(name: str) -> bool:
    """Whether it is ``projects/.+/locations/.+/keyRings/.+/cryptoKeys/.+``. Found out in one pass: an expression tries
    each of these names at every place, which takes time by the third power, and no other thread runs meanwhile."""
    if "\n" in name or not name.startswith(_PROJECTS):
        return False
    end = len(_PROJECTS)
    for part in ("/locations/", "/keyRings/", "/cryptoKeys/"):
        at = name.find(part, end + 1)
        if at < 0:
            return False
        end = at + len(part)
    return end < len(name)


def _fault_of_key(key: str, values: Mapping[str, Any], sparse: list[str]) -> str | None:
    """``sparse``: keys so far that have an index of sparse vectors."""
    if key.startswith("#") and key not in (DOCUMENT, EMBEDDING):
        return f"key cannot begin with '#'. Keys starting with '#' are reserved for system use: {key}"
    kinds = {kind.removeprefix("#") for kind, held in values.items() if held is not None}
    if key == DOCUMENT and kinds & {"bool", "float", "int", "float_list", "sparse_vector"}:
        return f"Document field cannot have any value types other than string: {key}"
    if key == EMBEDDING and kinds & {"bool", "float", "int", "string", "sparse_vector"}:
        return f"Embedding field cannot have any value types other than float_list: {key}"
    vector = _index(values, "float_list", "vector_index")
    if vector.get("enabled") and key != EMBEDDING:
        return f"Vector index can only be enabled on #embedding field: {key}"
    if (vector.get("config") or {}).get("source_key") not in (None, DOCUMENT):
        return "Vector index can only source from #document"
    index = _index(values, "sparse_vector", "sparse_vector_index")
    config = index.get("config") or {}
    source = config.get("source_key")
    if index.get("enabled"):
        sparse.append(key)
        if len(sparse) > 1:
            shown = ", ".join(f'"{one}"' for one in sparse)
            return f"At most one sparse vector index is allowed for the collection: [{shown}]"
        if source is not None and config.get("embedding_function") is None:
            return (
                "If source_key is provided then embedding_function must also be provided since there is no default "
                "embedding function."
            )
    if source is not None and source.startswith("#") and source != DOCUMENT:
        return "source_key cannot begin with '#'. The only valid key starting with '#' is Key.DOCUMENT or '#document'."
    if _index(values, "string", "fts_index").get("enabled") and key != DOCUMENT:
        return f"Full text search / regular expression index can only be enabled on #document field: {key}"
    if _index(values, "string", "string_inverted_index").get("enabled") and key == DOCUMENT:
        return f"String inverted index can not be enabled on #document key: {key}"
    return None


def _index(values: Mapping[str, Any], kind: str, index: str) -> Mapping[str, Any]:
    """An index of a kind of values, under either of its names; empty where there is none."""
    held = values.get(kind) or values.get(f"#{kind}") or {}
    found: Mapping[str, Any] = held.get(index) or held.get(f"${index}") or {}
    return found
