"""A state machine against a plain dict: whatever was acknowledged, in whatever order, comes back from a lost disk.

Hypothesis chooses the requests (several tenants and databases; collections dropped, renamed and made again under the
same name; adds, upserts, updates, deletes by id and by filter) and the moments at which all processes are killed and
the disk is thrown away. ``--durability sync``: after each loss what the bucket gives is compared with the dict, whole.
``MACHINE_EXAMPLES`` (4, and 40 in ``make stress``) is how many such lives it leads.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from chromakeep.chroma.client import ChromaClient
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from run.running import eventually, kill, process, ready

Record = tuple[float, str | None, dict[str, Any] | None]
Place = tuple[str, str]  # tenant and database

TENANTS = st.sampled_from(["default_tenant", "other", "thïrd"])
DATABASES = st.sampled_from(["default_database", "second"])
NAMES = st.sampled_from(["one", "two", "three"])
IDS = st.lists(st.sampled_from([f"i{n}" for n in range(12)] + ["ü/ø", "i" * 100]), min_size=1, max_size=6, unique=True)
VALUES = st.integers(1, 10**6).map(float)
FIRST: Place = ("default_tenant", "default_database")


class Losses(RuleBasedStateMachine):
    """One repository; a run on a disk that does not last."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="chromakeep-machine-"))
        self.data, self.keep = self.base / "data", self.base / "repository"
        self.keep.mkdir()
        Repository.create(LocalStore(self.keep))
        self.model: dict[Place, dict[str, dict[str, Record]]] = {FIRST: {}}
        self.paths: dict[tuple[Place, str], str] = {}
        self.stack = ExitStack()

    @initialize()
    def begin(self) -> None:
        self.run, port, log = self.stack.enter_context(
            process(self.data, self.keep, every=3600, durability="sync", more=("--hold-writes", "30s"))
        )
        eventually(partial(ready, self.run, port, log), "the server")
        self.client = ChromaClient("127.0.0.1", port, timeout=60)

    # -- requests ---------------------------------------------------------------------------------------------------

    @rule(tenant=TENANTS, database=DATABASES)
    def make_database(self, tenant: str, database: str) -> None:
        if (tenant, database) in self.model:
            return
        if tenant not in {t for t, _ in self.model}:
            self.client.request("POST", "/tenants", {"name": tenant})
        self.client.request("POST", f"/tenants/{tenant_(tenant)}/databases", {"name": database})
        self.model[tenant, database] = {}

    @rule(data=st.data(), name=NAMES, threshold=st.sampled_from([3, 10, 1000]))
    def create(self, data: st.DataObject, name: str, threshold: int) -> None:
        place = data.draw(st.sampled_from(sorted(self.model)))
        if name in self.model[place]:
            return
        body = {"name": name, "configuration": {"hnsw": {"sync_threshold": threshold, "batch_size": 2}}}
        made = self.client.request("POST", f"{base(place)}/collections", body)
        self.model[place][name] = {}
        self.paths[place, name] = f"{base(place)}/collections/{made['id']}"

    def _some(self, data: st.DataObject) -> tuple[Place, str]:
        return data.draw(st.sampled_from(sorted(self.paths)))

    @precondition(lambda self: self.paths)
    @rule(data=st.data(), again=st.booleans())
    def drop(self, data: st.DataObject, again: bool) -> None:
        place, name = self._some(data)
        self.client.request("DELETE", f"{base(place)}/collections/{name}")
        del self.model[place][name], self.paths[place, name]
        if again:
            made = self.client.request("POST", f"{base(place)}/collections", {"name": name})
            self.model[place][name] = {}
            self.paths[place, name] = f"{base(place)}/collections/{made['id']}"

    @precondition(lambda self: self.paths)
    @rule(data=st.data(), new=st.sampled_from(["one", "four", "five"]))
    def rename(self, data: st.DataObject, new: str) -> None:
        place, name = self._some(data)
        if new in self.model[place]:
            return
        self.client.request("PUT", self.paths[place, name], {"new_name": new})
        self.model[place][new] = self.model[place].pop(name)
        self.paths[place, new] = self.paths.pop((place, name))

    @precondition(lambda self: self.paths)
    @rule(
        data=st.data(), kind=st.sampled_from(["add", "upsert", "update"]), ids=IDS, value=VALUES,
        document=st.one_of(st.none(), st.text(max_size=20).filter(lambda t: t.isprintable())), n=st.integers(0, 9),
    )  # fmt: skip
    def write(self, data: st.DataObject, kind: str, ids: list[str], value: float, document: Any, n: int) -> None:
        place, name = self._some(data)
        records = self.model[place][name]
        body = {
            "ids": ids,
            "embeddings": [[value + at, 1, 2] for at in range(len(ids))],
            "documents": [document if document is None else f"{document}{at}" for at in range(len(ids))],
            "metadatas": [{"n": n} for _ in ids],
        }
        self.client.request("POST", f"{self.paths[place, name]}/{kind}", body)
        for at, id_ in enumerate(ids):
            text = body["documents"][at]
            if kind == "upsert" or (id_ in records) == (kind == "update"):
                kept = records[id_][1] if text is None and id_ in records else text  # none given: as it was
                records[id_] = (value + at, kept, {"n": n})

    @precondition(lambda self: self.paths)
    @rule(data=st.data(), ids=IDS)
    def delete(self, data: st.DataObject, ids: list[str]) -> None:
        place, name = self._some(data)
        self.client.request("POST", f"{self.paths[place, name]}/delete", {"ids": ids})
        for id_ in ids:
            self.model[place][name].pop(id_, None)

    @precondition(lambda self: self.paths)
    @rule(data=st.data(), n=st.integers(0, 9))
    def delete_where(self, data: st.DataObject, n: int) -> None:
        place, name = self._some(data)
        self.client.request("POST", f"{self.paths[place, name]}/delete", {"where": {"n": {"$lt": n}}})
        records = self.model[place][name]
        self.model[place][name] = {i: r for i, r in records.items() if (r[2] or {})["n"] >= n}

    # -- losses -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.paths)
    @rule()
    def lose(self) -> None:
        kill(self.run, self.data)
        self.stack.close()
        shutil.rmtree(self.data)
        shutil.rmtree(self.base / ".data.chromakeep", ignore_errors=True)
        self.begin()
        self.compare()

    def compare(self) -> None:
        """What is served is the dict, whole: databases, collections by id and name, records."""
        found: dict[Place, dict[str, dict[str, Record]]] = {}
        paths: dict[tuple[Place, str], str] = {}
        for tenant in sorted({t for t, _ in self.model}):
            for database in self.client.request("GET", f"/tenants/{tenant_(tenant)}/databases"):
                place = tenant, database["name"]
                found[place] = {}
                for one in self.client.request("GET", f"{base(place)}/collections"):
                    path = paths[place, one["name"]] = f"{base(place)}/collections/{one['id']}"
                    body = {"include": ["embeddings", "documents", "metadatas"]}
                    got = self.client.request("POST", f"{path}/get", body)
                    rows = zip(got["ids"], got["embeddings"], got["documents"], got["metadatas"], strict=True)
                    found[place][one["name"]] = {i: (float(v[0]), d, m) for i, v, d, m in rows}
        assert found == self.model
        assert paths == self.paths

    def teardown(self) -> None:
        try:
            if self.paths:
                self.lose()
        finally:
            kill(self.run, self.data)
            self.stack.close()
            shutil.rmtree(self.base, ignore_errors=True)


def tenant_(name: str) -> str:
    """As part of a path."""
    return quote(name, safe="")


def base(place: Place) -> str:
    """The path of a database."""
    return f"/tenants/{tenant_(place[0])}/databases/{place[1]}"


TestLosses = Losses.TestCase
TestLosses.settings = settings(
    max_examples=int(os.environ.get("MACHINE_EXAMPLES", "4")),
    stateful_step_count=30,
    deadline=None,
    # What a server answers depends on when it is asked: a failure is shown as it came, not made smaller.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
