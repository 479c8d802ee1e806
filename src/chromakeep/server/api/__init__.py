"""Chroma's HTTP API for an engine in this process: bodies to values, values to bodies."""

from __future__ import annotations

from chromakeep.engine import Engine
from chromakeep.server.gate import Page


def answer(engine: Engine, method: str, target: str, body: bytes) -> Page:
    """The answer to a request; never raises."""
    raise NotImplementedError
