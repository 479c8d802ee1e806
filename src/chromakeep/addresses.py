"""The noun Address: one string names any place, and printing one never shows a secret.

=========================================== ============================================================
``./keep``, ``/data``, ``file:///data``     a local directory
``s3://bucket/prefix``                      Amazon S3 and what speaks its protocol (``?endpoint=URL&region=NAME``)
``r2://bucket/prefix``                      Cloudflare R2 (``?account=ID``, or ``?endpoint=URL``)
``spaces://bucket/prefix``                  DigitalOcean Spaces (``?region=nyc3``)
``gs://bucket/prefix``                      Google Cloud Storage
``az://container/prefix``                   Azure Blob Storage (``?account=NAME``, ``?endpoint=URL``)
``memory://name``                           objects in this process, gone when it ends
``http://host:8000/tenant/database``        a Chroma server, or one database of it
``chroma-cloud://tenant/database``          Chroma Cloud
``postgresql://user@host:5432/database``    a PostgreSQL with pgvector, as in libpq's URLs (``?sslmode=verify-full``)
=========================================== ============================================================

A snapshot in a repository is ``ADDRESS@SELECTOR``; see ``split_selector``. Credentials are never part of an address:
one that seems to hold any is refused, by a message that does not repeat it.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from chromakeep.errors import UsageError

OPTIONS: dict[str, frozenset[str]] = {
    "s3": frozenset({"endpoint", "region"}),
    "r2": frozenset({"endpoint", "account"}),
    "spaces": frozenset({"endpoint", "region"}),
    "gs": frozenset(),
    "az": frozenset({"endpoint", "account"}),
    "memory": frozenset(),
}
"""The kinds of object storage, and the query parameters each understands."""

CLOUD, POSTGRES = "chroma-cloud", "postgresql"
KNOWN = (
    "a local path, file://, s3://, r2://, spaces://, gs://, az://, memory://, http://, https://, chroma-cloud://, "
    "postgresql://"
)
POSTGRES_OPTIONS = frozenset(
    {"host", "port", "service", "target_session_attrs", "connect_timeout", "application_name", "channel_binding"}
    | {"sslmode", "sslrootcert", "sslcert", "sslkey", "sslnegotiation"}
)

# One slash is enough to be taken for a URL (a path normaliser makes ``s3:/b`` of ``s3://b``); a single letter is not a
# scheme, and a path that really begins so can be written ``./data:/x``.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")  # S3, R2, Spaces, Azure: 3 to 63; GCS: to 222 with dots
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SEGMENT = re.compile(r"[A-Za-z0-9!$&'()+,.:;=@_ -]{1,255}")  # what every store takes as it is, without escapes
_SELECTOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:+_-]{0,127}")
_URL = re.compile(r"(https?)://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_POSTGRES_HOSTS = re.compile(r"([A-Za-z0-9._%+-]+@)?[A-Za-z0-9._:,\[\]-]*")
_POSTGRES_VALUE = re.compile(r"[A-Za-z0-9/._,~ -]{1,255}")
_SECRETIVE = re.compile(r"secret|passw|pwd|token|key|credential|^sas|sig", re.IGNORECASE)


class Address(msgspec.Struct, frozen=True):
    """A place. Values are plain and already checked; ``parse(str(address)) == address``.

    ``kind`` is ``path``, ``http``, ``chroma-cloud``, ``postgresql`` or one of ``OPTIONS``; ``place`` the path as given,
    the bucket or container, the name in memory, the tenant, ``scheme://host:port`` or ``user@host:port``; ``prefix``
    what follows it, without slashes at its ends.
    """

    kind: str
    place: str
    prefix: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def option(self, name: str) -> str | None:
        """The value of a query parameter, or None."""
        return dict(self.options).get(name)

    @property
    def is_url(self) -> bool:
        """Whether the place is anything but a local path."""
        return self.kind != "path"

    def __str__(self) -> str:
        if self.kind == "path":  # a relative path that would read as a URL gets its ./ back
            return f"./{self.place}" if _SCHEME.match(self.place) else self.place
        url = self.place if self.kind == "http" else f"{self.kind}://{self.place}"
        query = "&".join(f"{name}={quote(value, safe=':/[]')}" for name, value in self.options)
        return url + (f"/{self.prefix}" if self.prefix else "") + (f"?{query}" if query else "")


def parse(text: str) -> Address:
    """Read an address. Raises UsageError, in one line that repeats nothing that may be a secret."""
    if not text.strip() or "\0" in text:
        raise UsageError("an address is empty", hint=f"name a place: {KNOWN}")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Address("path", text)
    kind = scheme.group(1).lower()
    rest = text[scheme.end() :]
    if kind == "file":
        return Address("path", _file_path(rest))
    kind = POSTGRES if kind == "postgres" else kind
    if kind not in OPTIONS and kind not in ("http", "https", CLOUD, POSTGRES):
        raise UsageError(f"{kind}:// is not a kind of address that is known", hint=f"known are {KNOWN}")
    if not rest.startswith("/"):
        raise UsageError(f"after {kind}: there are two slashes", hint=f"write {kind}://...")
    rest, _, query = rest[1:].partition("?")
    place, _, prefix = rest.partition("/")
    if kind == POSTGRES:
        return _postgres(place, prefix, query)
    if "@" in place or (kind in OPTIONS and ":" in place):
        raise _holds_credentials(kind)
    if kind in ("http", "https"):
        return _server(kind, place, prefix, query)
    if kind == CLOUD:
        return _cloud(place, prefix, query)
    if kind == "memory":
        if place and not _WORD.fullmatch(place):
            raise UsageError("memory://NAME takes letters, digits and ._- as its name")
    elif not _BUCKET.fullmatch(place) or ".." in place:
        raise UsageError(
            f"{kind}:// is not followed by the name of a {'container' if kind == 'az' else 'bucket'}",
            hint=f"write {kind}://NAME/PREFIX; a name has 3 or more of a-z, 0-9, dot and dash",
        )
    return Address(kind, place, _clean_prefix(kind, prefix), _options(kind, query))


def local_path(text: str) -> Path:
    """A path that must be local, such as Chroma's data directory. Raises UsageError when it looks like a URL."""
    if (address := parse(text)).is_url:
        raise UsageError(
            f"{address} is not a local path", hint="Chroma keeps its data in a local directory; name that one"
        )
    return Path(address.place)


