"""A capture in a child process, for a process that has the database open itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from chromakeep import errors

CODE = "import sys; sys.path[:0] = [sys.argv[1]]; from chromakeep.chroma.child import main; main(*sys.argv[2:])"


def capture(source: Path, into: Path, timeout: float) -> dict[str, Any]:
    """``chromakeep.chroma.capture.capture`` in a fresh interpreter: the fields of its result, or its error raised."""
    home = Path(__file__).parents[2]
    command = [sys.executable, "-c", CODE, str(home), str(source.absolute()), str(into.absolute()), str(timeout)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise errors.SourceError(f"{source}: the capturing process died (exit {done.returncode}): {last}") from None
    if "error" in answer:
        raise errors.revived(*answer["error"])
    return {**answer, "path": into}


def main(source: str, into: str, timeout: str) -> None:
    from chromakeep.chroma.capture import capture as run

    try:
        result = run(Path(source), Path(into), timeout=float(timeout))
    except errors.ChromakeepError as error:
        print(json.dumps({"error": errors.flat(error)}))
    else:
        print(json.dumps({n: getattr(result, n) for n in ("pause", "attempts", "copied_bytes", "method", "counter")}))
