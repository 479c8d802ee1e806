"""Standing: where a transfer stands, as every command about it answers."""

from __future__ import annotations

from pathlib import Path

import msgspec

from chromakeep.operations.compare import described
from chromakeep.operations.transfer_state import LastRound, RolledBack, State, Switch, Verified, now
from chromakeep.records import Definition


class Moved(msgspec.Struct, frozen=True):
    """One collection: its name at the source and at the target, its records at the source when it was last read.
    ``existed``: the target had it before."""

    name: str
    target: str
    records: int
    existed: bool


class Standing(msgspec.Struct, frozen=True):
    """``phase``: one of ``transfer_state.PHASES``, or ``gone`` after a cleanup. ``changed``: whether the source was
    written to since the target was brought up to it; None where only reading it can tell. ``verification``: ``none``,
    ``equal``, ``different``, or ``stale`` when either place was written to since. ``told``: what a person should know,
    one line each."""

    state: str
    source: str
    target: str
    phase: str
    since: str
    collections: tuple[Moved, ...]
    records: int
    rounds: int
    last_round: LastRound | None
    changed: bool | None
    verification: str
    verified: Verified | None
    switch: Switch | None
    rolled_back: RolledBack | None
    told: tuple[str, ...]
    next_steps: tuple[str, ...]


def standing(path: Path, state: State, current: str = "") -> Standing:
    """Of this state. ``current``: the state that the source is in now, as far as that can be told without reading."""
    changed = current != state.seen if current and state.seen and state.phase in ("copied", "switching") else None
    told = list(state.last_round.told) if state.last_round else []
    if changed and state.phase == "copied":
        told.append("the source was written to since the target was brought up to it")
    if state.phase == "switching":
        told.append("a switch was interrupted: writes may be stopped")
    if state.phase == "switched" and state.switch and state.switch.step != "done":
        told.append("the hook has not succeeded yet")
    told += state.rolled_back.told if state.rolled_back else []
    return Standing(
        str(path),
        state.source,
        state.target,
        state.phase,
        state.since,
        tuple(Moved(_shown(key), each.shown, each.records, each.existed) for key, each in state.collections.items()),
        state.records,
        state.rounds,
        state.last_round,
        changed,
        _verification(state, changed),
        state.verified,
        state.switch,
        state.rolled_back,
        tuple(told),
        tuple(state.next_steps),
    )


def gone(path: Path) -> Standing:
    """There is nothing any more."""
    return Standing(str(path), "", "", "gone", now(), (), 0, 0, None, None, "none", None, None, None, (), ())


def _verification(state: State, changed: bool | None) -> str:
    verified = state.verified
    if verified is None:
        return "none"
    if verified.stale or changed or verified.as_of != state.seen:
        return "stale"
    return "equal" if verified.equal else "different"


def _shown(key: str) -> str:
    tenant, database, name = key.split("/", 2)
    return described(Definition(name, tenant=tenant, database=database))
