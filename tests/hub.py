"""A small server that speaks the protocol of the Hugging Face hub: sizes, checksums, files, parts of them, refusals."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

from indextts_jax import download


class Hub:
    """What the server has: `contents` by repository and path; and what is wrong with it."""

    def __init__(self, folder: Path):
        """folder: a model folder in the official layout, of which it serves every file that a model needs."""
        self.contents = {
            (each.name, path): (folder / place).read_bytes()
            for each in download.REPOSITORIES
            for path, place in each.files.items()
        }
        self.large = 100_000  # bytes, from which a file is kept by LFS, with a SHA-256
        self.token: str | None = None  # that it asks for
        self.gated: str | None = None  # a repository whose terms are not accepted
        self.breaks: dict[str, list[int]] = {}  # path -> after how many bytes the connection breaks, each once
        self.broken = lambda: None  # called then
        self.damaged: set[str] = set()  # paths of which another content comes
        self.nonsense = False  # every answer is a page
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.elsewhere: list[str | None] = []  # the Authorization of each request to where large files are
        self.endpoint = ""

    def info(self, repository: str, path: str) -> dict[str, object]:
        content = self.contents[repository, path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if len(content) >= self.large:
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def send(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def refused(self, repository: str) -> bool:
            if hub.nonsense:
                self.send(200, b"<html>welcome</html>")
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.send(401, b"{}", X_Error_Message="Invalid credentials in Authorization header")
            elif repository == hub.gated:
                self.send(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="its terms are not accepted")
            else:
                return False
            return True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            hub.asked.append(("POST", self.path, None))
            match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", self.path)
            if self.refused(match[1] if match else ""):
                return
            if match is None or (match[1], match[2]) not in {(r.name, r.revision) for r in download.REPOSITORIES}:
                self.send(404, b"{}", X_Error_Code="RevisionNotFound")
                return
            paths = [path for path in parse_qs(body)["paths"] if (match[1], path) in hub.contents]
            self.send(200, json.dumps([hub.info(match[1], path) for path in paths]).encode())

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            hub.asked.append((self.command, self.path, asked))
            match = re.fullmatch(r"(?:/elsewhere)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", unquote(self.path))
            elsewhere = self.path.startswith("/elsewhere/")
            if elsewhere:
                hub.elsewhere.append(self.headers.get("Authorization"))
            elif self.refused(match[1] if match else ""):
                return
            if match is None or (match[1], match[3]) not in hub.contents:
                self.send(404, b"{}", X_Error_Code="EntryNotFound")
                return
            path, content = match[3], hub.contents[match[1], match[3]]
            if len(content) >= hub.large and not elsewhere:
                port = hub.endpoint.rpartition(":")[2]
                self.send(302, b"", Location=f"http://localhost:{port}/elsewhere{self.path}")
                return
            if path in hub.damaged:
                content = bytes([content[0] ^ 1]) + content[1:]
            begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            headers = {"X-Repo-Commit": match[2], "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if asked:
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            if hub.breaks.get(path):
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(content) - begin))
                self.end_headers()
                self.wfile.write(content[begin : begin + hub.breaks[path].pop(0)])
                self.wfile.flush()
                hub.broken()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.send(206 if asked else 200, content[begin:], **headers)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
