"""Endpoints and credentials: the address wins over the environment, the environment over ~/.aws."""

from __future__ import annotations

from pathlib import Path

import pytest

from chromakeep.addresses import parse
from chromakeep.errors import StoreDenied, UsageError
from chromakeep.store.credentials import configuration


@pytest.mark.parametrize(
    ("address", "environ", "options"),
    [
        ("s3://bucket", {}, {}),
        ("s3://bucket?region=eu-west-1", {"AWS_REGION": "x"}, {"region": "eu-west-1"}),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://minio:9000"}, {"endpoint": "http://minio:9000"}),
        ("s3://bucket?endpoint=http://a", {"AWS_ENDPOINT_URL": "http://b"}, {"endpoint": "http://a"}),
        (
            "s3://bucket?endpoint=http://a",
            {"AWS_ENDPOINT_URL_S3": "http://b"},
            {"endpoint": "http://a", "aws_endpoint_url_s3": "http://a"},
        ),
        (
            "r2://bucket?account=0a1b",
            {"AWS_ENDPOINT_URL": "http://not-this"},
            {"endpoint": "https://0a1b.r2.cloudflarestorage.com", "region": "auto"},
        ),
        (
            "r2://bucket",
            {"CLOUDFLARE_ACCOUNT_ID": "0a1b"},
            {"endpoint": "https://0a1b.r2.cloudflarestorage.com", "region": "auto"},
        ),
        (
            "spaces://bucket?region=nyc3",
            {"SPACES_ACCESS_KEY_ID": "id", "SPACES_SECRET_ACCESS_KEY": "secret", "AWS_ACCESS_KEY_ID": "other"},
            {
                "endpoint": "https://nyc3.digitaloceanspaces.com",
                "region": "us-east-1",
                "access_key_id": "id",
                "secret_access_key": "secret",
            },
        ),
        ("az://container?account=name", {}, {"account_name": "name"}),
        ("az://container", {"AZURE_STORAGE_ENDPOINT": "http://azurite:1"}, {"endpoint": "http://azurite:1"}),
        ("gs://bucket", {"AWS_ENDPOINT_URL": "http://not-this"}, {}),
    ],
)
def test_what_address_and_environment_imply(
    address: str, environ: dict[str, str], options: dict[str, str], tmp_path: Path
) -> None:
    """Endpoint and region come from the address, then from the cloud's own variables."""
    assert configuration(parse(address), {"HOME": str(tmp_path), **environ}) == options


@pytest.mark.parametrize("address", ["r2://bucket", "spaces://bucket"])
def test_what_cannot_be_guessed_is_asked_for(address: str) -> None:
    """R2 needs an account and Spaces a region: the hint says where to put it."""
    with pytest.raises(UsageError, match="does not say") as caught:
        configuration(parse(address), {})
    assert "set " in str(caught.value.hint)


def test_profiles_of_aws_are_read(tmp_path: Path) -> None:
    """The keys of ~/.aws/credentials are used when the environment has none, AWS_PROFILE choosing the profile."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = B%s\n"
        "[work]\naws_access_key_id=C\naws_secret_access_key=D\naws_session_token=E\n"
    )
    (tmp_path / ".aws" / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile work]\nregion = us-west-2\n[profile sso]\nsso_session = x\n"
    )
    s3, home = parse("s3://bucket"), {"HOME": str(tmp_path)}
    default = {"access_key_id": "A", "secret_access_key": "B%s", "region": "eu-west-1"}
    assert configuration(s3, home) == default
    assert configuration(s3, home | {"AWS_REGION": "x"}) == {k: v for k, v in default.items() if k != "region"}
    assert configuration(parse("s3://bucket?region=y"), home) == default | {"region": "y"}
    work = {"access_key_id": "C", "secret_access_key": "D", "session_token": "E", "region": "us-west-2"}
    assert configuration(s3, home | {"AWS_PROFILE": "work"}) == work
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        assert configuration(s3, home | {variable: "x"}) == {}
    for profile in ("sso", "absent"):
        with pytest.raises(StoreDenied, match="holds no access key") as caught:
            configuration(s3, home | {"AWS_PROFILE": profile})
        assert "export-credentials" in str(caught.value.hint)


@pytest.mark.parametrize("content", [b"no section", b"\xff\xfe", b"[default]\naws_access_key_id\n", b""])
def test_a_broken_credentials_file_is_no_crash(tmp_path: Path, content: bytes) -> None:
    """A file that cannot be read as AWS's is as good as none."""
    path = tmp_path / "credentials"
    path.write_bytes(content)
    environ = {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_CONFIG_FILE": str(tmp_path)}
    assert configuration(parse("s3://bucket"), environ) == {}
