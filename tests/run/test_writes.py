"""Writes that are refused on purpose, of a whole run: across its restarts, and while a service is moved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.tokens import Token
from chromakeep.errors import ServerAnswered, SourceBusy, UsageError
from chromakeep.operations.doors import Doors
from chromakeep.operations.endpoints import Means
from chromakeep.operations.switch import How, rollback, switch
from chromakeep.operations.tracked import Options
from chromakeep.operations.transfer import Ends, follow, start
from chromakeep.operations.transfer_ends import ends_of
from chromakeep.operations.transfer_state import State, StateFile
from chromakeep.server.front import open_door
from run.running import DATABASE, ENV, Running, add, create, running
from servers.middle import Middle, told


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that it is moved to."""
    with ChromaServer(tmp_path_factory.mktemp("target"), env=ENV) as server:
        yield f"http://{server.client.host}:{server.client.port}"


@pytest.fixture
def middle() -> Iterator[Middle]:
    """A server that answers what the test says."""
    server = Middle(lambda asked: told(500, "not set"))
    yield server
    server.stop()


def served(data: Path) -> Any:
    """A run with a door, without a repository."""
    return running(data, door=open_door, durability="snapshots", every=3600.0, hold_writes=0.0)


def url_of(one: Running) -> str:
    return f"http://127.0.0.1:{one.port}"


def refused(client: ChromaClient, name: str) -> str:
    """What a write is told."""
    with pytest.raises(ServerAnswered) as caught:
        create(client, name)
    assert caught.value.status == 503
    return caught.value.message


def none(words: object) -> int:
    """Runs no command."""
    raise AssertionError(words)


class Moving:
    """A transfer from a run to the target."""

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.file, self.folder, self.source, self.target = folder / "state.json", folder, source, target
        self.env = folder / "app.env"
        self.env.write_text(f"CHROMA_URL={source}\n")

    def ends(self, state: State) -> Ends:
        means = Means(Path(state.work), _none, ENV)
        return ends_of(state, means, means)

    def begin(self) -> None:
        start(StateFile(self.file), self.source, self.target, Options(), self.folder / "work", self.ends)
        follow(StateFile(self.file), self.ends)

    def switch(self, **how: Any) -> str:
        asked = How(drain=0.0, env_file=self.env, **how)
        return switch(StateFile(self.file), self.ends, asked, run=none, doors=Doors(patience=1.0)).phase

    def rollback(self) -> str:
        return rollback(StateFile(self.file), self.ends, run=none, doors=Doors(patience=1.0)).phase

    @property
    def address(self) -> str:
        return self.env.read_text().strip().removeprefix("CHROMA_URL=")


def _none(address: str) -> Any:
    raise AssertionError(address)


@pytest.mark.parametrize("by", ["directory", "url"])
def test_a_run_is_moved_without_a_command(tmp_path: Path, target: str, by: str) -> None:
    """Its door refuses writes from the switch on, also after a restart, until the rollback. The door of a URL is found,
    that of a directory is named; a run that was touched by nothing but itself is no run that was written to."""
    data, name = tmp_path / "data", f"books-{by}"
    with served(data) as one:
        one.until("serving on")
        ref = create(one.client, name)
        add(one.client, ref, 0, 50)
        moving = Moving(tmp_path, str(data) if by == "directory" else url_of(one), target)
        moving.begin()
        add(one.client, ref, 100, 5)
        assert moving.switch(door=url_of(one) if by == "directory" else None) == "switched"
        assert moving.address == target
        assert f"moved to {target}" in refused(one.client, "other")
        assert one.client.request("GET", f"{ref.path}/count") == 55
        state = json.loads(moving.file.read_text())
        assert state["switch"]["door"] == url_of(one)
        one.end()
    with served(data) as two:
        two.until("serving on")
        assert two.said("writes are refused here: moved to")
        assert f"moved to {target}" in refused(two.client, "other")
        state["switch"]["door"] = url_of(two)  # the test's runs have ports of their own
        moving.file.write_text(json.dumps(state))
        if by == "url":
            state["from"] = url_of(two)
            moving.file.write_text(json.dumps(state))
        assert moving.rollback() == "rolled-back"
        assert moving.address == moving.source
        create(two.client, "other")
    server = ChromaClient("127.0.0.1", int(target.rpartition(":")[2]))
    server.request("DELETE", f"{DATABASE}/collections/{name}")


