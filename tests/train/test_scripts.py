"""The shell scripts: what they pass to the real parser, what they say is missing, SLURM, and real runs."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_inclusion_exclusion

from llava.train.arguments import parse_arguments
from llava.train.folder import read_json
from llava.train.tasks import resolve_tasks
from tests.train.workbench import ACADEMIC, CHAT, M3IT, REPOSITORY, SCRIPTS
from transformers_patch.checkpoint import last_complete_checkpoint

TASKS = {
    "finetune.sh": (),
    "finetune_academic.sh": ACADEMIC,
    "finetune_academic_13b.sh": ACADEMIC,
    "finetune_chat.sh": CHAT,
    "finetune_m3it.sh": M3IT,
    "finetune_qwen2vl.sh": ACADEMIC,
    "pretrain.sh": (),
}
MORE = {"finetune.sh": {"BASE_MODEL_PATH": "somewhere/7b"}}
"""What a script needs beside the common variables."""
VARIABLES = ("DATA_PATH", "IMAGE_FOLDER", "OUTPUT_DIR")
MODULE = "llava.train.train"


def environment(**variables: object) -> dict[str, str]:
    """Only what a script may read, so that nothing leaks in from where the tests run."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in variables.items()}


def dry_run(script: str, **variables: object) -> tuple[list[str], list[str]]:
    """What a script would start: the launcher's words and training's."""
    done = subprocess.run(
        ["bash", SCRIPTS / script], env=environment(DRY_RUN=1, **variables), capture_output=True, text=True, check=True
    )
    words = shlex.split(done.stdout)
    cut = words.index(MODULE) + 1
    return words[:cut], words[cut:]


@pytest.fixture
def variables(tmp_path):
    (tmp_path / "d.json").write_text("[]")
    return {"DATA_PATH": tmp_path / "d.json", "IMAGE_FOLDER": tmp_path, "OUTPUT_DIR": tmp_path / "out", "NUM_GPUS": 8}


def test_every_training_script_is_known_here():
    assert {path.name for path in SCRIPTS.glob("*.sh") if path.name.startswith(("finetune", "pretrain"))} == set(TASKS)


@pytest.mark.parametrize("script", TASKS)
def test_settings_are_the_papers(script, variables):
    launcher, words = dry_run(script, **variables, **MORE.get(script, {}), DEEPSPEED="none")
    model, data, training = parse_arguments(words)
    table = resolve_tasks(data, training)
    pretraining = script == "pretrain.sh"
    assert "--nproc_per_node 8" in " ".join(launcher)
    assert 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps == 128 * (1 + pretraining)
    assert training.learning_rate == (1e-3 if pretraining else 2e-5)
    assert training.num_train_epochs == (3 if script == "finetune_chat.sh" else 1)
    assert (training.lr_scheduler_type, training.get_warmup_steps(1000)) == ("cosine", 30)
    assert (training.bf16, training.gradient_checkpointing, training.model_max_length) == (True, True, 2048)
    assert (training.weight_decay, training.output_dir) == (0.0, str(variables["OUTPUT_DIR"]))
    assert (table.method, table.names) == ("EW", TASKS[script])
    assert len(table.unit_names) == (5 if script == "finetune_m3it.sh" else len(TASKS[script]))
    assert model.tune_mm_mlp_adapter == pretraining
    assert model.version == {"pretrain.sh": "plain", "finetune_qwen2vl.sh": None, "finetune.sh": None}.get(script, "v1")
    assert (model.vision_tower is None) == (script in ("finetune_qwen2vl.sh", "finetune.sh"))


def test_the_readmes_variables_are_read(variables):
    _, words = dry_run("finetune_academic.sh", **variables, VISATB_WEIGHTS="1.0 1.1 1 1 1 1 1 0.5", DEEPSPEED="none")
    _, data, training = parse_arguments(words)
    weights = resolve_tasks(data, training).task_weights()
    assert weights is not None
    assert (weights["RefCOCO-caption"], weights["ShareGPT"]) == (1.1, 0.5)


