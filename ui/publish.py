"""Sending a bundle to the Hub: first what would be sent, then a job that sends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from memssl_core import jobs
from memssl_core.errors import BundleError, HubError
from ui.context import Context
from ui.facts import bundle_folder
from ui.messages import spoken

NO_TOKEN = "This server has no Hub token that may write: run `hf auth login`, or set HF_TOKEN, then start it again."
OFFLINE = "The page was started with --offline, so nothing can be sent to the Hub; start it without."


class Wish(BaseModel):
    model: str
    """a handle"""
    repo: str = Field(max_length=200)
    private: bool = True


def add_publish_routes(api: APIRouter, context: Context) -> None:
    @api.post("/publish/plan")
    @spoken
    def plan(wish: Wish) -> dict[str, Any]:
        """`{files: [[name, bytes]], obstacle}`: what would be sent, and why it cannot be."""
        from memssl_core.bundle.hub import publish

        planned = publish(folder_of(context, wish.model), wish.repo.strip(), public=not wish.private, dry_run=True)
        return {"files": planned.files, "private": planned.private, "obstacle": obstacle(context)}

    @api.post("/publish")
    @spoken
    def publish_it(wish: Wish) -> dict[str, Any]:
        if reason := obstacle(context):
            raise HubError(reason)
        folder, repo = folder_of(context, wish.model), wish.repo.strip()
        name = context.workbench(wish.model).model.name
        argv = ["publish", str(folder), "--repo", repo, *([] if wish.private else ["--public"])]
        job = jobs.start(argv, kind="publish", title=f"Publish {name} as {repo}", facts={"model": wish.model})
        return {"job": job.path.name}


def obstacle(context: Context) -> str | None:
    """Why nothing can be sent from here, in a sentence."""
    from huggingface_hub import get_token

    if context.offline:
        return OFFLINE
    return None if get_token() else NO_TOKEN


def folder_of(context: Context, handle: str) -> Path:
    folder = bundle_folder(context.workbench(handle).model.source)
    if folder is None:
        raise BundleError("Only a bundle on this machine can be published; give the model a memory, which makes one.")
    return folder.absolute()
