"""What a figure was measured on, and whether anything else used the processor meanwhile."""

import os
import platform
import time
from pathlib import Path

import torch

TOLD_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe() -> dict:
    """Processor, the flags that matter to matrix products, cores, threads, torch, date."""
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in TOLD_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


class ForeignWatch:
    """CPU time that others used between `start` and `stop`: all of /proc/stat's busy time less that of this process and of
    `helper`, another one that works for it.
    """

    def __init__(self, helper: int | None = None) -> None:
        self.helper = helper

    def start(self) -> None:
        self.wall, self.own, self.all = time.monotonic(), self._own_seconds(), _busy_seconds()

    def stop(self) -> float | None:
        """Foreign use as a share of one core; None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self.all is None:
            return None
        foreign = (busy - self.all) - (self._own_seconds() - self.own)
        return max(foreign, 0.0) / max(time.monotonic() - self.wall, 1e-9)

    def _own_seconds(self) -> float:
        return time.process_time() + (_process_seconds(self.helper) if self.helper else 0.0)


def _process_seconds(process: int) -> float:
    """User and system time of a process with all its threads; 0 where the system does not tell."""
    try:
        told = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # no such process, or no /proc
        return 0.0
    user, system = told.rpartition(")")[2].split()[11:13]  # a name in brackets may hold anything
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float | None:
    """User, nice, system, interrupts and what the host took away, over all cores."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in path.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
