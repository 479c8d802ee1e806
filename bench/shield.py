"""What the shield costs the loop: whole bodies of adds through the watch that looks at them, in portions of 64 KiB.

``python bench/shield.py`` prints one line a body. Chroma needs half a second and more for each.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import time
from typing import Any

import numpy as np

from chromakeep.server.records_watch import RecordsWatch

PORTION = 64 << 10
RANDOM = np.random.default_rng(7)


def bodies() -> dict[str, dict[str, Any]]:
    """What clients send, and what is dearest to look at."""
    vectors = RANDOM.random((1000, 768), dtype=np.float32)
    ids = [f"i{n}" for n in range(1000)]
    coded = [base64.b64encode(v.tobytes()).decode() for v in vectors]
    metadatas = [{"i": n, "cat": "x", "f": 1.5} for n in range(1000)]
    return {
        "numbers": {"ids": ids[:250], "embeddings": vectors[:250].tolist()},
        "base64": {"ids": ids, "embeddings": coded},
        "base64, ids last": {"embeddings": coded, "ids": ids},
        "base64, texts, metadata": {
            "ids": ids,
            "embeddings": coded,
            "metadatas": metadatas,
            "documents": ["text " * 12] * 1000,
        },
        "texts full of escapes": {
            "ids": ids,
            "embeddings": coded[:500],
            "documents": ['Gr\u00fc\u00dfe\n"a" ' * 100] * 1000,
        },
        "20,000 small metadata": {
            "ids": ids * 20,
            "embeddings": [[1]] * 20_000,
            "metadatas": [{"a": 1, "b": "x"}] * 20_000,
        },
    }


def once(portions: list[bytes]) -> float:
    """Seconds of this thread's processor time for one body."""
    watch = RecordsWatch()
    begun = time.thread_time()
    for portion in portions:
        watch.feed(portion, last=False)
    watch.feed(b"", last=True)
    assert watch.records
    return time.thread_time() - begun


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    for name, body in bodies().items():
        whole = json.dumps(body).encode()
        portions = [whole[n : n + PORTION] for n in range(0, len(whole), PORTION)]
        taken = statistics.median(once(portions) for _ in range(rounds))
        print(f"{name:25} {len(whole) / 1e6:5.1f} MB  {taken * 1e3:7.2f} ms  {len(whole) / taken / 1e6:8.0f} MB/s")


if __name__ == "__main__":
    main()
