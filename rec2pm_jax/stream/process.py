"""How a process that streams is set up."""

from __future__ import annotations

import gc
import sys

_SWITCH_S = 1e-4
# A look at a thousand new objects takes a millisecond, which requests have to wait; at all that
# survived such looks a tenth of a second, hence seldom.
_NEW_OBJECTS = 1_000
GC_GEN1_THRESHOLD = 5_000


def configure_interpreter() -> None:
    """Settings of the interpreter for the rest of the process; call it when models are loaded.

    A request waits a tenth of a millisecond for the threads that commit and fold, instead of five.
    Users held in the process make no cycles, and looking for some among them took a quarter of the
    time of an event: what is there now is never looked at again, and new objects little by little.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, GC_GEN1_THRESHOLD, 100)
