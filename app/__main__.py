"""`python -m app`: serve. `python -m app openapi`: print the OpenAPI document. `python -m app key`: make an API key."""

import argparse
import json
import os
import sys
from datetime import date

from pydantic import ValidationError

from app.keys import KeyRing, KeysError, make_key
from app.main import create_app
from app.server import serve
from app.settings import Settings, describe_mistakes, describe_settings, describe_strangers
from app.tracing import TracingError, check_tracing


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 where the settings are wrong, or that of the workers."""
    settings_help = f"settings, read from the environment:\n{describe_settings()}"
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serve masks over HTTP.",
        epilog=settings_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(
        "serve",
        help="serve, which is also what happens without a command",
        epilog=settings_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands.add_parser("openapi", help="print the OpenAPI document")
    key = commands.add_parser("key", help="make an API key, and print it and its line for the keys file")
    key.add_argument("name", help="whose it is; stands in the log")
    key.add_argument("--admin", action="store_true", help="it may also reload models")
    key.add_argument("--expires", type=date.fromisoformat, help="the last day on which it is good, YYYY-MM-DD")
    parser.set_defaults(command="serve")
    options = parser.parse_args(arguments)
    if options.command == "key":
        return _print_key(options)
    try:
        settings = Settings()
        KeyRing(settings)  # the service reads it again; a mistake in it shall be one line, however many serve
        if settings.tracing:
            check_tracing()
    except (KeysError, TracingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        for line in (*describe_strangers(os.environ), f"error: {describe_mistakes(error)}"):
            print(line, file=sys.stderr)
        return 2
    if options.command == "openapi":
        print(json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False))
        return 0
    return serve(settings)


def _print_key(options: argparse.Namespace) -> int:
    try:
        key, line = make_key(options.name, "admin" if options.admin else "user", options.expires)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("the key, for its owner, shown this once:", file=sys.stderr)
    print(key, file=sys.stderr)
    print("its line, for the file that MASKWELL_KEYS_FILE names:", file=sys.stderr)
    print(line)  # alone on the standard output, so that >> keys.txt is all it takes
    return 0


if __name__ == "__main__":
    sys.exit(main())
