"""A file of questions with answers and a module of tools, as an environment.

The data set has a JSON object a line: `question`, `answer` (a text, or a list of texts each of which is
right) and, if wanted, an `id`. The module has plain functions with type hints and a docstring, from which the
model's tool definitions are made, and says which of them only read:

    READ_ONLY = ["search"]

    def search(query: str, limit: int = 5) -> str:
        '''Find passages that may answer the query.'''

Every other public function of the module is effectful. An evaluation plays each task many times, so that
effectful functions are accepted only if the module says `REPLAYABLE = True`: executing one again, in another
run, does no harm and finds things as they were. `SYSTEM` may hold a system message.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import random
import re
import string
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from governor_training.environment import Message, NotEnoughTasks, Split, Task, Toolbox
from governor_training.errors import UsageError

TRAIN_SHARE = 0.5
"""Of the rows, by a hash of their ids: the gate is fitted on these, and the figures are taken on the rest."""

Scorer = Callable[[str, str], float]
"""From what the agent said and one right answer to a score in [0, 1]."""

_KINDS: Mapping[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


class DatasetError(UsageError):
    """A data set, a module of tools or a scorer that cannot be used; one line says what to change."""


@dataclass(frozen=True, slots=True)
class Row:
    id: str
    question: str
    answers: tuple[str, ...]

    @property
    def split(self) -> Split:
        """By the id alone, so that it stays when rows are added."""
        digest = hashlib.sha256(self.id.encode("utf-8", "surrogatepass")).digest()
        return Split.TRAIN if int.from_bytes(digest[:4], "big") < TRAIN_SHARE * 2**32 else Split.HELD_OUT


class DatasetEnvironment:
    """The rows as tasks, with the module's functions as tools. A score of at least `right` counts as 1."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        tools: ToolModule,
        scorer: Scorer,
        model_name: str = "",
        *,
        right: float = 1.0,
    ) -> None:
        self.name, self.model_name = name, model_name
        self.read_only, self.effectful = tools.read_only, tools.effectful
        self._rows, self._tools, self._scorer, self._right = rows, tools, scorer, right

    def tasks(self, count: int, seed: int, split: Split) -> Sequence[Task]:
        rows = [row for row in self._rows if row.split is split]
        if count > len(rows):
            message = f"the data set {self.name} has {len(rows)} {split.value} rows; asked for {count}"
            raise NotEnoughTasks(message, len(rows))
        return [self._task(row) for row in random.Random(seed).sample(rows, count)]

    def toolbox(self, task: Task) -> Toolbox:
        return self._tools

    def score(self, task: Task, answer: str, toolbox: Toolbox) -> float:
        """The best score against one of the right answers, 1 where that is good enough. Raises `DatasetError`
        for one outside [0, 1]."""
        row: Row = task.data
        score = max(float(self._scorer(answer, right)) for right in row.answers)
        if not 0.0 <= score <= 1.0:
            raise DatasetError(f"the scorer gave {score} for the task {task.id}: it must be in [0, 1]")
        return 1.0 if score >= self._right else score

    def _task(self, row: Row) -> Task:
        system: list[Message] = [{"role": "system", "content": self._tools.system}]
        messages = [*(system if self._tools.system else []), {"role": "user", "content": row.question}]
        return Task(row.id, tuple(messages), self._tools.schemas, row.answers[0], row)


