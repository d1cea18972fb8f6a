"""HTTP as registries need it: bearer tokens, redirects that do not carry them elsewhere, streams that go on.

Source: the OCI distribution specification 1.1; docker's token authentication; RFC 9110 for the rest.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import json
import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from pykvm.containers.limits import JSON_BYTES
from pykvm.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import WriteableBuffer

__all__ = ["BlobStream", "Client", "Request"]

_TIMEOUT_S = 30
_MOST_REDIRECTS = 5
_MOST_TRIES = 5
_CHUNK = 1 << 18
_REDIRECTS = {301, 302, 303, 307, 308}
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"
_HUB_LOGIN = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask: `url` is absolute, or a path at the registry. `fine` are the answers that are no error."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | IO[bytes] | None = None
    fine: tuple[int, ...] = (200,)


class Client:
    """One registry, over connections that are kept. Every failure is a RegistryError in one line."""

    def __init__(self, domain: str, *, plain: bool = False) -> None:
        """`plain` takes HTTP without TLS, as is always done on this machine's own addresses."""
        self.domain = domain
        host = _HUB_HOST if domain == _HUB else domain
        is_near = bool(_LOOPBACK.fullmatch(urlsplit(f"//{host}").hostname or ""))
        self._root = f"{'http' if plain or is_near else 'https'}://{host}"
        self._login = _login_for(domain)
        self._scope = ""
        self._authorization: dict[str, str] = {}
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def scope(self, repository: str, actions: str) -> None:
        """What tokens are asked for from now on, as in ("library/busybox", "pull")."""
        self._scope = f"repository:{repository}:{actions}"
        self._authorization = {}

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections = {}

    def ask(self, request: Request) -> http.client.HTTPResponse:
        """The answer, its body not yet read. Follows redirects and gets a token where one is wanted."""
        url, tried = urljoin(self._root, request.url), False
        redirects = 0
        while True:
            home = _place(url) == _place(self._root)
            response = self._send(request, url, dict(self._authorization) if home else {})
            if response.status in request.fine:
                return response
            if response.status == 401 and home and not tried:
                tried = True
                challenge = response.headers.get_all("WWW-Authenticate") or []
                self._read(response)
                self._authorization = self._authorize(challenge)
                if hasattr(request.body, "seek"):
                    request.body.seek(0)  # type: ignore[union-attr]  # it has
            elif response.status in _REDIRECTS and request.method in {"GET", "HEAD"}:
                redirects += 1
                url = self._redirected(response, url, redirects)
            else:
                raise self._refused(request, response)

    def document(self, request: Request) -> tuple[bytes, http.client.HTTPResponse]:
        """All of a small answer. Raises RegistryError for a large one."""
        response = self.ask(request)
        data = self._read(response)
        if len(data) > JSON_BYTES:
            raise RegistryError(f"{self.domain}: {request.url}: an answer of more than {JSON_BYTES} bytes")
        return data, response

    def location(self, response: http.client.HTTPResponse, request: Request) -> str:
        """Where an answer says to go on."""
        self._read(response)
        where = response.headers.get("Location")
        if not where:
            raise RegistryError(f"{self.domain}: {request.url}: the registry does not say where to go on")
        return urljoin(urljoin(self._root, request.url), where)

    def _send(self, request: Request, url: str, extra: dict[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = {"User-Agent": "pykvm", **request.headers, **extra}
        for last in (False, True):  # a connection that was kept may have ended meanwhile
            connection, is_new = self._connection(parts.scheme, parts.netloc)
            try:
                connection.request(request.method, path or "/", request.body, headers)
                return connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                self._connections.pop((parts.scheme, parts.netloc), None)
                if is_new or last or not isinstance(request.body, bytes | None):
                    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise RegistryError(f"{parts.netloc}: can't be reached: {_plain(str(text))}") from None
        raise AssertionError

    def _connection(self, scheme: str, place: str) -> tuple[http.client.HTTPConnection, bool]:
        kept = self._connections.get((scheme, place))
        if kept:
            return kept, False
        parts = urlsplit(f"{scheme}://{place}")
        host, port = parts.hostname or "", parts.port
        connection: http.client.HTTPConnection
        if scheme == "https":
            proxy = urlsplit(getproxies().get("https", ""))
            secure = ssl.create_default_context()
            if proxy.hostname and not proxy_bypass(host):
                connection = http.client.HTTPSConnection(
                    proxy.hostname, proxy.port, timeout=_TIMEOUT_S, context=secure, blocksize=_CHUNK
                )
                connection.set_tunnel(host, port or 443)
            else:
                connection = http.client.HTTPSConnection(
                    host, port, timeout=_TIMEOUT_S, context=secure, blocksize=_CHUNK
                )
        elif scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S, blocksize=_CHUNK)
        else:
            raise RegistryError(f"{self.domain}: leads to {_plain(scheme)}:, which is no HTTP")
        self._connections[scheme, place] = connection
        return connection, True

    def _redirected(self, response: http.client.HTTPResponse, url: str, count: int) -> str:
        where = urljoin(url, response.headers.get("Location") or "")
        self._read(response)
        if count > _MOST_REDIRECTS or where == url:
            raise RegistryError(f"{self.domain}: redirects in a circle, or more than {_MOST_REDIRECTS} times")
        if urlsplit(url).scheme == "https" and urlsplit(where).scheme != "https":
            raise RegistryError(f"{self.domain}: redirects from HTTPS to {_plain(where)[:80]}")
        return where

    def _authorize(self, challenges: list[str]) -> dict[str, str]:
        """The header that a registry asks for. Raises RegistryError if it can't be had."""
        for challenge in challenges:
            kind, _, rest = challenge.partition(" ")
            if kind.lower() == "bearer":
                return {"Authorization": f"Bearer {self._token(dict(_CHALLENGE.findall(rest)))}"}
            if kind.lower() == "basic" and self._login:
                return {"Authorization": f"Basic {self._login}"}
        raise RegistryError(f"{self.domain}: wants a login; the one that `docker login` stores is used here")

    def _token(self, said: dict[str, str]) -> str:
        realm = urlsplit(said.get("realm", ""))
        if realm.scheme != "https" and not (realm.scheme == "http" and self._root.startswith("http:")):
            raise RegistryError(f"{self.domain}: wants a login at {_plain(said.get('realm', ''))[:80]!r}")
        asked = {"service": said.get("service", ""), "scope": said.get("scope") or self._scope}
        query = "&".join(part for part in (realm.query, urlencode(asked)) if part)
        headers = {"Authorization": f"Basic {self._login}"} if self._login else {}
        request = Request("GET", "", headers)
        response = self._send(request, realm._replace(query=query).geturl(), {})
        data = self._read(response)
        if response.status != 200:
            raise RegistryError(f"{self.domain}: login refused: {response.status} {_reason(data)}".rstrip())
        try:
            found = json.loads(data)
            token = found.get("token") or found["access_token"]
        except (ValueError, KeyError, TypeError, AttributeError):
            token = ""
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(f"{self.domain}: {realm.netloc} gives no token")
        return token

    def _refused(self, request: Request, response: http.client.HTTPResponse) -> RegistryError:
        reason = _reason(self._read(response))
        what = f"{request.method} {urlsplit(request.url).path}"
        reason = reason or _plain(response.reason)
        hint = "; is it spelled so, and may you have it?" if response.status in {401, 403, 404} else ""
        return RegistryError(f"{self.domain}: {what}: {response.status} {reason}{hint}")

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """At most one byte more than a document may have; then the connection can't be used again."""
        try:
            data = response.read(JSON_BYTES + 1)
        except (OSError, http.client.HTTPException):
            data = b""
        if not response.isclosed():
            self.close()
        return data


class BlobStream(io.RawIOBase):
    """A blob's bytes from a registry; when the connection breaks it goes on where that was.

    Raises RegistryError when it breaks again and again without a byte more.
    """

    def __init__(self, client: Client, url: str, size_bytes: int, start: int = 0) -> None:
        self._client = client
        self._url = url
        self._size = size_bytes
        self._at = start
        self._response: http.client.HTTPResponse | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self._size or not view:
            return 0
        view = view[: self._size - self._at]
        for _ in range(_MOST_TRIES):
            try:
                self._response = self._response or self._open()
                count = self._response.readinto(view)
            except (OSError, http.client.HTTPException):
                count = 0
            if count:
                self._at += count
                return count
            self._response = None
            self._client.close()
        raise RegistryError(
            f"{self._client.domain}: the transfer broke off at byte {self._at} of {self._size}"
        )

    def _open(self) -> http.client.HTTPResponse:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        response = self._client.ask(Request("GET", self._url, headers, fine=(200, 206)))
        if response.status == 206:
            said = response.headers.get("Content-Range", "")
            if not said.startswith(f"bytes {self._at}-"):
                raise RegistryError(f"{self._client.domain}: sends {_plain(said)!r} when asked for more")
            return response
        left = self._at
        while left:  # it does not know ranges
            skipped = len(response.read(min(left, _CHUNK)))
            if not skipped:
                raise OSError
            left -= skipped
        return response


def _place(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _plain(text: str) -> str:
    """What a registry says, as one line that can't play tricks with a terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _reason(data: bytes) -> str:
    """The first error that a registry's answer names."""
    try:
        first = json.loads(data)["errors"][0]
        return _plain(f"{first.get('code', '')} {first.get('message', '')}".strip())[:200]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return ""


def _login_for(domain: str) -> str:
    """What `docker login` has stored for a registry, in base 64; "" if nothing."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")  # noqa: PTH111 - no home is no error
    try:
        stored = json.loads((Path(folder) / "config.json").read_bytes())["auths"]
        found = str((stored.get(_HUB_LOGIN if domain == _HUB else domain) or {}).get("auth", ""))
        base64.b64decode(found, validate=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return ""
    return found
