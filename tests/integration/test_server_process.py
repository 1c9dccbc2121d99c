"""The server as a process: readiness, failure, several models, drain, catalog, health, reflection."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from concurrent.futures import wait

import grpc
import pytest
import torch
from delta_client import Client, GrpcTransport, fetch_manifest, list_models
from delta_server.config import ServerConfig, parse_listen
from delta_server.launch import ServerProcess
from delta_server.models import ModelStore
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from delta.bench.zero_method import zero_bundle
from delta.bundle.store import export_cloud_part, save_bundle
from delta.errors import (
    BundleError,
    CloudError,
    CloudMismatchError,
    CloudUnavailableError,
    ConfigError,
    UnknownMethodError,
)
from delta.wire.services import SERVICES
from tests.cloud_fixtures import PLUGIN
from tests.toy_method import toy_bundle

DEADLINE_S = 20.0
ONES = torch.ones(1, 16, dtype=torch.uint8)


def _serve(*arguments):
    """Run a server that is expected to fail; its status and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "delta_server", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_plugin_method_works_from_end_to_end_without_touching_client_or_server(toy_cloud, toy_dir):
    x = torch.arange(32, dtype=torch.float32).reshape(2, 1, 1, 16)
    with Client(toy_dir, cloud=toy_cloud.address) as client:
        prediction = client.predict(x)
        assert client.manifest.name == "toy"
        assert client.handshake_bytes[0] > 0
    assert prediction.used_cloud
    assert torch.equal(prediction.logits, x.reshape(2, 16)[:, :4] * 2)
    assert prediction.cost.bytes_up > 32


def test_a_client_without_a_cloud_still_predicts(toy_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with Client(toy_dir, cloud=f"127.0.0.1:{taken.getsockname()[1]}", deadline_s=2.0) as client:
            prediction = client.predict(torch.zeros(1, 1, 1, 16))
    assert not prediction.used_cloud
    assert "no cloud answers" in prediction.detail


def test_the_catalog_names_models_limits_and_manifests(toy_cloud):
    (entry,) = list_models(toy_cloud.address)
    assert entry.binding == toy_bundle().manifest.binding
    assert (entry.method, entry.payload_bytes, entry.classes) == ("toy", 16, 4)
    assert set(entry.operations) == {"predict", "accumulate", "scale", "pause"}
    assert fetch_manifest(toy_cloud.address) == toy_bundle().manifest
    with pytest.raises(CloudMismatchError, match="there are: toy"):
        fetch_manifest(toy_cloud.address, "other")


def test_health_and_reflection_answer(toy_cloud):
    with grpc.insecure_channel(toy_cloud.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="delta.v1.InferenceService"), timeout=5
        )
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
        names = {service.name for service in answer.list_services_response.service}
        assert set(SERVICES) < names


def test_one_server_hosts_several_bundles_and_needs_no_private_half(tmp_path):
    toy, zero = toy_bundle(), zero_bundle(payload_bytes=8)
    dirs = [export_cloud_part(b.cloud_part, tmp_path / b.manifest.name) for b in (toy, zero)]
    assert not (dirs[0] / "private.json").exists()
    port_file = tmp_path / "port"
    with ServerProcess.start(
        dirs,
        plugins=[PLUGIN, "delta.bench.zero_method"],
        threads=1,
        log_path=tmp_path / "log",
        options=["--port-file", str(port_file), "--max-batch", "4", "--max-delay-ms", "1", "--queue", "100"],
    ) as server:
        assert port_file.read_text().strip() == server.address
        assert {entry.method for entry in list_models(server.address)} == {"toy", "bench-zero"}
        for bundle, size in ((toy, 16), (zero, 8)):
            with GrpcTransport(server.address, bundle.manifest.binding) as transport:
                bits = torch.ones(3, size, dtype=torch.uint8)
                logits = (
                    transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S)
                    .result()
                    .tensors["logits"]
                )
                assert logits.shape == (3, len(bundle.manifest.class_names))
        assert server.stop() == 0
    log = (tmp_path / "log").read_text()
    assert '"tee": "none"' in log
    assert '"event": "stopped"' in log


