"""The report of a GPU machine: it is written whatever its parts do."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from .. import require

require.detectron2()

from lab import gpu_report
from lab.gpu_report import Part, main, parts, run_part, write_report

from ..piip.tiny_config import REPOSITORY


def part(name: str, code: str, seconds: int = 60) -> Part:
    return Part(name, name.title(), (("-c", code),), seconds)


def test_parts_end_within_25_minutes() -> None:
    for dry in (False, True):
        assert sum(part.seconds for part in parts(Path("x"), dry=dry)) <= 25 * 60


def test_what_fails_and_what_hangs_is_reported(tmp_path: Path) -> None:
    """With what they printed last; nothing that a part started lives on."""
    hangs = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '600']);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    measures = f"open({str(tmp_path / 'fast.json')!r}, 'w').write('{{\"speed\": 2.5}}'); print('fast')"
    planned = [
        part("broken", "print('before'); 1 / 0"),
        part("hung", hangs, seconds=3),
        part("fast", measures),
    ]
    outcomes = [run_part(planned_part, tmp_path) for planned_part in planned]
    write_report(outcomes, tmp_path, dry=True)
    assert [outcome.status for outcome in outcomes] == ["failed (status 1)", "stopped after 3 s", "ok"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["name"] for entry in report["parts"]] == ["broken", "hung", "fast"]
    assert report["parts"][0]["summary"] == "ZeroDivisionError: division by zero"
    assert report["parts"][2]["results"] == {"speed": 2.5}
    text = (tmp_path / "report.md").read_text()
    assert "| Hung | stopped after 3 s |" in text
    assert "- speed: 2.5" in text
    assert has_ended(int(outcomes[1].summary))


def has_ended(process: int) -> bool:
    """Within ten seconds; it may wait for its parent to notice, which in a container nobody may."""
    for _ in range(100):
        status = Path(f"/proc/{process}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_second_run_of_some_parts_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the plan; a dry run and a real one do not mix."""
    planned = [part("first", "print('one')"), part("second", "print('two')")]
    monkeypatch.setattr(gpu_report, "parts", lambda output, dry: planned)

    def said(*arguments: str) -> list[str]:
        main(["--output", str(tmp_path), *arguments])
        return [entry["summary"] for entry in json.loads((tmp_path / "report.json").read_text())["parts"]]

    assert said("--only", "second") == ["two"]
    planned[1] = part("second", "print('later')")
    assert said("--only", "first") == ["one", "two"]
    assert said("--only", "second") == ["one", "later"]
    (tmp_path / "report.json").write_text('{"dry_run": true, "parts": [{"name": "first"}]}')
    assert said("--only", "second") == ["later"]


def test_why_a_part_failed_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "parts", lambda output, dry: [part("broken", "print('before'); 1 / 0")])
    assert main(["--output", str(tmp_path)]) == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  | ")]
    assert "  | before" in shown and shown[-1] == "  | ZeroDivisionError: division by zero"


def test_unknown_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "coffee"])
    assert "no part is named coffee" in capsys.readouterr().err


@pytest.mark.slow
def test_dry_run(tmp_path: Path) -> None:
    """Every part runs on the CPU; those tests that emulate CUDA are part of `make check-cuda`."""
    names = [part.name for part in parts(tmp_path, dry=True) if part.name != "operator-tests"]
    run = subprocess.run(
        [REPOSITORY / "tools/gpu_report.sh", "--dry-run", "--output", tmp_path, "--only", *names],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    logs = "\n".join(log.read_text()[-2000:] for log in tmp_path.glob("*.log"))
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}\n{logs}"
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["name"] for entry in report["parts"]] == names
    assert {entry["status"] for entry in report["parts"]} == {"ok"}
    text = (tmp_path / "report.md").read_text()
    assert "4 queries: what a call costs" in text and "mask_rcnn_piip_128_96_64_shapes" in text
    assert "mean nothing" in text
