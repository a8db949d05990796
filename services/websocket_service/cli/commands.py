"""The commands of the console script.

Each command's module is light; what it needs of Quart, Hypercorn or pydantic is imported
when the command runs, so that `--help` and a shell's completion do not wait for them.
"""

import click

from services.websocket_service.cli.bridge import bridge
from services.websocket_service.cli.check_config import check_config
from services.websocket_service.cli.dev import dev
from services.websocket_service.cli.history import history
from services.websocket_service.cli.notify import notify
from services.websocket_service.cli.output import OneLineGroup
from services.websocket_service.cli.serve import serve
from services.websocket_service.cli.tail import tail
from services.websocket_service.cli.token import token


@click.group(
    "websocket-service", cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="websocket-service")
def websocket_service() -> None:
    """Brings each published notification to every open tab of its user.

    Start with `websocket-service dev`: it prints a URL to connect to and the command that sends
    a notification there. `token`, `notify`, `tail` and `history` find a running `dev` by
    themselves, unless JWT_SECRET_KEY and REDIS_URL (in the environment or in .env) say otherwise.
    """


for _command in (dev, serve, bridge, token, notify, tail, history, check_config):
    websocket_service.add_command(_command)
