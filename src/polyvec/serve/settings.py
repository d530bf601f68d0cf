"""What a server may be told."""

from dataclasses import dataclass

from polyvec.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Limits of a server; times in seconds.

    max_batch_tokens: in one pass of a model. batch_time: that a pass takes at most, about, unless
        much waits; longer ones give little more on a CPU, and whoever arrives waits for their end.
    patience: a request lets others go first that arrive later by at most so many times the time
        that it takes more than they. 0: first come, first served.
    max_queued_tokens: waiting for a model. A request that would exceed it is refused as a whole.
    client_share: of what may wait, that is one client's (an API key's, else an address's) at most,
        but for one request alone.
    max_texts: of a request. max_bytes: of its body. body_timeout: until a request has arrived.
    timeout: until a request is answered; one that cannot be is refused at once.
    truncate: whether texts longer than the model are cut (each answer then says how many were); a
        request may ask for either.
    api_keys: of which one must be given, if there are any. origins: whose pages may call.
    hosts: names under which the server may be asked, if there are any; an address always may be.
    """

    max_batch_tokens: int = 4096
    batch_time: float = 0.1
    patience: float = 10.0
    max_queued_tokens: int = 200_000
    client_share: float = 0.5
    max_texts: int = 2048
    max_bytes: int = 16 * 2**20
    body_timeout: float = 30.0
    timeout: float = 30.0
    truncate: bool = False
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch_tokens", "max_queued_tokens", "max_texts", "max_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("batch_time", "patience", "body_timeout", "timeout"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SettingsError(f"{name} is {getattr(self, name)}, expected a number from 0")
        if not 0 < self.client_share <= 1:
            raise SettingsError(f"client_share is {self.client_share}, expected above 0, at most 1")
        if any(len(key) < 8 for key in self.api_keys):
            raise SettingsError("an API key has fewer than 8 characters; anyone could guess it")
