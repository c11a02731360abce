"""Every case of every model passes InternLM's own checks, on 1 to 1,024 ranks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures import cases
from fixtures.internlm import config, models
from tests.internlm.requests import request_of

CHECKER = Path(__file__).with_name("check_configs.py")
WORLDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def ask(tmp_path, configs):
    done = subprocess.run(
        [sys.executable, str(CHECKER)],
        input=json.dumps({"folder": str(tmp_path), "configs": configs}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def described(case, **changes):
    return {
        "name": case.name,
        "world": case.world,
        "source": config.render(request_of(case, accelerator="nvidia", deterministic=False, **changes)),
    }


@pytest.mark.slow
def test_every_case_passes_internlms_own_checks(tmp_path):
    every = [case for world in WORLDS for case in cases.select(None, extended=True, own_layouts=(), world=world)]
    assert {case.model for case in every} == set(cases.models.known())
    assert len(every) > 100
    answers = ask(tmp_path, [described(case) for case in every])
    assert len(answers) == len(every)
    assert {name: said for name, said in answers.items() if said} == {}


@pytest.mark.slow
def test_every_model_file_passes_by_hand_on_the_devices_that_it_names(tmp_path):
    configs = []
    for model in models.known():
        source = (models.FOLDER / f"{model}.py").read_text(encoding="utf-8")
        nodes, ranks = re.search(r"(?:--nnodes=(\d+) )?--nproc[-_]per[-_]node[= ](\d+)", source).groups()
        configs.append({"name": model, "world": int(nodes or 1) * int(ranks), "source": source})
    answers = ask(tmp_path, configs)
    assert len(answers) == len(models.known())
    assert {name: said for name, said in answers.items() if said} == {}


@pytest.mark.slow
def test_the_checker_finds_what_internlm_refuses(tmp_path):
    case = cases.fit("7B", cases.Layout(1, 1, 8), 8)
    good = described(case)
    spoilt = {
        "zero": ("        size=8,\n        fsdp=False", "        size=3,\n        fsdp=False"),
        "packed": ("use_packed_dataset=True", "use_packed_dataset=False"),
        "keyword": ("use_flash_attn=True", "use_flash_attn=True,\n    no_such=1"),
        "batch": ("micro_num=32", "micro_num=31"),
        "dtype": ("torch.bfloat16", "torch.int8"),
        "resume": ("auto_resume=False", "auto_resume=True"),
    }
    bad = []
    for name, (old, new) in spoilt.items():
        assert old in good["source"]
        bad.append({"name": name, "world": 8, "source": good["source"].replace(old, new)})
    answers = ask(tmp_path, [good, *bad])
    assert answers.pop(f"{case.name} on 8") is None
    assert [name for name, said in answers.items() if said is None] == []
