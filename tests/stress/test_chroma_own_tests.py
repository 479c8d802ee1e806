"""What chromadb's own tests say is told right: `make soak` runs them."""

from __future__ import annotations

from pathlib import Path

from stress.chroma_own_tests import EXPECTED, FAILED, PASSED, SKIPPED, compared, outcomes

DOCUMENTED = Path(__file__).parents[2] / "docs" / "compatibility.md"
REPORT = b"""<testsuites><testsuite>
<testcase classname="chromadb.test.api.test_a" name="test_one[x]"/>
<testcase classname="chromadb.test.api.test_a" name="test_two"><failure message="no">E</failure></testcase>
<testcase classname="chromadb.test.test_b" name="test_one"><error message="no">E</error></testcase>
<testcase classname="chromadb.test.test_b" name="test_two"><skipped type="pytest.xfail"/></testcase>
</testsuite></testsuites>"""


def test_each_outcome_is_read() -> None:
    assert outcomes(REPORT) == {
        "api.test_a::test_one[x]": PASSED,
        "api.test_a::test_two": FAILED,
        "test_b::test_one": FAILED,
        "test_b::test_two": SKIPPED,
    }


def test_what_only_stock_passes_is_a_fault() -> None:
    stock = {"a": PASSED, "b": PASSED, "c": PASSED, "d": FAILED, "e": SKIPPED}
    ours = {"a": PASSED, "b": FAILED, "d": FAILED, "e": FAILED}
    assert list(compared(stock, ours, {})) == ["b: failed, which stock passes", "c: not run, which stock passes"]


def test_what_is_expected_is_none_while_it_fails() -> None:
    known = {"a": "for a reason"}
    assert list(compared({"a[1]": PASSED}, {"a[1]": FAILED}, known)) == []
    assert list(compared({"a[1]": PASSED}, {"a[1]": PASSED}, known)) == ["a[1]: passed, so it need not be in EXPECTED"]


def test_a_side_that_ran_nothing_proves_nothing() -> None:
    assert list(compared({"a": FAILED}, {"a": FAILED}, {})) == ["stock passed no test of it"]


def test_what_is_expected_is_documented() -> None:
    section = DOCUMENTED.read_text().partition("## Chroma's own tests")[2].partition("\n## ")[0]
    assert all(name.partition("::")[2] in section for expected in EXPECTED.values() for name in expected)
