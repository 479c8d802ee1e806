"""Moving a live service: every phase can be killed at any moment and made again, a switch is whole or has not been, and
nothing that is nobody else's is ever deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from copy import copy as shallow
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from msgspec.structs import replace

from chromakeep.errors import (
    ChromakeepError,
    PartialFailure,
    RepositoryBusy,
    ServerFailed,
    SourceBusy,
    TargetNotEmpty,
    UsageError,
    VerificationFailed,
)
from chromakeep.events import Event, Noted
from chromakeep.operations.compare import compare_places
from chromakeep.operations.doors import Doors
from chromakeep.operations.env_file import EnvFile
from chromakeep.operations.standing import Standing
from chromakeep.operations.switch import How, rollback, switch
from chromakeep.operations.tracked import Options
from chromakeep.operations.transfer import Ends, cleanup, follow, start, status, verify
from chromakeep.operations.transfer_state import State, StateFile
from chromakeep.records import Definition, Limits
from chromakeep.testing.memory_records import Kept, Memory, MemoryIntake, MemorySink, MemorySource
from operations.test_reconcile import BOOKS, Server, records

LAWS = Definition("laws", "uuid-l", dimension=3)
SWITCH = {"stop_writes": "stop app", "resume_writes": "begin app", "hook": "hook 'with spaces'", "drain": 0.5}


class Killed(BaseException):
    """The process was killed: nothing that it would do after this has an effect."""


class World:
    """Two places, a state file and an application; ``kill_at`` counts whatever leaves a trace, from 1: saves of the
    state, requests to the target, commands, writes of the env file. It is killed before that one."""

    def __init__(self, folder: Path, *, directory: bool = True) -> None:
        self.a, self.b, self.folder, self.directory = Memory(), Memory(), folder, directory
        folder.mkdir(parents=True, exist_ok=True)
        self.a.put(BOOKS, records(0, 120))
        self.a.put(LAWS, records(0, 40, salt=1))
        self.env = folder / "app.env"
        self.env.write_text("A=1\nCHROMA_URL=http://a\nB=2\n")
        self.path = folder / "state.json"
        self.commands: list[list[str]] = []
        self.statuses: dict[str, int] = {}
        self.slept: list[float] = []
        self.told: list[str] = []
        self.read = 0  # how often the source was opened
        self.captured: Memory | None = None
        self.kill_at, self.effects, self.dead = 0, 0, False
        self.doors = WorldDoors(self)
        self.refusing = False  # the door of A
        self.on_command: Callable[[str], None] = lambda name: None
        self.on_verify: Callable[[], None] = lambda: None

    # -- what leaves a trace --------------------------------------------------------------------------------------

    def effect(self, do: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        self.effects += 1
        if self.effects == self.kill_at:
            self.dead = True
            raise Killed
        return do()

    def run(self, words: Sequence[str]) -> int:
        def command() -> int:
            self.commands.append(list(words))
            self.on_command(words[0])
            return self.statuses.get(words[0], 0)

        return int(self.effect(command))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    # -- the places -----------------------------------------------------------------------------------------------

    def ends(self, state: State) -> Ends:
        def source(resume: str) -> MemorySource:
            self.read += 1
            if resume:
                self.on_verify()
            if not self.directory:
                return MemorySource(self.a, rows=50)
            if self.captured is None or str(self.captured.version) != resume:
                self.captured = _copied(self.a)
            return MemorySource(self.captured, rows=50)

        def sink() -> tuple[MemorySink, Callable[[], MemorySource]]:
            return Target(self), lambda: MemorySource(self.b, rows=50)

        return Ends(source, sink, (lambda: str(self.a.version)) if self.directory else (lambda: ""), self.directory)

    # -- the phases, each as a process of its own -----------------------------------------------------------------

    def file(self) -> StateFile:
        return Traced(self)

    def observe(self, event: Event) -> None:
        if isinstance(event, Noted):
            self.told.append(event.message)

    def start(self, **options: Any) -> Standing:
        chosen = Options(**options)
        work = self.folder / "work"
        return start(self.file(), "a", "http://b", chosen, work, self.ends, observer=self.observe)

    def follow(self, **extra: Any) -> Standing:
        return follow(self.file(), self.ends, sleep=self.sleep, observer=self.observe, **extra)

    def verify(self) -> Standing:
        return verify(self.file(), self.ends, observer=self.observe)

    def switch(self, **how: Any) -> Standing:
        chosen = How(**{"env_file": self.env, **SWITCH, **how})
        return switch(
            self.file(), self.ends, chosen, run=self.run, doors=self.doors, sleep=self.sleep, observer=self.observe
        )

    def rollback(self, **extra: Any) -> Standing:
        return rollback(self.file(), self.ends, run=self.run, doors=self.doors, observer=self.observe, **extra)

    def cleanup(self, **extra: Any) -> Standing:
        return cleanup(self.file(), **extra)

    def status(self) -> Standing:
        return status(StateFile(self.path), self.ends)

    def again(self, phase: Callable[[], Any]) -> Any:
        """Run a phase; if it is killed, run it once more."""
        try:
            return phase()
        except Killed:
            self.dead = False
            return phase()

    @property
    def same(self) -> bool:
        return compare_places(MemorySource(self.a), MemorySource(self.b)).equal

    def write(self, n: int = 0) -> None:
        """What the application does to A: new records, other ones, some gone."""
        kept = self.a.collections[BOOKS.place]
        some = records(10, 20, salt=n + 2)
        kept.records.update({f"id-{10 + at}": some.slice(at, 1) for at in range(10)})
        more = records(1000 + 10 * n, 1010 + 10 * n)
        kept.records.update({f"id-{1000 + 10 * n + at}": more.slice(at, 1) for at in range(10)})
        kept.records.pop(f"id-{50 + n}", None)
        self.a.changed()

    @property
    def ran(self) -> list[str]:
        """The commands, by their first words."""
        return [words[0] for words in self.commands]


class WorldDoors(Doors):
    """The door of A, what is said at which leaves a trace."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.closed = world, False

    def put(self, url: str, *, allow: bool, reason: str = "") -> None:
        def said() -> None:
            if self.closed:
                raise ServerFailed(f"{url} does not answer")
            self.world.refusing = not allow

        assert url == "http://door"
        self.world.effect(said)


