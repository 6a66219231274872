"""The account of a session in the log: how it ended, and what became of its audio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omi_rt.codecs import AudioDecoder
    from omi_rt.core.coverage import Coverage
    from omi_rt.core.endings import Ending
    from omi_rt.core.ledger import Cost


def log_end(
    log: Any, ending: Ending, coverage: Coverage, cost: Cost, decoder: AudioDecoder
) -> None:
    """Write the line of a session that has ended, and another where its ledger does not balance.

    ``log`` is the session's structlog logger.
    """
    audio_format, balance = coverage.audio_format, coverage.balance()
    account = balance.in_seconds(audio_format)
    log.info(
        "session_ended",
        reason=ending.reason,
        close_code=ending.close_code,
        **account,
        **{f"sent_{name}": value for name, value in cost.in_seconds(audio_format).items()},
        **ledger_details(coverage),
        concealed_packets=decoder.concealed_packets,
    )
    if not balance.is_exact:
        log.error("ledger_unbalanced", **account)


def ledger_details(coverage: Coverage) -> dict[str, float]:
    """The seconds of finalised audio that no final covered, by the reason why they count."""
    ledger, seconds = coverage.ledger, coverage.audio_format.seconds
    details = {
        "finalised_as_silence": seconds(ledger.finalised_as_silence),
        "finalised_unanswered": seconds(ledger.finalised_unanswered),
        "finalised_by_metadata": seconds(ledger.finalised_by_metadata),
        "finalised_by_client": seconds(ledger.finalised_by_client),
    }
    return {name: value for name, value in details.items() if value}
