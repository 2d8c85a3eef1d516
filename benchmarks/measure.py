"""Interleaved timing, and peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Faster calls are repeated within a measurement, so the clock's resolution does not matter.
_SHORTEST = 0.004


def interleaved(functions: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, Any]:
    """Times functions in interleaved runs, so other load on the machine affects all alike.

    Args:
      functions: The functions by name; each is first called once, to be traced and compiled.
      seconds: The approximate total time; at least 5 rounds are run.

    Returns:
      For each name the `median`, `lower` and `upper` quartile in seconds per call, the number of
      `rounds`, and `ratio`, the median over the rounds of its time relative to the first function.
    """
    repeats = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        repeats[name] = max(1, round(_SHORTEST / once))
    one_round = 1e-6 + sum(
        timed(function, repeats[name]) * repeats[name] for name, function in functions.items()
    )
    rounds = int(np.clip(seconds / one_round, 5, 201))
    times = np.array(
        [[timed(f, repeats[name]) for name, f in functions.items()] for _ in range(rounds)]
    )
    quartiles = np.quantile(times, [0.25, 0.5, 0.75], axis=0)
    ratios = np.median(times / times[:, :1], axis=0)
    return {
        name: {
            "median": quartiles[1, i],
            "lower": quartiles[0, i],
            "upper": quartiles[2, i],
            "rounds": rounds,
            "ratio": ratios[i],
        }
        for i, name in enumerate(functions)
    }


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Seconds per call, averaged over `repeats` calls."""
    if repeats > 1:
        # Fill the caches, which hold data of the function that ran before.
        function()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


_PEAK = """
import importlib, json, pathlib, sys
function, (*arguments, d) = importlib.import_module(sys.argv[1]).function, json.loads(sys.argv[2])

def memory(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

# Traced and run once for a small size, so that what TensorFlow loads is not counted.
function(*arguments, 8)()
f = function(*arguments, d)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS:")
f()
print(memory("VmHWM:") - before)
"""


def peak_memory(module: str, arguments: list[Any]) -> int:
    """The growth of a process's resident memory in the first call, in bytes (Linux only).

    Parameters and values exist before the call and are not counted; the graph is.

    Args:
      module: The module whose `function` makes the function to call.
      arguments: The arguments of `function`, the number of coordinates last.
    """
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, module, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return 1024 * int(run.stdout.split()[-1])
