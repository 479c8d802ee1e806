"""Text that would be SQL, in every string of the API, through HTTP: it is text, or refused; nothing else happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from postgres.instances import COLLECTIONS, Client, Instance, create

CANARY = "CREATE TABLE public.canary (n integer); INSERT INTO public.canary SELECT generate_series(1, 100)"
DROP = "DROP TABLE public.canary"
HOSTILE = [
    f"'; {DROP}; --",
    f'"; {DROP}; --',
    f"x'); {DROP}; --",
    f"\\'; {DROP}; --",
    f"x$$; {DROP}; $$",
    f"*/ {DROP}; /*",
    f"a\0'; {DROP}; --",
    f"'::text); {DROP}; --",
    "' OR '1'='1",
    "' OR true --",
    "' || (SELECT string_agg(n::text, ',') FROM public.canary) || '",
    "'; SELECT pg_sleep(30); --",
    "'; COMMIT; TRUNCATE public.canary; --",
    "%s %(x)s %b %% {} {0} $1 :x ?",
    "\\x27; \\u0027 E'\\''",
    "ʼ；\u2028--\U0010fffe",
]
FOREIGN = {
    "canary": "SELECT count(*), sum(n) FROM public.canary",
    "tables": "SELECT array_agg(schemaname || tablename ORDER BY 1) FROM pg_tables"
    " WHERE schemaname !~ '^(pg_|information_)' AND tablename !~ '^c[0-9]+_'",
    "functions": "SELECT count(*) FROM pg_proc",
    "roles": "SELECT array_agg(rolname ORDER BY 1) FROM pg_roles",
    "databases": "SELECT array_agg(datname ORDER BY 1) FROM pg_database",
    "settings": "SELECT array_agg(name || value ORDER BY 1) FROM chromakeep.settings",
    "version": "SELECT number FROM chromakeep.version",
}


class Here:
    """An instance, a collection ``target`` to write to, and others that must stay as they are."""

    def __init__(self, instance: Instance, url: str) -> None:
        self.client, self.url = Client(instance.port), url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(CANARY)
        self.bystander = create(instance.port, "bystander")
        self.target = create(instance.port, "target")
        body = {
            "ids": ["a", "b"],
            "embeddings": [[1, 2], [3, 4]],
            "documents": ["x", "y"],
            "metadatas": [{"k": "v"}] * 2,
        }
        self.says(201, "POST", f"{self.bystander}/add", body)

    def says(self, status: int, method: str, path: str, body: object = None) -> Any:
        found, said = self.client.ask(method, path, body)
        assert found == status, (path, body, said)
        return said

    def foreign(self) -> dict[str, Any]:
        """All that no request of these tests may change."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            found: dict[str, Any] = {name: connection.execute(sql.encode()).fetchall() for name, sql in FOREIGN.items()}
            collection = connection.execute(
                "SELECT c::text, relation FROM chromakeep.collections c WHERE name = 'bystander'"
            ).fetchone()
            assert collection
            found["collection"] = collection
            found["records"] = connection.execute(
                f'SELECT r::text FROM chromakeep."{collection[1]}" r ORDER BY seq'.encode()
            ).fetchall()
        return found

    def names(self) -> set[str]:
        return {one["name"] for one in self.says(200, "GET", COLLECTIONS)}


