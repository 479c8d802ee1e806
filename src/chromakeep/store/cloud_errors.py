"""What an error of obstore means: one line a person understands, and whether another try can help.

obstore reports what object_store (Rust) saw as text: a first part for people, with the server's answer (its status and
the XML body with S3's or Azure's error code), and after ``Debug source:`` the chain of causes. Both are matched here.
S3's codes: "List of error codes" of the S3 API reference; Azure's: "Blob service error codes" of its REST reference.
"""

from __future__ import annotations

import re

from chromakeep.addresses import Address
from chromakeep.errors import ObjectNotFound, StoreDenied, StoreError, StoreUnavailable

CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or run where a role provides them",
    "r2": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of an R2 API token",
    "spaces": "set SPACES_ACCESS_KEY_ID and SPACES_SECRET_ACCESS_KEY to those of a Spaces key",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the path of a service account's key file",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}

_STATUS = re.compile(r"non-2xx status code: (\d{3})|\(code: (\d{3})\)")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_MESSAGE = re.compile(r"<Message>([^<\n]{1,200})")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,40})</Region>")
_HOST = re.compile(r"https?://([^/\s,]+)")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified (?:container|bucket) does not exist")
# The paths of the metadata services of AWS, Google and Azure: the last place where credentials are looked for.
_METADATA = re.compile(r"/latest/api/token|/latest/meta-data/|/computeMetadata/|/metadata/identity/")

_CREDENTIALS, _REGION_HINT = "credentials", "region"
_REFUSALS: dict[str, tuple[str, str]] = {
    "SignatureDoesNotMatch": ("the access key and the secret key do not fit together", _CREDENTIALS),
    "InvalidAccessKeyId": ("the access key is not known there", _CREDENTIALS),
    "AuthorizationFailure": ("the account key is wrong", _CREDENTIALS),
    "AuthenticationFailed": ("the account key is wrong", _CREDENTIALS),
    "ExpiredToken": ("the session token has expired", _CREDENTIALS),
    "InvalidToken": ("the session token is not valid", _CREDENTIALS),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set the clock; requests are signed with the time"),
    "AccessDenied": ("these credentials may not do that", "they need to read, write, list and delete objects"),
    "AuthorizationPermissionMismatch": ("these credentials may not do that", "assign Storage Blob Data Contributor"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION_HINT),
    "PermanentRedirect": ("the bucket is in another region", _REGION_HINT),
    "NotImplemented": ("this server cannot do that", "it lacks a part of the S3 protocol; try a newer release of it"),
}
# Of the answers below 500, those that blame the way, not the request.
_PASSING = {"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "OperationAborted"}
_PASSING |= {"SlowDown", "TooManyRequests", "OperationTimedOut", "ServerBusy", "Md5Mismatch", "ContainerBeingDeleted"}


def is_past_the_end(error: Exception) -> bool:
    """Whether a range was refused only because it begins at or after the end of the object (HTTP 416)."""
    text = str(error)
    return "status code: 416" in text or "Wanted range starting at" in text


def is_bucket_missing(error: Exception) -> bool:
    """Whether the bucket or container itself is not there."""
    return _NO_BUCKET.search(str(error)) is not None


def translated(error: Exception, address: Address, name: str) -> StoreError:
    """The StoreError that says what happened to a request for ``name`` ("" where an object may well be absent).

    It never holds a secret: object_store puts none into its errors, and of the server's answer only the code, the
    region and the message are taken.
    """
    if isinstance(error, StoreError):
        return error
    where = f"{address.kind}://{address.place}"
    said, _, causes = str(error).partition("\n\nDebug source:")
    if is_bucket_missing(error):
        what = "container" if address.kind == "az" else "bucket"
        return StoreDenied(f"{where}: there is no such {what}", hint=f"create the {what} first, or correct its name")
    if isinstance(error, FileNotFoundError) and name:
        return ObjectNotFound(name)
    found = _STATUS.search(said)
    status = int(found.group(1) or found.group(2)) if found else 0
    if _METADATA.search(said):
        return StoreDenied(f"{where}: no credentials were found", hint=CREDENTIALS[address.kind])
    if status:
        return _answered(status, said, where, address.kind)
    if "HTTP error" in said or "HttpError" in causes or "reqwest" in causes:
        return _unanswered(said, causes, where)
    line = re.sub(r"^Generic \w+ error: ", "", said.splitlines()[0] if said else type(error).__name__)
    return StoreDenied(f"{where}: {line[:200]}", hint=CREDENTIALS[address.kind])


def _answered(status: int, said: str, where: str, kind: str) -> StoreError:
    """The server answered, and not with success."""
    code = found.group(1) if (found := _CODE.search(said)) else ""
    shown = f"{where}: the store answers {status} {code}".rstrip()
    if code in _PASSING or status in (408, 425, 429) or (status >= 500 and status not in (501, 505)):
        return StoreUnavailable(shown)
    if (status == 501 or 300 <= status < 400) and code not in _REFUSALS:
        code = "NotImplemented" if status == 501 else "PermanentRedirect"
    if code in _REFUSALS:
        what, hint = _REFUSALS[code]
        if hint == _REGION_HINT:
            region = found.group(1) if (found := _REGION.search(said)) else "NAME"
            hint = f"add region={region} to the address's query, or set AWS_REGION={region}"
        return StoreDenied(f"{where}: {what} ({code})", hint=CREDENTIALS[kind] if hint == _CREDENTIALS else hint)
    if status in (401, 403):
        return StoreDenied(f"{where}: these credentials are refused ({code or status})", hint=CREDENTIALS[kind])
    message = f": {found.group(1).strip()}" if (found := _MESSAGE.search(said)) else ""
    return StoreDenied(shown + message, hint="check the address: bucket, region and endpoint")


def _unanswered(said: str, causes: str, where: str) -> StoreError:
    """The request or its answer did not get through."""
    host = found.group(1) if (found := _HOST.search(said + causes)) else "the store"
    if "InvalidContentType" in causes or "corrupt message" in causes:
        return StoreDenied(f"{where}: {host} does not speak TLS", hint="write the endpoint with http:// if you mean it")
    if "ertificate" in causes:
        return StoreDenied(
            f"{where}: the TLS certificate of {host} is not trusted",
            hint="for a private authority set SSL_CERT_FILE to a file with its certificate",
        )
    if "BadScheme" in causes:
        return StoreDenied(f"{where}: the endpoint is http://", hint="name it in the address: ?endpoint=http://...")
    if "dns error" in causes:
        return StoreUnavailable(f"{where}: the host name {host} is not found", hint="check the endpoint")
    if "ConnectionRefused" in causes or "Connection refused" in causes:
        return StoreUnavailable(f"{where}: {host} refuses the connection", hint="is the server running there?")
    if "Timeout" in causes or "TimedOut" in causes:
        return StoreUnavailable(f"{where}: {host} did not answer in time")
    return StoreUnavailable(f"{where}: the connection to {host} broke")
