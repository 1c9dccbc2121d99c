from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from delta.errors import ModelError
from delta.models import resnet18, resnet_small
from delta.models.targets import OURS, build_target, full_target, infer_target
from tests.unit import models_zoo as zoo

ZOO = "tests.unit.models_zoo"


@pytest.mark.parametrize("target", sorted(OURS))
def test_ours_need_no_leave(target: str) -> None:
    bag = {"channels": 3, "patch": 4} if target.endswith("bag_of_patches") else {}
    model = build_target(target, {"classes": 3, "width": 2, **bag}, allowed=None)
    assert model(torch.zeros(2, 4, 3, 4, 4) if bag else torch.zeros(2, 3, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    "target",
    [
        "delta.models.targets:build_target",
        "delta.models.targets:_import_module",
        "delta.models.resnet:ResNet",
        "delta.models:nothing",
    ],
)
def test_only_our_builders_are_ours(target: str) -> None:
    with pytest.raises(ModelError, match="ours are"):
        build_target(target, {}, allowed=None)


def test_another_target_needs_leave_by_its_full_name() -> None:
    target = f"{ZOO}:Plain"
    for allowed in (None, (), {ZOO}, {f"{ZOO}:Skip"}, {"*"}):
        with pytest.raises(ModelError, match=f"--allow {target}"):
            build_target(target, {}, allowed=allowed)
    assert isinstance(build_target(target, {}, allowed={target}), zoo.Plain)


def test_a_refused_module_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "intruder_model.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="--allow"):
        build_target("intruder_model:build", {}, allowed=None)
    assert "intruder_model" not in sys.modules


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        ("os.system", {}, "malformed"),
        ("os:system:x", {}, "malformed"),
        ("no_such_module_here:build", {}, "cannot be imported"),
        (f"{ZOO}:Plan", {}, "did you mean Plain"),
        (f"{ZOO}:X9", {}, "no callable 'X9'"),
        (f"{ZOO}:not_a_module", {}, "returned int; it must return a torch.nn.Module"),
        (f"{ZOO}:failing", {}, "failed: RuntimeError: first line; check its arguments"),
        (f"{ZOO}:configured", {"clases": 3}, "failed: TypeError"),
        ("delta.models:resnet18", {"classes": 0}, "classes=0"),
        ("delta.models:resnet18", {"classes": 10**9}, "classes=1000000000"),
        ("delta.models:resnet18", {"classes": 3, "width": True}, "width=True"),
        ("delta.models:resnet18", {"classes": 3, "stem": "torchvision"}, "'cifar' or 'imagenet'"),
    ],
)
def test_a_failure_is_one_clear_line(target: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_target(target, arguments, allowed={target})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_model_a.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Linear(2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    path = list(sys.path)
    model = build_target("folder_model_a:build", {}, allowed={"folder_model_a:build"})
    assert isinstance(model, nn.Linear)
    assert sys.path == path


def test_short_names() -> None:
    assert full_target("resnet34") == "delta.models:resnet34"
    assert full_target("a.b:c") == "a.b:c"
    with pytest.raises(ModelError, match="resnet18"):
        full_target("resnet8")


def test_targets_are_inferred_and_rebuild_the_model() -> None:
    model = resnet18(classes=7, in_channels=1, width=4, activation="prelu")
    found = infer_target(model)
    assert found is not None
    assert found.target == "delta.models:resnet18"
    twin = build_target(found.target, found.arguments)
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x))
    plain = infer_target(zoo.Plain())
    assert plain is not None
    assert plain.target == f"{ZOO}:Plain"


def test_no_target_is_inferred_where_rebuilding_would_give_another_model() -> None:
    changed = resnet_small(classes=3, width=4)
    changed.fc = nn.Linear(16, 9)
    assert infer_target(changed) is None
    assert infer_target(zoo.Configured(5)) is None
    assert infer_target(nn.Sequential(nn.Linear(2, 2))) is None

    class Local(zoo.Plain):
        pass

    assert infer_target(Local()) is None


def test_inferring_draws_no_random_numbers() -> None:
    models = [zoo.Plain(), resnet_small(classes=3, width=4)]
    state = torch.get_rng_state()
    for model in models:
        infer_target(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_class_of_the_running_script_is_named_after_its_file(tmp_path: Path) -> None:
    script = tmp_path / "my_script_model.py"
    script.write_text(
        "import torch\n"
        "from torch import nn\n"
        "from delta.models.splitting import split\n"
        "from delta.models.targets import build_target\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.b(self.a(x)).mean((2, 3))\n"
        "print('run')\n"
        "if __name__ == '__main__':\n"
        "    parts = split(Net(), at='b', example=torch.zeros(1, 1, 8, 8))\n"
        "    target = parts.architecture.target\n"
        "    print(target, type(build_target(target, {}, allowed={target})) is Net)\n"
    )
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": root, "PATH": ""},
    )
    assert ran.stdout.split("\n")[:2] == ["run", "my_script_model:Net True"]
