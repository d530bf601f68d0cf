"""Saving into a folder that holds other things, too, and to the hub."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub import HfApi

from polyvec.errors import ModelError, PolyvecError


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
    revision: str | None = None,
) -> str:
    """Upload what `save` writes, or a folder; returns the address of the commit or request.

    Raises ModelError where the hub cannot be reached or refuses.
    """
    api = HfApi(token=token)
    with _of_the_hub(repo_id), tempfile.TemporaryDirectory() as made:
        repo = api.create_repo(
            repo_id=repo_id, private=private, repo_type=None, exist_ok=exist_ok or create_pr
        )
        found_id = getattr(repo, "repo_id", None) or repo_id
        if revision is not None:
            api.create_branch(repo_id=found_id, branch=revision, exist_ok=True)
        if local_model_path is None:
            save(Path(made) / "model")
        done = api.upload_folder(
            repo_id=found_id,
            folder_path=local_model_path or str(Path(made) / "model"),
            commit_message=commit_message or "Add a model saved by polyvec",
            create_pr=create_pr,
            revision=revision,
        )
    return str(done.pr_url if create_pr else done.commit_url)


@contextlib.contextmanager
def _of_the_hub(repo_id: str) -> Iterator[None]:
    """Errors of the network, the login or the name as one ModelError."""
    try:
        yield
    except PolyvecError:
        raise
    except Exception as error:  # noqa: BLE001 - of huggingface_hub, its HTTP client, or the system
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{repo_id}: could not upload the model ({type(error).__name__}: {reason}); "
            "check the connection and the login (hf auth login), or use save_pretrained"
        ) from None
