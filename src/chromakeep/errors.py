"""The one tree of errors, grouped by what a handler would do about them.

Every class carries a stable ``code`` (for JSON), the process ``exit_status`` and the ``http_status`` a face answers
with; every instance carries one line of what happened and, in ``hint``, what to do next.
"""

from __future__ import annotations


class ChromakeepError(Exception):
    """Something that stops the operation and that a person should read as one line."""

    code = "error"
    exit_status = 1
    http_status = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(ChromakeepError):
    """The request itself is wrong: an address, an option, a combination of them."""

    code = "usage"
    exit_status = 2
    http_status = 400


class TargetNotEmpty(UsageError):
    """A restore would overwrite what is there, and nobody said it may."""

    code = "target-not-empty"


class PartialFailure(ChromakeepError):
    """The operation finished, and part of it could not be done (named in the message)."""

    code = "partial"
    exit_status = 3


class RepositoryNotFound(ChromakeepError):
    """There is no repository at that address."""

    code = "no-repository"
    exit_status = 10
    http_status = 404


class RepositoryBusy(ChromakeepError):
    """Another process holds what this one needs: a prune is under way, or this writer's session was fenced."""

    code = "busy"
    exit_status = 11
    http_status = 409


class WrongPassword(ChromakeepError):
    """The repository is encrypted and the password is missing or opens none of its keys."""

    code = "wrong-password"
    exit_status = 12
    http_status = 403


class SnapshotNotFound(ChromakeepError):
    """No snapshot matches the selector."""

    code = "no-snapshot"
    exit_status = 13
    http_status = 404


class VerificationFailed(ChromakeepError):
    """Bytes or records are not what was recorded of them. Never raised for a passing fault."""

    code = "verification-failed"
    exit_status = 14


class CorruptObject(VerificationFailed):
    """An object of the repository is damaged, truncated or foreign; ``name`` says which."""

    code = "corrupt-object"

    def __init__(self, name: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(
            f"{name}: {what}", hint=hint or "run `chromakeep check --read-data` to see which snapshots need this object"
        )
        self.name = name


class MissingObject(VerificationFailed):
    """An object that the repository needs is gone; ``name`` says which."""

    code = "missing-object"

    def __init__(self, name: str, *, hint: str | None = None) -> None:
        super().__init__(f"{name}: missing from the store", hint=hint)
        self.name = name


class UnsupportedFormat(ChromakeepError):
    """Written by a newer chromakeep, or by something else."""

    code = "unsupported-format"
    exit_status = 14


class SourceError(ChromakeepError):
    """The directory to be backed up cannot give an exact copy."""

    code = "source"
    exit_status = 15


class NotAChromaDirectory(SourceError):
    """There is no Chroma database where one was expected."""

    code = "not-a-chroma-directory"


class SourceBroken(SourceError):
    """The directory is damaged already: no capture of it can be exact."""

    code = "source-broken"


class SourceBusy(SourceError):
    """Writers never left a moment in which the directory was whole."""

    code = "source-busy"


class StoreError(ChromakeepError):
    """The object store did not do what was asked."""

    code = "store"
    exit_status = 16
    http_status = 502


class StoreUnavailable(StoreError):
    """The store cannot be reached or answers with a fault that may pass: worth another try."""

    code = "store-unavailable"
    http_status = 503


class StoreDenied(StoreError):
    """The store refuses these credentials or this path: another try will not help."""

    code = "store-denied"


class ObjectNotFound(StoreError):
    """No object has that name."""

    code = "object-not-found"
    http_status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: no such object")
        self.name = name


class ObjectExists(StoreError):
    """``put(..., if_absent=True)`` found an object of that name; nothing was written."""

    code = "object-exists"
    http_status = 409

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: already exists")
        self.name = name


class DiskFull(ChromakeepError):
    """The local disk has no room for the result; what was there before is untouched."""

    code = "disk-full"
    exit_status = 17
    http_status = 507


class ServerFailed(ChromakeepError):
    """The supervised ``chroma run`` does not start, or keeps dying."""

    code = "server-failed"
    exit_status = 18
    http_status = 503


class ServerAnswered(ServerFailed):
    """A Chroma server answered a request with an error; ``status`` is its HTTP status, ``message`` its own words."""

    code = "server-answered"
    http_status = 502

    def __init__(self, status: int, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ServerSilent(ServerFailed):
    """A Chroma server did not answer: ``timed_out`` after the time allowed, or the connection was refused or cut."""

    code = "server-silent"
    http_status = 504

    def __init__(self, message: str, *, timed_out: bool, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.timed_out = timed_out


class RefusedToServe(ChromakeepError):
    """Serving now would show an empty or wrong store as if it were right."""

    code = "refused-to-serve"
    exit_status = 19
    http_status = 503


class NotNow(ChromakeepError):
    """This instance does not take writes at the moment; that passes."""

    code = "not-now"
    exit_status = 11
    http_status = 503


class LeaseLost(ChromakeepError):
    """Another instance writes to the repository now; what this one would still acknowledge could be lost."""

    code = "lease-lost"
    exit_status = 20
    http_status = 503


Flat = tuple[str, str, str | None]  # an error on its way between processes: class, message, hint


def flat(error: ChromakeepError) -> Flat:
    """An error for another process of ours."""
    return type(error).__name__, error.message, error.hint


def revived(kind: str, message: str, hint: str | None) -> ChromakeepError:
    """What ``flat`` made of an error, as an error again. A class that is not known here becomes a ``SourceError``."""
    known = globals().get(kind)
    if isinstance(known, type) and issubclass(known, ChromakeepError):
        return known(message, hint=hint)
    return SourceError(message, hint=hint)