@pytest.fixture(scope="module")
def here(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    instance = Instance(tmp_path_factory.mktemp("instance"), database_url).ready()
    yield Here(instance, database_url)
    instance.kill()


@pytest.fixture(autouse=True)
def untouched(here: Here) -> Iterator[None]:
    before = here.foreign()
    yield
    assert here.foreign() == before


@pytest.mark.parametrize("text", HOSTILE)
def test_records_are_found_by_it_and_only_those(here: Here, text: str) -> None:
    """As id, document, URI, key and value of metadata, in arrays; then in every filter, and deleted by it."""
    record = {
        "ids": ["plain", text],
        "embeddings": [[1.0, 0.0], [0.0, 1.0]],
        "documents": ["nothing", text],
        "uris": ["u", text],
        "metadatas": [{"k": "v"}, {text: text, "k": text, "list": [text, "other"]}],
    }
    path, include = here.target, ["documents", "metadatas", "uris"]
    here.says(201, "POST", f"{path}/add", record)
    whole = here.says(200, "POST", f"{path}/get", {"ids": [text], "include": include})
    assert (whole["ids"], whole["documents"], whole["uris"]) == ([text], [text], [text])
    assert whole["metadatas"] == [{text: text, "k": text, "list": [text, "other"]}]
    here.says(200, "POST", f"{path}/upsert", record)
    here.says(200, "POST", f"{path}/update", {**record, "embeddings": None})
    for where in (
        {text: text},
        {"$and": [{text: {"$ne": "other"}}, {"k": text}]},
        {"k": {"$in": [text]}},
        {"k": {"$nin": ["v"]}},
        {"list": {"$contains": text}},
        {"$and": [{text: text}, {"k": text}]},
        {"$or": [{text: text}, {"k": text}]},
    ):
        assert here.says(200, "POST", f"{path}/get", {"where": where})["ids"] == [text], where
        found = here.says(200, "POST", f"{path}/query", {"query_embeddings": [[1, 0]], "where": where})
        assert found["ids"] == [[text]], where
        search = {"filter": where, "rank": {"$knn": {"query": [1.0, 0.0]}}, "select": {"keys": [text, "k"]}}
        found = here.says(200, "POST", f"{path}/search", {"searches": [search]})
        assert found["ids"] == [[text]] and found["metadatas"] == [[{text: text, "k": text}]], where
    assert here.says(200, "POST", f"{path}/get", {"where_document": {"$contains": text}})["ids"] == [text]
    assert here.says(200, "POST", f"{path}/get", {"where_document": {"$not_contains": text}})["ids"] == ["plain"]
    grouped = {"rank": {"$knn": {"query": [1.0, 0.0]}}, "group_by": _by(text)}
    assert here.client.ask("POST", f"{path}/search", {"searches": [grouped]})[0] == 200
    assert here.says(200, "POST", f"{path}/delete", {"where": {text: text}}) == {"deleted": 1}
    assert here.says(200, "POST", f"{path}/get", {})["ids"] == ["plain"]
    here.says(200, "POST", f"{path}/delete", {"ids": ["plain", text]})
    assert here.says(200, "GET", f"{path}/count") == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_where_text_is_no_name_it_is_refused(here: Here, text: str) -> None:
    """In paths and queries of URLs, in place of numbers and words of the API, as a regular expression: no 5xx."""
    client, path, in_url = here.client, here.target, quote(text, safe="")
    names = here.names()
    for method, target in (
        ("GET", f"{COLLECTIONS}/{in_url}"),
        ("DELETE", f"{COLLECTIONS}/{in_url}"),
        ("POST", f"{COLLECTIONS}/{in_url}/get"),
        ("POST", f"{COLLECTIONS}/{in_url}/delete"),
        ("PUT", f"{COLLECTIONS}/{in_url}"),
        ("GET", f"/api/v2/tenants/{in_url}"),
        ("GET", f"/api/v2/tenants/{in_url}/databases/{in_url}"),
        ("DELETE", f"/api/v2/tenants/default_tenant/databases/{in_url}"),
        ("GET", f"{path[: path.rindex('/databases')]}/databases/{in_url}/collections/{path[-36:]}/count"),
    ):
        status, said = client.ask(method, target, {} if method in ("POST", "PUT") else None)
        assert 400 <= status < 500, (method, target, said)
    for target in (
        f"{COLLECTIONS}?limit={in_url}",
        f"{COLLECTIONS}?offset={in_url}",
        f"{COLLECTIONS}_count?x={in_url}",
    ):
        assert client.ask("GET", target)[0] < 500
    for route, body in (
        ("get", {"limit": text}),
        ("get", {"include": [text]}),
        ("get", {"where": {"k": {text: 1}}}),
        ("get", {"where": {text: [{"k": 1}]}}),
        ("get", {"where_document": {text: "x"}}),
        ("get", {"where_document": {"$regex": text}}),
        ("get", {"where_document": {"$not_regex": f"({text}"}}),
        ("query", {"query_embeddings": [[1, 2]], "n_results": text}),
        ("query", {"query_embeddings": text}),
        ("delete", {"where": {"k": {"$gt": text}}}),
        ("delete", {"ids": [], "where_document": {"$regex": text}}),
        ("search", {"searches": [{"rank": {text: {"query": [1, 2]}}}]}),
        ("search", {"searches": [{"rank": {"$knn": {"query": [1, 2], "key": text}}}]}),
        ("search", {"searches": [{"rank": {"$knn": {"query": [1, 2]}}, "limit": {"limit": text}}]}),
        ("search", {"searches": [{"filter": {"#id": {"$in": [text]}}, "rank": {"$knn": {"query": [1, 2]}}}]}),
        ("search", {"searches": [{"rank": {"$knn": {"query": text}}, "group_by": _by(text)}]}),
        ("add", {"ids": ["x"], "embeddings": [[text]]}),
        ("add", {"ids": ["x"], "embeddings": [text]}),
        ("update", {"ids": ["x"], "metadatas": text}),
        ("fork", {"new_name": text}),
    ):
        status, said = client.ask("POST", f"{path}/{route}", body)
        assert status < 500, (route, body, said)
    raw = json.dumps({"ids": [text]}).replace("\\", "\\ud800\\")  # half of a character
    assert client.ask("POST", f"{path}/get", raw.encode())[0] < 500
    assert here.names() <= names | {text}


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_settings(here: Here, text: str) -> None:
    """Of tenants, databases and collections, and what these are made with: kept as they are, or refused."""
    client, in_url = here.client, quote(text, safe="")
    status, said = client.ask("POST", "/api/v2/tenants", {"name": text})
    assert status < 500, said
    if status == 200:
        assert here.says(200, "GET", f"/api/v2/tenants/{in_url}")["name"] == text
        client.ask("PATCH", f"/api/v2/tenants/{in_url}", {"resource_name": text})
        databases = f"/api/v2/tenants/{in_url}/databases"
        status, said = client.ask("POST", databases, {"name": text})
        assert status < 500, said
        if status == 200:
            assert [one["name"] for one in here.says(200, "GET", databases)] == [text]
            assert here.says(200, "GET", f"{databases}/{in_url}/collections") == []
            here.says(200, "DELETE", f"{databases}/{in_url}")
        assert here.says(200, "GET", databases) == []
    names = here.names()
    assert client.ask("POST", COLLECTIONS, {"name": text})[0] < 500
    assert client.ask("PUT", here.target, {"new_name": text})[0] < 500
    function = {"type": "known", "name": text, "config": {text: text, "model": text}}
    wanted = {
        "name": "made",
        "metadata": {text: text},
        "configuration": {"embedding_function": function},
        "get_or_create": True,
    }
    status, made = client.ask("POST", COLLECTIONS, wanted)
    assert status < 500, made
    if status == 200:
        assert made["metadata"] == {text: text}
        assert made["configuration_json"]["embedding_function"] == function
        client.ask("PUT", f"{COLLECTIONS}/{made['id']}", {"new_metadata": {text: [text]}})
        here.says(200, "PUT", f"{COLLECTIONS}/{made['id']}", {"new_metadata": {"k": text, text: text}})
        assert here.says(200, "GET", f"{COLLECTIONS}/made")["metadata"] == {"k": text, text: text}
        here.says(200, "DELETE", f"{COLLECTIONS}/made")
    for odd in ({"hnsw": {"space": text}}, {"hnsw": {text: 1}}, {text: text}):
        status, said = client.ask("POST", COLLECTIONS, {"name": "odd", "configuration": odd})
        assert status < 500, said
        if status == 200:
            here.says(200, "DELETE", f"{COLLECTIONS}/odd")
    assert here.names() == names


def _by(text: str) -> dict[str, Any]:
    return {"keys": [text], "aggregate": {"$min_k": {"keys": ["#score"], "k": 1}}}
