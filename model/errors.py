"""What can go wrong while segmenting. Knows no HTTP.

SegmentationError
|- ImageError                the sender can fix it
|  |- UndecodableImageError  not a format we read, or damaged
|  |- ImageTooLargeError     more pixels than allowed
|  |- AmbiguousAxesError     several planes, and nothing says which one is meant
|  `- ImageMemoryError       a MemoryError as well: there is no room for it now, which is no fault of the image
`- WeightsError              the operator can fix it: the file of weights cannot be used
"""


class SegmentationError(Exception):
    """Base of all that Maskwell raises on purpose; its text is fit to be shown to the user."""


class ImageError(SegmentationError):
    """The image cannot be segmented as it is."""


class UndecodableImageError(ImageError):
    """The bytes are no image of a kind that is read, or they are cut short or damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than the limit; found out from its header, before decoding."""


class AmbiguousAxesError(ImageError):
    """The file holds several planes and the request does not say which one is meant."""


class ImageMemoryError(ImageError, MemoryError):
    """There is no memory for an image that is within the limits; later there may be."""


class WeightsError(SegmentationError):
    """The file of weights is missing, damaged, unsafe, or not a U-Net that is known."""
