"""chromadb's own tests as judge of `serve --engine postgresql` and `run`: what a stock server passes, they must pass.

    python tests/stress/chroma_own_tests.py [--preset fast|normal|slow] [--seed 1] [--only test_api.py property ...]

Installs the chromadb that we are tested with into an environment of its own, starts a stock server, PostgreSQL as one
(``ours``) and a Chroma that is kept (``run``), and runs the files of ``FILES`` against each, one after the other, all
sides at the same time. Prints what came of each file, and every test with another outcome. Ends with 1 if a side fails
a test that stock passes and that is not in its ``EXPECTED``, if one in there passes (take it out), if a file was not
run to its end, or if after one the newest state in the repository of ``run``, which has acknowledged nothing else, is
not what its server holds.

What no Chroma of one node has (``search``, forks, indexes of sparse vectors) chromadb tests against a cluster only:
``OF_A_CLUSTER`` are asked of ours alone, and each must pass.

What all fail is not counted: tests that need parts of chromadb which are not installed (hnswlib, for its old engine in
Python) or a server that they start themselves. The default embedding function does not download its model
(``made_up_model.py``).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

from chromakeep.chroma.command import ServerOptions  # noqa: E402
from chromakeep.chroma.ports import free_port  # noqa: E402
from chromakeep.chroma.server import ChromaServer  # noqa: E402
from postgres.instances import Instance, eventually  # noqa: E402
from run.running import kill, process, ready  # noqa: E402

FILES = (
    "test_api.py", "test_client.py", "test_multithreaded.py", "api", "client", "configurations",
    "property/test_add.py", "property/test_collections.py", "property/test_collections_with_database_tenant.py",
    "property/test_embeddings.py", "property/test_filtering.py", "property/test_schema.py",
)  # fmt: skip
"""Those that ask a server. The others ask Chroma's engine in this process, a cluster, or nobody."""

OF_A_CLUSTER = (
    "api/test_search_api.py",
    "api/test_fork_count_api.py",
    "property/test_fork.py",
    "api/test_schema_e2e.py",
)
ABOUT = "(search or sparse or knn or fork) and not isolates_schema"
"""Of the tests in there. Others look at how a cluster stores things; that one waits for its compaction."""

EXPECTED: Mapping[str, Mapping[str, str]] = {
    "ours": {
        "test_api::test_query_id_filtering_e2e": "wants an error where `ids` of a query has one that is not there: "
        "docs/compatibility.md, where stock is wrong",
        "api.test_schema_e2e::test_sparse_vector_not_allowed_locally": "wants an error for an index of sparse "
        "vectors, which only a cluster keeps: docs/compatibility.md, what only this has",
    },
    "run": {},
}
"""Tests, without their parameters, that a side of ours may fail, and why."""

NEEDS = ("pytest<9", "pytest-asyncio", "pytest-timeout", "hypothesis", "psutil", "fastapi", "pandas",
         "opentelemetry-instrumentation-fastapi")  # fmt: skip
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
PER_TEST, PER_FILE = 900, 3600  # seconds
Outcomes = Mapping[str, str]


