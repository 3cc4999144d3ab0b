"""What a figure was measured on, and whether anything else used the processor meanwhile."""

import os
import platform
import time
from pathlib import Path

import torch

TOLD_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


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
    """CPU time that others used between `start` and `stop`: all of /proc/stat's busy time less this process's own."""

    def start(self) -> None:
        self.wall, self.own, self.all = time.monotonic(), time.process_time(), _busy_seconds()

    def stop(self) -> float | None:
        """Foreign use as a share of one core; None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self.all is None:
            return None
        foreign = (busy - self.all) - (time.process_time() - self.own)
        return max(foreign, 0.0) / max(time.monotonic() - self.wall, 1e-9)


def _busy_seconds() -> float | None:
    """User, nice, system, interrupts and what the host took away, over all cores."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = (int(x) for x in path.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