class ToolModule:
    """The functions of a module as tools. Raises `DatasetError`."""

    waits = True
    """Anybody's tools may: they are called in threads, several at once."""

    def __init__(self, module: ModuleType) -> None:
        self._functions = {
            name: function
            for name, function in vars(module).items()
            if inspect.isfunction(function)
            and function.__module__ == module.__name__
            and not name.startswith("_")
        }
        if not self._functions:
            raise DatasetError(f"{module.__name__} defines no public function to be a tool")
        self.read_only = self._read_only(module)
        self.effectful = frozenset(self._functions) - self.read_only
        self.schemas = tuple(schema(function) for function in self._functions.values())
        self.system = str(getattr(module, "SYSTEM", ""))
        if self.effectful and getattr(module, "REPLAYABLE", False) is not True:
            names = ", ".join(sorted(self.effectful))
            raise DatasetError(
                f"{module.__name__} has tools with effects ({names}), and an evaluation executes them many "
                "times: name in READ_ONLY those that only read, or set REPLAYABLE = True if that does no harm"
            )

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result as text: a string as it is, anything else as JSON. An exception is told to the model."""
        function = self._functions.get(name)
        if function is None:
            return f"error: there is no tool {name}"
        try:
            result = function(**arguments)
        except Exception as error:
            return f"error: {type(error).__name__}: {error}"
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)

    def _read_only(self, module: ModuleType) -> frozenset[str]:
        names = getattr(module, "READ_ONLY", None)
        if not isinstance(names, list | tuple | set | frozenset) or not names:
            raise DatasetError(
                f'{module.__name__} does not say which tools only read: add READ_ONLY = ["..."] with their '
                f"names (it defines {', '.join(self._functions)})"
            )
        for name in names:
            if name not in self._functions:
                close = difflib.get_close_matches(str(name), self._functions, n=1)
                hint = f": did you mean {close[0]}?" if close else ""
                raise DatasetError(
                    f"READ_ONLY of {module.__name__} names {name!r}, which it does not define{hint}"
                )
        return frozenset(names)


def schema(function: types.FunctionType) -> dict[str, Any]:
    """The function as a tool in OpenAI's format.

    The description is the docstring; a parameter's is the text in `Annotated[str, "text"]`. Raises
    `DatasetError` on what JSON has no type for, on a missing hint or docstring, and on a coroutine.
    """
    name, doc = function.__name__, inspect.getdoc(function)
    if inspect.iscoroutinefunction(function):
        raise DatasetError(f"the tool {name} is a coroutine: define it with def")
    if not doc:
        raise DatasetError(f"the tool {name} has no docstring: the model reads it as the description")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise DatasetError(f"the type hints of the tool {name} cannot be read: {error}") from None
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DatasetError(f"the tool {name} takes {parameter}: give each parameter a name of its own")
        if parameter.name not in hints:
            raise DatasetError(f"the parameter {parameter.name} of the tool {name} has no type hint")
        properties[parameter.name] = _kind(hints[parameter.name], f"{parameter.name} of the tool {name}")
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": doc, "parameters": parameters}}


def _kind(hint: Any, where: str) -> dict[str, Any]:
    if hint in _KINDS:
        return {"type": _KINDS[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        described = [text for text in arguments[1:] if isinstance(text, str)]
        return {**_kind(arguments[0], where), **({"description": described[0]} if described else {})}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_kind(argument, where) for argument in arguments]}
    if hint is list or origin is list:
        return {"type": "array", **({"items": _kind(arguments[0], where)} if arguments else {})}
    if hint is dict or origin is dict:
        return {"type": "object"}
    raise DatasetError(f"the type {hint} of {where} is none that JSON has: use str, int, list[str] and so on")


def load_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a JSON Lines file. Raises `DatasetError`, with the number of the line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"cannot read the data set {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"cannot read the data set {path}: {error}") from None
    rows = [_row(line, f"line {number} of {path}") for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DatasetError(f"the data set {path} is empty")
    twice = [id for id, count in Counter(row.id for row in rows).items() if count > 1]
    if twice:
        raise DatasetError(f"the data set {path} has {twice[0]!r} twice: ids (or questions) must differ")
    return tuple(rows)


def _row(line: str, where: str) -> Row:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("question"), str):
        raise DatasetError(f'{where} must be an object with the text "question"')
    answer = data.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(isinstance(one, str | int | float) for one in answers):
        raise DatasetError(f'{where} must have an "answer": a text, or a list of texts')
    return Row(str(data.get("id", data["question"])), data["question"], tuple(map(str, answers)))


def exact(said: str, right: str) -> float:
    """1 if both are the same but for case, punctuation, articles and spacing."""
    return float(normalised(said) == normalised(right))


def contains(said: str, right: str) -> float:
    """1 if the right answer stands among the words said."""
    return float(f" {normalised(right)} " in f" {normalised(said)} ")


def f1(said: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words, as SQuAD scores (arXiv 1606.05250)."""
    a, b = normalised(said).split(), normalised(right).split()
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if common else float(a == b)


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    bare = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


SCORERS: Mapping[str, Scorer] = {"exact": exact, "contains": contains, "f1": f1}

RIGHT_FROM: Mapping[str, float] = {"f1": 0.5}
"""The score from which an answer counts as right, unless the user says another; 1 for all other scorers. An
answer with half of its words wrong, or twice as long as needed, is about the worst that passes."""


def scorer(text: str) -> Scorer:
    """One of `SCORERS`, or `module:function` (or `file.py:function`). Raises `DatasetError`."""
    if text in SCORERS:
        return SCORERS[text]
    if ":" not in text:
        raise DatasetError(f"no scorer {text!r}: use one of {', '.join(SCORERS)}, or module:function")
    return attribute(text)


def attribute(text: str) -> Any:
    """What stands at `module:name` or `file.py:name`. Raises `DatasetError`."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise DatasetError(f"{text!r} must have the form module:name or file.py:name")
    module = load_module(place)
    if not callable(found := getattr(module, name, None)):
        raise DatasetError(f"{place} has no function {name}")
    return found


def load_module(text: str) -> ModuleType:
    """A module by its file or by its name. Raises `DatasetError`."""
    path = Path(text)
    try:
        if path.suffix != ".py":
            return importlib.import_module(text)
        if not path.is_file():
            raise DatasetError(f"no such file: {text}")
        spec = importlib.util.spec_from_file_location(f"governor_tools_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        return module
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(f"cannot import {text}: {type(error).__name__}: {error}") from None
