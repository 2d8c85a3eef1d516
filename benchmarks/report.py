"""Tables and the picture from what `python -m benchmarks run` has measured."""

from __future__ import annotations

import pathlib
from typing import Any


def tables(results: dict[str, Any]) -> str:
    """All suites as Markdown."""
    sections = {"ratios": _ratios, "sweep": _sweep, "memory": _memory, "training": _training}
    parts = []
    for name, section in sections.items():
        if name in results:
            environment = ", ".join(f"{k} {v}" for k, v in results[name]["environment"].items())
            head = f"## {name.capitalize()}\n\n`{results[name]['command']}` ({environment})\n\n"
            parts.append(head + section(results[name]["results"]))
    return (
        "# Speed\n\nMedians, all of a comparison measured in turns.\n\n" + "\n\n".join(parts) + "\n"
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ratios(entries: list[dict[str, Any]]) -> str:
    """Time relative to Diag, a row for each mode and size."""
    columns = list(dict.fromkeys((e["operation"], e["gradients"]) for e in entries))
    text = []
    for name in ("AR1", "TriL"):
        rows: dict[tuple, dict] = {}
        for e in entries:
            if name in e["times"]:
                cell = f"{e['times'][name]['ratio']:.2f}"
                if name == "AR1":
                    cell += f" ({1e6 * e['times']['Diag']['median']:.0f} µs)"
                rows.setdefault((e["mode"], e["batch"], e["size"]), {})[
                    e["operation"], e["gradients"]
                ] = cell
        header = ["mode", "B × d", *(f"{op}{', gradients' if g else ''}" for op, g in columns)]
        body = [
            [mode, f"{b} × {d}", *(cells.get(column, "–") for column in columns)]
            for (mode, b, d), cells in rows.items()
        ]
        what = " (in brackets, the time of `MultivariateNormalDiag`)" if name == "AR1" else ""
        text.append(
            f"Time of {name} relative to `MultivariateNormalDiag`{what}:\n\n{_table(header, body)}"
        )
    return "\n\n".join(text)


def _sweep(entries: list[dict[str, Any]]) -> str:
    text = []
    for operation in dict.fromkeys(e["operation"] for e in entries):
        chosen = [e for e in entries if e["operation"] == operation]
        names = list(dict.fromkeys(n for e in chosen for n in e["times"]))
        body = [
            [
                str(e["size"]),
                *(
                    f"{1e6 * e['times'][n]['median']:.0f}" if n in e["times"] else "–"
                    for n in names
                ),
            ]
            for e in chosen
        ]
        ends = "; ".join(f"{name} {why}" for name, why in chosen[-1]["given_up"].items())
        text.append(
            f"{operation} with gradients, batch 1, graph mode, µs:\n\n"
            f"{_table(['d', *names], body)}\n\nWhy some end early: {ends}."
        )
    return "\n\n".join(text)


def _memory(entries: list[dict[str, Any]]) -> str:
    body = [
        [e["operation"], f"{e['batch']} × {e['size']}", e["name"], f"{e['bytes'] / 2**20:.0f}"]
        for e in entries
    ]
    return _table(["operation, with gradients", "B × d", "", "peak memory, MiB"], body)


def _training(entries: list[dict[str, Any]]) -> str:
    body = [
        [
            str(e["latent_dim"]),
            "XLA" if e["jit_compile"] else "graph",
            f"{1e3 * e['times']['diag']['median']:.2f}",
            *(f"{e['times'][p]['ratio']:.3f}" for p in ("ar1", "full")),
        ]
        for e in entries
    ]
    return _table(["latent size", "mode", "diag, ms", "ar1 / diag", "full / diag"], body)


def picture(entries: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Time against d, both logarithmic, a line for each contender."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    operations = list(dict.fromkeys(e["operation"] for e in entries))
    figure, axes = plt.subplots(1, len(operations), figsize=(11, 4.5), sharey=True)
    names = list(dict.fromkeys(n for e in entries for n in e["times"]))
    for axis, operation in zip(axes, operations, strict=True):
        for i, name in enumerate(names):
            points = [
                (e["size"], 1e3 * e["times"][name]["median"])
                for e in entries
                if e["operation"] == operation and name in e["times"]
            ]
            if points:
                width = 2.5 if name == "AR1" else 1.2
                axis.loglog(
                    *zip(*points, strict=True), "o-", ms=3, lw=width, color=f"C{i}", label=name
                )
        axis.set(title=f"{operation} with gradients", xlabel="d (coordinates)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("time, ms (batch 1, graph mode)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
