"""The deletion of a collection waits for the log only where there is one."""

from __future__ import annotations

import asyncio

import pytest

from chromakeep.operations.duty import SERVING, SNAPSHOTS, Duty
from chromakeep.server import front
from chromakeep.server.gate import Request
from server.accounts import COLLECTION


def test_without_a_log_nobody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "BEFORE_DELETING", 1000.0)
    duty = Duty(SNAPSHOTS, None)
    duty.role = SERVING
    delete = Request("DELETE", COLLECTION, True, (), "192.0.2.7")
    assert asyncio.run(asyncio.wait_for(front.DutyGate(duty, 0.0).admit(delete), 30)) is None
