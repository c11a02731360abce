"""The reader: every dialect, everything that happens to a log on its way, and nothing but its own error."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.internlm.log import ODDITIES, Follower, LogError, Memory, read
from fixtures.steps import COLUMNS, Steps
from tests.criteria import honest
from tests.internlm.lines import DIALECTS, NOISE, damage, lines, mailed, text, wrapped

LOGS = Path(__file__).parents[1] / "data" / "logs"
# the line that the procedure shows, wrapped as there
PROCEDURE = b"""\
2023-07-27 13:11:56,488 INFO train.py:317 in record_current_batch_training_metrics -- tflops=54.33760564166562,step=0,\
loss=11.577922821044922,tgs (tokens/gpu/second)=491.55,lr=9.779
754323328192e-05,loss_scale=65536.0,grad_norm=77.8995810422784,micro_num=1,num_consumed_tokens=262144,\
inf_nan_skip_batches=0,num_samples_in_batch=8,largest_length=2048,largest_batch
=8,smallest_batch=8,adam_beta2=0.95,fwd_bwd_time=13.78
"""


def made(n: int = 12, seed: int = 0) -> Steps:
    rng = np.random.default_rng(seed)
    loss = honest.losses(rng, n)
    return honest.steps(rng, loss, honest.grad_norms(rng, loss))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def same(a: Steps, b: Steps, digits: bool = True) -> bool:
    """Equal in every column; `digits` False allows what numpy's print of grad_norm rounds."""
    columns = all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True) for name in COLUMNS)
    norms = [np.array_equal(x, y) if digits else np.allclose(x, y, rtol=1e-6) for x, y in norm_pairs(a, b)]
    return columns and len(a.grad_norm) == len(norms) and all(norms)


def norm_pairs(a: Steps, b: Steps) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(a.grad_norm.values(), b.grad_norm.values(), strict=False))


def test_the_line_of_the_procedure(tmp_path):
    reading = read([write(tmp_path / "a.log", PROCEDURE)])
    steps = reading.steps
    assert len(steps) == 1
    assert (steps.step[0], steps.loss[0], steps.tgs[0], steps.tflops[0]) == (
        0,
        11.577922821044922,
        491.55,
        54.33760564166562,
    )
    assert (steps.consumed_tokens[0], steps.skipped[0]) == (262144, 0)
    assert steps.grad_norm["0_default"][0] == 77.8995810422784
    assert [oddity.code for oddity in reading.oddities] == ["wrapped-lines"]
    assert reading.first_time == reading.last_time == 1690463516.488


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_dialects(tmp_path, dialect, newline):
    steps = made()
    if dialect == "v0.1.0":
        steps = Steps(**{n: getattr(steps, n) for n in COLUMNS}, grad_norm={"0_default": steps.grad_norm["0_default"]})
    reading = read([write(tmp_path / "a.log", text(lines(steps, dialect), newline))])
    assert same(reading.steps, steps, digits=dialect != "v0.2.0")
    assert not reading.oddities
    if dialect != "v0.2.0":
        assert list(reading.steps.grad_norm) == list(steps.grad_norm)


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_real_logs(path):
    """What the wheels printed on a CPU: every metric line is read, every column makes sense."""
    reading = read([path])
    printed = path.read_bytes().count(b"metrics -- tflops=")
    steps = reading.steps
    assert len(steps) == printed >= 100
    assert np.array_equal(steps.step, np.arange(printed))
    assert np.all(np.diff(steps.consumed_tokens) == 4096)
    assert np.all(np.isfinite(steps.loss))
    assert np.all(steps.tgs > 0)
    assert np.all(np.diff(steps.time) > 0)
    assert set(steps.grad_norm) == {"0_default", "1_fp32"}
    assert set(reading.bindings) == set(reading.seeds) == {0, 1}
    assert reading.memory[0].max_allocated > 0.1
    assert not reading.resumed
    assert not reading.oddities


def test_there_are_real_logs_of_three_wheels():
    assert {path.name.split("-")[0] for path in LOGS.glob("*.log")} >= {"0.0.1", "0.3.14", "0.4.9"}


def test_numpy_wraps_its_own_print(tmp_path):
    line = lines(made(1), "v0.2.0")[0]
    norms = "grad_norm=[" + " ".join(["77.9012345"] * 5) + "\n " + " ".join(["1.5"] * 3) + "]"
    begin, end = line.index("grad_norm="), line.index(" micro_num")
    reading = read([write(tmp_path / "a.log", (line[:begin] + norms + line[end:] + "\n").encode())])
    assert [values[0] for values in reading.steps.grad_norm.values()] == [77.9012345] * 5 + [1.5] * 3


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_mail_takes_the_spaces_at_which_it_breaks_lines(tmp_path, dialect):
    steps = made(4)
    rows = lines(steps, dialect)
    plain = read([write(tmp_path / "plain.log", text(rows))]).steps
    for width in range(40, 300):
        path = write(tmp_path / "mail.log", text([piece for row in rows for piece in mailed(row, width)]))
        try:
            assert same(read([path]).steps, plain)
        except LogError as error:
            # numpy's list alone cannot be taken apart without its spaces
            if dialect != "v0.2.0" or "could not convert" not in error.what:
                raise


