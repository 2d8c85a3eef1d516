"""Starts processes that train together on this machine, for tests of strategies and recovery."""

import json
import os
import pathlib
import socket
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def _free_ports(number):
    """Ports that are free at the moment."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def tf_configs(number):
    """`TF_CONFIG` for each worker."""
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(number)]
    cluster = {"worker": addresses}
    return [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(number)
    ]


def start(command, tf_config=None, stdout=subprocess.PIPE, **environment):
    """Starts a process of this package in its own process group."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    environment.pop("TF_CONFIG", None)
    if tf_config is not None:
        environment["TF_CONFIG"] = tf_config
    return subprocess.Popen(
        command,
        env=environment,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
