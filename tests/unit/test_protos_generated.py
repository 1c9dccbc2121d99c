"""The generated stubs are what the protos say."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_stubs_are_those_of_the_protos(tmp_path):
    subprocess.run([ROOT / "scripts/gen_protos.sh", tmp_path], check=True, capture_output=True)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "delta/v1").iterdir()}
    kept = {
        path.name: path.read_bytes()
        for path in (ROOT / "delta/v1").iterdir()
        if path.name != "__init__.py" and path.is_file()
    }
    assert sorted(fresh) == sorted(kept), "run scripts/gen_protos.sh"
    assert [name for name in fresh if fresh[name] != kept[name]] == [], "run scripts/gen_protos.sh"


def test_every_enum_has_an_unspecified_zero_and_prefixed_names():
    from delta.v1 import tensor_pb2

    for enum in tensor_pb2.DESCRIPTOR.enum_types_by_name.values():
        prefix = "".join(f"_{c}" if c.isupper() else c for c in enum.name).strip("_").upper()
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)
