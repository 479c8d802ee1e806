"""by changes: one round that carries over just what a directory's queue names since the last one.

Nothing else is read, at either place. What the rows cannot tell is read whole, of the collections that it concerns: new
and renamed ones, those that the target had before, and those of which Chroma has purged rows meanwhile.

Whether a row has had an effect depends on whether its id was there before, and that the target tells. So what it told
is written down before it is changed: a round that was killed is made again from the same position, by the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from chromakeep.batches import batch, encode
from chromakeep.changes import Position
from chromakeep.chroma.touched import Look, Looking, Outcome, Unfollowable
from chromakeep.events import Observer, ignore
from chromakeep.operations.catch_up import Round, catch_up
from chromakeep.operations.compare import described
from chromakeep.operations.pace import Pace
from chromakeep.operations.place import write_whole
from chromakeep.operations.reconcile import Deletes, fill
from chromakeep.operations.tracked import Key, Options, Tracked, chosen, shape_of, unlike
from chromakeep.records import Definition, Sink, Source

if TYPE_CHECKING:
    import pyarrow as pa

NOTES = "round.json"


@runtime_checkable
class Patches(Protocol):
    """A sink that tells which ids a collection has, and changes records in all but their vectors."""

    def present(self, definition: Definition, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are there; ``definition`` is the sink's own."""

    def patch(self, definition: Definition, records: pa.RecordBatch) -> list[str]:
        """Make records what these are in all but their vectors; the ids of those that it cannot."""


class Notes(msgspec.Struct):
    """Of a round that is under way: ``start`` is its position, ``there`` tells by collection which of the ids that it
    names the target had when it began."""

    start: Position
    there: dict[Key, dict[str, bool]] = {}


_NOTES = msgspec.json.Decoder(Notes)


