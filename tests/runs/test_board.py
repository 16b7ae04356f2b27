"""What a finished run shows in TensorBoard besides curves."""

import io
import json

import numpy as np
from PIL import Image
from problems import command_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import torchq


def trained(folder, *flags):
    arguments = ("--algo", "stlrq", "--env", "gridworld", "--num-seeds", 1, "--device", "cpu", "--engine", "eager")
    assert command_line(*arguments, "--out", folder, *flags)[0] == 0
    board = EventAccumulator(str(folder), size_guidance={"images": 0})
    board.Reload()
    return board


def test_settings_results_and_the_policy_are_there(tmp_path):
    board = trained(tmp_path / "run", "--episodes", 6)
    run = torchq.load(tmp_path / "run")
    (text,) = board.Tensors("config/text_summary")
    settings = json.loads(text.tensor_proto.string_val[0].decode().removeprefix("```json").removesuffix("```"))
    assert settings["rank"] == run.config.rank
    (final,) = board.Scalars("final/mean_reward")
    assert final.value == np.float32(run.metrics.final_return().mean())
    assert final.step == run.metrics.samples[-1]
    content = plugin_data_pb2.HParamsPluginData()
    content.ParseFromString(board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert content.session_start_info.hparams["rank"].number_value == run.config.rank
    (picture,) = board.Images("policy")
    assert np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))).std() > 1.0


def test_a_run_that_ends_before_its_first_evaluation_has_no_result(tmp_path):
    board = trained(tmp_path / "run", "--episodes", 1)
    assert "config/text_summary" in board.Tags()["tensors"]
