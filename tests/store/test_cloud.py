"""CloudStore against real servers of the S3 and Azure protocols.

Google Cloud Storage has no emulator that obstore can speak to (gcp-storage-emulator answers a put without the ETag
obstore asks for, and ignores preconditions), so ``gs://`` is tested as far as its construction only.
"""

from __future__ import annotations

import itertools
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from chromakeep.addresses import parse
from chromakeep.errors import ObjectNotFound, StoreDenied, StoreError, StoreUnavailable
from chromakeep.store import probe
from chromakeep.store.base import Store
from chromakeep.store.cloud import CloudStore
from chromakeep.store.open import open_store
from chromakeep.store.probe import conditional_put_holds
from chromakeep.testing.store_suite import StoreSuite
from servers.azure import AzureServer
from servers.process import refused
from servers.s3 import S3Server, start_swift

KEYS = {"access_key_id": "someone", "secret_access_key": "HUNTER2"}
fresh = (f"prefix-{n}/a b" for n in itertools.count())
"""A prefix for each test, with a blank in it: what is allowed in an address must work."""


class TestMoto(StoreSuite):
    @pytest.fixture
    def store(self, moto: S3Server) -> Iterator[Store]:
        yield open_store(moto.address("suite", next(fresh)), options=moto.options, environ={})


class TestSwift(StoreSuite):
    conditional = False  # it looks first and writes then
    many = 150  # it syncs every object; moto's and Azurite's listings have more than one page
    big = 6 * 1024 * 1024

    @pytest.fixture
    def store(self, swift: S3Server) -> Iterator[Store]:
        yield open_store(swift.address("suite", next(fresh)), options=swift.options, environ={})


class TestAzurite(StoreSuite):
    @pytest.fixture
    def store(self, azurite: AzureServer) -> Iterator[Store]:
        yield open_store(azurite.address("suite", next(fresh)), options=azurite.options, environ={})


def test_a_conditional_put_is_believed_where_it_holds(
    moto: S3Server, azurite: AzureServer, swift: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe trusts moto and Azurite, finds Swift's race between look and write, and leaves nothing behind."""
    for server, holds in ((moto, True), (azurite, True), (swift, False)):
        if server is swift:  # on a busy machine two meet in every second round, so eight may pass without it
            monkeypatch.setattr(probe, "ROUNDS", 64)
        store = open_store(server.address("probe"), options=server.options, environ={})
        assert conditional_put_holds(store) is holds
        assert list(store.list()) == []


def test_objects_outlive_the_server(tmp_path: Path) -> None:
    """What Swift acknowledged is there after all its processes were killed."""
    server = start_swift(tmp_path)
    try:
        store = open_store(server.address("kept", "p"), options=server.options, environ={})
        for n in range(20):
            store.put(f"{n:02d}", b"x" * n)
    finally:
        server.stop()
    server = start_swift(tmp_path)
    try:
        store = open_store(server.address("kept", "p"), options=server.options, environ={})
        assert [(o.name, o.size) for o in store.list()] == [(f"{n:02d}", n) for n in range(20)]
    finally:
        server.stop()


def errors_of(store: Store, *, without: tuple[str, ...] = ()) -> dict[str, StoreError]:
    """What each verb raises, checked to be one line that holds no secret."""
    verbs: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("a", b"1"),
        "put if absent": lambda: store.put("a", b"1", if_absent=True),
        "get": lambda: store.get("a"),
        "get range": lambda: store.get("a", start=1, length=2),
        "head": lambda: store.head("a"),
        "list": lambda: list(store.list()),
        "delete": lambda: store.delete("a"),
    }
    found = {}
    for verb, call in verbs.items():
        if verb not in without:
            with pytest.raises(StoreError) as caught:
                call()
            found[verb] = caught.value
            said = f"{caught.value.message} {caught.value.hint}"
            assert "\n" not in said
            assert "HUNTER2" not in said
    return found


def cloud(address: str, options: dict[str, str]) -> CloudStore:
    """A CloudStore without the retrying around it, so that its own errors are seen."""
    return CloudStore(parse(address), options=options)


