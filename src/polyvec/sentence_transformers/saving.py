"""Saving into a folder that holds other things, too, and to the hub."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty folder whose entries replace those of the same names in `path` at the end.

    Whatever else is in `path` stays there.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".polyvec-") as made:
        yield Path(made)
        for each in sorted(Path(made).rglob("*")):
            target = path / each.relative_to(made)
            if each.is_dir():
                target.mkdir(exist_ok=True)
            else:
                each.replace(target)


def upload(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    token: str | bool | None = None,
    private: bool | None = None,
    exist_ok: bool = False,
    create_pr: bool = False,
    local_model_path: str | None = None,
    commit_message: str | None = None,
    **options: Any,
) -> str:
    """Upload what `save` writes, or a folder; returns the address of the commit or request.

    Other options are those of huggingface_hub.HfApi.upload_folder.
    """
    api = HfApi(token=token)
    repo = api.create_repo(
        repo_id=repo_id, private=private, repo_type=None, exist_ok=exist_ok or create_pr
    )
    found_id = getattr(repo, "repo_id", None) or repo_id
    with tempfile.TemporaryDirectory() as made:
        if local_model_path is None:
            save(Path(made) / "model")
        done = api.upload_folder(
            repo_id=found_id,
            folder_path=local_model_path or str(Path(made) / "model"),
            commit_message=commit_message or "Add a model saved by polyvec",
            create_pr=create_pr,
            **options,
        )
    return str(done.pr_url if create_pr else done.commit_url)
