"""`python -m app`: serve. `python -m app openapi`: print the OpenAPI document."""

import argparse
import json
import sys

from pydantic import ValidationError

from app.main import create_app
from app.server import serve
from app.settings import Settings, describe_mistakes, describe_settings


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 where the settings are wrong, or that of the workers."""
    parser = argparse.ArgumentParser(
        prog="python -m app",
        description="Serve masks over HTTP.",
        epilog=f"settings, read from the environment:\n{describe_settings()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=("serve", "openapi"), default="serve", help="what to do (serve)")
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"error: {describe_mistakes(error)}", file=sys.stderr)
        return 2
    if options.command == "openapi":
        print(json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False))
        return 0
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
