"""Blocking work off the event loop that is never left behind.

``asyncio.to_thread`` gives up the wait when its caller is cancelled, and the thread goes on, with
descriptors that the caller then closes. Here the wait lasts until the thread is done.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def finished(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a thread; return or raise what it did, also if cancelled meanwhile."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


async def all_finished(*work: Any) -> list[Any]:
    """Every result, once all are done; raises the first failure then, not before."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
