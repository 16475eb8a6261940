"""How often the intervals hold the true λ, over simulated experiments whose truth and noise are known.

`python -m pytest tests/weighting/test_coverage.py -m slow` simulates 2,000 experiments for each case (about 5 minutes
of one core); the default run simulates few of some cases, with a wide band.
"""

import logging

import numpy as np
import pytest

from weighting_visatb import (
    build_problem,
    draw,
    mean_contributions,
    solve,
    training_noise,
    visatb_weights,
    weigh,
)

TASKS, QUESTIONS = list("ABCD"), 1000
LOW = np.array([0.3, 0.4, 0.25, 0.5])
GAIN = np.array([0.35, 0.25, 0.4, 0.3])
HELP = np.array([[1, 0.3, 0.1, 0.5], [0.2, 1, 0.4, 0], [0.6, 0.1, 1, 0.2], [0.3, 0.2, 0, 1]])
TRAINING = np.array([1.0, 2.0, 2.0, 3.0])  # variance by training in units of that by questions
GROUPS = {"G": ["A", "B"], "H": ["C"], "I": ["D"]}
FORMS = {
    "standard": {},
    "groups and a fixed task": {"groups": GROUPS, "fixed": {"chat": 1.0}},
    "precise": {"difficulty": "precise"},
    "simple": {"form": "simple"},
    "lower is better": {"lower": "BD"},
}
# How often each kind of model is trained. In the simple form the cheap ones are the single minis.
REPEATS = {
    "only minis": {"mini": 3, "single_mini": 3},
    "2": dict.fromkeys(("mini", "plus_mini", "single", "single_mini"), 2),
    "4": dict.fromkeys(("mini", "plus_mini", "single", "single_mini"), 4),
}


def true_figures(form):
    """{kind: float64[M]} of models without unit, {kind: {unit: float64[M]}} of the others."""
    rows = dict(zip(TASKS, LOW + HELP * GAIN, strict=True))
    if groups := form.get("groups"):
        rows = {name: np.max([rows[task] for task in members], axis=0) for name, members in groups.items()}
    figures = {"mini": LOW, "plus_mini": rows}
    if form.get("form") == "simple":
        figures = {"base": LOW - 0.15, "single": rows, "single_mini": LOW}
    elif "difficulty" in form:
        figures |= {"single_mini": LOW * 0.9, "single": {task: row * 0.95 for task, row in rows.items()}}
    upwards = np.array([task not in form.get("lower", "") for task in TASKS])
    return walk(figures, lambda _, row: np.where(upwards, row, 1 - row))


def walk(figures, change):
    return {
        kind: {unit: change(kind, one) for unit, one in row.items()} if isinstance(row, dict) else change(kind, row)
        for kind, row in figures.items()
    }


def matrix_of(figures, form):
    """A matrix file's content; figures are float64[M], or float64[K, M] with repeats."""
    cells = walk(figures, lambda _, row: dict(zip(TASKS, row.T.tolist(), strict=True)))
    lower = dict.fromkeys(form.get("lower", ""), False)
    return {"tasks": TASKS, "higher_is_better": lower, **cells}


def solved(matrix, form, **options):
    build = {key: value for key, value in form.items() if key != "lower"}
    return weigh(build_problem(matrix, **build), **options)


def simulated(truth, form, repeats, rng):
    """A measured matrix: each model asked once, trained as often as `repeats` says, all repeats the same questions."""
    errors = walk(truth, lambda _, row: np.sqrt(row * (1 - row) / QUESTIONS))
    asked = walk(truth, lambda _, row: row + np.sqrt(row * (1 - row) / QUESTIONS) * rng.normal(size=4))
    count = {kind: repeats.get(kind, 1) for kind in truth}

    def trained(kind, row, spread):
        return row + (kind != "base") * np.sqrt(TRAINING) * spread * rng.normal(size=(count[kind], 4))

    figures = {
        kind: {unit: trained(kind, one, errors[kind][unit]) for unit, one in row.items()}
        if isinstance(row, dict)
        else trained(kind, row, errors[kind])
        for kind, row in asked.items()
    }
    stderr = walk(errors, lambda kind, row: np.tile(row, (count[kind], 1)))
    squeezed = {"stderr": {key: value for key, value in matrix_of(stderr, {}).items() if key in truth}}
    return matrix_of(figures, form) | squeezed


def intervals(matrix, form, seed, draws=200):
    """The 95% intervals of λ by kind, float64[2, M] each: the steps of `weigh` that they need, and no more."""
    problem = build_problem(matrix, **{key: value for key, value in form.items() if key != "lower"})
    asked = draw(problem, {}, draws, seed)
    found = {}
    for kind, drawn in (("questions", asked), ("both", asked + training_noise(problem, {}).draw(draws, seed))):
        c, hard = solve(problem, drawn, "drop", np.zeros(len(problem.tasks)))
        c_out, c_in = mean_contributions(c)
        there = np.isfinite(c_out).all(axis=-1)
        weights = visatb_weights(c_out[there], c_in[there], hard[there])[:, problem.unit_of]
        found[kind] = np.percentile(weights, [2.5, 97.5], axis=0)
    return found


