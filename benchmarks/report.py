"""Tables and the picture of the results of `python -m benchmarks run`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

README_MARKS = ("<!-- speed: written by `python -m benchmarks report` -->", "<!-- speed: end -->")
JAX_MARKS = ("<!-- jax: written by `python -m benchmarks report` -->", "<!-- jax: end -->")
README_NAMES = ("Diag", "TriL from ρ", "MarkovChain", "GaussianProcess", "sts")


def tables(results: dict[str, Any]) -> str:
    """The tables of all suites, in Markdown."""
    sections = {
        "ratios": _ratios,
        "alternatives": _alternatives,
        "family": _family,
        "growth": _growth,
        "noise": _noise,
        "sweep": _sweep,
        "memory": _memory,
        "training": _training,
        "profile": _profile,
        "schemes": _schemes,
    }
    parts = []
    for name, section in sections.items():
        if name in results:
            environment = ", ".join(f"{k} {v}" for k, v in results[name]["environment"].items())
            head = f"## {name.capitalize()}\n\n`{results[name]['command']}` ({environment})\n\n"
            parts.append(head + section(results[name]["results"]))
    return (
        "# Speed\n\nMedians; all of a comparison from interleaved runs.\n\n"
        + "\n\n".join(parts)
        + "\n"
    )


def readme_section(results: dict[str, Any]) -> str:
    """The section of the README: AR1 and its alternatives."""
    entries = [e for e in results["alternatives"]["results"] if e["operation"] != "entropy"]
    environment = results["alternatives"]["environment"]
    machine = f"{environment['cores']} cores ({environment['cpu']})"
    version = environment["tensorflow"]
    return (
        f"{_alternatives(entries, README_NAMES)}\n\n"
        f"Float32, medians of interleaved runs, on {machine} with TensorFlow {version}."
    )


def jax_section(results: list[dict[str, Any]]) -> str:
    """The section on JAX of docs/speed.md: AR1 against Diag and others against AR1, per device."""
    parts = []
    for each in results:
        suite = each["jax"]
        on_jax = [e for e in suite["results"] if e["mode"].startswith("JAX")]
        environment = ", ".join(f"{k} {v}" for k, v in suite["environment"].items())
        parts.append(f"`{suite['command']}` ({environment})\n\n{_ratios(on_jax)}")
        parts.append(_others_on_jax(suite["results"]))
        parts += [
            f"A step of `fit`, {entry['model']}, batch {entry['batch']}: "
            + ", ".join(f"`{name}` {1e3 * t:.2f} ms" for name, t in entry["times"].items())
            + "."
            for entry in each.get("jax-training", {"results": []})["results"]
        ]
    return "\n\n".join(parts)


def with_section(page: str, marks: tuple[str, str], section: str) -> str:
    """The page with the text between two marks replaced by a section.

    Raises:
      ValueError: if the marks are missing.
    """
    begin, end = marks
    if begin not in page or end not in page:
        raise ValueError(
            f"The page lacks the lines {begin!r} and {end!r} to write between; add them."
        )
    head, rest = page.split(begin, 1)
    return f"{head}{begin}\n\n{section}\n\n{end}{rest.split(end, 1)[1]}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ratios(entries: list[dict[str, Any]]) -> str:
    """The time of AR1 relative to Diag, a row for each mode and size."""
    columns = list(dict.fromkeys((e["operation"], e["gradients"]) for e in entries))
    rows: dict[tuple, dict] = {}
    for e in entries:
        diag = f"{1e6 * e['times']['Diag']['median']:.0f}"
        cell = f"{e['times']['AR1']['ratio']:.2f} ({diag} µs)"
        row = rows.setdefault((e["mode"], e["batch"], e["size"]), {})
        row[e["operation"], e["gradients"]] = cell
    body = [
        [mode, f"{b} × {d}", *(cells.get(column, "–") for column in columns)]
        for (mode, b, d), cells in rows.items()
    ]
    return (
        "Time of `MultivariateNormalAR1` relative to `MultivariateNormalDiag` (in brackets, the "
        f"time of the latter):\n\n{_table(['mode', 'B × d', *map(_label, columns)], body)}"
    )


def _alternatives(entries: list[dict[str, Any]], names: Sequence[str] = ()) -> str:
    """The times of these contenders, or of all, relative to AR1; a row for each."""
    columns = [(e["batch"], e["size"], e["operation"]) for e in entries]
    names = names or list(dict.fromkeys(name for e in entries for name in e["times"]))
    body = [
        [
            name,
            *(f"{e['times'][name]['ratio']:.1f}" if name in e["times"] else "–" for e in entries),
        ]
        for name in names
    ]
    header = ["", *(f"{operation}, {b} × {d}" for b, d, operation in columns)]
    times = ", ".join(f"{1e6 * e['times']['AR1']['median']:.0f}" for e in entries)
    return (
        "Time relative to `MultivariateNormalAR1`, value and gradients, graph mode; its own times "
        f"are {times} µs:\n\n{_table(header, body)}"
    )


def _others_on_jax(entries: list[dict[str, Any]]) -> str:
    """The times of all contenders relative to AR1 on JAX, a row for each operation and size."""
    rows: dict[tuple, dict[str, Any]] = {}
    names: dict[str, None] = {}
    reasons: dict[str, None] = {}
    for e in entries:
        row = rows.setdefault((e["batch"], e["size"], e["operation"], e["gradients"]), {})
        if e["mode"] in ("graph", "xla"):
            name = f"TensorFlow, {e['mode']}"
            names[name] = None
            row[name] = e["times"]["AR1"]["median"]
            continue
        row["AR1"] = e["times"]["AR1"]["median"]
        for name, time in e["times"].items():
            if name not in ("Diag", "AR1"):
                names[name] = None
                row[name] = row["AR1"] * time["ratio"] / e["times"]["AR1"]["ratio"]
        reasons.update((f"{name} {why}", None) for name, why in e["skipped"].items())
    body = [
        [f"{b} × {d}", _label((operation, gradients)), f"{1e6 * row['AR1']:.0f}"]
        + [f"{row[name] / row['AR1']:.2f}" if name in row else "–" for name in names]
        for (b, d, operation, gradients), row in rows.items()
        if len(row) > 1
    ]
    left_out = f"\n\nLeft out: {'; '.join(reasons)}." if reasons else ""
    return (
        "Time relative to `MultivariateNormalAR1` on JAX, whose own is in µs. *By hand* are its "
        "innovations in `jax.numpy`, and `jax.lax.associative_scan`. TensorFlow's are those of "
        "`tfp_ar1.MultivariateNormalAR1`, not from interleaved runs:\n\n"
        f"{_table(['B × d', '', 'AR1, µs', *names], body)}{left_out}"
    )


def _family(entries: list[dict[str, Any]]) -> str:
    """The times of AR1 and its relatives, relative to Diag and to AR1."""
    columns = list(dict.fromkeys((e["operation"], e["gradients"]) for e in entries))
    places: dict[tuple, dict] = {}
    for e in entries:
        place = ("shared" if e["shared"] else "per member", f"{e['batch']} × {e['size']}")
        places.setdefault(place, {})[e["operation"], e["gradients"]] = e["times"]

    def table(base: str) -> str:
        rows = []
        for place, times in places.items():
            for name in next(iter(times.values())):
                cells = [_relative(times.get(c), name, base) for c in columns]
                rows.append([*place, name, *cells])
        return _table(["parameters", "B × d", "", *map(_label, columns)], rows)

    return (
        "Graph mode. *Shared*: one distribution, with `loc` and scales `[d]` and correlations "
        "`[d - 1]`, for all B paths; its KL and entropy are one number each. *Per member*: all of "
        "these with the batch in front. AR1 has one scale and one correlation, OU one of each and "
        "its times."
        "\n\nTime relative to `MultivariateNormalDiag`, whose own is in µs:\n\n"
        f"{table('Diag')}\n\nThe same relative to `MultivariateNormalAR1`:\n\n{table('AR1')}"
    )


def _relative(times: dict[str, Any] | None, name: str, base: str) -> str:
    """The time of `name` relative to `base`; the time of `base` itself in µs."""
    if times is None:
        return "–"
    if name == base:
        return f"{1e6 * times[name]['median']:.0f} µs"
    return f"{times[name]['ratio'] / times[base]['ratio']:.2f}"


def _growth(entries: list[dict[str, Any]]) -> str:
    """The time of AR1 per coordinate, a row for each size."""
    columns = list(dict.fromkeys((e["operation"], e["gradients"]) for e in entries))
    rows: dict[tuple, list[str]] = {}
    for e in entries:
        b, d = e["batch"], e["size"]
        per_number = 1e9 / (b * d) * e["times"]["AR1"]["median"]
        rows.setdefault((b, d), []).append(f"{per_number:.2f} ({e['times']['AR1']['ratio']:.2f})")
    body = [[f"{b} × {d}", *cells] for (b, d), cells in rows.items()]
    return (
        "Time of `MultivariateNormalAR1` per coordinate in ns, graph mode (in brackets, relative "
        f"to `MultivariateNormalDiag`):\n\n{_table(['B × d', *map(_label, columns)], body)}"
    )


def _noise(entries: list[dict[str, Any]]) -> str:
    """The times of all contenders relative to `tfp_ar1`, a column for each size."""
    names = list(dict.fromkeys(name for e in entries for name in e["times"]))
    body = [
        [
            name,
            *(
                _relative(e["times"], name, "tfp_ar1") if name in e["times"] else "–"
                for e in entries
            ),
        ]
        for name in names
    ]
    header = [""]
    for e in entries:
        header.append(f"{e['batch']} × {e['size']}" + (", gradients" if e["gradients"] else ""))
    peaks = ", ".join(
        f"{e['bytes'] / 2**20:.0f} MiB for {e['batch']} × {e['size']}"
        + (" with gradients" if e["gradients"] else "")
        for e in entries
        if "bytes" in e
    )
    return (
        "The log-likelihood of B noisy AR(1) paths, each with parameters of its own, and its "
        "gradients by these and by the data; time relative to `with_observation_noise`, whose own "
        "is in µs, graph mode. *Posterior* is that of the path, *path without noise* the plain "
        "`log_prob`. TensorFlow and tinygp (JAX, compiled) take the batch at once in float32; "
        "celerite2 and statsmodels (values only, but for celerite2.jax) one path after the other "
        "in float64."
        f"\n\n{_table(header, body)}\n\nPeak memory: {peaks}."
    )


def _label(column: tuple[str, bool]) -> str:
    operation, gradients = column
    return f"{operation}, gradients" if gradients else operation


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


def _profile(entries: list[dict[str, Any]]) -> str:
    """The operations that take the most time, a table for each size."""
    text = []
    for b, d in dict.fromkeys((e["batch"], e["size"]) for e in entries):
        ours, floor = (
            next(e for e in entries if (e["name"], e["batch"], e["size"]) == (name, b, d))
            for name in ("AR1", "Diag")
        )
        body = [
            [kind, _count_and_time(ours, kind), _count_and_time(floor, kind)]
            for kind in list(ours["kinds"])[:12]
        ]
        whole = ["the call", *(f"{1e6 * e['span']:.0f}" for e in (ours, floor))]
        text.append(f"{b} × {d}:\n\n{_table(['operation', 'AR1', 'Diag'], [whole, *body])}")
    return (
        "Sampling with gradients in graph mode, by kind of operation: how many, and µs for all of "
        "them. They overlap on two cores, and tracing adds to each.\n\n" + "\n\n".join(text)
    )


def _schemes(entries: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(n for e in entries for n in e["times"] if n != "Diag"))
    body = [
        [f"{e['batch']} × {e['size']}"]
        + [f"{e['times'][n]['ratio']:.2f}" if n in e["times"] else "–" for n in names]
        for e in entries
    ]
    return (
        "Sampling with gradients in graph mode, relative to `MultivariateNormalDiag`, for each way "
        f"to run the recurrence:\n\n{_table(['B × d', *names], body)}"
    )


def _count_and_time(entry: dict[str, Any], kind: str) -> str:
    if kind not in entry["kinds"]:
        return "–"
    count, seconds = entry["kinds"][kind]
    return f"{count}: {1e6 * seconds:.0f}"


def picture(entries: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Plots time against d, both logarithmic, a line for each contender."""
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