def split_selector(text: str) -> tuple[str, str | None]:
    """Split ``ADDRESS@SELECTOR``; the selector is None when there is none.

    The last ``@`` of the last path segment divides; it may also stand before a query (``s3://b/p@latest?region=x``).
    A directory whose own name holds an ``@`` is written with a slash at its end. Raises UsageError when what follows
    the ``@`` is no selector.
    """
    if not _SCHEME.match(text):
        return _split(text)
    head, mark, query = text.partition("?")
    if mark:
        body, selector = _split(head)
        if selector is None:
            query, selector = _split(query)
        return f"{body}?{query}", selector
    return _split(head)


def _split(text: str) -> tuple[str, str | None]:
    at = text.rfind("@")
    if at < 0 or "/" in text[at:]:
        return text, None
    if re.search(r"://[^/]*:[^/]*$", text[:at]) and not re.search(r"=https?://[^/@]*:\d{1,5}$", text[:at]):
        return text, None  # user:password@host: not a selector, and parse() will refuse it
    if not _SELECTOR.fullmatch(text[at + 1 :]):
        raise UsageError(
            "after @ comes latest, a snapshot's id or a time such as 2026-08-01T12:00:05Z",
            hint="if the @ belongs to the name of a directory, end the path with a slash",
        )
    return text[:at], text[at + 1 :]


