"""What an image may be at most: what is larger is taken for an attack, or for a mistake."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HEADER_BYTES", "JSON_BYTES", "Limits"]

JSON_BYTES = 4 << 20
HEADER_BYTES = 1 << 19  # of one extended header of a tar


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what an image may hold.

    `image_bytes` is the sum of all its layers, unpacked. `layers` is what Linux's overlay and docker take.
    """

    image_bytes: int = 8 << 30
    layers: int = 127
    entries: int = 1_000_000
    devices: int = 1024
