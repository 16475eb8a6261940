"""What can be wrong with the data."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used as it is; the message names files, records and what would mend them."""

    def __init__(self, message: str) -> None:
        # torch makes an exception of a data loader's worker anew, from its traceback as text; what was said ends it.
        carried = "Traceback (most recent call last):" in message
        super().__init__(message.rpartition(f"{__name__}.DataError: ")[2].rstrip() if carried else message)


class BadSampleError(ValueError):
    """One record cannot become a sample.

    `reason` is one of the keys in `REASONS`, `detail` says what was found in this record.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadSampleError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


REASONS = {
    "not_a_record": "every record must be a JSON object with `conversations`",
    "missing_task": "give the record a `task`, or name a task for its whole file",
    "unknown_task": "correct the record's `task`, or add it to the task names",
    "bad_conversation": "`conversations` must list turns with `from` (human or gpt) and `value` (text)",
    "messages_format": "write the file in the form of LLaVA first: `visatb convert --to llava FILE NEW_FILE`",
    "nested_records": "if that list holds the records, write it alone into the file",
    "not_alternating": "turns must alternate human, gpt, human, gpt, ... and end with gpt",
    "empty_question": "give every human turn some text or an image",
    "empty_answer": "give every gpt turn some text, or remove the record",
    "bad_image_field": "`image` must be a path or a list of paths relative to the image folder",
    "image_count_mismatch": "write `<image>` once per image in the turns, and list as many images",
    "missing_image": "restore the file, or correct the path or the image folder (`image_folder`)",
    "image_outside_folder": "keep images inside the image folder, links included, or set a folder that holds them all",
    "unreadable_image": "replace the file by a readable image",
    "huge_image": "scale the image down",
    "unfit_image": "scale or crop the image to a shape that the model takes",
    "template_mismatch": "use a conversation template that fits the data",
    "images_too_long": "set a lower `image_max_pixels`, or raise the maximum length (`model_max_length`)",
    "no_target_left": "shorten the record or raise the maximum length (`model_max_length`)",
}
"""Why a record can be bad, and what would mend it."""
