"""`delta export`: the part of a bundle that the cloud may have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from delta.cli.output import say, write_json

__all__ = ["export"]


def export(
    bundle: Annotated[Path, typer.Option(help="Folder of a whole bundle.")],
    out: Annotated[Path, typer.Option(help="Folder to write; what it held of a bundle before is replaced.")],
    json: Annotated[
        Path | None, typer.Option(help="Write name and hashes here; - is standard output.")
    ] = None,
) -> None:
    """Copy the manifest and the cloud weights, and nothing private."""
    from delta.bundle.store import export_cloud_part, load_cloud_part

    part = load_cloud_part(bundle)
    export_cloud_part(part, out)
    manifest = part.manifest
    write_json(
        json,
        {
            "name": manifest.name,
            "out": str(out),
            "release_hash": manifest.release_hash,
            "cloud_hash": manifest.cloud_hash,
        },
    )
    if str(json) != "-":
        say(
            f"cloud part of {part.manifest.name!r} written to {out}; serve it with: delta serve --bundle {out}"
        )
