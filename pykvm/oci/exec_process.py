"""What `pykvm-oci exec` is to run: an OCI process, from a file or from words upon the bundle's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.oci.state import OciError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["wanted_process"]


def wanted_process(
    bundle: str,
    file: str | None,
    args: Sequence[str],
    *,
    is_tty: bool,
    cwd: str,
    env: Sequence[str],
    user: str,
) -> dict[str, Any]:
    """An OCI process. Raises OciError in one line."""
    if file:
        return _checked(_object(Path(file)), file)
    process = _object(Path(bundle) / "config.json").get("process") or {}
    process = {**process, "args": list(args), "terminal": is_tty, "env": [*process.get("env", []), *env]}
    if cwd:
        process["cwd"] = cwd
    if user:
        uid, _, gid = user.partition(":")
        if not uid.isdecimal() or not (gid or "0").isdecimal():
            raise OciError(f"--user {user}: give numbers, UID or UID:GID")
        process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    return _checked(process, "exec")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise OciError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise OciError(f"{path}: it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise OciError(f"{path}: it is no object")
    return found


def _checked(process: dict[str, Any], where: str) -> dict[str, Any]:
    if not process.get("args"):
        raise OciError(f"{where}: there is nothing to run; give words behind the container's ID")
    return process
