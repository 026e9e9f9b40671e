"""`dgpo models`: short names of models, their sizes, and what is on this machine."""

from __future__ import annotations

from dgpo_cli.commands.common.options import JsonFlag
from dgpo_cli.console import Console


def models(json: JsonFlag = False) -> None:
    """List the models that have a short name: size, what they are for, and whether they are downloaded.

    Wherever a model is asked for you can also give a hub id, a local folder, or an earlier run (see `dgpo runs`).

    Example: `dgpo models --json`
    """
    from dgpo_cli.models.aliases import ALIASES
    from dgpo_cli.models.gguf import packaged
    from dgpo_cli.models.hub import is_cached

    console = Console(json_output=json)
    rows = [
        {
            "name": name,
            "repo": alias.repo,
            "parameters_b": alias.parameters,
            "gigabytes": round(alias.gigabytes, 1),
            "vocabulary": alias.vocabulary,
            "cached": is_cached(alias.repo),
            "packaged": alias.package is not None and packaged(alias.package) is not None,
            "gated": alias.gated,
            "licence": alias.licence,
            "note": alias.note,
        }
        for name, alias in ALIASES.items()
    ]
    console.table(
        "",
        ["name", "hub id", "parameters", "bf16", "here", "what"],
        [
            [
                row["name"],
                row["repo"],
                f"{row['parameters_b']:.2f} B",
                f"{row['gigabytes']:.1f} GB",
                "cached" if row["cached"] else "in a package" if row["packaged"] else "gated" if row["gated"] else "-",
                row["note"],
            ]
            for row in rows
        ],
    )
    console.print(
        "Also: any hub id, any folder with a model, any GGUF file, any run of `dgpo runs`. "
        "Gated: `hf auth login` first."
    )

    console.result({"models": rows})
