"""Chips of a guest's board, one a file. A device knows offsets, never addresses, and never the machine.

Every device answers `read(offset, size)` and `write(offset, data)` (the protocol of `pykvm.bus`) and
is handed what it needs: an interrupt line, an output, a clock, a function to call.

Ports follow the ISA bus's rule: an access wider than the register is made of single bytes at successive
offsets, and where no register answers, the bus floats: all ones.
"""
