"""The page: tabs and their wiring on our own FastAPI, custom views and static files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from memssl_core import __version__, paths
from memssl_core.errors import ImageError
from memssl_core.paths import without_folders
from ui.answers import gone
from ui.api import Refusal, add_endpoints
from ui.attention import attention_tab
from ui.beside import beside_panel
from ui.compare import compare_tab
from ui.context import Context, Opened, Training, Visit
from ui.correspondence import correspondence_tab
from ui.guard import Login, make_guard
from ui.heads import head_panel
from ui.map import map_panel
from ui.memory import memory_tab
from ui.routes import add_routes
from ui.search import search_tab
from ui.tools import Tools, add_tools
from ui.tray import tray, uploaded
from ui.views import view

STATIC = Path(__file__).parent / "static"
HEAD = """
<link rel="stylesheet" href="ui/ui.css">
<link rel="stylesheet" href="ui/train.css">
<link rel="stylesheet" href="ui/runview.css">
<link rel="stylesheet" href="ui/search.css">
<link rel="stylesheet" href="ui/attention.css">
<link rel="stylesheet" href="ui/beside.css">
<link rel="stylesheet" href="ui/compare.css">
<meta name="viewport" content="width=device-width, initial-scale=1">
<script>
try { // the theme chosen before, unless the address names one
  const chosen = localStorage.getItem("memssl-theme"), url = new URL(location.href);
  if (chosen && !url.searchParams.has("__theme")) {
    url.searchParams.set("__theme", chosen);
    history.replaceState(history.state, "", url);
  }
} catch {}
</script>
"""
DAY_S = 86_400
LIBRARIES = ("torch", "timm", "gradio", "numpy", "pillow", "faiss-cpu")


def build(
    opening: Future[Opened],
    *,
    source: str,
    public: bool = False,
    offline: bool = False,
    login: Login | None = None,
    roots: Mapping[str, Path] | None = None,
    runs: Path | None = None,
    training: Training | None = None,
) -> FastAPI:
    """The app, ready to be served while `opening` still brings the model of `source`.

    Args:
        public: visitors come from elsewhere, so of a folder only the name is told, no job is started, and only models
            are shown that are here.
        offline: what the header says; the caller has already cut the network off.
        login: gives the visitor's name for a request, or None to turn it away with 401. It guards Gradio and our
            routes alike; `healthz` and static files stay open. Without it everybody may come in.
        roots: folders that may be read from the page, by their names.
        runs: where training runs lie, if elsewhere than `paths.runs_dir()`.
        training: what of it is offered; None: nothing, neither tab nor routes.
    """
    shown = without_folders(source) if public else source
    context = Context(shown, opening, offline, public, roots or {}, runs or paths.runs_dir(), training)
    guard = make_guard(login, public)
    page = blocks(context)
    tools = Tools(page)
    app = FastAPI(title="MaSSL explorer", docs_url=None, redoc_url=None, openapi_url=None, lifespan=tools.lifespan)
    add_routes(app, context, guard)
    app.get("/ui/plotly.min.js", include_in_schema=False)(plotly)
    app.mount("/ui", Revalidated(directory=STATIC))
    add_tools(app, tools, guard)
    page.mcp_server = True  # so that the page says how to connect
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth_dependency=login,
        ssr_mode=False,
        run_history=False,
        show_error=False,
        mcp_server=False,  # whatever the environment says: Gradio's own has no guard
        footer_links=["api"],
        max_file_size="50mb",
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        head=HEAD,
        favicon_path=str(STATIC / "mark.png"),
    )


def blocks(context: Context) -> gr.Blocks:
    """The tabs. Python holds of a visitor only the handles of the pictures that were uploaded."""

    def forget(visit: Visit) -> None:  # a plain function: Gradio copies it, with all it is bound to, for each page
        context.pictures.drop(visit)

    with Page(title="MaSSL", analytics_enabled=False, fill_width=True, delete_cache=(3600, DAY_S)) as page:
        visit = gr.State((), delete_callback=forget)
        view("header", elem_id="header")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("Attention", id="attention"):
                tray(context, visit, "tray-attention")
                attention_tab(context, visit)
                beside_panel(context, visit)
                head_panel(context, visit)
            with gr.Tab("Correspondence", id="correspondence"):
                tray(context, visit, "tray-correspondence")
                correspondence_tab(context, visit)
            with gr.Tab("Memory", id="memory"):
                view("panels", elem_id="panels")
                tray(context, visit, "tray-memory")
                memory_tab(context, visit)
                map_panel(context, visit)
            with gr.Tab("Search", id="search"):
                tray(context, visit, "tray-search")
                search_tab(context, visit)
            with gr.Tab("Compare", id="compare"):
                tray(context, visit, "tray-compare")
                compare_tab(context, visit)
            if context.training:
                with gr.Tab("Train", id="train"):
                    view("train", elem_id="train")
            with gr.Tab("About", id="about"):
                gr.Markdown(about(), elem_classes=["ui", "about"])
        add_endpoints(context)
    page.queue(max_size=64)
    return page


def plotly() -> Response:
    """The library that draws curves, out of the installed package; it is fetched when the first curve is drawn."""
    found = find_spec("plotly")
    file = Path(str(found.origin)).parent / "package_data" / "plotly.min.js" if found else None
    if file is None or not file.is_file():
        return gone("Curves need plotly; install it with `pip install plotly`.", status=404)
    return FileResponse(file, media_type="text/javascript", headers={"Cache-Control": f"public, max-age={7 * DAY_S}"})


def about() -> str:
    versions = " · ".join(f"{name} {version(name)}" for name in LIBRARIES if is_installed(name))
    return f"{(STATIC / 'about.md').read_text('utf-8')}\n## Versions\n\nmemssl {__version__} · {versions}\n"


def is_installed(name: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(name))
    return False


class Page(gr.Blocks):
    """Blocks whose events take files from Gradio's upload folder only.

    Gradio itself copies whatever path or URL a request names into that folder as long as its Blocks have not been
    launched by `launch()`, and mounted ones never are (gradio 6.31, processing_utils._check_allowed).
    """

    async def preprocess_data(self, block_fn: Any, inputs: list, state: Any, explicit_call: bool = False) -> list:
        try:
            for path in paths_in(inputs):
                uploaded(path)
        except ImageError as reason:
            raise Refusal(str(reason), print_exception=False) from None
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


def paths_in(value: object) -> Iterator[object]:
    """What stands under "path" anywhere in a JSON value."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from paths_in(part)


class Revalidated(StaticFiles):
    """Static files that a browser asks about each time, so that after an update no old module meets a new one."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
