"""tiny: InternLM's model, data and optimizer at a size that two CPU processes train in half a minute.

It proves the suite, not a machine, and is never certified. By hand:

    torchrun --nproc-per-node 2 fixtures/internlm/trainer/train.py --config configs/models/tiny.py --launcher torch

The vendor's to change: `parallel`, `micro_bsz` and `micro_num`, as long as micro_bsz x micro_num x data parallel
size is GLOBAL_BATCH or less, and micro_num a multiple of micro_bsz where there is a pipeline. Everything else is
fixed: losses depend on it. The loss after 400 steps is about 0.048, in every layout.
"""

JOB_NAME = "tiny"
model_type = "INTERNLM"

GLOBAL_BATCH = 8  # samples a step over all ranks: micro_bsz x micro_num x data parallel
SEQ_LEN = 128
HIDDEN_SIZE = 128
NUM_ATTENTION_HEAD = 8  # as many as the tensor parallelism of one host may have ranks
MLP_RATIO = 8 / 3
NUM_LAYER = 2
VOCAB_SIZE = 1024

# dummy data: no folder is named
data = dict(
    seq_len=SEQ_LEN,
    micro_num=1,  # micro-batches a step; at least the pipeline size
    micro_bsz=4,  # sequences a micro-batch
    total_steps=400,  # length of this run
    fixed_random_dataset_seqlen=True,  # every sample fills the sequence
    use_packed_dataset=False,  # as use_flash_attn
    pack_sample_into_one=False,
    skip_batches="",
    rampup_batch_size="",
    min_length=0,
    num_worker=0,
    valid_every=0,
    train_folder=None,
    valid_folder=None,
    empty_cache_and_diag_interval=200,
    diag_outlier_ratio=1.1,
)

model = dict(
    num_layers=NUM_LAYER,
    hidden_size=HIDDEN_SIZE,
    num_attention_heads=NUM_ATTENTION_HEAD,
    mlp_ratio=MLP_RATIO,
    vocab_size=VOCAB_SIZE,
    dtype="torch.float32",
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    apply_post_layer_norm=False,
    embed_split_hidden=True,
    embed_grad_scale=1,
    parallel_output=False,  # needs flash-attn's cross-entropy
    use_flash_attn=False,  # needs an accelerator
    checkpoint=False,  # activation checkpointing
    num_chunks=1,
)

parallel = dict(
    zero1=dict(size=-1, fsdp=False),  # -1: the data parallel size
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=False),
    weight=dict(size=1, overlap=False, memory_pool=False),
)

loss = dict(label_smoothing=0)

adam = dict(
    lr=3e-3,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_beta2_c=0,
    adam_eps=1e-8,
    weight_decay=0.01,
)

lr_scheduler = dict(
    total_steps=400,  # the schedule's, whatever the run's length
    init_steps=0,
    warmup_ratio=0.01,
    eta_min=3e-4,
    last_epoch=-1,
)

beta2_scheduler = dict(
    init_beta2=adam["adam_beta2"],
    c=adam["adam_beta2_c"],
    cur_iter=-1,
)

hybrid_zero_optimizer = dict(
    overlap_sync_grad=False,
    overlap_sync_param=False,
    reduce_bucket_size=512 * 1024 * 1024,
    clip_grad_norm=1.0,
)

# float32 needs no loss scaling; InternLM reads these all the same
grad_scaler = dict(
    fp16=dict(initial_scale=1, min_scale=1, growth_interval=1000),
    growth_factor=2,
    backoff_factor=0.5,
    max_scale=2**24,
    hysteresis=2,
)

ckpt = dict(
    enable_save_ckpt=False,
    auto_resume=False,  # an old checkpoint would be resumed without a word
)

enable_tb = False
cudnn_deterministic = False
cudnn_benchmark = False
