"""Trains and evaluates models, several seeds at once, and writes a line for each seed."""

import functools
import itertools
import json
import pathlib
import statistics
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.healing.latents import Method
from experiments.healing.results import read
from experiments.healing.run import code, versions
from experiments.scan_lines import model
from experiments.scan_lines.data import load, order_of
from experiments.scan_lines.results import SETTINGS

# The number of test images for the importance-weighted NLL.
_NUM_WEIGHTED = 2000


class Options(NamedTuple):
    """The runs and their output; see `python -m experiments.scan_lines run --help`."""

    data_dir: pathlib.Path
    out: pathlib.Path
    decoders: list[str]
    orders: list[str]
    methods: list[str]
    seeds: list[int]
    epochs: int
    num_train: int
    num_test: int


def run(options: Options) -> None:
    """Runs whatever has no line in the file of results yet."""
    records = read(options.out) if options.out.exists() else []
    done = {tuple(record[key] for key in SETTINGS) for record in records}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sizes = {key: getattr(options, key) for key in ("epochs", "num_train", "num_test")}
    train, test = load(options.data_dir, options.num_train, options.num_test)
    cells = itertools.product(options.decoders, options.orders, options.methods)
    for decoder, order, method in cells:
        settings = {"method": method, "decoder": decoder, "order": order, **sizes}
        todo = [{"seed": seed, **settings} for seed in options.seeds]
        todo = [x for x in todo if tuple(x[key] for key in SETTINGS) not in done]
        if not todo:
            continue
        places = order_of(order)
        trained = _model(options, decoder, method)
        records = _train(trained, todo, train[:, places], test[:, places])
        with options.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _model(options: Options, decoder: str, method: str) -> model.Model:
    posterior, prior = method.split("/")
    steps = options.epochs * (options.num_train // model.BATCH)
    return model.Model(decoder, Method(posterior, prior), steps)


def _train(
    trained: model.Model, todo: list[dict[str, Any]], train: np.ndarray, test: np.ndarray
) -> list[dict[str, Any]]:
    """The results of several seeds of one model, trained at once."""
    train_images, test_images = jnp.asarray(train), jnp.asarray(test)
    seeds = jnp.asarray([settings["seed"] for settings in todo])
    states = jax.jit(jax.vmap(functools.partial(model.initial, trained)))(seeds)
    epoch = model.train.lower(states, train_images, trained).compile()
    seconds, losses = [], []
    for _ in range(todo[0]["epochs"]):
        start = time.monotonic()
        states, loss = epoch(states, train_images)
        losses.append(np.asarray(loss).tolist())  # Waits for the epoch.
        seconds.append(time.monotonic() - start)
        print(f"{seconds[-1]:.1f} s, loss {losses[-1]}", flush=True)
    records = []
    for row, settings in enumerate(todo):
        parameters, key = jax.tree.map(lambda x, row=row: x[row], (states.parameters, states.key))
        measures = model.evaluate(parameters, test_images, key, trained)
        measures["nll_iw"] = model.importance_weighted_nll(
            parameters, test_images[:_NUM_WEIGHTED], key, trained
        )
        record = settings | {name: float(value) for name, value in measures.items()}
        if "prior" in parameters:
            rho = np.tanh(np.asarray(parameters["prior"], np.float64))
            record |= {"prior_correlation": rho.mean(), "prior_correlations": rho.tolist()}
        records.append(
            record
            | {
                "seconds_per_epoch": statistics.median(seconds),
                "seeds_at_once": len(todo),
                "history": [float(f"{epoch[row]:.7g}") for epoch in losses],
                "device": jax.devices()[0].device_kind,
                "versions": versions(),
                "code": code(),
                "command": " ".join(["python -m experiments.scan_lines", *sys.argv[1:]]),
            }
        )
        print({k: v for k, v in record.items() if k in (*SETTINGS, *measures)}, flush=True)
    return records
