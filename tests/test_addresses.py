"""One string names any place, and printing one never shows a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromakeep.addresses import OPTIONS, Address, local_path, parse, split_selector
from chromakeep.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("./chroma", Address("path", "./chroma")),
        ("/data", Address("path", "/data")),
        ("data", Address("path", "data")),
        ("./s3:/odd", Address("path", "./s3:/odd")),
        ("c:/data", Address("path", "c:/data")),
        ("me@home/x y", Address("path", "me@home/x y")),
        ("file:///var/lib/a%20b", Address("path", "/var/lib/a b")),
        ("file:/var/lib", Address("path", "/var/lib")),
        ("file://localhost/var", Address("path", "/var")),
        ("s3://bucket", Address("s3", "bucket")),
        ("s3://bucket/", Address("s3", "bucket")),
        ("S3://bucket/a/b/", Address("s3", "bucket", "a/b")),
        (
            "s3://bucket/p?region=us-east-1&endpoint=http://127.0.0.1:5560/",
            Address("s3", "bucket", "p", (("endpoint", "http://127.0.0.1:5560"), ("region", "us-east-1"))),
        ),
        ("s3://b-1/p?endpoint=http%3A%2F%2F[::1]:99", Address("s3", "b-1", "p", (("endpoint", "http://[::1]:99"),))),
        ("r2://bucket/p?account=0a1b", Address("r2", "bucket", "p", (("account", "0a1b"),))),
        ("spaces://bucket?region=nyc3", Address("spaces", "bucket", "", (("region", "nyc3"),))),
        ("gs://my_bucket.example.com/p", Address("gs", "my_bucket.example.com", "p")),
        ("az://container/p@q", Address("az", "container", "p@q")),
        ("postgresql://app@db:5432/chroma", Address("postgresql", "app@db:5432", "chroma")),
        ("postgres://one,two:5433/chroma", Address("postgresql", "one,two:5433", "chroma")),
        (
            "postgresql:///chroma?host=/run/pg&sslmode=require",
            Address("postgresql", "", "chroma", (("host", "/run/pg"), ("sslmode", "require"))),
        ),
        ("memory://", Address("memory", "")),
        ("memory://one/p", Address("memory", "one", "p")),
        ("http://localhost:8000", Address("http", "http://localhost:8000")),
        ("https://h.example/t/d", Address("http", "https://h.example", "t/d")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    """Each kind is understood, and what is printed is read back as the same place."""
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a\0b",
        "ftp://host/x",
        "s3:/bucket/x",
        "s3://",
        "s3:///x",
        "s3://ab",
        "s3://Bucket/x",
        "s3://a..b/x",
        "s3://bucket/a//b",
        "s3://bucket/a/../b",
        "s3://bucket/a\nb",
        "s3://bucket/a%2Fb",
        "s3://bucket/ a",
        "s3://bucket?nonsense=1",
        "s3://bucket?region=a&region=b",
        "s3://bucket?region=",
        "s3://bucket?region=a%0Ab",
        "s3://bucket?endpoint=ftp://x",
        "s3://bucket?endpoint=http://",
        "s3://bucket?endpoint=http://h/?x=y",
        "gs://bucket?region=x",
        "memory://a b",
        "http://",
        "http:///x",
        "http://host?x=y",
        "http://host:port",
        "file://otherhost/x",
        "file://x",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    """Nothing is ignored silently; the refusal is one line with a hint or a reason."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    """Who mistypes a scheme is told which there are."""
    with pytest.raises(UsageError, match="gcs://") as caught:
        parse("gcs://bucket")
    assert caught.value.hint is not None
    assert all(f"{kind}://" in caught.value.hint for kind in OPTIONS)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA:HUNTER2@bucket/p",
        "s3://AKIA:HUN/HUNTER2@bucket/p",
        "s3://AKIA:HUNTER2@bucket",
        "s3://HUNTER2@bucket/p",
        "https://user:HUNTER2@host/x",
        "https://user:HUNTER2@host",
        "https://HUNTER2@host/x",
        "s3://bucket/p?secret_access_key=HUNTER2",
        "s3://bucket/p?secret=HUNTER2",
        "postgresql://app:HUNTER2@db/chroma",
        "postgresql://app@db/chroma?password=HUNTER2",
        "az://container/p?sig=HUNTER2",
        "az://container?sas=HUNTER2",
        "s3://bucket/p?endpoint=http://user:HUNTER2@host:99",
        "s3://bucket/p?endpoint=http://user:HUNTER2@host",
        "s3://bucket/p?region=HUNTER2!",
        "http://host?token=HUNTER2",
        "ftp://user:HUNTER2@host/x",
        "HTTP://user:HUNTER2@host",
    ],
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    """An address that holds credentials is refused, by a message without them, with or without a selector."""
    for whole in (text, f"{text}@latest"):
        with pytest.raises(UsageError) as caught:
            parse(split_selector(whole)[0])
        assert "HUNTER2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("./repo", ("./repo", None)),
        ("./repo@latest", ("./repo", "latest")),
        ("./repo@2026-08-01T12:00:05Z", ("./repo", "2026-08-01T12:00:05Z")),
        ("./repo@2026-08-01T12:00:05.5+02:00", ("./repo", "2026-08-01T12:00:05.5+02:00")),
        ("/me@home/repo", ("/me@home/repo", None)),
        ("/me@home/repo@0a1b", ("/me@home/repo", "0a1b")),
        ("/me@home/", ("/me@home/", None)),
        ("/a@b@latest", ("/a@b", "latest")),
        ("s3://bucket@latest", ("s3://bucket", "latest")),
        ("s3://bucket/p@latest", ("s3://bucket/p", "latest")),
        ("s3://bucket/p@x/q", ("s3://bucket/p@x/q", None)),
        ("s3://bucket/p@latest?region=a", ("s3://bucket/p?region=a", "latest")),
        ("s3://bucket/p?region=a@latest", ("s3://bucket/p?region=a", "latest")),
        (
            "s3://bucket/p?endpoint=http://127.0.0.1:5560@latest",
            ("s3://bucket/p?endpoint=http://127.0.0.1:5560", "latest"),
        ),
        ("s3://bucket/p?endpoint=https://h@latest", ("s3://bucket/p?endpoint=https://h", "latest")),
    ],
)
def test_a_selector_is_split_off(text: str, parts: tuple[str, str | None]) -> None:
    """The last @ of the last segment divides; user-info, folders and queries are left whole."""
    assert split_selector(text) == parts


@pytest.mark.parametrize("text", ["./repo@", "./repo@a b", "./repo@-x", "s3://bucket/p@?region=a"])
def test_an_impossible_selector_is_refused(text: str) -> None:
    """An @ at the end of a name is a mistake, and the hint says how to write a directory whose name holds one."""
    with pytest.raises(UsageError, match="after @") as caught:
        split_selector(text)
    assert "slash" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["s3://bucket/data", "s3:/bucket/data", "https://host/x", "gs://bucket", "memory://"])
def test_a_data_directory_is_no_url(text: str) -> None:
    """A URL where a local directory is needed is refused, instead of a folder called s3: being made."""
    with pytest.raises(UsageError) as caught:
        local_path(text)
    assert caught.value.hint


def test_a_local_path_is_a_path() -> None:
    """Relative, absolute and file:// paths are returned as given; ./ makes a path of anything."""
    assert local_path("data/x") == Path("data/x")
    assert local_path("file:///a") == Path("/a")
    assert local_path("./s3:/x") == Path("s3:/x")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No string makes parse or split_selector raise anything but UsageError, and what is read is printed faithfully."""
    for candidate in (text, f"s3://bucket/{text}", f"s3://bucket?{text}", f"http://{text}", f"file:{text}"):
        try:
            address = parse(split_selector(candidate)[0])
        except UsageError:
            continue
        assert parse(str(address)) == address
