"""The command line, one file per command. The commands import everything heavy when they run."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from typing import NoReturn

from .. import __version__
from ..core.excerpt import excerpt
from .commands import demo, detect, eval, finetune, info, pairs, policy, probe, report, sample, train

# for each module, the extra of this package that installs it
_EXTRAS = {
    **{name: "diffusers" for name in ("diffusers", "transformers", "tokenizers", "PIL", "accelerate")},
    **{name: "train" for name in ("tqdm", "peft")},
    **{name: "judge" for name in ("nudenet", "onnxruntime", "cv2")},
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Returns the exit code: 0; 1 if `detect` could not judge every item; 2 for bad input and for a failed training, with
    one sentence on stderr; 130 if the user interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console of another encoding must not stop a command
            stream.reconfigure(errors="backslashreplace")
    given = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("safecfg").setLevel(logging.INFO)
    # transformers' notes about optional packages are of no use here
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return given.run(given) or 0
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if not extra:
            raise
        return _fail(f'{error.name} is not installed; this command needs it: pip install -e ".[{extra}]"')
    except (ValueError, OSError, FloatingPointError) as error:
        # the package's own errors, and files that cannot be read or written
        return _fail(error)
    except KeyboardInterrupt as stopped:
        print(f"hgr: {str(stopped) or 'interrupted.'}", file=sys.stderr)
        return 130


def _fail(error: Exception | str) -> int:
    if isinstance(error, OSError) and error.filename is not None:
        error = f"{error.filename}: {error.strerror}."
    print(f"hgr: {_line(str(error))}", file=sys.stderr)
    return 2


def _line(why: str) -> str:
    """A message on one line, whatever of the user's it holds: no word is longer than a path may be."""
    return excerpt(re.sub(r"\S{200,}", lambda word: excerpt(word[0]), " ".join(why.split())), 1000)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(_line(message))


def _parser() -> argparse.ArgumentParser:
    name = os.path.basename(sys.argv[0])
    parser = _Parser(
        name if name == "safecfg" else "python -m hgr",
        description="SafeCFG: classifier-free guidance without the harmful part.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo, info, sample, detect, report, pairs, train, probe, finetune, eval, policy):
        command.add(commands)
    return parser
