"""Fine-tuning data, with a tokenizer trained here; InternLM's own classes read it back in a process of their own."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fixtures.internlm import alpaca
from fixtures.internlm.alpaca import Vocabulary, convert, fault, for_validation, main, tokenize

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = 512  # vocabulary of the model; the tokenizer has some 400 pieces
WORDS = ["the", "cat", "sees", "red", "dogs", "and", "runs", "over", "green", "hills", "保持", "健康", "3.14", "naïve"]


def sentence(seed, words=12):
    return " ".join(np.random.RandomState(seed).choice(WORDS, words))


def records(count):
    return [
        {
            "instruction": sentence(i),
            "input": sentence(i + 1000, 5) if i % 3 == 0 else "",
            "output": sentence(i + 2000, 20),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence(i) for i in range(400)), model_prefix=str(folder / "tiny"), vocab_size=400,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "tiny.model"


@pytest.fixture
def make(tmp_path, tokenizer, capsys):
    """Run the command on JSON text or a list of records; returns its status and what it said."""

    def run(content, *options, out="out", model=tokenizer):
        data = tmp_path / "alpaca_data.json"
        if content is not None:
            data.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        status = main([str(data), str(model), str(tmp_path / out), "--vocabulary", str(SIZE), *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def split(folder, name="train"):
    """(lines, meta) of a split; each line by its offset in meta, as InternLM reads it."""
    blob = (folder / name / "en" / "dataset.bin").read_bytes()
    meta = np.load(folder / name / "en" / "dataset.bin.meta")
    return [json.loads(blob[offset : blob.index(b"\n", offset)])["tokens"] for offset, _ in meta], meta


def words(text):
    """A tokenizer of the test: one id a letter."""
    return [ord(letter) for letter in text]


LETTERS = Vocabulary(words, begin=1, end=2, size=1 << 20)


# ---- a sample --------------------------------------------------------------------------------------------


def test_a_sample_is_prompt_without_loss_then_answer():
    tokens = tokenize({"instruction": "I", "input": "x", "output": "ok"}, LETTERS)
    prompt = [*words("<|User|>:I\nx"), (1 << 20) - 1, 13, *words("<|Bot|>:")]
    assert tokens == [1, *(-token for token in prompt), *words("ok"), (1 << 20) - 2, 13]


@pytest.mark.parametrize(
    "record", [{"instruction": "I", "output": ""}, {"instruction": "I", "input": "", "output": ""}]
)
def test_without_input_there_is_no_newline_after_the_instruction(record):
    tokens = tokenize(record, LETTERS)
    assert tokens[:12] == [1, *(-token for token in words("<|User|>:I")), -((1 << 20) - 1)]


def test_the_ids_of_internlm_7b_follow_from_its_vocabulary():
    seven = Vocabulary(words, 1, 2)
    assert (seven.end_of_human, seven.end_of_answer) == (103167, 103166)


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, None),
        ({"instruction": "a", "output": ""}, None),
        ("text", 'is no object but "text"'),
        ({"instruction": "a"}, 'has no "output"'),
        ({"output": "a"}, 'has no "instruction"'),
        ({"instruction": 3, "output": "a"}, '"instruction" is no text but 3'),
        ({"instruction": "a", "input": None, "output": "a"}, '"input" is no text but null'),
        ({"instruction": "a", "output": "\ud83d"}, '"output" holds half a character'),
    ],
)
def test_what_is_wrong_with_a_record(record, wrong):
    told = fault(record)
    assert told == wrong if wrong is None else told.startswith(wrong)


# ---- the command -----------------------------------------------------------------------------------------


def test_the_data_set_is_whole_and_says_what_it_was_made_of(make, tmp_path, tokenizer):
    import sentencepiece

    status, said, _ = make(records(200))
    assert status == 0
    train, meta = split(tmp_path / "out")
    valid, _ = split(tmp_path / "out", "valid")
    assert [len(tokens) for tokens in train] == meta[:, 1].tolist()
    assert meta.dtype == np.int64
    held_back = for_validation(200, 0.1)
    assert (len(train), len(valid)) == (200 - len(held_back), len(held_back))
    plain = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    answers = iter([record["output"] for i, record in enumerate(records(200)) if i not in held_back])
    for tokens in train:
        assert (tokens[0], tokens[-1], tokens[-2], tokens[-3]) == (plain.bos_id(), plain.eos_id(), 13, SIZE - 2)
        assert plain.decode([token for token in tokens[1:-3] if token >= 0]) == next(answers)
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["samples"] == {"train": len(train), "valid": len(valid)}
    assert about["tokens"]["train"] == sum(map(len, train))
    assert set(about["files"]) == {f"{s}/en/dataset.bin{m}" for s in ("train", "valid") for m in ("", ".meta")}
    assert f"{len(train)} samples" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alpaca_data.json", "out"]


def test_the_same_input_gives_the_same_bytes(make, tmp_path):
    for out in ("a", "b"):
        assert make(records(50), out=out)[0] == 0
    assert (tmp_path / "a" / "about.json").read_bytes() == (tmp_path / "b" / "about.json").read_bytes()


def test_what_is_held_back_is_drawn_as_internlms_tool_draws_it():
    np.random.seed(0)
    assert for_validation(500, 0.1) == set(np.random.choice(range(500), 50).tolist())
    assert for_validation(5, 0.1) == set()


def test_nothing_held_back_makes_no_folder_that_internlm_cannot_read(make, tmp_path):
    assert make(records(30), "--split-ratio", "0")[0] == 0
    assert len(split(tmp_path / "out")[0]) == 30
    assert not (tmp_path / "out" / "valid").exists()


def test_long_samples_are_cut_and_those_that_lost_their_answer_are_counted(make, tmp_path):
    long = {"instruction": "red", "output": "dog " * 5000}
    lost = {"instruction": "cat " * 5000, "output": "dog"}
    status, said, _ = make([*records(8), long, lost], "--split-ratio", "0")
    train, _ = split(tmp_path / "out")
    assert status == 0
    assert [len(tokens) for tokens in train[-2:]] == [2048, 2048]
    assert [tokens[-1] for tokens in train[-2:]] == [2, 2]
    assert "2 samples were cut to 2048 tokens; 1 of them lost the answer" in said


def test_bad_records_are_left_out_counted_and_named(make, tmp_path):
    bad = [{"instruction": "x"}, 7, {"instruction": "a", "output": ["b"]}, *[None] * 20]
    status, said, _ = make([*records(3), *bad, *records(3)], "--split-ratio", "0")
    assert status == 0
    assert len(split(tmp_path / "out")[0]) == 6
    assert '23 bad records were left out: record 3 has no "output"; record 4 is no object but 7; record 5' in said
    assert said.rstrip().endswith("and 13 more")


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (None, "alpaca_data.json: there is no such file"),
        ("", "is not valid JSON"),
        ("not JSON at all", "is not valid JSON"),
        (json.dumps(records(5))[:-20], "is not valid JSON"),
        ("\n".join(map(json.dumps, records(3))), "is not valid JSON"),
        ('{"version": 1}', "holds no list of records"),
        ("[]", "holds no list of records"),
        ('[{"text": "a"}, {"text": "b"}]', 'none of its 2 records is good: record 0 has no "instruction"'),
    ],
)
def test_a_wrong_file_is_one_clear_line_and_leaves_nothing(make, tmp_path, content, wrong):
    status, said, error = make(content)
    assert (status, said) == (1, "")
    assert wrong in error
    assert "Traceback" not in error
    assert [p.name for p in tmp_path.iterdir() if p.name != "alpaca_data.json"] == []


def test_bytes_that_are_no_text(make, tmp_path):
    (tmp_path / "alpaca_data.json").write_bytes(b'[{"instruction": "\xff\xfe"}]')
    status, _, error = make(None)
    assert status == 1
    assert "is not valid JSON" in error


def test_wrong_tokenizers(make, tmp_path, tokenizer):
    (tmp_path / "fake.model").write_text("hello")
    assert "is no sentencepiece model" in make(records(3), model=tmp_path / "fake.model")[2]
    assert "there is no such file" in make(records(3), model=tmp_path / "none.model")[2]
    status, _, error = make(records(3), "--vocabulary", "100")
    assert status == 1
    assert "pieces, the model's vocabulary 100; take the model's own tokenizer" in error


def test_what_is_there_is_not_overwritten(make, tmp_path):
    (tmp_path / "out").mkdir()
    assert make(records(3))[0] == 0  # an empty folder is as good as none
    before = sorted((tmp_path / "out").rglob("*"))
    status, _, error = make(records(4))
    assert status == 1
    assert "is there already" in error
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_place_that_cannot_be_written(make, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, error = make(records(3), out="file/out")
    assert status == 1
    assert "cannot be written" in error


def test_ratio_out_of_range_is_a_usage_error(make):
    with pytest.raises(SystemExit) as exit_:
        make(records(3), "--split-ratio", "1")
    assert exit_.value.code == 2


def test_records_are_streamed(tmp_path):
    """A file of 10 MB is never held in memory."""
    data = tmp_path / "big.json"
    with data.open("w") as file:
        file.write("[")
        for i in range(1000):
            file.write(("," if i else "") + json.dumps({"instruction": "i", "input": "", "output": "x" * 10_000}))
        file.write("]")
    tracemalloc.start()
    counts = convert(data, Vocabulary(lambda text: [5] * (len(text) // 100), 1, 2), tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(counts.samples.values()) == 1000
    assert peak < data.stat().st_size / 10


def test_missing_packages_are_named():
    code = "import sys; sys.modules['sentencepiece'] = None\n"
    code += "from fixtures.internlm import alpaca; sys.exit(alpaca.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, __file__, __file__, "/tmp/none"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "pip install -e '.[sft]'" in done.stderr


# ---- InternLM reads it -----------------------------------------------------------------------------------

READ_BACK = """
import json, os, sys
os.environ["INTERNLM_ACCELERATOR"] = "cuda"  # only imported, nothing runs on a device
from internlm.data.tokenized.collaters import packed_collate_fn
from internlm.data.tokenized.packed_dataset import PackedDatasetWithCut
from internlm.data.tokenized.single_dataset import JsonlDataset
dataset = JsonlDataset(sys.argv[1], min_length=0)
packed = PackedDatasetWithCut(dataset, max_length_per_sample=2048, packed_length=256)
batch, labels = packed_collate_fn([packed.build_pack(0)], packed_length=256)
print(json.dumps({
    "tokens": [dataset[i]["tokens"] for i in range(len(dataset))],
    "kept": len(JsonlDataset(sys.argv[1], min_length=60)),
    "packed": [batch["input_ids"][0].tolist(), labels[0].tolist()],
}))
"""


@pytest.mark.slow
def test_internlms_own_classes_read_the_files(make, tmp_path):
    assert make(records(60))[0] == 0
    path = tmp_path / "out" / "train" / "en" / "dataset.bin"
    done = subprocess.run(
        [sys.executable, "-c", READ_BACK, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.strip().rpartition("\n")[2])
    train, meta = split(tmp_path / "out")
    assert told["tokens"] == train
    assert told["kept"] == int((meta[:, 1] >= 60).sum())
    inputs, labels = told["packed"]
    # Packing shuffles the samples: the one that the pack begins with.
    (first,) = (sample for sample in train if [abs(token) for token in sample] == inputs[: len(sample)])
    assert labels[: len(first) - 1] == [token if token > 0 else -100 for token in first[1:]]
    assert len([label for label in labels[: len(first) - 1] if label > 0]) > 5


def test_alpaca_does_not_import_torch():
    code = "import sys, fixtures.internlm.alpaca; print({'torch', 'internlm', 'sentencepiece'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert alpaca.LENGTH == 2048
