"""What the processes of a training agree on before it begins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llava.train.distributed import all_see

CODE = """
import sys
from pathlib import Path
import torch.distributed as dist
from llava.train.distributed import all_see
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), Path(sys.argv[1])
seen = all_see(folder / "shared", 0), all_see(folder / f"node{rank}" / "file", 0)
(folder / f"seen-{rank}").write_text(str(seen))
dist.destroy_process_group()
"""


def test_processes_that_see_different_folders_are_noticed_by_all(tmp_path: Path) -> None:
    """Only node 0 holds the second file, as where every node has an output folder of its own."""
    (tmp_path / "shared").touch()
    (tmp_path / "node0").mkdir()
    (tmp_path / "node0" / "file").touch()
    (tmp_path / "code.py").write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*command, str(tmp_path / "code.py"), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"seen-{rank}").read_text() for rank in (0, 1)] == ["(True, False)"] * 2


def test_one_process_sees_for_itself(tmp_path: Path) -> None:
    assert not all_see(tmp_path / "file", 0)
    (tmp_path / "file").touch()
    assert all_see(tmp_path / "file", 0)
