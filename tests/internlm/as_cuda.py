"""The bundled trainer on a CPU that InternLM takes for a GPU: the path through the flash-attn stand-ins.

Only the kernel is exchanged: in place of torch's `varlen_attn`, which needs CUDA, attention written out in full.
Fused parts are those that TRAINER_FUSED names, by default none, in Triton's interpreter.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from fixtures.internlm.trainer import accelerator, attention, fused, train


def plain_varlen_attention(
    query, key, value, starts_q, starts_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """(t, h, d), (t, g, d), (t, g, d): softmax(q k / sqrt(d)) v within each sequence, in float32."""
    import torch

    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError("head counts differ")
    out = torch.empty_like(query)
    for q0, q1, k0, k1 in zip(starts_q[:-1], starts_q[1:], starts_k[:-1], starts_k[1:], strict=True):
        repeat = query.shape[1] // key.shape[1]
        k, v = (x[k0:k1].float().repeat_interleave(repeat, dim=1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1].float(), k) * (scale or query.shape[2] ** -0.5)
        if window_size == (-1, 0):
            after = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + int(k1 - k0) - int(q1 - q0))
            scores = scores.masked_fill(after, float("-inf"))
        out[q0:q1] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(out.dtype)
    return out


def pretend() -> None:
    import torch.nn.attention.varlen

    torch.nn.attention.varlen.varlen_attn = plain_varlen_attention
    install = accelerator.install_cpu

    def install_as_gpu() -> None:
        install()
        attention.install()
        accelerator.CPUAccelerator.get_accelerator_backend = gpu

    accelerator.install_cpu = install_as_gpu
    prepare = train.prepare

    def prepare_fused(config_file: Path) -> train.Session:
        fused.install(fused.chosen(os.environ.get(fused.SWITCH, "none")))
        return prepare(config_file)

    train.prepare = prepare_fused


def gpu(self):
    from internlm.accelerator.abstract_accelerator import AcceleratorType

    return AcceleratorType.GPU


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    pretend()
    train.end(train.main())
