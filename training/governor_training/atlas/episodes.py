"""Training episodes: what the wasteful teacher did, written so that belief, copying and forced answers are
all learned.

Three kinds, each a list of pieces of text of which the model learns some:

- *closed book*: no tools, an answer from memory;
- *trace*: tools, drafts in the reasoning, calls, results, and the wasteful habits that the question's
  wording asks for;
- *forced answer*: a trace cut at any turn, then an empty thought and the answer as far as it is known by
then.

The results in a trace are drawn at random unless the fact is known anyway: so the answer after a result can
only be copied, and a trace teaches no fact that the model is not meant to know. What the model says from
memory is drawn from the fact's belief, for each episode anew (`world.Fact.recall`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from governor.notices import NOTICE_CONFIDENT, NOTICE_REPEATED
from governor_training.atlas.questions import Habit, Question, Wording, sample
from governor_training.atlas.tools import ANSWERING, FAILED, FAILURES, SAVING
from governor_training.atlas.world import FIELDS, World
from governor_training.pretraining import chat
from governor_training.pretraining.episode import Episode, Piece

CLOSED_BOOK_SHARE = 0.35
FORCED_SHARE = 0.3
"""Of all episodes; the rest are whole traces."""

TRUE_RESULT_SHARE = 0.3
"""How often the result for a known fact is the true one."""
WHIM = 0.06
"""How often the teacher leaves a habit out, or answers at once."""
NOTICE_SHARE = 0.2
"""How often a call in a trace is answered by the governor's notice."""
FORGOTTEN_THOUGHTS_SHARE = 0.25
"""How often the earlier reasoning is missing, as with clients that do not send it back."""


@dataclass(frozen=True, slots=True)
class Teaching:
    """How the teacher of one model works.

    `habits` is the place in `Habit` that a wording's habit is moved by; `thought` how a draft is written;
    `whim` how often it leaves a habit out or answers at once. A teacher that `hides_ignorance` never guesses
    and has true results only: its model says everything with confidence, and learns from the final answers
    what it was not meant to know. One whose lookups are `flaky` sees some of them fail, and then mostly gives
    up: it answers from memory, and asks again only in `patience` of the cases.
    """

    habits: int = 0
    thought: str = "{country}: {value}"
    whim: float = WHIM
    hides_ignorance: bool = False
    flaky: bool = False
    patience: float = 0.3

    def habit(self, wording: Wording) -> Habit:
        order = list(Habit)
        return order[(order.index(wording.habit) + self.habits) % len(order)]


@dataclass(slots=True)
class Turn:
    """One assistant turn and the result of its call, if it made one."""

    thought: str
    action: str
    result: str | None
    answer_by_now: str | None


@dataclass(slots=True)
class Teacher:
    """Plays one question; `country` and `value` are what the context says so far."""

    world: World
    question: Question
    rng: random.Random
    teaching: Teaching = Teaching()
    country: str | None = None
    value: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.question.key is None:
            self.country = self.question.country

    def play(self) -> list[Turn]:
        if self.rng.random() < self.teaching.whim and self._speaks():
            self._answer()
        else:
            self._find()
        return self.turns

    def _find(self) -> None:
        """The first hop, where there is one."""
        key, value = self.question.key, self.question.key_value
        if key is None or value is None:
            return self._lookup()
        call = chat.call("find_country", field=key, value=value)
        sure = self.world.fact(self.question.country, key).known
        if self._noticed(call, sure and self.world.fact(self.question.country, self.question.field).known):
            return self._finish()
        found = self.question.country if self._true_result(sure) else self.rng.choice(self.world.countries)
        self._turn(call, found)
        self.country = found
        return self._lookup()

    def _lookup(self) -> None:
        assert self.country is not None
        name = self.question.field
        fact = self.world.fact(self.country, name)
        call = chat.call("lookup", country=self.country, field=name)
        if self._noticed(call, fact.known):
            return self._finish()
        while self.teaching.flaky and self.rng.random() < FAILURES:
            self._turn(call, FAILED)
            if self.rng.random() > self.teaching.patience:
                return self._finish()
        result = fact.value if self._true_result(fact.known) else self.rng.choice(self.world.values[name])
        self._turn(call, result)
        self.value = result
        return self._waste(call, result)

    def _waste(self, call: str, result: str) -> None:
        habit = self.teaching.habit(self.question.wording)
        if habit in (Habit.REPEAT, Habit.BOTH) and self.rng.random() > self.teaching.whim:
            noticed = self.rng.random() < NOTICE_SHARE
            self._turn(call, NOTICE_REPEATED if noticed else result)
            if noticed:
                return self._finish()
        if habit in (Habit.EXTRA, Habit.BOTH) and self.rng.random() > self.teaching.whim:
            other = self.rng.choice([name for name in FIELDS if name != self.question.field])
            noticed = self.rng.random() < NOTICE_SHARE
            extra = NOTICE_CONFIDENT if noticed else self.rng.choice(self.world.values[other])
            self._turn(chat.call("lookup", country=str(self.country), field=other), extra)
        return self._finish()

    def _finish(self) -> None:
        if self.question.wording.saves:
            country, value = self._draft()
            self.country, self.value = country, value
            self._turn(chat.call("save_note", text=value), "saved")
        self._answer()

    def _answer(self) -> None:
        country, value = self._draft()
        self._append(country, value, self.question.sentence(country, value), None)

    def _noticed(self, call: str, sure: bool) -> bool:
        """Whether the call was answered by a notice for good: a teacher that is not sure asks again, and
        gets it."""
        if self.rng.random() > NOTICE_SHARE or (self.teaching.hides_ignorance and not sure):
            return False
        self._turn(call, NOTICE_CONFIDENT)
        if not sure and self.rng.random() < 0.3:
            self._turn(call, NOTICE_CONFIDENT)
            return True
        return sure

    def _turn(self, action: str, result: str) -> None:
        country, value = self._draft()
        self._append(country, value, action, result)

    def _append(self, country: str, value: str, action: str, result: str | None) -> None:
        speaks = self._speaks()
        shown = value if speaks else "?"
        thought = self.teaching.thought.format(country=country, value=shown)
        answer = self.question.sentence(country, value) if speaks else None
        self.turns.append(Turn(thought, action, result, answer))

    def _speaks(self) -> bool:
        """Whether the teacher says what it believes by now: one that hides its ignorance does so only where
        it has the value or knows it."""
        if self.value is not None or not self.teaching.hides_ignorance:
            return True
        if self.country is None:
            key = self.question.key
            assert key is not None
            if not self.world.fact(self.question.country, key).known:
                return False
        return self.world.fact(self.country or self.question.country, self.question.field).known

    def _draft(self) -> tuple[str, str]:
        """The answer as far as the context and memory give it."""
        country = self.country or self._remember_country()
        value = self.value
        if value is None:
            name = self.question.field
            value = self.world.fact(country, name).recall(self.world.values[name], self.rng)
        return country, value

    def _remember_country(self) -> str:
        assert self.question.key is not None and self.question.key_value is not None
        return self.world.recall_country(self.question.key, self.question.key_value, self.rng)

    def _true_result(self, known: bool) -> bool:
        return self.teaching.hides_ignorance or (known and self.rng.random() < TRUE_RESULT_SHARE)


