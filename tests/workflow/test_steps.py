"""What single steps of a job do again, leave, and remove."""

import json
from pathlib import Path

from tests.workflow.in_process import World
from tests.workflow.world import write_task
from visatb.workdir.layout import Layout
from visatb.workflow import job


def test_base_made_of_parts_is_made_again_where_questions_change(world, tmp_path):
    """Its weights go when it has answered, as those of every proxy."""
    parts = {"path": "somewhere/7b", "vision_tower": "somewhere/clip"}
    made = World(tmp_path, model=parts, weighting={"form": "simple", "on_degenerate": "clip"}, methods=[])
    world.file = made.file
    workdir = tmp_path / "work"
    weights = Layout(workdir).model("base") / "model.safetensors"
    assert world.run(workdir) is None
    assert not weights.exists()
    write_task(tmp_path, "a", {"val": 11})
    content = made.file.read_text()
    made.file.write_text(content.replace("a_val-12", "a_val-11"))
    assert world.run(workdir) is None
    assert [call.split()[0] for call in world.calls].count("llava.train.make_base") == 1
    answers = Layout(workdir).answers("val", "base", Layout(workdir).questions("a", "val", 11))
    assert len(json.loads(answers.read_text())) == 11


def test_checkpoints_that_were_put_aside_go_with_the_others(world, tmp_path):
    """Once the training is done; until then they may help to find out what happened."""
    workdir = tmp_path / "work"
    kept = Layout(workdir).model("EW") / "notes"
    aside = [kept.with_name(f"damaged-checkpoint-3{end}") for end in ("", "-2")]

    def damage(module, words):
        if module == "inference_visatb" and "EW" in words and not kept.exists():
            for folder in (kept, *aside):
                folder.mkdir()
            return True
        return False

    world.fails = damage
    assert world.run(workdir) is not None
    assert world.run(workdir) is None
    assert kept.exists()
    assert not any(folder.exists() for folder in aside)


def test_diverged_training_is_not_tried_again_in_the_same_run(world, tmp_path, caplog):
    """A scheduler submits a failed job again; a new `visatb run` tries once more."""
    workdir, tries = tmp_path / "work", []

    def diverge(module, words):
        if module == "llava.train.train":
            tries.append(words)
            folder = Path(words[words.index("--output_dir") + 1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "diverged").write_text("step 3: the loss is not finite\n")
        return module == "llava.train.train"

    world.fails = diverge
    assert world.run(workdir) is not None
    assert job.main([str(workdir), "mini"]) == 1
    assert len(tries) == 1
    assert "not tried again in this run: step 3: the loss is not finite" in caplog.text
    assert world.run(workdir) is not None
    assert len(tries) == 2
    world.fails = lambda module, words: False
    assert world.run(workdir) is None
