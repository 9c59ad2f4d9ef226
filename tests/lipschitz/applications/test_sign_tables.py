"""The CSV of certified signs on a disk that is full."""

import resource
import signal

import pytest

from lipschitz.applications.monotonicity import write_csv
from lipschitz.applications.signs import EntrySign


def test_a_full_disk_leaves_whole_lines_and_names_the_file(tmp_path):
    path = tmp_path / "signs.csv"
    sign = EntrySign(0, "0", "increasing", 1.0, 2.0, None, None, domains=0, seconds=0.1)
    write_csv(path, [sign], {0: "age"})
    content = path.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 9, before[1]))
        with pytest.raises(OSError, match=r"File too large: .*signs\.csv"):
            write_csv(path, [sign] * 2, {0: "age"}, append=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == content
    write_csv(path, [sign], {0: "age"}, append=True)
    assert path.read_bytes() == content + content.splitlines(keepends=True)[1]
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_csv("/dev/full", [sign], {0: "age"}, append=True)
