"""Training clouds that follow scripts: what each method answers, and what reached it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import torch
from delta_client import GrpcTrainingCloud

from delta.wire.status import status_of
from delta.wire.training import (
    TRAINING_SERVICE,
    CreateDatasetResponse,
    UploadReleasesResponse,
    WatchTrainingResponse,
    token_of,
)
from tests.training_jobs import (
    DATASET,
    HELD_OUT,
    JOB,
    chunks_of,
    dataset_spec,
    job_spec,
    manifest_of,
    stored_releases,
)

TOKEN = bytes(range(32))
RELEASES = stored_releases()
STREAMS_UP = {"UploadReleases", "TrainInteractively"}
STREAMS_DOWN = {"WatchTraining", "FetchLogits", "FetchCheckpoint", "TrainInteractively"}
METHODS = [
    "CreateDataset",
    "UploadReleases",
    "DeleteDataset",
    "StartTraining",
    "WatchTraining",
    "CancelTraining",
    "FetchLogits",
    "FetchCheckpoint",
    "PromoteCheckpoint",
    "TrainInteractively",
]
GARBAGE = b"\xff\xff\xff\xff no message"
BLANK = {"w": torch.zeros(1000)}
RUNNING = WatchTrainingResponse(state=2, step=1, steps=10)
DONE = WatchTrainingResponse(state=3, step=10, steps=10)


def _raw(message):
    return message if isinstance(message, bytes) else message.SerializeToString()


class Cloud:
    """A server whose methods follow scripts: `script(request or requests, context)` → an answer or answers.

    Attributes:
        received: raw messages, by method.
        tokens: of all who called.
        release: set at the end, for scripts that hang.
        ended: set when a streaming script was left.
    """

    def __init__(self, **scripts):
        self.scripts = {
            "CreateDataset": lambda raw, context: CreateDatasetResponse(acknowledged=0, max_records=1024),
            **scripts,
        }
        self.received = {method: [] for method in METHODS}
        self.tokens = set()
        self.release = threading.Event()
        self.ended = threading.Event()

    def __enter__(self):
        self.server = grpc.server(ThreadPoolExecutor(8))
        handlers = {method: self._handler(method) for method in self.scripts}
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(TRAINING_SERVICE, handlers),)
        )
        self.address = "127.0.0.1:{}".format(self.server.add_insecure_port("127.0.0.1:0"))
        self.server.start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.server.stop(None).wait()

    def _handler(self, method):
        script = self.scripts[method]

        def noted(raws):
            for raw in raws:
                self.received[method].append(raw)
                yield raw

        def seen(given, context):
            self.tokens.add(token_of(context.invocation_metadata()))
            if method in STREAMS_UP:
                return noted(given)
            self.received[method].append(given)
            return given

        def one(given, context):
            return _raw(script(seen(given, context), context))

        def many(given, context):
            try:
                for message in script(seen(given, context), context):
                    yield _raw(message)
            finally:
                self.ended.set()

        up, down = method in STREAMS_UP, method in STREAMS_DOWN
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[up, down]
        return make(many if down else one)


def session_of(cloud, **options):
    options = {"timeout_s": 10.0, "pauses_s": (0.0, 0.0), **options}
    return GrpcTrainingCloud(cloud.address, TOKEN, **options)


def aborted(error):
    """A script that fails as a server of ours would."""

    def script(given, context):
        code, text, metadata = status_of(error)
        context.set_trailing_metadata(metadata)
        context.abort(code, text)

    return script


def streamed(*messages):
    return lambda given, context: iter(messages)


def drained(acknowledged):
    def script(raws, context):
        for _ in raws:
            pass
        return UploadReleasesResponse(acknowledged=acknowledged)

    return script


def calls_of(cloud):
    """Every call of the contract, by the method that it makes."""
    manifest = manifest_of(dataset_spec(), job_spec(), weights_hash="0" * 64)
    return {
        "CreateDataset": lambda: cloud.create(DATASET, dataset_spec()),
        "UploadReleases": lambda: cloud.upload(DATASET, chunks_of(RELEASES)),
        "DeleteDataset": lambda: cloud.delete(DATASET),
        "StartTraining": lambda: cloud.start(DATASET, JOB, job_spec()),
        "WatchTraining": lambda: list(cloud.watch(DATASET, JOB)),
        "CancelTraining": lambda: cloud.cancel(DATASET, JOB),
        "FetchLogits": lambda: cloud.held_out_logits(DATASET, JOB, records=HELD_OUT),
        "FetchCheckpoint": lambda: cloud.fetch(DATASET, JOB, like=BLANK),
        "PromoteCheckpoint": lambda: cloud.promote(DATASET, JOB, manifest),
        "TrainInteractively": lambda: cloud.interact(DATASET, JOB, job_spec(steps=3)),
    }


def one_line(caught):
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    return True
