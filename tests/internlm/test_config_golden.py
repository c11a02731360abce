"""Rendered configs: the same bytes for the same request, read as InternLM reads them, and golden files to review."""

import itertools
import json

import pytest

from fixtures import cases
from fixtures.cases import Layout
from fixtures.internlm import config, models
from tests import golden
from tests.internlm.requests import request_of
from tests.internlm.standins import standin

LONG = {"run": "long", "steps": 100_000}
GOLDEN = {
    "7B-tp1-pp1-zero8-speed": ("7B", Layout(1, 1, 8), 8, {}),
    "7B-tp1-pp1-zero8-repeat-1": ("7B", Layout(1, 1, 8), 8, {"run": "repeat-1"}),
    "7B-tp8-pp1-zero1-long": ("7B", Layout(8, 1, 1), 8, LONG),
    "7B-tp1-pp1-zero8-v0.1": ("7B", Layout(1, 1, 8), 8, {"generation": "v0.1"}),
    "7B-tp1-pp1-zero8-v0.2": ("7B", Layout(1, 1, 8), 8, {"generation": "v0.2"}),
    "7B-tp1-pp1-zero8-v0.2.1": ("7B", Layout(1, 1, 8), 8, {"generation": "v0.2.1"}),
    "7B-tp1-pp1-zero8-v0.3": ("7B", Layout(1, 1, 8), 8, {"generation": "v0.3"}),
    "7B-32k-tp8-pp1-zerodp-isp-wp8-speed": ("7B-32k", Layout(8, 1, -1, mode="isp", wp=8), 8, {}),
    "MoE4-7B-tp1-pp1-zerodp-speed": ("MoE4-7B", Layout(1, 1, -1), 8, {}),
    "InternLM2-70B-tp4-pp8-zerodp-speed": ("InternLM2-70B", Layout(4, 8, -1), 32, {}),
    "tiny-llama2-tp2-pp1-zero1-speed-cpu": ("tiny-llama2", Layout(2, 1, 1), 2, {"accelerator": "cpu"}),
}


def request(model="7B", layout=None, world=8, settings=None, **changes):
    case = cases.fit(model, layout or Layout(1, 1, 8), world, settings=settings)
    return request_of(case, **{"accelerator": "nvidia", **changes})


def read(tmp_path, request):
    path = tmp_path / "config.py"
    path.write_text(config.render(request), encoding="utf-8")
    return standin.read(str(path))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    model, layout, world, changes = GOLDEN[name]
    assert golden.agrees(f"{name}.config.txt", config.render(request(model, layout, world, **changes)))


def test_the_same_request_gives_the_same_bytes_also_after_json():
    asked = request(settings={"model.checkpoint": 0.5, "environment.NCCL_ALGO": "Ring"})
    assert config.render(json.loads(json.dumps(asked))) == config.render(asked)
    shuffled = dict(reversed(list(asked.items())))
    assert config.render(shuffled) == config.render(asked)


def test_what_says_how_and_when_does_not_reach_the_config():
    asked = request()
    noted = asked | {"attempt": 7, "started": "2026-01-01", "command": ["x"], "environment": {"A": "1"}, "cwd": "/x"}
    assert config.render(noted) == config.render(asked)


@pytest.mark.parametrize("model", models.known())
def test_every_model_file_is_a_whole_config_by_itself(model):
    from_file = models.load(model)
    assert from_file["JOB_NAME"] == model
    layout = cases.layouts(model)[0]
    rendered = config.effective(request(model, layout, world=64 if "70B" in model else 8, deterministic=False))
    assert set(rendered) - set(from_file) <= {"GLOBAL_BATCH", "enable_tb", "cudnn_deterministic", "cudnn_benchmark"}
    for table in ("data", "model", "adam", "hybrid_zero_optimizer", "loss", "grad_scaler", "beta2_scheduler"):
        assert set(from_file[table]) == set(rendered[table]), table
    assert from_file["ckpt"]["auto_resume"] is False
    assert from_file["data"]["micro_bsz"] * from_file["data"]["micro_num"] <= models.global_batch(from_file, 64)


def test_the_shapes_of_the_procedure():
    shapes = {
        model: (
            *(m["hidden_size"], m["num_attention_heads"], m["num_layers"], m.get("num_kv_attention_heads")),
            *(round(m["mlp_ratio"], 4), m["vocab_size"], models.load(model)["data"]["seq_len"]),
        )
        for model, m in ((model, models.load(model)["model"]) for model in models.known())
    }
    assert shapes["7B"] == (4096, 32, 32, None, 2.6667, 103168, 2048)
    assert shapes["13B"] == (5120, 40, 40, None, 2.6667, 103168, 2048)
    assert shapes["65B"] == (8192, 64, 80, None, 2.6667, 103168, 2048)
    assert shapes["InternLM2-7B"] == (4096, 32, 32, 8, 3.5, 92544, 4096)
    assert shapes["InternLM2-70B"] == (8192, 64, 80, 8, 2.6667, 92544, 4096)
    assert shapes["LLaMA2-7B"] == (4096, 32, 32, 8, 3.5, 32000, 2048)
    assert shapes["MoE4-7B"] == (4096, 32, 32, None, 1.3333, 103168, 2048)
    assert shapes["7B-32k"] == (4096, 32, 32, 8, 3.5, 92544, 32768)


