"""The bundled trainer with a fault, named by the variable BROKEN: a script to be launched in place of train.py.

frozen-attention  attention weights get no gradient, and attention passes nothing on
shuffled-labels   every token is to be followed by some token of the same sequence, at random
raise             rank 1 fails in step 2
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from fixtures.internlm.trainer import train


def frozen_attention() -> None:
    """Zero the output of every attention block: its weights then have no gradient and no effect."""
    from internlm.model.modules import multi_head_attention

    forward = multi_head_attention.MHA.forward
    multi_head_attention.MHA.forward = lambda self, *args, **kwargs: 0 * forward(self, *args, **kwargs)


def shuffled_labels() -> None:
    """Permute the labels of each sequence, after InternLM's packing."""
    import torch
    from internlm.data import build_dataloader

    collate = build_dataloader.packed_collate_fn

    def shuffled(batch, packed_length):
        inputs, labels = collate(batch, packed_length)
        return inputs, labels[:, torch.randperm(labels.shape[1])]

    build_dataloader.packed_collate_fn = shuffled


def fail() -> None:
    step = train.step

    def failing(session, number):
        if number == 2 and os.environ["RANK"] == "1":
            raise RuntimeError("this rank was told to fail")
        return step(session, number)

    train.step = failing


FAULTS = {"frozen-attention": frozen_attention, "shuffled-labels": shuffled_labels, "raise": fail}

if __name__ == "__main__":
    prepare = train.prepare

    def prepare_broken(config_file):
        FAULTS[os.environ["BROKEN"]]()
        return prepare(config_file)

    train.prepare = prepare_broken
    train.end(train.main())
