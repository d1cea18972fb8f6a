"""ACPI's own compiler takes our tables: it disassembles them, and compiles what it got without a warning."""

from __future__ import annotations

import shutil
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness.needs import NOT_HERE
from harness.programs import PACKAGES

from pykvm import layout
from pykvm.boot.acpi import VirtioSlot, acpi_tables

if TYPE_CHECKING:
    from pathlib import Path


def iasl(*arguments: str, where: Path) -> str:
    done = subprocess.run(
        ["iasl", *arguments], cwd=where, capture_output=True, text=True, check=False, timeout=60
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "rror:" not in text.replace("0 Error", ""), text
    return text


def test_iasl_has_nothing_to_complain_of(tmp_path: Path) -> None:
    """FADT, MADT and DSDT with all virtio devices that fit."""
    if not shutil.which("iasl"):
        pytest.skip(f"{NOT_HERE}iasl: there is no iasl; apt-get install {PACKAGES['iasl']}")
    at, size = layout.ACPI_TABLES.start, layout.VIRTIO_MMIO_BYTES
    slots = [
        VirtioSlot(range(start, start + size), gsi)
        for start, gsi in zip(layout.VIRTIO_MMIO[::size], layout.VIRTIO_GSIS, strict=False)
    ]
    blob = acpi_tables(at, vcpus=2, virtio=slots)
    (xsdt,) = struct.unpack_from("<Q", blob, 24)
    (fadt, madt) = struct.unpack_from("<QQ", blob, xsdt - at + 36)
    (dsdt,) = struct.unpack_from("<Q", blob, fadt - at + 140)
    for name, gpa in {"fadt": fadt, "madt": madt, "dsdt": dsdt, "xsdt": xsdt}.items():
        (length,) = struct.unpack_from("<I", blob, gpa - at + 4)
        (tmp_path / f"{name}.aml").write_bytes(blob[gpa - at :][:length])
        said = iasl("-d", f"{name}.aml", where=tmp_path)
        assert not any(word in said for word in ("Warning", "incorrect", "Invalid")), said
        again = iasl("-p", f"{name}2", f"{name}.dsl", where=tmp_path)
        assert "0 Errors, 0 Warnings" in again or name != "dsdt", again
