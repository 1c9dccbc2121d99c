"""Raw calls of the training service: what is sent is bytes, and refusals are told apart."""

from __future__ import annotations

import secrets

import grpc

from delta.wire import training as wire
from delta.wire.services import method_path
from tests.training_jobs import dataset_spec, job_spec, manifest_of

SPEC = dataset_spec()
B = SPEC.release.payload_bytes
UNARY = ("CreateDataset", "DeleteDataset", "StartTraining", "CancelTraining", "PromoteCheckpoint")
DOWN = ("WatchTraining", "FetchLogits", "FetchCheckpoint")
METHODS = (*UNARY, *DOWN, "UploadReleases", "TrainInteractively")


def name() -> str:
    return secrets.token_hex(16)


def call(channel, method, *requests, token=None, metadata=None, timeout=20.0):
    """A raw call: what it answers, or its status, text and code of error."""
    path = method_path(wire.TRAINING_SERVICE, method)
    raw = [request if isinstance(request, bytes) else request.SerializeToString() for request in requests]
    if metadata is None:
        metadata = () if token is None else ((wire.AUTHORIZATION, wire.bearer(token)),)
    try:
        if method in UNARY:
            return [channel.unary_unary(path)(raw[0], timeout=timeout, metadata=metadata)]
        if method in DOWN:
            return list(channel.unary_stream(path)(raw[0], timeout=timeout, metadata=metadata))
        if method == "UploadReleases":
            return [channel.stream_unary(path)(iter(raw), timeout=timeout, metadata=metadata)]
        return list(channel.stream_stream(path)(iter(raw), timeout=timeout, metadata=metadata))
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return error.code().name, error.details(), trailing.get("delta-error")


def requests_of(dataset, job, version=1):
    """A well-formed request of every method."""
    names = {"protocol_version": version, "name": wire.JobName(dataset=dataset, job=job)}
    spec, interactive = wire.encode_spec(job_spec()), wire.encode_spec(job_spec(steps=3))
    manifest = manifest_of(SPEC, job_spec(), weights_hash="0" * 64)
    data = {"protocol_version": version, "dataset": dataset}
    return {
        "CreateDataset": wire.CreateDatasetRequest(**data, spec=wire.encode_spec(SPEC)),
        "DeleteDataset": wire.DeleteDatasetRequest(**data),
        "StartTraining": wire.StartTrainingRequest(**names, spec=spec),
        "CancelTraining": wire.CancelTrainingRequest(**names),
        "PromoteCheckpoint": wire.PromoteCheckpointRequest(**names, manifest=wire.encode_spec(manifest)),
        "WatchTraining": wire.WatchTrainingRequest(**names),
        "FetchLogits": wire.FetchLogitsRequest(**names),
        "FetchCheckpoint": wire.FetchCheckpointRequest(**names),
        "UploadReleases": wire.UploadReleasesRequest(head=wire.UploadHead(**data)),
        "TrainInteractively": wire.TrainInteractivelyRequest(
            hello=wire.InteractiveHello(**names, spec=interactive)
        ),
    }


def chunk(first=0, count=2, **changes):
    fields = {
        "first": first,
        "count": count,
        "bits": bytes(range(1, 1 + B)) * count,
        "labels": bytes(-(-2 * count // 8)),
        "held_out": bytes(-(-count // 8)),
        **changes,
    }
    return wire.UploadReleasesRequest(**fields)
