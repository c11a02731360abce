"""The CI templates: valid by their systems' own schemas, and their commands run for real on recorded evidence."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from fixtures.options import ROOT
from tests.ci.nights import RECORDED

TEMPLATES = ROOT / "ci-templates"
PYTHON = "/opt/internlm/bin/python"  # the templates' own paths, for the user to change
CHECKOUT = "/opt/internlm-acceptance"
NIGHTS = "/var/lib/internlm-acceptance"
MADE = {"nightly.sqlite", "trend.html"}


def text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@pytest.fixture
def night(tmp_path):
    """Runs the shell lines of a template: recorded evidence in place of training, this machine's paths."""
    recorded = tmp_path / "recorded"
    shutil.copytree(RECORDED, recorded)

    def run(script: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        script = script.replace(PYTHON, sys.executable).replace(CHECKOUT, str(ROOT)).replace(NIGHTS, str(tmp_path))
        script = script.replace("-k 7B", f"-k tiny --evidence {recorded}")
        environment = {key: value.replace("-k 7B", f"-k tiny --evidence {recorded}").replace(PYTHON, sys.executable)
                       .replace(NIGHTS, str(tmp_path)) for key, value in environment.items()}  # fmt: skip
        done = subprocess.run(
            ["bash", "-e", "-c", script], cwd=ROOT, env={**os.environ, "HOME": str(tmp_path), **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stdout
        return done

    return run


def left(folder: Path, *more: str) -> None:
    """What every template leaves."""
    for name in (*MADE, *more):
        assert (folder / name).stat().st_size > 0, name


# ---- valid by the systems' own rules ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--builtin-schema", "vendor.github-workflows", str(TEMPLATES / "github-actions.yml")],
        ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci", str(TEMPLATES / "gitlab-ci.yml")],
    ],
    ids=["GitHub", "GitLab"],
)
def test_valid_by_the_published_schema(arguments):
    done = subprocess.run([sys.executable, "-m", "check_jsonschema", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_key_is_noticed(tmp_path):
    """The schema check above can fail."""
    path = tmp_path / "workflow.yml"
    path.write_text(text("github-actions.yml").replace("runs-on", "run-on"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(path)]
    assert subprocess.run(command, capture_output=True).returncode == 1


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed (Debian: systemd)")
def test_systemd_accepts_the_units(tmp_path):
    for name in ("internlm-acceptance.service", "internlm-acceptance.timer"):
        shutil.copy(TEMPLATES / name, tmp_path)
    units = [str(tmp_path / "internlm-acceptance.service"), str(tmp_path / "internlm-acceptance.timer")]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "internlm-acceptance" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr
    when = re.search(r"OnCalendar=(.+)", text("internlm-acceptance.timer"))[1]
    assert subprocess.run(["systemd-analyze", "calendar", when], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["crontab", "scrontab"])
def test_cron_lines_have_five_fields_and_no_percent(name):
    """In a crontab an unescaped % is a newline."""
    lines = [line for line in text(name).splitlines() if line and not line.startswith("#")]
    assert len(lines) == 1
    assert re.match(r"(?:[\d*/,-]+ ){5}\S", lines[0])
    assert "%" not in lines[0]


def test_jenkins_file_is_declarative_and_balanced():
    """Jenkins itself checks more (`/pipeline-model-converter/validate`); that needs a Jenkins."""
    code = re.sub(r"'''.*?'''|'[^'\n]*'|//[^\n]*", "''", text("Jenkinsfile"), flags=re.DOTALL)
    depth = 0
    for character in code:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert code.startswith("''\npipeline {")
    for section in ("agent", "triggers", "options", "environment", "stages", "post"):
        assert re.search(rf"^    {section} \{{", code, re.MULTILINE), section


# ---- their commands, run ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_github_steps_run(night, tmp_path):
    workflow = YAML(typ="safe").load(text("github-actions.yml"))
    steps = [step["run"] for step in workflow["jobs"]["nightly"]["steps"] if "run" in step]
    assert len(steps) == 4
    environment = {
        **workflow["env"],
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "page.md"),
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "1",
    }
    for step in steps:
        night(step, **environment)
    left(tmp_path, "page.md", "junit.xml", "summary.md")


@pytest.mark.slow
def test_gitlab_script_runs(night, tmp_path):
    pipeline = YAML(typ="safe").load(text("gitlab-ci.yml"))
    job = pipeline["nightly-acceptance"]
    assert job["artifacts"]["reports"]["junit"] in job["artifacts"]["paths"]
    script = f"cd {tmp_path}\nexport PYTHONPATH={ROOT}\n" + "\n".join([*job["script"], *job["after_script"]])
    script = script.replace("pytest acceptance", f"pytest {ROOT}/acceptance --rootdir {ROOT} -c {ROOT}/pyproject.toml")
    night(script, **pipeline["variables"], CI_JOB_ID="7")
    left(tmp_path, *(Path(path).name for path in job["artifacts"]["paths"]))


@pytest.mark.slow
def test_jenkins_steps_run(night, tmp_path):
    jenkins = text("Jenkinsfile")
    environment = dict(re.findall(r"^\s+([A-Z]+) = '(.*?)'", jenkins, re.MULTILINE))
    steps = [a or b for a, b in re.findall(r"\bsh (?:'''(.*?)'''|'([^'\n]+)')", jenkins, re.DOTALL)]
    assert len(steps) == 3
    script = f"cd {tmp_path}\nexport PYTHONPATH={ROOT}\n" + "\n".join(steps)
    script = script.replace("pytest acceptance", f"pytest {ROOT}/acceptance --rootdir {ROOT} -c {ROOT}/pyproject.toml")
    night(script, **environment, BUILD_NUMBER="7")
    left(tmp_path, "junit.xml", "summary.md")


@pytest.mark.slow
def test_systemd_service_runs(night, tmp_path):
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str
    unit.read_string(re.sub(r"(?m)^Environment=(\"?)(\w+)=", r"Environment.\2=\1", text("internlm-acceptance.service")))
    service = dict(unit["Service"])
    environment = {k.removeprefix("Environment."): v.strip('"') for k, v in service.items() if "Environment." in k}
    assert set(environment) == {"NIGHTS", "PYTHON", "SELECT"}
    night(service["ExecStart"], **environment)
    left(tmp_path, "summary.md")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["crontab", "scrontab"])
def test_cron_line_runs(night, tmp_path, name):
    line = next(line for line in text(name).splitlines() if line and not line.startswith("#"))
    night(line.split(maxsplit=5)[5])
    left(tmp_path / "nights", "summary.md")


@pytest.mark.slow
def test_a_night_that_fails_fails_the_script(night, tmp_path):
    (tmp_path / "recorded" / "runs" / "tiny-tp1-pp1-zerodp" / "speed" / "attempt-1" / "logs" / "rank-0.log").unlink()
    line = next(line for line in text("crontab").splitlines() if line and not line.startswith("#"))
    assert night(line.split(maxsplit=5)[5], check=False).returncode == 1
    left(tmp_path / "nights", "summary.md")
