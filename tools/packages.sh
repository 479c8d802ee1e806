#!/bin/sh
# Install the Debian packages whose command is missing, as root or with sudo; elsewhere say what to install.
#
#   tools/packages.sh COMMAND[:PACKAGE]...        PACKAGE is COMMAND unless given
set -eu

missing=
for wanted in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${wanted%%:*}" >/dev/null 2>&1 || missing="$missing ${wanted##*:}"
done
[ -n "$missing" ] || exit 0

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if ! command -v apt-get >/dev/null 2>&1 || ! as_root true 2>/dev/null; then
    echo "please install:$missing (this takes root and apt-get)" >&2
    exit 1
fi
echo "installing:$missing"
as_root apt-get -qq update >/dev/null
# shellcheck disable=SC2086  # the packages are words
as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
