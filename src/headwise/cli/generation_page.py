"""docs/reference/generation.md, from what the tests found of `generate` on several versions of transformers."""

from __future__ import annotations

Outcomes = dict[str, dict[str, dict[str, str]]]  # by version, mode and kind of recipe


def generation_page(made: str, data: Outcomes) -> str:
    """The page, with the modes in the order of the newest version."""
    versions = sorted(data, key=lambda version: [int(part) for part in version.split(".")])
    modes = data[versions[-1]]
    columns = [(version, kind) for version in versions for kind in ("dense", "evicting")]
    lines = [
        "# Ways to generate", "", made,
        "What `model.generate` does with a headwise cache, by transformers' version: under the empty recipe (dense)",
        "and under one that evicts (`snapkv(0.5)`).", "",
        "- **identical**: token for token what transformers' DynamicCache gives. **works**: it runs, and forgets as",
        "  the recipe says; beams and answers forget each for itself.",
        "- **refused**: by headwise's own error, before the first forward, which names the way out.",
        "- **transformers refuses**: it raises with any cache, its DynamicCache too: modes that it moved to code on",
        "  the hub, settings that exclude each other, and `assistant_early_exit` in 5.2.0, which fails there.", "",
        "| mode | " + " | ".join(f"{version} {kind}" for version, kind in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]  # fmt: skip
    for mode in modes:
        cells = [data[version].get(mode, {}).get(kind, "") for version, kind in columns]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Drafts (prompt lookup, assisted generation) are taken back where the model disagrees. That is exact while",
        "nothing was evicted and no sliding window passed on, so recipes that evict and models with windows refuse",
        "them. Without a headwise cache, or after `headwise.detach(model)`, all of these work as ever.",
    ]
    return "\n".join(lines) + "\n"
