"""Asynchronous work behind a synchronous call: a thread with its own event loop, results handed over as they come."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_SECONDS_TO_STOP = 5.0


class _End(Generic[Result]):
    def __init__(self, result: Result | None, error: BaseException | None) -> None:
        self.result, self.error = result, error


def drive(
    work: Callable[[Callable[[Item], None]], Coroutine[Any, Any, Result]],
    on_items: Callable[[list[Item]], None],
) -> Result:
    """Run ``work`` in a thread; call ``on_items`` here, in the caller's thread, with what it emits.

    An interrupt (or any error of ``on_items``) cancels the work. What had been emitted until then is still handed over
    when the caller was interrupted.

    Args:
        work: called with a function that emits an item; the coroutine is run to its end.
        on_items: gets the items in the order of their emission, one call for all that have come meanwhile.

    Returns:
        What the coroutine returned; what it raised is raised.
    """
    items: queue.SimpleQueue[Item | _End[Result]] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(work(items.put))

    def run() -> None:
        try:
            items.put(_End(loop.run_until_complete(task), None))
        except BaseException as error:  # raised again in the caller's thread
            items.put(_End(None, error))
        finally:
            _clear(loop)
            loop.close()

    thread = threading.Thread(target=run, name="requests", daemon=True)
    thread.start()
    try:
        while True:
            taken = _take(items)
            end = taken.pop() if isinstance(taken[-1], _End) else None
            if taken:
                on_items(taken)
            if isinstance(end, _End):
                if end.error is not None:
                    raise end.error
                return end.result  # type: ignore[return-value]
    except KeyboardInterrupt:
        _stop(loop, task, thread)
        left = [item for item in _take(items, wait=False) if not isinstance(item, _End)]
        if left:
            on_items(left)
        raise
    finally:
        _stop(loop, task, thread)


def _take(items: queue.SimpleQueue[Any], *, wait: bool = True) -> list[Any]:
    """Everything there is up to an end; at least one item, unless ``wait`` is off."""
    taken = [items.get()] if wait else []
    while not (taken and isinstance(taken[-1], _End)):
        try:
            taken.append(items.get_nowait())
        except queue.Empty:
            break
    return taken


def _clear(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what a failed coroutine has left running."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_asyncgens())


def _stop(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], thread: threading.Thread) -> None:
    if thread.is_alive() and not loop.is_closed():
        try:
            loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:  # it ended just now
            return
        thread.join(_SECONDS_TO_STOP)
