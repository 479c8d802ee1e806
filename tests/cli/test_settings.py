"""Settings: flags before environment before file before default; what is misspelt is refused; secrets are not shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cli.documentation import documented, same_fields

if TYPE_CHECKING:
    from cli.conftest import Cli

SECRET = "correct horse battery staple"


def setting(cli: Cli, key: str, *arguments: str, env: dict[str, str] | None = None) -> tuple[object, str]:
    found = {s["key"]: s for s in cli.json("config", "show", *arguments, env=env)["settings"]}
    return found[key]["value"], found[key]["origin"]


def test_flag_environment_file_default(cli: Cli) -> None:
    """Each source goes before the next, and the value says which it came from."""
    assert setting(cli, "every") == (60, "default")
    (cli.cwd / "chromakeep.toml").write_text('every = "2m"\nkeep_last = 3\nephemeral = true\n')
    assert setting(cli, "every") == (120, "chromakeep.toml")
    env = {"CHROMAKEEP_EVERY": "3m", "CHROMAKEEP_KEEP_LAST": ""}
    assert setting(cli, "every", env=env) == (180, "CHROMAKEEP_EVERY")
    assert setting(cli, "keep_last", env=env) == (3, "chromakeep.toml")  # empty is not set
    assert setting(cli, "every", "--every", "4m", env=env) == (240, "--every")
    assert setting(cli, "ephemeral", "--no-ephemeral") == (False, "--ephemeral")


def test_the_file_is_chosen_by_flag_then_variable_then_place(cli: Cli) -> None:
    """--config goes before CHROMAKEEP_CONFIG, that before ./chromakeep.toml; a named file must be there."""
    for name in ("chromakeep", "variable", "flag"):
        (cli.cwd / f"{name}.toml").write_text(f'data = "{name}"')
    assert setting(cli, "data")[0] == "chromakeep"
    env = {"CHROMAKEEP_CONFIG": "variable.toml"}
    assert setting(cli, "data", env=env) == ("variable", "variable.toml")
    assert setting(cli, "data", "--config", "flag.toml", env=env) == ("flag", "flag.toml")
    assert "nowhere.toml" in cli.fails(2, "config", "show", "--config", "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repositry = 's3://b1x/p'", "did you mean repository?"),
        ("keep-last = 3", "did you mean keep_last?"),
        ("[run]\nevery = 3", "unknown key run"),
        ("every = 'soon'", "every: not a duration: 'soon'"),
        ("keep_last = -1", "keep_last: not a number: -1"),
        ("keep_last = true", "keep_last: not a number: True"),
        ("port = '١'", "port: not a number"),
        ("progress = 'loud'", "auto, bar, json, none"),
        ("data = 7", "data: not a path: 7"),
        ("data = ''", "data: not a path: ''"),
        ("data = ", "not TOML"),
        ("password = 'x'", "password_file"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_do(cli: Cli, text: str, said: str) -> None:
    """Every command reads the whole file: a misspelt key is told at once, not when it is missed."""
    (cli.cwd / "chromakeep.toml").write_text(text)
    told = cli.fails(2, "snapshots", "keep")
    assert said in told
    assert "chromakeep.toml" in told


def test_a_misspelt_variable_is_refused(cli: Cli) -> None:
    """A container that would run without its repository because of a letter does not start."""
    told = cli.fails(2, "config", "show", env={"CHROMAKEEP_REPOSITRY": "s3://bucket/p"})
    assert "CHROMAKEEP_REPOSITRY" in told
    assert "did you mean CHROMAKEEP_REPOSITORY?" in told


def test_what_kubernetes_sets_beside_a_service_named_chromakeep_is_not_ours(cli: Cli) -> None:
    """Service links such as CHROMAKEEP_PORT=tcp://... are in every pod and are neither settings nor errors."""
    env = {
        "CHROMAKEEP_SERVICE_HOST": "10.0.0.9",
        "CHROMAKEEP_SERVICE_PORT": "8000",
        "CHROMAKEEP_SERVICE_PORT_HTTP": "8000",
        "CHROMAKEEP_PORT": "tcp://10.0.0.9:8000",
        "CHROMAKEEP_PORT_8000_TCP": "tcp://10.0.0.9:8000",
        "CHROMAKEEP_PORT_8000_TCP_ADDR": "10.0.0.9",
    }
    assert setting(cli, "port", env=env) == (None, "default")
    assert setting(cli, "port", env={"CHROMAKEEP_PORT": "9000"}) == (9000, "CHROMAKEEP_PORT")


