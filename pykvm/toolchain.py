"""The tool chain of guests: the one place that runs gcc, as and ld.

A guest is built freestanding for the CPU mode it starts in, with the library in `guests/lib` and the
headers in `guests/include`. Only gcc and binutils are needed, no multilib and no C library.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykvm import layout, regs
from pykvm.errors import ToolchainError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MODES",
    "build_agent",
    "build_all",
    "build_compare",
    "build_guest",
    "build_linux_init",
    "build_paravirt",
    "build_probes",
    "compile_program",
]

MODES = ("real16", "prot32", "paged32", "long64", "user64")
_SELECTORS = (
    *("KERNEL_CODE64", "KERNEL_DATA", "USER_CODE32", "USER_DATA"),
    *("USER_CODE64", "TSS_SELECTOR", "KERNEL_CODE32"),
)
_INSTALL = "install them with: apt-get install gcc binutils libc6-dev (or your distribution's build tools)"
_PROGRAM_BASE = 0x20_0000  # where guest.ld puts section .user of a guest that is loaded at 1 MiB
_FLAGS = (
    "-std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -fno-pie -fno-stack-protector "
    "-fno-asynchronous-unwind-tables -fno-builtin -fcf-protection=none -mgeneral-regs-only -g"
).split()
_LINK = "-nostdlib -static -no-pie -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments".split()


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ToolchainError(f"{what}: there is no {command[0]}; {_INSTALL}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.splitlines()
        raise ToolchainError(f"{what}: {lines[0] if lines else f'{command[0]} failed'}")


def _mode_flags(mode: str) -> list[str]:
    bits = ["-m64", "-mno-red-zone", "-mcmodel=small"] if mode.endswith("64") else ["-m32"]
    if mode == "real16":
        bits = ["-m16"]
    return [*bits, f"-DMODE_{mode.upper()}=1"]


def compile_program(
    sources: Sequence[Path],
    out: Path,
    *,
    mode: str,
    root: Path,
    flags: Sequence[str] = (),
    address: int | None = None,
    script: Path | None = None,
) -> Path:
    """Compile and link `sources` (C or assembler) for CPU mode `mode` to `out`.

    `root` holds `lib/` and `include/`. The result is an ELF file, or a flat binary for real16. `address`
    is where it is linked, by default where flat images of that mode are loaded, `script` the linker script,
    by default the library's. Raises ToolchainError with the tool's first complaint.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    at = address if address is not None else 0x8000 if mode == "real16" else 0x100000
    link = ["-Wl,--oformat=binary"] if mode == "real16" else []
    command = [
        "gcc",
        *_FLAGS,
        *_mode_flags(mode),
        f"-I{root / 'include'}",
        f"-I{root / 'lib'}",
        *flags,
        *_LINK,
        *([] if mode.endswith("64") else ["-Wl,-m,elf_i386"]),
        *link,
        f"-Wl,--defsym=guest_base={at:#x}",
        f"-Wl,-T,{script or root / 'lib' / 'guest.ld'}",
        *(str(source) for source in sources),
        "-o",
        str(out),
    ]
    _run(command, out.name)
    return out


def _image_name(name: str, mode: str) -> str:
    return f"{name}.{mode}.bin" if mode == "real16" else f"{name}.{mode}.elf"


