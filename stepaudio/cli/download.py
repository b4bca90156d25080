"""`stepaudio download`."""

from __future__ import annotations

import argparse

from ..checkpoints.hub_name import MODEL, TOKEN2WAV, HubName
from ..checkpoints.siblings import name_of
from ..errors import ConfigError
from .parser import add_choice, add_formats, add_verb
from .progress import message
from .streams import print_json


def add_download_verb(verbs) -> None:
    """Add the verb to the subparsers of the command."""
    download = add_verb(
        verbs, "download", run_download, "fetch a model from a hub into the cache, and check every file", "MODEL",
        ["stepaudio download stepfun-ai/Step-Audio-2-mini",
         "stepaudio download stepfun-ai/Step-Audio-2-mini@main --only model --json"],
        {0: "all of it is in the cache, and every file has its checksum"},
    )  # fmt: skip
    download.add_argument("model", metavar="MODEL", help="ORG/NAME or ORG/NAME@REVISION: a branch, a tag or a commit")
    add_formats(download, ("text", "json"), "text")
    add_choice(
        download, "--only", choices=(MODEL, TOKEN2WAV), shown="both, as far as the model has them",
        help="the language model alone, or what speaks alone",
    )  # fmt: skip


def run_download(options: argparse.Namespace) -> int:
    """Fetch what the cache lacks, then check all."""
    from ..checkpoints.hub import download

    name = HubName.of(options.model)
    if name is None:
        known = name_of(options.model)
        meant = f"; did you mean {known}?" if known else ""
        raise ConfigError(f"MODEL: expected ORG/NAME or ORG/NAME@REVISION, found {options.model!r:.200}{meant}")
    parts = (MODEL, TOKEN2WAV) if options.only is None else (options.only,)
    done = download(name, parts, message)
    if options.format == "json":
        print_json(done.to_dict())
    else:
        print(f"{name}, commit {done.commit}: {len(done.files)} files, every checksum is right\n{done.folder}")
    return 0
