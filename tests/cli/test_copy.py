"""``copy``, ``export``, ``import`` and ``check A B`` as a user runs them, between real places."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest

from chromakeep.chroma.client import Ref
from chromakeep.chroma.server import ChromaServer
from operations.namespaces import on_small_disk
from servers import middle as between
from servers.middle import Answer, Asked, Middle

if TYPE_CHECKING:
    from cli.conftest import Cli

MORE = """
import sys, chromadb
client = chromadb.PersistentClient(sys.argv[1])
client.get_collection("books").add(ids=["late"], embeddings=[[0.5] * 384], documents=["came late"])
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """An empty server."""
    with ChromaServer(tmp_path_factory.mktemp("server"), env=os.environ) as running:
        yield running


def url(server: ChromaServer, place: str = "") -> str:
    return f"http://127.0.0.1:{server.client.port}{place}"


def left(cli: Cli) -> list[Path]:
    """What copies have left for a later one, and hidden files beside what they wrote."""
    return [*cli.cwd.rglob("copy-*"), *cli.cwd.glob(".*.partial"), *cli.cwd.glob(".*.copying")]


def test_round_all_places_and_back(cli: Cli, chroma: Path, kept: Path, server: ChromaServer) -> None:
    """Directory, Parquet, server, JSONL, repository, directory: each verified, and the last equal to the first."""
    way = ["chroma", "a.parquet/", url(server, "/acme/prod"), "b.jsonl.zst", "c.jsonl", "d"]
    for source, target in itertools.pairwise(way):
        home = () if "http" in target else ("--tenant", "default_tenant", "--database", "default_database")
        done = cli.json("copy", source, target, "--verify", *home)
        assert (done["records"], done["verified"]) == (450, True)
    found = cli.json("check", "chroma", "d", "--queries", "20")
    assert [c["records"] for c in found["collections"]] == [[300, 300], [150, 150]]
    assert all(share > 0.9 for each in found["recall"] for share in each["shares"])
    cli.json("copy", "keep@latest", "e.parquet/", "--verify")
    assert cli.json("check", "e.parquet/", url(server, "/acme/prod"))["ok"]
    assert not left(cli)


def test_what_differs_is_told_by_id(cli: Cli, chroma: Path) -> None:
    """One record more at one side, one collection only at the other: status 14."""
    shutil.copytree(chroma, cli.cwd / "other")
    subprocess.run([sys.executable, "-c", MORE, cli.cwd / "other"], check=True, timeout=60)
    found = cli.json("check", "chroma", "other", status=14)
    books = next(c for c in found["collections"] if c["name"] == "books")
    assert (books["missing"], books["extra"], books["extra_ids"]) == (0, 1, ["late"])
    assert "1 only in the second (late)" in cli("check", "chroma", "other").stdout
    cli.json("export", "chroma", "laws.parquet", "--collections", "laws")
    found = cli.json("check", "chroma", "laws.parquet", status=14)
    assert (found["only_first"], found["collections"][0]["missing"]) == (["books"], 0)
    assert cli.json("check", "chroma", "laws.parquet", "--collections", "laws")["ok"]


DEFINED = """
import sys, chromadb
client = chromadb.PersistentClient(sys.argv[1])
settings = dict(embedding_function=None, metadata={"of": sys.argv[3]})
hnsw = {"space": sys.argv[2], "ef_search": int(sys.argv[4])}
client.create_collection("books", configuration={"hnsw": hnsw}, **settings).add(
    ids=[str(n) for n in range(40)], embeddings=[[n % 7, n] for n in range(40)]
)
"""


def test_a_collection_of_another_kind_is_told(cli: Cli) -> None:
    """With the same records, too: by its space and its metadata searches and readers go. How its index is tuned is told
    and no difference."""
    for name, *kind in (("a", "l2", "us", "100"), ("b", "ip", "you", "100"), ("c", "l2", "us", "77")):
        subprocess.run([sys.executable, "-c", DEFINED, cli.cwd / name, *kind], check=True, timeout=60)
    (found,) = cli.json("check", "a", "b", status=14)["collections"]
    assert cli.json("check", "b", "a", "--queries", "5", status=14)["recall"][0]["shares"] == [1.0, 1.0]
    assert found["unlike"] == ["the space is l2 and ip", "the metadata of is us and you"]
    assert (found["missing"], found["extra"], found["differing"]) == (0, 0, 0)
    (found,) = cli.json("check", "a", "c")["collections"]
    assert (found["unlike"], found["tuned"]) == ([], ["the ef_search is 100 and 77"])
    assert "the ef_search is 100 and 77" in cli("check", "a", "c").stdout


def test_a_killed_copy_goes_on(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """SIGKILL in the middle, twice; then the same command ends what was begun, and every record is compared."""
    forward, held, over, writes = (
        between.forwarder(url(server)),
        threading.Event(),
        threading.Event(),
        itertools.count(),
    )

    def answer(asked: Asked) -> Answer:
        """Only the first collection is written before the copy has been killed."""
        if asked.verb in ("add", "upsert") and not over.is_set() and next(writes):
            held.set()
            over.wait(200)
            return between.told(503, "nobody waits for it")
        return forward(asked)

    middle, begun = Middle(answer), ""
    command = ("copy", "chroma", middle.url, "--verify")
    try:
        for _ in range(2):
            held.clear()
            child = subprocess.Popen(cli.command(*command), cwd=cli.cwd, env=cli.environ, stdout=subprocess.DEVNULL)
            assert held.wait(120) and child.poll() is None
            child.send_signal(signal.SIGKILL)
            child.wait()
            (saved,) = cli.cwd.rglob("checkpoint.json")
            begun = begun or json.loads(saved.read_text())["begun"]
        over.set()
        done = cli.json(*command)
    finally:
        over.set()
        middle.stop()
    assert (done["resumed"], done["verified"], done["records"]) == (True, True, 450)
    assert done["as_of"] == begun
    names = [ref.name for ref in server.client.list_collections()]
    assert sorted(names) == ["books", "laws"]
    written = [asked.path.split("/")[-2] for asked in middle.asked if asked.verb in ("add", "upsert")]
    assert len(written) == 4 and len(set(written)) == 2  # the first collection once, the second one three times
    assert not left(cli)


def test_a_place_is_not_copied_onto_itself(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """It would double all there is under other names. Under another name, or elsewhere in it, it may be copied."""
    (cli.cwd / "link").symlink_to("chroma")
    local = url(server).replace("127.0.0.1", "localhost")
    cli.json("copy", "chroma", url(server), "--collections", "laws")
    cli.json("export", "chroma", "laws.jsonl", "--collections", "laws")
    for source, target in (("chroma", "./link/"), (url(server), local), ("laws.jsonl", "./laws.jsonl")):
        for conflict in ("fail", "upsert", "replace"):
            assert "onto itself" in cli.fails(2, "copy", source, target, "--on-conflict", conflict)
    assert sorted(path.name for path in cli.cwd.glob("[!.]*.old-*")) == []
    assert [ref.name for ref in server.client.list_collections()] == ["laws"]
    assert cli.json("copy", url(server), local, "--rename", "laws=rules")["records"] == 150
    assert cli.json("copy", url(server), url(server, "/default_tenant/other"))["records"] == 300
    assert "onto itself" in cli.fails(
        2, "copy", url(server), local, "--rename", "laws=codes", "--collections", "laws,rules"
    )


def test_a_name_that_a_server_does_not_take(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """A mistake in the command, of which the message says where it is."""
    for place, given in (("/default_tenant/ab", ()), ("", ("--database", "ab"))):
        told = cli.fails(2, "copy", "chroma", url(server, place), *given)
        assert f"{url(server)}/default_tenant/ab: " in told and "3 to 512" in told
    assert f"{url(server)}/ab: " in cli.fails(2, "copy", "chroma", url(server), "--tenant", "ab")
    assert f"{url(server)}/default_tenant/ab: " in cli.fails(2, "copy", url(server, "/default_tenant/ab"), "x.jsonl")


def test_into_a_directory_that_is_there(cli: Cli, chroma: Path) -> None:
    """It is copied, filled beside and exchanged; the old one is kept, and nothing of it is changed when the copy may
    not be made."""
    cli.json("export", "chroma", "laws.parquet", "--collections", "laws")
    before = sorted((p.name, p.stat().st_size) for p in chroma.rglob("*"))
    assert "already" in cli.fails(2, "import", "laws.parquet", "chroma")
    assert sorted((p.name, p.stat().st_size) for p in chroma.rglob("*")) == before
    done = cli.json("import", "laws.parquet", "chroma", "--rename", "laws=codes", "--verify")
    assert done["collections"][0]["target"] == "codes"
    (old,) = cli.cwd.glob("chroma.old-*")
    assert sorted((p.name, p.stat().st_size) for p in old.rglob("*")) == before
    shown = cli.json("show", "chroma")
    assert {c["name"]: c["count"] for c in shown["collections"]} == {"books": 300, "laws": 150, "codes": 150}


def test_a_server_on_the_directory_is_told(cli: Cli, chroma: Path) -> None:
    """Whoever has it open for writing would go on writing into the old files."""
    cli.json("export", "chroma", "laws.parquet", "--collections", "laws")
    with ChromaServer(chroma, env=os.environ) as running:
        running.client.count(running.client.list_collections()[0])
        assert "has it open for writing" in cli.fails(2, "import", "laws.parquet", "chroma", "--rename", "laws=x-y")
    assert not list(cli.cwd.glob("chroma.old-*"))


def test_only_some_of_it_and_elsewhere(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """--where, --rename, --tenant, --database; and a second copy by each --on-conflict."""
    place = ("--tenant", "acme", "--database", "prod", "--collections", "books", "--rename", "books=novels")
    some = cli.json("copy", "chroma", url(server), *place, "--where", '{"part": {"$lt": 3}}', "--verify")
    assert 0 < some["records"] < 300
    (ref,) = server.client.list_collections("acme", "prod")
    assert (ref.name, server.client.count(ref)) == ("novels", some["records"])
    for conflict, count in (("skip", 300), ("upsert", 300), ("replace", 300)):
        cli.json("copy", "chroma", url(server), *place, "--on-conflict", conflict, "--verify")
        found = {r.name: r for r in server.client.list_collections("acme", "prod")}
        assert server.client.count(found["novels"]) == count
    assert [name.startswith("novels.old-") for name in sorted(found)] == [False, True]
    assert "collection acme/prod/novels already" in cli.fails(2, "copy", "chroma", url(server), *place)


def test_a_dry_run_leaves_nothing(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """It counts, and tells what exists."""
    done = cli.json("copy", "chroma", url(server), "--dry-run")
    assert (done["records"], done["dry_run"], done["bytes"] > 450 * 384 * 4) == (450, True, True)
    assert server.client.list_collections() == []
    told = cli("copy", "chroma", "x", "--dry-run", "--where", '{"part": {"$lt": 3}}', "--collections", "books").stdout
    some = cli.json("copy", "chroma", "y.jsonl", "--where", '{"part": {"$lt": 3}}', "--collections", "books")["records"]
    assert 0 < some < 300
    assert f"would copy {some} records, about" in told and "all of them were read; reading takes about" in told
    assert not (cli.cwd / "x").exists()
    assert not left(cli)


def test_what_is_refused_at_once_is_refused_in_a_dry_run(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """With the words and the status of the copy, of all collections; and nothing is begun."""
    heads = [json.dumps({"collection": {"name": name, "dimension": 1}}) for name in ("first", "ab", "-")]
    record = json.dumps({"id": "r", "embedding": [1]})
    (cli.cwd / "three.jsonl").write_text("\n".join(line for head in heads for line in (head, record)))
    (cli.cwd / "none.jsonl").write_text("")
    cli.json("export", "chroma", "laws.parquet", "--collections", "laws")
    cli.json("export", "chroma", "both.jsonl")
    before = sorted(cli.cwd.iterdir())
    names = "'ab' cannot be the name of a collection at a server; '-' cannot"
    assert names in cli.fails(2, "copy", "three.jsonl", url(server))
    for status, told, arguments in (
        (2, names, ("copy", "three.jsonl", url(server))),
        (2, names, ("copy", "three.jsonl", "x")),
        (2, "laws.parquet exists", ("copy", "chroma", "laws.parquet", "--collections", "laws", "--rename", "laws=b")),
        (2, "cannot be merged into", ("copy", "chroma", "x.jsonl", "--on-conflict", "skip")),
        (2, "collection books already; the target has a collection laws", ("copy", "chroma", "both.jsonl")),
        (2, "no such file or directory", ("copy", "chroma", "nowhere/x.parquet/")),
        (15, "has no collection", ("copy", "none.jsonl", "x.jsonl")),
    ):
        assert told in cli.fails(status, *arguments, "--dry-run")
    assert server.client.list_collections() == []
    assert sorted(cli.cwd.iterdir()) == before


def test_a_source_without_a_collection_is_no_file(cli: Cli) -> None:
    """Whoever goes on with the file would find none."""
    subprocess.run(
        [sys.executable, "-c", "import chromadb; chromadb.PersistentClient('none')"], cwd=cli.cwd, check=True
    )
    for name in ("x.jsonl", "x.parquet", "y.parquet/"):
        assert f"none has no collection: {name} is not written" in cli.fails(15, "copy", "none", name)
    assert cli.json("copy", "none", "also")["records"] == 0
    assert not left(cli)


@pytest.mark.parametrize("size", [2_500_000, 4_000_000])
def test_a_full_disk_is_told_and_gone_on_with(cli: Cli, size: int) -> None:
    """While Chroma fills a directory: its own words do not tell why, and what is there is no loss."""
    small = cli.cwd / "small"
    small.mkdir()
    sample = Path(__file__).parents[2] / "sample" / "books.parquet"
    pq.write_table(pq.read_table(sample, columns=["id", "embedding", "document"]), cli.cwd / "books.parquet")
    import_ = ("import", str(cli.cwd / "books.parquet"), "small/chroma", "--work", "small/work")

    def fill() -> None:
        assert "there is no room to go on" in cli.fails(17, *import_)
        subprocess.run(["mount", "-o", "remount,size=100m", small], check=True)
        assert (done := cli.json(*import_))["records"] == 1424
        assert done["resumed"]
        assert cli.json("check", import_[1], "small/chroma")["ok"]

    on_small_disk(small, size, fill)


def test_through_a_pipe(cli: Cli, chroma: Path) -> None:
    """``-`` is standard output and input; the summary goes to stderr."""
    export = subprocess.run(
        cli.command("export", "chroma", "-", "--collections", "laws"),
        cwd=cli.cwd, env=cli.environ, capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    lines = export.stdout.splitlines()
    assert len(lines) == 151
    assert json.loads(lines[0])["collection"]["name"] == "laws"
    assert b"copied 150 records" in export.stderr
    subprocess.run(
        cli.command("import", "-", "out.parquet"), cwd=cli.cwd, env=cli.environ, input=export.stdout, check=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert cli.json("check", "out.parquet", "chroma", "--collections", "laws")["ok"]


def test_what_came_through_a_pipe_is_compared_by_id(cli: Cli) -> None:
    """A stream comes once: what is added to records that were there is compared all the same."""
    collection = json.dumps({"collection": {"name": "few", "dimension": 1}})
    records = [json.dumps({"id": f"id-{n}", "embedding": [n], "document": "text"}) for n in range(3)]

    def piped(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            cli.command("copy", "-", "there", "--verify", *arguments), cwd=cli.cwd, env=cli.environ, timeout=60,
            input="\n".join([collection, *records]), capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert (done := piped()).returncode == 0, done.stderr
    records = [records[0].replace("text", "another"), json.dumps({"id": "new", "embedding": [7]})]
    assert (done := piped("--on-conflict", "upsert")).returncode == 0, done.stderr
    assert cli.json("check", "there", "there")["collections"][0]["records"] == [4, 4]
    assert not left(cli)


def test_a_bad_record_is_not_dropped(cli: Cli, chroma: Path, server: ChromaServer) -> None:
    """One bad line in thirty: an error that names it, a status that says so, and nothing published. (Other tools write
    20 of 30 and end with 0.)"""
    lines = [json.dumps({"id": f"r{n}", "embedding": [n, 1.0], "metadata": {"n": n}}) for n in range(30)]
    lines[17] = lines[17].replace('{"n": 17}', '{"n": {"deep": 1}}')
    (cli.cwd / "bad.jsonl").write_text("\n".join(lines))
    assert "18" in cli.fails(15, "import", "bad.jsonl", "out.parquet")
    assert not (cli.cwd / "out.parquet").exists()
    assert "18" in cli.fails(15, "import", "bad.jsonl", url(server))
    assert [ref for ref in server.client.list_collections() if ref.name == "bad"] == []


def test_floats_of_any_size_are_no_difference(cli: Cli, server: ChromaServer) -> None:
    """Whatever Chroma makes of their last bits, twice, on their way through a server."""
    records = [
        {"id": f"r{n}-{power}", "embedding": [n, 1.0], "metadata": {"f": (n + 1) / 7 * 10.0**power}}
        for n in range(40)
        for power in range(-20, 21)
    ]
    (cli.cwd / "floats.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert cli.json("copy", "floats.jsonl", url(server), "--verify")["verified"]
    assert cli.json("check", url(server), "floats.jsonl")["ok"]


def test_uris_and_models_go_with_it(cli: Cli, server: ChromaServer) -> None:
    """What a collection names is carried as data: no embedding function is built, on the way or at the ends."""
    function = {"type": "known", "name": "nobody_has_this", "config": {"model_name": "m", "trust_remote_code": True}}
    made = server.client.request(
        "POST",
        Ref("", "").path.replace("/collections/", "/collections"),
        {"name": "strange", "configuration": {"hnsw": {"space": "ip"}, "embedding_function": function}},
    )
    ref = Ref(made["id"], "strange")
    server.client.request(
        "POST", f"{ref.path}/add", {"ids": ["a"], "embeddings": [[1, 2]], "uris": ["file:///a"], "documents": [None]}
    )
    cli.json("export", url(server), "s.parquet", "--verify")
    cli.json("import", "s.parquet", "built", "--verify")
    cli.json("copy", "built", url(server), "--rename", "strange=again", "--verify")
    again = next(c for c in server.client.request("GET", Ref("", "").path.rstrip("/")) if c["name"] == "again")
    assert again["configuration_json"]["embedding_function"] == function
    assert again["configuration_json"]["hnsw"]["space"] == "ip"


def test_what_cannot_be_meant_is_told_in_one_line(cli: Cli, chroma: Path, kept: Path) -> None:
    """Wrong places, wrong options: one line, what to do, nothing left behind."""
    for status, told, arguments in (
        (15, "neither a Chroma directory", ("copy", "nowhere", "x")),
        (2, "no single records", ("copy", "chroma", "keep")),
        (2, "takes one collection", ("export", "chroma", "x.parquet")),
        (2, "no .parquet or .jsonl", ("export", "chroma", "x")),
        (2, "cannot be read back", ("copy", "chroma", "-", "--verify")),
        (2, "no collection 'nobody'", ("copy", "chroma", "x", "--collections", "nobody")),
        (2, "--where", ("copy", "chroma", "x", "--where", "{")),
        (2, "not A=B", ("copy", "chroma", "x", "--rename", "a")),
        (2, "cannot be written", ("copy", "chroma", "keep@latest")),
        (2, "different tenants", ("copy", "chroma", "http://127.0.0.1:9/acme", "--tenant", "other")),
    ):
        assert told in cli.fails(status, *arguments)
    assert not (cli.cwd / "x").exists()
    assert not left(cli)