class Traced(StateFile):
    """A state file whose writes leave a trace."""

    def __init__(self, world: World) -> None:
        super().__init__(world.path)
        self._world = world

    def save(self) -> None:
        self._world.effect(super().save)

    def remove(self) -> None:
        self._world.effect(super().remove)


class Target(Server):
    """A server whose requests leave a trace. A new collection gets its name when it is whole."""

    def __init__(self, world: World) -> None:
        super().__init__(world.b, limits=Limits(writers=1, records=40))
        self.world, self.atomic = world, True

    def publish(self) -> None:
        """There is no step for several."""

    def collection(self, definition: Definition, **extra: Any) -> MemoryIntake:
        intake: MemoryIntake = self.world.effect(lambda: super(Target, self).collection(definition, **extra))
        intake.__class__ = _Intake
        return intake

    def delete(self, definition: Definition, ids: Sequence[str]) -> None:
        self.world.effect(lambda: super(Target, self).delete(definition, ids))

    def drop(self, definition: Definition) -> None:
        self.world.effect(lambda: super(Target, self).drop(definition))


class _Intake(MemoryIntake):
    def write(self, batch: pa.RecordBatch) -> None:
        def request() -> None:
            super(_Intake, self).write(batch)
            self.mark()  # a server has it now

        self._sink.world.effect(request)

    def finish(self) -> None:
        def renamed() -> None:
            super(_Intake, self).finish()
            super(Target, self._sink).publish()

        self._sink.world.effect(renamed)