def test_wrong_keys_are_denied(swift: S3Server) -> None:
    """Swift checks signatures: a wrong secret or key id is told at once, with the variables to set."""
    address = swift.address("denied")
    for wrong in ({"secret_access_key": "HUNTER2"}, {"access_key_id": "nobody"}):
        errors = errors_of(cloud(address, {**swift.options, **wrong}))
        assert all(isinstance(error, StoreDenied) for error in errors.values())
        assert all("AWS_SECRET_ACCESS_KEY" in str(error.hint) for error in errors.values())
        assert "do not fit together (SignatureDoesNotMatch)" in errors.pop("get").message
        assert "refused (403)" in errors.pop("head").message  # an answer to HEAD has no body to explain it
        assert all("do not fit together" in error.message for error in errors.values())


def test_a_wrong_account_key_is_denied(azurite: AzureServer) -> None:
    """Azurite checks the key of the account; one that is not even base64 is found before anything is sent."""
    address = azurite.address("denied")
    errors = errors_of(cloud(address, {"account_key": "SFVOVEVSMg=="}), without=("head",))
    assert all(isinstance(error, StoreDenied) for error in errors.values())
    assert all("the account key is wrong" in error.message for error in errors.values())
    with pytest.raises(StoreDenied, match="Access Key"):
        cloud(address, {"account_key": "not base64 HUNTER2"}).get("a")


def test_a_missing_bucket_is_told(moto: S3Server, swift: S3Server, azurite: AzureServer) -> None:
    """No verb takes a bucket that is not there for an object that is not there, except head, which cannot tell."""
    for server in (moto, swift, azurite):
        address = server.address("there").replace("//there", "//not-there")
        store = cloud(address, server.options)
        errors = errors_of(store)
        assert isinstance(errors.pop("head"), ObjectNotFound)
        what = "container" if server is azurite else "bucket"
        assert all(isinstance(error, StoreDenied) for error in errors.values())
        assert all(f"there is no such {what}" in error.message for error in errors.values())


def test_the_right_region_is_named(swift: S3Server) -> None:
    """A bucket in another region is told with the region to ask for."""
    error = errors_of(cloud(swift.address("region"), {**swift.options, "region": "eu-west-1"}))["get"]
    assert isinstance(error, StoreDenied)
    assert "region=us-east-1" in str(error.hint)


def test_a_server_that_is_not_there_may_come_back() -> None:
    """A refused connection and a host name that is not found are worth another try."""
    nowhere = f"{'x' * 64}.invalid"  # longer than a label may be: no server of names is asked, which may be slow
    with refused() as port:
        for host, what in ((f"127.0.0.1:{port}", "refuses the connection"), (nowhere, "is not found")):
            errors = errors_of(cloud(f"s3://bucket?endpoint=http://{host}", KEYS))
            assert all(isinstance(error, StoreUnavailable) for error in errors.values())
            assert all(what in error.message and host in error.message for error in errors.values())


def test_no_credentials_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no key in the environment and no metadata service, the hint says which variables to set."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    with refused() as port:
        error = errors_of(cloud("s3://bucket", {"metadata_endpoint": f"http://127.0.0.1:{port}"}))["put"]
    assert isinstance(error, StoreDenied)
    assert "no credentials were found" in error.message
    assert "AWS_ACCESS_KEY_ID" in str(error.hint)


def pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def test_tls_is_checked(tmp_path: Path, moto: S3Server) -> None:
    """A certificate nobody vouches for is refused, and so is a server that does not speak TLS at all."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]), datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    (tmp_path / "cert").write_bytes(builder.sign(private, SHA256()).public_bytes(Encoding.PEM))
    (tmp_path / "key").write_text(pem(private))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        error = errors_of(cloud(f"s3://bucket?endpoint=https://127.0.0.1:{server.server_port}", KEYS))["get"]
    finally:
        server.shutdown()
        server.server_close()
    assert isinstance(error, StoreDenied)
    assert "certificate" in error.message
    error = errors_of(cloud(f"s3://bucket?endpoint={moto.endpoint.replace('http:', 'https:')}", KEYS))["get"]
    assert isinstance(error, StoreDenied)
    assert "does not speak TLS" in error.message


def test_google_cloud_storage_can_be_constructed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gs:// opens with a service account's key; a key file that is not there is told."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    key = tmp_path / "key.json"
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {"type": "service_account", "private_key": pem(private), "private_key_id": "1", "client_email": "a@b"}
    key.write_text(json.dumps(account))
    open_store("gs://bucket/prefix", options={"application_credentials": str(key)}, environ={})
    with pytest.raises(StoreDenied, match="No such file"):
        open_store("gs://bucket/prefix", options={"application_credentials": str(tmp_path / "none")}, environ={})
