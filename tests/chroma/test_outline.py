"""How a collection is created at a server: what of its settings comes out as it was, and what servers refuse."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.outline import is_own, outline, resolved
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.chroma.server_source import ServerSource
from chromakeep.errors import ServerAnswered, ServerFailed, UsageError
from chromakeep.events import Event, Noted
from chromakeep.records import Definition
from chromakeep.testing.records_suite import put
from chromakeep.testing.specimens import ordinary
from servers.middle import Answer, Asked, Middle, forwarder, told

COLLECTIONS = "/tenants/default_tenant/databases/default_database/collections"


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    with closing(Connection(url)) as connection:
        return connection.request(method, path, msgspec.json.encode(body) if body else None, decoder=ANYTHING)


@pytest.fixture(scope="module")
def plain(url: str) -> Any:
    """The schema that the server makes of nothing."""
    return ask(url, "POST", COLLECTIONS, {"name": "plain"})["schema"]


def changed(schema: Any, *edits: Callable[[Any], object]) -> Any:
    schema = deepcopy(schema)
    for edit in edits:
        edit(schema)
    return schema


def at(*path: str, **values: Any) -> Callable[[Any], None]:
    """An edit of a schema."""

    def edit(schema: Any) -> None:
        for key in path:
            schema = schema.setdefault(key, {})
        schema.update(values)

    return edit


EMBEDDING = ("keys", "#embedding", "float_list", "vector_index", "config")
COMMON = ("defaults", "float_list", "vector_index", "config")
OFF = {"enabled": False, "config": {}}
ALL = {
    "space": "ip",
    "ef_construction": 77,
    "ef_search": 33,
    "max_neighbors": 9,
    "resize_factor": 1.5,
    "sync_threshold": 555,
}

CONFIGURATIONS: dict[str, Any] = {
    "nothing": {},
    "cosine": {"configuration": {"hnsw": {"space": "cosine"}}},
    "all": {"configuration": {"hnsw": ALL}, "metadata": {"a": 1, "b": 1.0, "c": True, "d": "x\0y", "e": 1e300}},
    "batch size": {"configuration": {"hnsw": {**ALL, "batch_size": 51}}},
    "only a batch size": {"configuration": {"hnsw": {"batch_size": 51}}},
    "known": {
        "configuration": {
            "hnsw": {"space": "cosine"},
            "embedding_function": {
                "type": "known",
                "name": "poisonous",
                "config": {"a": [1, {"b": None}], "module": "os"},
            },
        }
    },
    "known and default": {"configuration": {"embedding_function": {"type": "known", "name": "default", "config": {}}}},
    "legacy function": {"configuration": {"embedding_function": {"type": "legacy"}}},
    "unknown function": {"configuration": {"embedding_function": {"type": "unknown"}}},
    "metadata": {"metadata": {"hnsw:space": "cosine"}},
    "all metadata": {
        "metadata": {
            "hnsw:space": "ip",
            "hnsw:M": 24,
            "hnsw:construction_ef": 150,
            "hnsw:search_ef": 60,
            "hnsw:batch_size": 77,
            "hnsw:sync_threshold": 888,
            "hnsw:resize_factor": 1.3,
            "other": "x",
        }
    },
    "metadata that means nothing": {"metadata": {"hnsw:space": "cosine"}, "configuration": {"hnsw": {"space": "ip"}}},
    "metadata that is default": {"metadata": {"hnsw:space": "l2", "hnsw:M": 16}},
}
SCHEMAS: dict[str, list[Callable[[Any], object]]] = {
    "no index of documents": [at("keys", "#document", "string", fts_index=OFF)],
    "a key without an index": [at("keys", "k", "string", string_inverted_index=OFF)],
    "no index of truths": [at("defaults", "bool", bool_inverted_index=OFF)],
    "two kinds of a key": [at("keys", "k", "int", int_inverted_index=OFF), at("keys", "k", "float")],
    "a key and a space": [
        at("keys", "k", "string", string_inverted_index=OFF),
        at(*EMBEDDING, space="cosine"),
        at(*COMMON, space="cosine"),
    ],
    "all of it": [
        at("keys", "k", "string", string_inverted_index=OFF),
        at(*EMBEDDING, space="ip", embedding_function={"type": "known", "name": "f", "config": {"m": "x"}}),
        at(*EMBEDDING, "hnsw", ef_search=44, sync_threshold=1234, batch_size=7),
        at(*COMMON, "hnsw", ef_search=55),
    ],
    "only the vectors": [at(*EMBEDDING, space="cosine"), at(*COMMON, space="cosine")],
}


def copied(url: str, name: str, target: str | None = None) -> tuple[Any, Any, list[str]]:
    """A collection of 5 records before and after it was copied, and what was told."""
    events: list[Event] = []
    with (
        closing(ServerSource(Connection(url))) as source,
        closing(ServerSink(Connection(target or url), observer=events.append)) as sink,
    ):
        (definition,) = [d for d in source.definitions() if d.name == name]
        intake = sink.collection(replace(definition, name=f"{name}-copy"))
        for records, _ in source.batches(definition):
            put(intake, records)
        intake.finish()
    before, after = ask(url, "GET", f"{COLLECTIONS}/{name}"), ask(target or url, "GET", f"{COLLECTIONS}/{name}-copy")
    return before, after, [event.message for event in events if isinstance(event, Noted)]


def fill(url: str, id_: str) -> None:
    records = {"ids": list("abcde"), "embeddings": np.eye(5).tolist()}
    metadatas = [{"k": 1, "s": "x"}, {"k": "1"}, {"k": 1.5, "l": [True]}, None, {"new": 1}]
    ask(url, "POST", f"{COLLECTIONS}/{id_}/add", {**records, "metadatas": metadatas})


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_comes_as_it_was(url: str, case: str) -> None:
    """Configuration, schema, metadata and dimension, and nothing has to be told of."""
    name = "configuration-" + case.replace(" ", "-")
    fill(url, ask(url, "POST", COLLECTIONS, {"name": name, **CONFIGURATIONS[case]})["id"])
    before, after, notes = copied(url, name)
    for each in ("configuration_json", "schema", "metadata", "dimension"):
        assert before[each] == after[each]
    assert not notes


@pytest.mark.parametrize("metadata", [{}, {"hnsw:space": "cosine", "hnsw:M": 7, "a": 1}], ids=["none", "hnsw"])
@pytest.mark.parametrize("case", SCHEMAS)
def test_a_schema_comes_as_it_was(url: str, plain: Any, case: str, metadata: Any) -> None:
    """Whatever it says, also with metadata that Chroma takes with no schema, where somebody put that later."""
    name = f"schema-{case.replace(' ', '-')}-{len(metadata)}"
    made = ask(url, "POST", COLLECTIONS, {"name": name, "schema": changed(plain, *SCHEMAS[case])})
    fill(url, made["id"])
    if metadata:
        ask(url, "PUT", f"{COLLECTIONS}/{made['id']}", {"new_metadata": metadata})
    before, after, notes = copied(url, name)
    for each in ("configuration_json", "schema", "metadata", "dimension"):
        assert before[each] == after[each]
    assert not notes


def test_what_is_a_schema_of_ones_own(plain: Any) -> None:
    """All but the vectors' settings and the keys that a server adds by itself."""
    for case, edits in SCHEMAS.items():
        assert is_own(changed(plain, *edits)) == (case != "only the vectors"), case
    for nothing in (None, {}, plain, {"defaults": {}, "keys": {}}, {**plain, "cmek": None}):
        assert not is_own(nothing)
    grown = changed(plain, at("keys", "k", int={"int_inverted_index": {"enabled": True, "config": {}}}))
    assert not is_own(grown)
    for strange in (
        {"keys": [1]},
        {"defaults": 3},
        {"keys": {"k": {"new_kind": {"i": OFF}}}},
        {**plain, "cmek": {"gcp": "x"}},
    ):
        assert is_own(strange)  # type: ignore[arg-type]


