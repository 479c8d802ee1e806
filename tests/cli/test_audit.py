"""``audit verify`` and ``audit show`` as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from chromakeep.chroma.ports import free_port
from chromakeep.operations.audit_file import AuditFile
from chromakeep.operations.audit_shipping import AuditShipping
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from cli.documentation import documented, same_fields

if TYPE_CHECKING:
    from cli.conftest import Cli

WRITE = {
    "event": "write",
    "key": "ingest",
    "key_id": "4e1f7a90c2b35d68",
    "peer": "192.0.2.7",
    "method": "POST",
    "route": "collection.add",
    "path": "/api/v2/x/add",
    "tenant": "acme",
    "database": "prod",
    "collection": "books\x1b[31m",
    "records": 7,
    "status": 201,
    "outcome": "done",
}


@pytest.fixture
def log(cli: Cli) -> Path:
    """``./audit.log`` of a run that wrote twice and denied once, in two files, and a copy in ``./keep``."""
    path = cli.cwd / "audit.log"
    file = AuditFile(path, 500)
    file.open({"hostname": "h", "pid": 1, "version": "0"})
    file.append([WRITE, {**WRITE, "key": "other", "collection": "laws"}])
    file.append([{"event": "denied", "key": "", "peer": "192.0.2.8", "status": 401, "outcome": "refused"}])
    file.close()
    (cli.cwd / "keep").mkdir()
    repository = Repository.create(LocalStore(cli.cwd / "keep"))
    AuditShipping(path, file.instance, lambda: repository).ship()
    return path


def test_a_whole_log_verifies_and_a_changed_one_has_status_14(cli: Cli, log: Path) -> None:
    """In the file, in the repository, and in both; the first wrong line is named."""
    files = sorted(p.name for p in cli.cwd.glob("audit.log*"))
    assert len(files) == 2
    good = cli.json("audit", "verify", *files, "keep")
    same_fields(good, documented("audit verify"))
    assert [(c["first"], c["last"]) for c in good["chains"]] == [(1, 4), (1, 4)]
    assert cli("audit", "verify", "audit.log").stdout.splitlines()[-1] == "no problems"
    older = cli.cwd / "audit.log.0000000001"
    older.write_bytes(older.read_bytes().replace(b'"key":"other"', b'"key":"ghost"'))
    bad = cli.json("audit", "verify", *files, status=14)
    same_fields(bad, documented("audit verify"))
    assert bad["problems"] == [{"place": older.name, "line": 3, "what": "was changed: its hash is another"}]
    shown = cli("audit", "verify", *files)
    assert shown.returncode == 14
    assert shown.stdout.splitlines()[-1] == f"{older.name}, line 3: was changed: its hash is another"


def test_records_are_shown_and_chosen(cli: Cli, log: Path) -> None:
    """By event, key, collection and time; from a repository too; no name drives the terminal."""
    answer = cli.json("audit", "show", "keep", "--event", "write", "--key", "ingest")
    same_fields(answer, documented("audit show"))
    assert [r["number"] for r in answer["records"]] == [2]
    files = [p.name for p in cli.cwd.glob("audit.log*")]
    assert [r["number"] for r in cli.json("audit", "show", *files, "--last", "2")["records"]] == [3, 4]
    assert [r["number"] for r in cli.json("audit", "show", *files, "--collection", "laws")["records"]] == [3]
    assert cli.json("audit", "show", *files, "--since", "2999")["records"] == []
    text = cli("audit", "show", *files).stdout
    assert "\x1b" not in text
    assert "denied" in text and "collection.add laws" in text
    assert cli("audit", "show", *files, "--key", "nobody").stdout == "no such records\n"


def test_the_settings_name_the_log_and_its_copy(cli: Cli, log: Path) -> None:
    """All its files, and the repository."""
    (cli.cwd / "chromakeep.toml").write_text('audit_log = "audit.log"\nrepository = "keep"\n')
    chains = cli.json("audit", "verify")["chains"]
    assert [(c["first"], c["last"]) for c in chains] == [(1, 4), (1, 4)]


def test_what_is_no_log_is_told_in_a_line(cli: Cli, log: Path) -> None:
    """Nothing given and nothing set is a mistake."""
    assert "FILE or REPO is missing" in cli.fails(2, "audit", "verify")
    told = cli.fails(10, "audit", "verify", "audit.lgo", "keep")
    assert "audit.lgo: no such file or repository" in told and "init" not in told
    (cli.cwd / "other").write_text("hello\n")
    assert cli.json("audit", "verify", "other", status=14)["problems"][0]["line"] == 1


def test_a_repository_without_a_log_is_not_verified(cli: Cli) -> None:
    """There is nothing that could be whole."""
    assert cli("init", "empty").returncode == 0
    found = cli.json("audit", "verify", "empty", status=14)
    assert found["chains"] == []
    assert [problem["what"] for problem in found["problems"]] == ["there is no audit log"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--event", "nonsense"), *(("--since", text) for text in ("yesterday", "2026-13", "2026-11-25T12:00+02:00", ""))],
)
def test_what_no_record_can_have_is_not_asked_for(cli: Cli, option: str, value: str) -> None:
    """An empty answer would seem to be one."""
    (cli.cwd / "audit.log").write_text("")
    assert option in cli.fails(2, "audit", "show", "audit.log", option, value)


def test_a_time_with_or_without_its_zone_and_fraction(cli: Cli, log: Path) -> None:
    """A record of the same second is not older than it."""
    (*_, last) = cli.json("audit", "show", "audit.log")["records"]
    for since in (last["time"], last["time"][:19] + "Z", last["time"][:19], last["time"][:10], last["time"][:4]):
        assert last in cli.json("audit", "show", "audit.log", "--since", since)["records"]


def test_a_run_refuses_logs_that_it_could_not_keep(cli: Cli) -> None:
    """In the data directory, where no directory is, and of no size."""
    run = ("run", "--data", "data", "--ephemeral", "--port", str(free_port()))
    assert "is in the data directory" in cli.fails(2, *run, "--audit-log", "data/sub/audit.log")
    assert "is in the data directory" in cli.fails(2, *run, "--access-log", "data/access.log")
    assert "a log of 0 megabytes" in cli.fails(2, *run, "--audit-size", "0")
    for log in ("audit", "access"):
        told = cli(*run, f"--{log}-log", f"nowhere/{log}.log")
        assert told.returncode == 2
        assert "No such file or directory" in told.stderr


def test_old_records_are_removed_from_the_repository(cli: Cli, log: Path) -> None:
    """What stays verifies, alone and with the files; no setting that is meant for snapshots removes any."""
    kept = cli.json("audit", "prune", "keep", "--keep-within", "1h", env={"CHROMAKEEP_KEEP_WITHIN": "0s"})
    assert (kept["chains"], kept["deleted_objects"]) == ([], 0)
    assert "keep-within" in cli.fails(2, "audit", "prune", "keep", env={"CHROMAKEEP_KEEP_WITHIN": "0s"})
    for options in (("--dry-run",), ()):
        done = cli.json("audit", "prune", "keep", "--keep-within", "0s", *options)
        same_fields(done, documented("audit prune"))
        assert [(c["first"], c["last"]) for c in done["chains"]] == [(1, 4)]
    shown = cli.json("audit", "verify", "keep")
    assert [(c["first"], c["last"]) for c in shown["chains"]] == [(5, 4)]
    assert cli.json("audit", "verify", *sorted(p.name for p in cli.cwd.glob("audit.log*")), "keep")["problems"] == []
    assert cli.json("audit", "show", "keep")["records"] == []
    assert cli.json("check", "keep")["problems"] == []
