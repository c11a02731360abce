"""`python -m reports pack RESULTS --org NAME --contact ADDRESS -o vendor.zip`: a submission from a results folder.

The archive holds all evidence, failed and interrupted attempts too, and what follows from it: verdicts and report are
made anew from the evidence that is packed, so they cannot be older than it. Packing twice gives the same bytes: the
report in the archive is without the time of judging and pytest-html's document, which no lab could make again.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acceptance.requirements import DEFAULTS, RequirementsError
from fixtures import archive, evidence, suite
from fixtures.evidence import EvidenceError
from fixtures.internlm.log import LogError
from fixtures.runs import ENVIRONMENT
from reports import derived, signing
from reports.derived import Folder
from reports.language import LANGUAGES
from reports.results import ReportError, load

# Variables whose values travel; of all others only the names do. What computes and what communicates matters to a
# reader; a token that somebody put into an override does not.
TRAVELS = re.compile(
    r"PYTHONUNBUFFERED|("
    r"NCCL|RCCL|HCCL|CNCL|MCCL|BKCL|ECCL|XCCL|SUCCL|IXCCL|GLOO|UCX|UCC|FI|IB|"  # communication
    r"CUDA|CUBLAS|CUDNN|NVIDIA|HIP|HSA|ROCM|ROCR|ROCBLAS|HIPBLASLT|MIOPEN|ASCEND|ACL|ATB|NPU|TASK_QUEUE|MLU|CNNL|"
    r"MUSA|MUDNN|MACA|MCBLAS|XPU|XMLIR|GCU|TOPS|ENFLAME|BIREN|SUPA|COREX|DCU|"  # vendors' run times
    r"OMP|MKL|KMP|OPENBLAS|TORCH|PYTORCH|TRITON|INTERNLM"
    r")_\w+"
)
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|API_?KEY|PRIVATE", re.IGNORECASE)
HIDDEN = "(set; its value does not travel)"


class PackError(Exception):
    """Results that cannot be packed: what, where, and what to do."""


@dataclass(frozen=True)
class Packed:
    """What was written: the archive, the sha256 of its manifest, the number of its files, and the results in it."""

    path: Path
    manifest_sha256: str
    files: int
    results: Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="the results folder of a session")
    parser.add_argument("--org", required=True, help="who submits")
    parser.add_argument("--contact", required=True, help="whom the lab answers")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="ZIP", help="the archive to write")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="Ed25519 private key (PEM) that signs the manifest")
    parser.add_argument("--lang", choices=LANGUAGES, default="en", help="language of the report in it")


def main(arguments: argparse.Namespace) -> int:
    """Write the archive and say what it claims; 1 with one line on stderr if there is nothing to pack."""
    try:
        sign = signing.signer(arguments.sign) if arguments.sign else None
        who = {"organisation": arguments.org, "contact": arguments.contact}
        packed = pack(arguments.results, arguments.output, who, arguments.lang, sign)
    except (PackError, ReportError, RequirementsError, EvidenceError, LogError, signing.SigningError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for model in packed.results["models"]:
        print(f"{model['model']}: {'conforms' if model['conformant'] else 'does not conform'}")
    print(f"{packed.path}: {packed.files} files, {packed.path.stat().st_size:,} bytes")
    print(f"sha256 of its manifest: {packed.manifest_sha256}")
    if not_clean := not_checkable(packed.results["suite"]):
        print(f"warning: a lab will refuse it: {not_clean}", file=sys.stderr)
    print(f"Look at it as the lab will: python -m reports check {packed.path}")
    return 0


def not_checkable(identity: Mapping[str, Any]) -> str | None:
    """Why nobody can check what this suite made; None for a clean commit."""
    commit = identity.get("commit")
    if commit is None:
        return "the suite was no git checkout, so nobody can know which one ran"
    return f"the suite had changes that are in no commit ({commit})" if str(commit).endswith("-dirty") else None


def pack(
    results: Path,
    output: Path,
    who: Mapping[str, str],
    language: str = "en",
    sign: Callable[[bytes], bytes] | None = None,
) -> Packed:
    """Write the submission `output` from the results folder of a session.

    who   {"organisation", "contact"}
    sign  bytes of the manifest -> its signature

    Raises PackError, ReportError, RequirementsError, EvidenceError, LogError, OSError.
    """
    if blank := [name for name, text in who.items() if not text.strip()]:
        raise PackError(f"{' and '.join(blank)}: empty; say who submits, and whom the lab answers")
    if output.is_dir():
        raise PackError(f"{output}: a folder; name the archive to write, such as {output / 'vendor.zip'}")
    claimed, _ = load(results / "results.json")
    with tempfile.TemporaryDirectory(prefix="pack-") as temporary:
        staging, out = Path(temporary, "evidence"), Path(temporary, "derived")
        stage(results, staging, claimed)
        found = Folder(staging, claimed, language).derive(out)
        evidence.write_json(out / derived.SUBMISSION, derived.submission(who, found, language))
        files = {p.relative_to(root).as_posix(): p for root in (staging, out) for p in root.rglob("*") if p.is_file()}
        try:
            digest = archive.write(output, files, {"suite": suite.identity()}, sign)
        except OSError as error:
            raise PackError(f"{output}: cannot be written ({error})") from error
    return Packed(output, digest, len(files) + 1 + bool(sign), found)


def stage(results: Path, staging: Path, claimed: Mapping[str, Any]) -> None:
    """What the session left, as it travels: links to the files, but requests without values that are nobody's."""
    parts = list(_evidence(results))
    if not parts:
        raise PackError(f"{results}: holds no evidence below runs/; logs from elsewhere are judged with --evidence")
    for path, name in parts:
        target = staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name == "request.json" and target.parent.name.startswith("attempt-"):
            evidence.write_json(target, without_secrets(evidence.read_json(path)))
        else:
            target.symlink_to(path.resolve())
    recorded = results / derived.REQUIREMENTS
    shutil.copyfile(recorded if recorded.exists() else DEFAULTS, staging / derived.REQUIREMENTS)
    if reference := claimed.get("policy", {}).get("reference"):
        (staging / derived.REFERENCE).mkdir()
        shutil.copyfile(results / derived.REFERENCE / reference, staging / derived.REFERENCE / reference)


def _evidence(results: Path) -> Iterator[tuple[Path, str]]:
    """(path, name in the archive) of every file of the evidence."""
    for path in sorted((results / "runs").rglob("*")):
        name = path.relative_to(results).as_posix()
        if not evidence.PART.fullmatch(name) or path.is_dir():
            continue
        if path.is_symlink() or not path.is_file():
            raise PackError(f"{path}: a link or a special file; put the file itself there")
        if not name.isprintable() or "\\" in name or ":" in name:
            raise PackError(f"{path!r}: no name that every system can unpack; rename the file")
        yield path, name


def without_secrets(request: Mapping[str, Any]) -> dict[str, Any]:
    """`request` with the values of variables hidden that are on no list."""
    settings = {
        key: _shown(key.removeprefix(ENVIRONMENT), value) if key.startswith(ENVIRONMENT) else value
        for key, value in request.get("settings", {}).items()
    }
    environment = {name: _shown(name, value) for name, value in request.get("environment", {}).items()}
    return {**request, "environment": environment, "settings": settings}


def _shown(name: str, value: Any) -> Any:
    travels = value is None or (TRAVELS.fullmatch(name) and not SECRET.search(name))
    return value if travels else HIDDEN
