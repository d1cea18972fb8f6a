"""An image built from a pykvm-file: each instruction becomes a layer or a setting, and is kept for next time.

The same files, base and instructions give the same digests: owners, times and orders of the host do not
count, and the time of building is 1970 unless SOURCE_DATE_EPOCH says another one. What RUN makes has the
times that its command gave it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pykvm.containers import context as files
from pykvm.containers.blobs import write_whole
from pykvm.containers.busybox import BUSYBOX, add_busybox
from pykvm.containers.documents import LAYER_TYPE, Descriptor, Image, canonical, chain_ids
from pykvm.containers.layer import Kind
from pykvm.containers.names import parse_name
from pykvm.containers.pykvmfile import Instruction, expand, pairs, parse, split, words
from pykvm.containers.tree import FileTree, read_file
from pykvm.containers.views import short
from pykvm.errors import ConfigError, ImageError, ImageNotFoundError, PykvmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.containers.build_run import BuildMachine
    from pykvm.containers.names import Name
    from pykvm.containers.store import Entry, ImageStore

__all__ = ["Built", "build"]

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OPTION = re.compile(r"--(chown|chmod)=(\S+)")
_MOST_USERS_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Built:
    """What was built; `steps` are the instructions with whether their layer came from the cache."""

    image: Image
    steps: list[tuple[str, bool]]


def build(
    store: ImageStore,
    context: Path,
    text: str,
    where: str,
    name: Name | None = None,
    *,
    use_cache: bool = True,
    notice: Callable[[str], None] = lambda _: None,
) -> Built:
    """Build the image that `text` describes from the files below `context`, and keep it.

    `where` is what errors call the text; `notice` is told each step, in docker's words. Raises ConfigError
    and ImageError, naming the line.
    """
    steps = parse(text, where)
    with store.using(), ExitStack() as stack:
        builder = stack.enter_context(closing(_Builder(store, context, use_cache=use_cache, notice=notice)))
        for number, step in enumerate(steps, 1):
            notice(f"Step {number}/{len(steps)} : {step.word} {' '.join(step.text.split())}")
            try:
                builder.do(step)
            except PykvmError as error:
                text = str(error)
                prefix = "" if text.startswith("line ") else f"line {step.line}: {step.word}: "
                kind = ImageError if isinstance(error, ImageError) else ConfigError
                raise kind(f"{where}: {prefix}{text}") from None
        image = store.add_built(builder.config(), builder.layers, name)
    return Built(image, builder.steps)


@dataclass(slots=True)
class _State:
    """The configuration so far."""

    settings: dict[str, Any] = field(default_factory=lambda: {"Env": [_PATH]})
    history: list[dict[str, Any]] = field(default_factory=list)
    diff_ids: list[str] = field(default_factory=list)
    platform: dict[str, str] = field(default_factory=lambda: {"architecture": "amd64", "os": "linux"})
    own_command: bool = False


class _Builder:
    def __init__(
        self, store: ImageStore, context: Path, *, use_cache: bool, notice: Callable[[str], None]
    ) -> None:
        self._store = store
        self._context = context
        self._use_cache = use_cache
        self._notice = notice
        self._state = _State()
        self._tree: FileTree | None = None
        self._room: BuildMachine | None = None
        self._ignored = files.Ignored(context)
        self._do: dict[str, Callable[[Instruction], None]] = {
            "FROM": self._from,
            "COPY": self._copy,
            "RUN": self._run,
            "ENV": self._env,
            "LABEL": self._label,
            "WORKDIR": self._workdir,
            "USER": self._user,
            "CMD": self._command,
            "ENTRYPOINT": self._entrypoint,
        }
        self.layers: list[Descriptor] = []
        self.steps: list[tuple[str, bool]] = []

    def do(self, step: Instruction) -> None:
        """One instruction."""
        before = len(self.steps)
        self._do[step.word](step)
        if len(self.steps) == before:
            self.steps.append((f"{step.word} {step.text}", False))
            if step.word != "FROM":
                self._note(step, empty=True)
        self._notice(f" ---> {short(self._fingerprint())}")

    def config(self) -> bytes:
        """The configuration as it will be kept."""
        state = self._state
        rootfs = {"type": "layers", "diff_ids": state.diff_ids}
        created = {"created": _created()}
        return canonical(
            {
                **state.platform,
                **created,
                "config": state.settings,
                "history": state.history,
                "rootfs": rootfs,
            }
        )

    def _fingerprint(self) -> str:
        return hashlib.sha256(self.config()).hexdigest()

    def _variables(self) -> dict[str, str]:
        return dict(one.split("=", 1) for one in self._state.settings.get("Env") or [] if "=" in one)

    def _note(self, step: Instruction, *, empty: bool) -> None:
        created = {"created": _created()}
        text = f"{step.word} {' '.join(step.text.split())}"
        self._state.history.append({**created, "created_by": text} | ({"empty_layer": True} if empty else {}))

    def _from(self, step: Instruction) -> None:
        what = step.text
        if what == "scratch":
            return
        if what == "debian:" or what.startswith("debian: "):
            self._from_packages(step, what.split()[1:])
        elif what.startswith((".", "/")):
            self._from_path(step, self._context / what)
        else:
            self._from_image(self._store.image(self._base(step).descriptor))

    def _base(self, step: Instruction) -> Entry:
        try:
            return self._store.find(step.text)
        except ImageNotFoundError:
            if parse_name(step.text).with_tag() == BUSYBOX:
                return add_busybox(self._store, self._notice)
            raise step.wrong(
                f"no such image: {step.text}; `pykvm image pull {step.text}` fetches it"
            ) from None

    def _from_image(self, image: Image) -> None:
        state, settings = self._state, image.settings
        state.settings = json.loads(json.dumps(settings.get("config") or {}))
        state.history = list(settings.get("history") or [{"created_by": "?"} for _ in image.layers])
        state.diff_ids = list(image.diff_ids)
        state.platform = {
            key: str(settings[key]) for key in ("architecture", "os", "variant") if settings.get(key)
        }
        self.layers = list(image.layers)

    def _from_packages(self, step: Instruction, names: list[str]) -> None:
        from pykvm.containers.debian import packages_for, write_packages  # noqa: PLC0415 - few need apt

        if not names:
            raise step.wrong("name Debian's packages, as in FROM debian: busybox-static")

        def write(file: IO[bytes]) -> None:
            found = packages_for(names, self._notice)
            write_packages(found, file, self._store.blobs.incoming, self._notice)

        self._layer(step, ["debian", names], write)

    def _from_path(self, step: Instruction, path: Path) -> None:
        if path.is_dir():
            found = [(one.below, one.path) for one in files.files_below(path, lambda _: False) if one.below]
            self._layer(
                step, ["directory", files.fingerprint(found)], lambda file: self._write_all(file, found)
            )
        elif path.is_file():
            with path.open("rb") as file:
                digest, note = self._store.add_layer(file, path.name)
            media = f"{LAYER_TYPE}+{note.packing}" if note.packing else LAYER_TYPE
            self._add(
                step, Descriptor(media, digest, self._store.blobs.size(digest)), note.diff_id, cached=False
            )
        else:
            raise step.wrong(f"{path}: no such file or directory")

    def _write_all(self, file: IO[bytes], found: list[tuple[str, Path]]) -> None:
        tar = files.LayerTar(file, FileTree())
        for below, source in found:
            tar.add(below, source, (0, 0), None)
        tar.close()

    def _copy(self, step: Instruction) -> None:
        options = {}
        text = step.text
        while match := _OPTION.match(text):
            options[match[1]] = match[2]
            text = text[match.end() :].lstrip()
        if text.startswith("--"):
            raise step.wrong(f"{text.split()[0]}: there are --chown=USER:GROUP and --chmod=MODE")
        parts = split(Instruction(step.word, text, step.line), self._variables())
        if len(parts) < 2:
            raise step.wrong("needs a source and a target")
        owner, mode = self._owner(options.get("chown", "0:0"), step), _mode(options.get("chmod"), step)
        found = self._targets(parts[:-1], parts[-1], step)

        def write(file: IO[bytes]) -> None:
            tar = files.LayerTar(file, self._files())
            for path, source in found:
                tar.folder(path if source is None else path.rpartition("/")[0])
                if source is not None:
                    tar.add(path, source, owner, mode)
            tar.close()

        folders = [path for path, source in found if source is None]
        told = files.fingerprint([(path, source) for path, source in found if source is not None])
        self._layer(step, ["copy", folders, list(owner), mode, told], write)

    def _run(self, step: Instruction) -> None:
        if step.text.startswith("--"):
            raise step.wrong(f"{step.text.split()[0]}: RUN has no options here")
        if not self.layers:
            raise step.wrong("there is nothing yet that could run; begin with a base")
        args = words(step) or ["/bin/sh", "-c", step.text]
        state = self._state
        told = {key: state.settings.get(key) for key in ("Env", "User", "WorkingDir")}

        def write(file: IO[bytes]) -> None:
            self._machine().run(self.layers, state.diff_ids, state.settings, args, self._files(), file)

        self._layer(step, ["run", args, told], write)

    def _machine(self) -> BuildMachine:
        """Where commands run, made when the first one does."""
        if self._room is None:
            from pykvm.containers.build_run import BuildMachine  # noqa: PLC0415 - few builds run commands

            self._room = BuildMachine(self._store, self._notice)
        return self._room

    def close(self) -> None:
        """End what was started."""
        if self._room:
            self._room.close()

    def _targets(self, names: list[str], target: str, step: Instruction) -> list[tuple[str, Path | None]]:
        """(path in the image, path here) of all there is to copy; None for a directory that must be there."""
        tree = self._files()
        below = f"{self._state.settings.get('WorkingDir') or '/'}/{target}"
        top = files.resolve(tree, target if target.startswith("/") else below, last=True)
        node = tree.get(top)
        sources = [path for name in names for path in files.sources(self._context, name)]
        is_folder = (
            target.endswith("/") or target in {".", ".."} or bool(node and node.kind is Kind.DIRECTORY)
        )
        if len(sources) > 1 and not is_folder:
            raise step.wrong(f"several sources need a directory as target: write {target}/")
        root = Path(os.path.realpath(self._context))
        found: list[tuple[str, Path | None]] = []
        for source in sources:
            copies_inside = source.is_dir() and not source.is_symlink()
            path = top if copies_inside or not is_folder else f"{top}/{source.name}".lstrip("/")
            if copies_inside:
                found.append((top, None))
            for one in files.files_below(source, lambda path: self._is_out(root, path)):
                where = f"{path}/{one.below}".strip("/")
                if not self._is_out(root, one.path) and (one.below or not copies_inside):
                    found.append((self._through(tree, where), one.path))
        return found

    def _through(self, tree: FileTree, path: str) -> str:
        """Where a path really is: directories in the image may be links."""
        folder, _, name = path.rpartition("/")
        return f"{files.resolve(tree, folder, last=True)}/{name}".lstrip("/")

    def _is_out(self, root: Path, path: Path) -> bool:
        return self._ignored(str(path.relative_to(root)))

    def _files(self) -> FileTree:
        """What the image has so far."""
        if self._tree is None:
            self._tree = FileTree()
        while self._tree.layers < len(self.layers):
            with self._store.open_layer(self.layers[self._tree.layers]) as reader:
                self._tree.apply(reader, with_content=False)
        return self._tree

    def _owner(self, text: str, step: Instruction) -> tuple[int, int]:
        user, _, group = text.partition(":")
        uid, primary = self._number(user, "etc/passwd", step)
        gid = self._number(group, "etc/group", step)[0] if group else primary
        return uid, gid

    def _number(self, name: str, path: str, step: Instruction) -> tuple[int, int]:
        """A user's or group's number, and the fourth field's (a user's group) or the number again."""
        if name.isdecimal():
            if int(name) >= 1 << 32 - 1:
                raise step.wrong(f"{name}: there is no such number of a user or group")
            return int(name), int(name)
        found = read_file(self._store, self.layers, path, _MOST_USERS_BYTES) or b""
        for line in found.decode("utf-8", "replace").splitlines():
            parts = line.split(":")
            if parts[0] == name and len(parts) > 3 and parts[2].isdecimal():
                group = int(parts[3]) if path.endswith("passwd") and parts[3].isdecimal() else int(parts[2])
                return int(parts[2]), group
        if name == "root":
            return 0, 0
        raise step.wrong(f"{name}: not in the image's /{path}; give its number")

    def _env(self, step: Instruction) -> None:
        found = self._variables()
        for name, value in pairs(step, found):
            found[name] = value
        self._state.settings["Env"] = [f"{name}={value}" for name, value in found.items()]

    def _label(self, step: Instruction) -> None:
        labels = self._state.settings.get("Labels") or {}
        self._state.settings["Labels"] = {**labels, **dict(pairs(step, self._variables()))}

    def _workdir(self, step: Instruction) -> None:
        path = expand(step.text, self._variables())
        before = self._state.settings.get("WorkingDir") or "/"
        joined = os.path.normpath(path if path.startswith("/") else f"{before}/{path}")
        self._state.settings["WorkingDir"] = re.sub("^/+", "/", joined)

    def _user(self, step: Instruction) -> None:
        self._state.settings["User"] = expand(step.text, self._variables())

    def _command(self, step: Instruction) -> None:
        self._state.settings["Cmd"] = words(step) or ["/bin/sh", "-c", step.text]
        self._state.own_command = True

    def _entrypoint(self, step: Instruction) -> None:
        self._state.settings["Entrypoint"] = words(step) or ["/bin/sh", "-c", step.text]
        if not self._state.own_command:  # the base's arguments were for the base's program
            self._state.settings.pop("Cmd", None)

    def _layer(self, step: Instruction, told: list[Any], write: Callable[[IO[bytes]], None]) -> None:
        """The layer that `told` describes upon those there are: from the cache, or written."""
        below = chain_ids(self._state.diff_ids)[-1:]
        key = hashlib.sha256(canonical([1, below, told])).hexdigest()
        layer = self._cached(key) if self._use_cache else None
        cached = layer is not None
        if layer is None:
            with self._store.blobs.ingest() as incoming:
                write(incoming)  # type: ignore[arg-type]  # it has write, and that is what a Sink uses
                digest = incoming.commit()
            layer = Descriptor(LAYER_TYPE, digest, self._store.blobs.size(digest))
            self._remember(key, layer)
        if cached:
            self._notice(" ---> Using cache")
        self._add(step, layer, self._store.note(layer).diff_id, cached=cached)

    def _add(self, step: Instruction, layer: Descriptor, diff_id: str, *, cached: bool) -> None:
        self.layers.append(layer)
        if len(self.layers) > self._store.limits.layers:
            raise step.wrong(f"the image would have more than {self._store.limits.layers} layers")
        self._state.diff_ids.append(diff_id)
        self._note(step, empty=False)
        self.steps.append((f"{step.word} {step.text}", cached))

    def _cached(self, key: str) -> Descriptor | None:
        try:
            digest = json.loads((self._store.root / "cache" / key).read_bytes())["layer"]
            return Descriptor(LAYER_TYPE, digest, self._store.blobs.size(digest))
        except (OSError, ValueError, KeyError, TypeError, ImageError):
            return None

    def _remember(self, key: str, layer: Descriptor) -> None:
        folder = self._store.root / "cache"
        folder.mkdir(exist_ok=True)
        with write_whole(folder / key) as file:
            file.write(canonical({"layer": layer.digest}))


def _mode(text: str | None, step: Instruction) -> int | None:
    if text is None:
        return None
    if not re.fullmatch("[0-7]{3,4}", text):
        raise step.wrong(f"--chmod={text}: a mode is three or four octal digits")
    return int(text, 8)


def _created() -> str:
    """The time to note: 1970, unless the environment says another one for reproducible builds."""
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(said) if said.isdecimal() else 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
