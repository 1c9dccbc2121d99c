"""`python -m delta_client.bench_latency JOB.json`: the private process of `delta bench latency`.

It is held to its threads and cores before anything computes, times all cases of the job in turn over real
sessions with the cloud, and writes the samples to standard output as JSON; progress goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from delta.bench.jobs import READY, PrivateJob
from delta.bench.timing import Timed, time_in_turn

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the job that the arguments name; returns the exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    path = Path((sys.argv[1:] if arguments is None else arguments)[0])
    job = PrivateJob.parse(json.loads(path.read_text()), what=str(path))
    if job.cores is not None:
        os.sched_setaffinity(0, job.cores)
    import torch

    from delta.bench.jobs import timed_to_json
    from delta.errors import DeltaError

    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(1)
    try:
        timed = _timed(job)
    except DeltaError as error:
        _tell(f"error: {error}")
        return 1
    json.dump(timed_to_json(timed), sys.stdout)
    return 0


def _timed(job: PrivateJob) -> list[Timed]:
    from delta.bench.cases import cases_of
    from delta.bundle.manifest import Manifest
    from delta.bundle.store import load_bundle
    from delta.errors import CloudUnavailableError
    from delta.training.cloud import TrainingCloud
    from delta.transport.base import Transport
    from delta.transport.shaped import ShapedTransport
    from delta_client.token import TenantToken
    from delta_client.training import GrpcTrainingCloud
    from delta_client.transport import GrpcTransport

    if job.address is None:
        raise CloudUnavailableError("the job names no cloud")
    address = job.address
    token = TenantToken.generate()

    with contextlib.ExitStack() as stack:

        def connect(manifest: Manifest) -> Transport:
            release = manifest.release
            transport: Transport = GrpcTransport(
                address,
                manifest.binding,
                payload_bytes=release.payload_bytes if release is not None else None,
                classes=len(manifest.class_names) if release is not None else None,
                connect_timeout_s=10.0,
            )
            if job.link is not None:
                transport = ShapedTransport(
                    transport, bandwidth_mbps=job.link.bandwidth_mbps, delay_ms=job.link.delay_ms
                )
            return transport

        def training() -> TrainingCloud:
            return stack.enter_context(GrpcTrainingCloud(address, token.for_cloud(address)))

        cases = []
        for batch in job.batches:
            for subject in job.subjects:
                bundle = load_bundle(subject.bundle)
                for make in cases_of(
                    bundle,
                    batch=batch,
                    seed=job.seed,
                    connect=connect,
                    training=training if job.link is None else None,  # a shaped link carries requests alone
                    runtime=job.runtime,
                    train=job.train,
                ):
                    case = make()
                    stack.callback(case.close)
                    cases.append((Timed(subject.key, case.phase, batch), case))
        return time_in_turn(
            cases, rounds=job.rounds, seconds=job.seconds, told=_tell, ready=_wait_for_the_others
        )


def _wait_for_the_others() -> None:
    """Say that the rounds could begin, and wait for the word: several processes begin them together."""
    _tell(READY)
    sys.stdin.readline()


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
