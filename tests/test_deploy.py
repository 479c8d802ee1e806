"""The files for Prometheus and Grafana name metrics that there are, and Prometheus's own tool takes the alerts."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.test_metrics import full_page
from servers.promtool import PROMTOOL

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "chromakeep.json"
ALERTS = DEPLOY / "prometheus"
NAME = re.compile(r"\bchromakeep_[a-z_]+")


def samples() -> dict[str, set[str]]:
    """The names of all samples there are, each with the labels that any of them has."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(full_page().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[str]:
    """Of all alerts and panels."""
    yield from re.findall(r"^ +expr: (.*)$", (ALERTS / "alerts.yml").read_text(), re.M)
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_every_metric_that_is_named_exists_with_its_labels() -> None:
    """A renamed metric would silence an alert."""
    there = samples()
    every = list(expressions())
    assert len(every) > 40
    for expression in every:
        for name in NAME.findall(expression):
            assert name in there, expression
        labels = {"job", "instance", "le", *(label for n in NAME.findall(expression) for label in there[n])}
        used = set(re.findall(r"[{,]\s*([a-z]+)\s*=", expression))
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            used |= set(re.split(r", *", group))
        assert used <= labels, expression
    tested = (ALERTS / "alerts_test.yml").read_text()
    assert set(NAME.findall(tested)) <= there.keys()


def test_every_alert_is_tested() -> None:
    """Each is seen to fire; promtool runs these tests."""
    alerts = re.findall(r"^ +- alert: (\w+)$", (ALERTS / "alerts.yml").read_text(), re.M)
    tests = (ALERTS / "alerts_test.yml").read_text()
    assert len(alerts) == len(set(alerts)) >= 10
    for alert in alerts:
        assert re.search(rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels", tests), alert


def test_every_metric_of_the_run_is_on_the_dashboard() -> None:
    """But for the histogram's sum and count, which its quantiles do without."""
    shown = {name for expression in expressions() for name in NAME.findall(expression)}
    missing = {n for n in samples() if n not in shown and not n.endswith(("_sum", "_count"))}
    assert missing == set()


def test_panels_lie_beside_each_other() -> None:
    """Grafana shows the file as it is: ids differ, and no panel covers another."""
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: see tools/promtool.sh")
@pytest.mark.parametrize("check", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_promtool_takes_the_alerts(check: tuple[str, ...]) -> None:
    """Their syntax, and that they fire when they should and not else."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *check], cwd=ALERTS, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
