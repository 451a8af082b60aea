"""Maskwell from a program: images to a running service, arrays and files back. Knows the HTTP interface alone."""

from client.api import Answer, AsyncClient, Client, ClientError, Options, ServiceError

__all__ = ["Answer", "AsyncClient", "Client", "ClientError", "Options", "ServiceError"]
