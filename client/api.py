"""The client, for threads and for asyncio: one request an image, retried as the service asks."""

import asyncio
import io
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack, cast

import httpx
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

Output = Literal["mask", "probability", "labels", "overlay", "geojson", "rois", "table", "all", "view"]
ArrayOutput = Literal["mask", "probability", "labels", "overlay"]
Format = Literal["png", "tiff"]
Page = int | Literal["all"]
Source = Path | str | bytes | npt.NDArray[Any]

DEFAULT_URL = "http://127.0.0.1:8000"
# An image may wait in the service's queue for as long as its own deadline, 300 s unless it is set otherwise.
TIMEOUT_S = 330.0
CONNECT_TIMEOUT_S = 15.0  # of a machine that is there but busy the system itself answers
RETRIES = 8
LONGEST_WAIT_S = 60.0  # where the service does not say how long
LONGEST_ASKED_S = 3600.0  # where it does; what it puts off for longer is refused, and not asked again before its time
BUSY = (429, 503)
BAD_GATEWAY = 502
SUFFIXES = {
    "image/png": ".png",
    "image/tiff": ".tif",
    "application/geo+json": ".geojson",
    "text/csv": ".csv",
    "application/zip": ".zip",
}


class ClientError(Exception):
    """Base of all that the client raises on purpose: no service there, or an answer that is none of Maskwell's."""