class ByChanges:
    """What the rounds of one transfer need; ``save`` writes down what is tracked, and the position that it is given,
    in one step. ``folder``: a place for notes."""

    def __init__(
        self,
        sink: Sink,
        read_back: Callable[[], Source],
        options: Options,
        tracked: dict[Key, Tracked],
        save: Callable[[Position | None], None],
        folder: Path,
        *,
        allow_empty: bool = False,
        observer: Observer = ignore,
    ) -> None:
        self._sink, self._read_back, self._options, self._tracked = sink, read_back, options, tracked
        self._save, self._folder, self._allow_empty, self._observer = save, folder, allow_empty, observer
        self._pace = Pace(options.rate)

    def round(self, directory: Path, position: Position, whole: Source | None = None) -> Round:
        """Bring the target from a position to what ``directory`` is now, and write down how far that is.

        ``whole`` reads the same directory, which is at rest then. Raises ``Unfollowable`` if something must be read
        whole and there is none, before anything of that portion of the rows is written; and what sink and source do.
        """
        sink = self._sink
        if not isinstance(sink, Patches) or not isinstance(sink, Deletes):
            raise Unfollowable("the target takes no changes of single records")
        done, carried, there = Round(), set[Key](), None
        with Looking(directory, position, still=whole is not None) as looking:
            more = True
            while more:
                look = looking.look()
                more = look.more
                if there is None or whole is not None:
                    there = {each.place: each for each in sink.definitions()}
                pairs = chosen(look.definitions, self._options)
                reasons = self._reasons(look, pairs, there)
                reasons = {key: why for key, why in reasons.items() if key not in carried}
                if reasons and whole is None:
                    raise Unfollowable(next(iter(reasons.values())))
                if reasons:
                    assert whole is not None
                    self._whole(whole, set(reasons), done)
                    carried |= reasons.keys()
                notes = self._notes(look.before)
                for key, (definition, target) in pairs.items():
                    if key in carried or definition.id not in look.fields:
                        continue
                    self._asked(notes, key, there[target.place], look.ids(definition.id))
                    if not self._one(look, key, definition, target, there[target.place], notes, done):
                        if whole is None:
                            raise Unfollowable(f"{described(definition)}: the target is not what it was brought to")
                        self._whole(whole, {key}, done)
                        carried.add(key)
                self._save(look.position)
                (self._folder / NOTES).unlink(missing_ok=True)
        return done

    def _reasons(
        self,
        look: Look,
        pairs: dict[Key, tuple[Definition, Definition]],
        there: dict[tuple[str, str, str], Definition],
    ) -> dict[Key, str]:
        """The collections that rows do not tell all of, and why; also those that are gone."""
        found = {key: f"{key} is not at the source any more" for key in self._tracked if key not in pairs}
        for key, (definition, target) in pairs.items():
            known, at, name = self._tracked.get(key), there.get(target.place), described(definition)
            if known is None or not known.whole or known.replaces or known.intake is not None or at is None:
                found[key] = f"{name} is new"
            elif known.id != definition.id or known.shape != shape_of(definition) or unlike(definition, at):
                found[key] = f"{name} is another one, or has other settings"
            elif definition.id in look.purged:
                found[key] = f"{name}: Chroma has purged rows of its queue that were not read yet"
            elif known.existed and definition.id in look.rows:
                found[key] = f"the target had {known.shown} before, and records of its own"
        return found

    def _whole(self, source: Source, keys: set[Key], done: Round) -> None:
        """Read these collections whole."""
        some = catch_up(
            source,
            self._sink,
            self._read_back(),
            self._options,
            self._tracked,
            lambda: self._save(None),
            only=keys,
            allow_empty=self._allow_empty,
            folder=self._folder,
            observer=self._observer,
        )
        for name in ("read", "upserted", "deleted", "created", "dropped"):
            setattr(done, name, getattr(done, name) + getattr(some, name))
        done.told += some.told

    def _one(
        self,
        look: Look,
        key: Key,
        definition: Definition,
        target: Definition,
        there: Definition,
        notes: Notes,
        done: Round,
    ) -> bool:
        """Carry the rows of one collection over; False if they do not fit what the target has."""
        before = {id_.encode() for id_, had in notes.there[key].items() if had}
        outcome = look.outcome(definition.id, before)
        done.read += len(look.ids(definition.id))
        if outcome.doubtful:
            return False
        assert isinstance(self._sink, Patches) and isinstance(self._sink, Deletes)
        gone = [id_.decode() for id_ in outcome.gone if id_ in before]
        if gone:
            self._sink.delete(there, gone)
        done.deleted += len(gone)
        new, kept = _batches(outcome, definition.dimension)
        if len(new):
            name, pace = described(definition), self._pace
            intake = self._sink.collection(target, conflict="upsert")
            done.upserted += fill(intake, iter([(new, None)]), name=name, pace=pace, observer=self._observer)
        if len(kept):
            if self._sink.patch(there, kept):
                return False
            done.upserted += len(kept)
        self._tracked[key].records += sum(id_ not in before for id_ in outcome.new.ids) - len(gone)
        return True

    # -- what the target had before ----------------------------------------------------------------------------------

    def _notes(self, start: Position) -> Notes:
        """Those that a killed process left, if it began at the same position."""
        try:
            found = _NOTES.decode((self._folder / NOTES).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return Notes(start)
        return found if found.start == start else Notes(start)

    def _asked(self, notes: Notes, key: Key, there: Definition, ids: list[bytes]) -> None:
        """Ask the target for those of which the notes say nothing, and write down what it says."""
        known = notes.there.setdefault(key, {})
        unknown = [name for name in (id_.decode() for id_ in ids) if name not in known]
        if unknown:
            assert isinstance(self._sink, Patches)
            found = self._sink.present(there, unknown)
            known.update((name, name in found) for name in unknown)
            write_whole(self._folder / NOTES, msgspec.json.encode(notes))


def _batches(outcome: Outcome, dimension: int | None) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    made = []
    vectors: tuple[Any, Any] = outcome.vectors, [None] * len(outcome.kept.ids)
    for columns, rows in zip((outcome.new, outcome.kept), vectors, strict=True):
        texts = [encode(metadata) for metadata in columns.metadatas]
        ids = [id_.decode() for id_ in columns.ids]
        made.append(batch(ids, rows, columns.documents, columns.uris, texts, dimension))
    return made[0], made[1]
