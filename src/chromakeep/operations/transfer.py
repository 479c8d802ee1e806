"""transfer: the phases of moving a live service from one place to another; here the copy and the catching up.

::

    start -> follow, follow, ... -> verify -> switch -> cleanup
                                                 \\-> rollback -> cleanup

Each phase is one call that returns where the transfer stands. All that must outlive it is in the state file, so a call
that was killed at any moment is made again and goes on; a phase that is done already changes nothing.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import msgspec
from msgspec.structs import replace

from chromakeep.changes import Position
from chromakeep.chroma.directory_source import DirectorySource
from chromakeep.chroma.touched import Unfollowable, position_of
from chromakeep.errors import ChromakeepError, UsageError, VerificationFailed
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.by_changes import ByChanges
from chromakeep.operations.catch_up import Round, catch_up
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.compare import Comparison, compare, described
from chromakeep.operations.copy import copy
from chromakeep.operations.planning import Plan, admitted, paired
from chromakeep.operations.reconcile import Deletes
from chromakeep.operations.standing import Standing, gone, standing
from chromakeep.operations.tracked import Options, begin, chosen
from chromakeep.operations.transfer_state import VERSION, LastRound, State, StateFile, Verified, now
from chromakeep.records import Sink, Source
from chromakeep.words import plural

NAMED = 20  # differences that are written down


class Ends(msgspec.Struct, frozen=True):
    """The two places, opened anew by each phase.

    ``source(state)``: what is there now; where ``state`` is the ``state()`` of an earlier one and that is still at hand
    (a working copy), just that again. ``sink``: the target, and how to read it. ``current``: the state that the source
    is in now, told without reading it; empty where that cannot be told. ``still``: a source is one moment of the place,
    and goes on being that while the place changes. ``directory``: a Chroma directory, of which the changes can be
    read; its sources are ``DirectorySource``.
    """

    source: Callable[[str], Source]
    sink: Callable[[], tuple[Sink, Callable[[], Source]]]
    current: Callable[[], str] = lambda: ""
    still: bool = False
    directory: Path | None = None


Opening = Callable[[State], Ends]


def start(
    file: StateFile,
    source: str,
    target: str,
    options: Options,
    work: Path,
    opening: Opening,
    *,
    observer: Observer = ignore,
) -> Standing:
    """Copy while the source is live. ``work``: in it a directory for working copies is made, until the cleanup.

    What stands in the way is found before anything is written, and then nothing is begun. Raises ``UsageError``, also
    for another transfer in the file and for a target that cannot be caught up with; ``TargetNotEmpty``, and what
    source and sink raise.
    """
    with file.held(create=True):
        state = file.state
        if source == target:
            raise UsageError("FROM and TO are the same place")
        if state is not None and (state.collections or state.phase != "starting"):
            same = replace(state.options, rate=options.rate) == options
            if not same or (state.source, state.target) != (source, target):
                raise UsageError(
                    f"{file.path} is of another transfer, from {state.source} to {state.target} ({state.phase})",
                    hint="name another --state, or end that one: chromakeep transfer cleanup --force",
                )
            if state.phase != "starting":
                observer(Noted("the copy is made already"))
                return standing(file.path, state)
            state.options = options
        else:  # there is none, or one that had not begun to write
            at = Path(state.work) if state is not None else work / f"transfer-{secrets.token_hex(6)}"
            state = file.state = _new(source, target, options, at)
        began, ends = time.monotonic(), opening(state)
        try:
            with closing(Target(ends)) as b:
                _make_work(Path(state.work))
                file.save()
                checkpoint = _Lasting(Path(state.work) / "copy.json", {"from": source, "to": target})
                with closing(ends.source(checkpoint.state)) as a:
                    copied = _copy(file, state, a, b, checkpoint, observer)
                    state.seen, state.position = a.state(), _end_of(a)
        except ChromakeepError:
            if not state.collections:
                shutil.rmtree(state.work, ignore_errors=True)
                file.remove()
            raise
        state.records = sum(each.records for each in state.collections.values())
        file.note("start", began, f"copied {copied:,} records of {len(state.collections)} collections")
        file.enter("copied")
        checkpoint.end()
        return standing(file.path, state)


class _Lasting(Checkpoint):
    """One that stays until the state file tells what is whole: else that would be taken for somebody else's."""

    def remove(self) -> None:
        """Not yet."""

    def end(self) -> None:
        """Now."""
        super().remove()


