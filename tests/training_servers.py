"""Real servers that train, and what tests of them do again and again."""

from __future__ import annotations

import json
import os
import secrets
import signal

from delta_client import GrpcTrainingCloud
from delta_server.launch import ServerProcess

from delta.training.config import FitConfig
from tests.training_jobs import RECORDS, chunks_of, dataset_spec, job_spec, stored_releases

RELEASES, SPEC = stored_releases(), dataset_spec()
LONG = job_spec(fit=FitConfig(epochs=100_000, batch=16))
SOME_SECONDS = job_spec(fit=FitConfig(epochs=150, batch=16))


def name() -> str:
    return secrets.token_hex(16)


def connect(server, token):
    return GrpcTrainingCloud(server.address, token, timeout_s=30.0)


def start(folder, *options, env=None):
    return ServerProcess.start(training=folder, threads=1, options=options, env=env)


def kill(server):
    """End a server as a power cut would."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def events(server, kind):
    """What a server has logged of a kind of event."""
    lines = (json.loads(line) for line in server.log_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == kind]


def until(states, reached):
    for state in states:
        if reached(state):
            return state
    raise AssertionError("the watch ended")


def uploaded(cloud):
    dataset = name()
    cloud.create(dataset, SPEC)
    assert cloud.upload(dataset, chunks_of(RELEASES)) == RECORDS
    return dataset
