"""From `container run`'s words to a container that runs: image, record, machine, start."""

from __future__ import annotations

import random
import shutil
import signal
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm.containers.busybox import BUSYBOX, add_busybox
from pykvm.containers.guest_options import GuestOptions
from pykvm.containers.kept import files_of, kept_layer
from pykvm.containers.launch import ensure_machine, reach, started_of
from pykvm.containers.layer_files import layer_files
from pykvm.containers.names import parse_name
from pykvm.containers.oci_config import Place, command_of, oci_config
from pykvm.containers.progress import silent
from pykvm.containers.records import ContainerStore, NameTakenError, Record, StateError, new_id
from pykvm.containers.runtimes import OWN_RUNTIME, check_runtime
from pykvm.containers.tree import read_file
from pykvm.containers.users import User, find_user
from pykvm.control import send_line
from pykvm.errors import ConfigError, ImageNotFoundError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from pykvm.containers.documents import Image
    from pykvm.containers.progress import Progress
    from pykvm.containers.run_options import RunOptions
    from pykvm.containers.store import Entry, ImageStore
    from pykvm.registry import Room

__all__ = [
    "Wish",
    "add_container",
    "add_container_of",
    "find_image",
    "guest_of",
    "restart_container",
    "signal_number",
    "start_container",
    "user_of",
]

_MOST_USERS_BYTES = 1 << 20
_KERNEL = (6, 1)
_ENDING_S = 60.0
_LOOK_S = 0.02
_LEFT = (
    "brave calm clear deft eager fair gentle glad keen kind lively merry noble proud quiet ready swift wise"
).split()
_RIGHT = (
    "alder aspen beech birch cedar elm fern fir hazel heath holly iris larch linden maple oak pine rowan"
).split()


@dataclass(frozen=True, slots=True)
class Wish:
    """What concerns the container as a whole: its name, its machine, who is attached."""

    image: str
    name: str = ""
    vm: str = ""
    auto_remove: bool = False
    runtime: str = OWN_RUNTIME
    guest: GuestOptions = field(default_factory=GuestOptions)


def find_image(
    store: ImageStore, text: str, notice: Callable[[str], None], progress: Progress = silent
) -> Entry:
    """The image; busybox is made and others are pulled if need be. Raises ImageError, RegistryError."""
    try:
        return store.find(text)
    except ImageNotFoundError:
        if text.startswith("sha256:"):
            raise ConfigError(f"Unable to find image '{text}' locally") from None
    name = parse_name(text).with_tag()
    if name == BUSYBOX:
        return add_busybox(store, notice)
    from pykvm.containers.registry import Registry  # noqa: PLC0415 - few runs pull

    notice(f"Unable to find image '{name.familiar}' locally")
    with closing(Registry(store, name, progress=progress, notice=notice)) as registry:
        registry.pull()
    return store.find(name.familiar)


def user_of(store: ImageStore, image: Image, text: str, add: Sequence[str] = ()) -> User:
    """The user of that name in the image; "" is the image's own. Raises ConfigError."""
    text = text or str((image.settings.get("config") or {}).get("User") or "")
    with store.using():
        passwd, group = (
            read_file(store, image.layers, path, _MOST_USERS_BYTES) or b""
            for path in ("etc/passwd", "etc/group")
        )
    return find_user(text, passwd, group, add)


def signal_number(text: str) -> int:
    """SIGTERM, TERM or 15. Raises ConfigError."""
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 0 < int(name) <= 64:
        return int(name)
    found = getattr(signal, f"SIG{name}", None)
    if not isinstance(found, signal.Signals):
        raise ConfigError(f"invalid signal: {text}")
    return int(found)


def add_container(
    store: ImageStore, containers: ContainerStore, wish: Wish, options: RunOptions, entry: Entry
) -> Record:
    """Make the layers' files and the record. Raises ImageError, ConfigError."""
    return add_container_of(store, containers, wish, options, store.image(entry.descriptor))


