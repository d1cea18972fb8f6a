"""Users of an image: names to numbers by its own /etc/passwd and /etc/group, as docker looks them up."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["User", "find_user"]

_MOST_ID = (1 << 31) - 1


class User(NamedTuple):
    """Who a process runs as; `home` is "" where no line of passwd says."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: frozenset[str]


def find_user(text: str, passwd: bytes, group: bytes, add: Sequence[str] = ()) -> User:
    """The user of `NAME|UID[:GROUP|GID]`, "" for root; `add` are more groups. Raises ConfigError.

    A number needs no line of passwd. Without a group, it is the user's own and those that list the user.
    """
    name, colon, group_name = text.partition(":")
    lines = [line.split(":") for line in passwd.decode("utf-8", "surrogateescape").splitlines()]
    users = [line for line in lines if len(line) >= 6 and line[2].isdecimal() and line[3].isdecimal()]
    groups = _groups(group)
    name = name or "0"
    line = next((one for one in users if one[0] == name), None) or next(
        (one for one in users if one[2] == name), None
    )
    if line is None and not name.isdecimal():
        raise ConfigError(f"unable to find user {name}: no matching entries in passwd file")
    uid, gid, home = (int(line[2]), int(line[3]), line[5]) if line else (int(name), 0, "")
    more = [one.gid for one in groups if line and line[0] in one.members]
    if colon and group_name:
        gid, more = _group(group_name, groups), []
    more += [_group(one, groups) for one in add]
    if max(uid, gid, *more) > _MOST_ID:
        raise ConfigError(f"{text}: uids and gids must be in range 0-{_MOST_ID}")
    return User(uid, gid, tuple(dict.fromkeys(more)), home)


def _groups(text: bytes) -> list[_Group]:
    lines = [line.split(":") for line in text.decode("utf-8", "surrogateescape").splitlines()]
    return [
        _Group(line[0], int(line[2]), frozenset(line[3].split(",")))
        for line in lines
        if len(line) >= 4 and line[2].isdecimal()
    ]


def _group(name: str, groups: Sequence[_Group]) -> int:
    for group in groups:
        if group.name == name:
            return group.gid
    if name.isdecimal():
        return int(name)
    raise ConfigError(f"unable to find group {name}: no matching entries in group file")
