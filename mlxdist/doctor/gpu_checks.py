"""Check of a host's NVIDIA GPUs, and of which ranks get them."""

from __future__ import annotations

from collections.abc import Iterator

from ..launcher import gpus
from ..layout.wording import counted
from .finding import Finding, HostContext


def check_gpus(context: HostContext) -> Iterator[Finding]:
    """Expect a GPU for each rank of the host.

    `mlxdist run` gives each rank one. Under a plain mpirun all ranks of a host take the
    first one: CUDA has chosen it before `mlxdist.init()` is called.
    """
    number = context.report["gpus"]
    visible = context.report["variables"].get(gpus.VISIBLE)
    if not number or (number == 1 and visible is None and context.slots == 1):
        return
    usable = len(gpus.usable(visible, number))
    message = counted(number, "GPU")
    if visible is not None:
        message += f", {gpus.VISIBLE} is {visible!r}"
    if usable == 0:
        remedy = f"unset {gpus.VISIBLE}   # {context.remedies.location}"
        yield Finding("GPUs", f"{message}, which hides all", "warning", remedy)
    elif context.slots > usable:
        message += f": {context.slots} ranks share {usable}"
        remedy = f"give the host {counted(usable, 'slot')}"
        yield Finding("GPUs", message, "warning", remedy)
    else:
        message += "; mlxdist run gives each rank one, plain mpirun gives all the first"
        yield Finding("GPUs", message)
