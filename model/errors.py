"""What can go wrong while segmenting. Knows no HTTP.

SegmentationError
|- ImageError                the sender can fix it
|  |- UndecodableImageError  not a format we read, or damaged
|  |- ImageTooLargeError     more pixels than allowed
|  |- AmbiguousAxesError     several planes, and nothing says which one is meant
|  `- ImageMemoryError       a MemoryError as well: there is no room for it now, which is no fault of the image
`- WeightsError              the operator can fix it: the file of weights cannot be used
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Choices:
    """What a file leaves open, for programs that let their users choose.

    Attributes:
        planes: how many there are once a channel is chosen; `page` is one of 0 to planes - 1.
        plane_axes: a letter for each axis on which they lie, T, Z, C; another where the file does not name it.
        channels: how many; 0 where nothing says that there are any.
        channel_names: as many as there are channels, or none.
        axes: readings of the file's axes that are worth a try; none where it names them.
    """

    planes: int
    plane_axes: str = ""
    channels: int = 0
    channel_names: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()


class SegmentationError(Exception):
    """Base of all that Maskwell raises on purpose; its text is fit to be shown to the user."""


class ImageError(SegmentationError):
    """The image cannot be segmented as it is."""


class UndecodableImageError(ImageError):
    """The bytes are no image of a kind that is read, or they are cut short or damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than the limit; found out from its header, before decoding."""


class AmbiguousAxesError(ImageError):
    """The file holds several planes and the request does not say which one is meant.

    Args:
        detail: what was found, and how to say what is meant.
        choices: the same for programs, where there is something to choose from.
    """

    def __init__(self, detail: str, choices: Choices | None = None) -> None:
        super().__init__(detail)
        self.choices = choices


class ImageMemoryError(ImageError, MemoryError):
    """There is no memory for an image that is within the limits; later there may be."""


class WeightsError(SegmentationError):
    """The file of weights is missing, damaged, unsafe, or not a U-Net that is known."""
