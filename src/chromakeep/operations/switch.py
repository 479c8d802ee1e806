"""switch: from one place to the other for good, or back as if nothing had been; and the way back afterwards.

::

    stop writes -> drain -> last round -> verify -> | env file -> hook
                                                    |
       any failure: resume writes, as it was before | from here on the target is live, and never written to by us
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from chromakeep.errors import ChromakeepError, PartialFailure, SourceBusy, UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.doors import Doors
from chromakeep.operations.env_file import EnvFile
from chromakeep.operations.standing import Standing, standing
from chromakeep.operations.transfer import (
    Ends,
    Opening,
    Target,
    differences,
    one_round,
    refuse_unless_copied,
    verify_now,
)
from chromakeep.operations.transfer_state import RolledBack, State, StateFile, Switch, age, now
from chromakeep.operations.writes import LONGEST

Run = Callable[[Sequence[str]], int]
"""Runs a program and shows its output; its exit status."""


class How(msgspec.Struct, frozen=True):
    """How to switch. Commands are split as a shell would, and run without one; each may be run more than once.

    ``stop_writes`` and ``resume_writes``: end and begin again whatever writes to the source. ``drain``: seconds to wait
    after that. ``env_file``: where the application reads the address, as ``variable``; ``value``: what is written,
    the target's address if None. ``hook``: afterwards. ``recent``: seconds that the last round or verification may
    be ago. ``door``: URL of chromakeep's door before the source, at which writes are refused from then on; None: that
    of the source, if it is a server that has one and there is no ``stop_writes``.
    """

    stop_writes: str | None = None
    resume_writes: str | None = None
    drain: float = 2.0
    env_file: Path | None = None
    variable: str = "CHROMA_URL"
    value: str | None = None
    hook: str | None = None
    recent: float = 3600.0
    door: str | None = None


def switch(
    file: StateFile,
    opening: Opening,
    how: How,
    *,
    run: Run,
    doors: Doors | None = None,
    sleep: Callable[[float], None] = time.sleep,
    observer: Observer = ignore,
) -> Standing:
    """Switch. Until the env file is written (without one: until all is verified) any failure, a signal too, resumes
    writes and leaves everything as it was. A process that was killed in between leaves writes stopped: the same call
    goes on, ``rollback`` takes it back.

    Raises ``UsageError`` for what can be told before writes are stopped; ``VerificationFailed``, ``SourceBusy`` if
    the source was written to after that; ``PartialFailure`` if all is switched and the hook failed: the same call runs
    it again; and what the round raises.
    """
    with file.held():
        state = file.need()
        if state.phase == "switched" or _is_written(state):
            return _finish(file, how.hook, run, observer)
        if state.phase != "switching":
            refuse_unless_copied(state, "switched")
            _refuse_unless_recent(state, how.recent)
        doors = doors or Doors()
        plan = _planned(state, how, doors)
        env = _env(plan)
        line = env.line_for(plan.value) if env else None
        if env and not os.access(env.path.parent, os.W_OK):
            raise UsageError(f"{env.path.parent} may not be written to", hint="the env file is replaced in one step")
        if plan.stop_writes is None and plan.door is None:
            observer(
                Noted(
                    "there is neither --stop-writes nor --door: nobody else may write to the source now",
                    level="warning",
                )
            )
        began = time.monotonic()
        state.switch = plan
        file.enter("switching")
        try:
            _run(run, "--stop-writes", plan.stop_writes)
            if plan.door:
                doors.put(plan.door, allow=False, reason=f"moved to {state.target}"[:LONGEST])
                observer(Noted(f"{plan.door} refuses writes from now on"))
            sleep(how.drain)  # at a door, too: a client that went away may have left Chroma a write to do
            _bring_over(file, opening(state), observer)
            if env:
                plan.old_line, plan.had_file, plan.step = env.line(), env.exists(), "writing"
                file.save()
                env.put(line)
        except BaseException as error:
            if _is_written(state):  # a signal came when it was done
                raise
            _take_back(file, run, doors, began, error, observer)
            raise
        file.note("switch", began, f"switched to {state.target}")
        return _finish(file, None, run, observer)


def _bring_over(file: StateFile, ends: Ends, observer: Observer) -> None:
    one_round(file, ends, observer=observer)
    verify_now(file, ends, observer=observer)
    current = ends.current()
    if current and current != file.need().seen and not _is_still(file, ends, observer):
        raise SourceBusy(
            "the source was written to after its writers were stopped",
            hint="see that --stop-writes stops all of them; nothing was switched",
        )


def _is_still(file: StateFile, ends: Ends, observer: Observer) -> bool:
    """Whether a directory that was touched has nothing new in it all the same: Chroma persists and purges when it
    likes, and replays what it took when somebody reads."""
    if ends.directory is None or file.need().position is None:
        return False
    last = one_round(file, ends, observer=observer)
    return last.quiet and not last.read


def _finish(file: StateFile, hook: str | None, run: Run, observer: Observer) -> Standing:
    """All is brought over: say so, and run the hook if it has not succeeded yet."""
    state = file.need()
    done = state.switch
    assert done is not None
    if done.step != "done":
        done.hook = hook or done.hook
        if state.phase != "switched":
            done.step = "written"
            file.enter("switched")
        began = time.monotonic()
        try:
            _run(run, "--hook", done.hook)
        except ChromakeepError as error:
            raise PartialFailure(
                f"{state.target} is switched to, but {error.message}",
                hint="run it again with `chromakeep transfer switch`, or go back with `chromakeep transfer rollback`",
            ) from None
        done.step = "done"
        if done.hook:
            file.note("hook", began, "done")
        file.save()
    else:
        observer(Noted("it is switched already"))
    return standing(file.path, state)


def _take_back(file: StateFile, run: Run, doors: Doors, began: float, error: BaseException, observer: Observer) -> None:
    """Nothing was switched: resume writes."""
    state = file.need()
    plan = state.switch
    assert plan is not None
    why = error.message if isinstance(error, ChromakeepError) else type(error).__name__
    try:
        if plan.door:
            doors.put(plan.door, allow=True)
        _run(run, "--resume-writes", plan.resume_writes)
    except ChromakeepError as second:
        file.note("switch", began, f"failed: {why}; {second.message}")
        file.save()
        raise ChromakeepError(
            f"{why}; and then {second.message}: writes may still be stopped",
            hint="begin them again by hand, then: chromakeep transfer rollback",
        ) from error
    if plan.stop_writes and not plan.resume_writes:
        observer(Noted("there is no --resume-writes: begin writes again by hand", level="warning"))
    state.switch = None
    file.note("switch", began, f"failed, and taken back: {why}")
    file.enter("copied")
    observer(Noted(f"nothing was switched: {state.source} is in use as before", level="warning"))


def rollback(
    file: StateFile,
    opening: Opening,
    *,
    run: Run,
    resume_writes: str | None = None,
    hook: str | None = None,
    doors: Doors | None = None,
    observer: Observer = ignore,
) -> Standing:
    """Put the old line back into the env file, allow and resume writes at the source, run ``hook``; then tell how many
    records the two places differ in, for what was written to the target since is not carried back.

    ``resume_writes``: instead of the one that the switch was given. Of a switch that was interrupted before its env
    file was written it only resumes writes, and the transfer can be followed again. Raises ``UsageError`` if nothing
    was switched, and ``ChromakeepError`` if a command fails: the same call goes on.
    """
    with file.held():
        state = file.need()
        if state.phase in ("starting", "copied"):
            raise UsageError(
                "nothing was switched: there is nothing to roll back", hint="to give up: transfer cleanup --force"
            )
        if state.phase != "rolled-back":
            began, plan = time.monotonic(), state.switch
            assert plan is not None
            live = state.phase in ("switched", "rolling-back") or _is_written(state)
            if live:
                file.enter("rolling-back")
                _put_back(plan, observer)
            if plan.door:
                (doors or Doors()).put(plan.door, allow=True)
            _run(run, "--resume-writes", resume_writes or plan.resume_writes)
            _run(run, "--hook", hook)
            if not live:
                state.switch = None
                file.note("rollback", began, "the interrupted switch was taken back")
                file.enter("copied")
                return standing(file.path, state)
            state.rolled_back = RolledBack(now())
            file.note("rollback", began, f"back at {state.source}")
            file.enter("rolled-back")
        _count(file, opening(state), observer)
        return standing(file.path, state)


def _put_back(plan: Switch, observer: Observer) -> None:
    env = _env(plan)
    if env is None:
        return
    if env.line() not in (plan.old_line, env.line_for(plan.value)):
        observer(Noted(f"{env.path}: {env.name} was changed after the switch; the line from before it is put back"))
    env.put(plan.old_line)
    if not plan.had_file:
        env.remove_if_empty()


def _count(file: StateFile, ends: Ends, observer: Observer) -> None:
    """How far the places are apart; that it cannot be told is no failure of what is done already."""
    state = file.need()
    assert state.rolled_back is not None
    told = [f"what was written to {state.target} after the switch is not carried back"]
    try:
        with closing(Target(ends)) as b, closing(ends.source("")) as a:
            compared, alone = differences(state, a, b.source, observer)
    except ChromakeepError as error:
        told.append(f"how many records differ cannot be told: {error.message}")
    else:
        state.rolled_back.differing = sum(each.missing + each.extra + each.differing for each in compared)
        told += [*alone, *(each.line() for each in compared if not each.equal)]
    state.rolled_back.told = told
    file.save()


def _planned(state: State, how: How, doors: Doors) -> Switch:
    for name, text in (
        ("--stop-writes", how.stop_writes),
        ("--resume-writes", how.resume_writes),
        ("--hook", how.hook),
    ):
        _words(name, text)
    before = state.switch  # of one that was interrupted
    plan = Switch(
        now(),
        "stopping",
        str(how.env_file.absolute()) if how.env_file else None,
        how.variable,
        how.value or state.target,
        how.stop_writes,
        how.resume_writes,
        how.hook,
    )
    if before is not None:
        if plan.env_file is None:
            plan.env_file, plan.variable, plan.value = before.env_file, before.variable, how.value or before.value
        plan.stop_writes = plan.stop_writes or before.stop_writes
        plan.resume_writes = plan.resume_writes or before.resume_writes
        plan.hook = plan.hook or before.hook
    plan.door = how.door or (before.door if before else None)
    if plan.door is None and plan.stop_writes is None:
        plan.door = doors.find(state.source)
    return plan


def _env(plan: Switch) -> EnvFile | None:
    return EnvFile(Path(plan.env_file), plan.variable) if plan.env_file else None


def _is_written(state: State) -> bool:
    """Whether a switch was interrupted just behind the point at which the application may have found the new place."""
    plan = state.switch
    if state.phase != "switching" or plan is None or plan.step != "writing":
        return False
    env = _env(plan)
    return env is not None and env.line() == env.line_for(plan.value)


def _refuse_unless_recent(state: State, recent: float) -> None:
    last, verified = state.last_round, state.verified
    if verified is not None and not verified.equal and (last is None or last.at < verified.at):
        raise UsageError(
            "the last verification found differences",
            hint="run `chromakeep transfer follow`, then `chromakeep transfer verify`",
        )
    looked = [each.at for each in (last, verified) if each is not None]
    if not looked or age(max(looked)) > recent:
        when = f"the last look was {age(max(looked)) / 60:,.0f} minutes ago" if looked else "nothing was caught up yet"
        raise UsageError(
            f"{when}: writes would have to wait for all that changed since",
            hint="run `chromakeep transfer follow --until-quiet` first",
        )


def _words(name: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}", hint="it is split as a shell would") from None
    if not words:
        raise UsageError(f"{name} is empty", hint="leave it out where there is nothing to run")
    return words


def _run(run: Run, name: str, text: str | None) -> None:
    """Run a command, if there is one. Raises ``ChromakeepError`` unless it ends with status 0."""
    words = _words(name, text)
    if words is None:
        return
    try:
        status = run(words)
    except OSError as error:
        raise ChromakeepError(f"{name}: {words[0]}: {(error.strerror or str(error)).lower()}") from None
    if status:
        raise ChromakeepError(f"{name}: `{text}` ended with status {status}")
