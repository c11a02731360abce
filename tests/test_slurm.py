"""What Slurm says, and what it means: texts of real commands, no cluster needed."""

from __future__ import annotations

import pytest

from fixtures import slurm
from fixtures.devices import Device, Found, profiles
from fixtures.failures import CLASSES
from fixtures.options import Options
from fixtures.setup import Setup

# squeue(1) and sacct(1) of Slurm 20.02 to 24.05.
DOCUMENTED = """
BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PENDING
POWER_UP_NODE PREEMPTED RECONFIG_FAIL RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING
SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT UPDATE_DB
"""

SCONTROL = (
    "JobId=7 JobName=x UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=0 Reboot=0 ExitCode={code} NodeList=n[1-2] "
    "Command=train.py Comment=JobState=RUNNING ExitCode=0:0 \n"
)


def scontrol(state="COMPLETED", code="0:0", reason="None", restarts=0):
    return slurm.parse_scontrol(SCONTROL.format(state=state, code=code, reason=reason, restarts=restarts))


@pytest.mark.parametrize("name", DOCUMENTED.split())
def test_every_documented_state_has_its_meaning(name):
    state = slurm.states()[name]
    assert state.kind in slurm.KINDS
    assert state.failure is None or state.failure in CLASSES
    if state.kind == "badly" and name != "FAILED":  # of which the logs tell
        assert state.failure
        assert state.meaning
        assert state.advice


def test_only_completed_ends_well():
    assert [s.name for s in slurm.states().values() if s.kind == "well"] == ["COMPLETED"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("NODE_F+", "NODE_FAIL"),
    ],
)
def test_states_as_commands_write_them(text, name):
    assert slurm.meaning(text) == slurm.states()[name]


@pytest.mark.parametrize("text", ["", "COMPLET+", "R+", "DONE", "PENDINGS", "Unknown"])
def test_a_state_that_is_unclear_is_none(text):
    assert slurm.meaning(text) is None
    report = slurm.Report("7", text, "0:0")
    assert report.kind == "unknown"
    assert not report.over
    assert not report.success


@pytest.mark.parametrize(
    ("report", "success"),
    [
        (scontrol(), True),
        (scontrol(code="1:0"), False),
        (scontrol(code="0:9"), False),
        (scontrol(code=""), False),
        (scontrol("RUNNING"), False),
        (scontrol("TIMEOUT"), False),
        (scontrol(restarts=1), False),
    ],
)
def test_success_is_completed_and_zero_and_never_restarted(report, success):
    assert report.success is success


def test_what_users_write_into_a_job_is_no_state():
    report = scontrol("FAILED", "7:0", "NonZeroExitCode")
    assert (report.state, report.exit_code, report.reason, report.nodes) == (
        "FAILED",
        "7:0",
        "NonZeroExitCode",
        "n[1-2]",
    )


def test_a_job_that_was_put_back_into_the_queue_has_ended_badly():
    report = scontrol("PENDING", restarts=1)
    assert report.over
    assert not report.gone


@pytest.mark.parametrize(("code", "status"), [("0:0", 0), ("7:0", 7), ("0:9", -9), ("", None)])
def test_exit_codes_count_as_subprocess_counts_them(code, status):
    assert slurm.Report("7", "FAILED", code).status == status


SACCT = """\
7|COMPLETED|0:0|n[1-2]|acceptance
7.batch|COMPLETED|0:0|n1|batch
7.0|{probe}|1:0|n[1-2]|acceptance-probe
7.1|{step}|{code}|n[1-2]|python
"""


def test_a_failed_step_inside_a_completed_job_is_no_success():
    report = slurm.parse_sacct(SACCT.format(probe="COMPLETED", step="FAILED", code="1:0"), "7")
    assert (report.state, report.steps) == ("COMPLETED", (("7.1", "FAILED", "1:0"),))
    assert not report.success


def test_a_probe_that_failed_does_not_fail_the_run():
    assert slurm.parse_sacct(SACCT.format(probe="FAILED", step="COMPLETED", code="0:0"), "7").success


def test_the_accounting_without_steps_is_read_as_well():
    report = slurm.parse_sacct("7|CANCELLED by 0|0:15|n[1-2]|acceptance\n", "7")
    assert (report.kind, report.status) == ("badly", -15)


@pytest.mark.parametrize("text", ["", "8|COMPLETED|0:0|n1|x\n", "Slurm accounting storage is disabled\n"])
def test_an_answer_without_the_job_is_no_answer(text):
    with pytest.raises(slurm.SlurmError):
        slurm.parse_sacct(text, "7")
    with pytest.raises(slurm.SlurmError):
        slurm.parse_scontrol(text)


