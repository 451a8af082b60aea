"""Bodies of requests and answers, as they stand in the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from model.checkpoint import ModelConfig
from model.outputs import PICTURES, Format, Output
from model.source import AXES, Page, Selection, check_axes
from model.twin import TwinReport

INT32_MAX = 2**31 - 1


class ImageQuery(BaseModel):
    """Which part of the file is meant; what is left out has to follow from the file."""

    model_config = ConfigDict(extra="forbid")

    channel: str | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Which channel: its number from 0, its name where the file has names, or `mean` of all of them. "
        "Of a picture in colour `red`, `green`, `blue` or `mean`.",
        examples=["0", "DAPI", "mean"],
    )
    axes: Annotated[str, AfterValidator(check_axes)] | None = Field(
        None,
        max_length=len(AXES),
        description="What the axes of the file are, a letter each, where it does not say or says wrongly: "
        "T time, Z depth, C channel, Y height, X width, S the samples of a colour.",
        examples=["ZYX", "CYX", "YXS"],
    )
    level: int = Field(0, ge=0, le=64, description="Level of a pyramid; 0 is the full resolution.")


def _check_page(value: object) -> Page:
    if value == "all":
        return "all"
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 10:
        value = int(value)
    if not isinstance(value, int) or not 0 <= value <= INT32_MAX:
        raise PydanticCustomError("page", "Input should be the number of a plane, from 0, or 'all'")
    return value


PAGE = "Which plane of a file that holds several, from 0. With `channel` it counts the planes of that channel."
PlaneNumber = Annotated[int, Field(ge=0, le=INT32_MAX)]
AnyPage = Annotated[Page, PlainValidator(_check_page, json_schema_input_type=PlaneNumber | Literal["all"])]


class SegmentQuery(ImageQuery):
    """How to segment; what is left out comes from the model."""

    page: AnyPage | None = Field(
        None,
        description=f"{PAGE} `all` segments each as a picture of its own and answers with a multi-page TIFF; so does a "
        "file whose axes say that its planes are time or depth, where `page` is left out.",
        examples=[3, "all"],
    )
    model: str | None = Field(
        None, description="Name of a model; the default one if left out.", examples=["best_model"]
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Cell probability from which a pixel is foreground; the model's own if left out.",
    )
    high_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Connected foreground whose cell probability nowhere reaches this is dropped; 0 keeps all. If left "
        "out the model's own; a `threshold` below the model's lowers it too, its odds by the same factor.",
    )
    min_area_px: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Smallest cell to keep, in pixels; the model's own if left out."
    )
    output: Output = Field(
        "mask",
        description="`mask`: 8-bit grey PNG, 0 and 255. `probability`: 16-bit PNG, 65535 is 1. `labels`: 16-bit PNG, "
        "one integer a cell, 0 is background; a 32-bit TIFF above 65,535 cells. `overlay`: RGB PNG with outlines. "
        "`geojson`: a FeatureCollection for QuPath, a polygon a cell. `rois`: a RoiSet.zip for ImageJ. `table`: a CSV, "
        "a row a cell, so its heading alone where there is none. `all`: a zip of all of these, and `summary.json` with "
        "the number of cells. `view`: a zip of what shows the cells, the image in 8 bits, mask, "
        "probability and labels. The numbers of the cells are the same in each. Of several planes the pictures are "
        "multi-page TIFF, the others say for each cell which plane it is in, and `view` is refused.",
    )
    format: Format | None = Field(
        None,
        description="Of pictures, those in `all` too. `png` is the default for one plane. `tiff` is what ImageJ reads, "
        "with the pixel size and a range on show in which no label is black; labels are then 16-bit, and float32 "
        "above 65,535 cells. Several planes are always TIFF.",
        examples=["tiff"],
    )

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: Format | None, info: ValidationInfo) -> Format | None:
        output = info.data.get("output")
        if value == "tiff" and output not in (None, *PICTURES, "all"):
            raise PydanticCustomError("format", f"output={output} is no picture, and has one format alone")
        return value

    def selection(self) -> Selection:
        """What the reader has to find."""
        return Selection(self.page, self.channel, self.axes, self.level)

    @property
    def several(self) -> bool:
        """Whether the answer may hold several planes."""
        return self.output != "view" and self.format != "png"


class PreviewQuery(ImageQuery):
    """Which picture to show."""

    page: int | None = Field(None, ge=0, le=INT32_MAX, description=PAGE, examples=[3])

    def selection(self) -> Selection:
        """What the reader has to find."""
        return Selection(self.page, self.channel, self.axes, self.level)


class OpenChoices(BaseModel):
    """What a file leaves open, for programs that let their users choose."""

    model_config = ConfigDict(from_attributes=True)

    planes: int = Field(
        description="`page` is one of 0 to planes - 1, once `channel` is chosen; 0 where `axes` is first."
    )
    plane_axes: str = Field(description="A letter for each axis on which the planes lie; others than TZC have no name.")
    channels: int = Field(description="`channel` is one of 0 to channels - 1; 0 where nothing says that there are any.")
    channel_names: list[str] = Field(description="As many as there are channels, or none.")
    axes: list[str] = Field(description="Values of `axes` that are worth a try; none where the file names its axes.")


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(description="URN of the code.")
    title: str = Field(description="The kind of problem, in words.")
    status: int = Field(description="The HTTP status.")
    code: str = Field(description="Stable name of the kind, for programs.")
    detail: str = Field(description="What was found, and what is allowed.")
    request_id: str = Field(description="As in X-Request-ID; stands in the log.")
    choices: OpenChoices | None = Field(None, description="With `ambiguous_axes` alone: what there is to choose from.")


class FileProblem(BaseModel):
    """A file of a batch that was refused; errors.json holds a list of these."""

    file: str = Field(description="Name as uploaded.")
    index: int = Field(description="Place in the upload, from 0.")
    problem: Problem


class ModelSummary(BaseModel):
    """A model that serves."""

    name: str
    version: str = Field(description="SHA-256 of its file, 64 hex digits.")
    default: bool = Field(description="Whether requests that name no model get it.")
    runtime: str = Field(description="Engine that runs it: openvino or torch.")
    precision: str = Field(description="fp32, fp16, bf16 or int8.")
    device: str = Field(description="cpu, cuda:0, ...")


class ModelDetail(ModelSummary):
    """A model with all that its file says."""

    config: ModelConfig
    card: dict[str, Any]
    readme: str | None = Field(
        description="NAME.md beside the weights, in Markdown: data, licence, scores, where it fails, how to train it; "
        "null where there is none that names the first 12 digits of this version."
    )
    int8: TwinReport | None = Field(description="What running in int8 costs, as checked; null where it does not.")


class ModelList(BaseModel):
    """The models that serve."""

    models: list[ModelSummary]


class QueueState(BaseModel):
    """What is accepted and not yet answered, and the bounds."""

    requests: int
    max_requests: int
    pixels: int
    max_pixels: int
    waiting_tiles: int


class ReloadReport(BaseModel):
    """What came of the latest attempt to load a file of weights after start-up."""

    model: str
    at: str = Field(description="UTC, ISO 8601.")
    ok: bool
    version: str | None = Field(description="That serves under the name since; None if none does.")
    error: str | None = Field(description="Why the file was refused; the old one keeps serving.")


Status = Literal["starting", "ready", "draining", "failed"]


class WorkerState(BaseModel):
    """A process of the service."""

    pid: int
    status: str = Field(description="As that of the service.")
    models: dict[str, str] = Field(description="Name to version of what it serves.")


class Workers(BaseModel):
    """The processes that share the port."""

    expected: int = Field(description="MASKWELL_WORKERS.")
    replaced: int = Field(description="That died since the start, and were replaced or are to be.")
    last_death: str | None = Field(description="How the latest of them died.")
    running: list[WorkerState]


class Health(BaseModel):
    """State of the service."""

    status: Status
    version: str
    device: str | None
    runtime: str | None
    precision: str | None
    batch_tiles: int | None
    default_model: str
    models: list[ModelSummary]
    refused_weights: dict[str, str] = Field(description="Files that cannot be used, by model or file name, and why.")
    weights_folder_error: str | None = Field(description="Why new weights cannot be looked for; what serves serves on.")
    queue: QueueState
    last_reload: ReloadReport | None
    pid: int = Field(description="Of the worker that answers; queue, refused_weights and last_reload are its own.")
    workers: Workers
    uptime_s: Annotated[float, Field(ge=0)]


class Probe(BaseModel):
    """Answer of a probe."""

    status: str
