"""Reading pickles as data: nothing is imported and nothing is called, whatever the file contains.

A pickle is a program for a stack machine that can import and call any function. This reader is such a machine, in which
classes and functions are only names, objects only their state, and calls are recorded and not made. It accepts the
operations that saving a network writes, and the names that its caller expects; anything else is an error. Time and
memory are proportional to the length of the pickle.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeAlias, TypeVar

from smalti.core.errors import CheckpointError
from smalti.core.log import printable

T = TypeVar("T")
Value: TypeAlias = Any
"""None, bool, int, float, str, tuple, list, dict, or one of the three classes below."""


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function that the pickle refers to, such as `torch.device`."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call that the pickle contains; it is not made."""

    function: str
    arguments: tuple[Value, ...]


@dataclass(slots=True, eq=False)
class Instance:
    """An object, as the name of its class and its attributes."""

    kind: str
    state: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """The names that a pickle may refer to.

    Attributes:
        classes: classes of which it may contain instances.
        functions: functions of which it may contain calls.
        others: further names.
        persistent: returns the object of a persistent id; raises ValueError for an id that is not expected.
        inert: what training programs store beside weights, such as `argparse.Namespace`, and packages, ending in a dot.
            Of their objects nothing but the name is kept. Where this is not empty, items of dictionaries whose keys are
            not text, as in the state of an optimiser, are dropped.
    """

    classes: frozenset[str]
    functions: frozenset[str]
    others: frozenset[str]
    persistent: Callable[[Value], Value]
    inert: tuple[str, ...] = ()

    def is_inert(self, name: str) -> bool:
        """Whether a name stands for something that is skipped."""
        return any(name.startswith(known) if known.endswith(".") else name == known for known in self.inert)


