"""Every object in the reference has the fields of the object that the command really answers with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.documentation import DOCUMENTED, documented, same_fields

if TYPE_CHECKING:
    from cli.conftest import Cli


def test_each_documented_object_is_the_real_one(cli: Cli, chroma: Path) -> None:
    """One life of a repository, from init to unlock, each step's object held against its documentation."""
    answers: dict[tuple[str, str | None], dict[str, Any]] = {}

    def step(name: str, *arguments: str, status: int = 0) -> dict[str, Any]:
        answer = cli.json(*name.split(), *arguments, status=status)
        assert (answer["command"], answer["ok"]) == (name, status == 0)
        same_fields(answer, documented(name, answer.get("kind")), name)
        answers[name, answer.get("kind")] = answer
        return answer

    step("init", "keep")
    first = step("backup", "chroma", "keep")
    assert [(c["name"], c["count"]) for c in first["collections"]] == [("books", 300), ("laws", 150)]
    second = step("backup", "chroma", "keep")
    listed = step("snapshots", "keep")["snapshots"]
    assert [s["id"] for s in listed] == [first["snapshot"], second["snapshot"]]
    same_fields(listed[0]["collections"], documented("backup")["collections"])
    step("show", "keep")
    one = step_show = cli.json("show", f"keep@{first['snapshot']}")
    same_fields(
        {k: v for k, v in one.items() if k not in ("command", "ok", "kind")}, documented("snapshots")["snapshots"][0]
    )
    assert step_show["kind"] == "snapshot"
    shown = step("show", "chroma")
    assert (shown["kind"], shown["problems"]) == ("directory", [])
    step("restore", "keep@latest", "to", "--dry-run")
    assert not (cli.cwd / "to").exists()
    step("restore", "keep@latest", "to")
    again = step("restore", f"keep@{first['snapshot']}", "to", "--replace")
    assert (cli.cwd / again["old"]).is_dir()
    back = step("rollback", "to")
    assert (cli.cwd / back["kept"]).is_dir()
    assert step("check", "keep", "--read-data")["problems"] == []
    assert step("prune", "keep", "--keep-last", "1", "--dry-run")["removed"] == [first["snapshot"]]
    assert step("prune", "keep", "--keep-last", "1")["removed"] == [first["snapshot"]]
    assert [s["id"] for s in cli.json("snapshots", "keep")["snapshots"]] == [second["snapshot"]]
    step("unlock", "keep")
    role = (
        "--role",
        "writer",
        "--collections",
        "docs-*",
        "--expires",
        "90d",
        "--rate",
        "50",
        "--body",
        "10000000",
        "--time",
        "10s",
    )
    made = step("keys create", "app", *role, "--tenant", "t", "--concurrency", "8", "--repository", "keep")
    (new,) = step("keys list", "--repository", "keep")["keys"]
    assert new == made["key"]
    assert step("keys rotate", "app", "--overlap", "1h", "--repository", "keep")["replaced"][0]["id"] == new["id"]
    assert len(step("keys revoke", "app", "--repository", "keep")["revoked"]) == 2
    step("history", "keep")
    step("export", "chroma", "books.parquet", "--collections", "books")
    step("import", "books.parquet", "books.jsonl")
    assert step("copy", "chroma", "all.parquet/", "--verify")["verified"]
    step("check", "chroma", "books.parquet", status=14)
    step("config show")
    failure = cli.json("backup", "nowhere", "keep", status=15)
    same_fields(failure, documented("backup", ok=False))
    missing = {e["command"] for e in DOCUMENTED} - {command for command, _ in answers}
    # in test_run, test_settings, test_transfer, test_move, test_audit, test_healthcheck
    elsewhere = {"run", "replicate", "key list", "transfer status", "send", "healthcheck", "serve"} | {
        f"audit {one}" for one in ("verify", "show", "prune")
    }
    assert missing == elsewhere


def test_a_damaged_repository_is_reported_with_its_snapshots(cli: Cli, kept: Path) -> None:
    """check answers with the object and status 14; each problem names the object and what it breaks."""
    pack = max((cli.cwd / "keep").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    answer = cli.json("check", "keep", "--read-data", status=14)
    same_fields(answer, documented("check"))
    assert not answer["ok"]
    assert pack.name in answer["problems"][0]["object"]
    assert answer["problems"][0]["snapshots"]
    _, summary, step = cli("check", "keep", "--read-data").stdout.splitlines()
    assert summary.endswith("1 problem") and step.startswith("next: restore a snapshot that is not named above")


def test_a_damaged_directory_is_shown_with_its_problems(cli: Cli, chroma: Path) -> None:
    """show answers with the problems and status 15, and people read a line for each."""
    header = next(chroma.rglob("header.bin"))
    header.write_bytes(header.read_bytes()[:20])
    answer = cli.json("show", "chroma", status=15)
    same_fields(answer, documented("show", "directory"))
    assert header.parent.name in json.dumps(answer["problems"])
    assert "problem: " in cli("show", "chroma").stdout
