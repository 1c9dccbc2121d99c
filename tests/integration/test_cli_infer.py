"""`delta infer`, `delta serve` and `delta export` as commands: results, and one clear line for every fault.

Two real processes prove that the command itself works. The many faults run in this process, through the
command's own entry point: importing torch anew takes seconds.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from delta_server.launch import ServerProcess
from PIL import Image

from delta.bundle.store import save_bundle
from delta.data.records import DataSplits
from delta.errors import (
    BundleError,
    CloudUnavailableError,
    ConfigError,
    InputError,
    UnknownMethodError,
)
from delta.release.noise import NoiseKey
from tests.commands import Outcome, fails

DELTA = [sys.executable, "-m", "delta.cli"]


@pytest.fixture(scope="module")
def images(digits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six greyscale digits, one of them in a folder inside."""
    root = tmp_path_factory.mktemp("images")
    (root / "more").mkdir()
    for i in range(6):
        pixels = (255 * digits.test.images[i, 0]).round().byte().numpy()
        Image.fromarray(pixels).save(root / ("more" if i == 5 else ".") / f"digit-{i}.png")
    return root


@pytest.fixture(scope="module")
def server(bundle_dirs: dict[str, Path]) -> Iterator[ServerProcess]:
    """A cloud of `none`, started from the whole bundle, of which it reads the cloud part."""
    with ServerProcess.start(bundle_dirs["none"], threads=1) as process:
        yield process


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _warns(outcome: Outcome, reason: str) -> None:
    """A result, and one line that says why the cloud has no part in it."""
    assert outcome.code == 0
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith(f"warning: the main model answered alone ({reason})")
    assert f"main alone ({reason})" in outcome.out


# Real processes


