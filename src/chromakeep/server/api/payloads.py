"""Payloads: the shapes of all bodies of Chroma's API, with the names and the order of members of Chroma 1.5.9."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chromakeep.filters import Unreadable, read_where
from chromakeep.server.api.json_reader import JsonReader
from chromakeep.server.api.metadata import fits_collection, fits_record, fits_update
from chromakeep.server.api.shapes import (
    Anything,
    Choice,
    Flag,
    Number,
    Optional,
    Record,
    Sequence,
    Shape,
    Table,
    Tagged,
    Text,
    Variants,
)

_TEXTS = Optional(Sequence(Optional(Text())))
_IDS = Sequence(Text())
_U32, _USIZE, _F64 = Optional(Number("u32")), Optional(Number("usize")), Optional(Number("f64"))
_NO_VARIANT = "data did not match any variant of untagged enum "
_METADATA = Table(Anything(fits_record, _NO_VARIANT + "MetadataValue"))
_CHANGES = Table(Anything(fits_update, _NO_VARIANT + "UpdateMetadataValue"))
_OF_COLLECTION = Table(Anything(fits_collection, _NO_VARIANT + "MetadataValue"))
_CHANGES_OF_COLLECTION = Table(
    Anything(lambda value: value is None or fits_collection(value), _NO_VARIANT + "UpdateMetadataValue")
)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _vectors(value: Any, *, gaps: bool = False) -> bool:
    """All numbers, or all base64."""
    if not isinstance(value, list):
        return False
    if gaps:
        value = [item for item in value if item is not None]
    return all(map(_numbers, value)) or all(isinstance(item, str) for item in value)


_EMBEDDINGS = Anything(_vectors, _NO_VARIANT + "EmbeddingsPayload")
_SOME_EMBEDDINGS = Optional(Anything(lambda value: _vectors(value, gaps=True), _NO_VARIANT + "UpdateEmbeddingsPayload"))
_RECORDS = ("ids", "embeddings", "documents", "uris", "metadatas")


def _records(name: str, metadata: Shape) -> Record:
    more = {"documents": _TEXTS, "uris": _TEXTS, "metadatas": Optional(Sequence(Optional(metadata)))}
    return Record(name, {"ids": _IDS, "embeddings": _EMBEDDINGS}, more)


ADD = _records("AddCollectionRecordsPayload", _METADATA)
UPSERT = _records("UpsertCollectionRecordsPayload", _CHANGES)
UPDATE = Record(
    "UpdateCollectionRecordsPayload",
    {"ids": _IDS},
    {
        "embeddings": _SOME_EMBEDDINGS,
        "documents": _TEXTS,
        "uris": _TEXTS,
        "metadatas": Optional(Sequence(Optional(_CHANGES))),
    },
)
_INCLUDE = Sequence(Choice("distances", "documents", "embeddings", "metadatas", "uris"))
_WHERE: dict[str, Shape] = {"where": Anything(), "where_document": Anything()}
GET = Record(
    "GetRequestPayload",
    {},
    {"ids": Optional(_IDS), **_WHERE, "limit": _U32, "offset": _U32, "include": _INCLUDE},
    loose=True,
)
QUERY = Record(
    "QueryRequestPayload",
    {"query_embeddings": Sequence(Sequence(Number("f32")))},
    {"ids": Optional(_IDS), **_WHERE, "n_results": _U32, "include": _INCLUDE},
    loose=True,
)
DELETE = Record("DeleteCollectionRecordsPayload", {}, {"ids": Optional(_IDS), "limit": _U32, **_WHERE}, loose=True)

TENANT = Record("CreateTenantPayload", {"name": Text()})
TENANT_CHANGE = Record("UpdateTenantPayload", {"resource_name": Text()})
DATABASE = Record("CreateDatabasePayload", {"name": Text()})
FORK = Record("ForkCollectionPayload", {"new_name": Text()})
ATTACH = Record(
    "AttachFunctionRequest",
    {"name": Text(), "function_id": Text(), "output_collection": Text()},
    {"params": Anything()},
)
DETACH = Record("DetachFunctionRequest", {}, {"delete_output": Flag()})

_SPACE = Optional(Choice("l2", "cosine", "ip"))
_HNSW: dict[str, Shape] = {
    "space": _SPACE,
    "ef_construction": _USIZE,
    "ef_search": _USIZE,
    "max_neighbors": _USIZE,
    "num_threads": _USIZE,
    "resize_factor": _F64,
    "sync_threshold": _USIZE,
    "batch_size": _USIZE,
}
_SPANN: dict[str, Shape] = {
    "search_nprobe": _U32,
    "write_nprobe": _U32,
    "space": _SPACE,
    "ef_construction": _USIZE,
    "ef_search": _USIZE,
    "max_neighbors": _USIZE,
    "reassign_neighbor_count": _U32,
    "split_threshold": _U32,
    "merge_threshold": _U32,
}


_FUNCTION = Optional(
    Tagged(
        "EmbeddingFunctionConfiguration", {"legacy": {}, "known": {"name": Text(), "config": Anything()}, "unknown": {}}
    )
)
_CONFIGURATION = Record(
    "CollectionConfiguration",
    {},
    {
        "hnsw": Optional(Record("HnswConfiguration", {}, _HNSW, strict=True)),
        "spann": Optional(Record("SpannConfiguration", {}, _SPANN, strict=True)),
        "embedding_function": _FUNCTION,
    },
)
_UPDATED_HNSW = {name: shape for name, shape in _HNSW.items() if name not in ("space", "ef_construction")}
_CHANGED_CONFIGURATION = Record(
    "UpdateCollectionConfiguration",
    {},
    {
        "hnsw": Optional(Record("UpdateHnswConfiguration", {}, _UPDATED_HNSW, strict=True)),
        "spann": Optional(
            Record("UpdateSpannConfiguration", {}, {"search_nprobe": _U32, "ef_search": _USIZE}, strict=True)
        ),
        "embedding_function": _FUNCTION,
    },
)


def _index(name: str, config: Shape | None = None) -> Shape:
    config = config or Record(f"{name}IndexConfig", strict=True)
    return Optional(Record(f"{name}IndexType", {"enabled": Flag(), "config": config}))


def _aliased(mark: str, **shapes: Shape) -> dict[str, Shape]:
    """Members that may be written with a mark before the name, too."""
    return {**shapes, **{mark + name: shape for name, shape in shapes.items()}}


_INDEX_ORDER = (
    "ef_construction", "max_neighbors", "ef_search", "num_threads", "batch_size", "sync_threshold", "resize_factor",
)  # fmt: skip
_VECTOR_INDEX = Record(
    "VectorIndexConfig",
    {},
    {
        "space": _SPACE,
        "embedding_function": _FUNCTION,
        "source_key": Optional(Text()),
        "hnsw": Optional(Record("HnswIndexConfig", {}, {name: _HNSW[name] for name in _INDEX_ORDER}, strict=True)),
        "spann": Optional(Table(Anything())),
    },
)
_SPARSE_INDEX = Record(
    "SparseVectorIndexConfig",
    {},
    {"embedding_function": _FUNCTION, "source_key": Optional(Text()), "bm25": Optional(Flag())},
)
_VALUES = Record(
    "ValueTypes",
    {},
    _aliased(
        "#",
        string=Optional(
            Record(
                "StringValueType",
                {},
                _aliased(
                    "$",
                    fts_index=_index("Fts"),
                    string_inverted_index=_index("StringInverted"),
                ),
            )
        ),
        float_list=Optional(
            Record("FloatListValueType", {}, _aliased("$", vector_index=_index("Vector", _VECTOR_INDEX)))
        ),
        sparse_vector=Optional(
            Record(
                "SparseVectorValueType",
                {},
                _aliased("$", sparse_vector_index=_index("SparseVector", _SPARSE_INDEX)),
            )
        ),
        **{
            name: Optional(
                Record(
                    f"{title}ValueType",
                    {},
                    _aliased("$", **{f"{name}_inverted_index": _index(f"{title}Inverted")}),
                )
            )
            for name, title in (("int", "Int"), ("float", "Float"), ("bool", "Bool"))
        },
    ),
)
_SCHEMA = Record(
    "Schema",
    {"defaults": _VALUES, "keys": Table(_VALUES)},
    {"cmek": Optional(Variants(lambda: {"gcp": Text()})), "source_attached_function_id": Optional(Text())},
)
CREATE = Record(
    "CreateCollectionPayload",
    {"name": Text()},
    {
        "schema": Optional(_SCHEMA),
        "configuration": Optional(_CONFIGURATION),
        "metadata": Optional(_OF_COLLECTION),
        "get_or_create": Flag(),
    },
)
MODIFY = Record(
    "UpdateCollectionPayload",
    {},
    {
        "new_name": Optional(Text()),
        "new_metadata": Optional(_CHANGES_OF_COLLECTION),
        "new_configuration": Optional(_CHANGED_CONFIGURATION),
    },
)


def _fault_of_filter(value: Any) -> str:
    if value is None or value == {}:
        return ""
    try:
        read_where(value, ids=True)
    except Unreadable as error:
        return str(error)
    return ""


def _query(value: Any) -> bool:
    return _numbers(value) or (isinstance(value, Mapping) and fits_record({"#type": "sparse_vector", **value}))


class _Rank:
    """A rank expression, whose parts are rank expressions."""

    def __init__(self) -> None:
        names = {"$div": "Division", "$sub": "Subtraction"}
        two = {
            name: Record(f"struct variant RankExpr::{title}", {"left": self, "right": self})
            for name, title in names.items()
        }
        knn = Record(
            "struct variant RankExpr::Knn",
            {"query": Anything(_query, _NO_VARIANT + "QueryVector")},
            {"key": Text(), "limit": Number("u32"), "default": Optional(Number("f32")), "return_rank": Flag()},
        )
        several = Sequence(self)
        self._variants = Variants(
            lambda: {
                "$abs": self, "$div": two["$div"], "$exp": self, "$knn": knn, "$log": self, "$max": several,
                "$min": several, "$mul": several, "$sub": two["$sub"], "$sum": several, "$val": Number("f32"),
            }
        )  # fmt: skip

    def fits(self, value: Any) -> bool:
        return self._variants.fits(value)

    def read(self, reader: JsonReader) -> object:
        return self._variants.read(reader)


_MIN_K, _MAX_K = (
    Record(f"struct variant Aggregate::{name}", {"keys": Sequence(Text()), "k": Number("u32")})
    for name in ("MinK", "MaxK")
)
_SEARCH = Record(
    "SearchPayload",
    {},
    {
        "filter": Anything(lambda value: not _fault_of_filter(value), _fault_of_filter),
        "rank": Optional(_Rank()),
        "group_by": Record(
            "GroupBy",
            {},
            {
                "keys": Sequence(Text()),
                "aggregate": Optional(Variants(lambda: {"$min_k": _MIN_K, "$max_k": _MAX_K})),
            },
        ),
        "limit": Record("Limit", {}, {"offset": Number("u32"), "limit": _U32}),
        "select": Record("Select", {}, {"keys": Sequence(Text())}),
    },
)
SEARCH = Record(
    "SearchRequestPayload",
    {"searches": Sequence(_SEARCH)},
    {"read_level": Choice("index_and_wal", "index_only", "index_and_bounded_wal")},
)
