"""Every choice an operator may make, read once from MASKWELL_* variables and passed down."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.compiled_cache import default_folder
from model.runtime import Precision, available_cpus

MIB = 1024**2
SECRETS = ("admin_key", "keys")
PREFIX = "MASKWELL_"
# What the client and the command read.
OTHERS = ("MASKWELL_URL", "MASKWELL_KEY")


class Settings(BaseSettings):
    """What the service is run with; each field is the environment variable MASKWELL_ and its name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every network.")
    port: int = Field(8000, ge=1, le=65535, description="TCP port to listen on.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that share the port, each with the weights in memory; more than one pays on a GPU, "
        "where a process decodes while another one's tiles are computed. One that dies is replaced. On a CPU they "
        "share its cores evenly.",
    )
    weights_dir: Path = Field(Path("weights"), description="Folder; each *.pth in it is a model, named by its stem.")
    default_model: str = Field(
        "best_model", description="Model of requests that name none; start-up fails if it does not load."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    precision: Precision = Field(
        "auto",
        description="auto, fp32, fp16 (GPU), bf16 or int8 (CPU); auto is fp16 on a GPU, and on a CPU int8 "
        "for weights with an int8 twin, else fp32.",
    )
    batch_tiles: int = Field(0, ge=0, le=1024, description="Tiles in one pass; 0 takes what suits the device.")
    streams: int = Field(
        0,
        ge=0,
        le=256,
        description="Passes under way at a time, which share a CPU's cores; on a GPU one computes while others are "
        "copied. 0 takes what suits the device.",
    )
    cache_dir: str = Field(
        "auto",
        min_length=1,
        description="Folder that keeps networks compiled for int8, which makes a restart quicker; auto is maskwell in "
        "the user's cache folder, off keeps none.",
    )
    batch_wait_ms: float = Field(
        5.0, ge=0, le=10_000, description="Longest a tile waits for company in a batch that is not full, in ms."
    )
    max_upload_bytes: int = Field(128 * MIB, gt=0, description="Largest request body, in bytes; above it, 413.")
    max_held_upload_bytes: int = Field(
        1024 * MIB, gt=0, description="Bytes of all uploads that each worker holds at one time; above it, 429."
    )
    head_deadline_s: float = Field(
        10.0, gt=0, le=3600, description="By when the headers of a request must be there, in s; beyond it, 408."
    )
    upload_deadline_s: float = Field(
        600.0, gt=0, description="By when the body of a request must be there, in s from its headers; beyond it, 408."
    )
    idle_deadline_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Longest silence of a client that sends a body, in s, then 408; or that takes no more of an "
        "answer, then its connection is closed.",
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=3600,
        description="How long a connection is kept for the next request, in s. Longer than a proxy in front keeps its "
        "own: else it sends a request now and then as this end closes, and its client gets 502.",
    )
    max_pixels: int = Field(8192 * 8192, gt=0, description="Largest image, in pixels, told by its header; above, 413.")
    max_files: int = Field(256, ge=1, le=10_000, description="Files in one POST /segment/batch; above it, 413.")
    max_queue_pixels: int = Field(
        4 * 8192 * 8192,
        gt=0,
        description="Pixels of all images that each worker has accepted and not yet answered; above it, 429. "
        "An image within max_pixels is always accepted when there is no other.",
    )
    max_queue_requests: int = Field(
        256, ge=1, description="Requests that each worker has accepted and not yet answered; above it, 429."
    )
    deadline_s: float = Field(
        300.0, gt=0, description="Longest an accepted image waits for its first pass, in s; beyond it, 504."
    )
    pass_timeout_s: float = Field(
        120.0,
        gt=0,
        description="Longest that one pass of the network may take, in s; beyond it the engine counts as hung: "
        "its requests get 503, /livez turns red, and with several workers this one is replaced.",
    )
    drain_grace_s: float = Field(
        2.0,
        ge=0,
        description="After SIGTERM, how long /readyz says 503 while requests are still served, in s: "
        "the time that load balancers need to look away.",
    )
    drain_deadline_s: float = Field(
        120.0, ge=0, description="After the grace, how long accepted requests may take, in s; then they get 503."
    )
    reload_poll_s: float = Field(
        2.0, ge=0, description="How often weights_dir is looked at for new files, in s; 0 never looks."
    )
    load_deadline_s: float = Field(
        300.0,
        gt=0,
        description="Longest that a file of weights may take to be loaded, checked and warmed up, in s; beyond it the "
        "file is refused, and what served before serves on.",
    )
    admin_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="A key for POST /models/{name}/reload; without an admin key, this or one of keys, it is closed.",
    )
    keys_file: Path | None = Field(
        None,
        description="File of API keys, a line each as `python -m app key NAME` prints it; read again when it changes. "
        "With keys, requests need one.",
    )
    keys: SecretStr | None = Field(None, description="Lines of a keys file here instead, separated by ';'.")
    metrics: Literal["key", "open", "off"] = Field(
        "key", description="Whether GET /metrics needs a key, where others do; off closes it."
    )
    docs: bool = Field(True, description="Whether there are /docs and /openapi.json.")
    cors_origins: str = Field(
        "",
        pattern=r"^$|^\*$|^https?://[^\s,/]+(,\s*https?://[^\s,/]+)*$",
        description="Web pages of which other origins may ask, by commas, such as https://lab.example; * is any.",
    )
    trusted_proxies: str = Field(
        "127.0.0.1",
        description="Addresses of proxies, by commas, whose X-Forwarded-For and -Proto are believed; * is any.",
    )
    max_client_requests_per_min: float = Field(
        0, ge=0, description="Uploads of one key, or one address without keys, in a minute; above it, 429; 0 is any."
    )
    max_client_pixels_per_min: int = Field(
        0, ge=0, description="Pixels of one key, or one address without keys, in a minute; above it, 429; 0 is any."
    )
    codec_threads: int = Field(
        0, ge=0, le=256, description="Threads that decode and encode, of each worker; 0 is one a core."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    log_format: Literal["text", "json"] = Field("text", description="How: lines of text, or a JSON object a line.")
    tracing: bool = Field(
        False,
        description="Whether to send OpenTelemetry traces; needs the extra `tracing`. OTEL_EXPORTER_OTLP_ENDPOINT and "
        "its like say where to.",
    )

    @property
    def cache_folder(self) -> Path | None:
        """What `cache_dir` means."""
        if self.cache_dir == "off":
            return None
        return default_folder() if self.cache_dir == "auto" else Path(self.cache_dir)

    @property
    def cores(self) -> int:
        """Of each worker: an even share of those that the service may use, and one at the least."""
        return max(available_cpus() // self.workers, 1)

    @property
    def codec_thread_count(self) -> int:
        """`codec_threads`, or the number of cores where that is 0."""
        return self.codec_threads or self.cores


def describe_settings() -> str:
    """One line a setting: its variable, default and meaning; for `--help` and the guide."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else field.default
        lines.append(f"  MASKWELL_{name.upper():<24} {field.description} [{default}]")
    return "\n".join(lines)


def describe_strangers(environment: Mapping[str, str]) -> list[str]:
    """A line for each MASKWELL_* variable that is no setting; one that is misspelt would else be ignored in silence."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    lines = []
    for name in sorted(environment):
        if not name.upper().startswith(PREFIX) or name.upper() in known:
            continue
        # a line of MASKWELL_KEYS has colons, and the client's key none
        is_line = name.upper() == "MASKWELL_KEY" and ":" in environment[name]
        if name.upper() in OTHERS and not is_line:
            continue
        alike = difflib.get_close_matches(name.upper(), known, n=1)
        meant = f"; is {alike[0]} meant?" if alike else ""
        lines.append(f"{name} is no setting and is ignored{meant}")
    return lines


def describe_mistakes(error: ValidationError) -> str:
    """What is wrong with the settings, in one line, without the values of secrets."""
    parts = []
    for item in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in item["loc"])
        found = "" if name in SECRETS else f" (found {item['input']!r})"
        parts.append(f"MASKWELL_{name.upper()}: {item['msg']}{found}")
    return "; ".join(parts)
