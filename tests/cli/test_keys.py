"""Clients' keys on the command line: a token is printed once, and the right place is written to."""

from __future__ import annotations

import json
import re
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.conftest import Cli

TOKEN = re.compile(r"ck_[0-9a-f]{16}_[A-Za-z0-9_-]{43}\n")


def test_a_token_is_alone_on_stdout_and_never_told_again(cli: Cli) -> None:
    """In a data directory: made, listed, rotated, revoked; nobody sees a token or digest but who made it."""
    made = cli("keys", "create", "app", "--role", "reader", "--collections", "docs-*, faq", "--data", "data")
    assert made.returncode == 0
    assert TOKEN.fullmatch(made.stdout)
    assert made.stderr.count("\n") == 1
    assert "not shown again" in made.stderr
    file = cli.cwd / "data" / "chromakeep-keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    rotated = cli("keys", "rotate", "app", "--overlap", "1h", "--data", "data")
    assert TOKEN.fullmatch(rotated.stdout)
    assert rotated.stdout != made.stdout
    listed = cli("keys", "list", "--data", "data").stdout
    assert re.findall(r" app +reader +(\w+) +any +any +docs-\*,faq ", listed) == ["replaced", "valid"]
    revoked = cli("keys", "revoke", "app", "--data", "data").stdout
    assert revoked.count("revoked app (") == 2
    (digest, *_) = re.findall(r'"digest": "([0-9a-f]{64})"', file.read_text())
    shown = listed + revoked + cli("keys", "list", "--data", "data", "--json").stdout
    assert digest not in shown
    for secret in (made.stdout[20:-1], rotated.stdout[20:-1]):
        assert secret not in shown + file.read_text()
    (cli.cwd / "other").mkdir()
    assert cli("keys", "list", "--data", "other").stdout == "no keys\n"


def test_the_repository_goes_first_unless_a_flag_says_otherwise(cli: Cli) -> None:
    """As it is configured for `run`, with both; and a flag before what is configured."""
    assert cli("init", "keep").returncode == 0
    both = {"CHROMAKEEP_DATA": "data", "CHROMAKEEP_REPOSITORY": "keep"}
    cli("keys", "create", "one", "--role", "admin", env=both)
    cli("keys", "create", "two", "--role", "admin", "--data", "data", env=both)
    cli("keys", "create", "three", "--role", "admin", "--repository", "keep", env={"CHROMAKEEP_DATA": "data"})

    def names(*where: str) -> list[str]:
        return [key["name"] for key in cli.json("keys", "list", *where)["keys"]]

    assert names("--repository", "keep") == ["one", "three"]
    assert names("--data", "data") == ["two"]
    assert cli("check", "keep").returncode == 0


def test_mistakes_are_one_line_and_make_no_key(cli: Cli) -> None:
    here = ("--data", "data")
    assert "--repository" in cli.fails(2, "keys", "list")
    assert "one place" in cli.fails(2, "keys", "list", "--repository", "keep", *here)
    cli.fails(10, "keys", "list", "--repository", "keep")
    limits = ("--rate", "nan")  # all others: tests/access/test_keys.py
    for wrong in (("app",), ("a b", "--role", "reader"), ("app", "--role", "reader", *limits)):
        cli.fails(2, "keys", "create", *wrong, *here)
    assert "pattern" in cli.fails(2, "keys", "create", "app", "--role", "reader", "--collections", "a,,b", *here)
    assert "duration" in cli.fails(2, "keys", "create", "app", "--role", "reader", "--expires", "soon", *here)
    assert not (cli.cwd / "data").exists()
    for words in (("list",), ("revoke", "app"), ("rotate", "app")):  # mistyped, not without keys
        assert "no such directory" in cli.fails(2, "keys", *words, *here)
    cli("keys", "create", "app", "--role", "reader", *here)
    assert "already" in cli.fails(2, "keys", "create", "app", "--role", "reader", *here)
    assert "30 days" in cli.fails(2, "keys", "rotate", "app", "--overlap", "31d", *here)
    assert "no valid key" in cli.fails(2, "keys", "rotate", "other", *here)
    (cli.cwd / "data" / "chromakeep-keys.json").write_text("{}")
    assert "no keys can be read" in cli.fails(14, "keys", "list", *here)


def test_a_mistake_names_the_command_that_was_meant(cli: Cli) -> None:
    """The help of a group lists no options; and whoever reads JSON asked for a command, not for a group."""
    assert "`chromakeep keys create --help`" in cli.fails(2, "keys", "create", "a", "--role", "root", "--data", "data")
    assert "`chromakeep keys --help`" in cli.fails(2, "keys", "crate", "a")
    wrong = ("keys", "create", "a", "--role", "reader", "--expires", "soon", "--data", "data", "--json")
    assert json.loads(cli(*wrong).stdout)["command"] == "keys create"
