"""Which requests count as writes."""

from __future__ import annotations

import pytest

from chromakeep.server.routes import is_write

D = "/api/v2/tenants/t/databases/d"
C = f"{D}/collections/0b9a41ae"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/v2/heartbeat", f"{C}/count", f"{C}/add", "/api/v2/reset", "/", "/anything"])
def test_methods_that_only_read(method: str, path: str) -> None:
    assert not is_write(method, path)


@pytest.mark.parametrize("verb", ["get", "query", "search", "count"])
def test_posts_that_read(verb: str) -> None:
    assert not is_write("POST", f"{C}/{verb}")
    assert is_write("PUT", f"{C}/{verb}")


@pytest.mark.parametrize(
    "path",
    [
        "/api/v2/reset", "/api/v2/tenants", f"{D}/collections", f"{C}/add", f"{C}/update", f"{C}/upsert", f"{C}/delete",
        f"{C}/fork", f"{C}/functions/attach", f"{C}/attached_functions/f/detach", "/api/v2/tenants/t/databases",
        # near misses of a read
        f"{D}/collections/get", f"{C}/get/", f"{C}//get", f"{C}/x/get", f"{C}/Get", f"{C}/%67et", f"{C}/get%20",
        f"/{C}/get", f"{C}/getter", f"/api/v1{C[7:]}/get", f"{C}/get\n", f"{C}/add?x=/get", f"{C}/query;add", "",
    ],
)  # fmt: skip
def test_every_other_post_counts_as_a_write(path: str) -> None:
    assert is_write("POST", path)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_methods_that_change(method: str) -> None:
    assert is_write(method, C)
