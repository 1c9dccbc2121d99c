"""Predictions across a process boundary: a served cloud part, a client, and everything that may go wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from delta_client import Client, GrpcTransport
from delta_server.launch import ServerProcess

from delta.bundle.manifest import Architecture, Manifest
from delta.bundle.store import Bundle, export_cloud_part, load_bundle, save_bundle
from delta.errors import ConfigError, ModelError
from delta.methods.base import Prediction, RecordIds
from delta.methods.delta.private import DeltaMethod
from delta.release.noise import NoiseKey
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, ScriptedCloud, honest, hostile_clouds
from tests.trained import Trained

KEY = NoiseKey(bytes(range(32)))
NAMES = ("none", "noise", "principal", "svd")


@pytest.fixture(scope="module")
def cloud_dirs(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clouds")
    return {name: export_cloud_part(trained.bundles[name].cloud_part, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def server(cloud_dirs: dict[str, Path]) -> Iterator[ServerProcess]:
    """One process that serves the exported cloud part of every bundle."""
    with ServerProcess.start(list(cloud_dirs.values()), threads=1) as process:
        yield process


def _in_process(bundle: Bundle, x: torch.Tensor, ids: RecordIds) -> Prediction:
    half = DeltaMethod.cloud_half(bundle.cloud_part, device=torch.device("cpu"))
    with InProcessTransport(half) as transport:
        method = DeltaMethod(bundle, key=KEY)
        method.prepare(transport)
        return method.infer(x, ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_served_bundle_answers_as_it_does_in_process(trained, server, name):
    bundle = trained.bundles[name]
    ids = RecordIds([f"r{i}" for i in range(20)], ["s"] * 20)
    expected = _in_process(bundle, trained.x[:20], ids)
    with Client(bundle, cloud=server.address, key=KEY) as client:
        found = client.predict(trained.x[:20], ids)
        again = client.predict(trained.x[:20], ids)
    assert found.used_cloud, found.detail
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.extras["payload"], expected.extras["payload"])
    assert torch.equal(again.extras["payload"], found.extras["payload"])
    size = bundle.manifest.release.payload_bytes if bundle.manifest.release else 0
    assert 20 * size < found.cost.bytes_up <= 20 * size + 16
    assert found.cost.round_trips == 1
    assert found.cost.cloud_ms > 0


def test_a_large_batch_goes_in_as_many_requests_as_it_needs(trained, server):
    bundle = trained.bundles["none"]
    x = trained.x[:1].expand(150, -1, -1, -1) + torch.linspace(0, 0.1, 150)[:, None, None, None]
    expected = _in_process(bundle, x, RecordIds())
    with Client(bundle, cloud=server.address, key=KEY) as client:
        found = client.predict(x)
    assert found.used_cloud, found.detail
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert found.logits.shape == (150, 10)


def test_one_failed_request_of_a_batch_fails_the_batch(trained):
    bundle = trained.bundles["none"]
    good = honest(DeltaMethod.cloud_half(bundle.cloud_part, device=torch.device("cpu")))
    x = trained.x[:1].expand(100, -1, -1, -1).contiguous()

    def second_time_wrong(turn, op, tensors):
        answer = good(turn, op, tensors)
        return (
            answer
            if turn == 0
            else replace(answer, tensors={"logits": answer.tensors["logits"] * float("nan")})
        )

    with ScriptedCloud(second_time_wrong) as cloud:
        method = DeltaMethod(bundle, key=KEY)
        method.prepare(cloud)
        prediction = method.infer(x)
    assert len(cloud.transcript) == 2
    assert (prediction.used_cloud, prediction.reason) == (False, "bad-answer")
    assert torch.equal(prediction.logits, prediction.extras["z_main"])


def test_the_transcript_above_grpc_is_that_of_any_other_cloud(trained, server):
    """I1 with a real server: the same requests as to hostile clouds in this process."""
    bundle = trained.bundles["noise"]
    release = bundle.manifest.release
    assert release is not None
    batches = [(trained.x[:3], RecordIds(["a", "b", "c"])), (trained.x[3:4], RecordIds(["d"]))]
    inner = GrpcTransport(server.address, bundle.manifest.binding, payload_bytes=release.payload_bytes)
    with Recorded(inner) as transport:
        method = DeltaMethod(bundle, key=KEY)
        method.prepare(transport)
        assert all(method.infer(x, ids).used_cloud for x, ids in batches)
    half = DeltaMethod.cloud_half(bundle.cloud_part, device=torch.device("cpu"))
    clouds = {"honest": honest(half), **hostile_clouds(half)}
    for name in ("honest", "NaN", "reversed", "overloaded", "recovers"):
        with ScriptedCloud(clouds[name]) as cloud:
            method = DeltaMethod(bundle, key=KEY)
            method.prepare(cloud)
            for x, ids in batches:
                method.infer(x, ids)
        assert cloud.transcript == transport.transcript, name


_CLIENT = """
import json, sys, torch
from pathlib import Path
from delta.methods.base import RecordIds
from delta_client import Client
torch.set_num_threads(1)
bundle, cloud, key, records = sys.argv[1:]
x = torch.tensor(json.loads(Path(records).read_text()))
with Client(Path(bundle), cloud=cloud, key=Path(key)) as client:
    prediction = client.predict(x, RecordIds([f"r{i}" for i in range(len(x))], ["s"] * len(x)))
