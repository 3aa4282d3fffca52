"""Options classes as the options of a command."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from batchfer.options import Flag

Inputs = Annotated[
    list[Path],
    # Typer does not check the files: one that cannot be read fails alone, told with the others.
    typer.Argument(
        help="Files and folders; folders are walked.", show_default=False, readable=False
    ),
]
Places = Annotated[
    list[str],
    typer.Argument(
        help="Files and folders, which are walked, or URLs, as s3://bucket/study.",
        show_default=False,
    ),
]
PlaceOfResults = Annotated[
    str, typer.Option("-o", "--output", metavar="PATH", help="Folder or URL for the results.")
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")]
People = Annotated[
    Path | None,
    typer.Option("--people", metavar="FILE", help="CSV of face_id,name that names the faces."),
]
Results = Annotated[
    list[Path],
    typer.Argument(help="Result folders of videos, or folders above them.", show_default=False),
]


class Without(NamedTuple):
    """Marks fields of an options class that a command does not offer."""

    names: tuple[str, ...]


class Only(NamedTuple):
    """Marks the fields of an options class that a command offers, and no others."""

    names: tuple[str, ...]


def takes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command whose options are the fields of the options classes that it takes.

    A parameter annotated with an options class, or with one ``Annotated`` by `Without` or `Only`,
    is made of the command line; those of its fields that have no `Flag` are taken from the
    command's parameters of the same name. All others stay as they are.
    """
    signature = inspect.signature(command, eval_str=True)
    classes: dict[str, tuple[type, dict[str, Any], set[str]]] = {}
    parameters = []
    for parameter in signature.parameters.values():
        kind, offered = _read_class(parameter.annotation)
        if kind is None:
            parameters.append(parameter)
            continue
        hints = get_type_hints(kind, include_extras=True)
        classes[parameter.name] = kind, hints, {field.name for field in offered}
        parameters += [_make_parameter(field, hints[field.name]) for field in offered]

    @wraps(command)
    def run(**given: Any) -> Any:
        made = {}
        for name, (kind, hints, own) in classes.items():
            # The value of a field without a flag is also an argument of the command itself.
            values = {
                field: _read(given.pop(field) if field in own else given[field], hint)
                for field, hint in hints.items()
                if field in given
            }
            made[name] = kind(**values)
        return command(**given, **made)

    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = signature.replace(parameters=keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in keywords}
    return run


def is_given(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, or in the environment."""
    source = context.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def _read_class(annotation: Any) -> tuple[type | None, list[Field[Any]]]:
    """Return the options class of an annotation and the fields that are offered of it."""
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    if not is_dataclass(kind) or not isinstance(kind, type):
        return None, []
    hints = get_type_hints(kind, include_extras=True)
    offered = [field for field in fields(kind) if _find_flag(hints[field.name]) is not None]
    for mark in marks:
        keeps = isinstance(mark, Only)
        offered = [field for field in offered if (field.name in mark.names) == keeps]
    return kind, offered


def _find_flag(hint: Any) -> Flag | None:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((mark for mark in marks if isinstance(mark, Flag)), None)


def _make_parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    """Return the parameter that Typer makes the option of a field of."""
    flag = _find_flag(hint)
    assert flag is not None and field.default is not MISSING
    kind, default = get_args(hint)[0], field.default
    if flag.parse is not None:
        kind, default = str | None, flag.text
    elif get_origin(kind) is tuple:
        kind, default = list[get_args(kind)[0]] | None, None  # type: ignore[misc]
    option = typer.Option(
        *flag.names.split("/", maxsplit=0 if "/--no-" in flag.names else -1),
        help=flag.help,
        rich_help_panel=flag.group,
        metavar=None if kind is bool else flag.shape,
        min=flag.least,
        max=flag.most,
        show_default=flag.text if default is None and flag.text else True,
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def _read(value: Any, hint: Any) -> Any:
    """Return what a field takes for what the command line gave."""
    flag, kind = _find_flag(hint), get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if flag is not None and flag.parse is not None and value is not None:
        return flag.parse(value)
    if get_origin(kind) is tuple:
        return tuple(value or ())
    return value
