"""One more process in a container: what `container exec` asks of the agent."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from pykvm.containers.creation import for_agent
from pykvm.containers.running import user_of
from pykvm.containers.seccomp import compile_filter
from pykvm.errors import PykvmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.containers.records import ContainerStore, Record
    from pykvm.containers.store import ImageStore

__all__ = ["entry_request"]


def entry_request(
    store: ImageStore,
    containers: ContainerStore,
    record: Record,
    words: Sequence[str],
    env: Mapping[str, str],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The agent's `exec`: as the container's own process but for what is `given`.

    Another user's capabilities are those of execve: root has the container's, all others none.
    """
    config = containers.config(record)
    process: dict[str, Any] = dict(config["process"])
    variables = dict(line.split("=", 1) for line in process["env"])
    if given.get("user"):
        entry = store.find(record.image_id)
        user = user_of(store, store.image(entry.descriptor), given["user"])
        process["user"] = {
            "uid": user.uid,
            "gid": user.gid,
            "umask": 0o022,
            "additionalGids": list(user.groups),
        }
        variables["HOME"] = user.home or "/"
    bounding = process["capabilities"]["bounding"]
    held = bounding if process["user"]["uid"] == 0 else []
    process["capabilities"] = {"bounding": bounding, "effective": held, "permitted": held, "inheritable": []}
    if given.get("tty"):
        variables.setdefault("TERM", "xterm")
        size = shutil.get_terminal_size()
        process["consoleSize"] = {"height": size.lines, "width": size.columns}
    variables |= env
    process["env"] = [f"{name}={value}" for name, value in variables.items()]
    process["args"], process["terminal"] = list(words), bool(given.get("tty"))
    if cwd := given.get("workdir"):
        if not cwd.startswith("/"):
            raise PykvmError(f"the working directory '{cwd}' is invalid, it needs to be an absolute path")
        process["cwd"] = cwd
    request: dict[str, Any] = {
        "name": record.short,
        "process": for_agent(process),
        "stdin": bool(given.get("interactive")),
    }
    if profile := config["linux"].get("seccomp"):
        request["seccomp"] = compile_filter(profile).hex()
    return request
