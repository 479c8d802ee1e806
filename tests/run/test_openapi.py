"""What docs/openapi.json says of our own endpoints, held against a real run by schemathesis, and against the source."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from chromakeep.access.keys import Keyring
from chromakeep.chroma.ports import free_port
from chromakeep.operations.duty import Duty, Front
from chromakeep.operations.manifest import Manifest, SentFile
from chromakeep.server import receiving, writes_desk
from chromakeep.server.front import open_door
from run.running import Running, eventually, running

DOCS = Path(__file__).parents[2] / "docs"
SPEC = json.loads((DOCS / "openapi.json").read_text())
METHODS = ("get", "put", "post", "delete")
TOKEN = "a-token-for-tests-0123456789"
load_all_checks()
SCHEMA = schemathesis.openapi.from_dict(SPEC)
# Guessed tokens are answered later and later: that is tested elsewhere, and here every request has the right one.
OPEN = {key: value for key, value in SPEC["components"].items() if key != "securitySchemes"}
BARE = {
    path: {name: {**said, "security": []} if name in METHODS else said for name, said in one.items()}
    for path, one in SPEC["paths"].items()
}
FUZZED = schemathesis.openapi.from_dict({**SPEC, "components": OPEN, "paths": BARE})
OPERATIONS = [found.ok() for found in FUZZED.get_all_operations()]
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OFFERED = Manifest("a test", [SentFile("chroma.sqlite3", 4096, 1)], ["0" * 64])


def labels(operations: list[Any]) -> list[str]:
    return [f"{one.method.upper()} {one.path}" for one in operations]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A run with a repository that takes directories, and one that is offered to it."""
    base = tmp_path_factory.mktemp("openapi")
    (base / "repository").mkdir()
    with running(base / "data", base / "repository", receive_token=TOKEN, door=open_door) as one:
        eventually(lambda: asked(one.port, "GET", "/readyz")[0] == 200, "the start")
        yield one


def asked(port: int, method: str, path: str, body: bytes | None = None, **fields: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, fields)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
ASKED = [(one, RIGHT) for one in OPERATIONS] + [
    (one, WRONG) for one in OPERATIONS if one.path_parameters or one.headers or one.body
]


@pytest.mark.parametrize(
    ("operation", "mode"), ASKED, ids=[f"{one.method.upper()} {one.path} {mode.value}" for one, mode in ASKED]
)
def test_every_answer_is_as_it_is_described(run: Running, operation: Any, mode: GenerationMode) -> None:
    """Of no status, type, field or shape that the description does not have: so of no 5xx but those, and never 500.
    What is wrong is refused."""
    wrong = mode == WRONG
    offer = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    assert asked(run.port, "POST", "/_keep/receive", OFFERED.encoded, **offer)[0] == 200

    @settings(
        max_examples=10,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        if known and "transfer" in (case.path_parameters or {}) and not wrong:
            case.path_parameters["transfer"] = OFFERED.id
        own = {"authorization": f"Bearer {TOKEN}"} if "/receive" in operation.path else {}
        answer = case.call(base_url=f"http://127.0.0.1:{run.port}", headers=own, timeout=60)
        checks = [*CHECKS, negative_data_rejection] if wrong else CHECKS
        case.validate_response(answer, checks=checks)

    ask()
    assert not [line for line in run.said("door:") if "failed" in line or "Error" in line]


def test_an_instance_that_is_not_ready_answers_as_it_is_described(tmp_path: Path) -> None:
    """503 where it says so; with keys nobody reads how it stands without one."""
    front = Front("127.0.0.1", 0, ("127.0.0.1", free_port()), Duty("sync", None), 0.0, keys=Keyring, closed=True)
    door = open_door(front)
    door.start()
    try:
        seen = {}
        for operation in OPERATIONS:
            if operation.method.upper() == "GET" and "{" not in operation.path:
                case = operation.Case()
                answer = case.call(base_url=f"http://127.0.0.1:{door.door.port}", timeout=60)
                case.validate_response(answer, checks=CHECKS)
                seen[operation.path] = answer.status_code
    finally:
        door.stop(0.0)
    assert seen == {
        "/healthz": 200,
        "/readyz": 503,
        "/readyz/reads": 503,
        "/api/v1/heartbeat": 503,
        "/_keep/status": 401,
        "/metrics": 401,
        "/_keep/writes": 401,
        "/_keep/receive": 404,
    }


def test_a_wrong_token_is_answered_as_it_is_described(run: Running) -> None:
    """401 in the same shape."""
    (operation,) = [one for one in OPERATIONS if (one.method.upper(), one.path) == ("GET", "/_keep/receive")]
    case = operation.Case()
    answer = case.call(base_url=f"http://127.0.0.1:{run.port}", headers={"authorization": "Bearer x"}, timeout=60)
    assert answer.status_code == 401
    case.validate_response(answer, checks=CHECKS)


def test_all_that_the_door_answers_itself_is_described() -> None:
    """The pages of a door, the routes of the desk, and nothing else."""
    front = Front("127.0.0.1", 0, ("127.0.0.1", 1), Duty("async", None), 0.0)
    door = open_door(front).door
    pages = {f"GET {path}" for path in (*door._pages, *door._guard._pages)}  # type: ignore[union-attr, attr-defined]
    table = re.findall(r"^``([A-Z]+ /_keep/receive\S*)``", receiving.__doc__ or "", re.M)
    routes = {one.replace("ID", "{transfer}").replace("NUMBER", "{number}") for one in table}
    assert len(pages) == 6 and len(routes) == 6
    writes = {f"{method} {writes_desk.PATH}" for method in re.findall(r"``(GET|POST)``", writes_desk.__doc__ or "")}
    assert set(labels(OPERATIONS)) == pages | routes | writes


def test_the_description_is_valid() -> None:
    """By the OpenAPI 3.1 schema, and by what it says of itself."""
    SCHEMA.validate()
    assert SPEC["openapi"].startswith("3.1")
    names = {one["operationId"] for path in SPEC["paths"].values() for name, one in path.items() if name in METHODS}
    assert len(names) == len(OPERATIONS)
