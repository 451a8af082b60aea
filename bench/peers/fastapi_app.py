"""A plain endpoint of FastAPI, in its pool of threads: uvicorn fastapi_app:app."""

import sys

import uvicorn
from common import PORT, Model
from fastapi import FastAPI, UploadFile
from fastapi.responses import Response

app = FastAPI()
model = Model()


@app.post("/segment")
def segment(file: UploadFile) -> Response:
    """The mask of an image."""
    return Response(model.segment(file.file.read()), media_type="image/png")


if __name__ == "__main__":
    sys.exit(uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning"))
