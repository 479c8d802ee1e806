"""A plugin for chromadb's own tests: the default embedding function without the model that it downloads.

The vectors depend on the text alone and lie on the unit sphere, as those of the model do; what they mean, no test of a
server asks.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2

DIMENSION = 384


def _embed(self: object, input: list[str]) -> list[Any]:
    return [_vector(text) for text in input]


def _vector(text: str) -> Any:
    seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


ONNXMiniLM_L6_V2.__call__ = _embed  # type: ignore[method-assign]
