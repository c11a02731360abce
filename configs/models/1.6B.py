# An InternLM of 1.6 billion parameters, for devices that 7B does not fit; pre-training on InternLM's dummy data.
# By hand, on 8 devices:
#   torchrun --nproc_per_node=8 train.py --config configs/models/1.6B.py --launcher torch
# The suite replaces the layout, micro_bsz, micro_num and data.total_steps; all else is fixed.
JOB_NAME = "1.6B"
model_type = "INTERNLM"

GLOBAL_BATCH = 128  # samples a step over all ranks: micro_bsz x micro_num x data parallel size
SEQ_LEN = 2048
HIDDEN_SIZE = 2048
NUM_ATTENTION_HEAD = 16
MLP_RATIO = 8 / 3
NUM_LAYER = 24
VOCAB_SIZE = 103168

ckpt = dict(
    enable_save_ckpt=False,
    auto_resume=False,  # True, InternLM's default, silently resumes an old checkpoint
    load_ckpt_info=None,
)

data = dict(
    seq_len=SEQ_LEN,
    micro_bsz=2,
    micro_num=8,
    valid_every=0,
    pack_sample_into_one=False,
    total_steps=100,
    skip_batches="",
    rampup_batch_size="",
    min_length=0,
    train_folder=None,  # None: the dummy data
    valid_folder=None,
    fixed_random_dataset_seqlen=True,
    use_packed_dataset=True,
    empty_cache_and_diag_interval=200,
    diag_outlier_ratio=1.1,
)

grad_scaler = dict(
    fp16=dict(initial_scale=2**16, min_scale=1, growth_interval=1000),
    growth_factor=2,
    backoff_factor=0.5,
    max_scale=2**24,
    hysteresis=2,
)

hybrid_zero_optimizer = dict(
    overlap_sync_grad=True,
    overlap_sync_param=False,
    reduce_bucket_size=512 * 1024 * 1024,  # elements
    clip_grad_norm=1.0,
)

loss = dict(label_smoothing=0)

adam = dict(
    lr=1e-4,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_beta2_c=0,
    adam_eps=1e-8,
    weight_decay=0.01,
)

lr_scheduler = dict(
    total_steps=100_000,  # the long run's length, whatever the length of this run: losses depend on it
    init_steps=0,
    warmup_ratio=0.01,
    eta_min=1e-5,
    last_epoch=-1,
)

beta2_scheduler = dict(init_beta2=adam["adam_beta2"], c=adam["adam_beta2_c"], cur_iter=-1)

model = dict(
    checkpoint=False,  # activation checkpointing
    num_chunks=1,
    num_attention_heads=NUM_ATTENTION_HEAD,
    embed_split_hidden=True,
    vocab_size=VOCAB_SIZE,
    embed_grad_scale=1,
    parallel_output=True,
    hidden_size=HIDDEN_SIZE,
    num_layers=NUM_LAYER,
    mlp_ratio=MLP_RATIO,
    apply_post_layer_norm=False,
    dtype="torch.bfloat16",
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    use_flash_attn=True,
)

parallel = dict(
    zero1=dict(size=8),
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True, memory_pool=True),
)

cudnn_deterministic = False
cudnn_benchmark = False
enable_tb = False