def build_guest(folder: Path, out: Path, *, root: Path) -> dict[str, Any]:
    """Build one guest's images for all its modes into `out`; its entry for the index.

    `folder` holds guest.toml, whose keys are explained in guests/README.md.
    """
    try:
        about = tomllib.loads((folder / "guest.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ToolchainError(f"{folder / 'guest.toml'}: {error}") from None
    sources = [folder / name for name in about.get("sources", [])]
    sources = sources or sorted([*folder.glob("*.S"), *folder.glob("*.c")])
    sources += [root / "lib" / name for name in about.get("lib", [])]
    images: dict[str, str] = {}
    for mode in about.get("modes", ["long64"]):
        image = _image_name(folder.name, mode)
        compile_program(
            sources,
            out / image,
            mode=mode,
            root=root,
            flags=about.get("flags", []),
            address=about.get("address"),
        )
        images[mode] = image
    return {
        "description": about["description"],
        "images": images,
        "machine": about.get("machine", {}),
        "needs": about.get("needs", []),
        "expect": about.get("expect", {}),
    }


def build_boot_sector(folder: Path, out: Path, *, root: Path) -> dict[str, Any]:
    """Build a guest that is a raw disk image: `disk` in its guest.toml lists the sources in order.

    Each source is linked by itself: the first at 0x7c00, the others as `disk_addresses` say, and each
    begins on a new sector.
    """
    about = tomllib.loads((folder / "guest.toml").read_text())
    parts = []
    for source, address in zip(about["disk"], about["disk_addresses"], strict=True):
        part = out / f"{folder.name}.{source}.part"
        compile_program([folder / source], part, mode="real16", root=root, address=address)
        data = part.read_bytes()
        parts.append(data + bytes(-len(data) % 512))
        part.unlink()
    image = f"{folder.name}.disk.img"
    disk = b"".join(parts)
    (out / image).write_bytes(disk + bytes(max(about.get("disk_bytes", 0) - len(disk), 0)))
    return {
        "description": about["description"],
        "images": {"reset": image},
        "machine": about.get("machine", {}),
        "needs": about.get("needs", []),
        "expect": about.get("expect", {}),
    }


def build_probes(folder: Path, out: Path, *, root: Path) -> None:
    """Build the guests of `pykvm doctor` into `out`; `folder`/probes.toml names each and its CPU modes.

    They learn the address map and the selectors from pykvm itself, as macros.
    """
    try:
        probes = tomllib.loads((folder / "probes.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ToolchainError(f"{folder / 'probes.toml'}: {error}") from None
    numbers = {name: getattr(regs, name) for name in _SELECTORS}
    numbers |= {"BOOT": layout.BOOT, "MMIO": layout.MMIO_DEVICES.start}
    flags = [f"-D{name}={number:#x}" for name, number in numbers.items()]
    for name, modes in probes.items():
        for mode in modes:
            image = out / _image_name(name, mode)
            compile_program([folder / f"{name}.S"], image, mode=mode, root=root, flags=flags)


def build_paravirt(folder: Path, out: Path, *, root: Path) -> None:
    """Build the paravirtual kernel, all sources in `folder`, into `out`/paravirt.elf."""
    library = [root / "lib" / name for name in ("console.c", "interrupts.c", "interrupts.S")]
    sources = [*sorted([*folder.glob("*.S"), *folder.glob("*.c")]), *library]
    flags = ["-O2", "-mcmodel=kernel"]  # its calls are many and short, and it lives in the upper half
    image = out / "paravirt.elf"
    compile_program(sources, image, mode="long64", root=root, flags=flags, script=folder / "kernel.ld")


def build_linux_init(folder: Path, out: Path) -> None:
    """Build the first process of a Linux guest, `folder`/init.c, into `out`/linux_init: static, no libc."""
    flags = [flag for flag in _FLAGS if flag not in ("-mgeneral-regs-only", "-g")]
    command = ["gcc", "-m64", *flags, *_LINK, str(folder / "init.c"), "-s", "-o", str(out / "linux_init")]
    _run(command, "linux_init")


def build_agent(folder: Path, out: Path) -> None:
    """Build the first process of a guest that holds containers, `folder`/*.c, into `out`/agent: as above."""
    flags = [flag for flag in _FLAGS if flag not in ("-mgeneral-regs-only", "-g")]
    sources = [str(source) for source in sorted(folder.glob("*.c"))]
    _run(["gcc", "-m64", *flags, *_LINK, *sources, "-s", "-o", str(out / "agent")], "agent")


def build_compare(folder: Path, out: Path, *, root: Path) -> None:
    """Build what `pykvm compare` runs into `out`: the program, what makes a container of it on the
    host, and the kernel with drivers that holds it.
    """
    program = out / "compare_program.elf"
    compile_program(
        [folder / "program.c"],
        program,
        mode="long64",
        root=root,
        flags=["-O2", "-g0"],  # as programs are built; and the kernel has no use for its symbols
        address=_PROGRAM_BASE,
        script=folder / "program.ld",
    )
    parts = ("start.S", "console.c", "interrupts.c", "interrupts.S", "ring3.c", "ring3.S")
    sources = [*(folder / name for name in ("kernel.c", "drivers.c", "program.S"))]
    sources += [root / "lib" / name for name in parts]
    flags = [f"-Wa,-I,{out}", f"-I{folder}"]
    compile_program(sources, out / "compare_kernel.elf", mode="long64", root=root, flags=flags)
    flags = [flag for flag in _FLAGS if flag not in ("-mgeneral-regs-only", "-g")]
    contain = out / "compare_contain"
    _run(["gcc", "-m64", *flags, *_LINK, str(folder / "contain.c"), "-s", "-o", str(contain)], contain.name)


def build_firmware(folder: Path, out: Path, *, root: Path) -> None:
    """Build firmware/*.S into `out`/bios.bin, 64 KiB that end with the reset vector."""
    objects = []
    for source in sorted(folder.glob("*.S")):
        target = out / f"{source.stem}.fw.o"
        _run(
            ["gcc", "-m32", "-c", f"-I{folder}", f"-I{root / 'include'}", str(source), "-o", str(target)],
            source.name,
        )
        objects.append(target)
    script = folder / "bios.ld"
    command = ["ld", "-m", "elf_i386", "-T", str(script), "--oformat", "binary", *map(str, objects), "-o"]
    _run([*command, str(out / "bios.bin")], "bios.bin")
    for target in objects:
        target.unlink()


def build_all(root: Path, out: Path) -> None:
    """Build every guest and the firmware of the source tree `root` into `out`, with an index.json.

    The library and headers of guests go along, for programs that users compile themselves. `out` is
    replaced as a whole, and stays as it was if anything fails.
    """
    guests = root / "guests"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix="._guests-") as scratch:
        made = Path(scratch) / "new"
        made.mkdir(mode=0o755)
        _build_into(guests, root / "firmware", made)
        if out.exists():
            out.rename(Path(scratch) / "old")
        made.rename(out)


def _build_into(guests: Path, firmware: Path, out: Path) -> None:
    index = {}
    for about in sorted(guests.glob("*/guest.toml")):
        folder = about.parent
        build = build_boot_sector if "disk" in tomllib.loads(about.read_text()) else build_guest
        index[folder.name] = build(folder, out, root=guests)
    build_probes(guests / "probes", out / "probes", root=guests)
    build_paravirt(guests / "paravirt", out, root=guests)
    build_linux_init(guests / "linux_init", out)
    build_agent(guests / "agent", out)
    build_compare(guests / "compare", out, root=guests)
    build_firmware(firmware, out, root=guests)
    for part in ("lib", "include"):
        shutil.copytree(guests / part, out / part)
    (out / "index.json").write_text(json.dumps(index, indent=1))