def test_serve_and_infer_as_two_commands(bundle_dirs, images, tmp_path):
    """`delta serve` on a free port, `delta infer` of a folder and a file with a table and with --json."""
    port_file, report = tmp_path / "port", tmp_path / "out" / "report.json"
    serve = subprocess.Popen(
        [
            *(*DELTA, "serve", "--bundle", str(bundle_dirs["none"]), "--listen", "127.0.0.1:0"),
            *("--threads", "1", "--port-file", str(port_file)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serve.stdout is not None
        ready = serve.stdout.readline()
        address = port_file.read_text().strip()
        assert address in ready
        command = [*DELTA, "infer", str(images), str(images / "digit-0.png"), "--bundle"]
        command += [str(bundle_dirs["none"]), "--cloud", address, "--batch", "4", "--json", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        serve.terminate()
        _, log = serve.communicate(timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert serve.returncode == 0
    figures = json.loads(report.read_text())
    assert [Path(row["path"]).name for row in figures["records"]] == [
        *(f"digit-{i}.png" for i in range(6)),
        "digit-0.png",
    ]
    assert all(row["used_cloud"] and row["reason"] == "" for row in figures["records"])
    assert figures["records"][0]["label"] == figures["records"][6]["label"]
    assert figures["tee"] == "simulated"
    assert figures["bytes_per_record"]["up"] >= 32
    assert min(figures["ms_per_record"].values()) > 0
    for row in figures["records"]:
        assert row["path"] in done.stdout
    assert done.stdout.count("main + cloud") == 7
    assert [path.name for path in report.parent.iterdir()] == ["report.json"]
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert {"listening", "stopped"} <= set(events)
    assert "digit" not in log


def test_a_fault_of_a_real_process_is_one_line_too(images, tmp_path):
    command = [*DELTA, "infer", str(images), "--bundle", str(tmp_path / "absent")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    fails(Outcome(done.returncode, done.stdout, done.stderr), BundleError, "absent")


# Results


def test_json_on_standard_output_is_nothing_but_json(run, bundle_dirs, images, server):
    done = run("infer", images, "--bundle", bundle_dirs["none"], "--cloud", server.address, "--json", "-")
    assert (done.code, done.err) == (0, "")
    figures = json.loads(done.out)
    assert len(figures["records"]) == 6
    assert {row["label"] for row in figures["records"]} <= {str(digit) for digit in range(10)}


def test_without_a_cloud_the_main_model_answers_and_nothing_is_wrong(run, bundle_dirs, images):
    done = run("infer", images, "--bundle", bundle_dirs["none"])
    assert (done.code, done.err) == (0, "")
    assert done.out.count("main alone (no-cloud)") == 6


def test_the_noise_key_is_drawn_once_and_used_again(run, trained, images, tmp_path):
    folder = save_bundle(trained.bundles["noise"], tmp_path / "bundle")
    first = run("infer", images, "--bundle", folder, "--json", "-")
    key = (tmp_path / "noise.key").read_bytes()
    second = run("infer", images, "--bundle", folder, "--json", "-")
    assert (first.code, second.code) == (0, 0)
    assert (tmp_path / "noise.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "noise.key").read_bytes() == key
    assert not (folder / "noise.key").exists()


def test_a_bundle_without_noise_needs_no_key(run, trained, images, tmp_path):
    folder = save_bundle(trained.bundles["none"], tmp_path / "bundle")
    assert run("infer", images, "--bundle", folder).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_export_writes_what_a_cloud_may_have_and_no_more(run, bundle_dirs, tmp_path):
    done = run("export", "--bundle", bundle_dirs["noise"], "--out", tmp_path / "cloud")
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "cloud").iterdir()) == [
        "cloud.safetensors",
        "manifest.json",
    ]
    again = run("export", "--bundle", tmp_path / "cloud", "--out", tmp_path / "cloud")
    assert again.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud"]


# The cloud is absent, hung, or another one: a result with a warning, or with --require-cloud an error


def test_an_unreachable_cloud(run, bundle_dirs, images, tmp_path):
    address = f"127.0.0.1:{_free_port()}"
    call = ("infer", images, "--bundle", bundle_dirs["none"], "--cloud", address)
    _warns(run(*call), "unreachable")
    report = tmp_path / "report.json"
    fails(run(*call, "--require-cloud", "--json", report), CloudUnavailableError, address)
    assert list(tmp_path.iterdir()) == []


def test_a_hung_cloud(run, bundle_dirs, images, silent_port):
    address = f"127.0.0.1:{silent_port}"
    done = run("infer", images, "--bundle", bundle_dirs["none"], "--cloud", address, "--deadline", "0.3")
    assert done.code == 0
    assert len(done.err.strip().splitlines()) == 1
    assert done.err.startswith("warning: ")
    assert "main alone" in done.out


def test_a_cloud_of_another_model(run, bundle_dirs, images, server):
    call = ("infer", images, "--bundle", bundle_dirs["principal"], "--cloud", server.address)
    _warns(run(*call), "mismatch")
    fails(run(*call, "--require-cloud"), CloudUnavailableError, "mismatch")


# Faults of the input


def test_damaged_and_unfit_images(run, bundle_dirs, images, tmp_path):
    good = images / "digit-0.png"
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "short.png").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "zero.png").write_bytes(b"")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes").mkdir()
    report = tmp_path / "report.json"
    for name, word in (
        ("text.png", "not an image"),
        ("short.png", "truncated"),
        ("zero.png", "not an image"),
        ("colour.png", "greyscale"),
        ("absent.png", "no such file"),
        ("empty", "no images"),
    ):
        done = run("infer", good, tmp_path / name, "--bundle", bundle_dirs["none"], "--json", report)
        fails(done, InputError, name, word)
        assert not report.exists()
        assert done.out == ""


def test_a_report_that_cannot_be_written(run, bundle_dirs, images, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("infer", images, "--bundle", bundle_dirs["none"], "--json", tmp_path / "file" / "report.json")
    fails(done, InputError, "report.json", "cannot be written")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Faults of the bundle


def test_bundles_that_are_none(run, bundle_dirs, images, tmp_path):
    def spoiled(name: str) -> Path:
        return Path(shutil.copytree(bundle_dirs["none"], tmp_path / name))

    swapped = spoiled("swapped")
    shutil.copy(bundle_dirs["principal"] / "cloud.safetensors", swapped / "cloud.safetensors")
    private = spoiled("private")
    shutil.copy(bundle_dirs["svd"] / "private.safetensors", private / "private.safetensors")
    facts = spoiled("facts")
    for name in ("private.json", "private.safetensors"):
        shutil.copy(bundle_dirs["svd"] / name, facts / name)
    edited = spoiled("edited")
    manifest = json.loads((edited / "manifest.json").read_text())
    manifest["release"]["sigma"] = 9.0
    (edited / "manifest.json").write_text(json.dumps(manifest))
    newer = spoiled("newer")
    (newer / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    cut = spoiled("cut")
    (cut / "manifest.json").write_text((cut / "manifest.json").read_text()[:200])
    cloud_only = spoiled("cloud-only")
    (cloud_only / "private.json").unlink()
    (cloud_only / "private.safetensors").unlink()
    for folder, word in (
        (tmp_path / "absent", "manifest.json is missing"),
        (swapped, "does not match its manifest"),
        (private, "does not match its manifest"),
        (facts, "train the bundle again"),
        (edited, "release_hash"),
        (newer, "schema version"),
        (cut, "not JSON"),
        (cloud_only, "only the cloud part"),
    ):
        fails(run("infer", images, "--bundle", folder), BundleError, word)
    before = sorted(tmp_path.iterdir())
    for folder in (tmp_path / "absent", swapped, edited, cut):
        fails(run("export", "--bundle", folder, "--out", tmp_path / "out"), BundleError)
        fails(run("serve", "--bundle", folder, "--listen", "127.0.0.1:0"), BundleError)
    assert sorted(tmp_path.iterdir()) == before


def test_export_never_overwrites_what_is_no_bundle(run, bundle_dirs, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    fails(run("export", "--bundle", bundle_dirs["none"], "--out", tmp_path), BundleError, "not a bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# Faults of the options


def test_a_noise_key_that_is_none(run, bundle_dirs, images, tmp_path):
    short, open_to_all = tmp_path / "short.key", tmp_path / "open.key"
    short.write_bytes(b"short")
    short.chmod(0o600)
    NoiseKey.generate().save(open_to_all)
    open_to_all.chmod(0o644)
    call = ("infer", images, "--bundle", bundle_dirs["noise"], "--noise-key")
    fails(run(*call, short), ConfigError, "32 bytes")
    fails(run(*call, open_to_all), ConfigError, "chmod 600")
    fails(run(*call, tmp_path / "absent.key"), ConfigError, "is not there")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cloud", "nonsense"], ["nonsense", "HOST:PORT"]),
        (["--cloud", "127.0.0.1:99999"], ["HOST:PORT"]),
        (["--cloud", "127.0.0.1:0"], ["port"]),
        (["--batch", "0"], ["--batch"]),
        (["--batch", "many"], ["--batch"]),
        (["--deadline", "-1"], ["--deadline"]),
        (["--colour"], ["--colour"]),
    ],
)
def test_wrong_options_of_infer(run, bundle_dirs, images, arguments, words):
    fails(run("infer", images, "--bundle", bundle_dirs["none"], *arguments), ConfigError, *words)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--listen", "nonsense"], ConfigError, ["HOST:PORT"]),
        (["--listen", "127.0.0.1:0", "--device", "tpu"], ConfigError, ["device", "tpu"]),
        (
            ["--listen", "127.0.0.1:0", "--max-batch", "0", "--queue", "0"],
            ConfigError,
            ["max_batch", "queue"],
        ),
        (["--listen", "127.0.0.1:0", "--threads", "0"], ConfigError, ["threads"]),
        (["--listen", "127.0.0.1:0", "--plugin", "no_such_module"], UnknownMethodError, ["no_such_module"]),
        (["--listen", "203.0.113.1:0"], ConfigError, ["cannot listen"]),
    ],
)
def test_wrong_options_of_serve(run, bundle_dirs, arguments, error, words):
    fails(run("serve", "--bundle", bundle_dirs["none"], *arguments), error, *words)


def test_a_port_in_use(run, bundle_dirs, silent_port):
    done = run("serve", "--bundle", bundle_dirs["none"], "--listen", f"127.0.0.1:{silent_port}")
    fails(done, ConfigError, f"{silent_port}", "in use")


def test_two_bundles_of_one_name(run, bundle_dirs):
    twice = ["--bundle", bundle_dirs["none"]] * 2
    fails(run("serve", *twice, "--listen", "127.0.0.1:0"), ConfigError, "two bundles")


def test_missing_arguments_and_unknown_commands(run, images):
    fails(run("infer", images), ConfigError, "--bundle", "delta infer --help")
    fails(run("infer", "--bundle", "x"), ConfigError, "paths")
    fails(run("serve"), ConfigError, "--bundle")
    fails(run("divine"), ConfigError, "divine")


def test_nothing_is_sent_where_the_figures_could_not_be_written(run, server, bundle_dirs, images, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    call = ("infer", images, "--bundle", bundle_dirs["none"], "--cloud", server.address, "--json")
    for path in (tmp_path / "taken", tmp_path / "file" / "figures.json"):
        before = server.log_text()
        fails(run(*call, path), InputError, "cannot be written")
        assert server.log_text() == before