def coverage(form, repeats, experiments):
    """Share of intervals that hold the true λ: {kind of interval: share}."""
    truth, rng = true_figures(form), np.random.default_rng(11)
    true = np.array([solved(matrix_of(truth, form), form, bootstrap=0)["weights"][task] for task in TASKS])
    held = {"questions": [], "both": []}
    for seed in range(experiments):
        for kind, (low, high) in intervals(simulated(truth, form, repeats, rng), form, seed).items():
            held[kind].append((low <= true) & (true <= high))
    return {kind: float(np.mean(values)) for kind, values in held.items()}


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("form", "repeats"),
    [("standard", "only minis"), ("groups and a fixed task", "2"), ("simple", "only minis"), ("lower is better", "4")],
)
def test_intervals_hold_the_true_weights(form, repeats):
    share = coverage(FORMS[form], REPEATS[repeats], experiments=100)
    assert 0.89 <= share["both"] <= 0.99
    assert share["questions"] < share["both"] - 0.03  # far from it, where training makes more noise than questions


@pytest.mark.parametrize("form", FORMS)
def test_the_steps_measured_here_are_those_of_the_command(form):
    matrix = simulated(true_figures(FORMS[form]), FORMS[form], REPEATS["2"], np.random.default_rng(2))
    content = solved(matrix, FORMS[form], bootstrap=200, seed=7, on_degenerate="drop")
    for kind, (low, high) in intervals(matrix, FORMS[form], seed=7).items():
        ends = content["uncertainty"][kind]["weights"]
        assert [(ends[task]["low"], ends[task]["high"]) for task in TASKS] == list(zip(low, high, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("repeats", REPEATS)
@pytest.mark.parametrize("form", FORMS)
def test_coverage_over_2000_experiments(form, repeats):
    share = coverage(FORMS[form], REPEATS[repeats], experiments=2000)
    print(f"{form}, repeated: {repeats}: {share}")
    assert 0.93 <= share["both"] <= 0.97


def answered(experiment_rng, repeats, questions=200):
    """Per-sample scores: a model's own liking of each question, each run's own chance, and each run's own level."""
    truth = true_figures({})
    matrix, samples = {"tasks": TASKS, "plus_mini": {}, "stderr": {"plus_mini": {}}}, {task: {} for task in TASKS}
    for name, row in [
        ("mini", truth["mini"]),
        *((f"plus_mini:{unit}", row) for unit, row in truth["plus_mini"].items()),
    ]:
        shape = (repeats if name == "mini" else 1, len(TASKS), questions)
        spread = np.sqrt(row * (1 - row))[:, None]
        liking, chance = experiment_rng.normal(size=shape[1:]), experiment_rng.normal(size=shape)
        level = np.sqrt(TRAINING / questions)[:, None] * experiment_rng.normal(size=(*shape[:2], 1))
        values = row[:, None] + spread * (level + np.sqrt(0.4) * liking + np.sqrt(0.6) * chance)
        kind, _, unit = name.partition(":")
        for target, numbers in ((matrix, values.mean(axis=-1)), (matrix["stderr"], values.std(axis=-1, ddof=1))):
            cells = dict(zip(TASKS, (numbers.T / (1 if target is matrix else questions**0.5)).tolist(), strict=True))
            if unit:
                target[kind][unit] = cells
            else:
                target[kind] = cells
        for column, task in enumerate(TASKS):
            for k in range(shape[0]):
                repeat = name if k == 0 else f"{name}#{k + 1}"
                samples[task][repeat] = np.stack([values[k, column], np.ones(questions)])
    return matrix, samples


@pytest.mark.parametrize("experiments", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_coverage_with_scores_of_single_questions(experiments):
    """Here 60% of the questions' noise is in the differences between repeats, too, and must not count twice."""
    truth, rng, held = true_figures({}), np.random.default_rng(5), []
    true = solved(matrix_of(truth, {}), {}, bootstrap=0)["weights"]
    for seed in range(experiments):
        matrix, samples = answered(rng, repeats=4)
        content = weigh(build_problem(matrix), samples=samples, bootstrap=200, seed=seed, on_degenerate="drop")
        held.append([ends["low"] <= true[task] <= ends["high"] for task, ends in content["intervals"].items()])
    low, high = (0.93, 0.97) if experiments == 2000 else (0.88, 0.995)
    assert low <= np.mean(held) <= high
