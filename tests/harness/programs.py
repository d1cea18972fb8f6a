"""What the tests call beside the labs' own tools, and the Debian packages that have it."""

from __future__ import annotations

__all__ = ["PACKAGES"]

PACKAGES = {
    "iasl": "acpica-tools",
    "passt": "passt",
    "ip": "iproute2",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "docker-registry": "docker-registry",
    "fsck.erofs": "erofs-utils",
    "apt-get": "apt",  # where it is missing, nothing is installed
}
"""Program -> package: installed where the tests run as root."""
