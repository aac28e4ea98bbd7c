"""What one side asks about files of the other, and what is answered: a JSON line each. The bytes of a file come after
the line that announces how many they are.

Who answers is wanlora_tui.transfer.other_end; who asks, wanlora_tui.transfer.channel.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta, Struct, field

from presets.errors import UserError

MAX_LINE_BYTES = 64 * 2**20  # a list of some hundred thousand files
PART = ".part"  # ends the name of a file that is not whole yet

What = Literal["loras", "previews", "report", "run"]
WHATS: tuple[What, ...] = ("loras", "previews", "report", "run")


class Cut(Exception):
    """The channel has ended; what was asked may have been done. Says why, as far as ssh did."""


class Gone(UserError):
    """The file is not there any more."""


class ListRun(Struct, tag=True):
    """The files of a run folder: `loras` the newest LoRA files (`step`: of that step, -1: of all), `previews`, `report`
    (events and job), `run` all there is."""

    folder: str
    what: What
    step: int | None = None


class ListFolder(Struct, tag=True):
    """All files below a folder; of a file that one alone, with the path "."."""

    path: str


class FactsOf(Struct, tag=True):
    """What lies at each of these paths; relative ones are relative to the home folder, here and below."""

    paths: list[str]


class Digest(Struct, tag=True):
    """The SHA-256 of the first `length` bytes of a file."""

    path: str
    length: int


class Read(Struct, tag=True):
    path: str
    offset: int
    length: int


class Write(Struct, tag=True):
    """`length` bytes follow, for the unfinished file of `path`, which has `offset` bytes by now and is cut to that."""

    path: str
    offset: int
    length: int


class Finish(Struct, tag=True):
    """The unfinished file of `path` is whole and takes its place, if it has this SHA-256. A different file that is
    there already stays, unless `replace`."""

    path: str
    sha256: str
    mtime_ns: int = 0  # 0: now
    replace: bool = False


class Remove(Struct, tag=True):
    """Take away a file that was written before, and folders that are empty then."""

    path: str


Request = ListRun | ListFolder | FactsOf | Digest | Read | Write | Finish | Remove


class FileEntry(Struct):
    path: str  # relative to what was listed
    size: Annotated[int, Meta(ge=0)]  # bytes
    mtime_ns: Annotated[int, Meta(ge=0)]
    sha256: str = ""  # where a manifest has it


class Listing(Struct, tag=True):
    files: list[FileEntry]
    passed_over: list[str] = field(default_factory=list)  # what is not sent, each with why


class Facts(Struct):
    """What lies at a path."""

    path: str  # absolute, or "" where nobody can tell
    kind: Literal["file", "folder", "other", "none"]
    size: int = 0
    mtime_ns: int = 0


class FactsFound(Struct, tag=True):
    facts: list[Facts]


class Sha256(Struct, tag=True):
    sha256: str


class Content(Struct, tag=True):
    """This many bytes follow."""

    length: int


class Done(Struct, tag=True):
    pass


class Failed(Struct, tag=True):
    """The request could not be fulfilled; the channel stays usable. `gone`: there is no such file."""

    what: str
    where: str = ""
    fix: str = ""
    gone: bool = False


Reply = Listing | FactsFound | Sha256 | Content | Done | Failed


class Files(Protocol):
    """Files of this machine or of another one."""

    def list_run(self, folder: str, what: What, step: int | None = None) -> Listing: ...
    def list_folder(self, path: str) -> Listing: ...
    def facts(self, paths: list[str]) -> list[Facts]: ...
    def digest(self, path: str, length: int) -> str: ...
    def read(self, path: str, offset: int, length: int) -> Iterator[bytes]: ...
    def close(self) -> None: ...


encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_reply = msgspec.json.Decoder(Reply).decode
