"""The description of the API, as OpenAPI 3.1: requests from their dataclasses, answers by hand."""

from typing import Any, TypeAlias

from smalti import __version__
from smalti.serving.requests import MAX_NEAREST, Attend, Nearest, Predict, schema

Json: TypeAlias = dict[str, Any]

_PNG = {"type": "string", "description": "PNG as a data URI"}
_NUMBER, _INTEGER, _TEXT = {"type": "number"}, {"type": "integer"}, {"type": "string"}


def _null(of: Json, description: str = "") -> Json:
    return {"anyOf": [of, {"type": "null"}]} | ({"description": description} if description else {})


def _list(of: Json, description: str = "") -> Json:
    return {"type": "array", "items": of} | ({"description": description} if description else {})


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


_CODE = _object(code=_INTEGER, probability=_NUMBER)
_MODEL = _object(
    name=_TEXT,
    target={"enum": ["tokens", "pixels"]},
    decoder={"enum": ["linear", "cross-attention"]},
    image_size=_list(_INTEGER, "height and width in pixels"),
    channels=_INTEGER,
    patch_size=_INTEGER | {"description": "pixels"},
    grid=_list(_INTEGER, "rows and columns of patches"),
    vocabulary=_null(_INTEGER, "visual tokens; null where pixels are predicted"),
    masking={"enum": ["random", "blockwise"], "description": "how masks were drawn in training"},
    mask_ratio=_NUMBER | {"description": "share that was masked in training"},
    layers=_list(_object(name=_TEXT, heads=_INTEGER), "blocks, of which attention can be seen"),
    images=_list(_object(name=_TEXT, picture=_PNG), "images to choose from"),
    features={"type": "boolean", "description": "whether nearest images can be found"},
)
_PREDICTION = _object(
    masked=_list(_INTEGER, "the masked patches, row-major, from 0"),
    tokens=_null(_list(_INTEGER), "the visual token of every patch, of the tokenizer"),
    predicted_tokens=_list(_INTEGER, "the same, with the best guesses at masked patches"),
    entropy=_null(_list(_null(_NUMBER)), "of the prediction at each masked patch, in nats; null elsewhere"),
    guesses=_list(
        _object(patch=_INTEGER, code=_INTEGER, probability=_NUMBER, best=_list(_CODE)),
        "of each masked patch: its own code with the probability that it was given, and the best guesses",
    ),
    tiles={"type": "object", "additionalProperties": _PNG, "description": "the decoded patch of each code named above"},
    loss_nats=_null(_NUMBER, "mean over the masked patches"),
    accuracy=_null(_NUMBER, "share of masked tokens guessed right"),
    samples=_list(_object(tokens=_list(_INTEGER), picture=_PNG)),
    pictures=_object(
        original=_PNG,
        masked=_PNG,
        tokens=_null(_PNG, "a colour for each token"),
        tokenizer=_null(_PNG, "its tokens decoded: the best that a prediction can be"),
        predicted=_PNG,
    ),
    note=_TEXT,
)
_PREDICTION["required"].remove("predicted_tokens")
_ROW = _object(patches=_list(_NUMBER), cls=_NUMBER)
_ATTENTION = _object(
    **{"from": _list(_INTEGER, "the patches that attend")},
    layer=_INTEGER,
    head=_INTEGER,
    attention=_list(
        _null(_ROW), "shares, which sum to 1 with that of [S] (`cls`); null where a patch is not in this block"
    ),
)
_CODES = _object(
    code=_INTEGER,
    tile=_PNG,
    nearest=_list(_object(code=_INTEGER, distance=_NUMBER, tile=_PNG), "root mean square of pixels in [0, 1]"),
)
_IMAGES = _object(
    nearest=_list(_object(key=_TEXT, label=_null(_TEXT), similarity=_NUMBER, picture=_null(_PNG)), "best first")
)
_ERROR = _object(error=_TEXT)


def _answer(description: str, body: Json) -> Json:
    refused = {
        "description": "refused, in one line: 400 what is no request, 401 no token, 403 another site, 404 not here,"
        " 408 too slow, 413 too large, 415 no JSON, 422 a value that does not fit, 503 too many at once",
        "content": {"application/json": {"schema": _ERROR}},
    }
    content = {"application/json": {"schema": body}}
    return {"responses": {"200": {"description": description, "content": content}, "4XX": refused, "5XX": refused}}


def _post(summary: str, asked: type[Any], body: Json) -> Json:
    content = {"application/json": {"schema": schema(asked)}}
    return {"post": {"summary": summary, "requestBody": {"required": True, "content": content}} | _answer("", body)}


def _parameter(name: str, where: str, least: int, most: int | None = None, default: int | None = None) -> Json:
    limits = {"minimum": least} | ({} if most is None else {"maximum": most})
    found = _INTEGER | limits | ({} if default is None else {"default": default})
    return {"name": name, "in": where, "required": default is None, "schema": found}


def document() -> Json:
    """The whole description."""
    upload = {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    codes = {
        "summary": "The codes that decode to almost the same patch",
        "parameters": [_parameter("code", "path", 0), _parameter("count", "query", 1, MAX_NEAREST, 12)],
    }
    image = {"summary": "The part of an image file that the model sees", "requestBody": upload}
    square = _object(picture=_PNG)
    return {
        "openapi": "3.1.0",
        "info": {"title": "smalti serve", "version": __version__},
        "paths": {
            "/api/model": {"get": {"summary": "What the model is"} | _answer("", _MODEL)},
            "/api/image": {"post": image | _answer("the centre square, whose PNG gives the same predictions", square)},
            "/api/predict": _post("Predict masked patches", Predict, _PREDICTION),
            "/api/attention": _post("What patches attend to", Attend, _ATTENTION),
            "/api/codes/{code}": {"get": codes | _answer("", _CODES)},
            "/api/nearest": _post("The nearest images, where features are given", Nearest, _IMAGES),
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }
