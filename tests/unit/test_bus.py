"""The bus: ranges never overlap, and each address finds the device that has it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm import layout
from pykvm.bus import Bus
from pykvm.errors import ConfigError

LIMIT = 64


class Named:
    """A device that answers nothing but can be told from others."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        pass


ranges = st.builds(
    lambda start, size: range(start, start + size), st.integers(0, LIMIT - 1), st.integers(1, 16)
)


@given(st.lists(ranges, max_size=20))
@settings(deadline=None)
def test_bus_agrees_with_a_map_of_every_address(wanted: list[range]) -> None:
    """Attaching fails exactly where an address is taken; finding gives exactly the owner and the offset."""
    bus = Bus("ports")
    owners: dict[int, tuple[Named, int]] = {}
    kept: list[tuple[range, Named]] = []
    for where in wanted:
        device = Named()
        if any(address in owners for address in where):
            with pytest.raises(ConfigError, match="overlaps"):
                bus.attach(where, device)
            continue
        bus.attach(where, device)
        kept.append((where, device))
        owners.update({address: (device, offset) for offset, address in enumerate(where)})
    for address in range(LIMIT + 20):
        assert bus.find(address) == owners.get(address)
    assert list(bus) == sorted(kept, key=lambda entry: entry[0].start)


@pytest.mark.parametrize("where", [range(5, 5), range(9, 3), range(0, 10, 2), range(9, 3, -1)])
def test_a_device_needs_addresses(where: range) -> None:
    """A range that is empty or has gaps is refused."""
    with pytest.raises(ConfigError, match="ports: a device needs a range"):
        Bus("ports").attach(where, Named())


def test_an_overlap_names_both_devices_and_their_ranges() -> None:
    """The error says which device at which addresses is in the way of which."""
    bus = Bus("ports")
    bus.attach(range(0x3F8, 0x400), Named())
    with pytest.raises(ConfigError) as caught:
        bus.attach(range(0x3F0, 0x3F9), Bus("mmio"))  # type: ignore[arg-type]  # only its name matters
    assert str(caught.value) == "ports: Bus at 0x3f0-0x3f8 overlaps Named at 0x3f8-0x3ff"


def test_a_refused_device_leaves_the_bus_as_it_was() -> None:
    """After a refusal the first device still has all its addresses and no others."""
    bus, first = Bus("ports"), Named("first")
    bus.attach(range(4, 8), first)
    with pytest.raises(ConfigError):
        bus.attach(range(7, 12), Named("second"))
    assert list(bus) == [(range(4, 8), first)]
    assert bus.find(8) is None


def test_addresses_of_64_bits_work() -> None:
    """An MMIO bus finds a device at the end of the physical address space."""
    bus, device = Bus("mmio"), Named()
    bus.attach(range((1 << 52) - 8, 1 << 52), device)
    assert bus.find((1 << 52) - 1) == (device, 7)
    assert bus.find(1 << 52) is None
    assert bus.find((1 << 64) - 1) is None


def board_ports(*, testdev: bool) -> list[range]:
    """The port ranges of the layout, as one of the two boards has them."""
    named = {name: value for name, value in vars(layout).items() if isinstance(value, range)}
    mmio = {"HOLE", "MMIO_DEVICES", "TESTDEV_IOMEM"}
    absent = {"DEBUG_CONSOLE"} if testdev else {name for name in named if name.startswith("TESTDEV_")}
    return [where for name, where in named.items() if name not in mmio | absent]


@pytest.mark.parametrize("testdev", [False, True])
def test_the_ports_of_a_board_do_not_overlap(testdev: bool) -> None:
    """All ports of the address map go together on one bus, on either board."""
    bus = Bus("ports")
    for where in board_ports(testdev=testdev):
        bus.attach(where, Named())
    assert len(list(bus)) > 10
