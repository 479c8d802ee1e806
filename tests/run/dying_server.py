"""``chroma`` with a proxy in front that kills itself and the server when one collection is asked for."""

from __future__ import annotations

import http.client
import http.server
import os
import socket
import subprocess
import sys
import time

program, collection, *arguments = sys.argv[1:]
port = int(arguments[arguments.index("--port") + 1])
held = socket.socket()  # bound and not listened on: the server can take it, and nobody is given it
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
held.bind(("127.0.0.1", 0))
behind = held.getsockname()[1]
arguments[arguments.index("--port") + 1] = str(behind)
server = subprocess.Popen([program, *arguments])


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes everything on but one collection."""

    def handle_one(self) -> None:
        if collection in self.path:
            server.kill()
            os._exit(139)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        connection = http.client.HTTPConnection("127.0.0.1", behind)
        connection.request(self.command, self.path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = handle_one  # noqa: N815


while True:
    try:
        probe = http.client.HTTPConnection("127.0.0.1", behind)
        probe.request("GET", "/api/v2/heartbeat")
        probe.getresponse()
        break
    except OSError:
        time.sleep(0.05)
http.server.HTTPServer(("127.0.0.1", port), Proxy).serve_forever()
