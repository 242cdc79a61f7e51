"""AWS's JSON protocols: a target header and a document in, a document out (SQS, Pricing, SSM, Service Quotas, FIS).

Owns the shape of requests and answers, not their meaning.
"""

import json
from typing import Any

from aiohttp import web

from autoscaler.sandbox.aws_query import AwsError

Json = dict[str, Any]


def parse_document(body: bytes) -> Json:
    """Raises AwsError(SerializationException)."""
    try:
        document = json.loads(body) if body else {}
    except ValueError as error:
        raise AwsError("SerializationException", "could not read the request") from error
    if not isinstance(document, dict):
        raise AwsError("SerializationException", "the request is not an object")
    return document


def json_answer(document: Json, *, version: str, request_id: str) -> web.Response:
    return web.Response(
        text=json.dumps(document),
        content_type=f"application/x-amz-json-{version}",
        headers={"x-amzn-RequestId": request_id},
    )


def json_failure(error: AwsError, *, version: str, request_id: str, namespace: str = "") -> web.Response:
    """`namespace` is the shape's own ("com.amazonaws.sqs"); SQS also says what the error was called before."""
    body = {"__type": f"{namespace}#{error.code}" if namespace else error.code, "message": error.message}
    response = json_answer(body, version=version, request_id=request_id)
    response.set_status(error.status)
    response.headers["x-amzn-ErrorType"] = error.code
    if namespace:
        side = "Sender" if error.status < 500 else "Receiver"
        response.headers["x-amzn-query-error"] = f"{error.query_code};{side}"
    return response


def text(document: Json, name: str) -> str:
    """A required member. Raises AwsError(ValidationException)."""
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise AwsError("ValidationException", f"{name} is required")
    return value


def texts(document: Json, name: str) -> list[str]:
    """A required list of texts. Raises AwsError(ValidationException)."""
    value = document.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise AwsError("ValidationException", f"{name} is required")
    return value