_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
_CONSTANTS: dict[str, Value] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_PLAIN = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_WITH_ARGUMENT = _PLAIN | {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "PROTO", "FRAME"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(stream: BytesIO, file: str, expected: Expected) -> Value:
    """The object of the pickle at the current position of `stream`, which is then at the end of the pickle.

    Raises:
        CheckpointError: it refers to a name that is not expected.
        ValueError: it is damaged, or not a pickle.
    """
    machine = _Machine(file, expected)
    try:
        for operation, argument in _operations(stream):
            machine.step(operation, argument)
        return machine.stack.pop()
    except (IndexError, KeyError, UnicodeError):
        raise ValueError("its pickle makes no sense") from None


def _operations(stream: BytesIO) -> Iterator[tuple[str, Any]]:
    """Name (as in `pickletools`) and argument of every operation up to STOP.

    Arguments of operations that saving a network never writes are not read, as the first of these ends the reading.
    """
    name = ""
    while name != "STOP":
        code = stream.read(1)
        if code not in _OPERATIONS:
            raise ValueError("it holds no pickle" if code else "it is cut off")
        name, kind = _OPERATIONS[code].name, _OPERATIONS[code].arg
        argument: Any = None
        if name in ("GLOBAL", "INST"):
            argument = tuple(stream.readline().decode("utf-8").rstrip("\n") for _ in range(2))
        elif kind is not None and name in _WITH_ARGUMENT:
            try:
                argument = kind.reader(stream)
            except UnicodeError:
                raise
            except ValueError:
                raise ValueError("it is cut off") from None
        yield name, argument


class _Machine:
    """The stack machine."""

    def __init__(self, file: str, expected: Expected) -> None:
        self.file, self.expected = file, expected
        self.stack: list[Value] = []
        self.below: list[list[Value]] = []  # the stack below each open mark
        self.memo: dict[int, Value] = {}

    def step(self, operation: str, argument: Any) -> None:
        """Execute one operation.

        Raises:
            CheckpointError: saving a network does not write it, or it refers to a name that is not expected.
            ValueError, IndexError, KeyError: it does not fit what is on the stack.
        """
        match operation:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                self.stack.append([])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "TUPLE":
                values = self._since_mark()  # which changes the stack
                self.stack.append(tuple(values))
            case "APPEND" | "APPENDS":
                values = self._last(1) if operation == "APPEND" else self._since_mark()
                if not self._skips(self.stack[-1]):
                    self._top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                self._set_items(self._last(2) if operation == "SETITEM" else self._since_mark())
            case "GLOBAL":
                self._name(argument)
            case "STACK_GLOBAL":
                self._name(tuple(self._last(2)))
            case "INST":
                self._refuse(".".join(argument))
            case "BINPERSID":
                self.stack.append(self.expected.persistent(self.stack.pop()))
            case "REDUCE":
                self._call(*self._last(2))
            case "NEWOBJ":
                self._instance(*self._last(2))
            case "BUILD":
                self._build(*self._last(1))
            case _ if operation in _CONSTANTS:
                self.stack.append(_CONSTANTS[operation])
            case _ if operation in _PLAIN:
                self.stack.append(argument)
            case _ if operation in _TUPLES:
                self.stack.append(tuple(self._last(_TUPLES[operation])))
            case _:
                extension = operation.startswith("EXT")
                self._refuse("Python's extension registry" if extension else f"the operation {operation}")

    def _set_items(self, values: list[Value]) -> None:
        if self._skips(self.stack[-1]):
            return
        keys = values[::2]
        # Only strings have hashes with a secret seed: numbers could be chosen to collide. Hashing deeply nested tuples
        # overflows the stack of the process.
        if len(values) % 2 or not (self.expected.inert or all(type(key) is str for key in keys)):
            raise ValueError("its pickle has a dictionary whose keys are not text")
        self._top(dict).update((key, value) for key, value in zip(keys, values[1::2], strict=True) if type(key) is str)

    def _name(self, path: tuple[Value, ...]) -> None:
        text = ".".join(path) if all(type(part) is str for part in path) else "a name that is no text"
        text = text.replace("__builtin__.", "builtins.")  # as Python 2 called it, and as protocol 2 does
        known = self.expected.classes | self.expected.functions | self.expected.others
        if text not in known and not self.expected.is_inert(text):
            self._refuse(text)
        self.stack.append(Name(text))

    def _skips(self, value: Value) -> bool:
        """Whether a value is one of which only the name is kept."""
        return isinstance(value, Instance) and self.expected.is_inert(value.kind)

    def _call(self, function: Value, arguments: Value) -> None:
        if type(function) is Name and self.expected.is_inert(function.text):
            self.stack.append(Instance(function.text))
            return
        if type(function) is not Name or function.text not in self.expected.functions or type(arguments) is not tuple:
            raise ValueError("its pickle calls what is no function")
        ordered_dict = function.text == "collections.OrderedDict" and not arguments
        self.stack.append({} if ordered_dict else Call(function.text, arguments))

    def _instance(self, kind: Value, arguments: Value) -> None:
        inert = type(kind) is Name and self.expected.is_inert(kind.text)
        if not inert and (type(kind) is not Name or kind.text not in self.expected.classes or arguments != ()):
            raise ValueError("its pickle makes an object of what is no class")
        self.stack.append(Instance(kind.text))

    def _build(self, state: Value) -> None:
        if self._skips(self.stack[-1]):
            return
        state = _require(state, dict)
        if type(self.stack[-1]) is not dict:  # torch notes versions of modules on its state dicts
            self._top(Instance).state = state

    def _refuse(self, wish: str) -> None:
        asked = f"{self.file} asks for {printable(wish[:100])}"
        cause = "weights need nothing of the kind" if self.expected.inert else "this is no file of weights"
        raise CheckpointError(asked, cause=cause, fix="nothing was run")

    def _since_mark(self) -> list[Value]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def _last(self, count: int) -> list[Value]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _top(self, kind: type[T]) -> T:
        return _require(self.stack[-1], kind)


def _require(value: Value, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} in the place of a {kind.__name__}")
    return value
