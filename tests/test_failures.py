"""fixtures/failures.py and its rules: what each text means, and what must not be taken for it."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from fixtures import failures
from fixtures.failures import CLASSES, Rules, cause, quotes, rank_of, shown

RULES = Rules()
NOW = time.time()

# The texts that the design lists, each as it stands there.
LISTED = {
    "out of memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB",
        "torch.cuda.OutOfMemoryError",
        "RuntimeError: CUDA out of memory",
        "HIP out of memory",
        "NPU out of memory",
        "Failed to CUDA calloc 6291456 bytes",
        "DefaultCPUAllocator: can't allocate memory",
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0",
        "srun: error: n1: task 0: Out Of Memory",
    ],
    "collective": [
        "ncclUnhandledCudaError",
        "ncclInternalError",
        "NCCL WARN something",
        "NET/IB : Got completion with error 12",
        "EI0006",
        "EJ0001",
        "ERR02200 DIST call hccl api failed",
        "Connection closed by remote peer",
        "Connection reset by peer",
    ],
    "hang": [
        "Watchdog caught collective operation timeout: WorkNCCL(",
        "WorkHCCL(",
        "watchdog got stuck",
        "RuntimeError: Tried to allocate more than 1EB memory.",
    ],
    "device": [
        "CUDA error: uncorrectable ECC error",
        "unspecified launch failure",
        "NVRM: Xid",
        "GPU has fallen off the bus",
        "Memory access fault by GPU node",
        "error code is 507035",
        "aicore error",
    ],
    "killed": [
        "failed (exitcode: -9) local_rank: 0 (pid: 12) of binary: python",
        "failed (exitcode: 137) local_rank: 0 (pid: 12) of binary: python",
        "Signal 9 (SIGKILL) received",
        "CANCELLED AT 2024-01-01T00:00:00 DUE TO TIME LIMIT",
        "NODE_FAIL",
        "DataLoader worker (pid 12) is killed by signal: Bus error.",
    ],
    "numerical": [
        "Overflow occurs, please check it.",
        "Nan grad norm occurs, please check it.",
        "Warning: skip parameter update at step 7.",
        "INFO train.py:3 in record_current_batch_training_metrics -- tflops=5.4,step=7,loss=nan,tgs",
    ],
    "set-up": [
        "EADDRINUSE",
        "Address already in use",
        "ModuleNotFoundError: No module named 'x'",
        "AssertionError: zero1",
        "ValueError: '[::1]' does not appear to be an IPv4 or IPv6 address",
    ],
}

HARMLESS = [
    "2024-01-10 12:00:00,000\tINFO train.py:31 in record_current_batch_training_metrics -- tflops=5.4 step=7 "
    "loss=7.25 real_tgs=1 tgs (tokens/gpu/second)=2.0 loss/cn=nan loss/en=6.1 grad_norm={'0_default': 2.5}",
    "2024-01-10 12:00:00,000\tINFO evaluation.py:9 in evaluate_on_val_dls -- Validation on en: step=7 val_loss=nan",
    "loss_scale=inf is only a name here",
    "UserWarning: this will be an error in a later version",
    "NCCL INFO Channel 00 : 0[0] -> 1[1] via P2P",
    "Overflow occurs, the loss scale is adjusted to 512.0",
    "We use at most 80 GB of memory",
    "see ValueError: below, in the middle of a line",
]


def see(*lines: str, file: str = "logs/x.log", starting: bool = True, arrival: float = NOW, order: int = 0):
    return RULES.scan(
        "\n".join(lines).encode(), file=file, first_line=1, arrival=arrival, order=order, starting=starting
    )


@pytest.mark.parametrize(("failure", "text"), [(f, t) for f, texts in LISTED.items() for t in texts])
def test_a_listed_text_is_named(failure, text):
    (sighting,) = see("before", text, "after")
    assert sighting.rule.failure == failure
    assert sighting.line == 2


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_line_is_not_suspicious(text):
    assert see(text, starting=False) == []


@pytest.mark.parametrize(("rule", "text"), [(r, e) for r in RULES for e in r.examples])
def test_each_rule_matches_its_examples(rule, text):
    (sighting,) = see(text)
    assert sighting.rule is rule


def test_every_rule_says_what_to_try_and_has_an_example():
    assert all(rule.advice and rule.meaning and rule.examples for rule in RULES)
    assert set(RULES.advice) == set(CLASSES) == {rule.failure for rule in RULES}


def test_a_timeout_is_not_taken_for_lack_of_memory():
    found = see("RuntimeError: Tried to allocate more than 1EB memory.")
    assert [(s.rule.failure, s.rule.kind) for s in found] == [("hang", "secondary")]


def test_an_assertion_is_a_matter_of_set_up_only_before_the_first_step():
    assert see("AssertionError: x", starting=True)[0].rule.failure == "set-up"
    assert see("AssertionError: x", starting=False)[0].rule.failure == "unknown"


def test_the_cause_wins_over_the_line_that_only_says_that_something_failed():
    found = see(
        "ERROR train.py:3 in <module> -- Raise exception from host with rank id: 1",
        "Traceback (most recent call last):",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB",
        file="logs/r/attempt_0/1/stderr.log",
    )
    first = cause(found)
    assert (first.rule.failure, first.rank, first.line) == ("out of memory", 1, 3)


def test_what_other_ranks_say_of_the_consequences_does_not_win_though_it_came_first():
    consequence = see("RuntimeError: Connection reset by peer", file="logs/r/attempt_0/0/stderr.log", arrival=NOW - 1)
    origin = see("RuntimeError: NPU out of memory", file="logs/r/attempt_0/3/stderr.log", order=1)
    assert cause(consequence + origin).rank == 3


def test_only_consequences_the_earliest_is_named():
    first = see("[Rank 2] Watchdog caught collective operation timeout: WorkNCCL(", arrival=NOW - 1)
    later = see("Connection closed by peer", order=1)
    assert (cause(first + later).rule.failure, cause(first + later).rank) == ("hang", 2)


def stamped(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3]


def test_the_ranks_own_times_decide_over_the_order_of_arrival():
    late = see(f"{stamped(NOW - 0.1)}\tERROR a.py:1 in b -- EI0006", file="logs/rank-0.log")
    early = see(f"{stamped(NOW - 0.5)}\tERROR a.py:1 in b -- aicore error", file="logs/rank-1.log", order=1)
    assert cause(late + early).rank == 1


def test_a_traceback_takes_the_time_of_its_record():
    found = see(f"{stamped(NOW - 0.5)}\tERROR a.py:1 in b -- failed", "RuntimeError: HIP out of memory")
    assert found[0].time == pytest.approx(NOW - 0.5, abs=0.002)


@pytest.mark.parametrize("offset", [-3600, 3600], ids=["set back", "ahead"])
def test_a_clock_that_cannot_be_right_is_not_believed(offset):
    assert see(f"{stamped(NOW + offset)}\tERROR a.py:1 in b -- EI0006")[0].time == NOW


def test_torchs_time_without_a_year_is_read():
    stamp = datetime.fromtimestamp(NOW - 2).strftime("%m%d %H:%M:%S.%f")
    found = see(f"E{stamp} 47 api.py:984] failed (exitcode: -9) local_rank: 1 (pid: 4) of binary: python")
    assert found[0].time == pytest.approx(NOW - 2, abs=0.001)


@pytest.mark.parametrize(
    ("file", "text", "rank"),
    [
        ("logs/none_x/attempt_0/3/stderr.log", "text", 3),
        ("logs/rank-12.log", "text", 12),
        ("logs/launcher.log", "[rank5]: RuntimeError", 5),
        ("logs/launcher.log", "Raise exception from h with rank id: 7", 7),
        ("logs/none_x/attempt_0/0/stderr.log", "[Rank 6] Watchdog", 6),
        ("logs/launcher.log", "no rank here", None),
    ],
)
def test_whose_line_it_is(file, text, rank):
    assert rank_of(file, text) == rank


def test_a_flood_of_one_kind_is_kept_short():
    assert len(see(*["RuntimeError: Connection reset by peer"] * 1000)) == failures.MOST


def test_quotes_start_with_the_cause_and_name_place_and_rank():
    found = see("Connection reset by peer", "RuntimeError: NPU out of memory", file="logs/rank-2.log")
    lines = quotes(cause(found), found)
    assert lines[0] == "rank 2, logs/rank-2.log:2: RuntimeError: NPU out of memory"
    assert len(lines) == 2


def test_binary_garbage_and_colours_are_not_shown_to_a_person():
    assert shown(b"\x1b[31mred\x1b[0m \x00\x07\xff end") == "red \ufffd end"
    assert len(shown(b"x" * 10**6)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "tired"}, "class"),
        ({"kind": "tertiary"}, "kind"),
        ({"pattern": "("}, "rule"),
        ({"words": ["else"]}, "example"),
        ({"meaning": None}, "meaning"),
    ],
)
def test_a_rule_that_is_none_is_refused(tmp_path, change, message):
    rule = {
        "class": "device",
        "kind": "primary",
        "ends": True,
        "words": ["word"],
        "pattern": "word",
        "meaning": "m",
        "examples": ["a word"],
    } | change
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in rule.items()
        if value is not None
    ]
    path = tmp_path / "failures.toml"
    path.write_text("[advice]\ndevice = 'a'\n[[rule]]\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Rules(path)


@pytest.mark.parametrize(
    ("line", "asked", "free", "total"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB. GPU 0 has a total capacity of "
            "79.18 GiB of which 106.19 MiB is free. Including non-PyTorch memory, this process has 79.07 GiB memory in",
            "172.00 MiB", "106.19 MiB", "79.18 GiB",
        ),
        (
            "torch.cuda.OutOfMemoryError: HIP out of memory. Tried to allocate 1.50 GiB. GPU 3 has a total capacty of "
            "63.98 GiB of which 0 bytes is free. Of the allocated memory 60.00 GiB is allocated by PyTorch",
            "1.50 GiB", "0 bytes", "63.98 GiB",
        ),
        (
            "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 79.15 GiB total capacity; 77.50 GiB "
            "already allocated; 10.25 MiB free; 78.00 GiB reserved in total by PyTorch) If reserved memory is >>",
            "20.00 MiB", "10.25 MiB", "79.15 GiB",
        ),
        (
            "RuntimeError: NPU out of memory. Tried to allocate 314.00 MiB (NPU 0; 60.97 GiB total capacity; 58.60 GiB "
            "already allocated; 58.60 GiB current active; 143.06 MiB free; 59.21 GiB reserved in total by PyTorch)",
            "314.00 MiB", "143.06 MiB", "60.97 GiB",
        ),
        (
            "RuntimeError: NPU out of memory. Tried to allocate 314.00 MiB (NPU 0; 60.97 GiB total capacity)",
            "314.00 MiB", None, "60.97 GiB",
        ),
        (
            "torch.OutOfMemoryError: XPU out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "47.98 GiB. Of the allocated memory 40.00 GiB is allocated by PyTorch, and 1.00 GiB is reserved",
            "2.00 GiB", None, "47.98 GiB",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 172.00 MiB", "172.00 MiB", None, None),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)",
            "4294967296 bytes", None, None,
        ),
        ("NCCL WARN Failed to CUDA calloc 6291456 bytes", "6291456 bytes", None, None),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.45 GiB for an array", "7.45 GiB", None, None),
    ],
)  # fmt: skip
def test_an_allocator_says_what_was_asked_for_and_what_was_free(line, asked, free, total):
    assert failures.allocation(f"rank 0, logs/x.log:3: {line}") == failures.Allocation(asked, free, total)


@pytest.mark.parametrize("line", ["RuntimeError: Tried to allocate more than 1EB memory.", "HIP out of memory", ""])
def test_a_line_without_a_size_says_nothing_of_it(line):
    assert failures.allocation(line) is None


@pytest.mark.parametrize(
    ("size", "gib"),
    [("512.00 MiB", 0.5), ("2 GiB", 2), ("1.5 TiB", 1536), ("1073741824 bytes", 1), ("3 KiB", 3 / 2**20)],
)
def test_sizes_in_gib(size, gib):
    assert failures.gib(size) == gib


def test_torchruns_table_tells_the_rank_above_the_exit_code():
    table = (
        b"[1]:\n  time      : 2026-11-24_06:45:49\n  host      : localhost\n  rank      : 1 (local_rank: 1)\n"
        b"  exitcode  : -9 (pid: 31710)  (SIGKILL)\n"
    )
    found = Rules().scan(table, file="logs/launcher.log", first_line=1, arrival=0.0, order=0, starting=False)
    assert [(s.rule.failure, s.rank) for s in found] == [("killed", 1)]