def test_lengths_batches_and_schedule(tmp_path):
    long = read(tmp_path, request(deterministic=False, **LONG))
    short = read(tmp_path, request(deterministic=False, steps=7))
    assert (long["data"]["total_steps"], short["data"]["total_steps"]) == (100_000, 7)
    assert long["lr_scheduler"] == short["lr_scheduler"] == models.load("7B")["lr_scheduler"]
    assert (short["data"]["micro_bsz"], short["data"]["micro_num"], short["GLOBAL_BATCH"]) == (2, 32, 512)


def test_the_deterministic_mode_is_switched_on_in_the_config_alone():
    lines = config.render(request(run="repeat-1")).splitlines()
    assert "torch.use_deterministic_algorithms(True)" in lines
    assert 'os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"' in lines
    assert "cudnn_deterministic = True" in lines
    plain = config.render(request(run="speed"))
    assert "torch.use" not in plain
    assert "cudnn_deterministic = False" in plain


def test_two_repeats_differ_in_their_name_alone():
    one, two = (config.render(request(run=run)).splitlines() for run in ("repeat-1", "repeat-2"))
    differing = [(a, b) for a, b in itertools.zip_longest(one, two) if a != b]
    assert all("repeat-1" in a and "repeat-2" in b for a, b in differing)


@pytest.mark.parametrize(
    ("accelerator", "dtype", "flash"), [("cpu", "torch.float32", False), ("nvidia", "torch.bfloat16", True)]
)
def test_the_dtype_and_attention_of_the_machine(tmp_path, accelerator, dtype, flash):
    found = read(tmp_path, request(accelerator=accelerator))
    assert found["model"]["dtype"] == dtype
    assert found["model"]["use_flash_attn"] is found["data"]["use_packed_dataset"] is flash
    assert found["model"]["parallel_output"] is flash


def test_tiny_is_bfloat16_on_an_accelerator(tmp_path):
    assert read(tmp_path, request("tiny", Layout(1, 1, -1), 2))["model"]["dtype"] == "torch.bfloat16"


def test_the_vendors_settings_reach_the_config_and_variables_do_not(tmp_path):
    own = {
        "model.checkpoint": True,
        "model.use_flash_attn": False,
        "hybrid_zero_optimizer.reduce_bucket_size": 1024,
        "environment.NCCL_ALGO": "Ring",
        "parallel.weight.overlap": False,
    }
    found = read(tmp_path, request(settings=own))
    assert found["model"]["checkpoint"] is True
    assert found["hybrid_zero_optimizer"]["reduce_bucket_size"] == 1024
    assert found["data"]["use_packed_dataset"] is False
    assert found["parallel"]["weight"]["overlap"] is False
    assert "NCCL_ALGO" not in config.render(request(settings=own))


def test_fine_tuning_reads_the_vendors_data_and_weights(tmp_path):
    case = cases.fit("7B", Layout(1, 1, 8), 8, dataset="sft")
    asked = request_of(case, accelerator="nvidia", sft={"data": "/data", "weights": "/weights"})
    found = read(tmp_path, asked)
    assert found["data"]["train_folder"] == "/data/train"
    assert found["ckpt"]["load_ckpt_info"] == {
        "path": "local:/weights",
        "content": ("model",),
        "ckpt_type": "internevo",
    }
    assert found["ckpt"]["auto_resume"] is False


@pytest.mark.parametrize("generation", ["v0.2.1", "v0.3"])
def test_internlms_weights_had_another_name_before_internevo(tmp_path, generation):
    case = cases.fit("7B", Layout(1, 1, 8), 8, dataset="sft", generation=generation)
    sft = {"data": "/data", "weights": "/weights"}
    found = read(tmp_path, request_of(case, accelerator="nvidia", generation=generation, sft=sft))
    assert found["ckpt"]["load_ckpt_info"]["ckpt_type"] == "internlm"


@pytest.mark.parametrize("generation", ["v0.1", "v0.2"])
def test_an_older_internlm_is_told_the_weights_in_its_own_words(tmp_path, generation):
    case = cases.fit("7B", Layout(1, 1, 8), 8, dataset="sft", generation=generation)
    sft = {"data": "/data", "weights": "/weights"}
    found = read(tmp_path, request_of(case, accelerator="nvidia", generation=generation, sft=sft))
    assert found["ckpt"]["load_model_only_folder"] == "local:/weights"
    assert found["ckpt"]["load_ckpt_folder"] is None


def test_a_text_with_quotes_stays_text(tmp_path):
    case = cases.fit("7B", Layout(1, 1, 8), 8, dataset="sft")
    path = '/data/it\'s "here"\nimport os'
    found = read(tmp_path, request_of(case, accelerator="nvidia", sft={"data": path, "weights": "/weights"}))
    assert found["data"]["train_folder"] == f"{path}/train"
    assert "os" not in found


def test_an_unknown_generation_is_named():
    with pytest.raises(ValueError, match="unknown InternLM generation 'v9'"):
        config.render(request(generation="v9"))
