#!/bin/sh
# Run quick tests under Python 3.10, the oldest we promise: every module is imported, most messages are parsed.
#
#   tools/python310.sh [PYTEST OPTION...]
#
# Needs .venv/bin/uv (make puts it there). Without chromadb: tests that start a Chroma run under the project's Python.
# Where no Python 3.10 is installed it says so, and that is all.
set -eu

# Two tests of keys back up a directory that chromadb writes.
WITHOUT='--deselect=tests/operations/test_keyring.py::test_prune_leaves_keys_alone_and_check_knows_them
    --deselect=tests/operations/test_keyring.py::test_a_restore_and_a_rollback_keep_the_keys_of_now'
TESTS='tests/test_addresses.py tests/test_imports.py tests/test_modules.py tests/test_sets.py
    tests/access/test_keys.py tests/access/test_rights.py tests/repository/test_log.py tests/chroma/test_cloud.py
    tests/chroma/test_spool.py tests/operations/test_audit.py tests/operations/test_entrance.py
    tests/operations/test_keyring.py tests/operations/test_openness.py tests/operations/test_place.py
    tests/operations/test_sighting.py tests/server/test_access_log.py tests/server/test_audit_gate.py
    tests/server/test_auditing.py tests/server/test_cors.py tests/server/test_credentials.py
    tests/server/test_door.py tests/server/test_gate.py tests/server/test_listings.py tests/server/test_metrics.py
    tests/server/test_passing.py tests/server/test_routes.py tests/server/test_shield.py
    tests/server/test_strictness.py tests/server/test_tracing.py tests/server/test_watches.py
    tests/store/test_local.py tests/store/test_retrying.py'

cd "$(dirname "$0")/.."
found=
for python in python3.10 "$HOME"/.pyenv/versions/3.10.*/bin/python "$HOME"/.local/share/uv/python/cpython-3.10.*/bin/python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
        found=$python
        break
    fi
done
if [ -z "$found" ]; then
    echo 'no Python 3.10 is installed here: nothing is tested under it'
    exit 0
fi

venv=.venv/python3.10
if [ ! "$venv/.made" -nt pyproject.toml ]; then
    .venv/bin/uv venv --quiet --clear --python "$found" "$venv"
    .venv/bin/uv pip install --quiet --python "$venv/bin/python" '.[arrow,server,oidc,otel,postgres]' pytest pytest-timeout hypothesis
    .venv/bin/uv pip uninstall --quiet --python "$venv/bin/python" chromakeep # src is what is tested
    touch "$venv/.made"
fi
# shellcheck disable=SC2086  # the tests are words
PYTHONPATH=src exec "$venv/bin/python" -m pytest -q -p no:cacheprovider $TESTS $WITHOUT "$@"