def _copied(memory: Memory) -> Memory:
    """That place as it is now."""
    found = shallow(memory)
    found.collections = {p: Kept(k.definition, dict(k.records)) for p, k in memory.collections.items()}
    return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def traced_env(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    """Writes of the env file leave a trace in the world that is put here. No power is cut: nothing is synced."""
    worlds: list[World] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    whole = EnvFile._write
    monkeypatch.setattr(EnvFile, "_write", lambda self, text: worlds[-1].effect(lambda: whole(self, text)))
    return worlds


# -- one life ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", [True, False])
def test_a_service_moves(tmp_path: Path, directory: bool) -> None:
    """From start to cleanup, with writes at A between all phases; what is told on the way."""
    world = World(tmp_path, directory=directory)
    found = world.start()
    assert (found.phase, found.records, world.same) == ("copied", 160, True)
    assert found.next_steps[0].startswith("chromakeep transfer follow --until-quiet --state")
    world.write()
    found = world.follow()
    assert found.last_round is not None
    assert (found.last_round.upserted, found.last_round.deleted, found.rounds) == (20, 1, 1)
    assert world.same
    found = world.verify()
    assert (found.verification, found.verified and found.verified.records) == ("equal", found.records)
    assert "switch" in found.next_steps[0]
    world.write(1)
    assert world.status().changed is (True if directory else None)
    assert world.status().verification == ("stale" if directory else "equal")

    def stopped(name: str) -> None:
        if name == "stop":
            world.write(2)  # the last ones

    world.on_command = stopped
    found = world.switch()
    assert (found.phase, found.told) == ("switched", ())
    assert world.same
    assert world.commands == [["stop", "app"], ["hook", "with spaces"]]
    assert world.slept == [0.5]
    assert world.env.read_text() == "A=1\nCHROMA_URL=http://b\nB=2\n"
    work = Path(json.loads(world.path.read_text())["work"])
    assert work.is_dir()
    assert world.cleanup().phase == "gone"
    assert not world.path.exists()
    assert not work.exists()
    assert len(world.a.collections) == len(world.b.collections) == 2
    assert world.cleanup().phase == "gone"
    assert [p.name for p in tmp_path.iterdir() if p.name != "work"] == ["app.env"]


def test_what_a_round_did_is_told_by_its_number(tmp_path: Path) -> None:
    """Of one collection in the singular, of more in the plural."""
    world = World(tmp_path)
    world.start()
    world.a.put(Definition("one", "uuid-one", dimension=3), records(0, 1))
    world.follow()
    assert "1 record written, 0 deleted, 1 collection copied in " in world.told[-1]
    for name in ("one", "two", "three"):
        if name == "one":
            del world.a.collections[Definition(name).place]
        else:
            world.a.put(Definition(name, f"uuid-{name}", dimension=3), records(0, 1))
    world.follow()
    assert "2 records written, 0 deleted, 2 collections copied, 1 collection dropped in " in world.told[-1]


def test_phases_that_are_done_change_nothing(world: World) -> None:
    """The same command again: no record, no command, no line."""
    world.start()
    effects = world.effects
    assert world.start().phase == "copied"
    world.follow()
    world.switch()
    commands, text = list(world.commands), world.env.read_text()
    effects = world.effects
    assert world.switch().phase == "switched"
    assert world.effects == effects
    world.rollback()
    assert world.ran == [*[words[0] for words in commands], "begin"]
    effects = world.effects
    world.statuses = {"begin": 1}
    assert world.rollback().phase == "rolled-back"
    assert world.effects == effects + 1  # how many differ is counted again
    assert world.env.read_text() == text.replace("http://b", "http://a")


def test_while_a_directory_rests_nothing_is_read(world: World) -> None:
    """Neither place is opened by a round, nor is there a record of it but the time."""
    world.start()
    world.follow()
    world.read = 0
    world.b.collections.clear()  # would be seen
    found = world.follow()
    assert (world.read, found.rounds) == (0, 2)
    assert found.last_round is not None
    assert (found.last_round.read, found.last_round.quiet) == (0, True)
    world.write()
    world.follow()
    assert world.read == 1
    assert world.same


def test_following_without_an_end(world: World) -> None:
    """Until a round was quiet; at intervals; and never past a switch that another process has made meanwhile."""
    world.start()
    changes = iter(range(3))

    def sleep(seconds: float) -> None:
        world.slept.append(seconds)
        for n in changes:
            world.write(n)
            break

    world.sleep = sleep  # type: ignore[method-assign]
    world.write(9)
    found = world.follow(until_quiet=True)
    assert (found.rounds, world.slept) == (5, [0.0, 0.0, 0.0, 0.0])
    assert world.same
    world.slept.clear()

    def switched(seconds: float) -> None:
        world.slept.append(seconds)
        if len(world.slept) == 2:
            world.sleep = lambda seconds: None  # type: ignore[method-assign]
            world.switch()
            world.b.collections[BOOKS.place].records.pop("id-3")  # the application, at B

    world.sleep = switched  # type: ignore[method-assign]
    assert world.follow(every=7).phase == "switched"
    assert world.slept == [7, 7]
    assert "id-3" not in world.b.collections[BOOKS.place].records
    assert "nothing more to follow" in world.told[-1]


# -- what stands in the way -------------------------------------------------------------------------------------------


def test_what_stands_in_the_way_is_found_before_anything_is_begun(world: World) -> None:
    """A collection at B, a name that is not there, another transfer in the file, a target that cannot be followed."""
    world.b.put(LAWS, records(0, 3))
    for options, told in (
        ({}, "has a collection laws already"),
        ({"collections": ("nobody",)}, "no collection 'nobody'"),
        ({"rename": {"nobody": "x"}, "on_conflict": "upsert"}, "nobody"),
    ):
        with pytest.raises(UsageError, match=told):
            world.start(**options)
        assert not world.path.exists()
        assert not list((world.folder / "work").glob("*"))
        assert len(world.b.collections) == 1
    world.start(collections=("books",))
    with pytest.raises(UsageError, match="another transfer"):
        world.start()
    with pytest.raises(TargetNotEmpty):
        World.start(_fresh(world, "second"))
    other = _fresh(world, "third")
    other.ends = lambda state: Ends(  # type: ignore[method-assign]
        lambda resume: MemorySource(world.a), lambda: (MemorySink(world.b), lambda: MemorySource(world.b))
    )
    with pytest.raises(UsageError, match="cannot be caught up with"):
        other.start()
    assert not other.path.exists()
    empty = World(world.folder / "fourth")
    empty.a.collections.clear()
    with pytest.raises(UsageError, match="no collection"):
        empty.start()


def _fresh(world: World, name: str) -> World:
    """Another transfer between the same places."""
    found = World(world.folder / name)
    found.a, found.b = world.a, world.b
    return found


def test_phases_out_of_order_are_refused_with_what_to_do(world: World) -> None:
    """In one line each, and nothing happens."""
    for phase in (world.follow, world.verify, world.switch, world.rollback, world.status):
        with pytest.raises(UsageError, match="there is no transfer") as told:
            phase()
        assert "transfer start" in str(told.value.hint)
    world.start()
    with pytest.raises(UsageError, match="nothing was switched"):
        world.rollback()
    with pytest.raises(UsageError, match="nothing was caught up yet") as told:
        world.switch()
    assert "follow" in str(told.value.hint)
    with pytest.raises(UsageError, match="not over"):
        world.cleanup()
    world.follow()
    _aged(world, "last_round", "2020-01-01T00:00:00.000Z")
    with pytest.raises(UsageError, match="minutes ago"):
        world.switch()
    for how, match in (
        ({"hook": "'"}, "--hook"),
        ({"stop_writes": " "}, "is empty"),
        ({"variable": "A B"}, "not a name"),
        ({"value": "a\nb"}, "cannot be written"),
    ):
        with pytest.raises(UsageError, match=match):
            world.switch(recent=1e12, **how)
    assert (world.commands, world.status().phase) == ([], "copied")
    world.switch(recent=1e12)
    for phase in (world.follow, world.verify):
        with pytest.raises(UsageError, match="what is written to since"):
            phase()
    assert world.cleanup().phase == "gone"


def _aged(world: World, what: str, moment: str) -> None:
    state = json.loads(world.path.read_text())
    state[what]["at"] = moment
    world.path.write_text(json.dumps(state))


def test_one_process_at_a_time(world: World) -> None:
    """A second one waits, and says so when it has waited long; a reader does not."""
    world.start()
    with world.file().held():
        assert world.status().phase == "copied"
        with pytest.raises(RepositoryBusy, match="another process"), world.file().held(0.2):
            pass
    world.follow()


def test_the_file_is_for_people_and_for_its_owner(world: World) -> None:
    """Plain JSON, replaced in one step, readable by nobody else; what is none of it is refused."""
    world.start(rename={"laws": "rules"})
    text = world.path.read_text()
    assert json.loads(text)["collections"]["default_tenant/default_database/laws"]["name"] == "rules"
    assert text.count("\n") > 30
    assert world.path.stat().st_mode & 0o777 == 0o600
    for broken in ("{", "[]", '{"version": 1}'):
        world.path.write_text(broken)
        with pytest.raises(UsageError, match="no state of a transfer"):
            world.status()
    world.path.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(UsageError, match="newer"):
        world.status()


# -- verifying --------------------------------------------------------------------------------------------------------


def test_a_difference_is_found_and_written_down(world: World) -> None:
    """By id; a switch is refused until it was caught up with."""
    world.start()
    world.follow()
    world.b.collections[BOOKS.place].records.pop("id-7")
    with pytest.raises(VerificationFailed, match=r"1 only in the first \(id-7\)"):
        world.verify()
    found = world.status()
    assert (found.verification, found.phase) == ("different", "copied")
    with pytest.raises(UsageError, match="found differences"):
        world.switch()
    world.write()
    world.follow()
    assert world.status().verification == "stale"
    assert world.verify().verification == "equal"


def test_what_is_verified_is_the_moment_that_was_brought_over(world: World) -> None:
    """Writes at A between the round and the verification are no differences: they are told as such."""
    world.start()
    world.follow()
    world.write()
    assert world.verify().verification == "stale"
    assert world.status().changed is True
    assert "written to since" in world.status().told[-1]
    assert world.status().verified is not None
    world.follow()
    assert world.verify().verification == "equal"


def test_a_collection_of_another_kind_is_a_difference(world: World) -> None:
    """That somebody changed at the target: rounds carry records, so it is told how it is made anew; and it is."""
    world.a.put(replace(BOOKS, metadata={"of": "us"}), records(0, 120))
    world.start()
    kept = world.b.collections[BOOKS.place]
    kept.definition = replace(kept.definition, metadata={"of": "somebody else"})
    with pytest.raises(VerificationFailed, match="the metadata of is us and 'somebody else'") as raised:
        world.verify()
    assert "delete the collection" in str(raised.value.hint)
    del world.b.collections[BOOKS.place]
    world.follow()
    assert world.verify().verified.equal


# -- switching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "round", "verify", "written", "interrupt", "env", "resume"])
def test_a_switch_that_fails_has_not_been(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails before the env file is written: writes are resumed, the file is as it was, and a later switch can
    be made. Where even that fails it is told, and rolled back by hand."""
    world = World(tmp_path)
    world.start()
    world.follow()
    before = world.env.read_text()
    kinds: dict[str, tuple[type[BaseException], str | None]] = {
        "stop": (ChromakeepError, "status 3"),
        "round": (ServerFailed, "injected"),
        "verify": (VerificationFailed, "1 different"),
        "written": (SourceBusy, "written to after"),
        "interrupt": (KeyboardInterrupt, None),
        "env": (ChromakeepError, "no space"),
        "resume": (ChromakeepError, "and then --resume-writes"),
    }
    with monkeypatch.context() as patched:
        if how in ("stop", "resume"):
            world.statuses = {"stop": 3, "begin": 4 if how == "resume" else 0}
        elif how == "round":
            world.write()
            patched.setattr(Target, "delete", _fails)
        elif how == "verify":
            world.write()
            patched.setattr(Target, "delete", lambda self, d, ids: _spoils(world))
        elif how == "written":
            patched.setattr(world, "on_verify", lambda: world.write(7))
        elif how == "interrupt":
            patched.setattr(world, "sleep", _interrupted)
        elif how == "env":
            patched.setattr(EnvFile, "_write", _full)
        kind, told = kinds[how]
        with pytest.raises(kind, match=told):
            world.switch()
    assert world.env.read_text() == before
    assert world.ran == ["stop", "begin"]
    if how == "resume":
        assert world.status().phase == "switching"
        with pytest.raises(UsageError, match="a switch was interrupted"):
            world.follow()
        world.statuses = {}
        assert world.rollback().phase == "copied"
    world.statuses = {}
    assert world.status().phase == "copied"
    assert world.status().switch is None
    world.a.changed()
    world.follow()
    assert world.switch().phase == "switched"
    assert world.same


def _fails(*given: Any) -> None:
    raise ServerFailed("injected fault")


def _full(*given: Any) -> None:
    raise ChromakeepError("app.env: no space left")


def _interrupted(seconds: float) -> None:
    raise KeyboardInterrupt


def _spoils(world: World) -> None:
    """The deletion is done, and a record that is none of it is other than it was."""
    books = world.b.collections[BOOKS.place].records
    books.pop("id-50", None)
    books["id-99"] = records(99, 100, salt=77)


def test_a_hook_that_fails_can_be_run_again(world: World) -> None:
    """The switch is done all the same, and says so; another hook may be given."""
    world.start()
    world.follow()
    world.statuses = {"hook": 1}
    with pytest.raises(PartialFailure, match="is switched to, but --hook"):
        world.switch()
    found = world.status()
    assert (found.phase, found.told) == ("switched", ("the hook has not succeeded yet",))
    assert "CHROMA_URL=http://b" in world.env.read_text()
    with pytest.raises(UsageError, match="not over"):
        world.cleanup()
    world.switch(hook="other")
    assert world.ran == ["stop", "hook", "other"]
    assert world.status().told == ()


def test_switching_without_anything_to_run(world: World) -> None:
    """No commands and no env file: all is brought over and verified, and the rest is up to the user."""
    world.start()
    world.follow()
    world.write()
    found = world.switch(stop_writes=None, resume_writes=None, env_file=None, hook=None)
    assert (found.phase, world.commands, world.same) == ("switched", [], True)
    assert any("neither --stop-writes" in each for each in world.told)


def test_a_door_that_does_not_answer(world: World) -> None:
    """Nothing is switched, and since it cannot be told whether writes are refused, that is said until it answers."""
    world.start()
    world.follow()
    world.doors.closed = True
    with pytest.raises(ChromakeepError, match="and then http://door does not answer: writes may still be stopped"):
        world.switch(door="http://door")
    assert world.status().phase == "switching"
    assert "--door http://door" in world.status().next_steps[0]
    with pytest.raises(ServerFailed):
        world.rollback()
    world.doors.closed = False
    assert world.rollback().phase == "copied"
    world.statuses = {"stop": 3}
    with pytest.raises(ChromakeepError, match="status 3"):
        world.switch(door="http://door")
    assert (world.status().phase, world.refusing) == ("copied", False)


# -- rolling back -----------------------------------------------------------------------------------------------------


def test_back_again(world: World) -> None:
    """The old line, writes at A, the hook; what B was given since is counted, and stays until somebody says so."""
    world.start()
    world.follow()
    world.switch()
    world.env.write_text(world.env.read_text() + "C=3\n")
    books = world.b.collections[BOOKS.place].records
    books["id-3"] = records(3, 4, salt=5)
    books["id-7000"] = records(7000, 7001)
    found = world.rollback(hook="again")
    assert (found.phase, found.rolled_back and found.rolled_back.differing) == ("rolled-back", 2)
    assert "not carried back" in found.told[0]
    assert world.ran == ["stop", "hook", "begin", "again"]
    assert world.env.read_text() == "A=1\nCHROMA_URL=http://a\nB=2\nC=3\n"
    for phase in (world.follow, world.verify, world.switch):
        with pytest.raises(UsageError, match="writes of its own"):
            phase()
    assert "id-7000" in books
    found = world.follow(discard=True)
    assert (found.phase, world.same) == ("copied", True)
    assert world.switch().phase == "switched"
    world.rollback(resume_writes="otherwise")
    assert world.ran[-1] == "otherwise"
    world.cleanup()


def test_back_from_a_place_that_is_gone(world: World) -> None:
    """That nothing can be counted does not stop a rollback."""
    world.start()
    world.follow()
    world.switch()
    world.ends = lambda state: Ends(_fails, _fails)  # type: ignore[arg-type, method-assign]
    found = world.rollback()
    assert (found.phase, found.rolled_back and found.rolled_back.differing) == ("rolled-back", None)
    assert "cannot be told: injected fault" in found.told[-1]
    assert "http://a" in world.env.read_text()


# -- killed at any moment ---------------------------------------------------------------------------------------------


def life(world: World) -> None:
    """One transfer with writes in between, each phase run again if it is killed."""
    world.again(world.start)
    world.write()
    world.a.put(Definition("notes", "uuid-n", dimension=3), records(0, 60))
    world.a.collections.pop(LAWS.place)
    world.a.changed()
    world.again(world.follow)
    assert world.same
    world.again(world.verify)
    world.write(1)
    world.again(lambda: world.switch(door="http://door"))
    assert (world.same, world.refusing) == (True, True)
    assert world.env.read_text() == "A=1\nCHROMA_URL=http://b\nB=2\n"
    world.b.collections[BOOKS.place].records["id-3"] = records(3, 4, salt=5)
    world.again(world.rollback)
    assert not world.refusing
    assert world.env.read_text() == "A=1\nCHROMA_URL=http://a\nB=2\n"
    assert world.status().rolled_back.differing == 1  # type: ignore[union-attr]
    world.again(world.cleanup)
    assert not world.path.exists()


@pytest.mark.parametrize("directory", [True, False])
def test_killed_at_any_moment_the_same_command_goes_on(
    tmp_path: Path, directory: bool, traced_env: list[World]
) -> None:
    """Between any two saves of the state, requests to the target, commands and writes of the env file, from start to
    cleanup: the phase is run again, and everything is as if nothing had been."""
    whole = World(tmp_path / "whole", directory=directory)
    traced_env.append(whole)
    life(whole)
    assert whole.effects > 25
    for n in range(1, whole.effects + 1):
        world = World(tmp_path / str(n), directory=directory)
        world.kill_at = n
        traced_env.append(world)
        life(world)
        assert world.effects > n
        assert set(world.ran) == set(whole.ran)
        assert len(world.ran) <= len(whole.ran) + 2
        assert world.b.collections.keys() >= {BOOKS.place}
        assert LAWS.place not in world.b.collections


@pytest.mark.parametrize("conflict", ["fail", "replace"])
def test_a_start_that_begins_anew_takes_what_is_there_for_its_own(tmp_path: Path, conflict: str) -> None:
    """A is a server that changed since the copy was killed: nothing is refused as being there already, and nothing is
    left from before, neither of the first copy nor of what it replaces."""
    for n in range(1, 11):
        world = World(tmp_path / str(n), directory=False)
        if conflict == "replace":
            world.b.put(BOOKS, records(7000, 7010))
            world.b.put(LAWS, records(7000, 7010))
        world.kill_at = n
        with pytest.raises(Killed):
            world.start(on_conflict=conflict, rate=1e6)
        world.dead = False
        world.write()
        world.a.collections[BOOKS.place].records.pop("id-0")
        world.start(on_conflict=conflict, rate=2e6)
        assert world.same
        assert world.follow().last_round.quiet  # type: ignore[union-attr]


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("conflict", ["fail", "upsert", "replace"])
def test_what_somebody_else_creates_between_two_starts_is_not_ours(
    tmp_path: Path, conflict: str, changed: bool
) -> None:
    """A start is killed at any moment, and before the next one a collection of somebody else has one of the names:
    it is refused, or followed as what was there before is, or put aside; nothing of it is deleted."""
    for n in range(1, 15):
        world = World(tmp_path / str(n), directory=False)
        world.kill_at = n
        with pytest.raises(Killed):
            world.start(on_conflict=conflict)
        world.dead = False
        if any(each.definition.place == LAWS.place for each in world.b.unfinished.values()):
            break  # from here on it is found out when ours is to get the name
        world.b.put(replace(LAWS, id="theirs"), records(7000, 7010))
        if changed:
            world.write()
        if conflict == "fail":
            with pytest.raises(TargetNotEmpty):
                world.start(on_conflict=conflict)
        else:
            world.start(on_conflict=conflict)
            world.write(1)
            world.follow()
        theirs = world.b.collections[LAWS.place].records
        assert conflict == "replace" or len([id_ for id_ in theirs if 7000 <= int(id_[3:]) < 7010]) == 10
    else:
        raise AssertionError("it was never begun")


# -- the env file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "result"),
    [
        ("CHROMA_URL=a\n", "CHROMA_URL=http://b:1/t/d", "CHROMA_URL=http://b:1/t/d\n"),
        ("X=1\nexport CHROMA_URL='a'\r\nY=2", "export CHROMA_URL='{}'", "X=1\nexport CHROMA_URL='{}'\r\nY=2"),
        ('CHROMA_URL = "a" # why\nCHROMA_URLS=x\n', 'CHROMA_URL = "{}"', 'CHROMA_URL = "{}"\nCHROMA_URLS=x\n'),
        ("#CHROMA_URL=a\nX=1", "CHROMA_URL={}", "#CHROMA_URL=a\nX=1\nCHROMA_URL={}\n"),
        ("CHROMA_URL=a\nCHROMA_URL=b\n", "CHROMA_URL={}", "CHROMA_URL=a\nCHROMA_URL={}\n"),
        ("", "CHROMA_URL={}", "CHROMA_URL={}\n"),
        ("X=\udcff\n", "CHROMA_URL={}", "X=\udcff\nCHROMA_URL={}\n"),
    ],
)
def test_one_line_of_an_env_file(tmp_path: Path, text: str, line: str, result: str) -> None:
    """Only that line is another one, in the manner it was written; put back, the file is byte for byte as before."""
    path = tmp_path / "app.env"
    path.write_bytes(os.fsencode(text))
    path.chmod(0o640)
    link = tmp_path / "link.env"
    link.symlink_to("app.env")
    env = EnvFile(link, "CHROMA_URL")
    old, new = env.line(), env.line_for("http://b:1/t/d")
    assert new == line.replace("{}", "http://b:1/t/d")
    env.put(new)
    assert os.fsdecode(path.read_bytes()) == result.replace("{}", "http://b:1/t/d")
    assert (env.line(), env.line_for("http://b:1/t/d")) == (new, new)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    env.put(old)
    ended = text if old is not None or not text or text.endswith("\n") else f"{text}\n"
    assert os.fsdecode(path.read_bytes()) == ended
    assert sorted(p.name for p in tmp_path.iterdir()) == ["app.env", "link.env"]


def test_an_env_file_that_was_not_there(world: World) -> None:
    """It is made, and gone again after the rollback."""
    new = world.folder / "new.env"
    world.start()
    world.follow()
    world.switch(env_file=new, variable="URL", value="https://b.example/x y")
    assert new.read_text() == "URL='https://b.example/x y'\n"
    world.rollback()
    assert not new.exists()
