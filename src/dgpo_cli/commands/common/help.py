"""What every command does with its parameters: their form in its help, and one value for each setting."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

from dgpo_cli.commands.common.named_twice import refuse_two_values


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        """Raises ConfigError for a setting that a flag and -o give different values."""
        options = next((ctx.params[p.name] for p in self.params if "--set" in p.opts), None)
        if options:
            given = [p for p in self.params if ctx.get_parameter_source(p.name).name == "COMMANDLINE"]
            flags = {p.name: (max(p.opts, key=len), ctx.params[p.name]) for p in given}
            refuse_two_values(str(ctx.command_path).split()[1], flags, options)
        return super().invoke(ctx)


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    """Flags take no value, so their help names none; Typer would write `<bool>`."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag and parameter.metavar is None:
            parameter.metavar = ""
    return parameters
