"""The word behind ``batchfer``: a command, or what somebody took for one."""

from pathlib import Path
from shlex import quote
from typing import Any

from typer.core import TyperGroup

from batchfer.errors import UsageError
from batchfer.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, display_name


class Commands(TyperGroup):
    """The commands; who gives a file in the place of one is told which command takes it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names.

        Raises:
            UsageError: It is a file or a folder.
        """
        path = Path(args[0])
        if self.get_command(ctx, args[0]) is None and (path.exists() or path.suffix):
            takers = [] if path.suffix.lower() in VIDEO_SUFFIXES else ["images"]
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                takers.insert(0, "video")
            told = " or ".join(f"`batchfer {taker} {quote(args[0])}`" for taker in takers)
            raise UsageError(f"{display_name(path)} is no command: type {told}")
        return super().resolve_command(ctx, args)
