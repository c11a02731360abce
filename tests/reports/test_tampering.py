"""The catalogue of edits: each is caught by what it names, also where manifest, results and report were made anew."""

from __future__ import annotations

import shutil
import tracemalloc

import pytest

from fixtures import archive, suite
from fixtures.archive import ArchiveError
from fixtures.evidence import EvidenceError
from reports.check import check
from reports.package import pack
from tests.acceptance.evidence_7b import SUITE
from tests.reports import tampering
from tests.reports.tampering import ARCHIVES, CATALOGUE, UNPACKED

BY_NAME = {edit.what: edit for edit in CATALOGUE}


@pytest.fixture(autouse=True)
def one_suite(monkeypatch):
    """The commit that the evidence names; this checkout's own may have changes."""
    monkeypatch.setattr(suite, "identity", lambda: SUITE)


@pytest.fixture(scope="module")
def submission(tmp_path_factory):
    """The valid submission, unpacked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "identity", lambda: SUITE)
        return tampering.valid(tmp_path_factory.mktemp("valid"))


def test_the_catalogue_is_long_enough_and_names_each_edit_once():
    assert len(BY_NAME) == len(CATALOGUE) >= 25
    assert sum(bool(e.everything) and e.everything not in UNPACKED for e in CATALOGUE) >= 25


def test_unedited_the_submission_is_sound_and_conformant(submission, tmp_path):
    for way in ("manifest", "everything"):
        checked = check(tampering.hand_in(submission, way, tmp_path / "v.zip"), tampering.lab(tmp_path))
        assert (tampering.caught(checked), checked.status) == ([], 0)


@pytest.mark.parametrize("what", BY_NAME)
def test_an_edit_alone_is_caught_by_the_manifest(submission, tmp_path, what):
    edited = shutil.copytree(submission, tmp_path / "edited")
    BY_NAME[what].change(edited)
    (tmp_path / "out").mkdir()
    files = archive.unpack(tampering.hand_in(edited, "as it is", tmp_path / "v.zip"), tmp_path / "out")
    assert list(archive.manifest_faults(tmp_path / "out", files))


@pytest.mark.parametrize("way", ["manifest", "everything"])
@pytest.mark.parametrize("what", BY_NAME)
def test_an_edit_is_caught_by_its_content(submission, tmp_path, what, way):
    edit = BY_NAME[what]
    expected = getattr(edit, way)
    if expected == "*":
        with pytest.raises(EvidenceError):
            tampering.try_edit(edit, way, submission, tmp_path)
        return
    checked = tampering.try_edit(edit, way, submission, tmp_path)
    found = tampering.caught(checked)
    if expected:
        assert expected in found
        assert checked.status != 0
    else:
        assert found == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_that_is_no_submission_is_refused_and_writes_nothing_outside(submission, tmp_path, what):
    target = tampering.hand_in(submission, "manifest", tmp_path / "v.zip")
    ARCHIVES[what](target)
    box = tmp_path / "box" / "in"
    box.mkdir(parents=True)
    limits = archive.Limits(free=1 << 26, ratio=50)
    with pytest.raises(ArchiveError):
        archive.unpack(target, box, limits)
    assert [p.name for p in (tmp_path / "box").iterdir()] == ["in"]
    checked = check(target, tampering.lab(tmp_path))
    assert checked.status == 1, "also where its size is within the limits, for the manifest does not know it"


def test_a_member_is_never_in_memory(submission, tmp_path):
    log = tmp_path / "big.log"
    with log.open("wb") as file:
        for i in range(64):
            file.write(bytes([i]) * (1 << 20))
    tracemalloc.start()
    archive.write(tmp_path / "v.zip", {"runs/c/speed/attempt-1/logs/big.log": log}, {"suite": SUITE})
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "v.zip", tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert (tmp_path / "out" / "runs/c/speed/attempt-1/logs/big.log").stat().st_size == 64 << 20


def test_packing_an_unreadable_request_says_which(submission, tmp_path):
    edited = shutil.copytree(submission, tmp_path / "edited")
    BY_NAME["a request that is no object"].change(edited)
    with pytest.raises(EvidenceError, match=r"speed/attempt-2/request\.json"):
        pack(edited, tmp_path / "v.zip", tampering.WHO)