def _make_work(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(
            f"{work.parent}: working copies cannot be kept there: {(error.strerror or str(error)).lower()}",
            hint="name another directory for them: --work PATH",
        ) from None


def _copy(file: StateFile, state: State, a: Source, b: Target, checkpoint: _Lasting, observer: Observer) -> int:
    options, first = state.options, not state.collections
    pairs = chosen(a.definitions(), options)
    if first and not pairs and options.collections is None:
        raise UsageError(f"{state.source} has no collection", hint="is it the right place?")
    existing = {each.place: each for each in b.sink.definitions()}
    for key in checkpoint.parts.keys() & state.collections.keys():
        known, part = state.collections[key], checkpoint.parts[key]
        if part.done:
            known.whole, known.replaces = True, False
        elif not known.existed:
            known.intake = part.intake
    begun = {
        key: begin(definition, target, existing, options)
        for key, (definition, target) in pairs.items()
        if key not in state.collections or not state.collections[key].begun
    }
    plan = Plan(
        options.collections, None, options.rename, options.tenant, options.database, options.on_conflict, options.rate
    )
    if first:
        admitted(paired(a, plan), b.sink, plan)
    state.collections.update(begun)
    file.save()
    if not first and (not checkpoint.begun or checkpoint.state != a.state()):
        # how far it came is of another state, but what is there is ours: what is missing is found by reading
        done = catch_up(
            a,
            b.sink,
            b.source,
            options,
            state.collections,
            file.save,
            folder=Path(state.work),
            observer=observer,
        )
        checkpoint.end()
        return done.read
    there = {definition.name for definition, _ in pairs.values()}
    plan = replace(
        plan,
        collections=tuple(pairs),
        rename={old: new for old, new in options.rename.items() if old in there},
    )
    result = copy(a, b.sink, plan, checkpoint=checkpoint, observer=observer)
    for key, each in zip(pairs, result.collections, strict=True):
        known = state.collections[key]
        known.whole, known.replaces, known.records, known.intake = True, False, each.records, None
    return result.records


def follow(
    file: StateFile,
    opening: Opening,
    *,
    until_quiet: bool = False,
    every: float | None = None,
    allow_empty: bool = False,
    discard: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    observer: Observer = ignore,
) -> Standing:
    """Bring the target up to the source: one round, or with ``until_quiet`` rounds until one changed nothing, or with
    ``every`` one in so many seconds without an end.

    A round whose source is a directory that was not written to since the last one reads nothing. Other phases may be
    called between two rounds; after a switch there is no other round, for it would undo what was written to the target
    since, and this returns. ``discard``: after a rollback, undo that indeed, and go on as before the switch. Raises
    ``UsageError`` where there can be no round, and what ``catch_up`` raises.
    """
    looping, first = until_quiet or every is not None, True
    while True:
        with file.held():
            state = file.state
            if not first and (state is None or state.phase != "copied"):
                observer(Noted("the transfer was ended or switched meanwhile: nothing more to follow"))
                return gone(file.path) if state is None else standing(file.path, state)
            state = file.need()
            if discard and first and state.phase == "rolled-back":
                state.switch = state.rolled_back = state.verified = None
                state.seen, state.position = "", None
                file.enter("copied")
            refuse_unless_copied(state, "followed")
            last = one_round(file, opening(state), allow_empty=allow_empty, observer=observer)
            found = standing(file.path, state)
        observer(Noted(_told(last, state.rounds)))
        if not looping or (until_quiet and last.quiet):
            return found
        first = False
        sleep(every or 0.0)


def one_round(file: StateFile, ends: Ends, *, allow_empty: bool = False, observer: Observer = ignore) -> LastRound:
    """One round; the state file is held."""
    return _round(file, ends, None, allow_empty, observer)


def _round(file: StateFile, ends: Ends, at: Source | None, allow_empty: bool, observer: Observer) -> LastRound:
    """One round, up to what ``at`` is, or else to what is there now."""
    state, began = file.need(), time.monotonic()
    current, done = at.state() if at else ends.current(), Round()
    unlike = state.verified is not None and not state.verified.equal and not state.verified.stale
    if not current or current != state.seen or unlike:
        fresh = state.verified is not None and not state.verified.stale
        if state.verified is not None and fresh:
            state.verified.stale = True  # a round that is killed may have written
            file.save()
        with closing(Target(ends)) as b:
            done, state.seen = _brought_up(file, ends, b, at, current, allow_empty, observer)
        if state.verified is not None and fresh and done.quiet:
            state.verified.stale = False
            state.verified.as_of = state.seen
        state.records = sum(each.records for each in state.collections.values())
    elif state.last_round is not None:
        done.told = state.last_round.told
    state.rounds += 1
    state.last_round = LastRound(
        now(),
        round(time.monotonic() - began, 3),
        done.read,
        done.upserted,
        done.deleted,
        done.created,
        done.dropped,
        done.told,
    )
    file.save()
    return state.last_round


def _brought_up(
    file: StateFile, ends: Ends, b: Target, at: Source | None, current: str, allow_empty: bool, observer: Observer
) -> tuple[Round, str]:
    """By what has changed, if the position is known and the rows tell it, else by comparing; and the state of the
    source that the target has now."""
    state = file.need()

    def save(position: Position | None) -> None:
        state.position = position or state.position
        file.save()

    by_changes = ByChanges(
        b.sink,
        lambda: b.source,
        state.options,
        state.collections,
        save,
        Path(state.work),
        allow_empty=allow_empty,
        observer=observer,
    )
    if state.position and ends.directory and at is None:
        try:
            return by_changes.round(ends.directory, state.position), current
        except Unfollowable as why:
            observer(Noted(f"{why}: records are read"))
    with nullcontext(at) if at else closing(ends.source("")) as a:
        if state.position and isinstance(a, DirectorySource):
            try:
                return by_changes.round(a.directory, state.position, a), a.state()
            except Unfollowable as why:
                observer(Noted(f"{why}: all records are compared"))
        if state.position:  # until all is compared the target is not at one with any rows
            state.position = None
            file.save()
        done = catch_up(
            a,
            b.sink,
            b.source,
            state.options,
            state.collections,
            file.save,
            allow_empty=allow_empty,
            folder=Path(state.work),
            observer=observer,
        )
        state.position = _end_of(a)
        return done, a.state()


def _end_of(source: Source) -> Position | None:
    return position_of(source.directory) if isinstance(source, DirectorySource) else None


def verify(file: StateFile, opening: Opening, *, observer: Observer = ignore) -> Standing:
    """Compare every record of the collections that are transferred, at the source as it was when the target was last
    brought up to it (where a working copy still has that) and at the target. A directory that was written to since is
    copied, and the target first brought up to just that. Raises ``VerificationFailed`` if any differs; that is written
    down, too."""
    with file.held():
        state = file.need()
        refuse_unless_copied(state, "verified")
        ends = opening(state)
        verify_now(file, ends, observer=observer)
        return standing(file.path, state, ends.current())


def verify_now(file: StateFile, ends: Ends, *, observer: Observer = ignore) -> None:
    """The same; the state file is held."""
    state, began = file.need(), time.monotonic()
    with closing(Target(ends)) as b, closing(ends.source(state.seen if ends.still else "")) as a:
        if state.position and a.state() != state.seen:
            _round(file, ends, a, False, observer)
        compared, alone = differences(state, a, b.source, observer)
        as_of = a.state()
    lines = [*alone, *(each.line() for each in compared if not each.equal)]
    records = sum(each.records[0] for each in compared)
    state.verified = Verified(now(), as_of, records, not lines, differences=lines[:NAMED])
    if not lines:
        state.seen = as_of  # the target is like that, wherever the last round had ended
    else:
        state.position = None  # the next round is to find all that differs
    file.note("verify", began, f"{records:,} records " + ("are equal" if not lines else f"differ: {lines[0]}"))
    file.save()
    if lines:
        raise VerificationFailed(
            lines[0] + (f" (and {len(lines) - 1} more collections)" if len(lines) > 1 else ""),
            hint="delete the collection at the target, then chromakeep transfer follow makes it anew"
            if any(each.unlike for each in compared)  # rounds look at records
            else "catch up and look again: chromakeep transfer follow, then chromakeep transfer verify",
        )


def differences(state: State, a: Source, b: Source, observer: Observer = ignore) -> tuple[list[Comparison], list[str]]:
    """The collections that both places have, compared; and a line for each that only one of them has."""
    pairs = chosen(a.definitions(), state.options)
    there = {each.place: each for each in b.definitions()}
    alone = [
        f"{described(definition)} is only at the source"
        for key, (definition, target) in pairs.items()
        if key not in state.collections or target.place not in there
    ]
    alone += [
        f"{known.shown} is only at the target: {key} is not at the source any more"
        for key, known in state.collections.items()
        if key not in pairs and known.place in there and not known.existed
    ]
    compared = [
        compare(
            a,
            definition,
            b,
            there[target.place],
            among=state.collections[key].existed,
            folder=Path(state.work),
            observer=observer,
        )
        for key, (definition, target) in pairs.items()
        if key in state.collections and target.place in there
    ]
    return compared, alone


def status(file: StateFile, opening: Opening | None = None) -> Standing:
    """Where the transfer stands. Changes nothing, and waits for nobody. Raises ``UsageError`` if there is none."""
    file.read()
    state = file.need()
    return standing(file.path, state, opening(state).current() if opening else "")


def cleanup(file: StateFile, *, force: bool = False) -> Standing:
    """Remove the working copies and the state file; never anything at the source or the target. ``force``: also of a
    transfer that is not over. Twice is once. Raises ``UsageError``."""
    with file.held():
        state = file.state
        if state is None:
            return gone(file.path)
        over = state.phase == "rolled-back" or (
            state.phase == "switched" and (state.switch is None or state.switch.step == "done")
        )
        if not over and not force:
            raise UsageError(
                f"the transfer is not over: it is {state.phase}",
                hint=f"go on with `{state.next_steps[0]}`, or give it up with --force",
            )
        shutil.rmtree(state.work, ignore_errors=True)
        file.remove()
        return gone(file.path)


def refuse_unless_copied(state: State, what: str) -> None:
    """Raises ``UsageError`` in any phase in which the target is not yet, or not any more, to be like the source."""
    if state.phase == "copied":
        return
    hints = {
        "starting": "go on with the copy: " + (state.next_steps or [""])[0],
        "switching": "go on with it, or take it back: chromakeep transfer rollback",
        "rolling-back": "finish that: chromakeep transfer rollback",
        "rolled-back": "undo them and go on with `transfer follow --discard`, or end this with `transfer cleanup`",
    }
    why = {
        "starting": "the copy is not finished",
        "switching": "a switch was interrupted",
        "switched": f"{state.target} is what is written to since {state.since}: catching up would undo that",
        "rolling-back": "a rollback was interrupted",
        "rolled-back": f"{state.target} may have writes of its own, from after the switch",
    }
    raise UsageError(
        f"this transfer cannot be {what}: {why[state.phase]}",
        hint=hints.get(state.phase, "compare the two with `chromakeep check A B`; end this with `transfer cleanup`"),
    )


def _told(last: LastRound, number: int) -> str:
    if last.quiet:
        return f"round {number}: nothing to do" + ("" if last.read else ", the source was not written to")
    parts = [f"{plural(last.upserted, 'record')} written, {last.deleted:,} deleted"]
    parts += [f"{plural(last.created, 'collection')} copied"] if last.created else []
    parts += [f"{plural(last.dropped, 'collection')} dropped"] if last.dropped else []
    return f"round {number}: {', '.join(parts)} in {last.seconds:.1f} s"


def _new(source: str, target: str, options: Options, work: Path) -> State:
    return State(
        version=VERSION,
        source=source,
        target=target,
        phase="starting",
        since=now(),
        next_steps=[],
        records=0,
        rounds=0,
        last_round=None,
        verified=None,
        switch=None,
        rolled_back=None,
        collections={},
        options=options,
        seen="",
        work=str(work),
        history=[],
    )


class Target:
    """The target, open for writing and, when it is asked for, for reading."""

    def __init__(self, ends: Ends) -> None:
        self.sink, self._read_back = ends.sink()
        self._source: Source | None = None
        if not isinstance(self.sink, Deletes):
            self.close()
            raise UsageError(
                "the target cannot be caught up with: it takes no changes while it is served",
                hint="transfer to a server (http://HOST:PORT); for any other place there is `chromakeep copy`",
            )

    @property
    def source(self) -> Source:
        """What is there."""
        self._source = self._source or self._read_back()
        return self._source

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        self.sink.close()
