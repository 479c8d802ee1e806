"""``chroma-cloud://tenant/database`` as a place: a directory goes there and comes back, and a transfer does.

Chroma's own ``chroma copy --from-local --to-cloud`` of 1.5.8 and 1.5.9 answers its reading of a directory with 501.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest

from chroma.at_server import cloud_key
from chromakeep.chroma.server import ChromaServer
from chromakeep.operations import endpoints
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.compare import compare_places
from chromakeep.operations.copy import copy
from chromakeep.operations.endpoints import Means, open_sink, open_source
from chromakeep.operations.planning import Plan
from chromakeep.operations.tracked import Options
from chromakeep.operations.transfer import start, verify
from chromakeep.operations.transfer_ends import Ends, ends_of, placed
from chromakeep.operations.transfer_state import State, StateFile
from run.running import ENV, add, create
from servers.chroma_cloud import AT_A_TIME, TOKEN, cloud
from servers.middle import Middle

PLACE = "chroma-cloud://acme/prod"


def _none(_: str) -> NoReturn:
    raise AssertionError("no repository is asked for")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of more records than Chroma Cloud takes or gives at a time."""
    path = tmp_path_factory.mktemp("from") / "data"
    with ChromaServer(path, env=ENV) as server:
        add(server.client, create(server.client, "many"), 0, 2 * AT_A_TIME + 50)
        add(server.client, create(server.client, "few"), 0, 3)
    return path


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Middle]:
    """Where this project takes Chroma Cloud to be."""
    with ChromaServer(tmp_path / "cloud", env=ENV) as server:
        server.client.request("POST", "/tenants", {"name": "acme"})
        server.client.request("POST", "/tenants/acme/databases", {"name": "prod"})
        middle = Middle(cloud(f"http://127.0.0.1:{server.client.port}"))
        monkeypatch.setattr(endpoints, "CLOUD_URL", middle.url)
        yield middle
        middle.stop()


def means(work: Path) -> Means:
    return Means(work, _none, os.environ, cloud_token=cloud_key(TOKEN))


def test_a_directory_goes_there_and_comes_back(directory: Path, town: Middle, tmp_path: Path) -> None:
    """By its address alone: its limits hold, and not the token of servers but its own is sent."""
    with closing(open_source(str(directory), means(tmp_path / "a"))) as source:
        sink, read_back = open_sink(PLACE, means(tmp_path / "b"))
        plan = Plan(verify=True, tenant="acme", database="prod")
        done = copy(source, sink, plan, checkpoint=Checkpoint(None, {}), read_back=read_back)
        sink.close()
    assert (done.records, done.verified) == (2 * AT_A_TIME + 53, True)
    written = [len(asked.json["ids"]) for asked in town.asked if asked.verb in ("add", "upsert")]
    assert written and max(written) <= AT_A_TIME
    back = tmp_path / "back.parquet"
    with closing(open_source(PLACE, means(tmp_path / "c"))) as source:
        sink, _ = open_sink(f"{back}/", means(tmp_path / "d"))
        assert copy(source, sink, Plan(), checkpoint=Checkpoint(None, {})).records == done.records
    with (
        closing(open_source(str(directory), means(tmp_path / "e"))) as one,
        closing(open_source(f"{back}/", means(tmp_path / "f"))) as other,
    ):
        assert compare_places(one, other).equal
    assert all(asked.headers.get("x-chroma-token") == TOKEN for asked in town.asked)


def test_a_transfer_goes_there(directory: Path, town: Middle, tmp_path: Path) -> None:
    """Its ends know that it is Chroma Cloud."""

    def ends(state: State) -> Ends:
        return ends_of(state, means(tmp_path / "a"), means(tmp_path / "b"))

    file = StateFile(tmp_path / "state.json")
    begun = start(file, str(directory), PLACE, placed(Options(), PLACE), tmp_path / "work", ends)
    assert begun.records == 2 * AT_A_TIME + 53
    done = verify(file, ends)
    assert done.verified and done.verified.equal
    written = [len(asked.json["ids"]) for asked in town.asked if asked.verb in ("add", "upsert")]
    assert sum(written) == begun.records and max(written) <= AT_A_TIME
