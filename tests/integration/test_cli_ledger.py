"""`delta ledger` and the ledger of `delta infer`: what is spent is shown, kept, and refused when it is too much."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from delta_server.launch import ServerProcess
from PIL import Image

from delta.bundle.store import save_bundle
from delta.data.records import DataSplits
from delta.errors import (
    BudgetExceededError,
    CloudUnavailableError,
    ConfigError,
    InputError,
    LedgerError,
    PrivacyParameterError,
)
from delta.privacy.disk_ledger import DiskLedger
from delta.privacy.events import GaussianRelease, NonPrivateRelease, RandomizedResponseLabel
from delta.privacy.gaussian import epsilon_of, mu_of
from delta.privacy.ledger import Debit
from delta.privacy.ledger_file import read_ledger
from tests.commands import fails
from tests.trained import Trained

IMAGES = 6


@pytest.fixture(scope="module")
def images(digits: DataSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(IMAGES):
        Image.fromarray((255 * digits.test.images[i, 0]).round().byte().numpy()).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def cloud(bundle_dirs: dict[str, Path]) -> Iterator[ServerProcess]:
    """Serves the bundle without noise and the one at ε = 8."""
    with ServerProcess.start([bundle_dirs["none"], bundle_dirs["noise"]], threads=1) as process:
        yield process


@pytest.fixture
def noise(trained: Trained, tmp_path: Path) -> Path:
    return save_bundle(trained.bundles["noise"], tmp_path / "bundle")


@pytest.fixture
def plain(trained: Trained, tmp_path: Path) -> Path:
    return save_bundle(trained.bundles["none"], tmp_path / "bundle")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "one.jsonl"
    with DiskLedger(path, budget=3.0) as opened:
        opened.debit([debit(i) for i in range(4)])
        opened.debit([debit(4, "bo"), Debit("bo", "f" * 64, RandomizedResponseLabel(1.0)), debit(5, "")])
    return path


def debit(number, subject="ada", mu=1.0):
    return Debit(subject, f"{number:064x}", NonPrivateRelease() if mu is None else GaussianRelease(mu))


# delta infer


def test_infer_enters_what_it_sends_once(run, cloud, noise, images, tmp_path):
    call = ("infer", images, "--bundle", noise, "--cloud", cloud.address, "--json", "-")
    first, second = run(*call), run(*call)
    assert (first.code, first.err, second.code, second.err) == (0, "", 0, "")
    path = tmp_path / "ledger.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    mu = mu_of(epsilon=8.0, delta=1e-5)
    entries = read_ledger(path).entries()
    assert len({entry.release_id for entry in entries}) == IMAGES
    for done in (first, second):
        privacy = json.loads(done.out)["privacy"]
        assert privacy["joint_mu"] == pytest.approx(mu * math.sqrt(IMAGES))
        assert privacy["epsilon"] == pytest.approx(epsilon_of(mu=privacy["joint_mu"], delta=1e-5))
        assert (privacy["releases"], privacy["budget"], privacy["left_mu"]) == (IMAGES, "unlimited", None)
        assert (privacy["subject"], privacy["ledger"]) == ("", str(path))
    named = run(*call[:-2], "--subject", "ada", "--ledger", tmp_path / "other" / "mine.jsonl")
    assert named.code == 0
    assert f"subject ada, {IMAGES} releases, μ = " in named.out
    assert {entry.subject for entry in read_ledger(tmp_path / "other" / "mine.jsonl").entries()} == {"ada"}
    assert len(read_ledger(path).entries()) == IMAGES


def test_over_budget_the_main_model_answers_alone_and_says_so(run, cloud, noise, images, tmp_path):
    """A budget of two batches of two: the third falls back, before anything of it is sent."""
    mu = mu_of(epsilon=8.0, delta=1e-5)
    call = ("infer", images, "--bundle", noise, "--cloud", cloud.address, "--batch", 2)
    done = run(*call, "--budget", f"mu={mu * 2}", "--json", "-")
    assert done.code == 0
    assert done.err.startswith("warning: the main model answered alone (budget): a subject has spent")
    assert len(done.err.splitlines()) == 1
    figures = json.loads(done.out)
    assert [(row["used_cloud"], row["reason"]) for row in figures["records"]] == [
        *[(True, "")] * 4,
        *[(False, "budget")] * 2,
    ]
    assert figures["privacy"]["joint_mu"] == pytest.approx(mu * 2)
    assert figures["privacy"]["left_mu"] == pytest.approx(0.0, abs=1e-6)
    full = run(*call, "--json", "-", "--ledger", tmp_path / "unlimited.jsonl")
    assert figures["bytes_per_record"]["up"] < json.loads(full.out)["bytes_per_record"]["up"]
    # The budget is kept; what was sent may be asked again.
    again = run(*call)
    assert again.out.count("main + cloud") == 4
    assert again.out.count("main alone (budget)") == 2
    assert "budget μ = " in again.out
    report = tmp_path / "report.json"
    fails(
        run(*call, "--require-cloud", "--json", report), BudgetExceededError, "(budget)", "raise the budget"
    )
    assert not report.exists()
    raised = run(*call, "--budget", "unlimited", "--require-cloud")
    assert (raised.code, raised.err) == (0, "")
    assert raised.out.count("main + cloud") == 6


def test_a_subject_is_charged_alone(run, cloud, noise, images):
    call = ("infer", images, "--bundle", noise, "--cloud", cloud.address, "--require-cloud")
    mu = mu_of(epsilon=8.0, delta=1e-5) * math.sqrt(IMAGES) * (1 + 1e-9)
    assert run(*call, "--subject", "ada", "--budget", f"mu={mu}").code == 0
    assert run(*call, "--subject", "bo").code == 0
    assert run(*call, "--subject", "ada").code == 0


def test_without_noise_a_budget_is_refused_before_anything_is_sent(run, cloud, plain, images, tmp_path):
    call = ("infer", images, "--bundle", plain, "--cloud", cloud.address)
    before = cloud.log_text()
    fails(run(*call, "--budget", "mu=5"), PrivacyParameterError, "without noise", "--budget unlimited")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with DiskLedger(tmp_path / "ledger.jsonl", budget=5.0):
        pass
    fails(run(*call), PrivacyParameterError, "without noise", "mu=5.0", "ledger.jsonl")
    assert cloud.log_text() == before
    assert read_ledger(tmp_path / "ledger.jsonl").entries() == ()
    done = run(*call, "--budget", "unlimited")
    assert (done.code, done.err) == (0, "")
    assert f"{IMAGES} releases, no claim" in done.out
    again = run(*call, "--json", "-")
    privacy = json.loads(again.out)["privacy"]
    assert (privacy["joint_mu"], privacy["epsilon"], privacy["releases"]) == (None, None, IMAGES)
    assert all(
        isinstance(e.event, NonPrivateRelease) for e in read_ledger(tmp_path / "ledger.jsonl").entries()
    )


def test_without_a_cloud_no_ledger_is_made(run, noise, images, tmp_path):
    done = run("infer", images, "--bundle", noise, "--budget", "mu=0.1", "--json", "-")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["privacy"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "noise.key"]


def test_an_absent_cloud_is_charged_all_the_same(run, noise, images, tmp_path, cloud):
    """Nothing tells the private side that nothing arrived: a debit comes before the sending."""
    call = ("infer", images, "--bundle", noise, "--cloud", "127.0.0.1:1", "--require-cloud")
    fails(run(*call), CloudUnavailableError, "unreachable")
    assert len(read_ledger(tmp_path / "ledger.jsonl").entries()) == IMAGES
    done = run("infer", images, "--bundle", noise, "--cloud", cloud.address)
    assert done.code == 0
    assert len(read_ledger(tmp_path / "ledger.jsonl").entries()) == IMAGES


def test_a_ledger_in_use_damaged_or_unwritable_sends_nothing(run, cloud, noise, images, tmp_path):
    call = ("infer", images, "--bundle", noise, "--cloud", cloud.address)
    path = tmp_path / "ledger.jsonl"
    before = cloud.log_text()
    with DiskLedger(path):
        fails(run(*call), LedgerError, "in use", "name another")
    path.write_bytes(path.read_bytes().replace(b"unlimited", b"unlimitad"))
    fails(run(*call), LedgerError, "damaged in line 1")
    fails(run(*call, "--ledger", images / "0.png" / "x"), LedgerError, "cannot be opened")
    fails(run(*call, "--ledger", noise / "manifest.json"), LedgerError)
    assert cloud.log_text() == before


def test_a_budget_that_is_none(run, noise, images):
    fails(run("infer", images, "--bundle", noise, "--budget", "lots"), ConfigError, "lots", "'mu=2.5'")


# delta ledger


def test_show(run, ledger):
    done = run("ledger", "show", ledger)
    assert (done.code, done.err) == (0, "")
    rows = [line for line in done.out.splitlines() if "│" in line]
    assert [
        word in row for word, row in zip(("ada", "bo", "(unknown, charged as one"), rows, strict=True)
    ] == [True] * 3
    assert "budget of a subject: μ = 3, " in done.out
    with DiskLedger(ledger):  # a writer is no obstacle
        figures = json.loads(run("ledger", "show", ledger, "--json", "-", "--delta", "1e-6").out)
    assert figures["budget"] == 3.0
    assert figures["budget_epsilon"] == pytest.approx(epsilon_of(mu=3.0, delta=1e-6))
    assert figures["delta"] == 1e-6
    ada, bo, unknown = figures["subjects"]
    assert ada == {
        "subject": "ada",
        "mu": 2.0,
        "label_epsilon": 0.0,
        "joint_mu": 2.0,
        "epsilon": epsilon_of(mu=2.0, delta=1e-6),
        "releases": 4,
        "labels": 0,
        "left_mu": math.sqrt(5.0),
    }
    assert (bo["mu"], bo["label_epsilon"], bo["labels"]) == (1.0, 1.0, 1)
    assert bo["joint_mu"] > 1.0
    assert (unknown["subject"], unknown["releases"]) == ("", 1)


def test_show_without_a_claim_and_of_many_subjects(run, tmp_path):
    path = tmp_path / "ledger.jsonl"
    with DiskLedger(path) as opened:
        opened.debit([debit(0, mu=None), *(debit(i, f"subject-{i}") for i in range(1, 61))])
    done = run("ledger", "show", path)
    assert done.code == 0
    assert done.out.count("subject-") == 49
    assert "no claim" in done.out.splitlines()[4]
    assert "and 11 subjects" in done.out
    figures = json.loads(run("ledger", "show", path, "--json", "-").out)
    assert len(figures["subjects"]) == 61
    assert (figures["subjects"][0]["mu"], figures["subjects"][0]["epsilon"]) == (None, None)
    assert (figures["budget"], figures["subjects"][1]["left_mu"]) == ("unlimited", None)


def test_export_and_replay(run, ledger, tmp_path):
    out, into = tmp_path / "out.jsonl", tmp_path / "into.jsonl"
    done = run("ledger", "export", ledger, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert "7 entries" in done.out
    assert read_ledger(out).entries() == read_ledger(ledger).entries()
    with DiskLedger(into, budget=0.5) as opened:
        opened.debit([debit(99, mu=0.5)])
    done = run("ledger", "replay", ledger, out, "--into", into)
    assert (done.code, done.err) == (0, "")
    assert "7 new entries, 8 in all" in done.out
    assert read_ledger(into).budget == 0.5
    assert "0 new entries, 8 in all" in run("ledger", "replay", ledger, "--into", into).out


def test_faults_of_the_ledger_command(run, ledger, tmp_path):
    absent = tmp_path / "absent.jsonl"
    fails(run("ledger", "show", absent), LedgerError, "absent.jsonl", "cannot be read")
    fails(run("ledger", "show", ledger, "--delta", "1"), PrivacyParameterError, "delta")
    fails(run("ledger", "show", ledger, "--json", tmp_path), InputError, "cannot be written")
    fails(run("ledger", "export", ledger, "--out", ledger), LedgerError, "exists")
    fails(run("ledger", "export", absent, "--out", tmp_path / "out"), LedgerError, "cannot be read")
    fails(run("ledger", "replay", ledger, absent, "--into", tmp_path / "new"), LedgerError, "absent.jsonl")
    with DiskLedger(ledger):
        fails(run("ledger", "replay", ledger, "--into", ledger), LedgerError, "in use")
    fails(run("ledger", "replay", ledger), ConfigError, "--into")
    (tmp_path / "thesis.txt").write_text("mine")
    fails(run("ledger", "show", tmp_path / "thesis.txt"), LedgerError, "no ledger")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "thesis.txt"]
