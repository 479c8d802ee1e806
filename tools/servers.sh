#!/bin/sh
# Install the storage servers the tests start: moto and Swift (S3 protocol), Azurite (Azure protocol).
#
#   tools/servers.sh [DIRECTORY]        default: .servers beside the project's pyproject.toml
#
# Needs .venv/bin/uv (make puts it there) and the package registries. Quiet, and done in no time when everything is
# there; else all are installed at once. Nothing runs as a service: the test fixtures (tests/servers) start what they
# need on free loopback ports and stop it again.
set -eu

MOTO='moto[s3]==5.2.5 flask flask-cors'
SWIFT='swift==2.38.3 setuptools<81'  # Swift finds its filters through pkg_resources, which setuptools 81 took away
AZURITE='azurite@3.35.0' # the last one without a few hundred packages of telemetry

root=$(cd "$(dirname "$0")/.." && pwd)
into=${1:-$root/.servers}
# shellcheck source=tools/environments.sh
. "$root/tools/environments.sh"
mkdir -p "$into"

azurite() {
    [ "$(cat "$into/azurite/.installed" 2>/dev/null)" = "$NODE $AZURITE" ] && return
    node_package azurite "$AZURITE"
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$node/bin/node" "$into/azurite/node_modules/.bin/azurite-blob" \
        >"$into/azurite/azurite-blob"
    chmod +x "$into/azurite/azurite-blob"
    echo "$NODE $AZURITE" >"$into/azurite/.installed"
}

# shellcheck disable=SC2086  # the requirements are words
{
    venv moto $MOTO &
    moto=$!
    venv swift $SWIFT &
    swift=$!
}
azurite
wait "$moto"
wait "$swift"
