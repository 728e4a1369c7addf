"""A real HTTP server on 127.0.0.1 that speaks what the Hugging Face and ModelScope clients ask of a hub."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "maker/tiny"


class Server(ThreadingHTTPServer):
    """Takes a client that goes away for granted."""

    def handle_error(self, *_: object) -> None:
        """Raise what is not a broken connection."""
        if not isinstance(sys.exception(), ConnectionError):
            raise


class Hub:
    """One repository, REPOSITORY, whose files are those of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cut: dict[str, int] = {}  # file to bytes after which its next download is cut off
        self.stall: dict[str, int] = {}  # file to bytes after which its next download stands still
        self.ranges: list[tuple[str, int]] = []  # file and first byte of every download
        self.asked: list[str] = []  # every path asked for
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stall.clear()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def names(self) -> list[str]:
        """List the repository's files."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def do_HEAD(self) -> None:
        """Answer as GET does, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer the routes of both hubs, 404 to all else."""
        url = urlsplit(self.path)
        self.hub.asked.append(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        resolved = f"/{REPOSITORY}/resolve/{COMMIT}/"
        if url.path in (f"/api/models/{REPOSITORY}/revision/{COMMIT}", f"/api/models/{REPOSITORY}"):
            names = [{"rfilename": name} for name in self.hub.names()]
            self._json(200, {"id": REPOSITORY, "sha": COMMIT, "siblings": names})
        elif url.path.startswith(resolved):
            self._file(url.path.removeprefix(resolved))
        elif url.path == f"/api/v1/models/{REPOSITORY}/repo/files":
            files = [self._entry(name) for name in self.hub.names()]
            self._json(200, {"Code": 200, "Success": True, "Data": {"Files": files}})
        elif url.path == f"/api/v1/models/{REPOSITORY}/repo":
            self._file(query["FilePath"])
        else:
            self._json(404, {"Code": 404, "Message": "not found", "error": "Repository not found"})

    def _entry(self, name: str) -> dict[str, object]:
        content = (self.hub.folder / name).read_bytes()
        return {
            "Path": name,
            "Name": Path(name).name,
            "Type": "blob",
            "Size": len(content),
            "Sha256": hashlib.sha256(content).hexdigest(),
            "Revision": COMMIT,
        }

    def _json(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, name: str) -> None:
        content = (self.hub.folder / name).read_bytes()
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked.startswith("bytes=") else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            self.hub.ranges.append((name, start))
            self._body(name, content[start:])

    def _body(self, name: str, content: bytes) -> None:
        stop = self.hub.cut.pop(name, None) or self.hub.stall.get(name)
        self.wfile.write(content[:stop])
        self.wfile.flush()
        while name in self.hub.stall:
            time.sleep(0.02)
        if stop is not None:
            self.close_connection = True
