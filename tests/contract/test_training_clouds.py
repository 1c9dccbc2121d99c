"""One contract for every training cloud: the one of this process, and a real server over gRPC."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
import torch
from delta_client import GrpcTrainingCloud, GrpcTransport, fetch_manifest, list_models
from delta_server.launch import ServerProcess

from delta.bundle.store import weights_hash
from delta.errors import (
    CloudAnswerError,
    CloudDeniedError,
    CloudMismatchError,
    CloudOverloadedError,
    CloudUnavailableError,
    RequestError,
)
from delta.methods.delta.cloud import build_cloud_model
from delta.training.checkpoint import FitStore
from delta.training.cloud_trainer import held_out_logits
from delta.training.config import FitConfig, LabelConfig
from delta.training.inprocess import InProcessTrainingCloud
from tests.training_jobs import (
    CLASSES,
    HELD_OUT,
    LIKE,
    RECORDS,
    chunks_of,
    dataset_spec,
    job_spec,
    manifest_of,
    release_config,
    stored_releases,
)

KINDS = ["in-process", "grpc"]
RELEASES = stored_releases()
STEPS = 6


def name() -> str:
    return secrets.token_hex(16)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ServerProcess.start(training=tmp_path_factory.mktemp("store"), threads=1) as process:
        yield process


@pytest.fixture(scope="module")
def open_cloud(request, tmp_path_factory):
    """Opens a cloud of a kind, of the same tenant each time; all are closed at the end."""
    token, opened, local = secrets.token_bytes(32), [], {}

    def make(kind):
        if kind == "in-process":
            if kind not in local:  # what it stores lives as long as it does
                store = FitStore(tmp_path_factory.mktemp("checkpoints"), "test")
                local[kind] = InProcessTrainingCloud(store=store)
            return local[kind]
        cloud = GrpcTrainingCloud(request.getfixturevalue("server").address, token)
        opened.append(cloud)
        return cloud

    yield make
    for cloud in opened:
        cloud.close()


@pytest.fixture(params=KINDS)
def cloud(request, open_cloud):
    return open_cloud(request.param)


@pytest.fixture(params=["in-process", pytest.param("grpc", marks=pytest.mark.slow)])
def training_cloud(request, open_cloud):
    """For tests of what a training does: over gRPC each starts a process of its own, which takes seconds."""
    return open_cloud(request.param)


def uploaded(cloud, spec=None, releases=RELEASES):
    """A complete data set; its name."""
    dataset = name()
    spec = spec or dataset_spec()
    assert cloud.create(dataset, spec) == 0
    assert cloud.upload(dataset, chunks_of(releases)) == spec.records
    return dataset


def done(cloud, dataset, spec=None):
    """A finished job; its name."""
    job = name()
    cloud.start(dataset, job, spec or job_spec())
    states = list(cloud.watch(dataset, job))
    assert states[-1].state == "done", states[-1]
    return job


class Run:
    """A one-shot training from its beginning to its results.

    Attributes:
        cloud, dataset, job: where it is.
        states: as watched.
        logits, weights: as fetched.
        bytes: up and down, of each call but the watch, where the states that are told are a matter of time.
    """

    spec = job_spec(seed=99)  # of no other test: what is trained already is not trained again

    def __init__(self, cloud):
        self.cloud, self.dataset, self.job = cloud, name(), name()
        self.bytes = []
        self._counted(lambda: cloud.create(self.dataset, dataset_spec()))
        self._counted(lambda: cloud.upload(self.dataset, chunks_of(RELEASES)))
        self._counted(lambda: cloud.start(self.dataset, self.job, self.spec))
        self.states = list(cloud.watch(self.dataset, self.job))
        self.logits = self._counted(lambda: cloud.held_out_logits(self.dataset, self.job, records=HELD_OUT))
        self.weights = self._counted(lambda: cloud.fetch(self.dataset, self.job, like=LIKE))

    def _counted(self, call):
        before = self.cloud.bytes_up, self.cloud.bytes_down
        value = call()
        self.bytes.append((self.cloud.bytes_up - before[0], self.cloud.bytes_down - before[1]))
        return value


@pytest.fixture(scope="module")
def runs(open_cloud):
    """A finished one-shot training in each kind of cloud."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Run(open_cloud(kind))
        return made[kind]

    return get


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs(request.param)


