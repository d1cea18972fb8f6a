"""Tars that the agent makes: of what a container changed, of a file in it, of all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pykvm.containers.calls import AgentError, AgentGoneError, Data

if TYPE_CHECKING:
    from pykvm.containers.calls import AgentClient

__all__ = ["save_tar"]


def save_tar(client: AgentClient, file: Any, op: str, **words: Any) -> None:
    """Write the tar that the agent makes for `op` to a file. Raises AgentError, AgentGoneError.

    That who writes it has ended may be told before the last of its bytes: both ends are waited for.
    """
    call = client.open(op, **words)
    call.answer()
    has_ended = is_whole = False
    try:
        for item in call:
            if isinstance(item, Data):
                file.write(item.data)
                is_whole = is_whole or not item.data
            elif item.get("event") == "end":
                if isinstance(error := item.get("error"), dict):
                    raise AgentError(error)
                has_ended = True
            if has_ended and is_whole:
                return
        raise AgentGoneError("the guest ended in the midst of a tar")
    finally:
        call.forget()
