"""Where an engine differs from a stock Chroma 1.5.9, and is meant to: every rule has its row in docs/compatibility.md.

A rule sees a request or call and both answers, and says whether that is the difference it is about. What no rule knows
must be the same.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from server.twins import DROPPED, Call

Rule = Callable[[Any, Any, Any], bool]
UNIMPLEMENTED = re.compile(
    r"Search operation is not implemented|forking is unsupported|Count forks is unsupported|scout_logs is not"
)

LONG = re.compile(r"-?[0-9.]{15,}(e[+-]?[0-9]+)?")
# It grows by the keys of records that were written; on a stock server by those of writes that wrote nothing, too.
SCHEMA = re.compile(r"'serialized_schema': .*?(?='tenant')")
DIMENSION = re.compile(r"'dimension': '[0-9]+'")  # a write that a stock server refuses may have set it


def status(answer: Any) -> int:
    return answer[0] if isinstance(answer, tuple) else 0


def text(answer: Any) -> str:
    return answer[2] if isinstance(answer, tuple) else ""


def json_of(answer: Any) -> Any:
    try:
        return json.loads(text(answer))
    except ValueError:
        return None


def no_documentation(request: Any, stock: Any, ours: Any) -> bool:
    """There is no Swagger UI and no OpenAPI document."""
    return request[1] in ("/docs", "/docs/", "/openapi.json") and status(ours) == 404


def implemented(request: Any, stock: Any, ours: Any) -> bool:
    """search, fork, fork_count and indexing_status are there."""
    asked = re.search(r"/(search|fork|fork_count|indexing_status)$", request[1])
    if request[0] == "HEAD":
        return bool(asked) and status(stock) in (500, 501) and status(ours) == 200
    return bool(asked and UNIMPLEMENTED.search(text(stock))) and status(ours) in (200, 400, 409)


def deleted_are_counted(request: Any, stock: Any, ours: Any) -> bool:
    """``deleted`` counts what was there."""
    said, found = json_of(stock), json_of(ours)
    return (
        request[1].endswith("/delete")
        and status(stock) == status(ours) == 200
        and isinstance(said, dict)
        and found["deleted"] <= said["deleted"]
    )


def no_empty_metadata(request: Any, stock: Any, ours: Any) -> bool:
    """A record with a URI and no metadata has none; stock shows an object without members."""
    return status(stock) == 200 and json_of(stock) is not None and without_empty(json_of(stock)) == json_of(ours)


def without_empty(value: Any) -> Any:
    if isinstance(value, list):
        return [None if one == {} else without_empty(one) for one in value]
    if isinstance(value, dict):
        return {key: without_empty(one) for key, one in value.items()}
    return value


def unknown_ids(request: Any, stock: Any, ours: Any) -> bool:
    """A query among ids of which some are unknown finds the others."""
    return "Error finding id" in text(stock) and status(ours) == 200


def name_is_taken(request: Any, stock: Any, ours: Any) -> bool:
    """A new name that another collection has: 409."""
    return request[0] == "PUT" and status(stock) == 500 and "UNIQUE" in text(stock) and status(ours) == 409


def grown_schema(request: Any, stock: Any, ours: Any) -> bool:
    """A schema grows by the keys of records that were written, not by those of writes that wrote nothing."""
    said, found = json_of(stock), json_of(ours)
    one, other = ([one] if isinstance(one, dict) else one for one in (said, found))
    if status(stock) != 200 or not isinstance(one, list) or not isinstance(other, list):
        return False
    return "schema" in text(stock) and [plain(shown) for shown in one] == [plain(shown) for shown in other]


def answered(request: Any, stock: Any, ours: Any) -> bool:
    """What ends the connection of a stock server: a CRN, an array in a collection's metadata."""
    return stock == DROPPED and status(ours) in (200, 404, 422)


def functions(request: Any, stock: Any, ours: Any) -> bool:
    """Functions are refused; of a collection that is not there, or by a wrong method, in other words."""
    return "functions/" in request[1] and status(stock) in (400, 405, 501) and status(ours) in (400, 404, 405)


def endless_query(request: Any, stock: Any, ours: Any) -> bool:
    """A query with a number too large for 32 bits."""
    return request[1].endswith("/query") and "must not contain NaN or Infinity" in text(ours) and status(ours) == 400


def tenant_is_checked(request: Any, stock: Any, ours: Any) -> bool:
    """Of a tenant that is not there nothing can be made, listed or changed."""
    return (
        "/tenants/" in request[1] and status(stock) == 200 and re.search("Tenant .* not found", text(ours)) is not None
    )


def by_position(request: Any, stock: Any, ours: Any) -> bool:
    """Objects written as arrays are refused."""
    return status(ours) == 422 and status(stock) != 422 and "expected" in text(ours)


