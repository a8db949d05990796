"""Which service a command talks to: the one that the variables name, else a running `dev`."""

from dataclasses import dataclass, field

from services.websocket_service.cli import discovery
from services.websocket_service.cli.discovery import RunningDev
from services.websocket_service.cli.effective_settings import is_set, jwt_secret, load_settings
from services.websocket_service.cli.output import CliError

SIGNING_ALGORITHMS = ("HS256", "HS384", "HS512")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """What it takes to make a token that the service accepts."""

    secret: str = field(repr=False)
    algorithm: str
    audience: str
    issuer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backplane:
    """Where notifications are published."""

    redis_url: str
    channel_prefix: str


def signing_key(dev_port: int | None = None) -> SigningKey:
    """From JWT_SECRET_KEY, else from a running `dev`; from the one on `dev_port` if that is given.

    Raises CliError if there is neither.
    """
    settings = load_settings()
    secret = jwt_secret(settings)
    if secret is not None and dev_port is None:
        if settings.JWT_ALGORITHM not in SIGNING_ALGORITHMS:
            raise CliError(
                f"JWT_ALGORITHM is {settings.JWT_ALGORITHM}: tokens can be made for "
                f"{', '.join(SIGNING_ALGORITHMS)} only; ask the identity service for one"
            )
        return SigningKey(
            secret=secret,
            algorithm=settings.JWT_ALGORITHM,
            audience=settings.JWT_AUDIENCE,
            issuer=settings.JWT_ISSUER,
        )
    dev = _required_dev(dev_port, "JWT_SECRET_KEY")
    return SigningKey(
        secret=dev.jwt_secret,
        algorithm=dev.jwt_algorithm,
        audience=dev.jwt_audience,
        issuer=dev.jwt_issuer,
    )


def backplane(dev_port: int | None = None) -> Backplane:
    """From REDIS_URL, else from a running `dev`; from the one on `dev_port` if that is given.

    Raises CliError if there is neither.
    """
    settings = load_settings()
    if is_set(settings, "REDIS_URL") and dev_port is None:
        return Backplane(redis_url=settings.REDIS_URL, channel_prefix=settings.REDIS_CHANNEL_PREFIX)
    dev = _required_dev(dev_port, "REDIS_URL")
    return Backplane(redis_url=dev.redis_url, channel_prefix=dev.channel_prefix)


def service_url(dev_port: int | None = None) -> str:
    """The `ws://` URL of a running `dev`, else of a service on this machine's configured port."""
    dev = find_dev(dev_port)
    if dev is not None:
        return dev.url
    return f"ws://127.0.0.1:{load_settings().WEBSOCKET_SERVICE_PORT}/ws"


def find_dev(port: int | None) -> RunningDev | None:
    """The newest running `dev`, or the newest on `port`; None if none is running at all.

    Raises CliError if `port` is given and nothing runs there.
    """
    try:
        running = discovery.running()
    except discovery.UntrustedFolderError as error:
        raise CliError(str(error)) from None
    if port is None:
        return running[0] if running else None
    for dev in running:
        if dev.port == port:
            return dev
    raise CliError(
        f"no `websocket-service dev` runs on port {port}: start it with "
        f"`websocket-service dev --port {port}`, or leave --port out"
    )


def _required_dev(port: int | None, variable: str) -> RunningDev:
    dev = find_dev(port)
    if dev is None:
        raise CliError(
            f"no running `websocket-service dev` found and {variable} is not set: start one, or "
            f"set {variable}"
        )
    return dev
