"""Time of a function by kind of TensorFlow operation."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import contenders

v1 = tf.compat.v1
_WARM_UP, _RUNS = 10, 60


def by_operation(name: str, operation: str, gradients: bool, b: int, d: int) -> dict[str, Any]:
    """The time of a call in graph mode, by kind of operation.

    Operations may run at the same time on different cores, so their sum may exceed the time of the
    call. Tracing costs time too: compare within a profile, not with other timings.

    Args:
      name: A key of `contenders.CONTENDERS`.
      operation: A key of `contenders.OPERATIONS`.
      gradients: Whether to compute gradients.
      b: The batch size.
      d: The number of coordinates.

    Returns:
      `span`, the median time of a call in seconds, and `kinds`: for each kind of operation
      `[number, total seconds (median)]`, the slowest first.
    """
    contender = contenders.CONTENDERS[name]
    values = {key: value.numpy() for key, value in contender.parameters(b, d).items()}
    data = np.random.default_rng(0).normal(size=[b, d]).astype(np.float32)
    with tf.Graph().as_default() as graph:
        parameters = {k: v1.placeholder(tf.float32, v.shape) for k, v in values.items()}
        x, seed = v1.placeholder(tf.float32, data.shape), v1.placeholder(tf.int32, [2])
        outputs = [contenders.OPERATIONS[operation](contender.make(parameters), x, seed)]
        if gradients:
            found = tf.gradients(outputs[0], [*parameters.values(), x])
            # Fetch only one number of each, which costs nothing.
            outputs = [tf.reshape(g, [-1])[0] for g in found if g is not None]
    feed = {parameters[key]: value for key, value in values.items()} | {x: data, seed: [1, 2]}
    spans, kinds = [], []
    with v1.Session(graph=graph) as session:
        for _ in range(_WARM_UP):
            session.run(outputs, feed)
        for _ in range(_RUNS):
            trace = v1.RunMetadata()
            options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
            session.run(outputs, feed, options=options, run_metadata=trace)
            nodes = [n for device in trace.step_stats.dev_stats for n in device.node_stats]
            ends = [node.all_start_micros + node.all_end_rel_micros for node in nodes]
            spans.append(max(ends) - min(node.all_start_micros for node in nodes))
            times = collections.defaultdict(list)
            for node in nodes:
                kind = node.timeline_label.split(" = ")[-1].split("(")[0]
                times[kind].append(node.op_end_rel_micros - node.op_start_rel_micros)
            kinds.append({kind: (len(each), sum(each)) for kind, each in times.items()})
    totals = {
        kind: [max(k[kind][0] for k in kinds if kind in k), 1e-6 * float(np.median(each))]
        for kind in kinds[-1]
        if (each := [k[kind][1] for k in kinds if kind in k])
    }
    slowest_first = sorted(totals.items(), key=lambda item: -item[1][1])
    return {"span": 1e-6 * float(np.median(spans)), "kinds": dict(slowest_first)}
