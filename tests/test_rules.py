"""What a vendor may set, and how everything else is refused."""

import pytest

from fixtures import rules
from fixtures.rules import RuleError


def written(tmp_path, text):
    path = tmp_path / "override.toml"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = """
[data]
micro_bsz = 4
[model]
checkpoint = true
use_flash_attn = false
[hybrid_zero_optimizer]
reduce_bucket_size = 268435456
[environment]
NCCL_ALGO = "Ring"
[for.7B.model]
checkpoint = 0.5
[for."7B-tp8-pp1-zero1".data]
micro_bsz = 8
[for."7B-tp8-pp1-zero1".environment]
NCCL_ALGO = "Tree"
"""


def test_the_vendors_own_settings_are_taken(tmp_path):
    settings = rules.load(written(tmp_path, GOOD))
    assert rules.departures(settings) == []
    assert rules.for_case(settings, "13B", "13B-tp1-pp1-zero8") == {
        "data.micro_bsz": 4,
        "model.checkpoint": True,
        "model.use_flash_attn": False,
        "hybrid_zero_optimizer.reduce_bucket_size": 268435456,
        "environment.NCCL_ALGO": "Ring",
    }
    narrow = rules.for_case(settings, "7B", "7B-tp8-pp1-zero1")
    assert narrow["data.micro_bsz"] == 8
    assert narrow["model.checkpoint"] == 0.5
    assert narrow["environment.NCCL_ALGO"] == "Tree"


REFUSED = [
    ("[data]\nseq_len = 1024", "data.seq_len = 1024 .*sequence length is fixed"),
    ("[data]\nfixed_random_dataset_seqlen = false", "length mode is fixed"),
    ("[data]\ntotal_steps = 5", "--steps"),
    ("[data]\ntrain_folder = '/data'", "data is fixed"),
    ('[model]\ndtype = "torch.float32"', "dtype is fixed: bfloat16"),
    ("[model]\nvocab_size = 32000", "vocabulary is fixed"),
    ("[model]\nmlp_ratio = 2", "MLP ratio is fixed"),
    ("[model]\nnum_layers = 2", "the model is fixed"),
    ("[lr_scheduler]\ntotal_steps = 100", "the schedule is fixed"),
    ("[adam]\nlr = 1e-3", "the optimizer is fixed"),
    ("[hybrid_zero_optimizer]\nclip_grad_norm = 0.1", "the optimizer is fixed"),
    ("[parallel]\nzero1 = 8", "chosen with --layout"),
    ("[ckpt]\nauto_resume = true", "starts from the same weights"),
    ("seed = 7", "seeds are fixed"),
    ("grad_clip = 1", "not listed as the vendor's is fixed"),
    ("[for.7B.adam]\nlr = 1.0", "the optimizer is fixed"),
    ("[data]\nmicro_bsz = 0", "whole number of samples, at least 1"),
    ("[data]\nmicro_bsz = true", "whole number of samples, at least 1"),
    ("[data]\nmicro_num = 1.5", "whole number of micro-batches"),
    ("[model]\ncheckpoint = 2", "share of layers, 0 to 1"),
    ("[model]\ncheckpoint = nan", "share of layers, 0 to 1"),
    ('[model]\nuse_flash_attn = "yes"', "true or false"),
    ("[hybrid_zero_optimizer]\nreduce_bucket_size = -1", "whole number of elements"),
    ('[environment]\nPYTORCH_CUDA_ALLOC_CONF = "x"', "InternLM sets the allocator itself"),
    ('[environment]\nRANK = "0"', "the launcher sets it"),
    ('[environment]\nCUDA_VISIBLE_DEVICES = "0"', "pytest's own environment"),
    ('[environment]\nPYTHONPATH = "/x"', "--internlm and --python"),
    ('[environment]\nLD_PRELOAD = "/x.so"', "preloaded code"),
    ("[environment]\nNCCL_NSOCKS = 4", "text value in quotes"),
    ('[environment]\n"A B" = "x"', "plain name"),
]


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_everything_else_is_refused_with_the_rule(tmp_path, text, says):
    with pytest.raises(RuleError, match=says) as error:
        rules.load(written(tmp_path, text))
    message = str(error.value)
    assert "--override" in message
    assert "override.toml" in message
    assert "\n" not in message


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_open_lets_it_pass_and_lists_it(tmp_path, text, says):
    settings = rules.load(written(tmp_path, text), open_=True)
    listed = rules.departures(settings)
    assert len(listed) == 1
    assert "rule: " in listed[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[for.8B.data]\nmicro_bsz = 1", r"\[for.8B\] names neither a model .tiny, 7B"),
        ('[for."7B-tp8".data]\nmicro_bsz = 1', "names neither a model"),
        ("[data", "not valid TOML"),
        ("for = 3", "named after a model or a case"),
        ("[for]\n7B = 1", "named after"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, text, says):
    with pytest.raises(RuleError, match=says):
        rules.load(written(tmp_path, text), open_=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RuleError, match=r"nowhere\.toml: cannot be read"):
        rules.load(tmp_path / "nowhere.toml")
