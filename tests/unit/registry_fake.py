"""A registry on loopback for tests: the parts of the distribution specification that pull and push use.

It can be told to want tokens, to redirect, to break off, and to lie.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

__all__ = ["FakeRegistry"]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


@dataclass
class FakeRegistry:
    """What it has and how it behaves; `asked` are the requests, with whether they had a token."""

    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    token: str = ""
    login: str = ""
    break_after: int = 0
    breaks: int = 0
    knows_ranges: bool = True
    redirects_to: str = ""
    lie: bytes = b""
    digest_header: str = ""
    can_mount: bool = True

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, repository: str, tag: str, files: dict[str, bytes]) -> str:
        """Take an OCI layout's files; the manifest's digest."""
        index = json.loads(files["index.json"])
        for name, data in files.items():
            if name.startswith("blobs/"):
                self.blobs[repository, f"sha256:{name.rpartition('/')[2]}"] = data
        digest: str = index["manifests"][0]["digest"]
        manifest = self.blobs.pop((repository, digest))
        for reference in (tag, digest):
            self.manifests[repository, reference] = "application/vnd.oci.image.manifest.v1+json", manifest
        return digest


def _handler(registry: FakeRegistry) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - one class, which knows it
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            pass

        def do_GET(self) -> None:
            self._answer()

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the base's names

        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            parts = urlsplit(self.path)
            if said := self.headers.get("Range"):
                registry.asked.append(f"range {said}")
            marked = "+token " if "Authorization" in self.headers else ""
            registry.asked.append(f"{marked}{self.command} {self.path.split('?digest=')[0]}")
            if parts.path == "/token":
                self._token(parts.query)
            elif registry.token and self.headers.get("Authorization") != f"Bearer {registry.token}":
                challenge = f'Bearer realm="http://{registry.host}/token",service="fake"'
                self._say(401, b"", {"WWW-Authenticate": challenge})
            elif match := re.fullmatch(r"/v2/(.+)/(manifests|blobs)/(uploads/.*|[^/]+)", parts.path):
                self._object(match[1], match[2], match[3], parse_qs(parts.query), body)
            elif parts.path == "/elsewhere" or parts.path.startswith("/loop"):
                self._elsewhere(parts)
            else:
                self._say(404, b"", {})

        def _token(self, query: str) -> None:
            wanted = f"Basic {registry.login}" if registry.login else None
            if self.headers.get("Authorization") != wanted:
                self._fail(401, "UNAUTHORIZED", "who are\nyou?\x1b[31m")
            else:
                registry.asked.append(f"scope {parse_qs(query)['scope'][0]}")
                self._say(200, json.dumps({"token": registry.token}).encode(), {})

        def _object(self, repo: str, kind: str, what: str, query: dict[str, list[str]], body: bytes) -> None:
            if kind == "manifests":
                self._manifest(repo, what, body)
            elif what.startswith("uploads/"):
                self._upload(repo, query, body)
            else:
                self._blob(repo, what)

        def _manifest(self, repo: str, what: str, body: bytes) -> None:
            if self.command == "PUT":
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                for reference in (what, digest):
                    registry.manifests[repo, reference] = self.headers["Content-Type"], body
                self._say(201, b"", {"Docker-Content-Digest": registry.digest_header or digest})
            elif (repo, what) in registry.manifests:
                media, data = registry.manifests[repo, what]
                headers = {"Content-Type": media}
                if registry.digest_header:
                    headers["Docker-Content-Digest"] = registry.digest_header
                self._say(200, data, headers)
            else:
                self._fail(404, "MANIFEST_UNKNOWN", "manifest unknown")

        def _upload(self, repo: str, query: dict[str, list[str]], body: bytes) -> None:
            if self.command == "POST":
                source = query.get("from", [""])[0], query.get("mount", [""])[0]
                if source in registry.blobs and registry.can_mount:
                    registry.blobs[repo, source[1]] = registry.blobs[source]
                    self._say(201, b"", {"Location": f"/v2/{repo}/blobs/{source[1]}"})
                else:
                    self._say(202, b"", {"Location": f"/v2/{repo}/blobs/uploads/1?state=x"})
            elif registry.breaks:
                registry.breaks -= 1
                self.close_connection = True
            else:
                digest = query["digest"][0]
                assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
                registry.blobs[repo, digest] = body
                self._say(201, b"", {})

        def _blob(self, repo: str, digest: str) -> None:
            data = registry.blobs.get((repo, digest))
            if data is None:
                self._fail(404, "BLOB_UNKNOWN", "blob unknown")
            elif registry.redirects_to and self.command == "GET":
                where = registry.redirects_to.format(repo=repo, digest=digest)
                self._say(307, b"", {"Location": where})
            else:
                self._stream(registry.lie or data)

        def _elsewhere(self, parts: Any) -> None:
            if parts.path.startswith("/loop"):
                self._say(307, b"", {"Location": f"{parts.path}x" if len(parts.path) < 50 else "/loop"})
                return
            query = parse_qs(parts.query)
            self._stream(registry.blobs[query["repo"][0], query["digest"][0]])

        def _stream(self, data: bytes) -> None:
            start = 0
            if registry.knows_ranges and (said := self.headers.get("Range")):
                start = int(said.removeprefix("bytes=").rstrip("-"))
            headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
            cut = None
            if registry.breaks and self.command == "GET":
                registry.breaks -= 1
                cut = registry.break_after
            self._say(206 if start else 200, data[start:], headers, cut)

        def _fail(self, status: int, code: str, message: str) -> None:
            self._say(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode(), {})

        def _say(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    return Handler
