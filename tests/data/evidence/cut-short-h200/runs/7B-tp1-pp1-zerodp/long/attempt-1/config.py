# 7B-tp1-pp1-zerodp, run long: written by the acceptance suite, as executed.

JOB_NAME = '7B-tp1-pp1-zerodp-long'
model_type = 'INTERNLM'
GLOBAL_BATCH = 4
SEQ_LEN = 2048
HIDDEN_SIZE = 4096
NUM_ATTENTION_HEAD = 32
MLP_RATIO = 2.6666666666666665
NUM_LAYER = 32
VOCAB_SIZE = 103168
ckpt = dict(
    enable_save_ckpt=False,
    auto_resume=False,
    load_ckpt_info=None,
)
data = dict(
    seq_len=2048,
    micro_bsz=2,
    micro_num=2,
    valid_every=0,
    pack_sample_into_one=False,
    total_steps=2000,
    skip_batches='',
    rampup_batch_size='',
    min_length=0,
    train_folder=None,
    valid_folder=None,
    fixed_random_dataset_seqlen=True,
    use_packed_dataset=True,
    empty_cache_and_diag_interval=200,
    diag_outlier_ratio=1.1,
)
grad_scaler = dict(
    fp16=dict(
        initial_scale=65536,
        min_scale=1,
        growth_interval=1000,
    ),
    growth_factor=2,
    backoff_factor=0.5,
    max_scale=16777216,
    hysteresis=2,
)
hybrid_zero_optimizer = dict(
    overlap_sync_grad=True,
    overlap_sync_param=False,
    reduce_bucket_size=536870912,
    clip_grad_norm=1.0,
)
loss = dict(
    label_smoothing=0,
)
adam = dict(
    lr=0.0001,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_beta2_c=0,
    adam_eps=1e-08,
    weight_decay=0.01,
)
lr_scheduler = dict(
    total_steps=100000,
    init_steps=0,
    warmup_ratio=0.01,
    eta_min=1e-05,
    last_epoch=-1,
)
beta2_scheduler = dict(
    init_beta2=0.95,
    c=0,
    cur_iter=-1,
)
model = dict(
    checkpoint=False,
    num_chunks=1,
    num_attention_heads=32,
    embed_split_hidden=True,
    vocab_size=103168,
    embed_grad_scale=1,
    parallel_output=True,
    hidden_size=4096,
    num_layers=32,
    mlp_ratio=2.6666666666666665,
    apply_post_layer_norm=False,
    dtype='torch.bfloat16',
    norm_type='rmsnorm',
    layer_norm_epsilon=1e-05,
    use_flash_attn=True,
)
parallel = dict(
    zero1=dict(
        size=-1,
        fsdp=False,
    ),
    tensor=dict(
        size=1,
        mode='mtp',
    ),
    pipeline=dict(
        size=1,
        interleaved_overlap=False,
    ),
    weight=dict(
        overlap=True,
        memory_pool=True,
        size=1,
    ),
)
cudnn_deterministic = False
cudnn_benchmark = False
enable_tb = False
