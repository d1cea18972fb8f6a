"""Names of images as docker writes them: `busybox` is docker.io/library/busybox:latest.

Source: the distribution project's reference grammar (domain, path, tag, digest).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pykvm.errors import ConfigError

__all__ = ["Name", "parse_name"]

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_DOMAIN = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HUB = "docker.io"


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """One image's name. `tag` and `digest` are empty where they were not given."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """All but tag and digest: docker.io/library/busybox."""
        return f"{self.domain}/{self.path}"

    @property
    def full(self) -> str:
        """With nothing left out: docker.io/library/busybox:latest."""
        return self.repository + self._end()

    @property
    def familiar(self) -> str:
        """As people write it: busybox:latest."""
        return self.familiar_repository + self._end()

    @property
    def familiar_repository(self) -> str:
        """As people write it, without tag and digest."""
        if self.domain != _HUB:
            return self.repository
        return self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path

    def with_tag(self) -> Name:
        """The same, with the tag `latest` if it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag="latest")

    def _end(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_name(text: str) -> Name:
    """The name that `text` writes. Raises ConfigError saying what about it is wrong."""
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{text!r} is no image name: after @ stands sha256: and 64 hexadecimal digits")
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        head, tag = rest, ""
    elif not _TAG.fullmatch(tag):
        raise ConfigError(f"{text!r} is no image name: {tag!r} is no tag")
    domain, slash, path = head.partition("/")
    if not slash or not _is_domain(domain):
        domain, path = _HUB, head
    if domain in {"index.docker.io", "registry-1.docker.io"}:
        domain = _HUB
    if domain == _HUB and "/" not in path:
        path = f"library/{path}"
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path) or len(domain) + len(path) > 254:
        hint = "; a repository's name is written small" if path != path.lower() else ""
        raise ConfigError(f"{text!r} is no image name{hint} (as in busybox:1.35 or host:5000/me/app:latest)")
    return Name(domain, path, tag, digest)


def _is_domain(text: str) -> bool:
    return "." in text or ":" in text or text == "localhost" or text != text.lower()