def test_a_switch_that_fails_or_is_killed(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are allowed again; of one that was killed the next one goes on, or a rollback allows them."""
    with served(tmp_path / "data") as one:
        one.until("serving on")
        add(one.client, create(one.client, "killed"), 0, 20)
        moving = Moving(tmp_path, str(tmp_path / "data"), target)
        moving.begin()

        def fails(*_: Any, **__: Any) -> None:
            raise SourceBusy("made up")

        class Killed(BaseException):
            pass

        def kills(*_: Any, **__: Any) -> None:
            raise Killed

        with monkeypatch.context() as patched:
            patched.setattr("chromakeep.operations.switch.verify_now", fails)
            with pytest.raises(SourceBusy):
                moving.switch(door=url_of(one))
        create(one.client, "after-a-failure")
        with monkeypatch.context() as patched:
            patched.setattr("chromakeep.operations.switch.verify_now", kills)
            patched.setattr("chromakeep.operations.switch._take_back", kills)
            with pytest.raises(Killed):
                moving.switch(door=url_of(one))
        assert "moved to" in refused(one.client, "other")
        assert moving.rollback() == "copied"
        create(one.client, "other")
        with monkeypatch.context() as patched:
            patched.setattr("chromakeep.operations.switch.verify_now", kills)
            patched.setattr("chromakeep.operations.switch._take_back", kills)
            with pytest.raises(Killed):
                moving.switch(door=url_of(one))
        assert moving.switch() == "switched"
        assert "moved to" in refused(one.client, "another")


def test_doors_that_are_none(target: str, tmp_path: Path) -> None:
    """A plain Chroma has none; nobody listens; a directory is no server."""
    doors = Doors(patience=0.0)
    assert doors.find(target) is None
    assert doors.find(str(tmp_path)) is doors.find("http://127.0.0.1:1") is doors.find("x.parquet") is None
    with pytest.raises(ServerAnswered, match="_keep/writes"):
        doors.put(target, allow=False)


def test_a_key_that_may_not(tmp_path: Path) -> None:
    """Found out before anything is stopped."""
    from chromakeep.operations.key_places import opener
    from chromakeep.operations.keyring import create as create_key

    data = tmp_path / "data"
    data.mkdir()
    place = opener(None, data, lambda event: None)()
    tokens = {role: create_key(place, role, role)[1] for role in ("reader", "admin")}
    with served(data) as one:
        one.until("serving on")
        with pytest.raises(UsageError, match="may not stop writes"):
            Doors(Token(origin="CHROMA_TOKEN", value=tokens["reader"])).find(url_of(one))
        doors = Doors(Token(origin="CHROMA_TOKEN", value=tokens["admin"]))
        assert doors.find(f"{url_of(one)}/tenant/database") == url_of(one)
        doors.put(url_of(one), allow=False, reason="moved")
        doors.put(url_of(one), allow=True)


def test_a_door_that_repeats_the_token(middle: Middle) -> None:
    """It is in no error, nor is one that no header can hold; the variable is."""
    secret = "ck-very-secret"
    doors = Doors(Token(("CHROMA_TOKEN_FROM", "CHROMA_TOKEN"), secret, "CHROMA_TOKEN"), patience=0.0)
    middle.answer = lambda asked: told(403, f"not\n{secret}", "AuthError")
    with pytest.raises(ServerAnswered) as answered:
        doors.put(middle.url, allow=False)
    with pytest.raises(UsageError) as refused:
        doors.find(middle.url)
    for error in (answered.value, refused.value):
        assert secret not in f"{error.message} {error.hint}" and "not ***" in error.message
        assert "CHROMA_TOKEN_FROM or CHROMA_TOKEN" in (error.hint or "")
    with pytest.raises(UsageError, match="in CHROMA_TOKEN holds") as refused:
        Doors(Token(value=f"{secret}\n", origin="CHROMA_TOKEN")).find(middle.url)
    assert secret not in refused.value.message
