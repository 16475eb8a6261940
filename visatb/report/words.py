"""A comparison in words: a headline, the numbers behind it, and how far they can be trusted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from visatb.report.verdict import Change, Comparison


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
    evenness = -1 if c.on_side(-1) else 0
    sentence = f"Average change per task against {c.other} (ΔI): {c.delta_i[0]:+.2f}%{_interval(c.gain)}."
    if not c.baseline_is_other:
        evenness = -c.error.side
        sentence = (
            f"Average change per task (ΔI, both against {c.baseline}): {c.delta_i[0]:+.2f}% against "
            f"{c.delta_i[1]:+.2f}%, a difference of {c.gain.value:+.2f} points{_interval(c.gain)}. Average loss on "
            f"tasks that lost (ΔE): {c.delta_e[0]:.2f}% against {c.delta_e[1]:.2f}%, a difference of "
            f"{c.error.value:+.2f} points{_interval(c.error)}."
        )
    text = f"{sentence} {_task_by_task(c)}"
    return Words(_tone(c.gain, evenness), _headline(c, evenness) + _doubt(c), signed(text), _caution(c))


def signed(text: str) -> str:
    """The text with true minus signs before numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def _tone(gain: Change, evenness: int) -> str:
    if gain.interval is None or (gain.side, evenness) == (0, 0):
        return "open"
    if gain.side * evenness < 0:
        return "mixed"
    return "good" if gain.side + evenness > 0 else "bad"


def _headline(c: Comparison, evenness: int) -> str:
    average = c.gain.side
    if c.baseline_is_other:
        said = "no task behind" if not evenness else _count(len(c.on_side(-1)), "behind")
    elif (average, evenness) == (0, 0):
        return f"{c.method} and {c.other}: no clear difference, neither on average nor in evenness"
    else:
        said = {1: "more even", -1: "less even", 0: "no clear difference in evenness"}[evenness]
    first = {1: "better on average", -1: "worse on average", 0: "no clear difference on average"}[average]
    joint = "but" if average * evenness < 0 else "and"
    return f"{c.method} against {c.other}: {first}, {joint} {said}"


def _doubt(c: Comparison) -> str:
    """What a headline must not be read without: a figure of one training says little about methods."""
    if c.gain.interval is None:
        return " (one training run; how sure that is, is not known)"
    return " (one training run; intervals over test questions only)"


def _count(number: int, what: str) -> str:
    return f"{number} {'task' if number == 1 else 'tasks'} {what}"


def _interval(change: Change) -> str:
    if change.interval is None:
        return " (no interval: standard errors are missing)"
    low, high = change.interval
    inside = "" if change.side else ", within what chance alone can do"
    return f" (95% interval {low:+.2f} to {high:+.2f}{inside})"


def _task_by_task(c: Comparison) -> str:
    names = {side: some(c.on_side(side)) for side in (1, -1, 0)}
    parts = [f"ahead on {names[1]}"] if names[1] else []
    parts += [f"behind on {names[-1]}"] if names[-1] else []
    parts += [f"no clear difference on {names[0]}"] if names[0] else []
    parts += [f"no standard errors, so not known on {some(c.unsure)}"] if c.unsure else []
    by = "" if c.gain.interval is None else ", by the questions' intervals"
    return f"Task by task against {c.other}{by}: {'; '.join(parts)}." if parts else ""


def some(names: Sequence[str], most: int = 8) -> str:
    """The names, or where they are many the first of them and a count; the tables have them all."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _caution(c: Comparison) -> str:
    done, every = c.tasks
    parts = [f"Over the {done} of {every} tasks that have all their test scores."] if done < every else []
    parts.append("One training run of each method: other seeds may differ by more than these figures say.")
    if c.gain.interval:
        parts.append("The intervals come from drawing the test questions anew.")
    if c.gain.interval and c.exact:
        parts.append(f"Without standard errors, so counted as exact in them: {some(c.exact)}.")
    return " ".join(parts)
