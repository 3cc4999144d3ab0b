"""The articles' V3 -> V4 table from real configs, and what a 32 GB card makes of it. Writes result.json beside this file.

python experiments/plan/run.py
"""

import json
import platform
import time
from pathlib import Path

import torch

from fourfold.planner.count import count
from fourfold.planner.placement import place
from fourfold.planner.report import report
from fourfold.presets import preset

GB = 10**9
CARD = dict(ram_bandwidth=1792 * GB, disk_bandwidth=14 * GB)  # a 32 GB card's own memory, and the fastest PCIe 5 drive
DESKTOP = dict(ram_bandwidth=80 * GB, disk_bandwidth=5 * GB)  # two channels of DDR5, and an ordinary drive


def main() -> None:
    began, result = time.time(), {"date": time.strftime("%Y-%m-%d"), "machine": platform.processor() or platform.machine()}
    result["torch"] = torch.__version__
    result["models"] = {name: report(name, preset(name)) for name in ("v3", "v3.2", "v4-lite", "v4")}
    counts = count(preset("v4"))
    result["v4_int4"] = {
        f"{memory} GB, {name}": place(preset("v4"), counts, memory * GB, "int4", context=8192, **speeds).as_dict()
        for name, speeds in (("card", CARD), ("desktop", DESKTOP))
        for memory in (32, 64, 128, 256, 512, 768)
    }
    result["seconds"] = round(time.time() - began, 1)
    (Path(__file__).parent / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
