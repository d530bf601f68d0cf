"""What a language model is asked: plain prompts, or chats of messages with roles.

Chats are those of the OpenAI API: [{"role": "user", "content": "..."}].
"""

from collections.abc import Mapping, Sequence

from polyvec.errors import InputError

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
CHAT_ROLES = ("system", "user", "assistant")


def check_prompts(prompts: object) -> list[Prompt]:
    """The prompts as a list; InputError, with the place, for what is no prompt and no chat."""
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise InputError(f"prompts must be a list of texts or chats, got {_shown(prompts)}")
    for number, prompt in enumerate(prompts):
        _check(prompt, f"prompts[{number}]")
    return list(prompts)


def is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str)


def _check(prompt: object, where: str) -> None:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError(f"{where} is empty")
        return
    if not isinstance(prompt, Sequence) or not prompt:
        raise InputError(f"{where} must be a text or a chat of messages, got {_shown(prompt)}")
    for number, message in enumerate(prompt):
        place = f"{where}[{number}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise InputError(f"{place} must have the keys role and content, got {_shown(message)}")
        if message["role"] not in CHAT_ROLES:
            raise InputError(f"{place}: role {message['role']!r} is not one of {CHAT_ROLES}")
        if not isinstance(message["content"], str):
            raise InputError(f"{place}: content must be a text, got {_shown(message['content'])}")


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]}"