def test_a_machine_is_not_part_of_a_schema(plain: Any) -> None:
    """The number of its cores stays behind."""
    own = changed(plain, at(*EMBEDDING, "hnsw", num_threads=64), at("keys", "k", "string", string_inverted_index=OFF))
    assert "num_threads" not in str(outline(Definition("x", schema=own)).body)
    hnsw = {"hnsw": {"num_threads": 64, "space": "ip"}}
    assert outline(Definition("x", configuration=hnsw)).body["configuration"] == {"hnsw": {"space": "ip"}}


@pytest.mark.parametrize(
    ("configuration", "metadata", "space"),
    [
        (None, None, "l2"),
        ({}, {"hnsw:space": "cosine"}, "cosine"),
        ({"hnsw": None}, {"hnsw:space": "cosine"}, "cosine"),
        ({"hnsw": {"space": "l2", "ef_search": 100}}, {"hnsw:space": "cosine"}, "cosine"),
        ({"hnsw": {"space": "l2", "ef_search": 99}}, {"hnsw:space": "cosine"}, "l2"),
        ({"hnsw": {"space": "ip"}}, {"hnsw:space": "cosine"}, "ip"),
        ({"spann": {"space": "ip"}}, {"hnsw:space": "cosine"}, "ip"),
        ({}, {"hnsw:space": ["cosine"]}, "l2"),
    ],
)
def test_the_space_is_that_of_the_index(configuration: Any, metadata: Any, space: str) -> None:
    """By Chroma's own rule: metadata decides where the configuration is all defaults."""
    found = resolved(configuration, metadata, None)
    assert (found["hnsw"] or found["spann"] or {}).get("space", "l2") == space
    if not isinstance((metadata or {}).get("hnsw:space"), list):
        assert outline(Definition("x", configuration=configuration, metadata=metadata)).space == space


