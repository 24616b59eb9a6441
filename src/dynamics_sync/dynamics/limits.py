"""What Dataverse's answers say of its limits (Microsoft: "Service protection API limits")."""

from collections.abc import Mapping

from dynamics_sync.core.pace import Hints


def hints_from(headers: Mapping[str, str]) -> Hints:
    """The hints in an answer's headers. What is no number is none."""
    parallelism = _number(headers.get("x-ms-dop-hint"))
    return Hints(
        parallelism=None if parallelism is None or parallelism < 1 else int(parallelism),
        requests_left=_number(headers.get("x-ms-ratelimit-burst-remaining-xrm-requests")),
        seconds_left=_number(headers.get("x-ms-ratelimit-time-remaining-xrm-requests")),
    )


def _number(text: str | None) -> float | None:
    """Dataverse separates thousands: `1,200.00`."""
    if text is None:
        return None
    digits = text.replace(",", "")
    whole, _, fraction = digits.partition(".")
    is_number = whole.isascii() and whole.isdecimal() and len(digits) < 20 and (not fraction or fraction.isdecimal())
    return float(digits) if is_number else None
