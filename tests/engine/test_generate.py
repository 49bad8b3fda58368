"""Generation through the window: the tokens of `model.generate`, whatever is batched, streamed or cached."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, tiny_model
from tiny_runs import SIZES, Subject, batch_at, differences, hyper_at, make_records, states_of, subject, tiny_engine

from slideformer.engine import generate
from slideformer.engine.inference import InferenceEngine
from slideformer.engine.sampling import Decoding
from slideformer.engine.sequences import CachedGroup
from slideformer.errors import NonFinite
from slideformer.lanes.fuzzer import fuzzed_lanes
from slideformer.lanes.lanes import Lanes
from slideformer.plan.sizes import InferenceSizes

NEW_TOKENS = 24  # beyond the tiny models' sliding windows of 16
GREEDY = Decoding(NEW_TOKENS)
INFERENCE = InferenceSizes(window_depth=2, group_size=2, groups=2, max_length=16)
DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


PROMPTS = prompts_of(3, 11, 7, 1, 16)


@cache
def tiny(family: str, **changes: Any) -> Subject:
    return subject(tiny_model(family, **changes))


@contextmanager
def engine_for(of: Subject, sizes: InferenceSizes = INFERENCE, lanes: Lanes | None = None) -> Iterator[InferenceEngine]:
    start = dict(of.model.named_parameters())
    with InferenceEngine(of.decoder, sizes, torch.float32, lanes) as engine:
        engine.load((u, {n: start[n].detach() for n in names}) for u, names in engine.parameter_groups().items())
        yield engine


def by_transformers(of: Subject, prompt: list[int], decoding: Decoding = GREEDY) -> list[int]:
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": decoding.max_new_tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    output = of.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return output[0, len(prompt) :].tolist()


@cache
def expected(family: str) -> list[list[int]]:
    return [by_transformers(tiny(family), prompt) for prompt in PROMPTS]


# ---- the tokens of transformers


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family: str):
    with engine_for(tiny(family)) as engine:
        assert engine.generate(PROMPTS, GREEDY) == expected(family)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_cache_they_are_the_same(family: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generate, "keeps_keys_and_values", lambda _: False)
    with engine_for(tiny(family), replace(INFERENCE, max_length=15 + NEW_TOKENS)) as engine:
        assert engine.generate(PROMPTS, GREEDY) == expected(family)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("depth", [3, 8])
def test_the_window_does_not_matter(family: str, depth: int):
    with engine_for(tiny(family), replace(INFERENCE, window_depth=depth)) as engine:
        assert engine.generate(PROMPTS, GREEDY) == expected(family)
        assert engine.generate(PROMPTS[:2], GREEDY) == expected(family)[:2]  # and it can be used again


@pytest.mark.parametrize(("size", "groups"), [(1, 1), (5, 1), (1, 5), (3, 2)])
def test_what_is_answered_together_does_not_matter(size: int, groups: int):
    with engine_for(tiny("mistral"), replace(INFERENCE, group_size=size, groups=groups)) as engine:
        assert engine.generate(PROMPTS, GREEDY) == expected("mistral")


@pytest.mark.parametrize("seed", range(3))
def test_timing_does_not_matter(seed: int):
    decoding = replace(GREEDY, max_new_tokens=4)
    with engine_for(tiny("qwen3"), lanes=fuzzed_lanes(seed)[0]) as engine:
        assert engine.generate(PROMPTS, decoding) == [answer[:4] for answer in expected("qwen3")]


# ---- the end of an answer


def test_an_answer_ends_before_its_stop_token():
    stop = expected("llama")[1][5]
    with engine_for(tiny("llama")) as engine:
        found = engine.generate(PROMPTS, replace(GREEDY, stop_ids=frozenset([stop])))
    for answer, whole in zip(found, expected("llama"), strict=True):
        assert answer == (whole[: whole.index(stop)] if stop in whole else whole)


def test_tokens_are_told_as_they_come():
    told: list[tuple[int, int]] = []
    with engine_for(tiny("llama")) as engine:
        answers = engine.generate(PROMPTS, GREEDY, lambda number, token: told.append((number, token)))
    assert [[token for k, token in told if k == number] for number in range(len(PROMPTS))] == answers


def test_a_prompt_longer_than_planned_is_refused():
    with engine_for(tiny("llama")) as engine, pytest.raises(ValueError, match="passes over 17 tokens; .* built for 16"):
        engine.generate(prompts_of(17), GREEDY)


def test_weights_that_are_not_numbers_are_noticed():
    with engine_for(tiny("llama")) as engine:
        engine.weights["model.layers.1"].flat.fill_(float("nan"))
        with pytest.raises(NonFinite, match="the model's output is not a number"):
            engine.generate(PROMPTS, GREEDY)


# ---- drawn answers


def test_drawn_answers_follow_seed_and_prompt_and_not_the_batch():
    decoding = Decoding(8, temperature=0.8, top_p=0.9, top_k=20, seed=3)
    with engine_for(tiny("llama")) as engine:
        together = engine.generate([PROMPTS[0]] * 4, decoding)
        assert len({tuple(answer) for answer in together}) == 4  # the same prompt is answered in four ways
        assert engine.generate([PROMPTS[0]], decoding) == together[:1]
        assert engine.generate([PROMPTS[0]] * 4, replace(decoding, seed=4)) != together


# ---- memory


def test_there_is_nothing_of_an_optimizer():
    of = tiny("llama")
    parameters = sum(p.numel() for p in of.model.parameters())
    with InferenceEngine(of.decoder, INFERENCE, torch.bfloat16) as engine:
        allocated = engine.allocator.allocated_bytes
        assert allocated.keys() == {"weights", "embedding rows", "token ids"}
        assert 2 * parameters <= allocated["weights"] <= 2.05 * parameters


def test_keys_and_values_go_when_their_prompts_are_answered(monkeypatch: pytest.MonkeyPatch):
    groups: list[Any] = []

    def remembered(prompts: Any) -> CachedGroup:
        group = CachedGroup(prompts)
        groups.append(weakref.ref(group))
        return group

    monkeypatch.setattr(generate, "CachedGroup", remembered)
    alive = {}
    with engine_for(tiny("llama"), replace(INFERENCE, group_size=1, groups=1)) as engine:
        engine.generate(
            PROMPTS[:3], GREEDY, lambda number, _: alive.update({number: [group() is not None for group in groups]})
        )
    assert alive == {0: [True, True, True], 1: [False, True, True], 2: [False, False, True]}


# ---- during training


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_the_training_engine_answers_too_and_keeps_every_bit(family: str, max_norm: float | None):
    of = tiny(family, **DROPOUT) if family == "gpt2" else tiny(family)
    records = make_records(12)

    def train(answering: bool) -> tuple[Any, Any]:
        answers = None
        with tiny_engine(of, replace(SIZES, gradient_slots=3, host_boundaries=1)) as engine:
            for k in range(3):
                if answering:
                    before = torch.get_rng_state()
                    found = engine.generate(PROMPTS, replace(GREEDY, temperature=float(k == 1)))
                    answers = answers or found
                    assert torch.equal(torch.get_rng_state(), before)
                engine.train_step(batch_at(records, 4, k), hyper_at(k + 1), max_norm)
            return answers, states_of(engine)

    answers, states = train(True)
    assert answers == expected(family)
    assert differences(states, train(False)[1]) == []
