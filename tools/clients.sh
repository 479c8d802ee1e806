#!/bin/sh
# Install the clients that tests/clients sends through the door, unmodified: chromadb for JavaScript, and the stores of
# LangChain and LlamaIndex in a virtual environment of their own, so that the project's has not to agree with theirs.
#
#   tools/clients.sh [DIRECTORY]        default: .servers beside the project's pyproject.toml, after tools/servers.sh
#
# Needs .venv/bin/uv (make puts it there) and the package registries. Quiet, and done in no time when everything is there.
set -eu

JS='chromadb@3.5.0'
PYTHON_CLIENTS='chromadb==1.5.9 langchain-chroma==1.1.0 langchain-core==1.8.3
    llama-index-vector-stores-chroma==0.6.0 llama-index-core==0.14.25'

root=$(cd "$(dirname "$0")/.." && pwd)
into=${1:-$root/.servers}
# shellcheck source=tools/environments.sh
. "$root/tools/environments.sh"
mkdir -p "$into"

# shellcheck disable=SC2086  # the requirements are words
venv pyclients $PYTHON_CLIENTS &
pyclients=$!

if [ "$(cat "$into/jsclient/.installed" 2>/dev/null)" != "$NODE $JS" ]; then
    # Without the optional packages: they are an embedded Chroma, 60 MB that an HTTP client never loads.
    node_package jsclient "$JS" --omit=optional
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$node/bin/node" >"$into/jsclient/node"
    chmod +x "$into/jsclient/node"
    echo "$NODE $JS" >"$into/jsclient/.installed"
fi
wait "$pyclients"
