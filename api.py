"""Serves a bundle over HTTP: `uvicorn api:app` or `python api.py`; the page at / and the documentation at /docs."""

import argparse
import os

PORT = 8000


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve a bundle over HTTP, with a page to try it at /.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on. One that other machines can reach "
                        "needs SPECTACLES_API_KEYS.")  # fmt: skip
    parser.add_argument("--port", type=port, help="Port to listen on; 0 takes a free one. Default: the one that a "
                        "platform of SPECTACLES_PROTOCOLS asks for, else 8000.")  # fmt: skip
    parser.add_argument("--root_path", default="", help="Prefix of a proxy that strips it, such as /photos.")
    parser.add_argument("--bundle", help="Bundle folder, a file of export.py (.onnx, .xml), or models:/NAME@champion "
                        "of a model registry. Default: SPECTACLES_BUNDLE, else the latest run's.")  # fmt: skip
    parser.add_argument("--output_dir", help="Folder of the runs. Default: SPECTACLES_OUTPUT_DIR, else outputs.")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps. Default: SPECTACLES_DEVICE, else auto.")
    parser.add_argument("--make_key", metavar="NAME", help="Print a new key and its entry for SPECTACLES_API_KEYS.")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    # These imports take seconds: flags are read before them.
    from spectacles.core.errors import UserError
    from spectacles.core.exit_codes import exit_codes
    from spectacles.server import auth, settings
    from spectacles.server.app import app
    from spectacles.server.protocols.dispatch import Protocols
    from spectacles.server.serve import BACKLOG, serve
    from spectacles.server.sockets import listen

    if args.make_key:
        key, digest = auth.make_key()
        print(f"key, for the client:            {key}\nentry in SPECTACLES_API_KEYS:   {args.make_key}:{digest}")
        return
    if args.output_dir:
        os.environ.pop("SPECTACLES_BUNDLE", None)  # a flag beats the environment
    for name in ("bundle", "output_dir", "device"):
        if getattr(args, name):
            os.environ[f"SPECTACLES_{name.upper()}"] = getattr(args, name)
    with exit_codes():
        given = settings.read()
        asked = Protocols(given.protocols).port() if args.port is None else args.port
        if not given.api_keys and not given.trust_network and not auth.is_loopback(args.host):
            raise UserError(
                f"--host {args.host} lets other machines in, and there are no keys: set SPECTACLES_API_KEYS "
                "(python api.py --make_key NAME prints one), or leave --host out."
            )
        listener = listen(args.host, PORT if asked is None else asked, BACKLOG)
    serve(app, listener, args.root_path)


if __name__ == "__main__":
    main(parse())
elif __name__ != "__mp_main__":  # a decoder, which needs nothing of this, runs the script under that name
    from spectacles.server.app import app as app
