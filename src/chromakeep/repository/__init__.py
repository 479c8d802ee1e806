"""The durable format: blocks in packs, indexes, snapshots, sessions, collection of garbage. Knows nothing of Chroma."""

from chromakeep.repository.repository import Repository
from chromakeep.repository.snapshots import Snapshot

__all__ = ["Repository", "Snapshot"]
