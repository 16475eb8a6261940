"""A comparison in words: a headline, the numbers behind it, and how far they can be trusted.

The page, the model card, `results.json` and the terminal all take them from here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from visatb.workdir.verdict import CERTAIN, ENOUGH, QUESTIONS, Change, Comparison
from weighting_visatb import some

POINT = 1.0  # points of ΔI: the difference that the words say how many runs would tell
NUMBERS = {1: "one run", 2: "two runs"}
_names = partial(some, shown=8)  # the tables have them all


@dataclass(frozen=True)
class Words:
    """A headline, sentences with the numbers behind it, and what to mind; `tone` is good, bad, mixed or open."""

    tone: str
    headline: str
    sentence: str
    caution: str


def in_words(comparison: Comparison | None, waiting: str) -> Words:
    """What the results say; `waiting` says what is still to come where there are none."""
    if comparison is None:
        return Words("open", "No answer yet", waiting, "")
    c = comparison
    verdict = c.runs >= ENOUGH
    evenness = -1 if c.on_side(-1) else 0
    sentence = f"Average change per task against {c.other} (ΔI): {c.delta_i[0]:+.2f}%{_interval(c, c.gain)}."
    if not c.baseline_is_other:
        evenness = -c.error.side
        sentence = (
            f"Average change per task (ΔI, both against {c.baseline}): {c.delta_i[0]:+.2f}% against "
            f"{c.delta_i[1]:+.2f}%, a difference of {c.gain.value:+.2f} points{_interval(c, c.gain)}. Average loss on "
            f"tasks that lost (ΔE): {c.delta_e[0]:.2f}% against {c.delta_e[1]:.2f}%, a difference of "
            f"{c.error.value:+.2f} points{_interval(c, c.error)}."
        )
    text = " ".join(part for part in (sentence, _task_by_task(c), runs_needed(c)) if part)
    headline = _headline(c, evenness) if verdict else _no_verdict(c)
    return Words(_tone(c.gain, evenness) if verdict else "open", signed(headline), signed(text), _caution(c))


def signed(text: str) -> str:
    """The text with true minus signs before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def runs_needed(c: Comparison) -> str:
    """How many runs of each method would tell a difference of one point of ΔI; of what that is known."""
    if c.spread is None:
        return (
            f"How many runs would tell a difference of {POINT:g} point of ΔI is not known: nothing was trained twice. "
            "`repeats: {proxies: {mini: 3}}` in the experiment would tell, at the cost of two more mini models."
        )
    known = {"proxies": "as the proxies' repeats show it", "runs": f"between the {c.runs} runs"}[c.source]
    here = c.runs_needed(POINT, 0.0)
    anywhere = c.runs_needed(POINT, c.questions)
    text = (
        f"Training alone makes the difference in ΔI of one run of each vary by ±{c.spread:.2f} points (standard "
        f"deviation {known}). A difference of {POINT:g} point on these very questions would show in about {here} "
        "runs of each method"
    )
    if anywhere is None:
        least = CERTAIN * c.questions
        return (
            f"{text}; on other questions of this kind in no number of them, since the questions alone hide up to "
            f"{least:.1f} points."
        )
    return f"{text}; on other questions of this kind, too, in about {anywhere}."


def _tone(gain: Change, evenness: int) -> str:
    if gain.interval is None or (gain.side, evenness) == (0, 0):
        return "open"
    if gain.side * evenness < 0:
        return "mixed"
    return "good" if gain.side + evenness > 0 else "bad"


def _no_verdict(c: Comparison) -> str:
    """A headline for so few runs that chance in training may have made any difference."""
    value = f"{c.gain.value:+.2f}"
    if c.runs > 1:
        value = " and ".join(f"{run_gain:+.2f}" for run_gain in c.gain.runs)
    runs = NUMBERS.get(c.runs, f"{c.runs} runs")
    text = f"{runs[0].upper()}{runs[1:]} of each method, so no verdict"
    return f"{text}: here ΔI of {c.method} less that of {c.other} is {value} points"


def _headline(c: Comparison, evenness: int) -> str:
    average = c.gain.side
    runs = f"({c.runs} runs of each method)"
    if c.baseline_is_other:
        evenly = "no task behind" if not evenness else _count(len(c.on_side(-1)), "behind")
    elif (average, evenness) == (0, 0):
        return f"{c.method} and {c.other}: no clear difference, neither on average nor in evenness {runs}"
    else:
        evenly = {1: "more even", -1: "less even", 0: "no clear difference in evenness"}[evenness]
    first = {1: "better on average", -1: "worse on average", 0: "no clear difference on average"}[average]
    joint = "but" if average * evenness < 0 else "and"
    return f"{c.method} against {c.other}: {first}, {joint} {evenly} {runs}"


def _count(number: int, what: str) -> str:
    return f"{number} {'task' if number == 1 else 'tasks'} {what}"


def _interval(c: Comparison, change: Change) -> str:
    if change.interval is None:
        return " (no interval: standard errors are missing)"
    low, high = change.interval
    inside = "" if change.side else ", within what chance alone can do"
    return f" (95% interval, {c.kind}: {low:+.2f} to {high:+.2f}{inside})"


def _task_by_task(c: Comparison) -> str:
    names = {side: _names(c.on_side(side)) for side in (1, -1, 0)}
    parts = [f"ahead on {names[1]}"] if names[1] else []
    parts += [f"behind on {names[-1]}"] if names[-1] else []
    parts += [f"no clear difference on {names[0]}"] if names[0] else []
    parts += [f"no standard errors, so not known on {_names(c.unsure)}"] if c.unsure else []
    by = "" if c.gain.interval is None else f", each by its own interval ({c.kind})"
    return f"Task by task against {c.other}{by}: {'; '.join(parts)}." if parts else ""


def _caution(c: Comparison) -> str:
    done, every = c.tasks
    parts = [f"Over the {done} of {every} tasks that have all their test scores."] if done < every else []
    if c.runs < ENOUGH:
        runs = NUMBERS.get(c.runs, f"{c.runs} runs")
        parts.append(
            f"A verdict needs at least {ENOUGH} runs of each method (`repeats: {{finals: {ENOUGH}}}`), this is {runs}: "
            "other seeds may differ by more than these figures say."
        )
    if c.gain.interval:
        parts.append(_how(c))
    if c.gain.interval and c.exact:
        parts.append(f"Without standard errors, so counted as exact in them: {_names(c.exact)}.")
    if c.family:
        parts.append(
            f"{c.method} against {c.other} is the comparison that was meant from the start and stands by itself; the "
            f"{c.family} others of the table are {'adjusted for their number (Holm)' if c.runs >= ENOUGH else 'shown'}."
        )
    return " ".join(parts)


def _how(c: Comparison) -> str:
    if c.kind == QUESTIONS:
        return "The intervals come from drawing the test questions anew and know nothing of training."
    what = "The test questions and the seeds of training are" if c.exact != list(c.by_task) else "The seeds are"
    return f"{what} drawn anew for the intervals; methods are compared seed by seed."
