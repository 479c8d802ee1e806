"""Instances of ``serve --engine`` on one PostgreSQL, under writers that never rest, while what can end is ended.

    python tests/stress/postgres_instances.py [--seconds 120] [--writers 8] [--ballast 20000] [--only killed ...]

Three instances behind the shipped nginx configuration; each client sends a request once more when it got no answer,
502, 503 or 504, after the time that Retry-After says. One scene after the other:

    killed      an instance gets SIGKILL every few seconds and is started again
    restarted   PostgreSQL ends, fast or as in a crash, every ten seconds, and is away for up to two
    full        PostgreSQL takes fewer connections than the instances want
    failover    the primary is killed for good; its synchronous standby is promoted (one after the other, each the
                standby of the one before)

At the end of each scene every record that was ever written is read through each instance: what was acknowledged is
there, whole, and what was not is whole or not there; what was refused with 503 is not there. While instances are
killed, 99.9 % of the requests must succeed with one try more.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from chromakeep.chroma.ports import free_port  # noqa: E402
from postgres.instances import Instance, Tally, Writer, ask, create, eventually, stop  # noqa: E402
from servers.nginx import ENGINE, nginx  # noqa: E402
from servers.postgresql import PostgreSQL  # noqa: E402

Scene = Callable[["World"], str]


class World:
    """Three instances, and who writes to them."""

    def __init__(self, base: Path, server: PostgreSQL, url: str, seed: int, seconds: float, standby: bool) -> None:
        self.base, self.server, self.seconds = base, server, seconds
        self.other = free_port()  # of the standby that is made next
        if standby:
            url = url.replace(server.host, f"{server.host},127.0.0.1:{self.other}")
        self.random = random.Random(seed)
        self.instances = [Instance(base / f"instance-{n}", url) for n in range(3)]
        for one in self.instances:
            one.ready()
        self.tally = Tally()
        self.writers: list[Writer] = []

    @contextmanager
    def written(self, writers: int, ballast: int) -> Iterator[None]:
        """Writers through nginx, in one collection beside so many other records; at the end all is compared."""
        with nginx(self.base / "nginx", [one.port for one in self.instances], ENGINE) as (balanced, _):
            paths = [create(balanced, f"shared-{n}", configuration={"hnsw": {"space": "l2"}}) for n in range(3)]
            if ballast:
                self.fill(balanced, paths[0], ballast)
            self.writers = [Writer(self.tally, balanced, n, paths) for n in range(writers)]
            for one in self.writers:
                one.start()
            try:
                yield
            finally:
                stop(self.tally, self.writers)
        for instance in self.instances:
            eventually(instance.is_ready, f"instance {instance.port}")
            there = {i for i in ask(instance.port, "POST", f"{paths[0]}/get", {"include": []})[1]["ids"] if i[0] == "b"}
            if len(there) != ballast:
                self.tally.wrong.append(f"of {ballast} records that nobody touched {len(there)} are there")
            for one in self.writers:
                one.check_all(instance.port)

    def fill(self, port: int, path: str, count: int) -> None:
        """Records far from those of the writers, until indexes are due."""
        self.tally.approximate = True
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            body = {
                "ids": [f"ballast-{n}" for n in numbers],
                "embeddings": [
                    [-1000.0 - self.random.random() * 1000, *self.random.choices(range(1000), k=3)] for _ in numbers
                ],
            }
            assert ask(port, "POST", f"{path}/add", body)[0] == 201

    def end(self) -> None:
        for one in self.instances:
            one.kill()
        self.server.end("immediate")

    @property
    def acknowledged(self) -> int:
        return sum(one.acknowledged for one in self.writers)

    def until(self) -> Iterator[None]:
        """Turns until the time is over."""
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            yield


def killed(world: World) -> str:
    kills = 0
    for _ in world.until():
        time.sleep(world.random.uniform(0.5, 3))
        one = world.random.choice(world.instances)
        one.kill()
        kills += 1
        time.sleep(world.random.uniform(0, 1))
        one.start()
        one.ready()
    if world.tally.succeeded < 0.999:
        world.tally.wrong.append("fewer than 99.9 % succeeded")
    return f"{kills} kills"


def restarted(world: World) -> str:
    restarts = 0
    for _ in world.until():
        time.sleep(world.random.uniform(1, 8))
        world.server.restart(world.random.choice(["fast", "immediate"]), away=world.random.uniform(0, 2))
        restarts += 1
    return f"{restarts} restarts"


def full(world: World) -> str:
    for _ in world.until():
        time.sleep(1)
    said = sum(one.said.count("takes no more connections") + one.said.count("too many") for one in world.instances)
    return f"{said} times an instance said so"


def failover(world: World) -> str:
    """The next standby takes the place of the primary that was killed."""
    failovers, longest, promoted = 0, 0.0, 0.0
    for _ in world.until():
        standby = world.server.standby(world.base / f"postgresql-{failovers + 1}", world.other)
        world.server.synchronous()
        time.sleep(world.random.uniform(2, 6))
        world.server.end("kill")
        begun, before = time.monotonic(), world.acknowledged
        world.other = world.server.port
        standby.promote()
        promoted = max(promoted, time.monotonic() - begun)
        world.server = standby
        eventually(lambda before=before: world.acknowledged > before, "a write after the failover")
        longest = max(longest, time.monotonic() - begun)
        failovers += 1
    return f"{failovers} failovers, none acknowledged for at most {longest:.1f} s, of a promotion {promoted:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--ballast", type=int, default=20_000, help="records beside those of the writers, in killed")
    parser.add_argument("--seed", type=int, default=0)
    scenes: dict[str, Scene] = {one.__name__: one for one in (killed, restarted, full, failover)}
    parser.add_argument("--only", nargs="*", choices=scenes, default=list(scenes))
    options = parser.parse_args()
    wrong = 0
    for name in options.only:
        base = Path(tempfile.mkdtemp(prefix=f"postgres-{name}-"))
        base.chmod(0o755)
        with ExitStack() as stack:
            server = PostgreSQL(base / "postgresql", **({"max_connections": "10"} if name == "full" else {})).make()
            url = server.database("chroma")
            world = World(base, server, url, options.seed, options.seconds, name == "failover")
            stack.callback(lambda world=world: world.end())
            ballast = options.ballast if name == "killed" else 0
            with world.written(options.writers * (4 if name == "full" else 1), ballast):
                said = scenes[name](world)
            print(f"{name}: {said}; {world.acknowledged} writes acknowledged; {world.tally}", flush=True)
            for problem in world.tally.wrong[:20] + world.tally.failed[:5]:
                print(f"    {problem}", flush=True)
            wrong += len(world.tally.wrong)
        if not world.tally.wrong:
            shutil.rmtree(base)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