class ServiceError(ClientError):
    """The service refused; its own words are the text.

    Attributes:
        status: of HTTP.
        code: stable name of the kind of problem, such as `image_too_large`.
        request_id: to find the request in the service's log.
    """

    def __init__(self, status: int, code: str, detail: str, request_id: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.request_id = status, code, request_id


@dataclass(frozen=True)
class Answer:
    """A file that the service made.

    Attributes:
        content: its bytes.
        media_type: such as `image/png`.
        model, model_version: name, and SHA-256 of the weights that made it.
        threshold: that was used, in [0, 1].
        quality: signs that the answer may not be trusted, such as `out_of_focus`; empty where there are none.
        request_id: to find the request in the service's log.
    """

    content: bytes
    media_type: str
    model: str
    model_version: str
    threshold: float
    request_id: str
    quality: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Of a file that holds it, with the dot."""
        return SUFFIXES.get(self.media_type, ".bin")


class Options(TypedDict, total=False):
    """How to segment; what is left out or None is the service's choice.

    Attributes:
        model: by name; the service's default.
        threshold: in [0, 1]; the model's.
        high_threshold: in [0, 1]; foreground that nowhere reaches it is dropped; what goes with the threshold.
        min_area_px: smallest cell to keep, in pixels; the model's.
        page: which plane of a stack, from 0; `all` for each by itself, which is also what a file of times or depths
            gets.
        channel: its number from 0, its name, or `mean` of all.
        axes: a letter for each axis where the file or array does not say: T, Z, C, Y, X, and S for colours.
        level: of a pyramid; 0, the full resolution.
    """

    model: str | None
    threshold: float | None
    high_threshold: float | None
    min_area_px: int | None
    page: Page | None
    channel: int | str | None
    axes: str | None
    level: int | None


H = TypeVar("H", httpx.Client, httpx.AsyncClient)


class _Connection(Generic[H]):
    """What both clients share: how they are made, and when they try again."""

    _make: type[H]

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        key: str | None = None,
    ) -> None:
        self._retries = retries
        base = _base(url)
        # a proxy that the environment names is for other machines
        self._http: H = self._make(
            base_url=base, timeout=_timeout(timeout_s), headers=_headers(key), trust_env=not _is_this_machine(base)
        )

    def _judge(self, outcome: httpx.Response | httpx.TransportError, attempt: int) -> "Answer | float":
        """The answer, or how long to wait before the next try.

        Raises:
            ServiceError: the service refused, and the refusal stands.
            ClientError: there is no answer, and trying again is of no use.
        """
        backoff_s = min(2.0**attempt / 2, LONGEST_WAIT_S)
        if isinstance(outcome, httpx.TransportError):
            # who does not answer for so long will not the next time, and the upload is large
            if attempt >= self._retries or isinstance(outcome, httpx.ReadTimeout | httpx.WriteTimeout):
                raise self._unreachable(outcome) from outcome
            return backoff_s
        if outcome.status_code == BAD_GATEWAY and not _is_problem(outcome):
            # a proxy before a service that starts again, as a connection that breaks would be without one
            if attempt >= self._retries:
                raise ClientError(f"no answer from {self._http.base_url}: a proxy says {outcome.status_code}")
            return backoff_s
        if outcome.status_code in BUSY and attempt < self._retries:
            asked_s = _retry_after_s(outcome.headers.get("retry-after", ""))
            if asked_s is None:
                return backoff_s
            if asked_s <= LONGEST_ASKED_S:
                return max(asked_s, 0.1)
        return _to_answer(outcome)

    def _unreachable(self, error: httpx.TransportError) -> ClientError:
        return ClientError(f"no answer from {self._http.base_url}: {str(error) or type(error).__name__}")


class Client(_Connection[httpx.Client]):
    """A running Maskwell; use it as a context manager, from one thread or several.

    Args:
        url: of the service.
        timeout_s: for one try of one request; for its connection 15 s at most.
        retries: how often an image is sent again where the service is busy (429, 503), after as long as it says (an
            hour at most: where it says more the refusal stands), or where the connection breaks, to it or behind a
            proxy (502).
        key: API key, where the service asks for one.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
        ...     labels = client.segment(Path("image.tif"), output="labels", threshold=0.5)
    """

    _make = httpx.Client

    def segment(
        self, source: Source, *, output: ArrayOutput = "labels", **options: Unpack[Options]
    ) -> npt.NDArray[Any]:
        """Segment an image.

        Args:
            source: path of a file, the bytes of one, or an array: (H, W), (H, W, 3 or 4) in colour, or any other whose
                `axes` are said.
            output: what to return.
            options: see Options.

        Returns:
            (H, W) bool for `mask`; float32 in [0, 1] for `probability`; int32, 0 is background and cells are 1..n, for
            `labels`; (H, W, 3) uint8 for `overlay`. Several planes come as (N, H, W), or (T, Z, H, W) where there are
            both, and their cells are numbered in each by itself.

        Raises:
            ServiceError: the service refused; `code` says why.
            ClientError: it cannot be reached.
            OSError: the file cannot be read.
            TypeError: there is no option of that name.
        """
        return _to_array(self._post(source, _query(output, options)), output)

    def fetch(
        self,
        source: Source,
        *,
        output: Output = "mask",
        file_format: Format | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Segment an image and return the service's file as it came.

        Args:
            source: as in `segment`.
            output: what to return.
            file_format: of pictures; None is PNG for one plane and TIFF for several.
            options: see Options.

        Raises:
            As `segment`.
        """
        return self._post(source, _query(output, options, file_format))

    def models(self) -> list[dict[str, Any]]:
        """The models in service: `name`, `version` and whether it is the `default`."""
        return _to_models(self._get("models"))

    def model(self, name: str) -> dict[str, Any]:
        """One model with its config and its card."""
        return self._get(f"models/{name}")

    def health(self) -> dict[str, Any]:
        """State of the service."""
        return self._get("health")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _post(self, source: Source, query: dict[str, str]) -> Answer:
        file = _to_upload(source, query.get("axes"))
        attempt = 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = self._http.post("segment", params=query, files={"file": file})
            except httpx.TransportError as error:
                outcome = error
            judged = self._judge(outcome, attempt)
            if isinstance(judged, Answer):
                return judged
            time.sleep(judged)
            attempt += 1

    def _get(self, path: str) -> dict[str, Any]:
        try:
            return _to_dict(self._http.get(path))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error


class AsyncClient(_Connection[httpx.AsyncClient]):
    """The same for asyncio: `async with AsyncClient() as client: labels = await client.segment(...)`."""

    _make = httpx.AsyncClient

    async def segment(
        self, source: Source, *, output: ArrayOutput = "labels", **options: Unpack[Options]
    ) -> npt.NDArray[Any]:
        """As Client.segment."""
        return _to_array(await self._post(source, _query(output, options)), output)

    async def fetch(
        self,
        source: Source,
        *,
        output: Output = "mask",
        file_format: Format | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """As Client.fetch."""
        return await self._post(source, _query(output, options, file_format))

    async def models(self) -> list[dict[str, Any]]:
        """As Client.models."""
        return _to_models(await self._get("models"))

    async def model(self, name: str) -> dict[str, Any]:
        """As Client.model."""
        return await self._get(f"models/{name}")

    async def health(self) -> dict[str, Any]:
        """As Client.health."""
        return await self._get("health")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _post(self, source: Source, query: dict[str, str]) -> Answer:
        file = await asyncio.to_thread(_to_upload, source, query.get("axes"))
        attempt = 0
        while True:
            outcome: httpx.Response | httpx.TransportError
            try:
                outcome = await self._http.post("segment", params=query, files={"file": file})
            except httpx.TransportError as error:
                outcome = error
            judged = self._judge(outcome, attempt)
            if isinstance(judged, Answer):
                return judged
            await asyncio.sleep(judged)
            attempt += 1

    async def _get(self, path: str) -> dict[str, Any]:
        try:
            return _to_dict(await self._http.get(path))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error


def _base(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ClientError(f"{url!r} is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ClientError(f"{url!r} is no URL of a service; it looks like {DEFAULT_URL}")
    return url.rstrip("/") + "/"


def _is_this_machine(base: str) -> bool:
    host = httpx.URL(base).host
    return bool(host in ("localhost", "::1") or host.startswith("127."))


def _is_problem(response: httpx.Response) -> bool:
    """Whether the service itself says so, and no proxy before it."""
    return str(response.headers.get("content-type", "")).startswith("application/problem+json")


def _timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))


def _headers(key: str | None) -> dict[str, str]:
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ClientError("this is no key: it has spaces, line ends or other characters that no key has")
    return {"Authorization": f"Bearer {key}"}


def _query(output: str, options: Options, file_format: Format | None = None) -> dict[str, str]:
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise TypeError(f"no option {unknown[0]!r}; there are {', '.join(Options.__annotations__)}")
    given: dict[str, Any] = {**options, "format": file_format}
    return {"output": output, **{name: str(value) for name, value in given.items() if value is not None}}


def _to_upload(source: Source, axes: str | None) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return "image", source
    if isinstance(source, str | Path):
        path = Path(source)
        # a name that is not text on this system would not pass through HTTP; the service does not need it
        return path.name.encode(errors="replace").decode(), path.read_bytes()
    buffer = io.BytesIO()
    if axes is not None:
        np.save(buffer, source, allow_pickle=False)
        return "array.npy", buffer.getvalue()
    if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (3, 4)):
        raise ClientError(
            f"an array of shape {source.shape}; allowed are (H, W), (H, W, 3), (H, W, 4) and any whose axes are said"
        )
    pixels = source.astype(np.uint8) * np.uint8(255) if source.dtype == np.bool_ else source
    # TIFF, for it keeps every type; said to be grey or RGB, so that nobody has to guess at the axes
    tifffile.imwrite(buffer, pixels, photometric="minisblack" if source.ndim == 2 else "rgb", metadata=None)
    return "array.tif", buffer.getvalue()


def _retry_after_s(text: str) -> float | None:
    """Seconds, or until a date, as proxies say it; None for neither."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
        return (until - datetime.now(until.tzinfo)).total_seconds()
    except ValueError:
        return None


def _to_answer(response: httpx.Response) -> Answer:
    _check(response)
    headers = response.headers
    try:
        return Answer(
            content=response.content,
            media_type=headers["content-type"].split(";")[0],
            model=headers["x-model"],
            model_version=headers["x-model-version"],
            threshold=float(headers["x-threshold"]),
            request_id=headers.get("x-request-id", ""),
            quality=tuple(flag for flag in headers.get("x-quality", "ok").split(", ") if flag != "ok"),
        )
    except (KeyError, ValueError) as error:
        raise ClientError(f"{response.url} answers, but not as Maskwell does") from error


def _to_models(body: dict[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(body.get("models"), list):
        raise ClientError("it answers, but not as Maskwell does")
    return cast(list[dict[str, Any]], body["models"])


def _to_dict(response: httpx.Response) -> dict[str, Any]:
    # /health answers 503 with the same body while the service is not ready
    if response.status_code != 503 or "problem" in response.headers.get("content-type", ""):
        _check(response)
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ClientError(f"{response.url} answers, but not as Maskwell does")
    return body


def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    request_id = response.headers.get("x-request-id", "")
    try:
        problem = response.json()
        raise ServiceError(response.status_code, str(problem["code"]), str(problem["detail"]), request_id)
    except (ValueError, KeyError, TypeError):
        pass
    raise ServiceError(
        response.status_code, "http_error", f"{response.status_code} {response.reason_phrase}", request_id
    )


def _to_array(answer: Answer, output: ArrayOutput) -> npt.NDArray[Any]:
    pixels: npt.NDArray[Any]
    try:
        if answer.media_type == "image/tiff":
            pixels = tifffile.imread(io.BytesIO(answer.content))
        else:  # not by Pillow, whose limit of pixels belongs to the whole process
            pixels = imagecodecs.png_decode(answer.content)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their depths raise
        raise ClientError(f"an answer of type {answer.media_type} that is no such picture: {error}") from error
    if output == "mask":
        return pixels > 0
    if output == "probability":
        return pixels.astype(np.float32) / np.float32(65535)
    if output == "labels":
        return pixels.astype(np.int32)
    return pixels
