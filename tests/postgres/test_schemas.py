"""What a collection is created with becomes the configuration and schema that Chroma 1.5.9 makes of it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.engine import Refused
from chromakeep.postgres import schemas

IP = {"vector_index": {"enabled": True, "config": {"space": "ip"}}}
OFF = {"string": {"string_inverted_index": {"enabled": False, "config": {}}}}
DEFAULT = {"name": "default", "type": "known", "config": {}}
NAMED = {"name": "n", "type": "known", "config": {"a": [1, 2.5]}}


def schema(keys: dict[str, Any] | None = None, **defaults: Any) -> dict[str, Any]:
    return {"defaults": defaults, "keys": keys or {}}


def vectors(**config: Any) -> dict[str, Any]:
    return schema({"#embedding": {"float_list": {"vector_index": {"enabled": True, "config": config}}}})


CREATED: list[dict[str, Any]] = [
    {},
    {"configuration": {"hnsw": {"space": "l2"}, "spann": None, "embedding_function": DEFAULT}},
    {"configuration": {"hnsw": {"space": "cosine", "ef_construction": 50, "ef_search": 20, "max_neighbors": 8}}},
    {"configuration": {"hnsw": {"num_threads": 3, "resize_factor": 2, "sync_threshold": 70, "batch_size": 9}}},
    {"configuration": {"hnsw": {}}},
    {"configuration": {"hnsw": {"space": None, "ef_search": None}}},
    {"configuration": {"hnsw": {"ef_search": 0}}},
    {"configuration": {"embedding_function": {"type": "legacy"}}},
    {"configuration": {"embedding_function": {"type": "unknown"}}},
    {"configuration": {"spann": {"space": "cosine", "ef_search": 30}}},
    {"configuration": {"spann": {}}, "metadata": {"hnsw:space": "ip"}},
    {"configuration": {"spann": {"space": "cosine"}, "hnsw": {"space": "l2"}}},
    {"metadata": {"hnsw:space": "ip", "hnsw:construction_ef": 33, "hnsw:search_ef": 44, "hnsw:M": 5, "x": 1}},
    {"metadata": {"hnsw:num_threads": 2, "hnsw:resize_factor": 1.3, "hnsw:batch_size": 50, "hnsw:sync_threshold": 60}},
    {"metadata": {"hnsw:space": "ip"}, "configuration": {"hnsw": {"space": "cosine"}}},
    {"metadata": {"hnsw:space": "ip", "hnsw:M": 5}, "configuration": {"hnsw": {"ef_search": 33}}},
    {"metadata": {"hnsw:space": "ip", "hnsw:M": 5}, "configuration": {"hnsw": {"space": "l2", "ef_search": 100}}},
    {"metadata": {"hnsw:space": "ip"}, "configuration": {"embedding_function": NAMED}},
    *({"metadata": {key: value}} for key, value in [("hnsw:space", "bad"), ("hnsw:M", "5"), ("hnsw:M", 5.0)]),
    *(
        {"metadata": {key: value}}
        for key, value in [("hnsw:foo", 1), ("hnsw:sync_threshold", 1), ("hnsw:search_ef", 0)]
    ),
    *({"metadata": {key: value}} for key, value in [("hnsw:resize_factor", 2), ("hnsw:M", -1), ("hnsw:batch_size", 1)]),
    {"metadata": {"hnsw:M": "5"}, "configuration": {"spann": {}}},
    {"metadata": {"hnsw:M": "5"}, "configuration": {"hnsw": {"space": "cosine"}}},
    {"schema": schema()},
    {"schema": schema(), "configuration": {"hnsw": {"space": "cosine"}}},
    {"schema": schema(), "configuration": {"embedding_function": NAMED}},
    {"schema": schema(), "metadata": {"hnsw:space": "ip"}},
    {"schema": schema({"noidx": OFF})},
    {"schema": schema({"noidx": OFF}), "configuration": {"hnsw": {"space": "cosine"}}},
    {"schema": schema({"noidx": OFF}), "configuration": {"embedding_function": NAMED}},
    {"schema": schema({"noidx": OFF}), "metadata": {"hnsw:space": "ip"}},
    {"schema": schema(**OFF)},
    {"schema": vectors(space="cosine", embedding_function=DEFAULT, hnsw={"ef_search": 7, "max_neighbors": 9})},
    {"schema": vectors(space="cosine", spann={"ef_search": 7})},
    {"schema": vectors(hnsw={}, spann={})},
    {"schema": vectors(space="ip"), "configuration": {"hnsw": {"space": "l2"}, "embedding_function": DEFAULT}},
    {"schema": vectors(space="ip"), "configuration": {"hnsw": {"space": "cosine"}}},
    {"schema": vectors(embedding_function={"type": "legacy"}), "configuration": {"embedding_function": DEFAULT}},
    {"schema": vectors(source_key="zz")},
    {"schema": schema({"#embedding": {"float_list": {"vector_index": {"enabled": False, "config": {}}}}})},
    {"schema": schema({"#document": {"string": {"fts_index": {"enabled": False, "config": {}}}}})},
    {"schema": schema(float_list=IP)},
    {"schema": schema(float_list={"vector_index": {"enabled": False, "config": {"space": "cosine"}}})},
    {"schema": schema({"a": {"string": {"fts_index": {"enabled": True, "config": {}}}}})},
    {"schema": schema(string={"fts_index": {"enabled": True, "config": {}}})},
    {"schema": schema({"d": {"float_list": IP}})},
    {"schema": schema({"#x": {}})},
    {"schema": schema({"sp": {"sparse_vector": {"sparse_vector_index": {"enabled": False, "config": {}}}}})},
    {"schema": schema(sparse_vector={"sparse_vector_index": {"enabled": True, "config": {}}})},
    {"schema": schema() | {"x": 1}},
]
UNKNOWN, LEGACY = {"type": "unknown"}, {"type": "legacy"}
COSINE: dict[str, Any] = {"hnsw": {"space": "cosine"}}
WISHES: list[dict[str, Any]] = [{}, COSINE, {"embedding_function": DEFAULT}, {"embedding_function": NAMED}]


def whole(function: object, **more: Any) -> dict[str, Any]:
    """As chromadb's client writes a ``Schema()`` that nobody has changed."""
    config = {"space": "l2", "embedding_function": function, **more}
    made = vectors(**config, source_key="#document")
    return made | {"defaults": {"float_list": {"vector_index": {"enabled": False, "config": config}}}}