@pytest.mark.parametrize("label", ["[default0]:", "[rank3]: ", "0: ", "12: "])
def test_labels_of_launchers(tmp_path, label):
    steps = made()
    rows = [label + line for line in lines(steps)]
    assert same(read([write(tmp_path / "a.log", text(rows))]).steps, steps)


def test_colours_and_progress_bars(tmp_path):
    steps = made()
    rows = [line.replace("INFO", "\x1b[32mINFO\x1b[0m").replace("step=", "step=\x1b[1m") for line in lines(steps)]
    rows[3] = "100%|#####| 3/3\r" + rows[3]
    assert same(read([write(tmp_path / "a.log", text(rows))]).steps, steps)


def test_doubled_lines_count_once(tmp_path):
    steps = made()
    rows = [row for line in lines(steps) for row in (line, line)]
    reading = read([write(tmp_path / "a.log", text(rows))])
    assert same(reading.steps, steps)
    assert [(o.code, o.count) for o in reading.oddities] == [("doubled-lines", 12)]


def test_one_file_a_rank_and_one_for_all(tmp_path):
    steps = made()
    rows = lines(steps)
    ranks = [f"2024-03-01 12:00:00,1{r}0\tINFO x.py:1 in f -- rank {r}" for r in range(3)]
    files = [write(tmp_path / f"rank{r}.log", text([row, *(rows if r == 2 else [])])) for r, row in enumerate(ranks)]
    files.append(write(tmp_path / "all.log", text([*ranks, *rows])))
    assert same(read(files).steps, steps)


def test_files_in_any_order_of_names(tmp_path):
    steps = made()
    rows = lines(steps)
    files = [write(tmp_path / "a.log", text(rows[6:])), write(tmp_path / "b.log", text(rows[:6]))]
    assert same(read(files).steps, steps)


def test_a_repeated_step_is_not_a_doubled_line(tmp_path):
    rows = lines(made())
    again = rows[4].replace(",", ";", 1).replace(";", ",").replace(rows[4][:23], "2030-01-01 00:00:00,000")
    reading = read([write(tmp_path / "a.log", text([*rows[:5], again, *rows[5:]]))])
    assert list(reading.steps.step[3:7]) == [3, 4, 4, 5]


def test_a_cut_last_line_is_left_out_and_said(tmp_path):
    rows = lines(made())
    for cut in (30, 90, 150, 400, rows[-1].index("num_samples_in_batch=") - 1):
        reading = read([write(tmp_path / "a.log", text(rows[:-1]) + rows[-1][:cut].encode())])
        assert len(reading.steps) == 11
        if cut >= 90:
            assert "truncated-line" in [o.code for o in reading.oddities]


def test_a_cut_line_in_the_middle_is_an_error(tmp_path):
    rows = lines(made())
    rows[5] = rows[5][:200]
    path = write(tmp_path / "a.log", text(rows))
    with pytest.raises(LogError) as error:
        read([path])
    assert (error.value.path, error.value.line_number) == (path, 6)
    assert "a.log:6: a metric line cannot be read" in str(error.value)


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (lambda rows: [rows[0], rows[1].replace("loss=", "loss=x"), *rows[2:]], 2, "cannot be read"),
        (lambda rows: [rows[0], rows[1].replace("step=1 ", "step=1.5 "), *rows[2:]], 2, "cannot be read"),
        (lambda rows: [rows[0], rows[1].replace("step=1 ", f"step={'9' * 20} "), *rows[2:]], 2, "cannot be read"),
        (lambda rows: [rows[0], "2023-02-31" + rows[1][10:], *rows[2:]], 2, "cannot be read"),
        (lambda rows: [rows[0], rows[1][:300] + rows[2], *rows[3:]], 2, "cannot be read"),
        (lambda rows: [rows[0], rows[1][24:], *rows[2:]], 2, "without a time"),
        (lambda rows: [rows[0], rows[1].replace("'1_fp32'", "'2_moe'"), *rows[2:]], 1, "parameter groups"),
        (lambda rows: [rows[0], rows[1].replace(", '1_fp32': 0.0", ""), *rows[2:]], 1, "parameter groups"),
        (lambda rows: [rows[0], rows[1].replace("'1_fp32': 0.0", "'1_fp32': "), *rows[2:]], 2, "cannot be read"),
        (lambda rows: [rows[0], rows[1].replace("{'0_default': ", "{"), *rows[2:]], 2, "cannot be read"),
        # one dict has what the next one lacks
        (
            lambda rows: [
                rows[0],
                rows[1].replace("'1_fp32': 0.0", "'1_fp32': 0.0, '1_fp32': 0.0"),
                rows[2].replace(", '1_fp32': 0.0", ""),
            ],
            2,
            "cannot be read",
        ),
    ],
)
def test_what_cannot_be_read_is_an_error_with_its_line(tmp_path, change, line, what):
    path = write(tmp_path / "a.log", text(change(lines(made()))))
    with pytest.raises(LogError, match=what) as error:
        read([path])
    assert error.value.line_number == line


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("x".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b" + bytes(30), "compressed"),
        (b"PK\x03\x04" + bytes(30), "compressed"),
    ],
)
def test_files_of_another_kind(tmp_path, content, what):
    with pytest.raises(LogError, match=what):
        read([write(tmp_path / "a.log", content)])


