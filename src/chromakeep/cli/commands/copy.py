"""``copy``, ``export``, ``import``, and the comparison of two places: commands about records."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from chromakeep.cli import added, output
from chromakeep.cli.command import Call, command, names, place
from chromakeep.cli.output import Reply
from chromakeep.cli.settings import PREFIX
from chromakeep.errors import RepositoryBusy, SourceError, UsageError, VerificationFailed
from chromakeep.words import plural

if TYPE_CHECKING:
    from chromakeep.chroma.tokens import Token
    from chromakeep.operations.copy import CopyResult, Estimate
    from chromakeep.operations.endpoints import Means
    from chromakeep.operations.planning import Plan

FROM, TO = "FROM", "TO"  # the ends of a copy, a comparison and a transfer, as their variables end
SECRETS = tuple(f"{name}{end}" for name in ("CHROMA_TOKEN", "CHROMA_API_KEY") for end in ("", "_FROM", "_TO"))
WITH_ARROW = "install it with: pip install 'chromakeep[arrow]'"

_OPTIONS = (
    click.option("--collections", metavar="A,B", help="Only these collections."),
    click.option("--where", metavar="JSON", help="Only records whose metadata satisfies this filter of Chroma's."),
    click.option("--rename", multiple=True, metavar="A=B", help="What a collection is called at TO; may be repeated."),
    click.option("--tenant", metavar="NAME", help="The tenant at TO, instead of the one it was in."),
    click.option("--database", metavar="NAME", help="The database at TO, instead of the one it was in."),
    click.option(
        "--on-conflict",
        "conflict",
        type=click.Choice(("fail", "skip", "upsert", "replace")),
        default="fail",
        show_default=True,
        help="What becomes of a collection that TO has already: skip keeps its records and adds what is missing,"
        " upsert overwrites records of the same id, replace puts the new one in its place and keeps the old.",
    ),
    click.option("--rate", type=click.FloatRange(min=0.001), metavar="N", help="At most N records a second."),
    click.option("--verify", is_flag=True, help="Read everything back and compare every record."),
    click.option("--dry-run", is_flag=True, help="Say what would be copied and what stands in the way."),
    click.option("--work", metavar="PATH", help="Where working copies and the checkpoint are kept meanwhile."),
)


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@command(
    "copy",
    keys=("chroma",),
    example="""
        chromakeep copy ./chroma http://localhost:8000 --verify
        chromakeep copy s3://bucket/keep@2026-08-01T12:00:05Z ./chroma --collections books
        chromakeep copy http://old:8000 http://new:8000/acme/prod --rename docs=docs-2024
    """,
)
@place("source", "FROM", required=True)
@place("target", "TO", required=True)
@_options
def copy(call: Call, source: str, target: str, **options: Any) -> Reply:
    """Copy collections from any place to any other.

    Record by record: ids, vectors, documents, URIs and metadata, as they are.

    FROM and TO are a Chroma directory, a server (http://host:8000/tenant/database), Chroma Cloud
    (chroma-cloud://tenant/database), the PostgreSQL of serve --engine (postgresql://user@host/database), a file
    (.parquet, .jsonl, .jsonl.zst) or a directory of Parquet (dir.parquet/); FROM may be a repository, at any moment
    (REPO@TIME).

    A directory in use is copied first, exactly, without stopping its writers. A copy that was killed goes on where it
    was when the same command is run again.
    """
    return _copy(call, source, target, **options)


@command("export", keys=("chroma",), example="chromakeep export ./chroma books.parquet --collections books")
@place("source", "FROM", required=True)
@place("target", "FILE", required=True)
@_options
def export(call: Call, source: str, target: str, **options: Any) -> Reply:
    """Copy collections into a file.

    x.parquet for one, dir.parquet/ for any number, x.jsonl to look at.
    """
    _must_be_file(target)
    return _copy(call, source, target, **options)


@command("import", keys=("chroma",), example="chromakeep import books.parquet http://localhost:8000 --verify")
@place("source", "FILE", required=True)
@place("target", "TO", required=True)
@_options
def import_(call: Call, source: str, target: str, **options: Any) -> Reply:
    """Copy collections out of a file.

    `export` or another program has written it.
    """
    _must_be_file(source)
    return _copy(call, source, target, **options)


def _must_be_file(text: str) -> None:
    needs_arrow()
    from chromakeep.exchange.open import is_exchange

    if not is_exchange(text):
        raise UsageError(f"FILE is no .parquet or .jsonl: {text}", hint="between other places: chromakeep copy FROM TO")


def _copy(
    call: Call,
    source: str,
    target: str,
    *,
    collections: str | None,
    where: str | None,
    rename: tuple[str, ...],
    tenant: str | None,
    database: str | None,
    conflict: str,
    rate: float | None,
    verify: bool,
    dry_run: bool,
    work: str | None,
) -> Reply:
    needs_arrow()
    from chromakeep.conditions import Where
    from chromakeep.exchange.open import is_exchange, saved
    from chromakeep.operations.checkpoint import Checkpoint
    from chromakeep.operations.copy import copy as operation
    from chromakeep.operations.dry_run import dry_run as preview
    from chromakeep.operations.endpoints import destination, is_same, open_sink, open_source
    from chromakeep.operations.planning import Plan

    plan = Plan(
        names(collections),
        Where(where) if where else None,
        renames(rename),
        *destination(target, tenant, database),
        conflict,
        rate,
        verify,
        is_same(source, target),
    )
    if verify and target == "-":
        raise UsageError("what was written to a stream cannot be read back", hint="write to a file to have it verified")
    told = {
        "from": source,
        "to": target,
        "collections": collections,
        "where": where,
        "rename": list(rename),
        "tenant": tenant,
        "database": database,
        "conflict": conflict,
        "verify": verify,
    }
    at = work_of(work, source, target)
    if dry_run:
        at = _own(at.with_name(f"{at.name}-dry"))  # what a killed copy has left is not touched
    else:
        _hold(at)  # two that go on with one copy would both lose count
    # What a stream was given is not there for another process to go on behind.
    checkpoint = Checkpoint(None if dry_run or target == "-" else at / "checkpoint.json", told)
    reads = means_of(call, FROM, at, sys.stdin.buffer if source == "-" else None)
    writes = means_of(call, TO, at, sys.stdout.buffer if target == "-" else None)
    whole = dry_run
    try:
        if source == "-" and verify and not dry_run:  # which records differ is found by reading them again
            source = saved(sys.stdin.buffer, at / "stdin.jsonl")
        with closing(open_source(source, reads, resume=checkpoint.state)) as reading:
            goes_on = checkpoint.begun and checkpoint.leads_on(reading.state())
            sink, read_back = open_sink(target, writes, resume=goes_on, dry=dry_run)
            with closing(sink):
                if dry_run:
                    done = preview(reading, sink, plan, observer=call.observer)
                else:
                    done = operation(
                        reading,
                        sink,
                        plan,
                        read_back=read_back,
                        checkpoint=checkpoint,
                        observer=call.observer,
                    )
        whole = True
    finally:
        if whole or not checkpoint.begun:  # else it can be gone on with
            shutil.rmtree(at, ignore_errors=True)
    if not done.collections and is_exchange(target) and target != "-":  # no file is no success
        raise SourceError(f"{source} has no collection: {target} is not written", hint="is it the right place?")
    rows = [
        (
            output.printable(c.name),
            output.printable(c.target),
            f"{c.records:,}",
            str(c.dimension or "-"),
            ("exists already" if c.exists else "") if dry_run else "verified" if c.comparison else "",
        )
        for c in done.collections
    ]
    lines = [output.table(("collection", "to", "records", "dimension", ""), rows, "records dimension")] if rows else []
    if done.estimate:
        lines.append(_foretold(done, done.estimate, plan))
    else:
        seconds = max(done.seconds, 0.001)
        lines.append(
            f"copied {plural(done.records, 'record')} in {output.duration(seconds)} "
            f"({done.records / seconds:,.0f}/s)" + (", every one compared" if done.verified else "")
        )
        if done.as_of:
            lines.append(
                f"begun {output.when(done.as_of)}: what was written to FROM since then is not all in it; a run with"
                " --on-conflict upsert brings it, and check A B compares the two as they are now"
            )
    if target == "-" and not dry_run:  # stdout has the records
        output.write("\n".join(lines), sys.stderr)
        return Reply(done, "")
    return Reply(done, "\n".join(lines))


def _foretold(done: CopyResult, by: Estimate, plan: Plan) -> str:
    """What a dry run says, and what it rests on."""
    all_of_it = "all of them were read" if by.read == done.records else f"by the first {by.read:,}"
    rate = f"; --rate allows {plan.rate:,g} records/s" if plan.rate else ""
    back = "; reading all of it back is taken to take as long as reading it" if plan.verify else ""
    return (
        f"would copy {plural(done.records, 'record')}, about {output.size(done.bytes)},"
        f" in about {output.duration(done.seconds)}\n"
        f"({all_of_it}; reading takes about {output.duration(by.reading)}, a target of this kind is taken to need"
        f" {output.duration(by.writing)}{rate}{back})"
    )


def compare(call: Call, a: str, b: str, *, collections: str | None, queries: int, work: str | None) -> Reply:
    """``check A B``."""
    needs_arrow()
    from chromakeep.operations.compare import compare_places
    from chromakeep.operations.endpoints import open_source
    from chromakeep.operations.searching import recalls

    at = work_of(work, a, b)
    at = _own(at.with_name(f"{at.name}-check"))  # what a killed copy has left is not touched
    here, there = means_of(call, FROM, at / "a"), means_of(call, TO, at / "b")
    try:
        with closing(open_source(a, here)) as one, closing(open_source(b, there)) as two:
            found = compare_places(one, two, collections=names(collections), folder=at, observer=call.observer)
            searched = recalls((a, one, here), (b, two, there), found.pairs, queries) if queries else []
    finally:
        shutil.rmtree(at, ignore_errors=True)
    lines = [output.printable(each.line()) for each in found.comparisons]
    lines += [output.printable(each.line()) for each in searched]
    lines += [f"{output.printable(name)} is only in the first" for name in found.only_first]
    lines += [f"{output.printable(name)} is only in the second" for name in found.only_second]
    status = 0 if found.equal else VerificationFailed.exit_status
    answer = {
        "kind": "comparison",
        "collections": found.comparisons,
        "only_first": found.only_first,
        "only_second": found.only_second,
        "recall": searched,
    }
    return Reply(answer, "\n".join(lines) or "nothing to compare", status)


def renames(pairs: tuple[str, ...]) -> dict[str, str]:
    """New names by the old ones, of ``A=B`` each. Raises ``UsageError``."""
    found = {}
    for pair in pairs:
        old, mark, new = pair.partition("=")
        if not (old and mark and new):
            raise UsageError(f"--rename {pair}: not A=B", hint="write the old name, =, and the new one")
        found[old] = new
    return found


def token_of(name: str, end: str) -> Token:
    """The token for one end: in a variable of that end, or in the one that serves for both."""
    from chromakeep.chroma.tokens import Token

    return Token.read(os.environ, f"{name}_{end}", name)


def means_of(call: Call, end: str, work: Path, stream: IO[bytes] | None = None) -> Means:
    """With what the place at one end (``FROM``, ``TO``) is opened, by this invocation's settings and environment."""
    from chromakeep.operations.endpoints import Means

    theirs = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k not in added and k not in SECRETS}
    return Means(
        work,
        call.repository,
        theirs,
        call.settings.text("chroma") if call.settings else None,
        token_of("CHROMA_TOKEN", end),
        token_of("CHROMA_API_KEY", end),
        call.observer,
        stream,
    )


def work_of(given: str | None, source: str, target: str) -> Path:
    """Where this copy keeps what it needs to go on: the same place for the same FROM and TO, a directory of its own."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "chromakeep" / "copies"
    words = "\0".join([str(Path.cwd()), source, target])
    return Path(given or state) / f"copy-{hashlib.blake2b(words.encode(), digest_size=8).hexdigest()}"


def _hold(at: Path) -> None:
    """Make a directory for working copies, for this process alone until it ends. Raises ``UsageError``."""
    from chromakeep.exchange.files import hold

    try:
        at.parent.mkdir(parents=True, exist_ok=True)
        hold(at)
    except OSError as error:
        raise UsageError(
            f"{at.parent}: working copies cannot be kept there: {(error.strerror or str(error)).lower()}",
            hint="name another directory for them: --work PATH",
        ) from None


def _own(at: Path) -> Path:
    """The same for one of any number of processes: the first such directory that no other one has."""
    for number in count():
        one = at.with_name(f"{at.name}{number or ''}")
        with suppress(RepositoryBusy):
            _hold(one)
            return one
    raise AssertionError


def needs_arrow() -> None:
    """Raises ``UsageError`` where pyarrow is not installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError("records are moved by pyarrow, which is not installed", hint=WITH_ARROW) from None
