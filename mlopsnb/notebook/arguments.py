"""What a magic's grammar is made of: arguments, options and verbs, as data. Knows none of them by name."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Literal

Kind = Literal[
    "object",
    "source",
    "deployment",
    "text",
    "int",
    "float",
    "numbers",
    "texts",
    "words",
    "flag",
    "off",
    "variable",
]
"""How an argument is read.

`object` is a Python expression; `source` is one too, or a `models:/…` or `runs:/…` address; `deployment` is a variable
that holds a deployment, or a name; `numbers` and `texts` are KEY=VALUE, repeatable, or a variable that holds a mapping;
`words` are repeatable texts; `flag` makes its parameter true, and `off` is typed as `--no-NAME` and makes it false;
`variable` is the name of one that is set.
"""

BackEnd = Literal["builder", "format", "target"]


@dataclass(frozen=True, slots=True)
class Argument:
    """One positional argument or option. `name` is the parameter of the Python function."""

    kind: Kind
    name: str
    help: str
    _: KW_ONLY
    backend: BackEnd | None = None
    """The kind of back end whose names are offered as values."""

    choices: tuple[str, ...] = ()
    """Values that are offered beside those of the back end; the function says what it takes."""

    required: bool = False

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        if self.kind == "variable":
            return "-o"
        return ("--no-" if self.kind == "off" else "--") + self.name.replace("_", "-")

    @property
    def takes_value(self) -> bool:
        """Say whether a value follows the option."""
        return self.kind not in ("flag", "off")

    @property
    def repeats(self) -> bool:
        """Say whether the option may be given more than once."""
        return self.kind in ("numbers", "texts", "words")

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        if self.kind in ("numbers", "texts"):
            return "KEY=VALUE"
        if self.kind == "variable":
            return "NAME"
        return self.name.upper()


expression = partial(Argument, "object")
source = partial(Argument, "source")
deployed = partial(Argument, "deployment")
text = partial(Argument, "text")
whole = partial(Argument, "int")
number = partial(Argument, "float")
numbers = partial(Argument, "numbers")
texts = partial(Argument, "texts")
words = partial(Argument, "words")
flag = partial(Argument, "flag")
off = partial(Argument, "off")

OUT = Argument("variable", "out", "keep the result in a variable of the notebook, as NAME = %… does")
JSON = flag("json", "print the result as one JSON document, and nothing else")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One line magic. `twin` is `module:function`, or `module:Class.method` of the deployment that comes first."""

    name: str
    twin: str
    summary: str
    positionals: tuple[Argument, ...] = ()
    options: tuple[Argument, ...] = ()
    """The options that are parameters of the twin."""

    examples: tuple[str, ...] = ()
    alone: Verb | None = None
    """The verb of the same name that is meant where only one word is given."""

    reads: bool = False
    """Whether it looks and changes nothing; what it finds can be printed as JSON."""

    returns: bool = True

    @property
    def own(self) -> tuple[Argument, ...]:
        """The options that are the magic's own: what becomes of the result."""
        return (*((OUT,) if self.returns else ()), *((JSON,) if self.reads else ()))

    @property
    def all_options(self) -> tuple[Argument, ...]:
        """All that may be typed as an option."""
        return (*self.options, *self.own)

    @property
    def on_deployment(self) -> bool:
        """Say whether the verb is a method of the deployment that its first argument names."""
        return "." in self.twin.partition(":")[2]

    def option(self, flag: str) -> Argument | None:
        """Return the option typed as *flag*, or None."""
        return next((o for o in self.all_options if o.flag == flag), None)