@pytest.mark.parametrize("version", ["0.4.24", "0.6.3", "1.0.0"])
def test_collections_of_old_versions_keep_their_space(
    version: str, old_version: Callable[[str], tuple[Path, Any]], url: str, tmp_path: Path
) -> None:
    """Their server tells l2 where the index is another one: the distances say so. So do those of the copy."""
    directory, _ = old_version(version)
    shutil.copytree(directory, tmp_path / "old")
    with ChromaServer(tmp_path / "old", env=dict(os.environ)) as server:
        old = f"http://127.0.0.1:{server.options.port}"
        with closing(ServerSource(Connection(old))) as source:
            definitions = source.definitions()
        assert {d.name: d.space for d in definitions} == {"colcos": "cosine", "coldef": "l2", "colsync": "l2"}
        for definition in definitions:
            before, after, notes = copied(old, definition.name, target=url)
            assert before["metadata"] == after["metadata"] and not notes
            first = ask(old, "POST", f"{COLLECTIONS}/{before['id']}/get", {"limit": 1, "include": ["embeddings"]})
            body = {"query_embeddings": first["embeddings"], "n_results": 20, "include": ["distances"]}
            one, two = (
                ask(at, "POST", f"{COLLECTIONS}/{each['id']}/query", body) for at, each in ((old, before), (url, after))
            )
            near, far = (dict(zip(each["ids"][0], each["distances"][0], strict=True)) for each in (one, two))
            both = sorted(near.keys() & far.keys())  # an index may miss a neighbour
            assert len(both) > 10
            np.testing.assert_allclose([near[i] for i in both], [far[i] for i in both], rtol=1e-4, atol=1e-5)
            ask(url, "DELETE", f"{COLLECTIONS}/{after['name']}")


