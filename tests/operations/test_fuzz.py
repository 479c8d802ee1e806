"""Random lives of a repository: backups of a directory that changes, prunes, deaths; nothing shown is ever wrong."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import time
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from chromakeep.errors import RepositoryBusy, StoreUnavailable
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository
from chromakeep.store.base import Store
from chromakeep.store.memory import MemoryStore
from chromakeep.testing.faults import Died, FaultyStore
from operations.directories import everything

STEPS = 40


class Life:
    """One repository, one changing directory, and what every committed snapshot must give back."""

    def __init__(self, generations: list[Path], scratch: Path, seed: int, password: str | None) -> None:
        self.random, self.scratch, self.generations = random.Random(seed), scratch, generations
        self.store = MemoryStore()
        created = Repository.create(self.store, password=password)
        self.config, self.keys = created.config, created.keys
        self.source = scratch / "source"
        self.stages = [scratch / "stage0", scratch / "stage1"]
        self.held: dict[str, dict[str, bytes]] = {}
        self.jump()

    def open(self, store: Store | None = None) -> Repository:
        """As another process would: nothing is remembered."""
        return Repository(store or self.store, self.config, self.keys)

    # -- what may happen ----------------------------------------------------------------------------------------------

    def jump(self) -> None:
        """The directory becomes another generation: much changes, or what was comes back."""
        shutil.rmtree(self.source, ignore_errors=True)
        shutil.copytree(self.random.choice(self.generations), self.source)

    def change(self) -> None:
        """Some documents and vectors change; now and then every page of the database moves."""
        with closing(sqlite3.connect(self.source / "chroma.sqlite3", isolation_level=None)) as db:
            rows = [r for (r,) in db.execute("SELECT DISTINCT id FROM embedding_metadata WHERE key = 'text'")]
            for row in self.random.sample(rows, self.random.choice((1, 5, 60))):
                text = self.random.randbytes(self.random.randrange(400)).hex()
                db.execute("UPDATE embedding_metadata SET string_value = ? WHERE id = ? AND key = 'text'", (text, row))
            if self.random.random() < 0.15:
                db.execute("VACUUM")
        for path in sorted(self.source.glob("*/data_level0.bin")):
            header = struct.unpack("<iQQQQQQiIQQQdQ", path.with_name("header.bin").read_bytes())
            elements, stride, end, start = header[3:7]  # of its elements: how many, how long, where a vector lies
            with path.open("r+b") as f:
                for _ in range(self.random.randrange(6) if elements else 0):
                    word = start + self.random.randrange((end - start) // 4) * 4
                    f.seek(self.random.randrange(elements) * stride + word)
                    f.write(self.random.randbytes(2))  # low bits: still a number
        settled = time.time() - 60  # nobody is in the middle of writing
        for path in self.source.rglob("*"):
            if path.is_file():
                os.utime(path, (settled, settled))

    def backup(self, store: Store | None = None) -> None:
        stage = self.random.choice(self.stages)
        made = backup(self.source, self.open(store), stage=stage)
        self.held[made.snapshot] = everything(stage)

    def prune(self, store: Store | None = None) -> None:
        policy = self.random.choice(
            (Retention(last=1), Retention(last=3), Retention(hourly=1), Retention(within=timedelta(seconds=2)))
        )
        prune(self.open(store), policy, wait=0)

    def die(self) -> None:
        """A backup or a prune that dies, or whose store fails, somewhere."""
        n, after = self.random.randrange(1, 40), self.random.random() < 0.5
        kind = {"die_at": n} if self.random.random() < 0.6 else {"fail_at": n}
        act = self.random.choice((self.backup, self.prune))
        before = set(self.shown())
        with suppress(Died, StoreUnavailable, RepositoryBusy):
            act(FaultyStore(self.store, after=after, **kind))
        for snapshot in set(self.shown()) - before - set(self.held):
            found = [s for s in self.stages if s.exists()]
            self.held[snapshot] = self.matching(snapshot, found)

    def matching(self, snapshot: str, stages: list[Path]) -> dict[str, bytes]:
        """What a backup committed whose answer was lost: the content of the stage it was taken from."""
        out = self.scratch / "lost-answer"
        restore(self.open(), snapshot, out)
        content = everything(out)
        shutil.rmtree(out)
        assert content in [everything(s) for s in stages]
        return content

    def unlock(self) -> None:
        unlock(self.open(), everything=True)

    # -- what must hold -----------------------------------------------------------------------------------------------

    def shown(self) -> list[str]:
        return [s.id for s in self.open().snapshots()]

    def holds(self) -> None:
        report = check(self.open(), read_data=True)
        assert not report.problems, report.problems
        assert set(self.shown()) <= set(self.held)

    def restores(self) -> None:
        """Every snapshot shown, each over what the one before left, and one into nothing."""
        target = self.scratch / "target"
        for snapshot in self.shown():
            restore(self.open(), snapshot, target, replace=True, discard_old=True)
            assert everything(target) == self.held[snapshot]
        shutil.rmtree(target, ignore_errors=True)


@pytest.mark.parametrize(("seed", "password"), [(1, None), (2, None), (3, "secret")])
def test_whatever_happens_every_snapshot_shown_is_exact(
    generations: list[Path], tmp_path: Path, seed: int, password: str | None
) -> None:
    """After every step a full check finds nothing; now and then, and at the end, every snapshot shown restores exactly;
    and when all is over a prune leaves one snapshot and nothing that is not needed."""
    life = Life(generations, tmp_path, seed, password)
    acts = [life.backup] * 5 + [life.change] * 5 + [life.prune] * 2 + [life.die] * 2 + [life.jump, life.unlock]
    for step in range(STEPS):
        try:
            life.random.choice(acts)()
        except RepositoryBusy:
            life.unlock()  # a prune that died is in the way
        life.holds()
        if step % 13 == 12:
            life.restores()
    life.unlock()
    life.backup()
    prune(life.open(), Retention(last=1), wait=0)
    life.holds()
    life.restores()
    assert len(life.shown()) == 1 and not list(life.store.list("sessions/"))
    packs = {o.name for o in life.store.list("packs/")} | {o.name for o in life.store.list("meta/")}
    assert packs == {p.name for part in life.open().parts().values() for p in part.packs}
