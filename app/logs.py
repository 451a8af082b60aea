"""How the log is written: lines of text or of JSON, to stderr; what came from outside can break no line."""

import json
import logging
import logging.config
from datetime import UTC, datetime
from typing import Any, Literal

from app.notes import current_notes

Format = Literal["text", "json"]
# Of a record: what it is said in, beside its message; `extra={FIELDS: {...}}`.
FIELDS = "fields"


class TextFormatter(logging.Formatter):
    """One line a record; only tracebacks, which are the program's own, have more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        record.message = _escape(record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a record: time, level, logger, message; of the request under way its id; and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        notes = current_notes()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if notes.request_id:
            line["request_id"] = notes.request_id
        if notes.trace_id:
            line["trace_id"] = notes.trace_id
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII, so that no other line end gets through either


class RepeatFilter(logging.Filter):
    """Drops uvicorn's remark that start-up failed; the line before it said why."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to keep a record."""
        return record.msg != "Application startup failed. Exiting."


def set_up_logging(level: str, form: Format = "text") -> None:
    """Of this process: all to stderr, one line a record, Python's own warnings too."""
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"app.logs.{'JsonFormatter' if form == 'json' else 'TextFormatter'}"}},
        "filters": {"repeats": {"()": "app.logs.RepeatFilter"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "filters": ["repeats"],
                "stream": "ext://sys.stderr",
            }
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {
            "app": {"level": level.upper()},
            # below these they speak of what strangers sent, and the client has been told
            "uvicorn": {"level": "INFO" if level == "debug" else "ERROR"},
            "python_multipart": {"level": "CRITICAL"},
            "tifffile": {"level": "CRITICAL"},
        },
    }
    logging.config.dictConfig(config)
    logging.captureWarnings(True)


def _escape(text: str) -> str:
    """Without control characters and line ends of any kind."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