@pytest.fixture
def answers(monkeypatch):
    """Has the commands answer from a list: text, or an error."""
    given = []

    def ask(*command, seconds=0):
        answer = given.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "ask", ask)
    return given


def test_silence_is_shown_and_asked_about_with_growing_pauses(answers):
    follower = slurm.Follower("x", "7")
    pauses = []
    for _ in range(8):
        answers.append(slurm.SilentError("`scontrol` had no answer within 30 s"))
        assert not follower.turn()
        pauses.append(follower.pause)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert follower.waiting
    assert "no answer" in follower.message
    assert "asked 8 times" in follower.message
    answers.append(SCONTROL.format(state="RUNNING", reason="None", code="0:0", restarts=0))
    assert follower.turn()
    assert (follower.message, follower.waiting) == ("", False)


def test_a_job_that_the_controller_forgot_is_known_by_the_accounting(answers):
    forgotten = slurm.SlurmError("slurm_load_jobs error: Invalid job id specified")
    answers += [forgotten, "7|COMPLETED|0:0|n1|x\n7.0|COMPLETED|0:0|n1|python\n"]
    assert slurm.look("7").success


@pytest.mark.parametrize("steps", ["", "7.batch|COMPLETED|0:0|n1|batch\n", "7.0|RUNNING|0:0|n1|python\n"])
def test_a_job_is_not_judged_before_its_steps(answers, steps, monkeypatch):
    """A real accounting that comes back learns of a job's end seconds before that of its steps."""
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    forgotten = slurm.SlurmError("slurm_load_jobs error: Invalid job id specified")
    known = "7|COMPLETED|0:0|n1|x\n7.0|FAILED|1:0|n1|python\n"
    answers += [forgotten, "7|COMPLETED|0:0|n1|x\n" + steps, "7|COMPLETED|0:0|n1|x\n" + steps, known]
    assert slurm.look("7").steps == (("7.0", "FAILED", "1:0"),)


def test_an_accounting_that_keeps_no_steps_is_not_waited_for_without_end(answers, monkeypatch):
    monkeypatch.setattr(slurm, "ACCOUNTING_SECONDS", -1)
    answers += [slurm.SlurmError("slurm_load_jobs error: Invalid job id specified"), "7|COMPLETED|0:0|n1|x\n"]
    assert slurm.look("7").state == "COMPLETED"


def test_an_accounting_that_does_not_know_of_the_job_yet_is_asked_again(answers, monkeypatch):
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    ended = SCONTROL.format(state="COMPLETED", reason="None", code="0:0", restarts=0)
    known = "7|COMPLETED|0:0|n1|x\n7.0|FAILED|1:0|n1|python\n"
    answers += [ended, slurm.SilentError("Connection refused"), "", "7|RUNNING|0:0|n1|x\n", known]
    assert slurm.look("7").steps == (("7.0", "FAILED", "1:0"),)


@pytest.mark.parametrize("said", ["Slurm accounting storage is disabled", "`sacct` cannot be run: No such file"])
def test_what_nobody_remembers_has_not_ended_well(answers, said):
    answers += [slurm.SlurmError("slurm_load_jobs error: Invalid job id specified"), slurm.SlurmError(said)]
    report = slurm.look("7")
    assert report.over
    assert not report.success
    assert report.meaning.failure


def test_a_job_that_started_twice_is_known_by_its_two_records():
    once = "7|REQUEUED|0:0|n1|x\n7.0|CANCELLED|0:15|n1|python\n"
    again = "7|COMPLETED|0:0|n1|x\n7.0|COMPLETED|0:0|n1|python\n"
    report = slurm.parse_sacct(once + again, "7")
    assert (report.state, report.steps, report.restarts, report.meaning.name) == ("COMPLETED", (), 1, "REQUEUED")
    assert not report.success
    of_another = slurm.parse_sacct(once.replace("|x\n", "|y\n") + again, "7")
    assert of_another.success, "a number that another job had years ago"


def test_a_refusal_of_another_kind_says_nothing_about_the_job(answers):
    answers.append(slurm.SlurmError("slurm_load_jobs error: Access denied"))
    with pytest.raises(slurm.SilentError):
        slurm.look("7")


def test_no_job_is_believed_only_when_asked_after_the_submitter_ended(answers):
    follower = slurm.Follower("x")
    assert not follower.over()
    for _ in range(2):
        answers += ["", ""]
        follower.turn()
    assert follower.over()


def test_devices_of_far_nodes_are_leased_though_this_one_has_none(tmp_path):
    found = Found(profiles()["nvidia"])
    devices = tuple(Device(i, f"planned-{i}", "NVIDIA GPU", entry=str(i)) for i in range(8))
    setup = Setup(Options({"results": tmp_path}), found, devices, 8, None, "slurm", (), ())
    with setup.leases.acquire(8) as lease:
        assert lease.devices == devices
