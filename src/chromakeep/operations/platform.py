"""What the machine does with a path: which file system it is on, whether it outlives the container, which variables
somebody set in the belief that Chroma reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from chromakeep.events import Noted, Observer

_MOUNTS = Path("/proc/self/mountinfo")
_MEMORY = {"tmpfs", "ramfs"}
_LAYERS = {"overlay", "aufs", "overlay2", "fuse-overlayfs"}
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre"}
_CONTAINER_FILES = (Path("/.dockerenv"), Path("/run/.containerenv"))
# Set by the platforms themselves: Cloud Run, Fly.io, Kubernetes, Heroku, Render, DigitalOcean App Platform, ECS.
_CONTAINER_VARIABLES = (
    "K_SERVICE", "FLY_APP_NAME", "KUBERNETES_SERVICE_HOST", "DYNO", "RENDER", "ECS_CONTAINER_METADATA_URI_V4",
)  # fmt: skip
# What Chroma before 1.0 read; the Rust server of 1.x starts without a word and keeps its data elsewhere.
_OLD = re.compile(r"CHROMA_.*|IS_PERSISTENT|PERSIST_DIRECTORY|CHROMADB_.*")
# Keys of rust/frontend/src/config.rs (1.5.9): with a configuration file, CHROMA_<KEY> is merged over it.
_KEYS = (
    "PORT", "LISTEN_ADDRESS", "MAX_PAYLOAD_SIZE_BYTES", "ALLOW_RESET", "CORS_ALLOW_ORIGINS", "OPEN_TELEMETRY",
    "STDOUT_TRACING", "CIRCUIT_BREAKER", "SCORECARD", "SCORECARD_ENABLED", "DEFAULT_KNN_INDEX", "ENABLE_SCHEMA",
    "SQLITEDB", "SEGMENT_MANAGER", "SYSDB", "LOG", "EXECUTOR", "COLLECTIONS_WITH_SEGMENTS_PROVIDER",
)  # fmt: skip


class Place(msgspec.Struct, frozen=True):
    """Where a path lies. ``throw_away``: why its files will be gone; ``remote``: file locks cannot be trusted."""

    path: str
    filesystem: str
    mount_point: str
    throw_away: str | None = None
    remote: bool = False


def describe(path: Path, env: Mapping[str, str], mounts: str | None = None) -> Place:
    """Look ``path`` up in the mount table (``mounts`` instead of ``/proc/self/mountinfo``); it need not exist."""
    path = path.resolve()
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:
            return Place(str(path), "unknown", "/")
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        left, dash, right = line.partition(" - ")
        fields = left.split()
        if not dash or len(fields) < 5 or not right:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4])
        # The last of equals wins: a mount hides what was mounted there before it.
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best):
            best, kind = point, right.split()[0]
    reason = None
    if kind in _MEMORY:
        reason = f"{kind}: files in memory"
    elif kind in _LAYERS:
        reason = f"{kind}: the container's own layer"
    elif best == "/" and (any(f.exists() for f in _CONTAINER_FILES) or any(v in env for v in _CONTAINER_VARIABLES)):
        reason = f"{kind}: the root of a container, no volume"
    return Place(str(path), kind, best or "/", reason, kind in _REMOTE or kind.startswith("fuse"))


def ignored_variables(env: Mapping[str, str], *, with_config: bool) -> list[str]:
    """Names of variables that look like Chroma's and that this server will not read."""
    read = {f"CHROMA_{key}" for key in _KEYS} if with_config else set()
    return sorted(name for name in env if _OLD.fullmatch(name) and name.partition("__")[0] not in read)


def advise(
    data: Path, env: Mapping[str, str], observer: Observer, *, ephemeral: bool, repository: bool, with_config: bool
) -> None:
    """Tell where the data lies, and what somebody who runs a server there had better know."""
    place = describe(data, env)
    observer(Noted(f"data in {place.path} on {place.filesystem} (mounted at {place.mount_point})"))
    if ephemeral:
        observer(Noted("--ephemeral: everything in this Chroma will be lost when this container goes", "warning"))
    elif not repository:
        danger = "there is no repository: a lost disk is lost data"
        if place.throw_away:
            danger = (
                f"{place.path} is on a throw-away layer ({place.throw_away}) and there is no repository:"
                " everything will be lost when this container goes"
            )
        observer(Noted(f"{danger}; give --repository, or --ephemeral to accept it", "warning"))
    if place.remote:
        observer(Noted(f"{place.filesystem} cannot be trusted with SQLite's locks: use a local disk", "warning"))
    if names := ignored_variables(env, with_config=with_config):
        observer(Noted(f"set, but ignored by the Chroma 1.x server: {', '.join(names)}", "warning"))
