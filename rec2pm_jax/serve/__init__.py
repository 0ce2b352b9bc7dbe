"""Serve a trained model over HTTP: the engine of `stream/`, with its store, durability and answers.

A request passes through these files:

    app.py              find the route; the errors are JSON, too
    bodies.py           read the body within the limits, parse it into events or a request
    admission.py        refuse it (429) if too much waits already
    service.py          hand it to the engine's thread (`work.py`), and wait for the result
    engine_thread.py    apply the events and answer the requests of all connections, in order
      stream/driver.py    what `launch.stream` does too: updates, commits, evictions
    journal.py          write the events that were applied to files, before their commit
    metrics.py          count and time it

`process.py` runs the service until SIGTERM, `swap.py` changes to a new checkpoint while it runs, and
`openapi.py` and `openapi_page.py` describe all of it to machines.
"""

from __future__ import annotations

from importlib.util import find_spec

from rec2pm_jax.errors import UserError

EXTRA = ("starlette", "uvicorn", "httptools", "uvloop", "prometheus_client")


def require_extra() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
      UserError: one is missing.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise UserError(
            f"launch.serve needs the package {missing[0]}: pip install 'rec2pm_jax[serve]'"
        )
