"""The named endpoints as MCP tools: Gradio's server of them, behind our guard, and with no way out of this machine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Never
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Request, Response
from gradio.mcp import GradioMCPServer
from gradio.processing_utils import add_root_url, save_base64_to_cache
from gradio.utils import get_upload_folder
from mcp.types import TextContent

Guard = Callable[[Request], Awaitable[None]]


class Tools(GradioMCPServer):
    """The named endpoints as MCP tools, with pictures and answers as they travel over REST. Nothing is fetched.

    Gradio's own takes pictures by any URL, and to answer what is queued, and resources and prompts, it first calls the
    address that the headers of a request name (gradio 6.31, mcp._get_or_create_client).
    """

    PICTURE = "Picture: a data: URL with base64, or the path or address of what /gradio_api/upload has received."

    def _get_or_create_client(self) -> Never:
        raise ValueError("Only tools without a queue are served here.")

    def simplify_filedata_schema(self, schema: dict[str, Any]) -> tuple[dict[str, Any], list[list[str | int]]]:
        simple, positions = super().simplify_filedata_schema(schema)
        for name in {str(position[0]) for position in positions}:  # deeper where it may be left out
            told = simple["properties"][name].get("description", "")
            simple["properties"][name] = {"type": "string", "description": f"{told} {self.PICTURE}".strip()}
        return simple, positions

    def convert_strings_to_filedata(self, value: Any, filedata_positions: list[list[str | int]]) -> Any:
        names = {position[0] for position in filedata_positions}
        return {name: self.file(given) if name in names else given for name, given in value.items()}

    def file(self, given: str) -> dict[str, Any]:
        """FileData, for `Page` to refuse unless it lies in the upload folder."""
        path = unquote(given.rpartition("/gradio_api/file=")[2])
        if given.startswith("data:"):
            try:
                path = save_base64_to_cache(given, get_upload_folder())
            except ValueError:
                raise ValueError("This data: URL is not base64; encode the picture again.") from None
            self.blocks.upload_file_set.add(path)  # deleted with the uploads
        return {"path": path, "meta": {"_type": "gradio.FileData"}}

    def postprocess_output_data(self, data: Any, root_url: str) -> list[TextContent]:
        """JSON, and of a file the address."""
        parts = add_root_url(data, root_url, None)
        texts = (part["url"] if is_file(part) else json.dumps(part) for part in parts)
        return [TextContent(type="text", text=text) for text in texts]


def is_file(value: object) -> bool:
    return isinstance(value, dict) and {"path", "url", "meta"} <= value.keys()


def add_tools(app: FastAPI, tools: Tools, guard: Guard) -> None:
    """`gradio_api/mcp`, and the list of tools that the page's help reads, behind `guard`."""

    @app.get("/gradio_api/mcp/schema", dependencies=[Depends(guard)])
    async def schema(request: Request) -> Response:
        return await tools.get_complete_schema(request)

    app.add_route("/gradio_api/mcp{rest:path}", Guarded(guard, tools.handle_streamable_http))


@dataclass(frozen=True)
class Guarded:
    """An ASGI app for those whom `guard` lets in."""

    guard: Guard
    served: Callable[..., Awaitable[None]]

    async def __call__(self, scope: Any, *channels: Any) -> Any:
        await self.guard(Request(scope))
        await self.served(scope, *channels)
