"""What results are made of: kinds of values, the environment, and what every result carries.

A field's words become its description in JSON Schema and in docs/schema.md; a field that may be absent is UNSET.
"""

from typing import Annotated

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Interval = Annotated[list[float], Meta(min_length=2, max_length=2)]
Histogram = dict[Annotated[str, Meta(pattern="^[+-]?[1-9][0-9]*$")], Annotated[int, Meta(ge=1)]]


def about(words: str) -> Meta:
    """What a field means."""
    return Meta(description=words)


class Environment(Struct, frozen=True, kw_only=True):
    """What a result was made on."""

    python: Annotated[str, about("version")]
    system: Annotated[str, about("operating system and machine")]
    cpu: Annotated[str, about("name of the processor")]
    cpu_flags: Annotated[list[str], about("those of its features that matter to integer products")]
    cores: Annotated[Count | None, about("logical cores; null where the system does not say")]
    packages: Annotated[dict[str, str], about("versions of the packages that matter, as installed")]


class Result(Struct, frozen=True, kw_only=True, tag_field="schema"):
    """What every result carries. A subclass is named by its tag, `ofq-deploy/<command>/<version>`, under "schema"."""

    command: Annotated[
        str, about("the command line that makes the result again; paths are relative to the folder it was typed in")
    ]
    environment: Annotated[Environment, about("what the result was made on")]

    @property
    def schema_name(self) -> str:
        """The command that made it, or `bench-gpu`."""
        return str(self.__struct_config__.tag).split("/")[1]
