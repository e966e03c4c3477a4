"""``detrs serve``: detect objects in images sent by HTTP."""

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from detrs.choices import Precision
from detrs.cli.arguments import Flag, parse
from detrs.cli.inputs import check_checkpoint
from detrs.cli.report import console, print_json
from detrs.config.detection import check_nms
from detrs.errors import UserError
from detrs.serving import ServerSettings, check_packages

TOKEN = "DETRS_TOKEN"
"""Environment variable with the token: arguments are visible to all users of a machine."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Detect objects in images sent by HTTP.

    POST /predict takes images and answers with JSON; / is a page to drop images on, /docs describes the interface,
    /health and /metrics are for monitoring. The first Ctrl-C or SIGTERM finishes the accepted requests and exits with
    code 0; the second exits at once.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, exported file (.onnx, .pt2), or published weights: Hub id, folder,
    .pth file."""
    host: str = "127.0.0.1"
    """Address to listen at. Default: only programs on this machine; 0.0.0.0: all networks."""
    port: int = 8000
    """Port to listen at; 0: any free one."""
    token: str | None = None
    """Token that requests need, as Authorization: Bearer TOKEN. Default: the environment variable DETRS_TOKEN; if it
    is not set, requests need none."""
    hosts: tuple[str, ...] = ()
    """Further names of the server in the header Host, for example those of a proxy in front of it. Default: any name if
    the host is reached from other machines, else only names of this machine."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16. auto: bf16 where the processor or GPU multiplies it in hardware, else fp32."""
    threshold: float | None = None
    """Minimum score of a detection where a request has none. Default: as in detrs predict."""
    nms: float | None = None
    """IoU above which a detection is suppressed by a better one of its class; 1: none. Default: as in training."""
    max_batch: int | None = None
    """Images of equal size in one forward pass. Default: 1 on the CPU, so that answers are bit-equal to those of detrs
    predict for one image; 8 on other devices."""
    batch_window_ms: float = ServerSettings.batch_window_ms
    """How long an image waits for others to fill its batch, in milliseconds."""
    queue_size: int = ServerSettings.queue_size
    """Images that the server holds at a time; more are answered with 503."""
    max_per_client: int | None = None
    """Requests of one client address in progress at a time; more are answered with 429. Default: unlimited."""
    timeout_seconds: float = ServerSettings.timeout_seconds
    """Time from the complete request to its answer."""
    body_timeout_seconds: float = ServerSettings.body_timeout_seconds
    """Time in which the body of a request must arrive."""
    max_body_bytes: int = ServerSettings.max_body_bytes
    """Size of the body of a request."""
    max_images: int = ServerSettings.max_images
    """Images in one request."""
    max_pixels: int = ServerSettings.max_pixels
    """Pixels of an image, checked before it is decoded."""
    json: Flag = False
    """Print one JSON object with the address when the server has started."""


def run(argv: list[str]) -> None:
    """Serve until a signal."""
    arguments = parse(ServeArguments, argv, "detrs serve")
    check_packages()
    settings = settings_of(arguments)
    check_nms(arguments.nms)
    check_checkpoint(arguments.checkpoint)
    import torch

    from detrs.predictor import Predictor
    from detrs.serving import create_app, server

    with server.bind(arguments.host, arguments.port) as listener:  # before the checkpoint, which takes longer
        is_local = server.is_loopback(listener)
        if is_local or arguments.hosts:
            settings = dataclasses.replace(settings, hosts=(*LOOPBACK, arguments.host, *arguments.hosts))
        predictor = Predictor.load(
            arguments.checkpoint, arguments.device, precision=arguments.precision, nms=arguments.nms
        )
        short, long = predictor.detector.preprocessing.resize_to
        predictor(torch.zeros(3, short, long, dtype=torch.uint8))  # what fails in general fails now
        address = server.url(listener)

        def report() -> None:
            if not is_local:
                protection = "without a token" if settings.token is None else "without encryption"
                console(as_json=True).print(
                    f"warning: {arguments.host} may be reached from other machines, {protection}. See "
                    "docs/serving.md, Deployment.",
                    soft_wrap=True,
                )
            if arguments.json:
                print_json(
                    {
                        "url": address,
                        "pid": os.getpid(),
                        "checkpoint": arguments.checkpoint,
                        "precision": predictor.precision,
                    }
                )
            else:
                console(as_json=False).print(
                    f"Serving {arguments.checkpoint} at {address} in {predictor.precision} (Ctrl-C stops)",
                    soft_wrap=True,
                )

        code = server.run(server.build_server(create_app(predictor, settings), settings, report), listener)
    if code:
        raise SystemExit(code)


def settings_of(arguments: ServeArguments) -> ServerSettings:
    """The settings among the arguments.

    Raises:
        UserError: a value is out of range; the message has the flag.
    """
    names = {field.name for field in dataclasses.fields(ServerSettings)} - {"hosts"}
    values = {name: value for name, value in vars(arguments).items() if name in names}
    if arguments.token is None:
        values["token"] = os.environ.get(TOKEN)
    try:
        return ServerSettings(**values)
    except UserError as error:
        flags = re.compile(rf"\b({'|'.join(sorted(names))})\b(?= is|,| or|\.)")
        raise UserError(flags.sub(lambda found: "--" + found[1].replace("_", "-"), str(error))) from None
