"""Other runtimes than the agent: Debian's crun and runc, to compare; what they are given, what they can't do.

pykvm.containers.runtime_files fetches them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pykvm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pykvm.containers.run_options import RunOptions

__all__ = ["OWN_RUNTIME", "RUNTIMES", "bundle_config", "check_runtime", "runtime_program"]

OWN_RUNTIME = "pykvm"
RUNTIMES: Mapping[str, str] = {"crun": "usr/bin/crun", "runc": "usr/sbin/runc"}
"""Debian's packages, and the path of the program in each."""


def runtime_program(name: str) -> str:
    """Where the runtime's program is in a guest that has it."""
    return f"/{RUNTIMES[name]}"


def check_runtime(name: str, options: RunOptions) -> None:
    """Raise ConfigError for what a container made by that runtime can't have, in one line."""
    if name == OWN_RUNTIME:
        return
    asked = {
        "a terminal (-t)": options.tty,
        "--init": options.init,
        "volumes (-v)": bool(options.volumes),
        "--network bridge and -p": options.network == "bridge",
    }
    if found := [what for what, is_wanted in asked.items() if is_wanted]:
        raise ConfigError(f"--runtime {name} is there to be compared with, without {' or '.join(found)}")


def bundle_config(config: Mapping[str, Any], name: str, files: Sequence[str]) -> str:
    """config.json for another runtime: the same, with its cgroup, the root's place and mounts of `files`.

    `name` is the container's for the agent, `files` the paths at which the agent's f0, f1, … go.
    """
    options = ["bind", "nosuid", "nodev", "noexec"]
    mounts = [
        {"destination": path, "type": "bind", "source": f"f{at}", "options": options}
        for at, path in enumerate(files)
    ]
    linux = {**config["linux"], "cgroupsPath": f"/pykvm/{name}"}
    return json.dumps(
        {
            **config,
            "ociVersion": "1.0.2",  # what both know
            "root": {**config["root"], "path": "r"},
            "mounts": [*config["mounts"], *mounts],
            "linux": linux,
        }
    )
