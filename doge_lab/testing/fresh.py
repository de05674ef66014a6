"""A fresh process that shares nothing with this one but what it is sent.

It is forked before the block does anything here, so that whatever the block hides afterwards (in a global, a class
attribute, a closure, an array) is not there. Tensors travel as safetensors bytes.
"""

import contextlib
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import safetensors.torch
import torch
from torch import Tensor

SECONDS = 120
"""After these a fresh process that has not answered is ended."""

Tensors = Mapping[str, Tensor]
Work = Callable[[Tensors], Tensors]


@contextlib.contextmanager
def fresh_process(work: Work) -> Iterator[Work]:
    """Fork now; calling the result later (once) runs `work` there on the tensors given and returns its tensors.

    Raises `AssertionError` with what `work` raised there. Where a system cannot fork, `work` runs here: then only
    what a new block does not share with an old one is proven.
    """
    if not hasattr(os, "fork"):
        yield work
        return
    request, reply = os.pipe(), os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of threads: the child uses none, and ends without cleaning up
        child = os.fork()
    if child == 0:
        _serve(work, request, reply)
    os.close(request[0])
    os.close(reply[1])
    try:
        yield lambda tensors: _ask(tensors, request[1], reply[0])
    finally:
        for descriptor in (request[1], reply[0]):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _serve(work: Work, request: tuple[int, int], reply: tuple[int, int]) -> None:
    """The child's whole life. Nothing of the parent's may run in it afterwards, whatever happens."""
    try:
        os.close(request[1])
        os.close(reply[0])
        torch.set_num_threads(1)  # the parent's threads do not exist here
        with os.fdopen(request[0], "rb") as incoming, os.fdopen(reply[1], "wb") as outgoing:
            try:
                outgoing.write(b"+" + _bytes(work(safetensors.torch.load(incoming.read()))))
            except BaseException as error:
                outgoing.write(f"-{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _ask(tensors: Tensors, request: int, reply: int) -> Tensors:
    with os.fdopen(request, "wb") as outgoing:
        outgoing.write(_bytes(tensors))
    answer, last = bytearray(), time.monotonic() + SECONDS
    while select.select([reply], [], [], max(0.0, last - time.monotonic()))[0]:
        part = os.read(reply, 1 << 20)
        if not part:
            break
        answer += part
    else:
        raise AssertionError(f"no answer from a fresh process in {SECONDS} s")
    if answer[:1] != b"+":
        raise AssertionError(answer[1:].decode(errors="replace").split("\n")[0] or "a fresh process ended at once")
    return safetensors.torch.load(bytes(answer[1:]))


def _bytes(tensors: Tensors) -> bytes:
    # cloned: safetensors refuses two names for one storage
    return safetensors.torch.save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})
