"""chromakeep: the durability layer for ChromaDB."""

__version__ = "0.1.0"
