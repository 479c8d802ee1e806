"""Run: boot, check, serve, keep, stop. The whole life of a Chroma that survives its container."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from chromakeep.addresses import authority
from chromakeep.chroma.catalog import DATABASE, collection_count
from chromakeep.chroma.command import ServerOptions, find_chroma, parse_options
from chromakeep.chroma.ports import HeldPort, port_is_free
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.signature import signature
from chromakeep.errors import (
    LeaseLost,
    NotAChromaDirectory,
    NotNow,
    PartialFailure,
    ServerFailed,
    SourceError,
    UsageError,
)
from chromakeep.events import Noted, Observer, ServerLine, ignore
from chromakeep.operations.beside import Beside, Process
from chromakeep.operations.boot import DATA, FOLLOWED, FOUND, RESTORED, Booted, boot, contents, look, summary
from chromakeep.operations.changeover import Changeover
from chromakeep.operations.duty import (
    EXCHANGING,
    SERVING,
    SNAPSHOTS,
    STARTING,
    STOPPING,
    Doorway,
    Duty,
)
from chromakeep.operations.fronts import entrance_of, front_of
from chromakeep.operations.keep import Keeping
from chromakeep.operations.memory import give_back
from chromakeep.operations.platform import advise
from chromakeep.operations.rescue import Findings, examine, rescue
from chromakeep.operations.run_settings import RunResult, RunSettings
from chromakeep.operations.sighting import sighting_of
from chromakeep.operations.succession import START_AGAIN, Succession
from chromakeep.operations.watch import Watching
from chromakeep.operations.writes import Writes
from chromakeep.records import Collection

if TYPE_CHECKING:
    from chromakeep.repository import Repository

GOOD = 60.0  # seconds of serving after which the back-off starts anew
DRAIN = 2.0  # seconds that requests under way have to end
HURRIED = 1.0  # seconds that a server has to end after a second signal: a kill in a write can break a collection
LONGEST_WAIT = 30.0  # seconds between two starts at most
T = TypeVar("T")


def run(
    settings: RunSettings,
    *,
    observer: Observer = ignore,
    stop: threading.Event,
    env: Mapping[str, str],
    hurry: threading.Event | None = None,
) -> RunResult:
    """Serve ``settings.data`` until ``stop`` is set, and keep it.

    Ends within ``grace`` seconds of ``stop`` (sooner when ``hurry`` is set): the server is stopped first, so every
    write it acknowledged is in the last snapshot. ``observer`` is called from several threads. The environment is
    handed to the server. Work that was cut off by the end of the grace period goes on in daemon threads: the caller is
    expected to end the process.

    Raises ``RefusedToServe`` (nothing was served), ``ServerFailed`` (the server does not start or keeps dying),
    ``PartialFailure`` (stopped before all was in the repository), ``UsageError``.
    """
    started = time.monotonic()
    if settings.ephemeral and settings.open_repository:
        raise UsageError("--ephemeral accepts the loss that a repository prevents", hint="give one of the two")
    options = parse_options(settings.arguments, env)
    program = find_chroma(settings.program, env)
    if not port_is_free(options.host, options.port):
        raise ServerFailed(
            f"{options.host}:{options.port} is in use by another program",
            hint="stop it, or choose another port: chromakeep run ... -- --port 8001",
        )
    with Beside(settings.data) as beside:
        lock = beside.take(settings.grace)
        if beside.finish_swap():
            observer(Noted(f"completed the replacement of {beside.data} that the last run began"))
        beside.tidy()
        advise(
            beside.data,
            env,
            observer,
            ephemeral=settings.ephemeral,
            repository=settings.open_repository is not None,
            with_config=options.config is not None,
        )
        service = _Service(settings, beside, lock, options, program, env, observer, stop, hurry or threading.Event())
        try:
            with service.open_door():
                booted = service.prepare()
                if booted:
                    seconds = time.monotonic() - started
                    observer(Noted(f"{booted.outcome}: {summary(booted.collections)}, in {seconds:.1f} s"))
                    service.serve(booted.collections)
                else:  # what a killed run has left in the directory is worth a snapshot all the same
                    service.end(None)
        finally:
            service.let_go()
        return RunResult(
            booted.outcome if booted else "stopped before serving",
            service.keeping.taken if service.keeping else 0,
            beside.state.snapshot,
            service.restarts,
            time.monotonic() - started,
        )


class _Service:
    """The serving part of one run: the server of the moment, the keeping thread, and what is known of both."""

    def __init__(
        self,
        settings: RunSettings,
        beside: Beside,
        lock: int,
        options: ServerOptions,
        program: str,
        env: Mapping[str, str],
        observer: Observer,
        stop: threading.Event,
        hurry: threading.Event,
    ) -> None:
        self.settings, self.beside, self.lock, self.options, self.program = settings, beside, lock, options, program
        self.env, self.observer, self.stop, self.hurry = env, observer, stop, hurry
        self.keeping = self._new_keeping() if settings.open_repository else None
        self.duty = Duty(settings.durability if self.keeping else SNAPSHOTS, self.keeping)
        self.duty.sighting = sighting_of(beside, self.keeping, observer)
        self.duty.writes = Writes(beside.root)
        if why := self.duty.writes.refusal():
            observer(Noted(f"{why.message}, since {self.duty.writes.said.since}", "warning"))
        self.succession = self._new_succession()
        self.changeover = Changeover(beside, self.keeping, observer)
        self.door: Doorway | None = None
        self.front = options  # what clients see
        self.behind = HeldPort() if settings.door else None  # the server's, in all its lives
        if self.behind:
            self.options = replace(options, host="127.0.0.1", port=self.behind.number)
        self.restarts = 0
        self.hopeless: set[str] = set()  # collections that stay broken whatever was done
        self.collections: tuple[Collection, ...] = ()
        self.base: str | None = None  # the snapshot that the directory was, None: the end of the log
        self.uncovered = False  # the directory may hold what neither a snapshot nor the queue could make again

    def _new_keeping(self) -> Keeping:
        stage = self.settings.stage or self.beside.stage
        return Keeping(self.beside, self._repository, every=self.settings.every, stage=stage, observer=self.observer)

    def _new_succession(self) -> Succession | None:
        if self.keeping is None or self.settings.durability == SNAPSHOTS:
            return None
        assert self.settings.open_repository
        return Succession(
            self.beside,
            self.keeping,
            self.duty,
            self.settings.open_repository,
            make_server=self._new_server if self.settings.door else None,
            address=self.settings.forwarding.url if self.settings.door and self.settings.forwarding else None,
            observer=self.observer,
            stop=self.stop,
        )

    def _new_server(self) -> ChromaServer:
        return ChromaServer(
            self.beside.data,
            env=self.env,
            options=self.options,
            program=self.program,
            on_line=lambda line: self.observer(ServerLine(line)),
            inherit=(self.lock,),
        )

    @contextmanager
    def open_door(self) -> Iterator[None]:
        """The port, from before there is anything to serve until all is done."""
        if self.settings.door is None:
            yield
            return
        entrance = entrance_of(self.settings, self.front.host, self.env, self.observer)
        self.duty.shut = entrance.shut
        front = front_of(
            self.settings,
            self.front,
            self.options,
            beside=self.beside,
            duty=self.duty,
            keeping=self.keeping,
            changeover=self.changeover,
            restarts=lambda: self.restarts,
            entrance=entrance,
            observer=self.observer,
        )
        entrance.start()
        self.door = self.settings.door(front)
        try:
            self.door.start()
            yield
        finally:
            self.door.stop(0.0)
            entrance.stop()

    # -- before serving ----------------------------------------------------------------------------------------------

    def prepare(self) -> Booted | None:
        """Boot and check; None when told to stop meanwhile."""

        def work() -> Booted:
            began = time.monotonic()
            lease = self.succession.reign() if self.succession else None
            if self.stop.is_set():
                raise NotNow("told to stop")  # to nobody: what follows would be done behind the caller's back
            if self.succession and self.succession.server:
                self.duty.sighting.forget()
                return Booted(FOLLOWED, contents(self.beside.data), time.monotonic() - began)
            after = lease.after if lease else None
            stale = after is not None and 0 < self.beside.state.epoch < after[0]
            if stale and look(self.beside.data, served_before=True) == DATA:
                said = f"another instance has written since {self.beside.data} was served: it is replaced"
                self.observer(Noted(said, "warning"))
            booted = boot(self.beside, self.settings.open_repository, stale=stale, observer=self.observer)
            self.uncovered = True
            if (way := booted.way) and booted.outcome == RESTORED:
                self.duty.sighting.forget()
                self.beside.remember(restored_at=time.time())
                ends = way.legs[-1].epoch if way.legs else None
                self.base, self.uncovered = None if ends else way.snapshot.id, after is not None and ends != after[0]
            if booted.outcome == FOUND:
                now = signature(self.beside.data).to_json()
                self.base, self.uncovered = self.beside.state.snapshot, now != self.beside.state.captured
                if lease and self.base and lease.repository.snapshot(f"snapshots/{self.base}") is None:
                    self.uncovered = True  # it was pruned
                if now != self.beside.state.verified:
                    self.check()
                return replace(booted, collections=contents(self.beside.data))
            return booted

        return self._unless_stopped(work)

    def check(self) -> Findings:
        """Find what is broken and rebuild it, while no snapshot reads the directory."""
        with self.keeping.access if self.keeping else nullcontext():
            findings = examine(self.beside, program=self.program, env=self.env, observer=self.observer)
            if findings.broken or findings.database:
                report = rescue(
                    self.beside,
                    findings,
                    self.settings.open_repository,
                    program=self.program,
                    env=self.env,
                    observer=self.observer,
                )
                self.observer(Noted(report.line(), "warning"))
                self.uncovered = True
                if self.keeping:
                    self.keeping.begin_anew()
        give_back()
        return findings

    def _unless_stopped(self, work: Callable[[], T]) -> T | None:
        """The result of ``work``, which runs in a thread of its own and is left behind when ``stop`` is set."""
        result: list[T] = []
        failure: list[BaseException] = []

        def target() -> None:
            try:
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=target, name="prepare", daemon=True)
        thread.start()
        while thread.is_alive() and not self.stop.is_set():
            thread.join(0.02)
        if self.stop.is_set():
            return None
        if failure:
            raise failure[0]
        return result[0]

    # -- serving -----------------------------------------------------------------------------------------------------

    def serve(self, collections: tuple[Collection, ...]) -> None:
        """Start the server again and again until told to stop, or until it has died too often."""
        self.collections = collections
        deaths: deque[float] = deque()
        wait = 0.5
        while not self.stop.is_set():
            begun = time.monotonic()
            server, reason = self._life()
            if server is None or reason is None:
                self.end(server)
                return
            if self.changeover.between(server, reason):
                if self.changeover.made:
                    self.duty.sighting.forget()
                self.uncovered, self.collections, self.hopeless = True, (), set()
                continue
            now = time.monotonic()
            deaths.append(now)
            while deaths[0] < now - self.settings.window:
                deaths.popleft()
            if len(deaths) > self.settings.deaths:
                if self.keeping:
                    self.keeping.finish(self.settings.grace, self.hurry)
                often = f"chroma died {len(deaths)} times in {now - deaths[0]:.0f} s"
                raise ServerFailed(
                    f"{often}; last: {reason}: {server.last_words()}",
                    hint="its last lines are above; the data directory and the snapshots are as they were",
                )
            wait = 0.5 if now - begun > GOOD else min(wait * 2, LONGEST_WAIT)
            self.restarts += 1
            self.observer(Noted(f"{reason}; checking the directory, then starting it again in {wait:.1f} s", "warning"))
            if self._unless_stopped(self.check) is None or self.stop.wait(wait):
                break
        self.end(None)

    def _life(self) -> tuple[ChromaServer | None, str | None]:
        """One life of the server: why it ended, None if ``stop`` ended it."""
        begun = time.monotonic()
        known: dict[str, int] | None = None
        keeper = Process.of(os.getpid())
        server = self._warm()
        if server:
            assert self.succession and self.keeping and self.keeping.lease
            # In one step: not a standby's any more, and of the log that it will be written to.
            at = self.keeping.lease.epoch
            self.beside.remember(following=False, epoch=at, keeper=keeper, server=Process.of(server.pid))
            known = self.succession.known
        else:
            server = self._new_server()
            lease = self.keeping.lease if self.keeping else None
            at = lease.epoch if lease else self.beside.state.epoch
            self.beside.remember(verified=None, following=False, epoch=at, keeper=keeper, server=None)
            if self.keeping:
                if self.keeping.recognise():
                    self.uncovered, self.collections, self.hopeless = True, (), set()
                self.keeping.hold(anew=True)
            try:
                server.start(stop=self.stop)
                self._unless_stopped(partial(self.changeover.prove, server))
            except ServerFailed as error:
                return server, f"chroma did not start: {error.message}"
            self.beside.remember(server=Process.of(server.pid))
        if self.stop.is_set():
            return server, None
        self._count()
        held = self.keeping.hold() if self.keeping else None  # also of a directory that the server has only now begun
        self.duty.role = SERVING
        self.changeover.over()
        self.observer(
            Noted(
                f"serving on {self.settings.facing.scheme}://{authority(self.front.host, self.front.port)}"
                f" (process {server.pid}, ready in {time.monotonic() - begun:.1f} s)"
            )
        )
        if self.keeping:
            self.keeping.start()
            if self.uncovered:
                self.keeping.soon()
                self.uncovered = False
            else:
                self.keeping.ship(self.base, known, held=held)
        reason = self._watch(server)
        self.duty.role = STOPPING if self.stop.is_set() else EXCHANGING if self.changeover.due else STARTING
        if reason and server.returncode is None:
            server.stop(5.0)
        return server, reason

    def _warm(self) -> ChromaServer | None:
        """The server that a standby leaves, once."""
        if self.succession is None:
            return None
        server, self.succession.server = self.succession.server, None
        return server

    def _repository(self) -> Repository:
        from chromakeep.errors import RepositoryNotFound

        assert self.settings.open_repository is not None
        try:
            return self.settings.open_repository()
        except RepositoryNotFound:
            if self.settings.create_repository is None:
                raise
            repository = self.settings.create_repository()
            self.observer(Noted("there was no repository at that address: created one", "warning"))
            return repository

    def _count(self) -> None:
        with suppress(SourceError):
            self.duty.sighting.seen(collection_count(self.beside.data / DATABASE))

    def _watch(self, server: ChromaServer) -> str | None:
        """Wait until the server must be replaced, and say why; None when ``stop`` is set."""
        watching = Watching(
            server,
            every=self.settings.probe_every,
            patience=self.settings.hung_after,
            known=lambda: (*self.collections, *(self.keeping.collections if self.keeping else ())),
            spared=self.hopeless,
            alive=self._count,
        )
        watching.start()
        try:
            while not server.exited.wait(0.1):
                if self.stop.is_set():
                    return None
                try:
                    if self.keeping and self.keeping.lost:
                        raise LeaseLost("another instance has taken over this repository", hint=START_AGAIN)
                    if self.succession:
                        self.succession.look_again()
                except LeaseLost:
                    server.kill()  # whatever it would acknowledge from now on is lost
                    raise
                if self.changeover.due:
                    return "another directory takes its place"
                if self.keeping and self.keeping.replaced:
                    return f"{self.beside.data} was replaced beneath it"
                if watching.verdict:
                    self.hopeless |= set(watching.broken)  # a check that changes nothing is not repeated for ever
                    return watching.verdict
            return None if self.stop.is_set() else f"chroma ended by itself ({server.ending})"
        finally:
            watching.over.set()

    # -- the end -----------------------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Of the lease, whatever happened, and of the port."""
        for one in (self.succession, self.keeping):
            if one:
                one.end()
        if self.behind:
            self.behind.close()

    def end(self, server: ChromaServer | None) -> None:
        """Stop the server, take the last snapshot, remember that all is well; within ``grace`` seconds of the stop."""
        deadline = time.monotonic() + self.settings.grace
        self.changeover.abandon()
        if self.door:
            self.door.stop(min(DRAIN, self.settings.grace * 0.2))
        if server is None and self.succession and not self.succession.close():
            return
        code = self._stop(server, self.settings.grace * 0.4) if server else None
        data = self.beside.data
        self._count()
        if code == 0:
            with suppress(NotAChromaDirectory):
                if self.keeping:
                    self.keeping.release((deadline - time.monotonic()) / 2, self.hurry)
                self.beside.remember(verified=signature(data).to_json(), server=None)
        elif code == -signal.SIGKILL:
            self.observer(Noted("the server had to be killed: the next start will check the directory", "warning"))
        if self.keeping and not self.keeping.finish(max(0.0, deadline - time.monotonic() - 0.3), self.hurry):
            age = self.keeping.newest_at
            newest = f"the newest is {self.keeping.newest}" if self.keeping.newest else "there is none at all"
            ago = f", {time.monotonic() - age:.0f} s old" if age else ""
            why = str(self.keeping.failure) if self.keeping.failure else "it could not be finished in time"
            raise PartialFailure(
                f"stopped before all was in the repository: {why}; {newest}{ago}",
                hint="raise --grace, and the platform's own stop timeout with it; the directory itself is whole",
            )

    def _stop(self, server: ChromaServer, timeout: float) -> int:
        done = threading.Event()
        ended: list[int] = []

        def work() -> None:
            ended.append(server.stop(timeout))
            done.set()

        threading.Thread(target=work, name="stop", daemon=True).start()
        begun = time.monotonic()
        while not done.wait(0.02):
            if self.hurry.is_set() and time.monotonic() > begun + HURRIED:
                server.kill()
        return ended[0]
