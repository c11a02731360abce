"""Fine-tuning data that tiny can learn, and weights that a tiny pre-training run saved, for tests.

What is asked names one of twelve things; each has its own answer. The text that weights are trained on has questions
and answers in the same form that do not belong together: so fine-tuning begins with the language and has all to learn.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from fixtures.internlm import alpaca
from tests.internlm.training import train

THINGS = ("sun", "moon", "river", "hill", "cat", "dog", "bread", "salt", "green", "red", "太阳", "河流")
WORDS = ("it", "is", "far", "warm", "old", "and", "slow", "bright", "under", "the", "trees", "here", "健康")
VOCABULARY = 1024  # tiny's


@dataclass(frozen=True)
class Tuning:
    """Folders as --sft-data and --sft-weights take them; `records` and `tokenizer` are what data was made of."""

    records: Path
    tokenizer: Path
    data: Path
    weights: Path


def record(number: int, thing: str | None = None) -> dict[str, str]:
    """A question; its answer follows from its thing, or from another `thing`."""
    asked = random.Random(number).choice(THINGS)
    words = random.Random(f"{number} words").choices(WORDS, k=4)
    return {"instruction": f"{' '.join(words)} {asked}?", "output": answer(thing or asked)}


def answer(thing: str) -> str:
    return " ".join(random.Random(thing).choices(WORDS, k=8))


def text(number: int) -> dict[str, str]:
    return record(number, thing=f"another {number}")


def make(folder: Path, pretraining_steps: int = 60) -> Tuning:
    """Tokenizer, instructions, their data set, and weights of so many steps on other text."""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(text(i).values()) for i in range(400)), model_prefix=str(folder / "tiny"),
        vocab_size=400, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    made = Tuning(folder / "alpaca_data.json", folder / "tiny.model", folder / "data", folder / "weights")
    made.records.write_text(json.dumps([record(i) for i in range(1000)]), encoding="utf-8")
    alpaca.make(made.records, made.tokenizer, made.data, size=VOCABULARY)
    save_weights(made, made.weights, pretraining_steps)
    return made


def save_weights(made: Tuning, out: Path, steps: int) -> None:
    """Train tiny on text for so many steps with the bundled trainer and keep what it saves."""
    work = out.with_name(f"{out.name}.run")
    work.mkdir()
    vocabulary = alpaca.load_tokenizer(made.tokenizer, VOCABULARY)
    lines = (alpaca.tokenize(text(10**6 + i), vocabulary) for i in range(1000))
    alpaca.write((("train", [*map(abs, line), vocabulary.end]) for line in lines), work, alpaca.Counts())
    saving = (
        f"dict(enable_save_ckpt=True, save_ckpt_folder='local:{work}', checkpoint_every={steps}, auto_resume=False)"
    )
    changes = f"data['train_folder'] = {str(work / 'train')!r}", f"ckpt = {saving}"
    done = train(work, *changes, steps=steps, torchrun=("--standalone", "--nproc-per-node", "1"))
    assert done.status == 0, done.output[-3000:]
    (work / str(steps)).rename(out)