def test_a_client_of_another_bundle_is_told_what_differs(toy_cloud):
    other = toy_bundle(weight=3.0).manifest.binding
    with GrpcTransport(toy_cloud.address, other) as transport:
        future = transport.submit("predict", {"bits": ONES}, deadline_s=DEADLINE_S)
        with pytest.raises(CloudMismatchError, match="cloud_hash differs"):
            future.result()
        scale = transport.submit("scale", {"x": torch.ones(1, 1)}, deadline_s=DEADLINE_S)
        with pytest.raises(CloudMismatchError, match="cloud_hash differs"):
            scale.result()


def test_a_client_of_other_classes_or_payload_is_told(toy_cloud):
    binding = toy_bundle().manifest.binding
    with GrpcTransport(toy_cloud.address, binding, classes=7) as transport:
        future = transport.submit("predict", {"bits": ONES}, deadline_s=DEADLINE_S)
        with pytest.raises(CloudMismatchError, match="classes differ"):
            future.result()
    with GrpcTransport(toy_cloud.address, binding) as transport:
        future = transport.submit(
            "predict", {"bits": torch.ones(1, 9, dtype=torch.uint8)}, deadline_s=DEADLINE_S
        )
        with pytest.raises(CloudMismatchError, match="payload differs"):
            future.result()


def test_bytes_per_record_of_128_byte_payloads(tmp_path):
    bundle = zero_bundle()
    save_bundle(bundle, tmp_path / "zero")
    bits = torch.zeros(1, 128, dtype=torch.uint8)
    with (
        ServerProcess.start(tmp_path / "zero", plugins=["delta.bench.zero_method"], threads=1) as server,
        GrpcTransport(server.address, bundle.manifest.binding) as transport,
    ):
        futures = [transport.submit("predict", {"bits": bits}, deadline_s=3.0) for _ in range(1000)]
        up = sum(future.result().bytes_up for future in futures) + transport.handshake_bytes[0]
        assert transport.handshake_bytes[0] <= 500
        assert up / 1000 <= 141


def test_sigterm_under_load_loses_nothing(toy_dir):
    bits = [torch.full((1, 16), i % 200, dtype=torch.uint8) for i in range(600)]
    with ServerProcess.start(toy_dir, plugins=[PLUGIN], threads=1) as server:
        with GrpcTransport(server.address, toy_bundle().manifest.binding) as transport:
            futures = [transport.submit("predict", {"bits": b}, deadline_s=DEADLINE_S) for b in bits[:300]]
            futures[0].result()  # the session is open
            server.terminate()
            futures += [transport.submit("predict", {"bits": b}, deadline_s=DEADLINE_S) for b in bits[300:]]
            assert not wait(futures, timeout=30).not_done
            for b, future in zip(bits, futures, strict=True):
                if future.exception() is None:
                    assert (future.result().tensors["logits"] == 2.0 * b[0, 0].item()).all()
                else:  # submitted once the server had said that it stops
                    assert isinstance(future.exception(), CloudUnavailableError)
            assert all(future.exception() is None for future in futures[:300])
        assert server.stop() == 0


def test_a_session_outlives_its_server_once_another_listens(toy_dir, tmp_path):
    bits = {"bits": ONES}
    with ServerProcess.start(toy_dir, plugins=[PLUGIN], threads=1) as first:
        host, port = parse_listen(first.address)
        transport = GrpcTransport(first.address, toy_bundle().manifest.binding)
        transport.submit("predict", bits, deadline_s=DEADLINE_S).result()
    with transport:
        with pytest.raises(CloudUnavailableError):
            transport.submit("predict", bits, deadline_s=DEADLINE_S).result()
        options = ["--listen", f"{host}:{port}"]
        with ServerProcess.start(toy_dir, plugins=[PLUGIN], threads=1, options=options):
            for _ in range(1000):  # until the back-off has passed
                future = transport.submit("predict", bits, deadline_s=DEADLINE_S)
                if wait([future], timeout=5).done and future.exception() is None:
                    break
                assert isinstance(future.exception(), CloudUnavailableError)
                wait([transport.submit("predict", bits, deadline_s=0.05)], timeout=0.05)
            assert (future.result().tensors["logits"] == 2).all()