def test_variables_reach_the_command(variables, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    both = f"{tmp_path / 'd.json'} {tmp_path / 'a.json'}"
    launcher, words = dry_run(
        "finetune_chat.sh",
        **variables
        | {"DATA_PATH": both, "NUM_GPUS": 4, "NNODES": 2, "NODE_RANK": 1, "MASTER_ADDR": "node0", "LORA": 1}
        | {"BASE_MODEL_PATH": "b", "VISION_TOWER": "t", "MM_PROJECTOR": "p", "WEIGHT_METHOD": "DWA"}
        | {"TASK_NAMES": "x y", "EXTRA_ARGS": "--num_train_epochs 5 --run_name 'two words'", "DEEPSPEED": "none"},
    )
    model, data, training = parse_arguments(words)
    started = " ".join(launcher)
    assert "--nnodes 2 --node_rank 1 --master_addr node0 --master_port 29500" in started
    assert data.data_path == both.split()
    assert (model.model_name_or_path, model.vision_tower, model.pretrain_mm_mlp_adapter) == ("b", "t", "p")
    assert (model.lora_enable, model.lora_r, model.lora_alpha) == (True, 128, 256)
    assert (training.learning_rate, training.mm_projector_lr) == (2e-4, 2e-5)
    assert (training.num_train_epochs, training.run_name, training.weight_method) == (5, "two words", "DWA")
    assert data.task_names == ["x", "y"]


def test_deepspeed_can_launch_and_its_configurations_are_found(variables):
    launcher, words = dry_run("finetune_academic.sh", **variables, LAUNCHER="deepspeed")
    assert launcher[1:5] == ["-m", "deepspeed.launcher.runner", "--include", "localhost:0,1,2,3,4,5,6,7"]
    assert words[words.index("--deepspeed") + 1] == str(SCRIPTS / "zero3.json")
    _, words = dry_run("pretrain.sh", **variables)
    assert words[words.index("--deepspeed") + 1] == str(SCRIPTS / "zero2.json")


def test_deepspeed_takes_the_gpus_that_are_visible_and_a_port_of_its_own(variables):
    """Told a number of GPUs, DeepSpeed takes the first of the machine whatever CUDA_VISIBLE_DEVICES says."""
    some = variables | {"NUM_GPUS": 2, "CUDA_VISIBLE_DEVICES": "4,5,6", "LAUNCHER": "deepspeed"}
    launchers = [dry_run("finetune_academic.sh", **some)[0] for _ in range(2)]
    include = launchers[0][launchers[0].index("--include") + 1]
    assert parse_inclusion_exclusion({"localhost": 8}, include, "") == {"localhost": [4, 5]}
    ports = {launcher[launcher.index("--master_port") + 1] for launcher in launchers}
    assert "29500" not in ports


def test_the_first_failures_exit_code_comes_through_without_a_traceback(tmp_path):
    (tmp_path / "fail.py").write_text("import sys; sys.exit(2)")
    command = [sys.executable, "-m", "llava.train.launch", "--nproc_per_node", "1", "--standalone", "fail.py"]
    env = environment(PYTHONPATH=REPOSITORY)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("processes", "more", "micro", "steps"),
    [
        (1, {}, 16, 8),
        (4, {}, 16, 2),
        (32, {}, 4, 1),
        (6, {}, 11, 2),  # 132 places for 128 samples
        (24, {}, 6, 1),
        (512, {}, 1, 1),
        (8, {"GLOBAL_BATCH": 100, "MICRO_BATCH": 4}, 4, 4),
    ],
)
def test_the_global_batch_does_not_depend_on_the_processes(processes, more, micro, steps, variables):
    settings = variables | more | {"NUM_GPUS": processes, "DEEPSPEED": "none"}
    _, words = dry_run("finetune_academic.sh", **settings)
    _, _, training = parse_arguments(words)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (micro, steps)
    batch = more.get("GLOBAL_BATCH", 128)
    given = training.global_batch_size or processes * micro * steps
    assert given == batch


def test_the_cpu_takes_one_process(variables):
    launcher, _ = dry_run("finetune_academic.sh", **variables | {"NUM_GPUS": 0})
    assert "--nproc_per_node 1" in " ".join(launcher)


