"""Reads forms with files (multipart/form-data), in memory and within limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from python_multipart.multipart import Field, File

FORM_TYPE = "multipart/form-data"
MOST_PARTS = 32
MOST_FIELD_BYTES = 4096


@dataclass
class Form:
    """The texts and the files of a form, by name; of several with one name the last."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def read_form(content_type: str, body: bytes) -> Form:
    """The form in a body. Raises ValueError for what is none, or has more than 32 parts."""
    # Only who takes forms needs it, and text servers take none.
    from python_multipart import FormParser
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    if kind != FORM_TYPE.encode() or b"boundary" not in options:
        raise ValueError("the request is not a form with files (multipart/form-data)")
    form = Form()
    count = 0

    def count_part() -> None:
        nonlocal count
        count += 1
        if count > MOST_PARTS:
            raise ValueError(f"a form may have {MOST_PARTS} parts")

    def on_field(part: Field) -> None:
        count_part()
        value = part.value or b""
        if len(value) > MOST_FIELD_BYTES:
            raise ValueError(f"a text of a form may have {MOST_FIELD_BYTES} bytes")
        form.fields[_text(part.field_name)] = _text(value)

    def on_file(part: File) -> None:
        count_part()
        part.file_object.seek(0)
        form.files[_text(part.field_name)] = part.file_object.read()
        part.close()

    # Nothing goes to the disk: all of the body is in memory already.
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = FormParser(
            FORM_TYPE, on_field, on_file, boundary=options[b"boundary"], config=config
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise ValueError("the form is damaged") from error
    return form


def _text(data: bytes | None) -> str:
    """Text that is no UTF-8 fits no name and no key, and is not worth an error."""
    return (data or b"").decode("utf-8", "replace")