class Judge:
    """chromadb's tests, installed in ``base``, and what came of them on one side after the other."""

    def __init__(self, base: Path, preset: str, seed: int) -> None:
        self.base, self.preset, self.seed = base, preset, seed
        self._python = base / "venv" / "bin" / "python"

    def install(self) -> None:
        uv = Path(sys.executable).with_name("uv")
        wanted = [f"chromadb=={version('chromadb')}", *NEEDS]
        run = ([uv, "venv", "--quiet", "--python", sys.executable], [uv, "pip", "install", "--quiet", "--python"])
        subprocess.run([*run[0], self.base / "venv"], check=True)
        subprocess.run([*run[1], self._python, *wanted], check=True)
        self._site = next((self.base / "venv" / "lib").glob("python3*")) / "site-packages"

    def run(self, side: str, port: int, file: str, *, cluster: bool = False) -> Outcomes | None:
        """Each test of a file, or of a folder, and its outcome; None where the run did not come to its end.
        ``cluster``: those ``ABOUT`` what only a cluster has."""
        place = self.base / (f"{side}-as-a-cluster" if cluster else side)
        place.mkdir(exist_ok=True)
        report = place / f"{file.replace('/', '_')}.xml"
        command = [self._python, "-m", "pytest", self._site / "chromadb" / "test" / file, "--rootdir", self._site,
                   "-p", "no:cacheprovider", "-p", "made_up_model", "-q", f"--timeout={PER_TEST}",
                   f"--hypothesis-seed={self.seed}", f"--junitxml={report}"]  # fmt: skip
        command += ["-k", ABOUT] if cluster else []
        environment = self._environment(port)
        if cluster:
            del environment["CHROMA_INTEGRATION_TEST_ONLY"]
            environment |= {"CHROMA_CLUSTER_TEST_ONLY": "1", "CHROMA_SERVER_HOST": f"localhost:{port}"}
        with report.with_suffix(".out").open("wb") as output:
            try:
                subprocess.run(command, cwd=place, env=environment, stdout=output, stderr=output,
                               stdin=subprocess.DEVNULL, timeout=PER_FILE, check=False)  # fmt: skip
            except subprocess.TimeoutExpired:
                return None
        return outcomes(report.read_bytes()) if report.exists() else None

    def _environment(self, port: int) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("CHROMA", "PYTEST"))}
        return {
            **kept,
            "PATH": f"{self._python.parent}{os.pathsep}{os.environ.get('PATH', '')}",  # a test starts `python`
            "PYTHONPATH": str(Path(__file__).parent),
            "CHROMA_INTEGRATION_TEST_ONLY": "1",
            "CHROMA_SERVER_HOST": "localhost",
            "CHROMA_SERVER_HTTP_PORT": str(port),
            "CHROMA_API_IMPL": "chromadb.api.fastapi.FastAPI",
            "CHROMA_HYPOTHESIS_CI_REPRODUCE_ONLY": "1",  # the example as it was found: no hour to make it smaller
            "PROPERTY_TESTING_PRESET": self.preset,
            "ANONYMIZED_TELEMETRY": "False",
        }


def outcomes(report: bytes) -> Outcomes:
    """What pytest's own report says: name and outcome of each test."""
    found = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('chromadb.test.')}::{case.get('name', '')}"
        kinds = {child.tag for child in case}
        found[name] = FAILED if kinds & {"failure", "error"} else SKIPPED if "skipped" in kinds else PASSED
    return found


def compared(stock: Outcomes, ours: Outcomes, expected: Mapping[str, str]) -> Iterator[str]:
    """Why these two outcomes are not as they must be, a line each."""
    for name in sorted(stock.keys() | ours.keys()):
        here, there, known = ours.get(name, "not run"), stock.get(name, "not run"), name.partition("[")[0] in expected
        if there == PASSED and here != PASSED and not known:
            yield f"{name}: {here}, which stock passes"
        if here == PASSED and known:
            yield f"{name}: passed, so it need not be in EXPECTED"
    if PASSED not in stock.values():
        yield "stock passed no test of it"


@contextmanager
def servers(base: Path) -> Iterator[dict[str, int]]:
    """A stock server and ours, all of which may be reset; their ports. The repository of ``run`` is ``base/keep``."""
    config = base / "stock.yaml"
    config.write_text("allow_reset: true\n")
    options = ServerOptions(host="localhost", port=free_port(), config=config)
    with ChromaServer(base / "stock-data", env=dict(os.environ), options=options):
        ours = Instance(base / "ours-data", "postgresql", "--allow-reset")
        try:
            data, keep = base / "kept" / "data", base / "keep"
            with process(data, keep, every=60, durability="sync", options=(str(config),)) as (run, port, log):
                try:
                    eventually(lambda: ready(run, port, log), "the run to be ready")
                    yield {"stock": options.port, "ours": ours.ready().port, "run": port}
                finally:
                    kill(run, data, "both")
        finally:
            ours.kill()
            eventually(lambda: not list(base.glob("ours-data/**/postmaster.pid")), "its PostgreSQL to end with it")


