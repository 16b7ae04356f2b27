import json

import pytest
import torch
from problems import experiment

from torchq.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from torchq.errors import CheckpointError
from torchq.tree import flatten, unflatten


@pytest.fixture
def saved(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b.0": torch.tensor(7)}
    save_checkpoint(tmp_path, tensors, {"algo": "stlrq", "episode": 3})
    return tmp_path, tensors


def rewrite(folder, **changes):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tensors_and_counters_come_back(saved):
    folder, tensors = saved
    loaded, index = load_checkpoint(folder, "stlrq")
    assert index["episode"] == 3
    assert index["format_version"] == 1  # Of one file, which older versions read too.
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_a_state_survives_the_round_trip():
    for algo in ("stlrq", "tabular"):
        state = experiment(algo, "wireless").initial_state
        tensors = flatten(state)
        assert "env.queue" in tensors
        back = unflatten(state, tensors)
        assert type(back) is type(state)
        assert type(back.learner) is type(state.learner)
        assert all(torch.equal(tensors[name], tensor) for name, tensor in flatten(back).items())


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_behind(saved):
    folder, _ = saved
    save_checkpoint(folder, {"a": torch.ones(1)}, {"algo": "stlrq", "episode": 4})
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.json", "state-000000004.safetensors"]


@pytest.mark.parametrize("point", ["write", "rename"])
def test_a_crash_while_saving_keeps_the_old_checkpoint(saved, monkeypatch, point):
    folder, tensors = saved
    import torchq.checkpoint as module

    calls = []

    def crash(*arguments):
        calls.append(arguments)
        if point == "write" or len(calls) > 1:
            raise KeyboardInterrupt
        return original(*arguments)

    original = module.os.replace
    monkeypatch.setattr(module.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, {"a": torch.zeros(2, 3)}, {"algo": "stlrq", "episode": 4})
    monkeypatch.undo()
    loaded, index = load_checkpoint(folder, "stlrq")
    assert index["episode"] == 3
    assert torch.equal(loaded["a"], tensors["a"])


def test_no_checkpoint_is_none(tmp_path):
    assert load_checkpoint(tmp_path, "stlrq") is None


def truncate(folder):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-3])


def flip(folder):
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated or corrupted"),
        (flip, "truncated or corrupted"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "is missing"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), "is corrupted"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "is corrupted"),
        (lambda folder: rewrite(folder, format_version=FORMAT_VERSION + 1), "expected format version up to 2, got 3"),
        (lambda folder: rewrite(folder, algo="lrq"), 'expected one of algo="stlrq", got one of algo="lrq"'),
        (lambda folder: rewrite(folder, tensors="../outside.safetensors"), "is missing"),
    ],
)
def test_damage_is_named(saved, damage, message):
    folder, _ = saved
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder, "stlrq")
    assert "\n" not in str(caught.value)


def test_tensors_of_other_settings_are_named():
    state = experiment("stlrq", rank=3).initial_state
    other = flatten(experiment("stlrq", rank=4).initial_state)
    with pytest.raises(
        CheckpointError, match=r"expected tensor learner.factors.0 of \(8, 1, 4, 3\) .*got \(8, 1, 4, 4\)"
    ):
        unflatten(state, other)
