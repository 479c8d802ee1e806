"""Help, documentation and completion say the same as the program."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from chromakeep import errors
from chromakeep.cli.app import program
from chromakeep.cli.settings import KEYS

if TYPE_CHECKING:
    from cli.conftest import Cli

ROOT = Path(__file__).parent.parent.parent
REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def commands(group: click.Group = program, before: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command, name
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
        else:
            found[before + name] = command
    return found


@pytest.mark.parametrize("name", commands())
def test_every_help_has_an_example_that_its_command_understands(cli: Cli, name: str) -> None:
    """The example names the command, and every option in it is one that the command has."""
    shown = cli(*name.split(), "--help")
    assert shown.returncode == 0
    example = shown.stdout.split("Example:\n")[1]
    assert f"chromakeep {name}" in example
    ours = " ".join(line.split(" -- ")[0] for line in example.splitlines())
    assert set(re.findall(r"--[a-z-]+", ours)) <= {o for p in commands()[name].params for o in p.opts}


def test_the_overview_names_every_command_and_cuts_no_sentence(cli: Cli) -> None:
    """`chromakeep` alone is `chromakeep --help`."""
    shown = cli("--help", env={"COLUMNS": "80"}).stdout
    assert cli(env={"COLUMNS": "80"}).stdout == shown
    assert all(re.search(rf"^  {name}  +[A-Z]", shown, re.M) for name in program.list_commands(click.Context(program)))
    assert "..." not in shown.split("Commands:")[1].split("Example:")[0]


def test_starting_imports_nothing_heavy() -> None:
    """The command line is there before numpy, obstore, cryptography, rich or chromadb is asked for."""
    code = "import chromakeep.cli.app, sys; print(*{m.split('.')[0] for m in sys.modules})"
    env = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
    heavy = {"numpy", "obstore", "cryptography", "rich", "chromadb", "blake3", "zstandard", "asyncio"}
    assert "click" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


def test_every_command_is_documented_and_every_documented_command_exists() -> None:
    """The headings of the reference are the commands, no more and no fewer."""
    headings = re.findall(r"^### `chromakeep ([a-z]+(?: [a-z]+)?)", REFERENCE, re.M)
    assert sorted(headings) == sorted(commands())


def section_of(name: str) -> str:
    return re.split(r"^##", REFERENCE.split(f"### `chromakeep {name}", 1)[1], maxsplit=1, flags=re.M)[0]


@pytest.mark.parametrize("name", commands())
def test_every_option_of_a_command_is_documented_and_every_documented_one_exists(name: str) -> None:
    """What a command's section names is what the command takes beside the common options."""
    section = section_of(name)
    if other := re.search(r"Options are those of `([a-z]+)`", section):
        section += section_of(other[1])
    common = {"--password-file", "--config", "--progress", "--json", "--debug", "--help"}
    takes = {o for p in commands()[name].params for o in p.opts if o.startswith("--")} - common
    if name == "config show":  # takes every setting, to be tried
        takes = set()
    if name == "run":
        takes -= {"--data", "--repository"} - set(re.findall(r"--[a-z-]+", section))
    assert set(re.findall(r"--[a-z][a-z-]+", section)) - common == takes


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of settings has a row for each key, in order, with its kind, default and meaning."""
    table = REFERENCE.split("| key | kind | default | |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines() if row.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(KEYS)
    for row, key in zip(rows, KEYS.values(), strict=True):
        assert row[1] == (", ".join(key.choices) or key.kind)
        assert row[3] == key.help
        assert (row[2] == "") == (key.default is None)
        if key.default is not None:
            assert key.read(row[2].strip("`")) == key.default


def test_every_exit_status_is_documented() -> None:
    """The table of statuses is the tree of errors, and what a face adds."""

    def tree(kind: type[errors.ChromakeepError]) -> set[tuple[int, str]]:
        return {(kind.exit_status, kind.code)}.union(*(tree(k) for k in kind.__subclasses__()))

    rows = re.findall(r"^\| (\d+) \|([^|]*)\|", REFERENCE.split("## Exit statuses")[1], re.M)
    found = {(int(status), code) for status, codes in rows for code in re.findall(r"`([a-z-]+)`", codes)}
    assert found == tree(errors.ChromakeepError) | {(70, "bug"), (130, "interrupted")}
    assert {0, 141, 143} < {int(status) for status, _ in rows}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid_in_their_shells(cli: Cli, shell: str) -> None:
    """A script can be sourced; in bash the completion it defines is then bound to chromakeep."""
    script = cli("completion", shell)
    assert script.returncode == 0
    assert script.stderr == ""
    (cli.cwd / "script").write_text(script.stdout)
    if shutil.which(shell) is None:
        assert "chromakeep" in script.stdout
        return
    check = {"bash": ". ./script && complete -p chromakeep", "zsh": "", "fish": ""}[shell]
    done = subprocess.run(
        [shell, *(["-c", check] if check else ["-n", "script"])],
        cwd=cli.cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_completion_knows_commands_options_and_choices(cli: Cli) -> None:
    """What bash asks for, it gets, without any module of an operation being loaded."""

    def complete(*words: str) -> list[str]:
        env = {
            "_CHROMAKEEP_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        return [line.partition(",")[2] for line in cli(env=env).stdout.splitlines()]

    assert complete("chromakeep", "ro") == ["rollback"]
    assert "--keep-daily" in complete("chromakeep", "prune", "--keep-d")
    assert complete("chromakeep", "backup", "--progress", "j") == ["json"]