def test_a_killed_server_fails_what_is_pending(toy_dir):
    pause = {"seconds": torch.tensor(20.0, dtype=torch.float64)}
    with (
        ServerProcess.start(toy_dir, plugins=[PLUGIN], threads=1) as server,
        GrpcTransport(server.address, toy_bundle().manifest.binding) as transport,
    ):
        transport.submit("scale", {"x": torch.ones(1, 1)}, deadline_s=DEADLINE_S).result()
        future = transport.submit("pause", pause, deadline_s=DEADLINE_S)
        os.kill(server.pid, 9)
        with pytest.raises(CloudUnavailableError, match="cut"):
            future.result(timeout=10)


def test_the_server_ends_with_its_launcher(toy_dir):
    code = (
        "import sys, os, pathlib\n"
        "from delta_server.launch import ServerProcess\n"
        f"server = ServerProcess.start(pathlib.Path({str(toy_dir)!r}), plugins=[{PLUGIN!r}], threads=1)\n"
        "print(server.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout)
    fd = _pidfd(pid)
    if fd is not None:
        import select

        assert select.select([fd], [], [], 30)[0], "the server lives on"
        os.close(fd)


def _pidfd(pid):
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def test_a_port_in_use_is_one_clear_line(toy_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, out, err = _serve("--bundle", toy_dir, "--plugin", PLUGIN, "--listen", f"127.0.0.1:{port}")
    assert (status, out) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert "Traceback" not in err


def test_a_bad_bundle_is_one_clear_line(tmp_path):
    status, out, err = _serve("--bundle", tmp_path)
    assert (status, out) == (5, "")
    assert "manifest.json is missing" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("manifest", "text"), [("{", "is not JSON"), ('{"schema_version": 9}', "schema version 9")]
)
def test_a_bad_manifest_is_refused(tmp_path, manifest, text):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(BundleError, match=text):
        ModelStore.load(ServerConfig(bundles=(tmp_path,)))


def test_damaged_weights_are_refused_and_the_launcher_says_why(tmp_path):
    folder = save_bundle(toy_bundle(), tmp_path / "toy")
    weights = folder / "cloud.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CloudUnavailableError, match=r"status 5: .*does not match its manifest"):
        ServerProcess.start(folder, plugins=[PLUGIN])


def test_unknown_plugins_targets_and_addresses_are_refused(toy_dir, tmp_path):
    with pytest.raises(UnknownMethodError, match=r"no\.such\.module"):
        ModelStore.load(ServerConfig(bundles=(toy_dir,), plugins=("no.such.module",)))
    with pytest.raises(ConfigError, match="two bundles are named 'toy'"):
        ModelStore.load(ServerConfig(bundles=(toy_dir, toy_dir), plugins=(PLUGIN,)))
    folder = save_bundle(toy_bundle(target="other.module:build"), tmp_path / "other")
    with pytest.raises(BundleError, match="not allowed"):
        ModelStore.load(ServerConfig(bundles=(folder,), plugins=(PLUGIN,)))
    with ServerProcess.start(folder, plugins=[PLUGIN], allow=["other.module:build"]) as server:
        assert server.returncode is None
    for text in ("here", ":1", "host:", "host:70000", "host:-1", "host:²"):
        with pytest.raises(ConfigError):
            parse_listen(text)
    assert parse_listen("[::1]:5") == ("::1", 5)


def test_a_log_holds_no_contents_of_requests(toy_dir, tmp_path):
    log = tmp_path / "log"
    bits = torch.full((1, 16), 255, dtype=torch.uint8)
    with (
        ServerProcess.start(toy_dir, plugins=[PLUGIN], threads=1, log_path=log) as server,
        GrpcTransport(server.address, toy_bundle().manifest.binding) as transport,
        pytest.raises(CloudError),
    ):
        transport.submit("predict", {"bits": bits}, deadline_s=DEADLINE_S).result()
    text = log.read_text()
    assert "operation failed" in text
    assert "255" not in text
    assert io.StringIO(text).readline().startswith("{")


def test_nothing_listens_is_said_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(CloudUnavailableError, match=f"no cloud answers at {address}"):
            list_models(address, timeout_s=2)
        with GrpcTransport(address, toy_bundle().manifest.binding) as transport:
            future = transport.submit("scale", {"x": torch.ones(1, 1)}, deadline_s=5.0)
            with pytest.raises(CloudUnavailableError, match=f"no cloud answers at {address}"):
                future.result()
