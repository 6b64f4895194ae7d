"""`calm-graph chat`: talk with a trained composition in the terminal."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from calm_graph.cli.common import Subparsers, add_command
from calm_graph.cli.generate import (
    add_checkpoint_arguments,
    load_model,
    load_selector,
    read_sampling,
    read_scales,
    write,
)
from calm_graph.errors import InputError

if TYPE_CHECKING:
    from calm_graph.generate.conversation import Conversation

_HELP = """\
/reset            forget the conversation
/scale NAME=0.5   scale an augmenter (0 switches it off)
/quit             leave (as Ctrl-D does); Ctrl-C stops an answer
"""


def add_parser(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Add chat."""
    parser = add_command(
        commands,
        "chat",
        summary="talk with a trained composition; /help lists what can be typed",
        examples="calm-graph chat runs/helpdesk\ncalm-graph chat runs/helpdesk --system 'Answer in one sentence.'",
    )
    add_checkpoint_arguments(parser, temperature=0.7)
    parser.add_argument("--system", metavar="TEXT", help="a first message that is never forgotten")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Talk until the user leaves.

    Args:
        options: What `add_parser` asked for.

    Returns:
        The exit code, 0.
    """
    scales = read_scales(options.scales)
    sampling = read_sampling(options)
    model = load_model(options.checkpoint, exports=options.exports, remotes=options.remotes)
    from calm_graph.generate.conversation import Conversation

    conversation = Conversation(
        model=model, sampling=sampling, system=options.system, selector=load_selector(options, model)
    )
    for name, scale in scales.items():
        conversation.set_scale(name, scale)
    # Where it exists, importing readline gives input() a history and the arrow keys.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    write(f"{model.plan.composition.name}: /help lists the commands, Ctrl-D leaves\n")
    if not conversation.has_template:
        write("(the anchor has no chat template: each message is a prompt of its own)\n")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            write("\n")
            return 0
        except KeyboardInterrupt:
            write("\n(Ctrl-D or /quit leaves)\n")
            continue
        if text in ("/quit", "/exit"):
            return 0
        if text:
            _respond(conversation, text)


def _respond(conversation: Conversation, text: str) -> None:
    """Do what the line asks for; a mistake in it is shown, and the conversation goes on."""
    try:
        if text.startswith("/"):
            write(command(conversation, text))
            return
        answer = conversation.say(text, on_text=write, on_trimmed=_note_trimmed)
        notes = {"interrupted": " (stopped)", "length": " (cut at the most tokens allowed)", "end": ""}
        write(f"{notes[answer.stopped]}\n")
    except InputError as error:
        write(f"{error}\n")


def command(conversation: Conversation, text: str) -> str:
    """Run a line that begins with a slash.

    Args:
        conversation: What it is about.
        text: The line.

    Returns:
        What to show.

    Raises:
        InputError: There is no such command or augmenter.
    """
    name, _, rest = text.partition(" ")
    if name == "/help":
        return _HELP
    if name == "/reset":
        conversation.reset()
        return "(forgotten)\n"
    if name == "/scale":
        for augmenter, scale in read_scales(rest.split()).items():
            conversation.set_scale(augmenter, scale)
        scales = ", ".join(f"{augmenter}={scale:g}" for augmenter, scale in conversation.scales.items())
        return f"(scales: {scales or 'as in the composition'})\n"
    raise InputError(f"got {name!r}, but the commands are /help, /reset, /scale NAME=SCALE and /quit")


def _note_trimmed(count: int) -> None:
    write(f"(the context is full: the {count} oldest messages are forgotten)\n")
