"""Images whose headers are sound and whose data are not: found by decoding, and in training one message."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
from PIL import Image

from llava.data.decode import decode_images
from llava.data.errors import DataError
from llava.train import check
from tests.train.workbench import ACADEMIC, REPOSITORY

TIMEOUT = 240  # s; some 20 s on an idle machine
TRAIN = """
import multiprocessing, sys
from llava.train.train import main
code = main(sys.argv[1:])
print(len(multiprocessing.active_children()), "workers are left")
sys.exit(code)
"""


def spoil(file):
    """Break an image's data and leave its header and its end as they are."""
    content = bytearray(file.read_bytes())
    start = content.index(b"IDAT") + 4
    content[start : start + 8] = b"\0" * 8
    file.write_bytes(content)


@pytest.fixture
def data(bench, tmp_path):
    """A data file with an image folder of its own, in which record broken's image is broken."""
    records = json.loads(bench.data(ACADEMIC).read_text())
    folder = tmp_path / "images"
    folder.mkdir()
    for name in {record["image"] for record in records if "image" in record}:
        (folder / name).write_bytes((bench.images / name).read_bytes())
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes())
    spoil(folder / "broken.png")
    records[4] |= {"id": "broken", "image": "broken.png"}
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    return file


def flags(bench, data, output, **more):
    values = {
        "model_name_or_path": bench.root / "llava",
        "data_path": data,
        "image_folder": data.parent / "images",
        "output_dir": output,
        "index_cache_dir": data.parent / "index",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "report_to": "none",
        **more,
    }
    return [word for name, value in values.items() for word in (f"--{name}", *str(value).split())]


def members(session):
    """Processes of a session that are still alive."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def test_in_a_worker_it_is_one_message_and_no_process_stays(bench, data, tmp_path):
    words = flags(bench, data, tmp_path / "out", dataloader_num_workers=2)
    command = [sys.executable, "-c", TRAIN, *words]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, **pipes)
    try:
        output, text = process.communicate(timeout=TIMEOUT)
        left = members(process.pid)
    finally:
        if process.poll() is None or members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 2, text
    assert "Traceback" not in text
    assert text.count("record broken: unreadable_image: ") == 1
    assert str(tmp_path / "images" / "broken.png") in text
    assert "replace the file by a readable image" in text
    assert "0 workers are left" in output
    assert not left


def test_check_decodes_and_names_file_and_record(bench, data, tmp_path, capsys):
    assert check.main([*flags(bench, data, tmp_path / "out"), "--all_images"]) == 2
    text = capsys.readouterr().err
    assert "1 record with broken images (all 7 images decoded)" in text
    assert f"{data}, record broken (no. 4): unreadable_image: {data.parent / 'images' / 'broken.png'}" in text
    assert "replace the file by a readable image" in text


def test_the_choice_is_seeded_and_says_how_many(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    names = [f"{number}.png" for number in range(9)]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert str(decode_images(names * 2, tmp_path, [], 4)) == "4 of 9 images decoded (--all_images: all of them)"
    for name in names[:6]:
        spoil(tmp_path / name)
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"id": name, "image": name} for name in names]))

    def found(seed):
        with pytest.raises(DataError) as caught:
            decode_images(names, tmp_path, [file], 4, seed)
        return str(caught.value)

    assert found(0) == found(0)
    assert found(0) != found(1)
    with pytest.raises(DataError, match=r"^6 records with broken images \(all 9 images decoded\)"):
        decode_images(names, tmp_path, [file], None)
