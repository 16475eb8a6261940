"""How LLaVA-v1.5 prepares a conversation under its Vicuna and plain templates, told over again.

LLaVA finds answers by counting: it splits the finished prompt at "</s>" into rounds, tokenises each round, and each
round's part up to the answer, again for themselves, and masks as many tokens as it counted. Nothing here looks at
where a token lies in the text. Images are -200, as there.
"""

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


def ids_with_images(prompt: str, tokenizer) -> list[int]:
    stretches = [tokenizer(text).input_ids for text in prompt.split("<image>")]
    drop = 1 if stretches[0] and stretches[0][0] == tokenizer.bos_token_id else 0
    ids = stretches[0][:drop]
    for number, stretch in enumerate(stretches):
        if number > 0:
            ids.append(IMAGE)
        ids.extend(stretch[drop:])
    return ids


def vicuna_prompt(texts: list[str]) -> str:
    prompt = SYSTEM + " "
    for number, text in enumerate(texts):
        prompt += f"USER: {text} " if number % 2 == 0 else f"ASSISTANT: {text}</s>"
    return prompt


def vicuna(texts: list[str], tokenizer, has_image: bool) -> tuple[list[int], list[int], bool]:
    """Ids, labels, and whether LLaVA's count came out (where it does not, LLaVA masks the whole sample)."""
    if has_image:
        texts = [move_image_first(text) for text in texts]

    def count(text: str) -> int:
        return len(ids_with_images(text, tokenizer) if has_image else tokenizer(text).input_ids)

    prompt = vicuna_prompt(texts)
    ids = ids_with_images(prompt, tokenizer) if has_image else tokenizer(prompt).input_ids
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


def plain(answer: str, tokenizer) -> tuple[list[int], list[int]]:
    ids = ids_with_images("<image>" + answer + "\n", tokenizer)
    masked = len(ids_with_images("<image>", tokenizer))
    return ids, [IGNORE] * masked + ids[masked:]