def test_a_secret_is_never_printed(cli: Cli) -> None:
    """config show says where the password comes from, and masks it; no failure repeats it, not even with --debug."""
    env = {"CHROMAKEEP_PASSWORD": SECRET}
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        shown = cli(*arguments, env=env)
        assert "********" in shown.stdout
        assert "CHROMAKEEP_PASSWORD" in shown.stdout
        assert SECRET not in shown.stdout + shown.stderr
    failed = cli("snapshots", "keep", "--debug", "--json", env=env)
    assert failed.returncode == 10
    assert SECRET not in failed.stdout + failed.stderr
    told = cli.fails(2, "config", "show", env={"CHROMAKEEP_REPOSITORY": f"s3://key:{SECRET}@bucket/p"})
    assert SECRET not in told


def test_there_is_no_flag_for_a_password(cli: Cli) -> None:
    """The arguments of a process are there for all to see; the refusal does not repeat what was given."""
    told = cli.fails(2, "backup", "chroma", "keep", "--password", SECRET)
    assert "--password-file" in told
    assert SECRET not in told


@pytest.mark.parametrize("content", [None, b"", b"\nsecond", b"x" * 5000, b"\xff\xfe\n"])
def test_an_unusable_password_file_is_named(cli: Cli, content: bytes | None) -> None:
    """Missing, empty, endless or binary: one line that names the file, never an empty password."""
    if content is not None:
        (cli.cwd / "secret").write_bytes(content)
    assert "secret" in cli.fails(2, "init", "keep", "--password-file", "secret")
    assert not (cli.cwd / "keep" / "config").exists()


def test_password_sources(cli: Cli) -> None:
    """--password-file before CHROMAKEEP_PASSWORD before CHROMAKEEP_PASSWORD_FILE; of a file the first line counts."""
    (cli.cwd / "secret").write_text(SECRET + "\r\nnot this\n")
    assert cli.json("init", "keep", "--password-file", "secret", env={"CHROMAKEEP_PASSWORD": "no"})["encrypted"]
    assert cli("snapshots", "keep", env={"CHROMAKEEP_PASSWORD": SECRET}).returncode == 0
    assert cli("snapshots", "keep", env={"CHROMAKEEP_PASSWORD_FILE": "secret"}).returncode == 0
    both = {"CHROMAKEEP_PASSWORD": "no", "CHROMAKEEP_PASSWORD_FILE": "secret"}
    assert "password" in cli.fails(12, "snapshots", "keep", env=both)
    assert "CHROMAKEEP_PASSWORD" in cli.fails(12, "snapshots", "keep")


def test_passwords_are_added_changed_and_removed(cli: Cli) -> None:
    """key add, remove and change take the new password from a variable or a file; the old one then opens nothing."""
    one, two, three = ({"CHROMAKEEP_PASSWORD": p} for p in ("one", "two", "three"))
    cli.json("init", "keep", env=one)
    first = cli.json("key", "list", "keep", env=one)
    same_fields(first, documented("key list"))
    added = cli.json("key", "add", "keep", env={**one, "CHROMAKEEP_NEW_PASSWORD": "two"})
    assert len(added["keys"]) == 2
    removed = cli.json("key", "remove", "keep", first["keys"][0]["id"][:12], env=two)
    assert [k["id"] for k in removed["keys"]] == [added["added"]]
    cli.fails(12, "snapshots", "keep", env=one)
    (cli.cwd / "new").write_text("three\n")
    assert cli.json("key", "change", "keep", "--new-password-file", "new", env=two)["removed"] == [added["added"]]
    cli.fails(12, "snapshots", "keep", env=two)
    assert "only password" in cli.fails(2, "key", "remove", "keep", "", env=three)
    assert "CHROMAKEEP_NEW_PASSWORD" in cli.fails(2, "key", "add", "keep", env=three)
