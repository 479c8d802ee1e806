"""key: the passwords of an encrypted repository. Changing one rewrites a few hundred bytes, never data."""

from __future__ import annotations

import msgspec

from chromakeep.errors import UsageError
from chromakeep.repository.repository import Repository, add_key, slots


class Key(msgspec.Struct, frozen=True):
    """One password's slot. ``kdf`` names the memory-hard function that stretches it."""

    id: str
    created: str
    kdf: str


class KeyReport(msgspec.Struct, frozen=True):
    """The passwords there are after the operation, and which were added and removed by it."""

    keys: tuple[Key, ...]
    added: str | None = None
    removed: tuple[str, ...] = ()


def keys(repository: Repository) -> KeyReport:
    """The passwords' slots, oldest first."""
    found = [Key(name.removeprefix("keys/"), s.created, str(s.kdf.get("name"))) for name, s in slots(repository)]
    return KeyReport(tuple(sorted(found, key=lambda k: k.created)))


def add(repository: Repository, password: str) -> KeyReport:
    """One more password that opens the repository."""
    _refuse_unencrypted(repository)
    if not password:
        raise UsageError("the new password is empty", hint="set CHROMAKEEP_NEW_PASSWORD or ..._NEW_PASSWORD_FILE")
    name = add_key(repository.store, repository.config, repository.keys.master, password)
    return KeyReport(keys(repository).keys, added=name.removeprefix("keys/"))


def remove(repository: Repository, identity: str) -> KeyReport:
    """Take a password away (any unique beginning of its id). Never the last one."""
    _refuse_unencrypted(repository)
    present = keys(repository).keys
    found = [k for k in present if k.id.startswith(identity)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} keys begin with {identity!r}", hint="list them: chromakeep key list REPO")
    if len(present) == 1:
        raise UsageError("that is the only password", hint="add another first: chromakeep key add REPO")
    repository.store.delete(f"keys/{found[0].id}")
    return KeyReport(keys(repository).keys, removed=(found[0].id,))


def change(repository: Repository, password: str) -> KeyReport:
    """Make ``password`` the only one. The new slot is read back and opens the repository before an old one goes."""
    before = [k.id for k in keys(repository).keys]
    added = add(repository, password).added
    Repository.open(repository.store, password=password)
    for identity in before:
        repository.store.delete(f"keys/{identity}")
    return KeyReport(keys(repository).keys, added=added, removed=tuple(before))


def _refuse_unencrypted(repository: Repository) -> None:
    if not repository.config.encrypted:
        raise UsageError(
            "the repository is not encrypted: it has no passwords",
            hint="make an encrypted one beside it: CHROMAKEEP_PASSWORD_FILE=... chromakeep init OTHER",
        )