@pytest.mark.parametrize("script", TASKS)
@pytest.mark.parametrize("missing", VARIABLES)
def test_missing_variables_are_named(script, missing, variables):
    del variables[missing]
    env = environment(**variables, **MORE.get(script, {}))
    done = subprocess.run(["bash", SCRIPTS / script], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{script}: set {missing} first" in done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"GLOBAL_BATCH": "many"}, "GLOBAL_BATCH must be a positive whole number, not many"),
        ({"LAUNCHER": "mpirun"}, "LAUNCHER must be torchrun or deepspeed: mpirun"),
        ({"NNODES": 2}, "set MASTER_ADDR first"),
        ({"NNODES": 2, "LAUNCHER": "deepspeed"}, "set HOSTFILE first"),
    ],
)
def test_bad_variables_are_named(changed, message, variables):
    done = subprocess.run(
        ["bash", SCRIPTS / "finetune_academic.sh"],
        env=environment(**variables | changed),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.fixture
def slurm(tmp_path):
    """Stand-ins for SLURM's commands: srun runs the script once per node, scontrol notes what it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "srun": 'while [[ "$1" == --* ]]; do shift; done\n'
        'for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" || exit; done',
        "scontrol": f'if [[ "$1" == show ]]; then printf "node7\\nnode8\\n"; else echo "$@" >>{tmp_path}/asked; fi',
        "squeue": 'echo "${STATE:-RUNNING}"',
        "python": f'[[ "$2" != llava.train.check ]] || exit 0; echo "$@" >>{tmp_path}/started\n'
        '[[ -z "${STOP:-}" ]] || { mkdir -p "$OUTPUT_DIR"; touch "$OUTPUT_DIR/preempted"; exit 1; }',
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {"SLURM_JOB_ID": 4711, "SLURM_NNODES": 2, "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_GPUS_ON_NODE": 4} | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": folder / "python",
    }


def test_under_slurm_every_node_starts_its_own_launcher(slurm, variables, tmp_path):
    del variables["NUM_GPUS"]
    subprocess.run(["bash", SCRIPTS / "finetune_chat.sh"], env=environment(**variables | slurm), check=True)
    lines = (tmp_path / "started").read_text().splitlines()
    for rank, line in enumerate(lines):
        assert "--nproc_per_node 4" in line
        assert f"--nnodes 2 --node_rank {rank} --master_addr node7 --master_port 24711" in line
    assert len(lines) == 2
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("PREEMPTED", True), ("CANCELLED", False)])
def test_a_preempted_job_is_requeued_and_a_cancelled_one_is_not(slurm, variables, tmp_path, state, requeued):
    changed = variables | slurm | {"SLURM_NNODES": 1, "STOP": 1, "STATE": state}
    done = subprocess.run(["bash", SCRIPTS / "finetune_chat.sh"], env=environment(**changed), capture_output=True)
    assert done.returncode == 1
    assert (tmp_path / "asked").exists() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text() == "requeue 4711\n"


# ---- real runs: 2 processes, ZeRO, tiny models, only documented variables and EXTRA_ARGS

SMALL = "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --dataloader_num_workers 1"


def real_environment(bench, script: str, output: Path, extra: str = "", **changed: object) -> dict[str, str]:
    parts = {"BASE_MODEL_PATH": bench.root / "lm", "VISION_TOWER": bench.root / "clip"}
    if script == "finetune_qwen2vl.sh":
        parts = {"BASE_MODEL_PATH": bench.root / "qwen"}
    data = bench.data(TASKS[script] or None, text_only=script != "pretrain.sh")
    extra = f"{SMALL} --index_cache_dir {bench.root / 'index'} --max_steps 2 {extra}"
    places = {"DATA_PATH": data, "IMAGE_FOLDER": bench.images, "OUTPUT_DIR": output, "EXTRA_ARGS": extra}
    return environment(**{"NUM_GPUS": 2, **parts, **places, **changed})


def check_finished(output: Path, script: str, stage: int) -> dict:
    card = read_json(output / "run_card.json")
    assert (card["steps"], card["world_size"], card["global_batch_size"]) == (2, 2, 8)
    assert card["tasks"] == list(TASKS[script] or ["all"])
    assert card["settings"]["deepspeed"] == {"stage": stage, "world_size": 2}
    assert card["task_loss"]
    assert all(loss > 0 for loss in card["task_loss"].values())
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "trainer_state.json"):
        assert (output / name).is_file()
    assert not (output / "base_model").exists()
    return card


@pytest.mark.parametrize(
    ("script", "changed"),
    [
        ("pretrain.sh", {}),
        pytest.param("finetune_academic_13b.sh", {"WEIGHT_METHOD": "DWA"}, marks=pytest.mark.slow),
        ("finetune_chat.sh", {"LORA": 1, "VISATB_WEIGHTS": "1 0.5 2"}),
        pytest.param(
            "finetune_m3it.sh", {"VISATB_WEIGHTS": "1.0590 0.9048 1.0649 1.0037 0.9675"}, marks=pytest.mark.slow
        ),
        pytest.param("finetune_qwen2vl.sh", {"WEIGHT_METHOD": "TLA"}, marks=pytest.mark.slow),
    ],
)
def test_scripts_run(script, changed, bench, tmp_path):
    output = tmp_path / "out"
    env = real_environment(bench, script, output, **changed)
    done = subprocess.run(["bash", SCRIPTS / script], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    card = check_finished(output, script, stage=2 if script == "pretrain.sh" else 3)
    assert card["weight_method"] == changed.get("WEIGHT_METHOD", "VisATB" if "VISATB_WEIGHTS" in changed else "EW")
    if script == "finetune_m3it.sh":
        assert card["weights"]["CLEVR"] == 1.0037
    assert (output / "mm_projector.bin").is_file() == (script == "pretrain.sh")
    assert (output / "adapter_model.safetensors").is_file() == ("LORA" in changed)


@pytest.mark.slow
def test_a_stopped_script_goes_on_in_its_folder(bench, tmp_path):
    """SIGTERM to the script: a checkpoint, then the same command finishes the run (and then finds it finished)."""
    script, output = "finetune_academic.sh", tmp_path / "out"
    env = real_environment(bench, script, output, "--max_steps 400 --num_train_epochs 60", VISATB_WEIGHTS="1 " * 8)
    command = ["bash", SCRIPTS / script]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT) as run,
    ):
        deadline = time.monotonic() + 240
        while "'loss'" not in (tmp_path / "log").read_text():
            assert run.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        run.send_signal(signal.SIGTERM)
        assert run.wait(120) == 143
    stopped = last_complete_checkpoint(output)
    assert stopped is not None, (tmp_path / "log").read_text()[-4000:]
    assert (output / "preempted").is_file()
    assert not (output / "run_card.json").exists()
    step = int(stopped.rsplit("-", 1)[1])
    assert 1 <= step < 400
    settings = read_json(output / "run_settings.json")
    settings["max_steps"] = step + 1  # so that going on is one step, not hundreds
    (output / "run_settings.json").write_text(json.dumps(settings))
    env["EXTRA_ARGS"] += f" --max_steps {step + 1}"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_json(output / "run_card.json")["steps"] == step + 1
    assert not (output / "preempted").exists()
    history = read_json(output / "trainer_state.json")["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, step + 2))


def test_own_tasks_come_from_the_weights_file(bench, tmp_path):
    """README's last command: no task names, no paper's model; on a CPU as many threads as there are cores to spare."""
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"tasks": ["colour", "count"], "weights": {"colour": 0.8, "count": 1.2}}))
    output, data = tmp_path / "out", bench.data(("colour", "count"))
    extra = f"{SMALL} --index_cache_dir {tmp_path / 'index'} --max_steps 1"
    places = {"DATA_PATH": data, "IMAGE_FOLDER": bench.images, "OUTPUT_DIR": output, "NUM_GPUS": 0}
    env = environment(**places, BASE_MODEL_PATH=bench.root / "llava", VISATB_WEIGHTS=weights, EXTRA_ARGS=extra)
    del env["OMP_NUM_THREADS"]
    done = subprocess.run(["bash", SCRIPTS / "finetune.sh"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_json(output / "run_card.json")["weights"] == {"colour": 0.8, "count": 1.2}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"VISATB_WEIGHTS": "weights.json", "TASK_NAMES": "ShareGPT4V VQAv2"}, "weights missing for ['ShareGPT4V'"),
        ({"EXTRA_ARGS": "--learning_rate -1"}, "--learning_rate must be above 0"),
        ({"DEEPSPEED": "zero9.json"}, "--deepspeed: zero9.json does not exist"),
        ({"TASK_NAMES": "colour shape"}, "unknown_task"),
    ],
)
def test_flags_and_data_are_checked_before_a_launcher_starts(bench, tmp_path, changed, message):
    (tmp_path / "weights.json").write_text(json.dumps({"tasks": ["colour"], "weights": {"colour": 1.0}}))
    launcher = tmp_path / "python"
    launcher.write_text(
        f'#!/bin/sh\ncase "$2" in llava.train.check) exec {sys.executable} "$@";; *) touch {tmp_path}/started;; esac\n'
    )
    launcher.chmod(0o755)
    places = {"DATA_PATH": bench.data(("colour", "count")), "IMAGE_FOLDER": bench.images, "OUTPUT_DIR": tmp_path / "o"}
    env = environment(**places, BASE_MODEL_PATH=bench.root / "llava", NUM_GPUS=2, **changed) | {"PYTHON": str(launcher)}
    command = ["bash", SCRIPTS / "finetune.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr
    assert "nothing was started" in done.stderr
    assert not (tmp_path / "started").exists()
