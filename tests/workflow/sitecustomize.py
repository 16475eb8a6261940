"""Put on PYTHONPATH by tests: `python -m` of the slow commands starts stand-ins of milliseconds instead."""

import os
import sys

_STAND_INS = {
    "llava.train.train": "train",
    "inference_visatb": "answer",
    "llava.infer.represent": "represent",
    "visatb.commands.validate": "check",
}
if not os.environ.get("REAL_REPORT"):
    _STAND_INS["visatb.commands.report"] = "report"
_words = sys.orig_argv
if "-m" in _words:
    _place = _words.index("-m")
    if _place + 1 < len(_words) and _words[_place + 1] in _STAND_INS:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import stand_ins

        os._exit(stand_ins.main(_STAND_INS[_words[_place + 1]], _words[_place + 2 :]))