print(json.dumps([prediction.used_cloud, prediction.extras["payload"].tolist(), prediction.logits.tolist()]))
"""


def test_two_processes_with_one_key_send_the_same_bits(trained, server, bundle_dirs, tmp_path):
    key = tmp_path / "noise.key"
    NoiseKey.generate().save(key)
    records = tmp_path / "records.json"
    records.write_text(json.dumps(trained.x[:6].tolist()))
    command = [
        sys.executable,
        "-c",
        _CLIENT,
        str(bundle_dirs["noise"]),
        server.address,
        str(key),
        str(records),
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (used, bits, logits), other = (json.loads(process.communicate(timeout=120)[0]) for process in running)
    assert used
    assert other == [used, bits, logits]
    ids = RecordIds([f"r{i}" for i in range(6)], ["s"] * 6)
    mine = DeltaMethod(trained.bundles["noise"], key=NoiseKey.load(key))
    assert mine.infer(trained.x[:6], ids).extras["payload"].tolist() == bits
    stranger = DeltaMethod(trained.bundles["noise"], key=NoiseKey.generate())
    assert stranger.infer(trained.x[:6], ids).extras["payload"].tolist() != bits


# Without the cloud


def _alone(bundle: Bundle, x: torch.Tensor) -> torch.Tensor:
    method = DeltaMethod(bundle, key=KEY)
    method.prepare(None)
    return method.infer(x).logits


def _falls_back(
    bundle: Bundle, address: str, x: torch.Tensor, *, reason: str, deadline_s: float = 5.0
) -> Prediction:
    with Client(bundle, cloud=address, key=KEY, deadline_s=deadline_s) as client:
        prediction = client.predict(x)
    assert (prediction.used_cloud, prediction.reason) == (False, reason)
    assert prediction.detail
    assert "\n" not in prediction.detail
    assert torch.equal(prediction.logits, _alone(bundle, x))
    return prediction


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_an_absent_cloud(trained):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    _falls_back(trained.bundles["none"], f"127.0.0.1:{port}", trained.x[:3], reason="unreachable")


def test_a_hung_cloud(trained, silent_port):
    bundle = trained.bundles["none"]
    with Client(bundle, cloud=f"127.0.0.1:{silent_port}", deadline_s=0.3) as client:
        prediction = client.predict(trained.x[:3])
    assert not prediction.used_cloud
    assert prediction.reason in {"deadline", "unreachable"}
    assert torch.equal(prediction.logits, _alone(bundle, trained.x[:3]))


def test_a_cloud_of_another_bundle(trained, server):
    bundle = trained.bundles["principal"]
    renamed = bundle.manifest.model_copy(update={"name": trained.bundles["none"].manifest.name})
    impostor = Bundle(renamed, bundle.facts, bundle.private, bundle.cloud)
    _falls_back(impostor, server.address, trained.x[:3], reason="mismatch")


def test_a_cloud_without_that_model(trained, server):
    bundle = trained.bundles["none"]
    unknown = Bundle(
        bundle.manifest.model_copy(update={"name": "elsewhere"}), bundle.facts, bundle.private, bundle.cloud
    )
    _falls_back(unknown, server.address, trained.x[:3], reason="mismatch")


def test_a_cloud_that_dies_midway(trained, cloud_dirs):
    bundle = trained.bundles["noise"]
    x = trained.x[:3]
    with (
        ServerProcess.start(cloud_dirs["noise"], threads=1) as process,
        Client(bundle, cloud=process.address, key=KEY, deadline_s=5.0) as client,
    ):
        before = client.predict(x)
        process.stop()
        without = [client.predict(x) for _ in range(2)]
    assert before.used_cloud
    for prediction in without:
        assert (prediction.used_cloud, prediction.reason) == (False, "unreachable")
        assert torch.equal(prediction.logits, before.extras["z_main"])
        assert torch.equal(prediction.extras["payload"], before.extras["payload"])


def test_more_records_than_a_message_holds_are_refused_with_a_reason(trained, cloud_dirs):
    bundle = trained.bundles["none"]
    with (
        ServerProcess.start(cloud_dirs["none"], threads=1, options=["--queue", "8"]) as small,
        Client(bundle, cloud=small.address) as client,
    ):
        many = client.predict(trained.x[:9])
        few = client.predict(trained.x[:8])
    assert (many.used_cloud, many.reason) == (False, "refused")
    assert few.used_cloud


def test_a_bundle_from_elsewhere_runs_no_code_of_its_own_here(trained, tmp_path):
    """I5 on the private side: a manifest's hash is anybody's to compute, so its target needs leave."""
    bundle = trained.bundles["svd"]
    manifest = bundle.manifest
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields if "_hash" not in name}
    target = Architecture(target="os:mkdir", arguments={"path": str(tmp_path / "owned")}, split_at="layer1")
    evil = Manifest.sealed(
        **{**fields, "architecture": target}, cloud_weights_hash=manifest.cloud_weights_hash
    )
    facts = bundle.facts.model_copy(update={"backbone": "model"})
    folder = save_bundle(replace(bundle, manifest=evil, facts=facts), tmp_path / "bundle")
    with pytest.raises(ModelError, match="--allow os:mkdir"):
        Client(folder, cloud=None)
    assert not (tmp_path / "owned").exists()


def test_a_noisy_bundle_opened_by_its_folder_finds_the_key_beside_it(trained, tmp_path):
    folder = save_bundle(trained.bundles["noise"], tmp_path / "bundle")
    with Client(folder, cloud=None) as first, Client(str(folder), cloud=None) as second:
        payloads = [client.predict(trained.x[:3]).extras["payload"] for client in (first, second)]
    assert torch.equal(*payloads)
    assert (tmp_path / "noise.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"NoiseKey\.beside"):
        Client(load_bundle(folder), cloud=None)
