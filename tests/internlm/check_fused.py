"""How far the fused parts are from InternLM's own formulas, printed as JSON; on CUDA, or by Triton's interpreter.

For each part and dtype the largest difference of results and gradients, relative to the largest figure: of the
formula ("plain") and of the fused part ("fused"), both against the formula in float64. "again" is true if a second
pass gave the same bits.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

from fixtures.internlm.trainer import accelerator, attention, fused  # noqa: E402  # Triton reads the variable

TOKENS, HEADS, SIZE, WIDTH, COLUMNS = (48, 3, 8, 40, 5000) if DEVICE == "cpu" else (4096, 32, 128, 4096, 103168)


def compare(plain, ours, inputs, dtype):
    """`plain` and `ours` map tensors to one; gradients come from a random slope."""
    torch.manual_seed(3)
    values = [torch.randn(shape, dtype=torch.float64, device=DEVICE).to(dtype) for shape in inputs]
    exact = passes(plain, [v.double() for v in values])
    first, again = passes(ours, values), passes(ours, values)
    return {
        "plain": distance(passes(plain, values), exact),
        "fused": distance(first, exact),
        "again": all(torch.equal(a, b) for a, b in zip(first, again, strict=True)),
    }


def passes(function, values):
    leaves = [v.clone().requires_grad_() for v in values]
    out = function(*[leaf * 1 for leaf in leaves])
    torch.manual_seed(4)
    slope = torch.randn(out.shape, dtype=torch.float64, device=DEVICE).to(out.dtype)
    out.backward(slope)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def distance(got, exact):
    return max(float((g.double() - e).abs().max() / e.abs().max()) for g, e in zip(got, exact, strict=True))


def norm(dtype):
    from internlm.model.ops.norm import manual_rms_norm

    def ours(x, weight):
        return fused.rms_norm(SimpleNamespace(weight=weight, normalized_shape=(WIDTH,), eps=1e-5), x.float())

    def plain(x, weight):
        if x.dtype == torch.float64:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
        return manual_rms_norm(x.float(), (WIDTH,), weight, 1e-5)

    return compare(plain, ours, [(TOKENS, WIDTH), (WIDTH,)], dtype)


def rotary(dtype):
    from internlm.model.modules.embedding import ApplyRotaryEmbQKV_

    positions = torch.arange(TOKENS, device=DEVICE).fmod(TOKENS // 2)
    angles = torch.outer(
        torch.arange(TOKENS, device=DEVICE), 10000 ** -(torch.arange(0, SIZE, 2, device=DEVICE) / SIZE)
    )

    def plain(qkv):
        cos, sin = angles.cos()[positions], angles.sin()[positions]
        if qkv.dtype == torch.float64:
            cos, sin = (t.to(dtype).double()[:, None, None] for t in (cos, sin))
            a, b = qkv[:, :2].chunk(2, -1)
            return torch.cat([torch.cat([a * cos - b * sin, a * sin + b * cos], -1), qkv[:, 2:]], 1)
        return ApplyRotaryEmbQKV_.apply(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype))

    def ours(qkv):
        return fused.Rotary.apply(qkv, angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype), positions)

    return compare(plain, ours, [(TOKENS, 3, HEADS, SIZE)], dtype)


def activation(dtype):
    from internlm.model.utils import Silu

    return compare(Silu, fused.swiglu, [(TOKENS, WIDTH), (TOKENS, WIDTH)], dtype)


def loss(dtype):
    target = torch.arange(TOKENS, device=DEVICE) * 7 % COLUMNS
    target[3] = -100

    def plain(logits):
        return torch.nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)

    def ours(logits):
        return attention.CrossEntropyLoss(reduction="none", label_smoothing=0.1, inplace_backward=True)(
            logits, target
        ).to(logits.dtype)

    undo = fused.install(["loss"])
    answer = compare(plain, ours, [(TOKENS, COLUMNS)], dtype)
    fused.remove(undo)
    return answer


def best_column():
    from fixtures.internlm.trainer.kernels import row_sums

    logits = torch.randn(TOKENS, COLUMNS, device=DEVICE)
    return bool((row_sums(logits)[1] == logits.argmax(1)).all())


def even_attention(dtype):
    length, scale = TOKENS // 2, SIZE**-0.5
    starts = torch.arange(0, TOKENS + 1, length, dtype=torch.int32, device=DEVICE)

    def plain(qkv):
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in qkv.unbind(1))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2).flatten(0, 1)

    def ours(qkv):
        return fused.by_cudnn(*qkv.unbind(1), length, scale)

    def varlen(qkv):
        layer = attention.FlashSelfAttention(causal=True, softmax_scale=scale)
        return layer(qkv, cu_seqlens=starts, max_seqlen=length)

    shape = [(TOKENS, 3, min(HEADS, 4), SIZE)]
    answer = {"attention": compare(plain, ours, shape, dtype)}
    if DEVICE == "cuda":
        answer["varlen"] = compare(plain, varlen, shape, dtype)
    return answer


def main():
    if DEVICE == "cpu":
        accelerator.install_cpu()
    else:
        attention.install()
    answer = {"best column": best_column()}
    for dtype in (torch.float32, torch.bfloat16):
        for part in (norm, rotary, activation, loss):
            answer[f"{part.__name__} {str(dtype)[6:]}"] = part(dtype)
    for name, figures in even_attention(torch.bfloat16).items():
        answer[f"{name} bfloat16"] = figures
    return answer


if __name__ == "__main__":
    print("\n" + json.dumps(main()))
