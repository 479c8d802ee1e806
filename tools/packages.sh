#!/bin/sh
# Install those of the named Debian packages that are missing: as root or with sudo; elsewhere say what to install.
set -eu

missing=
for package in "$@"; do
    case $package in
        python3-venv) ;; # asked for only when Python itself says that it is missing
        *) if command -v "$package" >/dev/null 2>&1; then continue; fi ;;
    esac
    missing="$missing $package"
done
[ -n "$missing" ] || exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo='sudo -n'
if ! command -v apt-get >/dev/null 2>&1 || { [ -n "$sudo" ] && ! $sudo true 2>/dev/null; }; then
    echo "please install:$missing (it takes root, and apt-get here cannot be run as root)" >&2
    exit 1
fi
echo "installing:$missing"
# shellcheck disable=SC2086  # the packages are words
{
    $sudo apt-get -qq update >/dev/null
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
}