def judge(one: Judge, ports: Mapping[str, int], files: Sequence[str]) -> int:
    """Run the files on both sides and print what came of it. The number of faults."""
    faults, sums = 0, {side: Counter[str]() for side in ports}
    for file in files:
        with ThreadPoolExecutor() as pool:
            running = {side: pool.submit(timed, one, side, port, file) for side, port in ports.items()}
        came = {side: run.result() for side, run in running.items()}
        said = []
        for side, (found, seconds) in came.items():
            tally = Counter((found or {}).values())
            sums[side] += tally
            said.append(f"{side} {text(tally)} in {seconds:.0f} s" if found is not None else f"{side} did not end")
        print(f"{file}: {'; '.join(said)}", flush=True)
        if said := difference(one.base / "keep", ports["run"]):
            faults += 1
            print(f"  ! run: its repository and its server are not the same: {said}", flush=True)
        stock = came.pop("stock")[0]
        for side, (found, _) in came.items():
            if stock is None or found is None:
                faults += 1
                continue
            expected = EXPECTED[side]
            for name in sorted(name for name in stock.keys() & found.keys() if stock[name] != found[name]):
                reason = expected.get(name.partition("[")[0], "")
                print(f"    {name}: stock {stock[name]}, {side} {found[name]}{reason and ': ' + reason}", flush=True)
            for fault in compared(stock, found, expected):
                faults += 1
                print(f"  ! {side}: {fault}", flush=True)
    print(*(f"{side}: {text(tally)}" for side, tally in sums.items()), f"{faults} faults", sep="; ")
    return faults


def difference(keep: Path, port: int) -> str:
    """What ``check`` says of the newest state in a repository and a server, if they differ."""
    command = [sys.executable, "-m", "chromakeep", "check", str(keep), f"http://127.0.0.1:{port}", "--progress", "none"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    return checked.stdout + checked.stderr if checked.returncode else ""


def judge_alone(one: Judge, port: int, files: Sequence[str]) -> int:
    """Run the files of a cluster on ours. The number of faults."""
    faults = 0
    for file in files:
        found = one.run("ours", port, file, cluster=True)
        tally = Counter((found or {}).values())
        print(f"{file}, of a cluster: ours {text(tally)}" if found is not None else f"{file}: did not end", flush=True)
        wrong = [name for name, outcome in (found or {}).items() if outcome == FAILED]
        faults += len(wrong) or not tally[PASSED]
        for name in wrong:
            print(f"  ! {name}: failed", flush=True)
    return faults


def timed(one: Judge, side: str, port: int, file: str) -> tuple[Outcomes | None, float]:
    begun = time.monotonic()
    return one.run(side, port, file), time.monotonic() - begun


def text(tally: Counter[str]) -> str:
    return ", ".join(f"{tally[kind]} {kind}" for kind in (PASSED, FAILED, SKIPPED))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("fast", "normal", "slow"), default="fast", help="examples of a property")
    parser.add_argument("--seed", type=int, default=1, help="of the examples")
    parser.add_argument("--only", nargs="*", default=FILES + OF_A_CLUSTER, help="files or folders of chromadb/test")
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="chroma-own-tests-"))
    base.chmod(0o755)
    one = Judge(base, options.preset, options.seed)
    one.install()
    with servers(base) as ports:
        faults = judge(one, ports, [file for file in options.only if file not in OF_A_CLUSTER])
        faults += judge_alone(one, ports["ours"], [file for file in OF_A_CLUSTER if file in options.only])
    if faults:
        print(f"what the tests and the servers said is in {base}")
        return 1
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
