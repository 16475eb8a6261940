"""Names and ids shared by data, model and user scripts."""

IGNORE_INDEX = -100
"""Label of a token that is no training target."""

IMAGE_TOKEN_INDEX = -200
"""Stand-in id of an image in ids made by `llava.mm_utils.tokenizer_image_token`; no model of ours reads it."""

DEFAULT_IMAGE_TOKEN = "<image>"
"""One image in the text of a data record."""

DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"
DEFAULT_IM_START_TOKEN = "<im_start>"
DEFAULT_IM_END_TOKEN = "<im_end>"
IMAGE_PLACEHOLDER = "<image-placeholder>"

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""What LLaVA adds to a question that wants a short answer, in training and in benchmarks."""