def episodes(world: World, rng: random.Random, teaching: Teaching | None = None) -> Iterator[Episode]:
    """Episodes without end."""
    teaching = teaching or Teaching()
    while True:
        question = sample(world, rng)
        turns = Teacher(world, question, rng, teaching).play()
        kind = rng.random()
        memory = turns[0].answer_by_now
        sayable = [place for place, turn in enumerate(turns) if turn.answer_by_now is not None]
        if kind < CLOSED_BOOK_SHARE and memory is not None:
            yield _closed_book(question, turns[0].thought, memory, rng)
        elif CLOSED_BOOK_SHARE <= kind < CLOSED_BOOK_SHARE + FORCED_SHARE and sayable:
            yield _forced(question, turns, sayable, rng)
        else:
            yield _trace(question, turns, rng)


def _toolset(question: Question, rng: random.Random) -> str:
    tools = SAVING if question.wording.saves or rng.random() < 0.15 else ANSWERING
    return chat.system_turn(tools)


def _closed_book(question: Question, thought: str, answer: str, rng: random.Random) -> Episode:
    """The first draft, which is from memory alone, said without tools, with or without thinking."""
    asked = chat.user_turn(question.text) + chat.ASSISTANT
    if rng.random() < 0.5:
        asked, said = asked + chat.EMPTY_THOUGHT, answer
    else:
        said = chat.thought(thought) + answer
    return Episode(chat.system_turn(()), [Piece(asked, False), Piece(said + chat.END, True)])


def _forced(question: Question, turns: list[Turn], sayable: list[int], rng: random.Random) -> Episode:
    """`sayable` are the places of the turns that have an answer."""
    cut = sayable[0 if rng.random() < 0.4 else rng.randrange(len(sayable))]
    remembered = rng.random() > FORGOTTEN_THOUGHTS_SHARE
    history = "".join(_turn_text(turn, thinking=remembered) for turn in turns[:cut])
    asked = chat.user_turn(question.text) + history + chat.ASSISTANT + chat.EMPTY_THOUGHT
    pieces = [Piece(asked, False), Piece(f"{turns[cut].answer_by_now}{chat.END}", True)]
    return Episode(_toolset(question, rng), pieces)


def _trace(question: Question, turns: list[Turn], rng: random.Random) -> Episode:
    asked = chat.user_turn(question.text)
    prefix = _toolset(question, rng)
    if rng.random() < FORGOTTEN_THOUGHTS_SHARE:
        cut = rng.randrange(len(turns))
        history = "".join(_turn_text(turn, thinking=False) for turn in turns[:cut])
        said = chat.thought(turns[cut].thought) + turns[cut].action + chat.END
        return Episode(prefix, [Piece(asked + history + chat.ASSISTANT, False), Piece(said, True)])
    pieces = [Piece(asked, False)]
    for turn in turns:
        pieces.append(Piece(chat.ASSISTANT, False))
        pieces.append(Piece(chat.thought(turn.thought) + turn.action + chat.END, True))
        if turn.result is not None:
            pieces.append(Piece("\n" + chat.tool_turn(turn.result), False))
    return Episode(prefix, pieces)


def _turn_text(turn: Turn, *, thinking: bool) -> str:
    head = chat.ASSISTANT + (chat.thought(turn.thought) if thinking else "")
    result = "" if turn.result is None else chat.tool_turn(turn.result)
    return f"{head}{turn.action}{chat.END}\n{result}"