def test_no_such_file(tmp_path):
    with pytest.raises(LogError, match="cannot be read: No such file"):
        read([tmp_path / "missing.log"])


def test_an_empty_log_has_no_steps(tmp_path):
    reading = read([write(tmp_path / "a.log", b"")])
    assert len(reading.steps) == 0
    assert reading.first_time is None
    assert len(read([]).steps) == 0


def test_what_ranks_say_of_themselves(tmp_path):
    head = "2024-03-01 12:00:00,000\tINFO"
    rows = [
        f"{head} parallel_context.py:613 in set_device -- process rank 3 is bound to host:node7 device: 3",
        f"{head} parallel_context.py:660 in set_seed -- initialized seed on rank 3, numpy: 1024, python random: 1024, "
        "ParallelMode.DATA: 1024,the default parallel seed is ParallelMode.DATA.",
        f"{head} gputest.py:147 in cuda_memory_analyze -- Rank:3-tp0-pp0-dp0: Step 0: Allocated 61.5 GB, "
        "Max_Allocated 65.0123 GB, Reserved 70.0 GB, Max_Reserved 71.5 GB ",
        f"{head} gputest.py:147 in cuda_memory_analyze -- Rank:3-tp0-pp0-dp0: Step 1: Allocated 61.5 GB, "
        "Max_Allocated 64.0 GB, Reserved 70.0 GB, Max_Reserved 72.5 GB ",
    ]
    reading = read([write(tmp_path / "a.log", text(rows))])
    assert reading.bindings == {3: ("node7", 3)}
    assert reading.seeds[3].startswith("numpy: 1024, python random: 1024")
    assert reading.memory == {3: Memory(65.0123, 72.5, 1)}


@pytest.mark.parametrize(
    ("loaded", "resumed"), [(None, True), ("model, ", False), ("model, optimizer, sampler, ", True)]
)
def test_resumed_or_weights_alone(tmp_path, loaded, resumed):
    head = "2024-03-01 12:00:00,000\tINFO checkpoint_manager.py:561 in try_resume_training --"
    rows = [f"{head} ===========Resume training from `local:/ckpt/7` 03-01 on host:node==========="]
    rows += [f"{head} ===========Load contents are: {loaded}"] if loaded else []
    reading = read([write(tmp_path / "a.log", text([*rows, *lines(made())]))])
    assert reading.resumed is resumed
    assert ("resumed" in [o.code for o in reading.oddities]) is resumed


def test_bytes_that_are_not_utf8_are_an_oddity(tmp_path):
    rows = text(lines(made()))
    reading = read([write(tmp_path / "a.log", b"\xb5\xbd\xff\xfe caf\xe9\n" + rows)])
    assert len(reading.steps) == 12
    assert "not-utf-8" in [o.code for o in reading.oddities]
    chinese = read([write(tmp_path / "b.log", ("训练日志" * 50 + "\n").encode() * 2000 + rows)])
    assert "not-utf-8" not in [o.code for o in chinese.oddities]


def test_an_endless_line_is_dropped_but_never_a_metric_line(tmp_path):
    rows = text(lines(made()))
    reading = read([write(tmp_path / "a.log", b"x" * 3_000_000 + b"\n" + rows)])
    assert len(reading.steps) == 12
    assert "long-line" in [o.code for o in reading.oddities]
    with pytest.raises(LogError, match="too long"):
        read([write(tmp_path / "b.log", b"x" * 3_000_000 + rows)])


# --- properties ------------------------------------------------------------------------------------------------

PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@PROPERTY
@given(seed=st.integers(0, 2**32), width=st.integers(25, 900), dialect=st.sampled_from(DIALECTS))
def test_any_wrapping_doubling_and_interleaving_gives_the_same_steps(tmp_path, seed, width, dialect):
    chance = random.Random(seed)
    rows = lines(made(6, seed % 100), dialect)
    plain = read([write(tmp_path / "plain.log", text(rows))]).steps
    odd: list[str] = []
    for row in rows:
        copies = [row] * chance.choice([1, 1, 2, 3])
        for copy in copies:
            # numpy's list alone cannot be taken apart without the spaces that a mail takes
            ways = [[copy], wrapped(copy, width), *([mailed(copy, max(width, 40))] if dialect != "v0.2.0" else [])]
            pieces = chance.choice(ways)
            for piece in pieces:
                odd.append(piece)
                if len(pieces) > 1 and chance.random() < 0.2:
                    # another line lands in between; inside the header only one with a header is told apart
                    odd.append(chance.choice(NOISE if width > 120 else NOISE[:2]))
        odd += chance.sample(NOISE, chance.randint(0, 3))
    content = text(odd, chance.choice(["\n", "\r\n"]))
    assert same(read([write(tmp_path / "odd.log", content)]).steps, plain)


@PROPERTY
@given(seed=st.integers(0, 2**32), edits=st.integers(1, 30))
def test_no_damage_raises_anything_but_log_error(tmp_path, seed, edits):
    chance = random.Random(seed)
    content = bytearray(text([*lines(made(6), chance.choice(DIALECTS)), *NOISE]))
    for _ in range(edits):
        damage(chance, content)
    survives(write(tmp_path / "a.log", bytes(content)))


@PROPERTY
@given(seed=st.integers(0, 2**32), width=st.integers(40, 900), edits=st.integers(0, 5))
def test_it_does_not_matter_in_what_pieces_a_log_is_read(tmp_path, seed, width, edits):
    """What one line does to another must not depend on which lines are read at once."""
    chance = random.Random(seed)
    rows = [
        piece
        for line in lines(made(20, seed % 100), chance.choice(DIALECTS))
        for piece in chance.choice(
            [[line], [line.replace(" lr=", " new_key=0.5 lr=")], wrapped(line, width), chance.sample(NOISE, 2)]
        )
    ]
    content = bytearray(text(rows))
    for _ in range(edits):
        damage(chance, content)
    path = write(tmp_path / "a.log", bytes(content))
    whole = outcome(path)
    for chunk in (2500, 6000):  # bytes, more than the longest line
        with mock.patch("fixtures.internlm.log.CHUNK", chunk):
            assert outcome(path) == whole


def outcome(path: Path) -> object:
    """All that a reading says, or its error, as something to compare."""
    try:
        reading = read([path])
    except LogError as error:
        return str(error)
    columns = [getattr(reading.steps, name).tobytes() for name in COLUMNS]
    norms = [(group, values.tobytes()) for group, values in reading.steps.grad_norm.items()]
    odd = sorted((oddity.code, oddity.line) for oddity in reading.oddities)
    return columns, norms, odd, reading.first_time, reading.last_time


@PROPERTY
@given(content=st.binary(max_size=2000))
def test_no_bytes_raise_anything_but_log_error(tmp_path, content):
    survives(write(tmp_path / "a.log", content))


def survives(path: Path) -> None:
    """Read and followed: a Reading in order, or LogError; the follower raises nothing."""
    try:
        reading = read([path])
    except LogError:
        pass  # its own error is the one thing that may come
    else:
        assert all(oddity.code in ODDITIES for oddity in reading.oddities)
        assert all(len(getattr(reading.steps, name)) == len(reading.steps) for name in COLUMNS)
    content = path.read_bytes()
    follower = Follower()
    for i in range(0, len(content), 97):
        follower.feed(content[i : i + 97])


# --- the follower ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("size", [1, 7, 300, 100_000])
def test_the_follower_sees_each_step_as_it_is_completed(dialect, size):
    steps = made()
    content = text([*NOISE, *lines(steps, dialect)])
    follower = Follower()
    seen = [step for i in range(0, len(content), size) for step in follower.feed(content[i : i + size])]
    assert [s.step for s in seen] == list(range(12))
    assert [s.loss for s in seen] == list(steps.loss)
    assert [s.tgs for s in seen] == list(steps.tgs)
    assert [s.time for s in seen] == list(steps.time)


def test_the_follower_keeps_no_endless_line():
    follower = Follower()
    for _ in range(200):
        assert follower.feed(b"x" * 50_000) == []
        assert len(follower._rest) <= Follower.LIMIT
    assert follower.feed(b"\n") == []
    assert [s.step for s in follower.feed(text(lines(made(1))))] == [0]