def _file_path(rest: str) -> str:
    """The path of ``file:/PATH`` or ``file://[localhost]/PATH`` (RFC 8089), ``rest`` being what follows ``file:/``."""
    if rest.startswith("/"):
        host, slash, path = rest[1:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise UsageError("file:// names no other host", hint="write file:///absolute/path")
        rest = path
    path = "/" + unquote(rest)
    if "\0" in path:
        raise UsageError("a path holds a NUL character")
    return path


def _server(scheme: str, host: str, prefix: str, query: str) -> Address:
    if not _URL.fullmatch(f"{scheme}://{host}"):
        raise UsageError(f"{scheme}:// is not followed by a host", hint=f"write {scheme}://HOST:PORT/TENANT/DATABASE")
    if query:
        raise UsageError(f"{scheme}://{host} takes no query parameters")
    return Address("http", f"{scheme}://{host}", _clean_prefix(scheme, prefix))


def _cloud(tenant: str, database: str, query: str) -> Address:
    if not _WORD.fullmatch(tenant) or not _WORD.fullmatch(database) or query:
        raise UsageError(f"{CLOUD}:// names a tenant and a database", hint=f"write {CLOUD}://TENANT/DATABASE")
    return Address(CLOUD, tenant, database)


def _postgres(place: str, database: str, query: str) -> Address:
    if ":" in place.rpartition("@")[0]:
        raise _holds_credentials(POSTGRES)
    if not _POSTGRES_HOSTS.fullmatch(place) or not _WORD.fullmatch(database):
        raise UsageError(
            f"{POSTGRES}:// names a host and a database", hint=f"write {POSTGRES}://USER@HOST:PORT/DATABASE"
        )
    return Address(POSTGRES, place, database, _options(POSTGRES, query))


def without_password(url: str) -> str:
    """A libpq URL for eyes, wherever it is from: user, hosts and database, nothing else."""
    user, at, hosts = url.partition("://")[2].partition("?")[0].rpartition("@")
    return f"{POSTGRES}://{user.partition(':')[0]}{at}{hosts}"


def _clean_prefix(kind: str, prefix: str) -> str:
    prefix = prefix.strip("/")
    for segment in prefix.split("/") if prefix else ():
        if segment in ("", ".", "..") or not _SEGMENT.fullmatch(segment) or segment != segment.strip():
            raise UsageError(
                f"{segment!r} cannot be part of a {kind}:// address",
                hint="a prefix is made of ASCII letters, digits, . _ - and single slashes",
            )
    return prefix


def _options(kind: str, query: str) -> tuple[tuple[str, str], ...]:
    options: dict[str, str] = {}
    known = POSTGRES_OPTIONS if kind == POSTGRES else OPTIONS[kind]
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            if _SECRETIVE.search(name):
                raise _holds_credentials(kind)
            takes = ", ".join(sorted(known)) or "none"
            shown = name if _WORD.fullmatch(name) else "?"
            raise UsageError(f"{kind}:// does not understand the parameter {shown!r}", hint=f"it takes {takes}")
        if name in options:
            raise UsageError(f"the parameter {name!r} is given twice")
        form = _POSTGRES_VALUE if kind == POSTGRES else _URL if name == "endpoint" else _WORD
        if not form.fullmatch(value):
            like = "http://host:port or https://host" if name == "endpoint" else "letters, digits and ._-"
            raise UsageError(f"the parameter {name!r} of {kind}:// is not well formed", hint=f"it takes {like}")
        options[name] = value.rstrip("/") or value
    return tuple(sorted(options.items()))


def authority(host: str, port: int) -> str:
    """Both as they stand in a URL and in ``Host``: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _holds_credentials(kind: str) -> UsageError:
    variables = {
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        "http": "CHROMA_TOKEN (of one end: CHROMA_TOKEN_FROM, CHROMA_TOKEN_TO)",
        "https": "CHROMA_TOKEN (of one end: CHROMA_TOKEN_FROM, CHROMA_TOKEN_TO)",
        CLOUD: "CHROMA_API_KEY (of one end: CHROMA_API_KEY_FROM, CHROMA_API_KEY_TO)",
        POSTGRES: "PGPASSWORD or PGPASSFILE",
    }
    return UsageError(
        f"a {kind}:// address seems to hold credentials, which would end up in logs and histories",
        hint=f"set {variables.get(kind, 'AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY')} in the environment instead",
    )