def order_of_checks(request: Any, stock: Any, ours: Any) -> bool:
    """Of two reasons to refuse records the other one is told."""
    told = re.compile(
        r"Inconsistent|Empty ID|Collection expecting|Validation error|does not exist\.|Regex|Invalid where"
    )
    return (
        status(stock) in (400, 404)
        and status(ours) in (400, 404)
        and all(told.search(text(one)) for one in (stock, ours))
    )


def another_fault(request: Any, stock: Any, ours: Any) -> bool:
    """Of several faults of metadata, which stock looks at in any order, another one is told."""
    told = re.compile(r"Metadata (key )?cannot|Metadata .*cannot")
    return status(stock) == status(ours) == 400 and all(told.search(text(one)) for one in (stock, ours))


def number_in_message(request: Any, stock: Any, ours: Any) -> bool:
    """A number in a message: stock reads the last digit of some wrong."""
    number = re.compile(r"floating point `[^`]*`")
    return status(stock) == status(ours) == 422 and number.sub("", text(stock)) == number.sub("", text(ours))


HTTP: tuple[Rule, ...] = (
    no_documentation, implemented, deleted_are_counted, no_empty_metadata, unknown_ids, name_is_taken, answered,
    grown_schema, functions, endless_query, tenant_is_checked, by_position, order_of_checks, another_fault,
    number_in_message,
)  # fmt: skip


def suits(call: Call) -> bool:
    """Whether a call means the same to both: else they would have different records from then on."""
    arguments = call.arguments
    if call.method == "fork" or arguments.get("tenant", "default_tenant") != "default_tenant":
        return False
    return not any(map(_fractions, (arguments.get("where"), arguments.get("where_document"))))


def _fractions(value: Any) -> bool:
    """Numbers that stock compares with integers by their whole part alone, or an integer with a float like it."""
    if isinstance(value, Mapping):
        return any(map(_fractions, value.values()))
    if isinstance(value, list):
        return any(map(_fractions, value))
    return isinstance(value, float) or (isinstance(value, int) and abs(value) > 2**53)


def close(call: Call, stock: Any, ours: Any) -> bool:
    """The same results but for the order of equal distances, rounding in them, and ``{}`` for no metadata."""
    if isinstance(stock, tuple) or isinstance(ours, tuple):
        return _errors(call, stock, ours)
    if call.method == "list_collections":
        stock, ours = ([SCHEMA.sub("", one) for one in some] for some in (stock, ours))
        unset = [DIMENSION.sub("'dimension': 'None'", one) for one in stock]
        return len(stock) == len(ours) and all(map(operator.contains, zip(stock, unset, strict=True), ours))
    stock, ours = plain(stock), plain(ours)
    if call.method == "delete" and isinstance(stock, dict) and isinstance(ours, dict):
        return int(ours["deleted"]) <= int(stock["deleted"])
    if call.method == "query" and isinstance(stock, dict) and isinstance(ours, dict):
        return _queries(stock, ours)
    return bool(stock == ours)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if key not in ("schema", "serialized_schema")}
    if isinstance(value, list):
        return [plain(one) if one != {} else "None" for one in value]
    # Stock reads the last digit of some numbers wrong.
    return format(float(value), ".13g") if isinstance(value, str) and LONG.fullmatch(value) else value


def _errors(call: Call, stock: Any, ours: Any) -> bool:
    if all("Metadata" in str(one) and "cannot" in str(one) for one in (stock, ours)):
        return True
    known = r"UNIQUE constraint|Error finding id|Regex syntax|ncomplete|disconnected|Inconsistent|Collection expecting"
    return isinstance(stock, tuple) and re.search(known, str(stock)) is not None


def _queries(stock: dict[str, Any], ours: dict[str, Any]) -> bool:
    if stock.get("distances") in (None, "None") or ours.get("distances") in (None, "None"):
        return list(map(len, stock["ids"])) == list(map(len, ours["ids"]))
    for number in range(len(stock["distances"])):
        one, other = (np.array([float(d) for d in side["distances"][number]]) for side in (stock, ours))
        if len(one) != len(other) or not np.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True):
            return False
        inner = [i for i in range(len(one)) if not np.isclose(one[i], one[-1], rtol=1e-4)]
        rows = [
            sorted(
                repr(
                    [
                        side[name][number][i]
                        for name in ("ids", "documents", "metadatas")
                        if isinstance(side[name], list)
                    ]
                )
                for i in inner
            )
            for side in (stock, ours)
        ]
        if rows[0] != rows[1]:
            return False
    return len(stock["distances"]) == len(ours["distances"])
