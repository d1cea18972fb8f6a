"""What the compiled extension offers: cffi's `ffi` and `lib`, whose members no checker can know."""

from typing import Any

ffi: Any
lib: Any
