"""The readers of a run, report and verify, say the same of a workspace on an object store as of one on a disk."""

from pathlib import Path

from tests.fake_workspace import make_workspace
from tests.s3_server import S3Server, fresh_url
from winnow.audit import write_report
from winnow.storage import Storage
from winnow.verify import verify


def test_report_and_verification_are_the_same_on_an_object_store(s3: S3Server, tmp_path: Path) -> None:
    disk, store = make_workspace(tmp_path / "run", parts=1, rows=40, trained=False), Storage(fresh_url())
    for path in disk.walk():
        store.write_bytes(path, disk.read_bytes(path))
    for storage in (disk, store):
        write_report(storage, "all")
    assert store.read_text("report/summary.json") == disk.read_text("report/summary.json")
    assert store.read_text("report/index.html") == disk.read_text("report/index.html")
    assert {finding.file for finding in verify(store).findings} <= set(store.walk("report"))  # which no stage gave a receipt here
