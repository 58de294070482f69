"""The taskiq application that the peers' workers import: a JetStream broker, results in its object store."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from nats.js.api import ConsumerConfig
from taskiq.serializers import JSONSerializer
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from tests.bench.peers.killing import WORK_S, mark

URL = os.environ["PEERS_NATS_URL"]
MARKS = Path(os.environ["PEERS_MARKS"])
ACK_WAIT_S = float(os.environ["PEERS_ACK_WAIT_S"])
DURABLE = "taskiq_durable"  # what the broker subscribes with, whatever its consumer is called

broker = PullBasedJetStreamBroker(
    URL,
    durable=DURABLE,
    consumer_config=ConsumerConfig(durable_name=DURABLE, ack_wait=ACK_WAIT_S),
).with_result_backend(NATSObjectStoreResultBackend(URL, serializer=JSONSerializer()))


@broker.task
async def nothing() -> str:
    """Return at once."""
    return "done"


@broker.task
async def slow(task: str) -> str:
    """Note that the task began, and take WORK_S."""
    mark(MARKS, task)
    await asyncio.sleep(WORK_S)
    return "done"
