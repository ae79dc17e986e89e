"""indextts-jax webui: a page in the browser, of a server for it alone."""

from typing import Any

from indextts_jax.cli import serve
from indextts_jax.cli.options import command

EXAMPLES = ("indextts-jax webui --voices voices",)


def add(commands: Any) -> None:
    about = "Speak in the browser: a page with voices, emotions and the sound while it is made."
    sub = command(commands, "webui", serve.run, about, "[--voices DIR] [options]", *EXAMPLES)
    sub.add_argument_group("the page").add_argument(
        "--no-browser", dest="browser", action="store_false", help="do not open it in the browser"
    )
    serve.add_options(sub, 7860, uploads=True)
    sub.set_defaults(page=True)
