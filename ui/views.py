"""Custom views: a gr.HTML whose content one ES module of `ui/static` draws."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr


def view(module: str, *, events: Sequence[str] = (), elem_id: str | None = None) -> gr.HTML:
    """A gr.HTML that hands itself to `mount` of `ui/static/MODULE.js`.

    The module draws into `element`, hears of new values through `watch` and asks Python through `trigger(event, data)`.
    The template stays constant, so Gradio never patches what the module has drawn. Gradio makes an event method of
    every name that stands quoted in `js_on_load`.
    """
    names = ", ".join(f"'{event}'" for event in events)
    return gr.HTML(
        html_template='<div class="ui root"></div>',
        js_on_load=(
            f"const events = [{names}];"
            f"import(new URL('ui/{module}.js', document.baseURI))"
            ".then(it => it.mount({element: element.querySelector('.root'), props, trigger, watch, upload}));"
        ),
        apply_default_css=False,
        elem_id=elem_id,
    )
