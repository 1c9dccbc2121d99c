"""`delta train`: both stages, the second against a cloud of another process, ending in a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delta.cli.output import check_writable, progress, say, table, warn, write_json
from delta.cli.run_inputs import build_parts, load_data, public_records
from delta.cli.run_outbound import Outbound

if TYPE_CHECKING:
    from delta_client import GrpcTrainingCloud

    from delta.models.splitting import Parts
    from delta.privacy.ledger import Budget
    from delta.training.folder import RunFolder
    from delta.training.run import Run
    from delta.training.run_config import RunConfig

__all__ = ["train"]

_STORE_S = 30.0  # in which a cloud that has lost its run ends
# No address: a cloud started here has another port in each run, and its tenant finds the data set again.
_LOCAL = "local"


def train(
    config: Annotated[Path, typer.Option(help="YAML file of a run; see configs/.")],
    cloud: Annotated[
        str | None, typer.Option(help="HOST:PORT of a cloud that trains; none starts one on this machine.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, where a cut one goes on; default: runs/NAME.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="KEY=VALUE of the file, such as 'noise={epsilon: 8}', null for none; repeatable."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Another source than the file's.")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Training records at most.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed than the file's.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Of training, also in a cloud started here: cpu, cuda or cuda:N.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one training in a cloud started here.")
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints that several runs share; default: in --out.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger of what was released; default: ledger.jsonl in --out.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds that a job may wait its turn, or take for a step.")
    ] = 3600.0,
    download: Annotated[
        bool, typer.Option(help="Fetch the archive of cifar10:FOLDER or cifar100:FOLDER first.")
    ] = False,
    forget: Annotated[
        bool, typer.Option(help="Delete the data set and its jobs from the cloud at the end.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Budget of each subject from now on, such as epsilon=8; a file never loosens --ledger."
        ),
    ] = None,
    noise_key: Annotated[
        Path | None,
        typer.Option(help="Key of label responses, drawn on first use; default: noise.key in --out."),
    ] = None,
    restart: Annotated[
        bool, typer.Option(help="Give up the checkpoints of whatever run --out holds.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the figures here; - is standard output.")] = None,
) -> None:
    """Train on the private side, release once, let a cloud train on the bits, and measure every control."""
    from delta.bundle.store import save_bundle
    from delta.config import canonical_hash
    from delta.data.load import download_dataset
    from delta.device import device_of
    from delta.privacy.disk_ledger import DiskLedger
    from delta.release.components import computation_hash
    from delta.release.noise import NoiseKey
    from delta.training.cloud_stage import Stage2
    from delta.training.folder import RunFolder
    from delta.training.release_stage import check_release
    from delta.training.report import run_figures
    from delta.training.run import run_training
    from delta.training.run_config import RunConfig

    started = time.perf_counter()
    check_writable(json)
    given = {"data.limit": limit, "seed": seed, "device": device}
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    if data is not None:  # size and limits of the file stay
        changes[:0] = ["data.target=null", f"data.source={dumps(data)}"]
    run = RunConfig.read(config, changes=(*changes, *(change or ())))
    device_of(run.device)
    _check_address(cloud, workers, run.mode)
    folder = RunFolder(out or Path("runs") / run.name)
    check_writable(folder.summary)
    # Standard output is for the figures alone where they are wanted there.
    tell: Callable[[str], None] = say if str(json) != "-" else lambda _: None
    if download:
        tell(f"downloaded {download_dataset(run.data.source or '')}")
    splits = load_data(run)
    public = public_records(run, splits)
    parts = build_parts(run, splits)
    check_release(run, parts)
    tell(
        f"data: {splits.name}, {len(splits.train):,} training and {len(splits.test):,} test records; "
        f"model: {run.model.target}, split at {parts.at}"
    )
    # What determines the fits beside the settings; a shared folder of checkpoints is keyed by it.
    basis = canonical_hash(
        [
            splits.train.fingerprint(),
            run.model.model_dump(mode="json"),
            computation_hash(parts.model),
        ]
    )
    with (
        folder.held(),
        progress() as watch,
    ):
        store = folder.claim(run, data=basis, restart=restart, checkpoints=checkpoints, warn=warn)
        path = ledger or folder.ledger
        label_key = NoiseKey.at(noise_key or folder.noise_key) if run.labels.epsilon is not None else None
        with (
            DiskLedger(path, budget=_budget(run, path, budget, own=ledger is None), warn=warn) as book,
            ExitStack() as session,
        ):
            training = session.enter_context(_cloud(run, parts, folder, cloud, workers, tell))
            outbound = Outbound(run, training, session, public=public, forget=forget)
            where = Stage2(training, book, folder.releases, store, label_key, patience)
            result = run_training(parts, splits, run.training, where=where, outbound=outbound, progress=watch)
            save_bundle(result.bundle, folder.bundle)
    seconds = time.perf_counter() - started
    figures = run_figures(run, result, splits, seconds=seconds)
    figures |= {"promoted": outbound.promoted, "public_accuracy": outbound.public_accuracy}
    write_json(folder.summary, figures)
    write_json(json, figures)
    if str(json) != "-":
        _show(run, result, folder, figures, outbound)
    if outbound.failure is not None:
        raise outbound.failure


def _budget(run: RunConfig, path: Path, given: str | None, *, own: bool) -> Budget | None:
    """The budget to write into a ledger; none for the one that it has.

    A file of settings decides for the run's own ledger, and never loosens one that is named with `--ledger`.
    """
    from delta.privacy.budget import budget_text, parse_budget
    from delta.privacy.ledger import UNLIMITED
    from delta.privacy.ledger_file import read_ledger

    if given is not None:
        return parse_budget(given)
    wanted = run.subject_budget
    if not path.exists() or not path.stat().st_size:
        return wanted
    held = read_ledger(path).budget
    if held == UNLIMITED or (wanted != UNLIMITED and wanted <= held):
        return wanted
    if "budget" not in run.model_fields_set:
        return None
    if own:
        warn(f"ledger {path}: the budget was {budget_text(held)}, and is {budget_text(wanted)} from now on")
        return wanted
    warn(
        f"ledger {path} holds a budget of {budget_text(held)}, stricter than the configuration's, and keeps it; "
        "--budget sets another"
    )
    return None


def _check_address(address: str | None, workers: int | None, mode: str) -> None:
    """Refuse an address that is none, or options that do not go with it."""
    from delta_server.config import parse_listen

    from delta.errors import ConfigError

    if workers not in (None, 1) and mode == "interactive":
        raise ConfigError("--workers is of one-shot training: one process answers an interactive one")
    if address is None:
        return
    if parse_listen(address)[1] == 0:
        raise ConfigError(f"{address!r} names no port; give the HOST:PORT that the cloud has printed")
    if workers is not None:
        raise ConfigError("--workers is of a cloud started here; give it to `delta serve --train-workers`")


def _ask(training: GrpcTrainingCloud, run: RunConfig, parts: Parts) -> None:
    """Learn before any work whether the cloud is there, trains, and allows the model: start a job of no data set.

    Raises:
        CloudError: it is absent, does not train, or does not allow the model's code.
    """
    from delta.errors import CloudDeniedError
    from delta.training.release_stage import architecture_in_cloud
    from delta.training.spec import JobSpec

    nothing = "0" * 32
    with suppress(CloudDeniedError):  # there is no such data set
        training.start(
            nothing, nothing, JobSpec(architecture=architecture_in_cloud(run, parts), fit=run.cloud_fit)
        )


@contextmanager
def _cloud(
    run: RunConfig,
    parts: Parts,
    folder: RunFolder,
    address: str | None,
    workers: int | None,
    tell: Callable[[str], None],
) -> Iterator[GrpcTrainingCloud]:
    """A session with the cloud at an address, or with one that is started here and ends with the run."""
    from delta_client import GrpcTrainingCloud, TenantToken
    from delta_server.launch import ServerProcess

    token = TenantToken.at(folder.token)
    if address is not None:
        with GrpcTrainingCloud(address, token.for_cloud(address)) as training:
            _ask(training, run, parts)
            yield training
        return
    allow = [parts.architecture.target] if parts.architecture is not None else []
    _await_store(folder.cloud_store)
    with (
        ServerProcess.start(
            training=folder.cloud_store, train_workers=workers, device=run.device, allow=allow,
            log_path=folder.cloud_log,
        ) as server,
        GrpcTrainingCloud(server.address, token.for_cloud(_LOCAL)) as training,
    ):  # fmt: skip
        tell(f"cloud: process {server.pid}, listening on {server.address}")
        yield training


def _await_store(store: Path) -> None:
    """Wait until the cloud of a run that was killed has let go of its store, as it does by itself."""
    import fcntl

    deadline = time.monotonic() + _STORE_S
    try:
        with (store / "lock").open("rb") as lock:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.05)
                else:
                    return
    except OSError:  # a new store; the server says what is wrong with any other
        return


def _show(
    run: RunConfig, result: Run, folder: RunFolder, figures: dict[str, Any], outbound: Outbound
) -> None:
    from delta.training.report import run_rows

    table(
        "Accuracy on the test records, and what it cost (tee: simulated)",
        ["", run.name],
        run_rows(run, result),
    )
    message = figures["message"]
    say(f"message map: {message['map']}, {message['provenance']['kind']}: {message['provenance']['note']}")
    for line in (*result.claim.lines(), result.verdict):
        say(line)
    if result.stage.bad_answers:
        warn(
            f"{result.stage.bad_answers} answers of the cloud were not fit to use; M_main learned without them"
        )
    say(f"bundle: {folder.bundle}   figures: {folder.summary}   took {figures['seconds']:.0f} s")
    for line in outbound.lines():
        say(line)
    allow = "" if run.model.target.find(":") < 0 else f" --allow {run.model.target}"
    say(f"serve it with: delta serve --bundle {folder.bundle}{allow}")
