"""The door: Chroma's HTTP API passed through, with a gate for writes. It knows HTTP and routes, not what is behind."""

from chromakeep.server.door import Door
from chromakeep.server.gate import Gate, Page, Refusal, Request
from chromakeep.server.limits import Limits

__all__ = ["Door", "Gate", "Limits", "Page", "Refusal", "Request"]
