"""Which service a command talks to: the one that the variables name, else a running `dev`."""

from dataclasses import dataclass, field
from typing import Self

from huleedu_service_libs.notification_settings import HistoryLimits
from services.websocket_service.cli import discovery
from services.websocket_service.cli.discovery import RunningDev
from services.websocket_service.cli.output import CliError
from services.websocket_service.cli.settings import load_settings
from services.websocket_service.config import Settings
from services.websocket_service.effective_settings import is_set, jwt_secret

SIGNING_ALGORITHMS = ("HS256", "HS384", "HS512")


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """What it takes to make a token that the service accepts."""

    secret: str = field(repr=False)
    algorithm: str
    audience: str
    issuer: str

    @classmethod
    def of(cls, dev: RunningDev) -> Self:
        """What that `dev` verifies its clients' tokens with."""
        return cls(
            secret=dev.jwt_secret,
            algorithm=dev.jwt_algorithm,
            audience=dev.jwt_audience,
            issuer=dev.jwt_issuer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Backplane:
    """Where notifications are published."""

    redis_url: str
    channel_prefix: str
    history_limits: HistoryLimits
    chosen_port: int | None = None
    """Of the `dev` that was taken out of several."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings name."""
        return cls(
            redis_url=settings.REDIS_URL,
            channel_prefix=settings.REDIS_CHANNEL_PREFIX,
            history_limits=settings.history_limits,
        )


def signing_key(dev_port: int | None = None) -> SigningKey:
    """From JWT_SECRET_KEY, else from a running `dev`; from the one on `dev_port` if that is given.

    Raises CliError if there is neither.
    """
    settings = load_settings()
    if dev_port is None and settings.JWT_ALGORITHM not in SIGNING_ALGORITHMS:
        raise CliError(
            f"JWT_ALGORITHM is {settings.JWT_ALGORITHM}, but only {', '.join(SIGNING_ALGORITHMS)} "
            "can be signed here: ask the identity service for a token"
        )
    secret = jwt_secret(settings)
    if secret is not None and dev_port is None:
        return SigningKey(
            secret=secret,
            algorithm=settings.JWT_ALGORITHM,
            audience=settings.JWT_AUDIENCE,
            issuer=settings.JWT_ISSUER,
        )
    return SigningKey.of(_required_dev(dev_port, "JWT_SECRET_KEY"))


def backplane(dev_port: int | None = None) -> Backplane:
    """From REDIS_URL, else from a running `dev`; from the one on `dev_port` if that is given.

    Raises CliError if there is neither.
    """
    settings = load_settings()
    if is_set(settings, "REDIS_URL") and dev_port is None:
        return Backplane.of(settings)
    dev = _required_dev(dev_port, "REDIS_URL")
    is_one_of_several = dev_port is None and len(running_devs()) > 1
    return Backplane(
        redis_url=dev.redis_url,
        channel_prefix=dev.channel_prefix,
        history_limits=settings.history_limits,
        chosen_port=dev.port if is_one_of_several else None,
    )


def signs_with_dev(dev_port: int | None) -> bool:
    """Whether `signing_key()` is that of a running `dev`."""
    return dev_port is not None or jwt_secret(load_settings()) is None


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
    running = running_devs()
    if port is None:
        return running[0] if running else None
    for dev in running:
        if dev.port == port:
            return dev
    raise CliError(
        f"no `websocket-service dev` runs on port {port}: start it with "
        f"`websocket-service dev --port {port}`, or leave --port out"
    )


def running_devs() -> list[RunningDev]:
    """Newest first; raises CliError if their announcements can't be trusted."""
    try:
        return discovery.running()
    except discovery.UntrustedFolderError as error:
        raise CliError(str(error)) from None


def _required_dev(port: int | None, variable: str) -> RunningDev:
    dev = find_dev(port)
    if dev is None:
        raise CliError(
            f"no running `websocket-service dev` found and {variable} is not set: start one, or "
            f"set {variable}"
        )
    return dev
