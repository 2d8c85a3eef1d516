"""Throughput of a ρ-VAE on one replica, two replicas and two workers, and the parts of a step.

    python -m benchmarks.measure_throughput

writes `results/throughput.json` and the tables of `results/throughput.md`. The three layouts run
one after the other in several rounds, each in its own processes; results are medians over rounds.
The time on more workers is computed from these measurements and an assumed network.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click

_RESULTS = pathlib.Path(__file__).parent / "results" / "throughput.json"
_LAYOUTS = {"1 replica": 1, "2 replicas": 1, "2 workers": 2}  # number of processes
_BATCHES = (128, 1024)
_STEPS, _REPEATS = 20, 3
# Ring all-reduce: every worker sends and receives 2 (N - 1) / N of the gradients, in 2 (N - 1)
# consecutive messages.
_NETWORKS = {"1 Gbit/s, 100 µs": (1e9 / 8, 100e-6), "25 Gbit/s, 10 µs": (25e9 / 8, 10e-6)}
_WORKERS = (2, 8, 64, 1024)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=pathlib.Path), default=_RESULTS, show_default=True)
def main(rounds: int, out: pathlib.Path) -> None:
    """Measure, and write the results and their tables."""
    measured: dict[str, list] = {layout: [] for layout in _LAYOUTS}
    for _ in range(rounds):
        for layout, processes in _LAYOUTS.items():
            measured[layout].append(_in_processes(layout, processes))
            click.echo(f"{layout}: {measured[layout][-1]}", err=True)
    results = {
        layout: {
            batch: {
                key: statistics.median(one[batch][key] for one in rounds_of)
                for key in rounds_of[0][batch]
            }
            for batch in rounds_of[0]
        }
        for layout, rounds_of in measured.items()
    }
    out.write_text(json.dumps({**_origin(rounds), "layouts": results}, indent=1) + "\n")
    out.with_suffix(".md").write_text(tables(json.loads(out.read_text())))


def _in_processes(layout: str, number: int) -> dict[str, dict[str, float]]:
    """Runs the processes of a layout; returns the report of the first."""
    with socket.socket() as s, socket.socket() as t:
        s.bind(("127.0.0.1", 0))
        t.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in (s, t)]
    children = []
    for index in range(number):
        environment = dict(os.environ)
        if number > 1:
            cluster, task = {"worker": addresses}, {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
        command = [
            sys.executable,
            "-c",
            "from benchmarks import measure_throughput as m; m.child()",
        ]
        children.append(
            subprocess.Popen([*command, layout], env=environment, stdout=subprocess.PIPE, text=True)
        )
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise click.ClickException(f"{layout}: a process failed; see above.")
    return json.loads(outputs[0].splitlines()[-1])


def child() -> None:
    """Measures one layout and prints its times as JSON."""
    from tfp_ar1_cli.training import strategies

    kind = {"1 replica": "none", "2 replicas": "mirrored", "2 workers": "multiworker"}[sys.argv[1]]
    strategy = strategies.start(kind, 2)
    results = {str(batch_size): _measure(strategy, batch_size) for batch_size in _BATCHES}
    print(json.dumps(results), flush=True)


def _measure(strategy: Any, batch_size: int) -> dict[str, float]:
    """Seconds per step and per part of it, and other measures."""
    import keras
    import numpy as np
    import tensorflow as tf

    from tfp_ar1 import RhoVAE
    from tfp_ar1.vae import architectures
    from tfp_ar1_cli.training.batches import Batches

    keras.utils.set_random_seed(0)
    with strategy.scope():
        networks = architectures.mlp((28, 28), 10, hidden_units=(400,))
        model = RhoVAE(*networks, 10, seed=0)
        model.compile(keras.optimizers.Adam(1e-3), jit_compile=False)
        model.optimizer.build(model.trainable_variables)
    x = np.random.default_rng(0).uniform(size=(8192, 28, 28)).astype("float32")
    batches = Batches(x, batch_size, seed=0)
    feed = iter(batches.dataset(0, strategy))
    (batch,) = next(feed)
    variables = [v.value for v in model.trainable_variables]

    def forward(x: tf.Tensor) -> tf.Tensor:
        return model.loss_of_batch(x, None, training=True)

    def backward(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = forward(x)
        return tape.gradient(loss, variables)

    def reduce(x: tf.Tensor) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        return context.all_reduce("SUM", [tf.ones_like(v) for v in variables])

    def step(x: tf.Tensor) -> list[tf.Tensor]:
        return list(model.train_step((x,)).values())

    def on_replicas(
        function: Callable[[tf.Tensor], Any], take: Callable[[], Any] = lambda: batch
    ) -> Callable[[], None]:
        traced = tf.function(lambda x: strategy.run(function, args=(x,)))

        def call() -> None:
            for one in tf.nest.flatten(traced(take())):
                strategy.experimental_local_results(one)[0].numpy()

        return call

    parts = {"input": lambda: next(feed), "forward": on_replicas(forward)}
    parts |= {"forward and backward": on_replicas(backward)}
    if strategy.num_replicas_in_sync > 1:
        parts["all-reduce"] = on_replicas(reduce)
    parts["step"] = on_replicas(step, lambda: next(feed)[0])
    times = {name: _median_seconds(part, _STEPS) for name, part in parts.items()}
    return {
        **times,
        "images per second": batch_size / times["step"],
        "bytes per all-reduce": 4 * sum(int(np.prod(v.shape)) for v in variables),
    }


def _median_seconds(function: Callable[[], Any], calls: int) -> float:
    function()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def _origin(rounds: int) -> dict[str, Any]:
    import importlib.metadata

    packages = ("tfp_ar1", "tensorflow", "keras", "numpy")
    return {
        "command": f"python -m benchmarks.measure_throughput --rounds {rounds}",
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
    }


def all_reduce_seconds(workers: int, num_bytes: float, bandwidth: float, latency: float) -> float:
    """Seconds of a ring all-reduce (bandwidth in bytes per second, latency in s per message)."""
    return 2 * (workers - 1) / workers * num_bytes / bandwidth + 2 * (workers - 1) * latency


def tables(results: dict[str, Any]) -> str:
    """The Markdown tables of the results."""
    layouts = results["layouts"]
    lines = [
        "# Throughput of a ρ-VAE",
        "",
        f"Written by `{results['command']}`; {results['cores']} cores, TensorFlow "
        f"{results['versions']['tensorflow']}, Keras {results['versions']['keras']}. The paper's "
        "network (784-400-10-400-784), Adam, random images; the batch is that of all replicas",
        "together; medians. A step has its input; the loop of `fit` around it is not counted. All",
        "layouts share the same cores, so more replicas cannot be faster; the table shows what",
        "they cost.",
        "",
        "| batch | layout | images per second | relative |",
        "| --- | --- | --- | --- |",
    ]
    for batch in layouts["1 replica"]:
        base = layouts["1 replica"][batch]["images per second"]
        for layout, by_batch in layouts.items():
            rate = by_batch[batch]["images per second"]
            lines.append(f"| {batch} | {layout} | {rate:,.0f} | {rate / base:.2f} |")
    names = ("input", "forward", "forward and backward", "all-reduce", "step")
    lines += ["", "Milliseconds, each measured by itself:", ""]
    lines += [f"| batch | layout | {' | '.join(names)} |"]
    lines += ["| --- | --- |" + " --- |" * len(names)]
    for batch in layouts["1 replica"]:
        for layout, by_batch in layouts.items():
            one = by_batch[batch]
            cells = [f"{1e3 * one[n]:.2f}" if n in one else "–" for n in names]
            lines.append(f"| {batch} | {layout} | {' | '.join(cells)} |")
    num_bytes = layouts["1 replica"]["128"]["bytes per all-reduce"]
    lines += [
        "",
        "## More workers, on paper",
        "",
        f"Each step all workers add up {num_bytes / 1e6:.2f} MB of gradients. A ring all-reduce of",
        "N workers moves 2 (N-1)/N times as much through each, in 2 (N-1) messages one after the",
        "other. The time of a step is that of one worker's share of the batch, from the steps on",
        "1 replica above (for a share of less than 128 images that of 128), and the",
        "all-reduce, on a network that is assumed and not measured, not overlapped. Speed-up over",
        "one worker:",
        "",
        "| images per step | network | " + " | ".join(f"N = {n}" for n in _WORKERS) + " |",
        "| --- | --- |" + " --- |" * len(_WORKERS),
    ]
    small, large = (layouts["1 replica"][str(b)]["step"] for b in _BATCHES)
    per_image = (large - small) / (_BATCHES[1] - _BATCHES[0])
    for label, images in (
        ("128 on each worker", lambda n: 128),
        ("1024 on each worker", lambda n: 1024),
        ("1024 in all", lambda n: max(1, 1024 / n)),
        ("65536 in all", lambda n: 65536 / n),
    ):
        for network, (bandwidth, latency) in _NETWORKS.items():
            cells = []
            for n in _WORKERS:
                share = images(n)
                alone = images(1)
                step = max(small, small + per_image * (share - 128))
                step += all_reduce_seconds(n, num_bytes, bandwidth, latency)
                one = max(small, small + per_image * (alone - 128))
                cells.append(f"{share * n / step / (alone / one):.1f}")
            lines.append(f"| {label} | {network} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
