"""API keys: who may come in, and as what. Stored as SHA-256 digests; knows no HTTP.

A keys file has a line a key, `NAME ROLE sha256:DIGEST [expires=YYYY-MM-DD]`; `python -m app key NAME` makes one. Keys
are 256 random bits, so a plain digest cannot be turned back: a slow hash is for passwords, which people choose.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from pydantic import SecretStr

from app.files import Signature, sign
from app.settings import Settings

logger = logging.getLogger("app.keys")

Role = Literal["user", "admin"]
PREFIX = "mw_"  # lets scanners for leaked secrets know one
ADMIN_NAME = "admin"  # of MASKWELL_ADMIN_KEY
LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?P<role>user|admin)\s+sha256:(?P<digest>[0-9a-f]{64})"
    r"(?:\s+expires=(?P<expires>\d{4}-\d\d-\d\d))?"
)
SHAPE = "NAME user|admin sha256:64-HEX-DIGITS [expires=YYYY-MM-DD], as `python -m app key NAME` prints it"


class KeysError(Exception):
    """The keys that are configured cannot be used; says where, and never shows what stands there."""


@dataclass(frozen=True)
class Key:
    """One key, without the key itself.

    Attributes:
        name: for the log; unique.
        role: `user` may segment, `admin` may also reload models.
        digest: SHA-256 of the key.
        expires: the last day, UTC, on which it is good; None is for ever.
    """

    name: str
    role: Role
    digest: bytes
    expires: date | None = None


class KeyRing:
    """The keys of a service.

    Args:
        settings: says where they are.

    Raises:
        KeysError: they cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._admin_key, self._text, self._path = settings.admin_key, settings.keys, settings.keys_file
        self._seen = self._signature()
        self._keys = self._read()
        self._told: str | None = None  # what was wrong with the file at the last look

    @property
    def required(self) -> bool:
        """Whether requests need a key: there are others than MASKWELL_ADMIN_KEY."""
        return self._text is not None or self._path is not None

    @property
    def has_admin(self) -> bool:
        """Whether anybody is an admin."""
        return any(key.role == "admin" for key in self._keys)

    def find(self, given: str) -> Key | None:
        """The key that this is; None if it is none, or has expired."""
        digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest()
        found = None
        for key in self._keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is not None and found.expires is not None and datetime.now(UTC).date() > found.expires:
            return None
        return found

    def refresh(self) -> None:
        """Read the file again if it has changed; one that cannot be used changes nothing, and is logged once.

        One that could not be read is tried again at the next look, for a disk's error passes; one that says something
        wrong when it has changed.
        """
        signature = self._signature()
        if signature == self._seen:
            return
        try:
            self._keys = self._read()
        except KeysError as error:
            if not isinstance(error.__cause__, OSError):
                self._seen = signature
            if str(error) != self._told:
                logger.error("%s; the keys before stay in force", error)
            self._told = str(error)
            return
        self._seen, self._told = signature, None
        logger.info("the keys have changed: %d in force", len(self._keys))

    def _signature(self) -> Signature | None:
        try:
            return sign(self._path) if self._path else None
        except OSError:
            return None

    def _read(self) -> Sequence[Key]:
        keys: list[Key] = []
        if self._admin_key is not None:
            keys.append(Key(ADMIN_NAME, "admin", digest_of(self._admin_key)))
        if self._text is not None:
            keys += parse_keys(self._text.get_secret_value().replace(";", "\n"), "MASKWELL_KEYS")
        if self._path is not None:
            try:
                sign(self._path)  # refuses a pipe, which would be waited for
                text = self._path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not text"
                raise KeysError(f"MASKWELL_KEYS_FILE: {self._path} cannot be read: {reason}") from error
            keys += parse_keys(text, f"MASKWELL_KEYS_FILE: {self._path}")
        names = [key.name for key in keys]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise KeysError(f"several keys are named {', '.join(twice)}")
        return keys


def parse_keys(text: str, source: str) -> list[Key]:
    """The keys of a keys file; empty lines and lines that begin with # are skipped.

    Args:
        text: of the file.
        source: what it is called in errors.

    Raises:
        KeysError: a line that is none, or no line at all.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        try:
            if match is None:
                raise ValueError
            expires = date.fromisoformat(match["expires"]) if match["expires"] else None
        except ValueError:
            raise KeysError(f"{source}, line {number}: not {SHAPE}") from None
        role: Role = "admin" if match["role"] == "admin" else "user"
        keys.append(Key(match["name"], role, bytes.fromhex(match["digest"]), expires))
    if not keys:
        raise KeysError(f"{source} holds no key; nobody could come in")
    return keys


def make_key(name: str, role: Role, expires: date | None = None) -> tuple[str, str]:
    """A new key, and its line for the keys file.

    Raises:
        ValueError: a name that may not stand in the file.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} {role} sha256:{digest_of(SecretStr(key)).hex()}"
    line += f" expires={expires.isoformat()}" if expires else ""
    if LINE.fullmatch(line) is None:
        raise ValueError(f"{name!r}: a name has 1 to 64 letters, digits, '.', '_', '@' and '-'")
    return key, line


def digest_of(key: SecretStr) -> bytes:
    """SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key.get_secret_value().encode()).digest()
