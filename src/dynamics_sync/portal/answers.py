"""What a portal's answer means, beside its contract. No text of it is kept (R16)."""

import json
from datetime import datetime

from dynamics_sync.core.outcome import Accepted, Answer, Mismatch, Outcome, classify_failure
from dynamics_sync.portal.contract import Contract
from dynamics_sync.transport.answers import retry_after_seconds
from dynamics_sync.transport.connection import Response

MAX_BYTES = 64 * 1024
"""An answer is read no further than this; a longer one is outside every contract."""


def meaning(answer: Response, contract: Contract, webhook_id: str, now: datetime) -> Outcome:
    """What became of a delivery. Only what the contract promises is a success (R27)."""
    if 200 <= answer.status <= 299:
        deviation = _deviation_of_success(answer, contract, webhook_id)
        return Accepted() if deviation is None else Mismatch(place=f"answer: {deviation}")
    deviation = None
    if 400 <= answer.status <= 499 and contract.refusal is not None:
        document, deviation = _document(answer)
        deviation = deviation or contract.refusal.rule_against(document)
    told = Answer(
        status=answer.status,
        is_known_error=deviation is None,
        retry_after_seconds=retry_after_seconds(answer.headers.get("Retry-After"), now),
    )
    outcome = classify_failure(told)
    if isinstance(outcome, Mismatch):
        return Mismatch(place=f"answer with status {answer.status}: {deviation or 'no status of the contract'}")
    return outcome


def _deviation_of_success(answer: Response, contract: Contract, webhook_id: str) -> str | None:
    document, deviation = _document(answer)
    deviation = deviation or contract.answer.rule_against(document)
    if deviation is None and contract.answer_id is not None:
        repeated = document.get(contract.answer_id) if isinstance(document, dict) else None
        if repeated != webhook_id:
            return f"{contract.answer_id} is not the id that was sent"
    return deviation


def _document(answer: Response) -> tuple[object, str | None]:
    """The body's JSON, and what is wrong where it has none."""
    content_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        return None, "no JSON by its content type"
    if len(answer.body) > MAX_BYTES:
        return None, f"longer than {MAX_BYTES // 1024} KiB"
    try:
        return json.loads(answer.body), None
    except (ValueError, RecursionError):
        return None, "no JSON"