def add_container_of(
    store: ImageStore, containers: ContainerStore, wish: Wish, options: RunOptions, image: Image
) -> Record:
    """As add_container, for an image that need not be kept."""
    check_runtime(wish.runtime, options)
    settings = image.settings.get("config") or {}
    user = user_of(store, image, options.user, options.group_add)
    layers = layer_files(store, image)
    container_id = new_id()
    record = Record(
        id=container_id,
        name=wish.name,
        image=wish.image,
        image_id=image.id,
        layers=[layer.key for layer in layers],
        created_ns=time.time_ns(),
        vm=wish.vm or f"c-{container_id[:12]}",
        own_vm=not wish.vm,
        command=command_of(settings, options),
        network=options.network,
        auto_remove=wish.auto_remove,
        tty=options.tty,
        init=options.init,
        runtime=wish.runtime,
        stop_signal=signal_number(options.stop_signal or str(settings.get("StopSignal") or "TERM")),
        labels={**(settings.get("Labels") or {}), **options.labels},
        resources=options.limits.resources(),
        ports=[list(one) for one in options.publish],
        volumes=[[_folder(one.source), one.target, one.read_only] for one in options.volumes],
        rates={
            "throttleWriteBpsDevice": [list(one) for one in options.limits.write_bps],
            "throttleReadBpsDevice": [list(one) for one in options.limits.read_bps],
        },
        guest=wish.guest._asdict(),
    )
    return _add(containers, record, lambda one: oci_config(settings, options, user, _place(one)))


def _folder(source: str) -> str:
    """The host's folder of a volume, as it is called everywhere. Raises ConfigError if there is none."""
    path = Path(source).absolute()
    if not path.is_dir():
        raise ConfigError(f"invalid mount config: bind source path does not exist: {path}")
    return str(path)


def _place(record: Record) -> Place:
    return Place(record.id, record.first_id, _KERNEL)


def _add(containers: ContainerStore, record: Record, config: Callable[[Record], dict[str, Any]]) -> Record:
    """Keep it; without a name it gets one that nobody has."""
    if record.name:
        return containers.add(record, config)
    while True:
        name = f"{random.choice(_LEFT)}_{random.choice(_RIGHT)}"  # noqa: S311 - a name, not a secret
        with suppress(NameTakenError):
            return containers.add(replace(record, name=name), config)
        if random.random() < 0.1:  # noqa: S311 - names run out
            with suppress(NameTakenError):
                return containers.add(replace(record, name=f"{name}_{record.short[:6]}"), config)


def start_container(
    room: Room,
    containers: ContainerStore,
    record: Record,
    options: GuestOptions,
    *,
    attach: bool,
    explain: bool,
) -> socket.socket:
    """Have its machine start it; the connection on which its service tells of it. Raises PykvmError."""
    ensure_machine(room, record.vm, options, containers.root.parent, files_of(containers, record))
    containers.set(record.id, vm_started_ns=started_of(room, record.vm) or 0)
    link = reach(room, record.vm)
    link.settimeout(None)
    send_line(
        link,
        {
            "do": "container",
            "root": str(containers.root.parent),
            "id": record.id,
            "attach": attach,
            "explain": explain,
            "size": tuple(shutil.get_terminal_size()) if attach and record.tty else None,
        },
    )
    return link


def _wait_for_end(room: Room, record: Record) -> None:
    """Its machine ends a moment after it; the next one of that name is another. Raises StateError."""
    end = time.monotonic() + _ENDING_S
    while room.is_running(record.vm):
        if time.monotonic() > end:
            raise StateError(f"machine {record.vm} of container {record.name} has not ended; see `pykvm ps`")
        time.sleep(_LOOK_S)


def guest_of(record: Record) -> GuestOptions:
    """How large a machine is made for it."""
    known = {key: value for key, value in record.guest.items() if key in GuestOptions._fields}
    return GuestOptions(**known)


def restart_container(
    room: Room,
    store: ImageStore,
    containers: ContainerStore,
    record: Record,
    *,
    attach: bool,
) -> socket.socket:
    """Start one that has ended, or not begun, with its files as it left them; as start_container.

    If its machine can't be had it has ended as before. Raises PykvmError.
    """
    try:
        image = store.image(store.find(record.image_id).descriptor)
    except ImageNotFoundError:
        raise ConfigError(
            f"container {record.name}: its image {record.image} ({record.image_id[7:19]}) has gone"
        ) from None
    layer_files(store, image)
    if record.own_vm:
        _wait_for_end(room, record)
    revived = containers.revive(record, kept_layer(store, containers, record, image))
    try:
        return start_container(room, containers, revived, guest_of(record), attach=attach, explain=False)
    except BaseException:
        containers.set(record.id, state=record.state, status=record.status, error=record.error)
        raise
