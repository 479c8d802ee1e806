"""Prometheus's own tool, where tools/promtool.sh could fetch it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

PROMTOOL = shutil.which(
    "promtool", path=os.pathsep.join((os.environ.get("PATH", ""), str(Path(__file__).parents[2] / ".servers/promtool")))
)
