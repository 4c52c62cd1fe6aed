"""Training episodes: what the wasteful teacher did in the files.

Two kinds, with the same lessons as in the atlas (`atlas.episodes`): *traces*, and *forced answers*, where a
trace is cut and the answer given as far as it is known by then; many of these are cut before the first call,
and so teach what the model knows by heart. Values in files are drawn at random, so that they can only be
copied, unless the value is known anyway.

A search gives the value alone, and the teacher copies it from there only. It reads whole files out of habit
and does not find the line in them: what it believes after a read is what it believed before. A model of this
size does not learn to find a line among thirty, and so its teacher does not show it. Results of drawn length
are cheaper to learn from, and the long ones are what the model meets in the tree.

Some calls are answered by the governor's notice, and some redundant results are replaced by its stubs, so
that neither is new to the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from governor.notices import NOTICE_CONFIDENT, NOTICE_REPEATED
from governor.pruning import StubReason, stub_for
from governor_training.files.edits import Edit, Habit, sample
from governor_training.files.tools import SYSTEM, TOOLS
from governor_training.files.world import (
    DIRECTORY,
    FILE_LINES,
    KEYS,
    OTHER_FILES,
    OTHER_KEYS,
    SERVICES,
    Setting,
    World,
    file_text,
    path_of,
    values,
)
from governor_training.pretraining import chat
from governor_training.pretraining.episode import Episode, Piece

FORCED_FIRST_SHARE = 0.4
FORCED_LATER_SHARE = 0.25
"""Of all episodes; the rest are traces."""

TRUE_RESULT_SHARE = 0.3
"""How often the file says of a known value what the model believes."""
SHORT_SHARE = 0.85
"""How often a listing or a file is shorter than in the tree."""
WHIM = 0.05
"""How often the teacher leaves a habit out."""
NOTICE_SHARE = 0.2
STUB_SHARE = 0.3
SECOND_NOTICE_SHARE = 0.3
FORGOTTEN_THOUGHTS_SHARE = 0.3
"""How often the earlier reasoning is missing, as with clients that do not send it back."""

PREFIX = chat.system_turn(TOOLS, SYSTEM)


@dataclass(slots=True)
class Turn:
    """One assistant turn and the result of its call, if it made one. `answer_by_now` is what a forced answer
    would be in its place."""

    thought: str
    action: str
    result: str | None
    answer_by_now: str

    def text(self, *, thinking: bool) -> str:
        head = chat.ASSISTANT + (chat.thought(self.thought) if thinking else "")
        result = "" if self.result is None else chat.tool_turn(self.result)
        return f"{head}{self.action}{chat.END}\n{result}"


@dataclass(slots=True)
class Teacher:
    """Plays one edit. `stands` is the value in the service's file, and `value` is the same once a search
    found it. Each step says whether the teacher goes on looking."""

    world: World
    edit: Edit
    rng: random.Random
    value: str | None = None
    stands: str = field(init=False)
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        true = self.setting.known and self._luck(TRUE_RESULT_SHARE)
        self.stands = self.setting.value if true else self.rng.choice(values(self.edit.key))

    @property
    def setting(self) -> Setting:
        return self.world.setting(self.edit.service, self.edit.key)

    def play(self) -> list[Turn]:
        """The turns, from the first call to the last message."""
        plans = {
            Habit.PLAIN: [self._grep],
            Habit.LOOK: [self._look, self._grep],
            Habit.READ: [self._read, self._grep],
            Habit.REPEAT: [self._read, self._grep, self._grep_again],
            Habit.CHECK: [self._read, self._grep, self._read_aside],
            Habit.ASIDE: [self._grep, self._read_aside],
            Habit.THOROUGH: [self._look, self._read, self._grep, self._grep_again, self._read_aside],
        }
        for step in plans[self.edit.wording.habit]:
            if step != self._grep and self._luck(WHIM):
                continue
            if not step():
                break
        self._finish()
        return self.turns

    def _grep(self) -> bool:
        """A teacher that is not sure asks again after a notice, and gets the result, or else a second
        notice, which it takes for final."""
        if self._luck(NOTICE_SHARE):
            self._turn(self._search, NOTICE_CONFIDENT)
            if self.setting.known:
                return False
            if self._luck(SECOND_NOTICE_SHARE):
                self._turn(self._search, NOTICE_CONFIDENT)
                return False
        self._turn(self._search, self.stands)
        self.value = self.stands
        return True

    def _grep_again(self) -> bool:
        if self._luck(NOTICE_SHARE):
            self._turn(self._search, NOTICE_REPEATED)
            return False
        self._turn(self._search, self._seen(self.stands, StubReason.DUPLICATE))
        return True

    def _look(self) -> bool:
        others = [name for name in (*SERVICES, *OTHER_FILES) if name != self.edit.service]
        count = self.rng.randint(2, 7) if self._luck(SHORT_SHARE) else len(others)
        names = sorted([*self.rng.sample(others, count), self.edit.service])
        listing = "\n".join(f"{name}.conf" for name in names)
        return self._redundant(chat.call("list_dir", path=DIRECTORY), listing)

    def _read(self) -> bool:
        others = [key for key in (*KEYS, *OTHER_KEYS) if key != self.edit.key]
        keys = [*self.rng.sample(others, self._lines() - 1), self.edit.key]
        text = file_text({self.edit.key: self.stands}, keys, self.rng)
        return self._redundant(chat.call("read_file", path=self.setting.path), text)

    def _read_aside(self) -> bool:
        text = file_text({}, self.rng.sample(OTHER_KEYS, self._lines()), self.rng)
        return self._redundant(chat.call("read_file", path=path_of(self.rng.choice(OTHER_FILES))), text)

    def _redundant(self, call: str, result: str) -> bool:
        """A call that nothing depends on. After a notice the teacher looks only for what it does not know."""
        if self._luck(NOTICE_SHARE):
            self._turn(call, NOTICE_CONFIDENT)
            return self.value is None and not self.setting.known
        self._turn(call, self._seen(result, StubReason.LOW_VALUE))
        return True

    def _finish(self) -> None:
        if self.value is None:
            self.value = self.setting.recall(self.rng)
        write = chat.call("write_file", path=self.edit.target, text=self.edit.written(self.value))
        self._turn(write, "written")
        self._turn(self.edit.sentence(self.value), None)

    def _turn(self, action: str, result: str | None) -> None:
        value = self.value or self.setting.recall(self.rng)
        thought = f"{self.edit.service} {self.edit.key}: {value}"
        self.turns.append(Turn(thought, action, result, self.edit.sentence(value)))

    @property
    def _search(self) -> str:
        return chat.call("grep", pattern=self.edit.key, path=self.setting.path)

    def _lines(self) -> int:
        return self.rng.randint(3, 8) if self._luck(SHORT_SHARE) else FILE_LINES

    def _seen(self, result: str, reason: StubReason) -> str:
        """A redundant result as the model gets to see it."""
        return stub_for(reason, len(result)) if self._luck(STUB_SHARE) else result

    def _luck(self, share: float) -> bool:
        return self.rng.random() < share


def episodes(world: World, rng: random.Random) -> Iterator[Episode]:
    """Episodes without end."""
    while True:
        edit = sample(rng)
        turns = Teacher(world, edit, rng).play()
        kind = rng.random()
        if kind < FORCED_FIRST_SHARE:
            yield _forced(edit, turns, 0, rng)
        elif kind < FORCED_FIRST_SHARE + FORCED_LATER_SHARE:
            yield _forced(edit, turns, rng.randrange(1, len(turns)), rng)
        else:
            yield _trace(edit, turns, rng)


def _forced(edit: Edit, turns: list[Turn], cut: int, rng: random.Random) -> Episode:
    asked = _so_far(edit, turns[:cut], thinking=rng.random() > FORGOTTEN_THOUGHTS_SHARE)
    said = turns[cut].answer_by_now + chat.END
    return Episode(PREFIX, [Piece(asked + chat.EMPTY_THOUGHT, False), Piece(said, True)])


def _trace(edit: Edit, turns: list[Turn], rng: random.Random) -> Episode:
    if rng.random() < FORGOTTEN_THOUGHTS_SHARE:
        cut = rng.randrange(len(turns))
        asked = _so_far(edit, turns[:cut], thinking=False)
        said = chat.thought(turns[cut].thought) + turns[cut].action + chat.END
        return Episode(PREFIX, [Piece(asked, False), Piece(said, True)])
    pieces = [Piece(chat.user_turn(edit.text), False)]
    for turn in turns:
        pieces.append(Piece(chat.ASSISTANT, False))
        pieces.append(Piece(chat.thought(turn.thought) + turn.action + chat.END, True))
        if turn.result is not None:
            pieces.append(Piece("\n" + chat.tool_turn(turn.result), False))
    return Episode(PREFIX, pieces)


def _so_far(edit: Edit, turns: list[Turn], *, thinking: bool) -> str:
    """What the model has before it when it is its turn again."""
    history = "".join(turn.text(thinking=thinking) for turn in turns)
    return chat.user_turn(edit.text) + history + chat.ASSISTANT
