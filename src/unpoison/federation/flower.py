"""Clients as nodes of Flower's simulation engine (Beutel et al. 2020, https://flower.ai), each in a worker of Ray: an extra.

The server's part, aggregators included, is this project's in any case: a Flower `ServerApp` runs it, and what it asks of
clients goes as messages to a `ClientApp`. Seeds are those of the rounds and clients, and each worker has as many threads as
this process, so the result has the same bytes as that of clients in turn.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..compute.device import pick_device
from ..compute.pools import import_path
from ..core.arrays import IntArray
from ..core.errors import ParameterError, UserError
from .clients import ENGINE, Ask, Clients, Result, Sent

# Seconds within which the engine has all its nodes.
_PATIENCE = 120
_ROUND, _CLIENT, _WEIGHTS, _UPDATE, _LOSSES, _REFUSED = "round", "client", "weights", "update", "losses", "refused"


def simulated(clients: Clients, serve: Callable[[Ask], Result]) -> Result:
    """The engine that runs every client as a node of Flower's simulation, as many at a time as have threads here.

    Raises:
        UserError: Flower or its simulation is not installed, a client's worker ended, or what the clients or `serve` raise.
    """
    # Both report their use to their makers unless told otherwise, and read this when they are imported.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import flwr.app
        import flwr.clientapp
        import flwr.serverapp
        import flwr.simulation
        import ray
    except ImportError:
        raise UserError(
            f"{ENGINE}: flower given, which is not installed; allowed: after `pip install '.[federated]'`"
        ) from None
    logging.getLogger("flwr").setLevel(logging.ERROR)
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    ray.init(
        num_cpus=max(cores, threads),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": import_path()}},
    )
    # Once into Ray's store, and not with every message.
    stored = ray.put(clients)
    client_app, server_app = flwr.clientapp.ClientApp(), flwr.serverapp.ServerApp()

    def train(message: Any, context: Any) -> Any:
        asked, before = message.content[_CLIENT], message.content[_WEIGHTS].to_numpy_ndarrays()[0]
        content = flwr.app.RecordDict()
        try:
            sent = ray.get(stored).train(asked[_ROUND], asked[_CLIENT], torch.from_numpy(before.copy()))
        except UserError as error:
            content[_REFUSED] = flwr.app.ConfigRecord({_REFUSED: str(error)})
        else:
            content[_UPDATE] = flwr.app.ArrayRecord([sent.update.numpy()])
            content[_LOSSES] = flwr.app.ArrayRecord([sent.losses])
            content["row"] = flwr.app.MetricRecord(sent.row)
        return flwr.app.Message(content=content, reply_to=message)

    results: list[Result] = []

    def main(grid: Any, context: Any) -> None:
        nodes = _nodes(grid, clients.federation.clients)

        def ask(number: int, before: Tensor, drawn: IntArray) -> list[Sent]:
            messages = []
            for client in map(int, drawn):
                content = flwr.app.RecordDict(
                    {
                        _CLIENT: flwr.app.ConfigRecord({_ROUND: number, _CLIENT: client}),
                        _WEIGHTS: flwr.app.ArrayRecord([before.numpy()]),
                    }
                )
                messages.append(flwr.app.Message(content=content, message_type="train", dst_node_id=nodes[client]))
            replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages)}
            return [_sent(replies.get(nodes[client]), number, client) for client in map(int, drawn)]

        results.append(serve(ask))

    client_app.train()(train)
    server_app.main()(main)
    gpus = 1.0 if pick_device().type == "cuda" else 0.0
    try:
        flwr.simulation.run_simulation(
            server_app,
            client_app,
            clients.federation.clients,
            backend_config={"client_resources": {"num_cpus": threads, "num_gpus": gpus}},
        )
    finally:
        ray.shutdown()
    return results[0]


def _nodes(grid: Any, count: int) -> list[int]:
    """The numbers that the engine knows its nodes by, of each client one. Raises UserError where they do not come."""
    until = time.monotonic() + _PATIENCE
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > until:
            raise UserError(f"{ENGINE}: {len(nodes)} of {count} nodes after {_PATIENCE} s, allowed: all; or local")
        time.sleep(0.05)
    return nodes


def _sent(reply: Any, number: int, client: int) -> Sent:
    """What a client has sent. Raises ParameterError for what it was refused, and UserError where nothing came."""
    if reply is None or reply.has_error():
        why = "no answer" if reply is None else reply.error.reason
        raise UserError(f"{ENGINE}: flower given, client {client} of round {number} ended without a result ({why})")
    content = reply.content
    if _REFUSED in content:
        raise ParameterError(str(content[_REFUSED][_REFUSED]))
    (update,), (losses,) = (content[key].to_numpy_ndarrays() for key in (_UPDATE, _LOSSES))
    row = {key: float(value) for key, value in content["row"].items()}
    return Sent(torch.from_numpy(np.array(update)), np.array(losses), row)
