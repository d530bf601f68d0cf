"""The table of docs/serving.md on models behind an API, from what the code sends."""

from polyvec.services.providers import ANY_SERVER, LITELLM, PROVIDERS, Provider, Roles


def apis_table() -> str:
    """Each provider: names, keys, limits, roles and prices."""
    head = (
        *("name", "key", "address", "texts (tokens) a request", "query and document"),
        *("`dimensions`", "dollars a million tokens"),
    )
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " --- |" * (len(head) - 1)]
    for each in (*PROVIDERS.values(), ANY_SERVER):
        lines.append("| " + " | ".join(_cells(each)) + " |")
    notes = [f"`{each.name}:` {each.note}." for each in PROVIDERS.values() if each.note]
    others = [
        f"of {each.name}: {each.source}" for each in PROVIDERS.values() if each.source != LITELLM
    ]
    lines += ["", " ".join(notes), f"Prices: {LITELLM}'s table; {'; '.join(others)}."]
    return "\n".join(lines)


def _cells(provider: Provider) -> list[str]:
    account = provider.account
    keys = ", ".join(f"`{name}`" for name in account.key_variables)
    if provider.auth == "sigv4":
        keys = f"`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` (signed), or {keys}"
    if not provider.url:
        keys = "`POLYVEC_API_KEY`"
    tokens = "" if provider.max_tokens is None else f" ({provider.max_tokens:,})"
    prices = ", ".join(f"{name} {price:g}" for name, price in provider.prices.items())
    return [
        f"`{provider.name}:NAME`" if provider.url else "`http://host:port/v1#NAME`",
        keys,
        f"`{provider.url}`, or `{account.url_variable}`" if provider.url else "its own",
        f"{provider.max_texts:,}{tokens}",
        ", or ".join(_role(each) for each in provider.roles.values()),
        f"`{provider.dimensions_field}`",
        prices or "`price=`",
    ]


def _role(roles: Roles) -> str:
    if not roles.values:
        return "not told apart"
    query, document = roles.values["query"], roles.values["document"]
    how = "before the text" if roles.parameter is None else f"`{roles.parameter}`"
    return f"{how}: `{query.strip()}`, `{document.strip()}`".replace("|", "\\|")
