"""Figures that need torch or InternLM, printed as JSON: run as a script, because the tests import neither.

dummy           differences between InternLM's dummy data and ours
attention       largest differences between the stand-ins for flash-attn and InternLM's own attention
cross-entropy   largest differences from torch's cross-entropy, the vocabulary split over the ranks that run this
device          what the choice of device says where torch sees none
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
import torch.distributed as dist

from fixtures.internlm.dummy import DummyDataset
from fixtures.internlm.trainer import accelerator, attention
from tests.internlm.as_cuda import plain_varlen_attention


def dummy():
    accelerator.install_cpu()
    from internlm.data.tokenized.dummy_dataset import RandomDataset

    answer = {}
    for samples, seq_len in ((20000, 64), (20000, 128), (4000, 2048), (400, 32768), (100, 3), (100, 2)):
        for fixed in (True, False):
            theirs, ours = RandomDataset(samples, seq_len, fixed), DummyDataset(samples, seq_len, fixed)
            unlike = [i for i in range(samples) if theirs[i] != ours[i]]
            answer[f"{seq_len} {'fixed' if fixed else 'variable'}"] = {
                "samples": [len(theirs), len(ours)],
                "unlike": unlike,
                "lengths": bool((theirs.lengths == ours.lengths).all() and theirs.lengths.dtype == ours.lengths.dtype),
                "tokens": sum(map(len, theirs.data)),
                "name": theirs.get_dataset_name() == ours.get_dataset_name(),
            }
    return answer


def attention_differences():
    import torch.nn.attention.varlen

    torch.nn.attention.varlen.varlen_attn = plain_varlen_attention
    accelerator.install_cpu()
    from internlm.model.modules.multi_head_attention import CrossAttention, SelfAttention

    torch.manual_seed(1)
    batch, tokens, heads, size = 3, 11, 4, 8
    answer = {}
    for causal in (True, False):
        kind = "causal" if causal else "full"
        ours = attention.FlashSelfAttention(causal=causal).eval()
        theirs = SelfAttention(causal=causal).eval()
        qkv = torch.randn(batch, tokens, 3, heads, size)
        answer[f"self {kind}"] = gap(ours(qkv=qkv), theirs(qkv))
        starts = torch.tensor([0, 5, 6, tokens], dtype=torch.int64)
        packed = ours(qkv=qkv[0], cu_seqlens=starts, max_seqlen=6)
        parts = [theirs(qkv[:1, a:b])[0] for a, b in ((0, 5), (5, 6), (6, tokens))]
        answer[f"packed {kind}"] = gap(packed, torch.cat(parts))
        q, kv = torch.randn(batch, tokens, heads, size), torch.randn(batch, tokens, 2, 2, size)
        cross = attention.FlashCrossAttention(causal=causal).eval()
        answer[f"grouped {kind}"] = gap(cross(q, kv), CrossAttention(causal=causal).eval()(q, kv))
        answer[f"told {kind}"] = gap(
            attention.FlashCrossAttention(causal=not causal)(q, kv, causal=causal), cross(q, kv)
        )
    try:
        attention.FlashSelfAttention(attention_dropout=0.1).train()(qkv)
    except attention.AttentionError as error:
        answer["dropout"] = str(error)
    given = []
    switched = attention.deterministic_when_torch_is(lambda **kwargs: given.append(kwargs))
    switched(causal=True)
    torch.use_deterministic_algorithms(True)
    switched(causal=True)
    answer["switch"] = given
    return answer


def cross_entropy_differences():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    tokens, share = 12, 10
    answer = {}
    for smoothing in (0.0, 0.1):
        for reduction in ("mean", "sum", "none"):
            for inplace in (True, False):
                for dtype in (torch.float32, torch.bfloat16):
                    torch.manual_seed(2)
                    whole = (3 * torch.randn(tokens, share * world)).to(dtype)
                    target = torch.randint(share * world, (tokens,))
                    target[[1, 5]] = -100
                    weights = torch.rand(tokens) if reduction == "none" else torch.tensor(0.7)
                    wanted = whole.float().clone().requires_grad_()
                    loss = torch.nn.functional.cross_entropy(
                        wanted, target, reduction=reduction, label_smoothing=smoothing
                    )
                    (loss * weights).sum().backward()
                    mine = slice(rank * share, (rank + 1) * share)
                    logits = whole[:, mine].clone().requires_grad_()
                    criterion = attention.CrossEntropyLoss(
                        reduction=reduction,
                        label_smoothing=smoothing,
                        inplace_backward=inplace,
                        process_group=dist.group.WORLD if world > 1 else None,
                    )
                    got = criterion(logits * 1, target)
                    (got * weights).sum().backward()
                    name = f"{reduction} {smoothing} {'in place' if inplace else 'apart'} {str(dtype)[6:]}"
                    answer[name] = {"loss": gap(got, loss), "gradient": gap(logits.grad, wanted.grad[:, mine])}
    ranks = [None] * world
    dist.all_gather_object(ranks, answer)
    dist.destroy_process_group()  # gloo's threads would outlive the interpreter, and abort it
    return {name: {k: max(r[name][k] for r in ranks) for k in answer[name]} for name in answer} if rank == 0 else None


def device():
    accelerator.DEVICE_FILES = ("/dev/null",)
    os.environ.pop(accelerator.CHOICE, None)
    try:
        accelerator.use_cpu()
    except accelerator.DeviceError as error:
        answer = {"driver": str(error)}
    os.environ[accelerator.CHOICE] = "cpu"
    answer["told"] = accelerator.use_cpu()
    os.environ[accelerator.CHOICE] = "npu"
    answer["told otherwise"] = accelerator.use_cpu()
    return answer


def gap(one, other):
    assert one.shape == other.shape, (one.shape, other.shape)
    return float((one.detach().float() - other.detach().float()).abs().max())


if __name__ == "__main__":
    questions = {
        "dummy": dummy,
        "attention": attention_differences,
        "cross-entropy": cross_entropy_differences,
        "device": device,
    }
    answer = questions[sys.argv[1]]()
    if answer is not None:
        print("\n" + json.dumps(answer))
