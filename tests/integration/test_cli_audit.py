"""`delta audit` as a command: what it prints, writes and returns."""

import json

from delta.errors import AuditError, ConfigError, PrivacyParameterError
from tests.commands import fails


def test_an_honest_release_is_not_rejected(run, tmp_path):
    path = tmp_path / "audit.json"
    done = run("audit", "--epsilon", 4, "--samples", 1500, "--json", path)
    assert done.code == 0, done.err
    figures = json.loads(path.read_text())
    assert figures["kind"] == "audit"
    assert figures["tee"] == "simulated"
    assert (figures["samples"], figures["confidence"], figures["seed"]) == (1500, 0.95, 0)
    assert figures["claimed"]["delta"] == 1e-5
    assert abs(figures["claimed"]["epsilon"] - 4) < 1e-6
    assert 0 < figures["mu_lower_bound"] < figures["claimed"]["mu"]
    assert (figures["rejected"], figures["deviates"], figures["fault"]) == (False, False, None)
    assert set(figures["checks"]) == {"independence", "law", "retry"}
    assert all(check["passed"] for check in figures["checks"].values())
    assert figures["pair"]["reached"] == 1.0
    assert "not rejected" in done.out
    assert "That is no proof" in done.out
    assert "private" not in done.out


def test_a_caught_fault_is_success_and_a_missed_one_is_not(run):
    caught = run("audit", "--epsilon", 4, "--samples", 1500, "--fault", "no-clip", "--json", "-")
    assert caught.code == 0, caught.err
    figures = json.loads(caught.out)
    assert (figures["rejected"], figures["fault"]) == (True, "no-clip")
    missed = run("audit", "--epsilon", 1, "--samples", 100, "--fault", "batch-scale", "--json", "-")
    assert missed.code == 9
    assert "missed at n = 100" in missed.err.strip().splitlines()[-1]


def test_the_published_codes_mechanism_fails(run):
    done = run("audit", "--mechanism", "paper-code", "--samples", 500)
    assert done.code == 9
    assert "rejected" in done.out
    assert done.err.strip().splitlines()[-1].startswith("error: the audit fails: rejected")
    assert AuditError.__name__ == "AuditError"


def test_a_bundle_is_audited(run, bundle_dirs):
    done = run("audit", "--bundle", bundle_dirs["noise"], "--samples", 300, "--json", "-")
    assert done.code == 0, done.err
    assert json.loads(done.out)["pair"]["kind"] == "searched"


def test_a_training_is_audited_in_one_run(run):
    done = run("audit", "--trained", "--epsilon", 8, "--canaries", 20, "--epochs", 1, "--json", "-")
    assert done.code == 0, done.err
    figures = json.loads(done.out)
    assert (figures["kind"], figures["rejected"], figures["samples"]) == ("audit", False, 20)
    assert figures["one_run"]["guesses"] == 10
    assert figures["claimed"]["epsilon"] == 8.0


def test_faults_of_use_come_before_any_work(run, bundle_dirs, tmp_path):
    fails(run("audit", "--bundle", bundle_dirs["none"]), PrivacyParameterError, "noise: none")
    fails(run("audit", "--bundle", bundle_dirs["noise"], "--epsilon", 2), ConfigError, "its own ε")
    fails(run("audit", "--fault", "gremlin"), ConfigError, "no-clip", "batch-scale")
    fails(run("audit", "--mechanism", "other"), ConfigError, "paper-code")
    fails(run("audit", "--mechanism", "paper-code", "--fault", "no-clip"), ConfigError, "stands alone")
    fails(run("audit", "--epsilon", "none"), ConfigError, "no claim")
    fails(run("audit", "--epsilon", 60, "--samples", 1000), ConfigError, "unauditable", "needed")
    fails(run("audit", "--trained", "--fault", "no-clip"), ConfigError, "--trained")
