"""What a bucket refuses for good, and what to do about it."""

from __future__ import annotations

import os
import re

from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError

from shiftruntime.errors import StartupError, fetch_failed, model_not_found
from shiftruntime.models.fetch.uri import S3Model

_REGION = re.compile(r"(?:expecting|<Region>|x-amz-bucket-region\W+)[\s'\"]*([a-z]{2}(?:-[a-z]+)+-\d+)")
# A listing that is refused comes as a generic error.
_NOT_ALLOWED = re.compile(
    "40[13] (Forbidden|Unauthorized)|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken"
)
_OTHER_REGION = (
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraint",
    "IncorrectEndpoint",
    "without LOCATION",
)


def refusal(model: S3Model, error: Exception) -> StartupError | None:
    """None for what may pass by itself."""
    text, line = str(error), first_line(error)
    if "RequestTimeTooSkewed" in text or "RequestExpired" in text:
        return fetch_failed(
            f"{model}: the bucket says that this machine's clock is wrong (RequestTimeTooSkewed); "
            "set the clock of its node (NTP)"
        )
    if any(sign in text for sign in _OTHER_REGION):
        return fetch_failed(f"{model}: {_elsewhere(model, text)}")
    if "NoSuchBucket" in text:
        return model_not_found(f"{model}: there is no bucket {model.bucket}; correct the URI, or AWS_ENDPOINT_URL")
    if isinstance(error, PermissionDeniedError | PermissionError | UnauthenticatedError) or _NOT_ALLOWED.search(text):
        return model_not_found(
            f"{model} may not be read with the credentials of this process (AWS_ACCESS_KEY_ID, a role, …): {line}"
        )
    if isinstance(error, NotFoundError | FileNotFoundError):
        return model_not_found(f"{model}: {line}")
    return None


def _elsewhere(model: S3Model, text: str) -> str:
    asked = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    found = _REGION.search(text)
    there = f"region {found[1]}" if found else "another region"
    was = f"AWS_REGION is {asked}" if asked else "AWS_REGION is not set, which means us-east-1"
    fix = f"set AWS_REGION={found[1]}" if found else "set AWS_REGION to the bucket's"
    return f"bucket {model.bucket} lies in {there}, and {was}; {fix}"


def first_line(error: Exception) -> str:
    """The rest is the source's debugging text."""
    return str(error).split("\n", 1)[0]
