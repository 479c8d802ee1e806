#!/bin/sh
# Fetch promtool, which checks metrics and alerts in the tests: out of Debian's package, without installing Prometheus,
# which would start as a service. Where there is no apt the tests do without: they read the metrics with a parser.
#
#   tools/promtool.sh [DIRECTORY]        default: .servers beside the project's pyproject.toml
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
into=${1:-$root/.servers}/promtool
if command -v promtool >/dev/null 2>&1 || [ -x "$into/promtool" ]; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "promtool is not there, and no apt-get to fetch it with: alerts are not checked" >&2
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
cd "$work"
download() { apt-get -qq download prometheus >/dev/null 2>&1; }
update() { if [ "$(id -u)" = 0 ]; then apt-get -qq update; else sudo -n apt-get -qq update; fi >/dev/null 2>&1; }
if ! download && ! { update && download; }; then # the lists were missing or old
    echo "promtool cannot be fetched: alerts are not checked" >&2
    exit 0
fi
mkdir -p "$into"
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -O ./usr/bin/promtool >"$into/promtool.new"
chmod +x "$into/promtool.new"
mv "$into/promtool.new" "$into/promtool"
