"""A quick check without an engine: what the training loop prints. The figures to publish come from
`evaluate.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from governor.markup import reads_as_call
from governor_training.atlas.questions import WORDINGS, Question, ask, held_out_sample
from governor_training.atlas.tools import ANSWERING, SAVING, Toolbox
from governor_training.atlas.world import World
from governor_training.pretraining import chat
from governor_training.pretraining.tokenizer import token_id
from governor_training.scores import Scored, auroc, calibration_error

QUESTIONS = 96
MAX_TURNS = 8
SURE = 0.9

_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.S)


def check(directory: Path, world: World) -> dict[str, float | list[float]]:
    """Closed-book accuracy by quarter, calibration of forced answers, and accuracy and calls with tools."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    generate = Greedy(model.eval(), tokenizer)
    one_hop = [ask(world, fact.country, fact.field, None, WORDINGS[0]) for fact in world.facts.values()]
    two_hops = held_out_sample(world, QUESTIONS, 7, two_hop_share=1.0)
    one, two = _forced(generate, one_hop), _forced(generate, two_hops)
    quarters = [
        [
            ok
            for question, (_, ok) in zip(one_hop, one, strict=True)
            if world.quarter(question.country) == wanted
        ]
        for wanted in range(4)
    ]
    every = [*one, *two]
    sure = [ok for confidence, ok in every if confidence > SURE]
    return {
        "quarters": [round(fmean(right), 3) for right in quarters],
        "two_hop": round(fmean(ok for _, ok in two), 3),
        "auroc": round(auroc(every) or 0.0, 3),
        "ece": round(calibration_error(every), 3),
        "sure": round(len(sure) / len(every), 3),
        "sure_right": round(sum(sure) / max(1, len(sure)), 3),
        **_with_tools(generate, world),
    }


def _forced(generate: Greedy, questions: Sequence[Question]) -> list[Scored]:
    """Confidence of each forced answer, and whether it is right."""
    said = generate([_prompt(question) + chat.ASSISTANT + chat.EMPTY_THOUGHT for question in questions])
    return [
        (answer.confidence, answer.text == question.sentence(question.country, question.answer))
        for question, answer in zip(questions, said, strict=True)
    ]


@dataclass(slots=True)
class Said:
    text: str
    confidence: float


class Greedy:
    """Batched greedy generation with left padding."""

    def __init__(self, model: Qwen3ForCausalLM, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._end = token_id(tokenizer, chat.END)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], tokens: int = 48) -> list[Said]:
        rows = [self._tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        out = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new = out.sequences[:, width:]
        logprobs = (
            torch.stack(out.logits, 1).float().log_softmax(-1).gather(-1, new.unsqueeze(-1)).squeeze(-1)
        )
        said = []
        for row, scores in zip(new.tolist(), logprobs, strict=True):
            stop = row.index(self._end) if self._end in row else len(row)
            text = self._tokenizer.decode(row[:stop], skip_special_tokens=False)
            said.append(Said(text, scores[:stop].sum().exp().item()))
        return said


@dataclass(slots=True)
class Run:
    question: Question
    toolbox: Toolbox
    text: str
    calls: int = 0
    malformed: int = 0
    answer: str | None = None


def _prompt(question: Question) -> str:
    return chat.system_turn(SAVING if question.wording.saves else ANSWERING) + chat.user_turn(question.text)


def _with_tools(generate: Greedy, world: World) -> dict[str, float]:
    runs = [
        Run(question, Toolbox(world), _prompt(question)) for question in held_out_sample(world, QUESTIONS, 11)
    ]
    for _ in range(MAX_TURNS):
        open_runs = [run for run in runs if run.answer is None]
        if not open_runs:
            break
        for run, said in zip(
            open_runs, generate([run.text + chat.ASSISTANT for run in open_runs], 64), strict=True
        ):
            _advance(run, said.text)
    right = [run.answer == run.question.sentence(run.question.country, run.question.answer) for run in runs]
    saved = [run.toolbox.notes == [run.question.answer] for run in runs if run.question.wording.saves]
    return {
        "accuracy": round(sum(right) / len(runs), 3),
        "saved": round(sum(saved) / max(1, len(saved)), 3),
        "calls": round(sum(run.calls for run in runs) / len(runs), 2),
        "malformed": sum(run.malformed for run in runs),
        "known": round(
            sum(world.fact(r.question.country, r.question.field).known for r in runs) / len(runs), 2
        ),
    }


def _advance(run: Run, said: str) -> None:
    run.text += f"{chat.ASSISTANT}{said}{chat.END}\n"
    found = _CALL.search(said)
    if found is None:
        run.answer = said.split("</think>\n\n")[-1]
        run.malformed += reads_as_call(run.answer)
        return
    run.calls += 1
    try:
        call = json.loads(found[1])
        result = run.toolbox.call(call["name"], call["arguments"])
    except (ValueError, KeyError, TypeError):
        run.malformed += 1
        result = "error"
    run.text += chat.tool_turn(result)
