"""Kill a run again and again under a writer: what was acknowledged is in the directory, what was kept outlives it.

    python tests/stress/kill_run.py [--rounds 50] [--seed 0]

Each round starts ``chromakeep run`` and ends it at a random moment: SIGKILL of the run, of its server, of both, or
SIGTERM. After a SIGTERM the last snapshot is restored and compared with everything acknowledged, and now and then the
directory is deleted, so that the next round boots from the repository. After the last round the directory is compared.

A kill inside a persist can take the only id map of what was acknowledged since the last snapshot; the queue, which is
held until a snapshot has it, makes it again. Whatever is missing, named by a rescue or not, fails the run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from chromakeep.chroma.client import ChromaClient  # noqa: E402
from chromakeep.operations.beside import Beside  # noqa: E402
from chromakeep.operations.restore import restore  # noqa: E402
from chromakeep.repository import Repository  # noqa: E402
from chromakeep.store.local import LocalStore  # noqa: E402
from run.running import Writer, answers, eventually, held, process, signal_to  # noqa: E402

KILL_RUN, KILL_SERVER, KILL_BOTH, TERM = "kill run", "kill server", "kill both", "term"


def main() -> int:
    """Exit status 0 if nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="chromakeep-kill-"))
    print(f"working in {place}; it stays there if something is lost", flush=True)
    kill(place, options.rounds, random.Random(options.seed))
    shutil.rmtree(place)
    return 0


def kill(place: Path, rounds: int, choice: random.Random) -> None:
    """All rounds in one directory."""
    data, repository = place / "data", place / "repository"
    repository.mkdir()
    writer: Writer | None = None
    done: Counter[str] = Counter()
    started = time.monotonic()
    for _ in range(rounds):
        how = choice.choice([KILL_RUN, KILL_RUN, KILL_SERVER, KILL_BOTH, TERM])
        with process(data, repository, every=0.5, grace=30.0) as (run, port, log):
            if writer is None:
                writer = Writer(port, choice.randrange(1 << 30), dimension=256, ballast=4000, sync_threshold=30)
                writer.start()
            writer.client = ChromaClient("127.0.0.1", port, timeout=20)
            before = writer.writes
            eventually(partial(enough, writer, before, run), "a write", 120)
            assert run.poll() is None, log.read_text()[-5000:]
            time.sleep(choice.uniform(0, 3))
            server = Beside(data)._read().server
            if how in (KILL_SERVER, KILL_BOTH) and server:
                signal_to(server.pid)
            if how == KILL_SERVER:  # it is started again, and killed in a moment of its own
                time.sleep(choice.uniform(0, 3))
            if how == TERM:
                run.terminate()
                assert run.wait(60) == 0, log.read_text()[-5000:]
            else:
                run.kill()
                run.wait()
        done[how] += 1
        if how == TERM and writer.ref:
            time.sleep(0.3)  # the request that was under way has failed by now: the server is gone
            writer.check(held(data, writer.ref))
            restored = place / "restored"
            restore(Repository.open(LocalStore(repository)), None, restored)
            writer.check(held(restored, writer.ref))
            shutil.rmtree(restored)
            if choice.random() < 0.4:
                done["directory deleted"] += 1
                shutil.rmtree(data)
                shutil.rmtree(place / ".data.chromakeep")
    assert writer and writer.ref
    with process(data, repository, grace=30.0) as (run, port, log):
        client = ChromaClient("127.0.0.1", port)
        eventually(lambda: answers(client), "the server", 120)
        run.terminate()
        assert run.wait(60) == 0, log.read_text()[-5000:]
    writer.over.set()
    writer.join()
    writer.check(held(data, writer.ref))
    text = (place / "run.log").read_text(errors="replace")
    done["collections rebuilt"] = text.count("vectors from its files and queue")
    done["vectors taken from a snapshot"] = text.count(" from snapshot ")
    assert not list(place.glob("data.lost-*")), "a rescue gave records up"
    seconds = time.monotonic() - started
    print(f"{rounds} rounds, {writer.writes} writes in {seconds:.0f} s, nothing lost: {dict(done)}")


def enough(writer: Writer, before: int, run: subprocess.Popen[bytes]) -> bool:
    """Whether a write was acknowledged, or never will be."""
    return writer.writes > before or run.poll() is not None


if __name__ == "__main__":
    sys.exit(main())
