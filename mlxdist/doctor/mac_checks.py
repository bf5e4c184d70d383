"""Checks of a Mac: what would stop or slow a long job, and RDMA where jaccl is used.

Each takes a HostContext and yields findings; diagnosis.py lists them in their order.
docs/night_runs.md has the reasons. None of it was run on a Mac.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import mac_output
from .finding import Finding, HostContext

FAST_SYNCH = "MLX_METAL_FAST_SYNCH"
FAST_SYNCH_PROBLEM = "the GPU may deadlock until the Mac restarts (MLX #3142)"
# `mx.distributed.init(all_gather_factory=...)`, by which jaccl starts under mpirun.
_MLX_FOR_JACCL = (0, 32, 2)
_MACOS_FOR_RDMA = (26, 2)
_MACOS_FOR_LARGE_BUFFERS = (26, 3)  # MLX #3094
_KEEPS_AWAKE = "caffeinate"


def check_sleep(context: HostContext) -> Iterator[Finding]:
    """Expect a Mac that does not fall asleep during a job."""
    settings = mac_output.power_settings(context.report["mac"].get("pmset", ""))
    sleep = settings.get("sleep")
    if sleep is None:
        return
    if sleep.value == "0" or _KEEPS_AWAKE in sleep.prevented_by:
        yield Finding("sleep", "not during a job")
        return
    message = f"after {sleep.value} min without a user"
    if sleep.prevented_by:
        message += f"; prevented for now by {', '.join(sleep.prevented_by)}"
    remedy = context.remedies.command("caffeinate -is", terminal=True)
    yield Finding("sleep", message, "warning", f"{remedy}   # until the job has ended")


def check_display(context: HostContext) -> Iterator[Finding]:
    """Expect a display that falls asleep: macOS ends GPU work that it waits for."""
    settings = mac_output.power_settings(context.report["mac"].get("pmset", ""))
    display = settings.get("displaysleep")
    if display is None:
        return
    remedy = f"{context.remedies.command('pmset displaysleepnow')}   # MLX #3267"
    if display.prevented_by:
        programs = ", ".join(display.prevented_by)
        message = f"kept on by {programs}: macOS may end long work of the GPU for it"
        yield Finding("display", message, "warning", remedy)
    elif display.value == "0":
        message = "never sleeps by itself: macOS may end long work of the GPU for it"
        yield Finding("display", message, "warning", remedy)
    else:
        yield Finding("display", f"sleeps after {display.value} min")


def check_power_mode(context: HostContext) -> Iterator[Finding]:
    """Expect no Low Power Mode: all ranks wait for the slowest."""
    settings = mac_output.power_settings(context.report["mac"].get("pmset", ""))
    modes = [
        settings[name] for name in ("lowpowermode", "powermode") if name in settings
    ]
    if not modes:
        return
    if all(mode.value != "1" for mode in modes):
        yield Finding("power mode", "not low")
        return
    command = "sudo pmset -a lowpowermode 0"
    remedy = context.remedies.command(command, terminal=True)
    yield Finding("power mode", "Low Power Mode is on", "warning", remedy)


def check_heat(context: HostContext) -> Iterator[Finding]:
    """Expect a Mac that is not slowed down by heat."""
    therm = context.report["mac"].get("therm", "")
    if not therm:
        return
    limit = mac_output.speed_limit(therm)
    if limit >= 100:
        yield Finding("heat", "no limit of speed")
        return
    message = f"macOS limits the speed to {limit}% because of heat"
    yield Finding("heat", message, "warning", "let it cool down, and give it more air")


def check_fast_synch(context: HostContext) -> Iterator[Finding]:
    """Warn of MLX_METAL_FAST_SYNCH, which MLX calls unreliable (MLX #3142, #4005)."""
    if context.report["variables"].get(FAST_SYNCH, "0") != "0":
        message = f"set: {FAST_SYNCH_PROBLEM}"
        remedy = f"unset {FAST_SYNCH}   # {context.remedies.location}"
        yield Finding(FAST_SYNCH, message, "warning", remedy)


def check_jaccl_versions(context: HostContext) -> Iterator[Finding]:
    """Require the MLX and the macOS with which jaccl starts under mpirun."""
    if not context.uses_jaccl:
        return
    mlx = context.report["packages"]["mlx"] or ""
    if mac_output.version_numbers(mlx) < _MLX_FOR_JACCL:
        remedy = context.remedies.pip_install("mlx>=0.32.2")
        yield Finding("jaccl", f"mlx is {mlx}, too old", "failure", remedy)
    macos = mac_output.version_numbers(context.report["macos"])
    if not context.remedies.is_mac or macos < _MACOS_FOR_RDMA:
        system = context.report["macos"] or context.report["system"]
        message = f"{system}, and RDMA over Thunderbolt needs macOS 26.2"
        yield Finding("jaccl", message, "failure", "update macOS, or --backend ring")
    elif macos < _MACOS_FOR_LARGE_BUFFERS:
        message = f"macOS {context.report['macos']}: 26.3 has larger buffers, is faster"
        yield Finding("jaccl", message, "warning", "update macOS")


def check_rdma(context: HostContext) -> Iterator[Finding]:
    """Require RDMA, and the devices of the host file, where jaccl is used."""
    if not (context.uses_jaccl and context.remedies.is_mac):
        return
    status = context.report["mac"].get("rdma_ctl", "").strip()
    devices = mac_output.rdma_devices(context.report["mac"].get("ibv_devices", ""))
    missing = [name for name in context.devices if name not in devices]
    if status != "enabled":
        message = f"rdma_ctl status: {status or 'no answer'}"
        remedy = f"{context.remedies.location}, start macOS Recovery: rdma_ctl enable"
        yield Finding("RDMA", message, "failure", remedy)
    elif not devices:
        message = "enabled, but there are no devices: Thunderbolt 4 has none"
        yield Finding("RDMA", message, "failure", "take --backend ring")
    elif missing:
        message = f"the host file has {', '.join(missing)}, and there are "
        message += ", ".join(devices)
        remedy = "write the host file with mlx.distributed_config"
        yield Finding("RDMA", message, "failure", remedy)
    else:
        yield Finding("RDMA", ", ".join(devices))


def check_bridge(context: HostContext) -> Iterator[Finding]:
    """Expect no Thunderbolt bridge over the cables of RDMA."""
    if not (context.uses_jaccl and context.remedies.is_mac):
        return
    members = mac_output.bridge_members(context.report["network"].get("ifconfig", ""))
    if not members:
        yield Finding("Thunderbolt bridge", "off")
        return
    message = f"bridge0 is up, with {', '.join(members)}: RDMA can't use these"
    command = "sudo ifconfig bridge0 down"  # as mlx.distributed_config does
    remedy = context.remedies.command(command, terminal=True)
    yield Finding("Thunderbolt bridge", message, "warning", remedy)