# Data sets


def test_creating_again_says_how_much_is_stored_and_changes_nothing(cloud):
    dataset, spec = name(), dataset_spec()
    assert cloud.create(dataset, spec) == 0
    assert cloud.create(dataset, spec) == 0
    cloud.upload(dataset, chunks_of(RELEASES, stop=32))
    assert cloud.create(dataset, spec) == 32


def test_creating_again_otherwise_is_a_mismatch(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    for other in (
        dataset_spec(records=RECORDS + 1),
        dataset_spec(release=release_config(sigma=1.0)),
        dataset_spec(labels=LabelConfig(kind="randomized-response", epsilon=1.0)),
    ):
        with pytest.raises(CloudMismatchError, match="another specification"):
            cloud.create(dataset, other)
    assert cloud.create(dataset, dataset_spec()) == 0


@pytest.mark.parametrize("bad", ["", "x", "../" * 10 + "ab", "A" * 32])
def test_a_name_of_another_form_is_refused(cloud, bad):
    good = name()
    for call in (
        lambda: cloud.create(bad, dataset_spec()),
        lambda: cloud.delete(bad),
        lambda: cloud.start(good, bad, job_spec()),
        lambda: list(cloud.watch(bad, good)),
        lambda: cloud.cancel(good, bad),
        lambda: cloud.fetch(bad, bad, like=LIKE),
    ):
        with pytest.raises(RequestError, match="hex"):
            call()


def test_an_upload_in_two_goes_equals_one(run):
    cloud, dataset = run.cloud, name()
    cloud.create(dataset, dataset_spec())
    assert cloud.upload(dataset, chunks_of(RELEASES, stop=20)) == 20
    assert cloud.upload(dataset, chunks_of(RELEASES, start=20)) == RECORDS
    job = done(cloud, dataset, run.spec)
    assert weights_hash(cloud.fetch(dataset, job, like=LIKE)) == weights_hash(run.weights)


def test_what_is_stored_already_is_passed_over(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    cloud.upload(dataset, chunks_of(RELEASES, stop=20))
    assert cloud.upload(dataset, chunks_of(RELEASES, stop=10)) == 20
    assert cloud.upload(dataset, chunks_of(RELEASES)) == RECORDS
    assert cloud.upload(dataset, chunks_of(RELEASES)) == RECORDS


def test_an_upload_of_nothing_stores_nothing(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    assert cloud.upload(dataset, []) == 0


@pytest.mark.parametrize("part", ["bits", "labels", "held_out"])
def test_what_is_stored_already_must_be_the_same(cloud, part):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    cloud.upload(dataset, chunks_of(RELEASES, stop=20))
    open_rows = (~RELEASES.held_out).nonzero().flatten()
    row = int(open_rows[0])
    changed = getattr(RELEASES, part).clone()
    changed[row] = {"bits": changed[row] ^ 1, "labels": (changed[row] + 1) % CLASSES, "held_out": True}[part]
    others = {part: changed}
    if part == "held_out":
        others["labels"] = RELEASES.labels.masked_fill(changed, 0)
    with pytest.raises(RequestError, match="differ"):
        cloud.upload(dataset, chunks_of(replace(RELEASES, **others), stop=20))
    assert cloud.create(dataset, dataset_spec()) == 20


def test_a_gap_is_refused_and_what_was_stored_stays(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    cloud.upload(dataset, chunks_of(RELEASES, stop=16))
    with pytest.raises(RequestError, match="16"):
        cloud.upload(dataset, chunks_of(RELEASES, start=32))
    assert cloud.create(dataset, dataset_spec()) == 16


def test_records_beyond_the_data_set_are_refused(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec(records=40))
    with pytest.raises(RequestError, match="40"):
        cloud.upload(dataset, chunks_of(RELEASES))
    assert cloud.create(dataset, dataset_spec(records=40)) <= 40


def test_a_fault_of_the_caller_ends_the_upload_with_that_fault(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())

    def chunks():
        yield from chunks_of(RELEASES, stop=16)
        raise LookupError("the next batch is missing")

    with pytest.raises(LookupError, match="next batch"):
        cloud.upload(dataset, chunks())
    assert cloud.create(dataset, dataset_spec()) in (0, 16)
    assert cloud.upload(dataset, chunks_of(RELEASES)) == RECORDS


# Jobs


def test_a_job_needs_the_whole_data_set(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    cloud.upload(dataset, chunks_of(RELEASES, stop=16))
    with pytest.raises(RequestError, match=f"16.*{RECORDS}"):
        cloud.start(dataset, name(), job_spec())


def test_starting_again_changes_nothing_and_otherwise_is_a_mismatch(run):
    run.cloud.start(run.dataset, run.job, run.spec)
    with pytest.raises(CloudMismatchError, match="another specification"):
        run.cloud.start(run.dataset, run.job, job_spec(seed=8))
    assert list(run.cloud.watch(run.dataset, run.job))[-1].state == "done"
    assert weights_hash(run.cloud.fetch(run.dataset, run.job, like=LIKE)) == weights_hash(run.weights)


def test_a_watch_ends_with_the_final_state_and_steps_never_fall(run):
    *before, last = run.states
    steps = [state.step for state in run.states]
    assert steps == sorted(steps)
    assert {state.state for state in before} <= {"waiting", "running"}
    total = 2 * -(-(RECORDS - HELD_OUT) // 16)
    assert (last.state, last.step, last.steps) == ("done", total, total)
    assert last.loss is not None
    assert list(run.cloud.watch(run.dataset, run.job))[-1] == last


def test_the_logits_are_those_of_the_weights_on_the_held_out_bits(run):
    model = build_cloud_model(run.spec.architecture, dataset_spec().release)
    model.load_state_dict(run.weights)
    with torch.inference_mode():
        own = model.eval()(RELEASES.bits[RELEASES.held_out])
    assert run.logits.shape == (HELD_OUT, CLASSES)
    assert torch.allclose(run.logits, own, atol=1e-5)


def test_the_same_bits_and_seed_give_the_same_weights_and_logits_in_every_cloud(runs):
    here, there = map(runs, KINDS)
    assert weights_hash(here.weights) == weights_hash(there.weights)
    assert torch.allclose(here.logits, there.logits, atol=1e-5)


@pytest.mark.parametrize("records", [0, HELD_OUT - 1, HELD_OUT + 1])
def test_logits_of_another_number_of_records_are_a_bad_answer(run, records):
    with pytest.raises(CloudAnswerError, match=f"{records} rows"):
        run.cloud.held_out_logits(run.dataset, run.job, records=records)


@pytest.mark.parametrize("change", ["one less", "one more", "another name", "another shape", "another type"])
def test_weights_of_another_model_are_a_bad_answer(run, change):
    like, first = dict(LIKE), min(LIKE)
    tensor = like.pop(first)
    like |= {
        "one less": {},
        "one more": {first: tensor, "more": torch.empty(0)},
        "another name": {f"{first}s": tensor},
        "another shape": {first: tensor.flatten()[None]},
        "another type": {first: tensor.view(torch.int32)},
    }[change]
    with pytest.raises(CloudAnswerError):
        run.cloud.fetch(run.dataset, run.job, like=like)


def test_no_held_out_record_gives_no_logits(training_cloud):
    cloud = training_cloud
    dataset = uploaded(cloud, releases=stored_releases(held_out=0))
    assert cloud.held_out_logits(dataset, done(cloud, dataset), records=0).shape == (0, CLASSES)


def trained_hash(cloud, job=None, **changes):
    """Hash of the weights of a fresh data set and job."""
    dataset = uploaded(cloud, **changes)
    return weights_hash(cloud.fetch(dataset, done(cloud, dataset, job), like=LIKE))


def test_another_seed_gives_other_weights(training_cloud):
    assert trained_hash(training_cloud) != trained_hash(training_cloud, job_spec(seed=8))


def test_a_held_out_record_is_not_trained_on(training_cloud):
    """Its bits may be anything: the weights are the same."""
    bits = RELEASES.bits.clone()
    bits[RELEASES.held_out] ^= 255
    other = trained_hash(training_cloud, releases=replace(RELEASES, bits=bits))
    assert other == trained_hash(training_cloud)


def test_labels_through_randomized_response_are_trained_on_in_another_way(training_cloud):
    spec = dataset_spec(labels=LabelConfig(kind="randomized-response", epsilon=2.0))
    assert trained_hash(training_cloud, spec=spec) != trained_hash(training_cloud)


def test_a_job_of_another_number_of_classes_fails_with_a_reason(training_cloud):
    cloud = training_cloud
    dataset, job = uploaded(cloud, dataset_spec(classes=CLASSES + 1)), name()
    cloud.start(dataset, job, job_spec())
    last = list(cloud.watch(dataset, job))[-1]
    assert last.state == "failed"
    assert last.message
    assert last.message.isprintable()


def test_a_failed_job_that_is_started_again_is_tried_again(training_cloud):
    cloud = training_cloud
    dataset, job = uploaded(cloud, dataset_spec(classes=CLASSES + 1)), name()
    ends = []
    for _ in range(2):
        cloud.start(dataset, job, job_spec())
        first, *_, last = cloud.watch(dataset, job)
        assert first.state in ("waiting", "running")
        ends.append(last)
    assert ends[0].state == "failed"
    assert ends[1] == ends[0]
    with pytest.raises(CloudMismatchError, match="another specification"):
        cloud.start(dataset, job, job_spec(seed=8))
    assert list(cloud.watch(dataset, job)) == [ends[0]]


LONG = job_spec(fit=FitConfig(epochs=4000, batch=16))


def test_a_job_that_is_not_done_has_no_results_and_once_cancelled_stays_so(cloud):
    dataset, job = uploaded(cloud), name()
    cloud.start(dataset, job, LONG)
    manifest = manifest_of(dataset_spec(), LONG, weights_hash="0" * 64)
    for call in (
        lambda: cloud.fetch(dataset, job, like=LIKE),
        lambda: cloud.held_out_logits(dataset, job, records=HELD_OUT),
        lambda: cloud.promote(dataset, job, manifest),
    ):
        with pytest.raises(RequestError, match="not done"):
            call()
    for _ in range(2):
        cloud.cancel(dataset, job)
        assert [state.state for state in cloud.watch(dataset, job)][-1] == "cancelled"
        cloud.start(dataset, job, LONG)


def test_a_finished_job_stays_finished(run):
    run.cloud.cancel(run.dataset, run.job)
    assert list(run.cloud.watch(run.dataset, run.job))[-1].state == "done"
    assert run.cloud.fetch(run.dataset, run.job, like=LIKE)


def test_what_is_not_there_is_denied(cloud):
    dataset, job = uploaded(cloud), name()
    for call in (
        lambda: cloud.upload(name(), chunks_of(RELEASES)),
        lambda: cloud.start(name(), job, job_spec()),
        lambda: list(cloud.watch(dataset, job)),
        lambda: cloud.cancel(dataset, job),
        lambda: cloud.fetch(dataset, job, like=LIKE),
        lambda: cloud.held_out_logits(dataset, job, records=HELD_OUT),
    ):
        with pytest.raises(CloudDeniedError):
            call()


def test_a_deleted_data_set_is_gone_with_its_jobs(cloud):
    dataset, job = uploaded(cloud), name()
    cloud.start(dataset, job, LONG)
    cloud.delete(dataset)
    cloud.delete(dataset)
    for call in (
        lambda: cloud.upload(dataset, chunks_of(RELEASES)),
        lambda: cloud.start(dataset, job, job_spec()),
        lambda: list(cloud.watch(dataset, job)),
        lambda: cloud.cancel(dataset, job),
        lambda: cloud.fetch(dataset, job, like=LIKE),
        lambda: cloud.held_out_logits(dataset, job, records=HELD_OUT),
    ):
        with pytest.raises(CloudDeniedError):
            call()
    assert cloud.create(dataset, dataset_spec()) == 0


# Promotion


def test_a_manifest_of_other_weights_release_or_classes_is_refused(run):
    own = weights_hash(run.weights)
    for manifest in (
        manifest_of(dataset_spec(), run.spec, weights_hash="0" * 64),
        manifest_of(dataset_spec(release=release_config(sigma=1.0)), run.spec, weights_hash=own),
        manifest_of(dataset_spec(classes=CLASSES + 1), run.spec, weights_hash=own),
    ):
        with pytest.raises((CloudMismatchError, RequestError)):
            run.cloud.promote(run.dataset, run.job, manifest)


def test_a_promoted_model_is_kept_under_its_name(runs):
    run = runs("in-process")
    manifest = manifest_of(dataset_spec(), run.spec, weights_hash=weights_hash(run.weights))
    run.cloud.promote(run.dataset, run.job, manifest)
    part = run.cloud.promoted["promoted"]
    assert part.manifest == manifest
    assert weights_hash(part.cloud) == weights_hash(run.weights)


def test_a_promoted_model_is_served(runs, server):
    run = runs("grpc")
    manifest = manifest_of(
        dataset_spec(), run.spec, weights_hash=weights_hash(run.weights), name="from-a-job"
    )
    run.cloud.promote(run.dataset, run.job, manifest)
    assert "from-a-job" in [entry.binding.model for entry in list_models(server.address)]
    assert fetch_manifest(server.address, "from-a-job") == manifest
    size = dataset_spec().release.payload_bytes
    held = RELEASES.bits[RELEASES.held_out]
    with GrpcTransport(server.address, manifest.binding, payload_bytes=size) as transport:
        answer = transport.submit("predict", {"bits": held}, deadline_s=30.0).result()
    assert torch.allclose(answer.tensors["logits"], run.logits, atol=1e-5)


# Interactive training


def interactive(cloud, dataset, job, *, start=0, stop=STEPS, keep=(), steps=STEPS):
    """Exchanges of the steps from `start` on; their logits."""
    rows = (~RELEASES.held_out).nonzero().flatten()
    answers = []
    with cloud.interact(dataset, job, job_spec(steps=steps), step=start) as session:
        for step in range(start, stop):
            index = rows[8 * step % 40 :][:8]
            answers.append(
                session.exchange(
                    RELEASES.bits[index], RELEASES.labels[index], update=True, checkpoint=step + 1 in keep
                )
            )
    return answers


def created(cloud):
    dataset = name()
    cloud.create(dataset, dataset_spec())
    return dataset


class Exchanges:
    """An interactive training from its beginning to its results."""

    def __init__(self, cloud):
        self.cloud, self.dataset, self.job = cloud, created(cloud), name()
        before = cloud.bytes_up
        self.logits = interactive(cloud, self.dataset, self.job)
        self.bytes_up = cloud.bytes_up - before
        self.weights = cloud.fetch(self.dataset, self.job, like=LIKE)


@pytest.fixture(scope="module")
def exchanges(open_cloud):
    """A finished interactive training in each kind of cloud."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Exchanges(open_cloud(kind))
        return made[kind]

    return get


@pytest.fixture(params=KINDS)
def exchanged(request, exchanges):
    return exchanges(request.param)


def test_an_interactive_job_ends_with_weights(exchanged):
    assert [tuple(logits.shape) for logits in exchanged.logits] == [(8, CLASSES)] * STEPS
    assert all(logits.isfinite().all() for logits in exchanged.logits)
    model = build_cloud_model(job_spec().architecture, dataset_spec().release)
    model.load_state_dict(exchanged.weights)


def test_interactive_training_is_the_same_in_every_cloud(exchanges):
    here, there = map(exchanges, KINDS)
    assert torch.equal(torch.cat(here.logits), torch.cat(there.logits))
    assert weights_hash(here.weights) == weights_hash(there.weights)
    assert here.bytes_up == there.bytes_up


def test_interactive_and_one_shot_give_the_same_logits_for_the_same_weights_and_bits(cloud):
    """The model of an interactive job, run as a one-shot job's is, answers as it did in the session."""
    dataset, job = created(cloud), name()
    held, none = RELEASES.bits[RELEASES.held_out], torch.zeros(HELD_OUT, dtype=torch.int64)
    with cloud.interact(dataset, job, job_spec(steps=2)) as session:
        untrained = session.exchange(held, none, update=False)
        assert torch.equal(session.exchange(held, none, update=False), untrained)  # it changed nothing
        for part in (slice(0, 8), slice(8, 16)):
            session.exchange(RELEASES.bits[part], RELEASES.labels[part], update=True)
        trained = session.exchange(held, none, update=False)
    assert not torch.equal(trained, untrained)
    model = build_cloud_model(job_spec().architecture, dataset_spec().release)
    model.load_state_dict(cloud.fetch(dataset, job, like=LIKE))
    one_shot = held_out_logits(model, RELEASES, device=torch.device("cpu"))
    assert torch.allclose(trained, one_shot, atol=1e-5)


def test_an_interactive_job_goes_on_from_its_checkpoints_alone(exchanged):
    cloud, dataset, job = exchanged.cloud, created(exchanged.cloud), name()
    first = interactive(cloud, dataset, job, stop=4, keep={2, 3})
    with pytest.raises(CloudMismatchError, match="1"):
        interactive(cloud, dataset, job, start=1)
    rest = interactive(cloud, dataset, job, start=3)
    assert torch.equal(torch.cat(first[:3] + rest), torch.cat(exchanged.logits))
    assert weights_hash(cloud.fetch(dataset, job, like=LIKE)) == weights_hash(exchanged.weights)


def test_one_session_of_a_job_at_a_time(training_cloud):
    cloud = training_cloud
    dataset, job, spec = created(cloud), name(), job_spec(steps=1)
    with cloud.interact(dataset, job, spec) as first, pytest.raises(CloudOverloadedError):
        cloud.interact(dataset, job, spec).__enter__()
    with pytest.raises(CloudUnavailableError, match="closed"):
        first.exchange(RELEASES.bits[:8], RELEASES.labels[:8], update=True)
    with cloud.interact(dataset, job, spec) as second:
        second.exchange(RELEASES.bits[:8], RELEASES.labels[:8], update=True)
    assert cloud.fetch(dataset, job, like=LIKE)


def test_a_batch_that_does_not_fit_is_refused_and_the_session_goes_on(cloud):
    dataset, job = created(cloud), name()
    bits, labels = RELEASES.bits[:8], RELEASES.labels[:8]
    with cloud.interact(dataset, job, job_spec(steps=1)) as session:
        for wrong_bits, wrong_labels in (
            (bits[:0], labels[:0]),
            (bits[:, :-1], labels),
            (bits, labels[:7]),
            (bits, labels + CLASSES),
            (bits[:1], labels[:1]),
        ):
            with pytest.raises(RequestError):
                session.exchange(wrong_bits, wrong_labels, update=True)
        assert session.exchange(bits, labels, update=True).shape == (8, CLASSES)
        with pytest.raises(RequestError, match="number of steps"):
            session.exchange(bits, labels, update=True)


def test_an_interactive_job_needs_its_steps_and_a_one_shot_job_takes_none(cloud):
    dataset = uploaded(cloud)
    with pytest.raises(RequestError, match="steps"):
        cloud.interact(dataset, name(), job_spec()).__enter__()
    with pytest.raises(RequestError, match="steps"):
        cloud.start(dataset, name(), job_spec(steps=3))


# Bytes


def test_both_clouds_weigh_the_same_messages(runs):
    here, there = map(runs, KINDS)
    assert here.bytes == there.bytes


def test_one_shot_sends_at_most_141_bytes_a_record_of_1024_bits(cloud):
    """The whole upload, with the specification that opens it; the labels are of ten classes."""
    records = 1000
    spec = dataset_spec(release=release_config(size=32), classes=10, records=records)
    releases = stored_releases(records=records, held_out=100, payload_bytes=128)
    dataset, before = name(), cloud.bytes_up
    cloud.create(dataset, spec)
    cloud.upload(dataset, chunks_of(releases))
    assert 128 * records < cloud.bytes_up - before <= 141 * records
