"""The audit log: what was written is found to be just that, and anything else is found out."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chromakeep.errors import RefusedToServe, StoreUnavailable, UsageError, VerificationFailed
from chromakeep.events import Event, Noted
from chromakeep.operations import audit_shipping
from chromakeep.operations.audit import MOST, Audit
from chromakeep.operations.audit_chain import LONGEST, NOTHING, forge
from chromakeep.operations.audit_file import AuditFile, files, raw_lines
from chromakeep.operations.audit_objects import name_of, shelf_of
from chromakeep.operations.audit_shipping import AuditShipping
from chromakeep.operations.audit_verify import VerifyReport, records, verify
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.repository import Repository
from chromakeep.store.memory import MemoryStore

PATIENCE = 60.0


def write(path: Path, count: int, largest: int = 1 << 30, key: str = "app") -> AuditFile:
    """A log with one record of its beginning and ``count`` others, closed."""
    file = AuditFile(path, largest)
    file.open({"pid": 1})
    for number in range(count):
        file.append([{"event": "write", "key": key, "collection": f"c{number}"}])
    file.close()
    return file


def events(path: Path) -> list[str]:
    return [str(r["event"]) for r in records(files(path), {})]


def only_problem(report: VerifyReport) -> tuple[str, int, str]:
    (problem,) = report.problems
    return Path(problem.place).name, problem.line, problem.what


@pytest.fixture
def repository() -> Repository:
    return Repository.create(MemoryStore(), password="correct horse")


# -- the chain -------------------------------------------------------------------------------------------------------


def test_a_chain_can_be_checked_without_this_program(tmp_path: Path) -> None:
    """As docs/format.md says: SHA-256 of the line up to the comma before its hash, and the hash before in it."""
    write(tmp_path / "a", 5)
    before = NOTHING
    for number, line in enumerate((tmp_path / "a").read_bytes().splitlines(), 1):
        body, _, rest = line.rpartition(b',"hash":"')
        assert hashlib.sha256(body).hexdigest().encode() == rest[:-2]
        fields = json.loads(line)
        assert (fields["number"], fields["previous"]) == (number, before)
        assert list(fields)[:4] == ["number", "instance", "time", "event"]
        before = fields["hash"]
    report = verify([tmp_path / "a"], {})
    assert not report.problems
    assert (report.chains[0].first, report.chains[0].last, report.chains[0].hash) == (1, 6, before)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def edited(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b'"key":"app"', b'"key":"ape"')


def forged(lines: list[bytes]) -> None:
    """The line has a right hash of its own, and does not lead on."""
    old = json.loads(lines[3])
    fields = {k: old[k] for k in ("time", "event")}
    lines[3] = forge(old["number"], old["instance"], old["previous"], {**fields, "key": "ape"})[0]


def removed(lines: list[bytes]) -> None:
    del lines[3]


def several_removed(lines: list[bytes]) -> None:
    del lines[3:6]


def reordered(lines: list[bytes]) -> None:
    lines[3], lines[4] = lines[4], lines[3]


def repeated(lines: list[bytes]) -> None:
    lines.insert(4, lines[3])


def truncated(lines: list[bytes]) -> None:
    lines[3] = lines[3][:50] + b"\n"


def emptied(lines: list[bytes]) -> None:
    lines.insert(3, b"\n")


def joined(lines: list[bytes]) -> None:
    lines[3] = lines[3][:-1]


def bloated(lines: list[bytes]) -> None:
    lines[3] = b"x" * (5 * LONGEST) + b"\n"


def nested(lines: list[bytes]) -> None:
    body = b'{"number":4,"x":' + b"[" * 30_000 + b"]" * 30_000 + b',"previous":"' + b"0" * 64 + b'"'
    lines[3] = body + b',"hash":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("harm", "line", "what"),
    [
        (edited, 4, "was changed: its hash is another"),
        (forged, 5, "does not follow the line before it: one of the two was replaced"),
        (removed, 4, "is record 5: record 4 is missing before it"),
        (several_removed, 4, "is record 7: record 4 to 6 is missing before it"),
        (reordered, 4, "is record 5: record 4 is missing before it"),
        (repeated, 5, "is record 4: out of order after 4"),
        (truncated, 4, "is no record, or not all of one"),
        (emptied, 4, "is no record, or not all of one"),
        (joined, 4, "was changed: its hash is another"),
        (bloated, 4, f"is longer than {LONGEST} bytes"),
        (nested, 4, "is no JSON object"),
    ],
)
def test_the_first_wrong_line_is_named(
    tmp_path: Path, harm: Callable[[list[bytes]], None], line: int, what: str
) -> None:
    """Whatever was done to it."""
    path = tmp_path / "a"
    write(path, 8)
    lines = lines_of(path)
    harm(lines)
    path.write_bytes(b"".join(lines))
    assert only_problem(verify([path], {})) == ("a", line, what)


def test_a_wrong_line_in_the_middle_is_no_last_line_that_is_not_whole(tmp_path: Path) -> None:
    """One problem is told of it, and nothing of the end, which is as it was written."""
    path = tmp_path / "a"
    write(path, 8)
    lines = lines_of(path)
    edited(lines)
    path.write_bytes(b"".join(lines))
    report = verify([path], {})
    assert only_problem(report) == ("a", 4, "was changed: its hash is another")
    assert (report.chains[0].last, report.chains[0].open) == (3, False)


def test_no_changed_byte_goes_unnoticed(tmp_path: Path) -> None:
    """But of the very last newline, which a log that is being written may lack."""
    path = tmp_path / "a"
    write(path, 4)
    data = path.read_bytes()
    chance = random.Random(5)
    for at in {*chance.sample(range(len(data) - 1), 200), 0, len(data) - 2}:
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
        report = verify([path], {})
        # A wrong last line may be one that is being written; then the chain is told to end before it.
        assert report.problems or (report.chains[0].last == 4 and report.chains[0].open), at


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    """One instance, one sequence of numbers; each beginning is a record."""
    path = tmp_path / "a"
    first = write(path, 3)
    second = write(path, 2)
    assert first.instance == second.instance
    assert events(path) == ["opened", "write", "write", "write", "opened", "write", "write"]
    assert not verify([path], {}).problems


@pytest.mark.parametrize("kept", [0.2, 0.9, 1.0])
def test_a_torn_line_is_named_and_closed_not_cut(tmp_path: Path, kept: float) -> None:
    """At whatever byte a crash has cut it; one that lacks its newline only is a record."""
    path = tmp_path / "a"
    write(path, 3)
    lines = lines_of(path)
    whole = lines[-1][:-1]
    piece = whole[: int(len(whole) * kept)]
    path.write_bytes(b"".join(lines[:-1]) + piece)
    before = verify([path], {})
    assert not before.problems and before.chains[0].open
    told: list[Event] = []
    file = AuditFile(path, 1 << 30, told.append)
    file.open({})
    file.close()
    assert path.read_bytes().startswith(b"".join(lines[:-1]) + piece + b"\n")
    after = verify([path], {})
    assert not after.problems and not after.chains[0].open
    closed = piece != whole
    assert after.chains[0].interrupted == closed
    assert events(path)[-2:] == (["torn", "opened"] if closed else ["write", "opened"])
    assert bool(told) == closed


def test_a_crash_before_the_torn_line_was_closed_is_closed_by_the_next_start(tmp_path: Path) -> None:
    """The newline was written, the record that closes it was not."""
    path = tmp_path / "a"
    write(path, 1)
    path.write_bytes(path.read_bytes() + b'{"number":3,"inst\n')
    write(path, 1)
    report = verify([path], {})
    assert not report.problems and report.chains[0].interrupted == 1


def test_a_line_in_the_middle_cannot_be_passed_off_as_torn(tmp_path: Path) -> None:
    """A closing record is of just those bytes."""
    path = tmp_path / "a"
    write(path, 1)
    path.write_bytes(path.read_bytes() + b'{"number":3,"inst')
    write(path, 1)
    path.write_bytes(path.read_bytes().replace(b'{"number":3,"inst\n', b'{"number":3,"insu\n'))
    assert only_problem(verify([path], {}))[1:] == (3, "is no record, or not all of one")


def test_full_files_are_linked_and_none_is_removed(tmp_path: Path) -> None:
    """In whatever order they are named; one that is missing is told."""
    path = tmp_path / "a"
    write(path, 20, largest=1000)
    write(path, 20, largest=1000)
    every = files(path)
    assert len(every) > 5
    shuffled = random.Random(1).sample(every, len(every))
    report = verify(shuffled, {})
    assert not report.problems
    assert (report.chains[0].first, report.chains[0].last) == (1, 42)
    assert [r["number"] for r in records(every, {})] == list(range(1, 43))
    rest = verify(every[2:], {})
    assert not rest.problems and rest.chains[0].first > 1
    assert "is missing before it" in only_problem(verify([*every[:2], *every[3:]], {}))[2]


def test_a_full_file_that_cannot_be_set_aside_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a directory that belongs to somebody else, in which only the file is ours: no record is lost, no write refused
    for that, and it is told once."""
    told: list[Event] = []
    file = AuditFile(tmp_path / "audit", 100, told.append)
    file.open({})

    def not_ours(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", not_ours)
    for n in range(3):
        file.append([{"event": "test", "n": n}])
    file.close()
    assert verify([tmp_path / "audit"], {}).chains[0].last == 4
    assert [str(e) for e in told if "cannot be set aside" in str(e)] == [str(told[0])]


def test_another_process_that_takes_the_name_of_a_full_file_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment in which no file has the name. Nothing is lost, no write goes unrecorded, the chain goes on behind
    what the other one wrote."""
    path, told = tmp_path / "a", list[Event]()
    audit = Audit(path, 100, required=True, observer=told.append)
    audit._file.open({})
    other = AuditFile(path, 1 << 30)
    rename = Path.rename

    def at_once(old: Path, new: Path) -> Path:
        moved = rename(old, new)
        other.open({"other": True})
        return moved

    monkeypatch.setattr(Path, "rename", at_once)
    audit._write([{"event": "write", "key": "one"}])
    audit._write([{"event": "write", "key": "two"}])
    refusal = audit.refusal()
    assert refusal and "(another process writes there)" in refusal.message
    monkeypatch.undo()
    other.close()
    audit._write([{"event": "write", "key": "three"}])
    assert audit.refusal() is None
    audit._file.close()
    report = verify(files(path), {})
    assert not report.problems and report.chains[0].last == 5
    assert [r.get("key") for r in records(files(path), {})] == [None, None, "one", "two", "three"]
    assert len(told) == 2


def test_a_crash_between_the_two_steps_of_a_rotation(tmp_path: Path) -> None:
    """The full file was renamed, the next one is empty or not there."""
    path = tmp_path / "a"
    write(path, 3)
    path.rename(tmp_path / "a.0000000001")
    write(path, 1)
    assert not verify(files(path), {}).problems
    path.rename(tmp_path / "a.0000000005")
    path.touch()
    write(path, 1)
    report = verify(files(path), {})
    assert not report.problems and report.chains[0].last == 8


def test_what_is_no_audit_log_is_kept_aside(tmp_path: Path) -> None:
    """And a new chain begun."""
    path = tmp_path / "a"
    path.write_text("something else\n")
    write(path, 1)
    (aside,) = tmp_path.glob("a.damaged-*")
    assert aside.read_text() == "something else\n"
    assert not verify([path], {}).problems
    assert only_problem(verify([aside], {}))[1:] == (1, "is no record, or not all of one")


def test_two_processes_cannot_write_one_log(tmp_path: Path) -> None:
    """The second one is told."""
    one = AuditFile(tmp_path / "a", 1 << 30)
    one.open({})
    with pytest.raises(RefusedToServe, match="another process writes this audit log"):
        AuditFile(tmp_path / "a", 1 << 30).open({})
    with pytest.raises(UsageError, match="No such file or directory"):
        AuditFile(tmp_path / "nowhere" / "a", 1 << 30).open({})
    assert (tmp_path / "a").stat().st_mode & 0o077 == 0


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Writes fail in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_half_line_and_loses_nothing_that_waits(tmp_path: Path) -> None:
    """What could not be written is written later; what had no room in memory is told by a record."""
    told: list[Event] = []
    audit = Audit(tmp_path / "a", 1 << 30, required=True, observer=told.append)
    audit._file.open({})
    audit._write([{"event": "write", "key": "one"}])
    assert audit.refusal() is None
    with no_file_above((tmp_path / "a").stat().st_size + 100):
        audit._write([{"event": "write", "key": "two"}])
        audit._write([{"event": "write", "key": "three"}] * MOST)
    assert (tmp_path / "a").read_bytes().endswith(b"}\n")
    assert audit.dropped == 1
    refusal = audit.refusal()
    assert refusal and refusal.message.startswith("the audit log cannot be written (File too large)")
    audit._write([])
    assert audit.refusal() is None
    audit._file.close()
    assert not verify([tmp_path / "a"], {}).problems
    found = list(records([tmp_path / "a"], {}))
    assert [r.get("key") for r in found[:4]] == [None, "one", "two", "three"]
    assert (found[-1]["event"], found[-1]["records"], len(found)) == ("lost", 1, MOST + 3)
    assert [e.message for e in told if isinstance(e, Noted)] == [
        "the audit log cannot be written: File too large",
        "the audit log is written again",
    ]


def test_a_disk_that_stays_full_takes_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it lasts: one record tells of all that had no room."""
    monkeypatch.setattr("chromakeep.operations.audit.MOST", 50)
    audit = Audit(tmp_path / "a", 1 << 30)
    audit._file.open({})
    with no_file_above((tmp_path / "a").stat().st_size + 100):
        for _ in range(150):
            audit._write([{"event": "write"}])
        assert len(audit._waiting) == 50
    audit._write([])
    audit._file.close()
    told = [r["records"] for r in records([tmp_path / "a"], {}) if r["event"] == "lost"]
    assert told == [100] == [audit.dropped]


def test_writes_go_on_unless_the_log_is_required(tmp_path: Path) -> None:
    """The default."""
    audit = Audit(tmp_path / "a", 1 << 30)
    audit.failing = "No space left on device"
    assert audit.refusal() is None


def test_records_from_the_door_reach_the_file_and_the_repository(tmp_path: Path, repository: Repository) -> None:
    """By the threads, at the latest when it is stopped; a second stop does no harm."""
    audit = Audit(tmp_path / "a", 1 << 30, open_repository=lambda: repository)
    audit.start()
    for number in range(50):
        audit.record({"event": "write", "records": number})
    audit.stop(PATIENCE)
    audit.stop(PATIENCE)
    assert (audit.dropped, audit.unshipped) == (0, 0)
    assert [r.get("records") for r in records([], {"r": repository})] == [None, *range(50)]
    report = verify([tmp_path / "a"], {"r": repository})
    assert not report.problems and [c.last for c in report.chains] == [51, 51]


# -- the repository --------------------------------------------------------------------------------------------------


def ship(path: Path, file: AuditFile, repository: Repository) -> None:
    AuditShipping(path, file.instance, lambda: repository).ship()


def test_shipping_takes_up_where_it_was(tmp_path: Path, repository: Repository) -> None:
    """In a new process too, over rotated files and torn lines; nothing is put twice."""
    path = tmp_path / "a"
    for _ in range(4):
        file = write(path, 10, largest=1000)
        ship(path, file, repository)
        ship(path, file, repository)
        path.write_bytes(path.read_bytes() + b'{"number":')
    names = shelf_of(repository, file.instance).names
    assert len(names) == 4
    report = verify(files(path), {"r": repository})
    assert not report.problems
    assert [(c.first, c.last) for c in report.chains] == [(1, 47), (1, 47)]
    assert report.chains[0].interrupted == 3


@pytest.mark.parametrize("at", range(4))
def test_a_file_that_is_set_aside_while_it_is_shipped(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Between any two of the reads: what it holds comes under its new name, once, and no hole stays."""
    path, asked = tmp_path / "a", 0
    write(path, 10, largest=1000)
    file = AuditFile(path, 1000)
    file.open({})
    number = file.number

    def rotate() -> None:
        while len(files(path)) == before:
            file.append([{"event": "write", "key": "x" * 100}])

    def opened(one: Path, start: int = 0) -> Iterator[bytes]:
        nonlocal asked
        if asked == at:
            rotate()
        asked += 1
        return raw_lines(one, start)

    before = len(files(path))
    assert before > 2
    monkeypatch.setattr(audit_shipping, "SEGMENT", 500)
    monkeypatch.setattr(audit_shipping, "raw_lines", opened)
    shipping = AuditShipping(path, file.instance, lambda: repository)
    shipping.ship()
    assert shipping.shipped >= number
    shipping.ship()
    file.close()
    assert asked > at and shipping.shipped == file.number > number
    report = verify(files(path), {"r": repository})
    assert not report.problems
    assert [(c.first, c.last) for c in report.chains] == [(1, file.number)] * 2


@pytest.mark.parametrize("happened", [False, True])
def test_a_put_that_failed_is_put_again_whether_it_happened_or_not(
    tmp_path: Path, repository: Repository, happened: bool
) -> None:
    """Also where there is more to put by then."""
    path = tmp_path / "a"
    file = write(path, 3)
    shipping = AuditShipping(path, file.instance, lambda: repository)
    honest = repository.store.put

    def fails(name: str, data: bytes, *, if_absent: bool = False) -> None:
        if happened:
            honest(name, data, if_absent=if_absent)
        raise StoreUnavailable("gone")

    repository.store.put = fails  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        shipping.ship()
    repository.store.put = honest  # type: ignore[method-assign]
    write(path, 3)
    shipping.ship()
    shipping.ship()
    assert shipping.shipped == 8
    assert not verify([path], {"r": repository}).problems


def test_prune_leaves_it_and_check_knows_it(tmp_path: Path, repository: Repository) -> None:
    """And check notices a damaged object."""
    file = write(tmp_path / "a", 3)
    ship(tmp_path / "a", file, repository)
    prune(repository, Retention(last=1))
    name = name_of(file.instance, 1)
    assert name in {o.name for o in repository.store.list()}
    assert check(repository).problems == ()
    data = repository.store.get(name)
    repository.store.put(name, data[:-1] + bytes([data[-1] ^ 1]))
    assert [p.object for p in check(repository).problems] == [name]
    report = verify([], {"r": repository})
    assert report.problems[0].place == name


def test_what_a_file_cannot_show_by_itself_the_repository_does(tmp_path: Path, repository: Repository) -> None:
    """Its end cut off, and all of it written anew; and an object that is gone."""
    path = tmp_path / "a"
    file = write(path, 5)
    ship(path, file, repository)
    honest = path.read_bytes()
    path.write_bytes(b"".join(honest.splitlines(keepends=True)[:4]))
    assert not verify([path], {}).problems
    assert only_problem(verify([path], {"r": repository}))[2].startswith("ends with record 4; audit/")

    before, lines = NOTHING, []
    for line in honest.splitlines():
        fields = {k: v for k, v in json.loads(line).items() if k not in ("number", "instance", "previous", "hash")}
        made, before = forge(len(lines) + 1, file.instance, before, {**fields, "key": "somebody else"})
        lines.append(made)
    path.write_bytes(b"".join(lines))
    assert not verify([path], {}).problems
    assert only_problem(verify([path], {"r": repository}))[2].startswith("record 6 or one before it is not what")

    path.write_bytes(honest)
    for _ in range(2):
        ship(path, write(path, 5), repository)
    assert not verify([path], {"r": repository}).problems
    repository.store.delete(shelf_of(repository, file.instance).names[1])
    (problem,) = verify([], {"r": repository}).problems
    assert "is missing before it" in problem.what
    repository.store.delete(shelf_of(repository, file.instance).names[0])
    (problem,) = verify([], {"r": repository}).problems
    assert "where the chain begins with record 1" in problem.what


def test_a_log_of_which_nothing_is_in_the_repository_is_no_verified_one(tmp_path: Path, repository: Repository) -> None:
    """Written anew as another instance's, or any other log: there would be nothing to compare it with."""
    path = tmp_path / "a"
    file = write(path, 5)
    assert "nothing is in the repository" in only_problem(verify([path], {"r": repository}))[2]
    ship(path, file, repository)
    assert not verify([path], {"r": repository}).problems
    before, lines = NOTHING, []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        fields = {k: v for k, v in json.loads(line).items() if k not in ("number", "instance", "previous", "hash")}
        made, before = forge(number, "00000000000000aa", before, {**fields, "key": "innocent"})
        lines.append(made)
    path.write_bytes(b"".join(lines))
    assert not verify([path], {}).problems
    name, line_, what = only_problem(verify([path], {"r": repository}))
    assert (name, line_) == ("a", 0)
    assert what.startswith("is of instance 00000000000000aa, of which nothing is in the repository")


@pytest.mark.parametrize(
    ("begins", "said"), [(7, "record 6 or one before it is not what"), (9, "begins with record 9; audit/")]
)
def test_records_that_do_not_go_on_from_the_repository_s_are_found(
    tmp_path: Path, repository: Repository, begins: int, said: str
) -> None:
    """The log is gone, and what is there in its place begins where the copies end, or later."""
    path = tmp_path / "a"
    file = write(path, 5)
    ship(path, file, repository)
    file = write(path, 5)
    path.write_bytes(b"".join(lines_of(path)[6:]))  # what is there when an older file was not named: nothing is wrong
    assert not verify([path], {"r": repository}).problems
    path.write_bytes(forge(begins, file.instance, "a" * 64, {"event": "write"})[0])
    assert not verify([path], {}).problems
    assert only_problem(verify([path], {"r": repository}))[2].startswith(said)


@pytest.mark.parametrize("more", [1, 2, 3])
def test_a_copied_log_or_an_older_one_puts_nothing_among_the_other_ones_objects(
    tmp_path: Path, repository: Repository, more: int
) -> None:
    """Two instances that both go on from one log, whichever wrote more: the second one is told."""
    file = write(tmp_path / "a", 2)
    (tmp_path / "b").write_bytes((tmp_path / "a").read_bytes())
    write(tmp_path / "a", 2)
    write(tmp_path / "b", more, key="another")
    ship(tmp_path / "a", file, repository)
    for _ in range(2):
        with pytest.raises(VerificationFailed, match="does not go on from record 6"):
            ship(tmp_path / "b", file, repository)
    assert len(shelf_of(repository, file.instance).names) == 1
    assert not verify([tmp_path / "a"], {"r": repository}).problems
    assert verify([tmp_path / "b"], {"r": repository}).problems


def test_a_repository_that_is_away_stops_nothing(tmp_path: Path) -> None:
    """It is told once, and the file has everything."""
    told: list[Event] = []

    def away() -> Repository:
        raise StoreUnavailable("no route to the bucket")

    audit = Audit(tmp_path / "a", 1 << 30, open_repository=away, observer=told.append)
    audit.start()
    audit.record({"event": "write"})
    audit.stop(PATIENCE)
    assert audit.unshipped == 2
    assert not verify([tmp_path / "a"], {}).problems
    assert [e.message for e in told if isinstance(e, Noted)] == [
        "the audit log is not in the repository yet: no route to the bucket"
    ]


def test_hostile_objects_do_no_harm(repository: Repository) -> None:
    """Sealed by somebody who has the password, and no audit log."""
    repository.put_sealed("U", "audit/0123456789abcdef/0000000001", b"\n\n{}\n" + b"[" * 100_000)
    repository.store.put("audit/0123456789abcdee/0000000001", b"CKEEP")
    repository.store.put("audit/x", b"")
    report = verify([], {"r": repository})
    assert len(report.problems) == 2
    repository.store.delete("audit/0123456789abcdee/0000000001")
    assert list(records([], {"r": repository})) == []
