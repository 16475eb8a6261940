"""Every flag of LLaVA-v1.5's published scripts parses and does what it says; what cannot be done is an error."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments as StockArguments

from llava.train import usage
from llava.train.arguments import UsageError, parse_arguments

COMMON = """
    --data_path {data} --image_folder {images} --output_dir {out} --vision_tower openai/clip-vit-large-patch14-336
    --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True
    --num_train_epochs 1 --per_device_train_batch_size 16 --per_device_eval_batch_size 4 --evaluation_strategy "no"
    --save_strategy "steps" --save_total_limit 1 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type "cosine"
    --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True --dataloader_num_workers 4
    --lazy_preprocess True --report_to none"""
FINETUNE = "--version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad --group_by_modality_length True"
LORA = "--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4"
ADAPTER = "--pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin"
PUBLISHED = {
    "pretrain.sh": "--model_name_or_path lmsys/vicuna-13b-v1.5 --version plain --mm_projector_type mlp2x_gelu "
    "--tune_mm_mlp_adapter True --gradient_accumulation_steps 1 --save_steps 24000 --learning_rate 1e-3",
    "finetune.sh": f"--model_name_or_path lmsys/vicuna-13b-v1.5 {FINETUNE} {ADAPTER} --learning_rate 2e-5 "
    "--gradient_accumulation_steps 1 --save_steps 50000",
    "finetune_lora.sh": f"{LORA} {FINETUNE} {ADAPTER} --model_name_or_path lmsys/vicuna-13b-v1.5 --save_steps 50000",
    "finetune_task.sh": f"--model_name_or_path liuhaotian/llava-v1.5-13b {FINETUNE} --learning_rate 2e-5",
    "finetune_task_lora.sh": f"{LORA} {FINETUNE} --model_name_or_path liuhaotian/llava-v1.5-13b",
    "finetune_qlora.sh": f"--lora_enable True --bits 4 --double_quant True --quant_type nf4 {ADAPTER} --version v1 "
    "--model_name_or_path ./checkpoints/vicuna --learning_rate 2e-5",
    "deepspeed": "--model_name_or_path m --version v1 --freeze_backbone True --freeze_mm_mlp_adapter False "
    "--mm_vision_select_feature patch --local_rank 0 --is_multimodal True",
}


@pytest.fixture
def parse(tmp_path):
    (tmp_path / "d.json").write_text("[]")

    def parse(flags: str, common: str = COMMON):
        places = {"data": tmp_path / "d.json", "images": tmp_path, "out": tmp_path / "out"}
        return parse_arguments(shlex.split(common.format(**places)) + shlex.split(flags))

    return parse


@pytest.mark.parametrize("script", PUBLISHED)
def test_published_scripts_parse(parse, script):
    model, data, training = parse(PUBLISHED[script])
    assert training.eval_strategy == "no"
    assert training.get_warmup_steps(1000) == 30  # what became of --warmup_ratio 0.03
    assert training.bf16
    assert training.use_cpu == (not torch.accelerator.is_available())
    assert training.gradient_checkpointing
    assert training.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert (model.mm_vision_select_layer, training.model_max_length) == (-2, 2048)
    assert training.mm_projector_lr == (2e-5 if "mm_projector_lr" in PUBLISHED[script] else None)
    assert data.image_aspect_ratio == ("pad" if "image_aspect_ratio" in PUBLISHED[script] else None)
    assert training.group_by_modality_length == ("group_by_modality" in PUBLISHED[script])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mm_use_im_start_end True", "mm_use_im_start_end True is not supported"),
        ("--mm_use_im_patch_token True", "mm_use_im_patch_token True is not supported"),
        ("--mm_patch_merge_type spatial", "only flat"),
        ("--mpt_attn_impl triton", "unknown arguments: --mpt_attn_impl"),
        ("--lora_alfa 8", "did you mean --lora_alpha"),
        ("--image_aspect_ratio anyres", "invalid choice: 'anyres'"),
        ("--lazy_preprocess False", "lazy_preprocess False is not supported"),
        ("--bits 4", "add --lora_enable True"),
        ("--bits 3 --lora_enable True", "invalid choice"),
        ("--tune_mm_mlp_adapter True --lora_enable True", "trains the projector alone"),
        ("--mm_projector_lr 1e-4 --freeze_mm_mlp_adapter True", "no effect on a frozen projector"),
        ("--warmup_ratio 3", "must lie in"),
        ("--warmup_steps 7", "exclude each other"),
        ("--evaluation_strategy steps", "needs --eval_data_path"),
        ("--data_path nowhere.json", "data file nowhere.json does not exist"),
        ("--image_folder nowhere", "image folder nowhere does not exist"),
        ("--learning_rate fast", "invalid float value: 'fast'"),
        ("--label_smoothing_factor 0.1", "not part of the weighted loss"),
        ("--deepspeed nowhere.json", "nowhere.json"),
    ],
)
def test_what_cannot_be_done_is_an_error(parse, flags, message):
    with pytest.raises(UsageError, match=message):
        parse(f"--model_name_or_path m {flags}")


def test_the_optimizer_is_the_one_that_transformers_chooses(parse, tmp_path):
    """Its fused AdamW took an eighth of the time of the plain one over 85 million parameters on a CPU."""
    training = parse("--model_name_or_path m")[2]
    assert training.optim == StockArguments(output_dir=str(tmp_path), use_cpu=True).optim


def test_missing_flags_are_named(parse):
    for flag in ("--model_name_or_path", "--data_path", "--output_dir"):
        words = {"--model_name_or_path": "m", "--data_path": "{data}", "--output_dir": "{out}"}
        del words[flag]
        with pytest.raises(UsageError, match=f"{flag} is missing"):
            parse("", common=" ".join(f"{name} {value}" for name, value in words.items()))


def test_help_shows_ours_and_hides_the_rest(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    text = capsys.readouterr().out
    for flag in ("--visatb_weights", "--lora_enable", "--task_names", "--learning_rate", "--loss_norm"):
        assert flag in text
    assert "--hub_token" not in text
    assert len(text.splitlines()) < 150
    with pytest.raises(SystemExit):
        parse_arguments(["--help_all"])
    assert "--hub_token" in capsys.readouterr().out


def test_the_written_help_and_flags_are_the_parsers():
    """If not: python -m llava.train.usage"""
    assert json.loads(usage.FILE.read_text()) == usage.current()


@pytest.mark.parametrize("module", ["llava.train.train", "llava.train.check", "visatb.cli"])
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("--help", 0, "--visatb_weights"),
        ("--model-name-or-path m --output-dir o", 2, "error: --data_path is missing"),
        ("--model_name_or_path m --output_dir=o --data_path d --lora_alfa 8", 2, "did you mean --lora_alpha"),
    ],
)
def test_help_and_slips_need_no_torch(module, words, code, text):
    train = ["train"] if module == "visatb.cli" else []
    command = [sys.executable, "-X", "importtime", "-m", module, *train, *words.split()]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if line.endswith(("| torch", "| transformers", "| numpy"))]


def test_a_rank_but_the_first_says_nothing_of_a_slip(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert usage.answer(["--model_name_or_path", "m"]) == 2
    assert capsys.readouterr().err == ""


def test_another_transformers_is_asked_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(usage, "FILE", tmp_path / "usage.json")
    usage.FILE.write_text(json.dumps({"transformers": "4.0", "help": [], "flags": []}))
    assert usage.answer(["--help"]) is None


def test_a_token_goes_to_the_environment_and_into_no_file(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    training = parse("--model_name_or_path m --hub_token hf_secret")[2]
    assert os.environ["HF_TOKEN"] == "hf_secret"
    torch.save(training, tmp_path / "training_args.bin")  # as the Trainer does beside every model
    assert b"hf_secret" not in (tmp_path / "training_args.bin").read_bytes()


def test_deepspeed_is_left_out_where_nothing_is_started(parse, tmp_path):
    common = COMMON.format(data=tmp_path / "d.json", images=tmp_path, out=tmp_path / "out")
    words = [*shlex.split(common), "--model_name_or_path", "m"]
    (tmp_path / "zero.json").write_text("no JSON: it is not read")
    file = str(tmp_path / "zero.json")
    for flag in (["--deepspeed", file], [f"--deepspeed={file}"], ["--deepspeed", '{"zero_optimization": {}}']):
        *_, training = parse_arguments([*words, *flag], start=False)
        assert training.deepspeed is None
    with pytest.raises(UsageError, match=r"--deepspeed: .*lost.json does not exist"):
        parse_arguments([*words, f"--deepspeed={tmp_path / 'lost.json'}"], start=False)


ABOVE_0 = "learning_rate per_device_train_batch_size gradient_accumulation_steps lora_r lora_alpha save_steps"
NOT_BELOW_0 = "mm_projector_lr weight_decay max_grad_norm adam_epsilon dataloader_num_workers"
BELOW_1 = "adam_beta1 adam_beta2 lora_dropout"


@pytest.mark.parametrize(
    ("flag", "refused", "taken", "words"),
    [
        *((flag, "0", None, "must be above 0") for flag in ABOVE_0.split()),
        *((flag, "-1", "0", "must not be below 0") for flag in NOT_BELOW_0.split()),
        *((flag, "1", "0", r"must lie in \[0, 1\)") for flag in BELOW_1.split()),
        *((flag, "-0.1", None, r"must lie in \[0, 1\)") for flag in BELOW_1.split()),
        *((flag, "nan", None, "must be a finite number") for flag in ("learning_rate", "weight_decay", "adam_beta1")),
        *((flag, str(2**32), str(2**32 - 1), "must be a whole number from 0 to") for flag in ("seed", "data_seed")),
        *((flag, "-1", "0", "must be a whole number from 0 to") for flag in ("seed", "data_seed")),
        ("logging_steps", "-1", None, "must be above 0"),
        ("num_train_epochs", "0", "0.1", "must be above 0: 0 trains nothing"),
        ("max_steps", "0", "-1", "must be above 0 .* 0 trains nothing"),
        ("report_to", "wanbd", "none", "unknown wanbd"),
        ("report_to", "neptune", "tensorboard", "neptune is not installed"),
    ],
)
def test_values_out_of_range_are_named_by_their_flag(parse, flag, refused, taken, words):
    with pytest.raises(UsageError, match=f"--{flag}:? {words}"):
        parse(f"--model_name_or_path m --{flag}={refused}")
    if taken is not None:
        parse(f"--model_name_or_path m --{flag}={taken}")
