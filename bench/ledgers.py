"""What the books cost a request in the door's thread, and what the page of metrics costs: microseconds each.

python bench/ledgers.py
"""

from __future__ import annotations

import time

from chromakeep.operations.outputs import Stream
from chromakeep.server.access_log import AccessLog
from chromakeep.server.auditing import Auditing
from chromakeep.server.exposition import Exposition
from chromakeep.server.guard import Account, Ledger
from chromakeep.server.ledgers import Several
from chromakeep.server.metrics import MOST_SERIES, Metrics
from chromakeep.server.request_head import RequestHead

COLLECTION = b"/api/v2/tenants/t/databases/d/collections/0e7c3c3e-8a53-4d5e-9a0e-6d1c3e1f5b11/"
ROUNDS = 100_000


def of(ledger: Ledger, verb: bytes) -> float:
    """Microseconds a request, at best of five."""
    head = RequestHead("POST", (COLLECTION + verb).decode(), (), 0, True, True, False, b"")
    account = Account(head, "127.0.0.1", 0.0)
    account.status, account.route, account.key = 200, "collection." + verb.decode(), "app"
    best = 1e9
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(ROUNDS // 5):
            ledger.begun(account)
            ledger.ended(account, 0.01)
        best = min(best, (time.perf_counter() - begun) / (ROUNDS // 5))
    return best * 1e6


def main() -> None:
    metrics, log, audit = Metrics(), AccessLog(Stream(1)), Auditing(lambda fields: None)
    log._scribe._most = 1 << 30
    print(f"metrics             {of(metrics, b'query'):6.2f} us")
    print(f"access log          {of(log, b'query'):6.2f} us")
    print(f"audit, of a read    {of(audit, b'query'):6.2f} us")
    print(f"audit, of a write   {of(audit, b'add'):6.2f} us")
    print(f"all three           {of(Several((metrics, log, audit)), b'add'):6.2f} us")
    for number in range(MOST_SERIES):
        metrics.requests[f"route{number % 30}", "GET", 200, f"key{number}"] = number
        metrics.durations.setdefault(f"route{number % 30}", [1.0] * 16)
    page = Exposition(metrics).now
    page()
    begun = time.perf_counter()
    shown = page()
    print(f"page, {MOST_SERIES} series {(time.perf_counter() - begun) * 1e6:8.0f} us, {len(shown.body):,} bytes")


if __name__ == "__main__":
    main()
