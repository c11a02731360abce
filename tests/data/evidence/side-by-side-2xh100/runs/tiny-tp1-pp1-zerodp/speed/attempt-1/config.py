# tiny-tp1-pp1-zerodp, run speed: written by the acceptance suite, as executed.

JOB_NAME = 'tiny-tp1-pp1-zerodp-speed'
model_type = 'INTERNLM'
GLOBAL_BATCH = 8
SEQ_LEN = 128
HIDDEN_SIZE = 128
NUM_ATTENTION_HEAD = 8
MLP_RATIO = 2.6666666666666665
NUM_LAYER = 2
VOCAB_SIZE = 1024
data = dict(
    seq_len=128,
    micro_num=2,
    micro_bsz=4,
    total_steps=100,
    fixed_random_dataset_seqlen=True,
    use_packed_dataset=False,
    pack_sample_into_one=False,
    skip_batches='',
    rampup_batch_size='',
    min_length=0,
    num_worker=0,
    valid_every=0,
    train_folder=None,
    valid_folder=None,
    empty_cache_and_diag_interval=200,
    diag_outlier_ratio=1.1,
)
model = dict(
    num_layers=2,
    hidden_size=128,
    num_attention_heads=8,
    mlp_ratio=2.6666666666666665,
    vocab_size=1024,
    dtype='torch.bfloat16',
    norm_type='rmsnorm',
    layer_norm_epsilon=1e-05,
    apply_post_layer_norm=False,
    embed_split_hidden=True,
    embed_grad_scale=1,
    parallel_output=False,
    use_flash_attn=False,
    checkpoint=False,
    num_chunks=1,
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
        overlap=False,
        memory_pool=False,
        size=1,
    ),
)
loss = dict(
    label_smoothing=0,
)
adam = dict(
    lr=0.003,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_beta2_c=0,
    adam_eps=1e-08,
    weight_decay=0.01,
)
lr_scheduler = dict(
    total_steps=400,
    init_steps=0,
    warmup_ratio=0.01,
    eta_min=0.0003,
    last_epoch=-1,
)
beta2_scheduler = dict(
    init_beta2=0.95,
    c=0,
    cur_iter=-1,
)
hybrid_zero_optimizer = dict(
    overlap_sync_grad=False,
    overlap_sync_param=False,
    reduce_bucket_size=536870912,
    clip_grad_norm=1.0,
)
grad_scaler = dict(
    fp16=dict(
        initial_scale=1,
        min_scale=1,
        growth_interval=1000,
    ),
    growth_factor=2,
    backoff_factor=0.5,
    max_scale=16777216,
    hysteresis=2,
)
ckpt = dict(
    enable_save_ckpt=False,
    auto_resume=False,
)
enable_tb = False
cudnn_deterministic = False
cudnn_benchmark = False
