"""python -m pykvm.compare.vmm WAY (WORKLOAD N DISK)…: does the jobs one by one, for who counts from outside.

The last job is done once before, outside all windows: what Python loads and learns then is not the guest's.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from pykvm.compare.ptrace import mark_begin, mark_end
from pykvm.compare.ways import Job, Look, all_ways
from pykvm.errors import PykvmError

__all__ = ["main"]


def main(words: list[str]) -> int:
    """Do them; 0, or 1 after one line on stderr."""
    way = all_ways()[words[0]]
    rest = words[1:]
    jobs = [Job(rest[at], int(rest[at + 1]), Path(rest[at + 2])) for at in range(0, len(rest), 3)]
    try:
        way.run(jobs[-1], Look.TIME)
        gc.disable()  # it would come in one window and not in the other
        for job in jobs:
            if way.marks_work:
                way.run(job, Look.HOST)
                continue
            mark_begin()
            way.run(job, Look.TIME)
            mark_end()
    except PykvmError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        way.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
