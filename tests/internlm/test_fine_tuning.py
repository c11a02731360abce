"""Fine-tuning for real: from weights that a tiny pre-training run saved, on instructions made here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from fixtures.cases import Layout, fit
from fixtures.internlm import alpaca, finetuning
from fixtures.internlm.finetuning import FineTuningError, find
from fixtures.options import collect
from fixtures.setup import SetupError, prepare
from tests.internlm import tuning
from tests.internlm.tuning import VOCABULARY, Tuning
from tests.suite import acceptance

CASE = "tiny-sft-tp1-pp1-zerodp"
CRITERIA = ("startup", "throughput", "determinism", "convergence")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return tuning.make(tmp_path_factory.mktemp("tuning"))


def accept(tuned, results, *arguments):
    """`pytest acceptance` on the fine-tuning case; (completed process, its criteria)."""
    given = ("--model", "tiny", "--accelerator", "cpu", "--sft-data", tuned.data, "--sft-weights", tuned.weights)
    done = acceptance("-k", CASE, *given, "--results", results, *arguments, seconds=1800)
    (case,) = json.loads((results / "results.json").read_text())["cases"]
    assert case["case"] == CASE
    return done, case["criteria"]


@pytest.mark.slow
def test_fine_tuning_passes_all_four_criteria(tuned, tmp_path):
    done, criteria = accept(tuned, tmp_path)
    assert done.returncode == 0, done.stdout
    assert {name: criteria[name]["outcome"] for name in CRITERIA} == dict.fromkeys(CRITERIA, "pass")
    first = next(m for m in criteria["startup"]["measurements"] if m["name"] == "first_loss")
    final = next(m for m in criteria["convergence"]["measurements"] if m["name"] == "median_loss")
    assert final["value"] < 0.25 * first["value"], "the answers are learnt, not only kept"
    attempt = tmp_path / "runs" / CASE / "speed" / "attempt-1"
    assert json.loads((attempt / "request.json").read_text())["sft"]["files"] == find(tuned.data, tuned.weights).files
    assert "auto_resume=False" in (attempt / "config.py").read_text()


@pytest.mark.slow
def test_fine_tuning_that_starts_from_random_weights_fails_by_name(tuned, tmp_path):
    untrained = replace(tuned, weights=tmp_path / "untrained")
    tuning.save_weights(tuned, untrained.weights, steps=1)
    done, criteria = accept(untrained, tmp_path / "results", "-m", "startup", "--steps", "10")
    assert done.returncode == 1, done.stdout
    assert criteria["startup"]["code"] == "startup-weights-not-loaded"
    assert "the weights were not loaded" in done.stdout


HALVED = """
import sys, torch
weights = torch.load(sys.argv[1])
torch.save({name: value[: len(value) // 2] for name, value in weights.items()}, sys.argv[2])
"""


@pytest.mark.slow
def test_weights_of_another_shape_are_a_failure_of_the_set_up(tuned, tmp_path):
    other = replace(tuned, weights=tmp_path / "other")
    other.weights.mkdir()
    files = (folder / "model_tp0_pp0.pt" for folder in (tuned.weights, other.weights))
    subprocess.run([sys.executable, "-c", HALVED, *map(str, files)], check=True)
    done, criteria = accept(other, tmp_path / "results", "-m", "startup", "--steps", "10")
    assert done.returncode == 1, done.stdout
    assert criteria["startup"]["code"] == "startup-set-up"
    assert "do not go with the model" in criteria["startup"]["reason"]


# ---- what is checked before anything is launched -----------------------------------------------------------


@pytest.fixture
def made(tmp_path):
    """Data of three samples for tiny and an empty file of weights, made without training."""
    data = tmp_path / "data"
    alpaca.write((("train", [1, -5, 6, 2]) for _ in range(3)), data, alpaca.Counts())
    files = {name.as_posix(): alpaca.digest(data / name) for name in (finetuning.DATA, finetuning.META)}
    (data / "about.json").write_text(json.dumps({"vocabulary": VOCABULARY, "files": files}))
    weights(tmp_path / "weights", "model_tp0_pp0.pt")
    return Tuning(tmp_path / "alpaca_data.json", tmp_path / "tiny.model", data, tmp_path / "weights")


def weights(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        zipfile.ZipFile(folder / name, "w").close()


def tiny(tp=1, pp=1, zero=-1, fsdp=False, world=2):
    return fit("tiny", Layout(tp, pp, zero, fsdp), world, dataset="sft")


def test_the_request_tells_data_and_weights(made):
    told = find(made.data, made.weights).as_request(tiny())
    assert told["data"] == str(made.data)
    assert told["files"] == json.loads((made.data / "about.json").read_text())["files"]
    assert told["weights"] == str(made.weights)
    assert told["weight_files"] == {"model_tp0_pp0.pt": (made.weights / "model_tp0_pp0.pt").stat().st_size}


def test_other_data_at_the_same_place_is_another_request(made, tmp_path):
    before = find(made.data, made.weights).as_request(tiny())
    shutil.rmtree(made.data)
    alpaca.write((("train", [1, -5, 7, 2]) for _ in range(3)), made.data, alpaca.Counts())
    (made.data / "about.json").write_text(json.dumps({"vocabulary": VOCABULARY, "files": {}}))
    with pytest.raises(FineTuningError, match="damaged"):
        find(made.data, made.weights)
    (made.data / "about.json").unlink()
    after = find(made.data, made.weights)
    assert after.files != before["files"]
    assert after.vocabulary == 103168, "data that tells nothing is InternLM-7B's"


@pytest.mark.parametrize("missing", ["dataset.bin", "dataset.bin.meta"])
def test_data_without_a_part_is_named_with_the_command_that_makes_it(missing, made):
    (made.data / "train" / "en" / missing).unlink()
    told = rf"there is no train/en/{missing}; make it: python -m fixtures.internlm.alpaca .* {made.data}$"
    with pytest.raises(FineTuningError, match=told):
        find(made.data, made.weights)


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ([[0, 4], [26, 4]], "does not tell of the lines"),
        ([[0, 4], [26, 4], [52, 3]], "counts other tokens"),
        ([[0, 4], [26, 4], [52, 4], [78, 4]], "does not tell of the lines"),
        ([[0, 4], [52, 4], [26, 4]], "does not tell of the lines"),
        ([0, 26, 52], "no table"),
        ([[0.0, 4.0]], "no table"),
        ([], "no table"),
        (b"text", "damaged"),
        (b"", "damaged"),
    ],
)
def test_a_meta_file_that_is_not_of_the_data_is_damage(meta, says, made):
    (made.data / "about.json").unlink()
    with (made.data / finetuning.META).open("wb") as file:
        file.write(meta) if isinstance(meta, bytes) else np.save(file, np.array(meta))
    with pytest.raises(FineTuningError, match=says):
        find(made.data, made.weights)


def test_data_that_changed_after_it_was_made_is_damage(made):
    blob = (made.data / finetuning.DATA).read_bytes()
    (made.data / finetuning.DATA).write_bytes(blob.replace(b"6", b"7"))
    with pytest.raises(FineTuningError, match="not those that about"):
        find(made.data, made.weights)


def test_only_models_of_the_datas_vocabulary_read_it(made):
    found = find(made.data, made.weights)
    assert found.fits(tiny())
    assert found.fits(fit("7B", Layout(1, 1, 8), 8)), "pre-training has nothing to do with it"
    seven = fit("7B", Layout(1, 1, 8), 8, dataset="sft")
    assert not found.fits(seven)
    assert "made for a vocabulary of 1024, but 7B has 103168" in found.misfit([seven])


def test_weights_are_taken_as_they_are_split(made, tmp_path):
    found = find(made.data, made.weights)
    assert not found.fits(tiny(tp=2, zero=1))
    assert "folders named tp2-pp1" in found.misfit([tiny(tp=2, zero=1)])
    weights(made.weights / "tp2-pp1", "model_tp0_pp0.pt", "model_tp1_pp0.pt")
    weights(made.weights / "tp1-pp2", "model_tp0_pp0.pt", "model_tp0_pp1.pt")
    weights(made.weights / "tp1-pp1-fsdp", "model_tp0_pp0_dp0.pt", "model_tp0_pp0_dp1.pt")
    for case, folder in (
        (tiny(tp=2, zero=1), "tp2-pp1"),
        (tiny(pp=2, zero=1), "tp1-pp2"),
        (tiny(fsdp=True), "tp1-pp1-fsdp"),
        (tiny(), ""),
    ):
        assert found.as_request(case)["weights"] == str(made.weights / folder)
    assert not found.fits(tiny(fsdp=True, world=4)), "of four shards, two are there"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda made: shutil.rmtree(made.weights), "--sft-weights .*: there is no such folder"),
        (lambda made: (made.weights / "model_tp0_pp0.pt").write_bytes(b"hello"), "no file of weights"),
        (lambda made: (made.weights / "model_tp0_pp0.pt").rename(made.weights / "a.bin"), "no InternLM weights"),
        (lambda made: (made.data / finetuning.META).unlink(), "python -m fixtures.internlm.alpaca"),
    ],
)  # fmt: skip
def test_data_or_weights_that_cannot_be_used_are_usage_errors(break_it, says, made, tmp_path):
    break_it(made)
    with pytest.raises(SetupError, match=says):
        prepared(made, tmp_path)


def test_fine_tuning_without_weights_is_a_usage_error(made, tmp_path):
    with pytest.raises(SetupError, match="--sft-data without --sft-weights: fine-tuning starts from weights"):
        prepared(replace(made, weights=None), tmp_path)


def test_only_cases_with_weights_are_collected(made, tmp_path):
    names = [case.name for case in prepared(made, tmp_path).cases if case.dataset]
    assert names == [CASE]


def prepared(made, tmp_path):
    given = {
        "acceptance_results": str(tmp_path / "results"),
        "acceptance_accelerator": "cpu",
        "acceptance_sft_data": str(made.data),
        "acceptance_sft_weights": str(made.weights) if made.weights else None,
    }
    return prepare(collect(given.get, lambda _: None), False, lambda model: (400, None, ""))
