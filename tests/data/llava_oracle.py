"""How LLaVA-v1.5 prepares a conversation under its Vicuna and plain templates, told over again.

LLaVA finds answers by counting: it splits the finished prompt at "</s>" into rounds, tokenises each round, and each
round's part up to the answer, again for themselves, and masks as many tokens as it counted. Nothing here looks at
where a token lies in the text. Images are -200, as there. Tokens come from sentencepiece itself, not from the project's
tokenizer nor from transformers.
"""

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

IGNORE = -100
IMAGE = -200

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def move_image_first(text: str) -> str:
    if "<image>" not in text:
        return text
    text = text.replace("<image>", "").strip()
    return ("<image>\n" + text).strip()


class SlowLlamaTokenizer:
    """The tokenizer that LLaVA-v1.5 reads ``tokenizer.model`` with: transformers 4.37's, `use_fast=False`.

    Text is cut at the special tokens. With `legacy`, sentencepiece puts its space before each stretch; without, one
    space is put before the whole text and none before what follows a special token.
    """

    SPECIALS = ("<unk>", "<s>", "</s>")

    def __init__(self, file: Path, legacy: bool) -> None:
        self.legacy = legacy
        model = ModelProto.FromString(file.read_bytes())
        model.normalizer_spec.add_dummy_prefix = legacy
        self.pieces = SentencePieceProcessor(model_proto=model.SerializeToString())
        self.bos = self.pieces.bos_id()

    def ids(self, text: str) -> list[int]:
        """With the start token in front."""
        if not self.legacy and text:
            text = "▁" + text
        stretches = re.split(f"({'|'.join(self.SPECIALS)})", text)
        if not self.legacy and len(stretches) > 1 and stretches[0] == "▁":
            stretches[0] = ""
        ids = [self.bos]
        for stretch in stretches:
            is_special = stretch in self.SPECIALS
            ids += [self.pieces.piece_to_id(stretch)] if is_special else self.pieces.encode(stretch)
        return ids


def ids_with_images(prompt: str, tokenizer: SlowLlamaTokenizer) -> list[int]:
    ids = [tokenizer.bos]
    stretches = [tokenizer.ids(text)[1:] for text in prompt.split("<image>")]
    for number, stretch in enumerate(stretches):
        if number > 0:
            ids.append(IMAGE)
        ids.extend(stretch)
    return ids


def vicuna_prompt(texts: list[str]) -> str:
    prompt = SYSTEM + " "
    for number, text in enumerate(texts):
        prompt += f"USER: {text} " if number % 2 == 0 else f"ASSISTANT: {text}</s>"
    return prompt


def vicuna(texts: list[str], tokenizer: SlowLlamaTokenizer, has_image: bool) -> tuple[list[int], list[int], bool]:
    """Ids, labels, and whether LLaVA's count came out (where it does not, LLaVA masks the whole sample)."""
    if has_image:
        texts = [move_image_first(text) for text in texts]

    def count(text: str) -> int:
        return len(ids_with_images(text, tokenizer) if has_image else tokenizer.ids(text))

    prompt = vicuna_prompt(texts)
    ids = ids_with_images(prompt, tokenizer) if has_image else tokenizer.ids(prompt)
    labels = list(ids)
    labels[0] = IGNORE
    done = 1
    for number, part in enumerate(prompt.split("</s>")):
        if part == "":
            break
        halves = part.split(" ASSISTANT: ")
        if len(halves) != 2:
            break
        in_round = count(part)
        in_question = count(halves[0] + " ASSISTANT: ") - 2  # the start token, and the space that joins the answer
        if number > 0 and not tokenizer.legacy:
            # after "</s>", "USER" is one token to a newer tokenizer; counted for itself it is two
            in_round -= 1
            in_question -= 1
        labels[done : done + in_question] = [IGNORE] * in_question
        done += in_round
    labels[done:] = [IGNORE] * (len(labels) - done)
    return ids, labels, done == len(ids)


def plain(answer: str, tokenizer: SlowLlamaTokenizer) -> tuple[list[int], list[int]]:
    ids = ids_with_images("<image>" + answer + "\n", tokenizer)
    masked = len(ids_with_images("<image>", tokenizer))
    return ids, [IGNORE] * masked + ids[masked:]


def v0(texts: list[str], tokenizer: SlowLlamaTokenizer, has_image: bool) -> tuple[list[int], list[int]]:
    """Ids and labels of version v0: turns set off by "### ", lengths of the turns counted one by one."""
    if has_image:
        texts = [move_image_first(text) for text in texts]
    header = SYSTEM.replace("user", "human") + "\n\n"
    turns = [f"### {('Human', 'Assistant')[place % 2]}: {text}\n" for place, text in enumerate(texts)]
    ids = ids_with_images(header + "".join(turns) + "### ", tokenizer)
    lengths = [len(ids_with_images(text, tokenizer)) for text in (header, *turns)]
    labels, begin = list(ids), lengths[0]
    labels[:begin] = [IGNORE] * begin
    for place, length in enumerate(lengths[1:]):
        if place % 2 == 0:
            masked = range(begin + 2, min(begin + length, len(ids)))
            for position in masked:
                labels[position] = IGNORE
        begin += length
    return ids, [IGNORE if label == IMAGE else label for label in labels]