def sparse(function: object) -> dict[str, Any]:
    return schema(sparse_vector={"sparse_vector_index": {"enabled": False, "config": {"embedding_function": function}}})


# A schema that names the function which stands for none asks for nothing, and does not forbid a configuration.
CREATED += [
    {"schema": asked, "configuration": configuration}
    for asked in [
        *map(whole, [None, DEFAULT, DEFAULT | {"config": {"a": 1}}, UNKNOWN, LEGACY, NAMED]),
        *map(sparse, [DEFAULT, UNKNOWN, LEGACY, NAMED]),
        whole(DEFAULT, hnsw={"max_neighbors": 16}),
        whole(DEFAULT, hnsw={"max_neighbors": 17}),
        whole(DEFAULT, spann={"search_nprobe": 64}),
        vectors(embedding_function=DEFAULT),
        vectors(),
    ]
    for configuration in WISHES
] + [{"schema": whole(DEFAULT), "metadata": {"hnsw:space": "ip"}}]
CHANGED: list[dict[str, Any]] = [
    {},
    {"hnsw": {}},
    {"hnsw": {"ef_search": 77}},
    {"hnsw": {"max_neighbors": 20, "num_threads": 2, "resize_factor": 2, "sync_threshold": 99, "batch_size": 20}},
    {"spann": {"ef_search": 77}},
    {"embedding_function": NAMED},
    {"embedding_function": {"type": "legacy"}, "hnsw": {"ef_search": 7}},
]
_numbers = count()


class Stock:
    """A Chroma, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api/v2/tenants/default_tenant/databases/default_database/collections"

    def ask(self, method: str, path: str = "", body: object = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def create(self, **wanted: Any) -> tuple[int, Any]:
        return self.ask("POST", "", {"name": f"number{next(_numbers)}", **wanted})


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    with ChromaServer(tmp_path_factory.mktemp("chroma"), env=dict(os.environ)) as server:
        yield Stock(server.options.port)


def ours(metadata: Any = None, configuration: Any = None, schema: Any = None) -> tuple[int, Any]:
    try:
        made = schemas.schema_of(metadata, configuration, schema)
    except Refused as refused:
        return refused.status, {"error": refused.error, "message": refused.message}
    return 200, {"configuration_json": schemas.configuration_of(made), "schema": made}


@pytest.mark.parametrize("wanted", CREATED, ids=json.dumps)
def test_created(stock: Stock, wanted: dict[str, Any]) -> None:
    status, told = stock.create(**wanted)
    if status == 200:
        told = {name: told[name] for name in ("configuration_json", "schema")}
    assert ours(**wanted) == (status, told)


def test_an_index_of_sparse_vectors_is_taken_which_stock_refuses(stock: Stock) -> None:
    """As it was asked for, for it tells clients what to embed; ``search`` needs none. Not with the weights of BM25."""
    index = {"enabled": True, "config": {"embedding_function": NAMED, "source_key": "#document", "bm25": False}}
    asked = schema({"words": {"sparse_vector": {"sparse_vector_index": index}}})
    assert stock.create(schema=asked)[0] == 400
    status, told = ours(schema=asked)
    assert status == 200 and told["schema"]["keys"]["words"] == asked["keys"]["words"]
    assert schemas.schema_of(None, None, told["schema"]) == told["schema"]
    index["config"]["bm25"] = True  # type: ignore[index]
    status, told = ours(schema=asked)
    assert status == 400 and "BM25" in told["message"]


@pytest.mark.parametrize("change", CHANGED, ids=json.dumps)
def test_changed(stock: Stock, change: dict[str, Any]) -> None:
    _, made = stock.create(configuration={"hnsw": {"space": "cosine"}})
    assert stock.ask("PUT", f"/{made['id']}", {"new_configuration": change})[0] == 200
    _, told = stock.ask("GET", f"/by-id/{made['id']}")
    assert schemas.changed(made["schema"], change) == told["schema"]
    assert schemas.configuration_of(told["schema"]) == told["configuration_json"]


def test_grown(stock: Stock) -> None:
    off = {"k": {"int": {"int_inverted_index": {"enabled": False, "config": {}}}}}
    _, made = stock.create(schema=schema(off, **OFF))
    metadatas: list[dict[str, Any]] = [{"s": "x", "k": 1}, {"k": "s", "f": 1.5, "b": True, "array": [1]}]
    body = {"ids": ["1", "2"], "embeddings": [[1], [2]], "metadatas": metadatas}
    assert stock.ask("POST", f"/{made['id']}/add", body)[0] == 201
    _, told = stock.ask("GET", f"/by-id/{made['id']}")
    seen = [("s", "string"), ("k", "int"), ("k", "string"), ("f", "float"), ("b", "bool"), ("array", "int")]
    assert schemas.grown(made["schema"], seen) == told["schema"]


def test_a_schema_that_was_told_can_be_asked_for() -> None:
    made = schemas.schema_of(None, None, schema({"noidx": OFF}))
    assert schemas.schema_of(None, None, made) == made
