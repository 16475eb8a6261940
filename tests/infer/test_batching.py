"""How large batches are."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from llava.infer import batching
from llava.infer.batching import batch_size_for_memory, bytes_per_prompt, plan_batches
from llava.infer.prompts import Prompt


def prompts(lengths):
    return [Prompt(place, np.zeros(length, np.int32), (), ()) for place, length in enumerate(lengths)]


@given(
    st.lists(st.integers(1, 500), max_size=60),
    st.integers(0, 100),
    st.integers(1, 20),
    st.integers(0, 30),
)
def test_every_prompt_is_in_one_batch_and_no_batch_takes_more_than_the_first(lengths, new, first, more):
    lengths.sort(reverse=True)
    most = first + more
    batches = plan_batches(prompts(lengths), new, first, most)
    assert [place for batch in batches for place in batch] == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= most
        assert len(batch) * (lengths[batch[0]] + new) <= first * (lengths[0] + new)
        full = len(batch) == most or (len(batch) + 1) * (lengths[batch[0]] + new) > first * (lengths[0] + new)
        assert full or batch is batches[-1]


def test_a_batch_takes_what_memory_holds(monkeypatch):
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
    )
    # LLaVA-7B in 16 bits: half a MiB of keys and values a token
    each = bytes_per_prompt(config, 700, 300, 2)
    assert 0.5 * 2**20 * 1000 < each < 0.7 * 2**20 * 1000
    for gib, most in ((40, 80), (10, 16), (0, 1)):
        monkeypatch.setattr(batching, "free_memory", lambda device, room=gib * 2**30: room)
        size = batch_size_for_memory(config, 700, 300, 1, torch.device("cuda"), torch.float16)
        assert 1 <= size <= most
        assert size * each <= gib * 2**30 or size == 1
        assert batch_size_for_memory(config, 700, 300, 4, torch.device("cuda"), torch.float16) == max(1, size // 4)


def test_ranks_of_one_machine_share_its_memory(monkeypatch):
    alone = batching.free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert batching.free_memory(torch.device("cpu")) < alone / 2
