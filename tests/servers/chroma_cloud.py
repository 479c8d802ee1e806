"""A server that is to Chroma Cloud what a film set is to a town: a real Chroma behind its token and its limits."""

from __future__ import annotations

from collections.abc import Callable

from servers.middle import Answer, Asked, forwarder, told

TOKEN = "ck-4f1d-secret"
AT_A_TIME = 300


def cloud(upstream: str) -> Callable[[Asked], Answer]:
    """The answers of Chroma Cloud as its client libraries and its source tell them."""
    forward = forwarder(upstream)

    def answer(asked: Asked) -> Answer:
        if asked.headers.get("x-chroma-token") != TOKEN:
            return told(401, "Unauthorized", "AuthError")
        if asked.method == "POST" and asked.verb in ("tenants", "databases"):
            return told(403, "Forbidden", "AuthError")
        if asked.verb in ("add", "upsert", "delete") and asked.json.get("ids"):
            count = len(asked.json["ids"])
            if count > AT_A_TIME:
                return _quota("Number of records", asked.verb.title(), count)
        if asked.verb == "get":
            limit = asked.json.get("limit") or len(asked.json.get("ids") or ()) or 1000
            if limit > AT_A_TIME:
                return _quota("Limit value", "Get", limit)
        if asked.verb == "add":
            for document in asked.json.get("documents") or ():
                if document and len(document.encode()) > 16_384:
                    return _quota("Document size (bytes)", "Add", len(document.encode()), 16_384)
        return forward(asked)

    return answer


def _quota(what: str, action: str, usage: int, limit: int = AT_A_TIME) -> Answer:
    return told(
        422,
        f"Quota exceeded: '{what}' exceeded quota limit for action '{action}': current usage of {usage} exceeds limit"
        f" of {limit}. Please reach out to support@trychroma.com to raise it.",
        "QuotaError",
    )
