"""Boot marks on port 0x80."""

from __future__ import annotations

from pykvm.devices.post import PostCode


def test_marks_arrive_in_order_and_the_last_reads_back() -> None:
    """Each write is one mark; a read answers the last, and 0 before any."""
    marks: list[int] = []
    post = PostCode(marks.append)
    assert post.read(0, 1) == b"\0"
    post.write(0, b"\x01")
    post.write(0, b"\xa5")
    assert marks == [0x01, 0xA5]
    assert post.read(0, 1) == b"\xa5"
    assert marks == [0x01, 0xA5]


def test_a_wide_write_is_one_mark() -> None:
    """Of a wide write the first byte is the mark: the others belong to the next ports."""
    marks: list[int] = []
    post = PostCode(marks.append)
    post.write(0, b"\x12\x34\x56\x78")
    assert marks == [0x12]
    assert post.read(0, 4) == b"\x12\xff\xff\xff"