def test_nothing_that_a_configuration_names_is_imported(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedding function is carried as the data it is."""
    (tmp_path / "poisonous.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    function = {"type": "known", "name": "poisonous", "config": {"module": "poisonous", "class": "poisonous.Poison"}}
    made = ask(url, "POST", COLLECTIONS, {"name": "poison", "configuration": {"embedding_function": function}})
    fill(url, made["id"])
    _, after, _ = copied(url, "poison")
    assert after["configuration_json"]["embedding_function"] == function
    assert "poisonous" not in sys.modules


# -- servers that refuse ----------------------------------------------------------------------------------------------


@pytest.fixture
def middle(url: str) -> Iterator[Middle]:
    middle = Middle(forwarder(url))
    yield middle
    middle.stop()


def begin(url: str, definition: Definition) -> list[str]:
    """What is told when a collection is begun."""
    events: list[Event] = []
    with closing(ServerSink(Connection(url, patience=1), observer=events.append)) as sink:
        intake = sink.collection(definition)
        put(intake, ordinary(5))
        intake.finish()
    return [event.message for event in events if isinstance(event, Noted)]


CONFIGURATION = {
    "hnsw": {**ALL, "batch_size": 50},
    "embedding_function": {"type": "known", "name": "f", "config": {}},
}


def test_a_field_that_is_refused_is_left_out(middle: Middle, url: str) -> None:
    """And told of. A server of another version does not know all of them."""
    forward = forwarder(url)

    def older(asked: Asked) -> Answer:
        hnsw = (
            ((asked.json or {}).get("configuration") or {}).get("hnsw") or {}
            if asked.verb == "collections" and asked.body
            else {}
        )
        for name in ("batch_size", "resize_factor"):
            if name in hnsw:
                return told(
                    422,
                    "Failed to deserialize the JSON body into the target type: "
                    f"configuration.hnsw.{name}: unknown field `{name}`, expected one of `space` at line 1 column 64",
                )
        return forward(asked)

    middle.answer = older
    (note,) = begin(middle.url, Definition("refused-fields", dimension=3, configuration=CONFIGURATION))
    assert "batch_size" in note and "resize_factor" in note and "ef_search" not in note
    found = ask(url, "GET", f"{COLLECTIONS}/refused-fields")["configuration_json"]
    assert found["hnsw"]["ef_search"] == 33 and found["embedding_function"]["name"] == "f"


def test_an_embedding_function_that_is_refused_is_left_out(url: str) -> None:
    """Of a kind that this version does not know."""
    configuration = {**CONFIGURATION, "embedding_function": {"type": "from the future"}}
    (note,) = begin(url, Definition("refused-function", dimension=3, configuration=configuration))
    assert "embedding_function" in note
    assert ask(url, "GET", f"{COLLECTIONS}/refused-function")["configuration_json"]["hnsw"]["space"] == "ip"


def test_settings_that_name_nothing_are_left_out_in_turn(middle: Middle, url: str) -> None:
    """Where the refusal does not say which one it is."""
    forward = forwarder(url)

    def dumb(asked: Asked) -> Answer:
        body = asked.json or {}
        if asked.verb == "collections" and "resize_factor" in str(body):
            return told(400, "Invalid hnsw configuration")
        return forward(asked)

    middle.answer = dumb
    (note,) = begin(middle.url, Definition("refused-somehow", dimension=3, configuration=CONFIGURATION))
    assert "batch_size" in note and "resize_factor" in note and "sync_threshold" not in note


@pytest.mark.parametrize("space", ["sphere", "L2"])
def test_a_space_is_never_left_out(url: str, space: str) -> None:
    """A collection with another space would find other records."""
    for definition in (
        Definition("other-space", configuration={"hnsw": {"space": space}}),
        Definition("other-space", metadata={"hnsw:space": space}),
    ):
        with pytest.raises(ServerAnswered, match="is refused"):
            begin(url, definition)
    with closing(ServerSource(Connection(url))) as source:
        assert not [d.name for d in source.definitions() if d.name.startswith("other-space")]


def test_a_server_that_makes_another_space(middle: Middle, url: str) -> None:
    """It is an error, and what it made is gone."""
    forward = forwarder(url)

    def deaf(asked: Asked) -> Answer:
        if asked.method == "POST" and asked.verb == "collections":
            asked = Asked(asked.method, asked.path, asked.headers, msgspec.json.encode({"name": asked.json["name"]}))
        return forward(asked)

    middle.answer = deaf
    with pytest.raises(ServerFailed, match="with the space l2, not cosine"):
        begin(middle.url, Definition("deaf", configuration={"hnsw": {"space": "cosine"}}))
    with closing(ServerSource(Connection(url))) as source:
        assert not [d.name for d in source.definitions() if d.name.startswith("deaf")]


@pytest.mark.parametrize("how", ["ignores", "refuses"])
def test_a_server_without_schemas_takes_the_configuration(middle: Middle, url: str, plain: Any, how: str) -> None:
    """Those before 1.2; what the schema said beyond it is lost, and that is told."""
    forward = forwarder(url)

    def older(asked: Asked) -> Answer:
        if asked.method == "POST" and asked.verb == "collections" and "schema" in asked.json:
            if how == "refuses":
                return told(422, "Failed to deserialize the JSON body into the target type: unknown field `schema`")
            body = {k: v for k, v in asked.json.items() if k != "schema"}
            answer = forward(Asked(asked.method, asked.path, asked.headers, msgspec.json.encode(body)))
            found = {k: v for k, v in msgspec.json.decode(answer.body).items() if k != "schema"}
            return Answer(200, msgspec.json.encode(found))
        return forward(asked)

    middle.answer = older
    schema = changed(plain, at("keys", "k", "string", string_inverted_index=OFF), at(*EMBEDDING, space="ip"))
    name = f"no-schema-{how}"
    notes = begin(middle.url, Definition(name, dimension=3, schema=schema, configuration={"hnsw": {"space": "ip"}}))
    assert any("does not take its schema" in note for note in notes)
    assert ask(url, "GET", f"{COLLECTIONS}/{name}")["configuration_json"]["hnsw"]["space"] == "ip"


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": {"hnsw": [1]}},
        {"configuration": {"hnsw": "cosine", "spann": [1]}},
        {"configuration": {"spann": "x"}, "metadata": {"hnsw:space": "ip"}},
        {"configuration": {"embedding_function": ["x"]}},
        {"configuration": {"hnsw": {"space": {"a": 1}}}},
        {"configuration": {"hnsw": {"ef_search": "x"}}},
        {"schema": {"keys": {"#embedding": {"float_list": {"vector_index": {"config": {"hnsw": [1]}}}}}}},
        {"schema": {"keys": {"k": [1]}, "defaults": 5}},
        {"metadata": {"a": float("nan")}},
    ],
)
def test_settings_of_no_shape(url: str, changes: Any) -> None:
    """From a file that somebody made: taken without them, or refused in one line."""
    try:
        begin(url, Definition(f"no-shape-{abs(hash(str(changes)))}", dimension=3, **changes))
    except ServerFailed as error:
        assert "is refused" in error.message or "with the space" in error.message
        assert "\n" not in error.message


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_metadata_of_which_a_server_dies(url: str, value: Any) -> None:
    """Chroma 1.5.9 closes the connection without an answer; it is never sent."""
    with pytest.raises(UsageError, match="'k' in the collection's metadata"):
        begin(url, Definition("deadly", metadata={"k": value}))
