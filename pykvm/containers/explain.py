"""The steps of a container's making, as the agent reports them, in lines."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["step_line", "steps_total"]


def steps_total(steps: Sequence[Mapping[str, Any]]) -> str:
    """How many steps there were, how long the calls took, and from the first to the last."""
    inside = sum(int(one.get("ns") or 0) for one in steps) / 1e6
    first, last = (int(steps[at].get("at_ns") or 0) for at in (0, -1))
    whole = (last - first + int(steps[-1].get("ns") or 0)) / 1e6
    return f"{len(steps)} steps in {whole:.1f} ms, {inside:.1f} ms of them in these calls"


def step_line(step: Mapping[str, Any], number: int) -> str:
    """One step: its `number`, how long it took, who did it, the call and what it did to the container.

    ::

          12   1.482 ms  agent      mount         overlay → /run/…/root lowerdir=…  = 0
    """
    result = int(step.get("result") or 0)
    said = f"= {result}"
    if result < 0:
        said = f"= -1 {errno.errorcode.get(-result, str(-result))}"
    line = (
        f"{number:4} {int(step.get('ns') or 0) / 1e6:9.3f} ms  {step.get('who', '')!s:<9}  "
        f"{step.get('call', '')!s:<13} {' '.join(str(step.get('detail', '')).split())}  {said}"
    )
    effect = str(step.get("effect") or "")
    return f"{line}\n{'':<19}      {effect}" if effect else line
