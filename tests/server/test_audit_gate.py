"""Where every write has to be recorded, none begins while it could not be."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chromakeep.operations.audit import Audit
from chromakeep.operations.duty import SERVING, SNAPSHOTS, Duty
from chromakeep.server.front import DutyGate
from chromakeep.server.gate import Request
from server.accounts import COLLECTION

WRITE = Request("POST", COLLECTION + "/add", True, (), "192.0.2.7")


def gate(audit: Audit) -> DutyGate:
    duty = Duty(SNAPSHOTS, None)
    duty.role = SERVING
    return DutyGate(duty, 0.0, audit.refusal)


def test_a_write_is_refused_while_the_log_cannot_be_written(tmp_path: Path) -> None:
    """With 503, and only until it can be; one that was done already is answered."""
    audit = Audit(tmp_path / "a", 1 << 20, required=True)
    assert asyncio.run(gate(audit).admit(WRITE)) is None
    audit.failing = "No space left on device"
    refused = asyncio.run(gate(audit).admit(WRITE))
    assert refused and (refused.status, refused.retry_after) == (503, 1.0)
    assert "no write goes unrecorded" in refused.message
    assert asyncio.run(gate(audit).acknowledge(WRITE)) is None
    audit.failing = None
    assert asyncio.run(gate(audit).admit(WRITE)) is None


def test_by_default_writes_go_on(tmp_path: Path) -> None:
    """The metric and a warning tell."""
    audit = Audit(tmp_path / "a", 1 << 20)
    audit.failing = "No space left on device"
    assert asyncio.run(gate(audit).admit(WRITE)) is None
