"""The phases that a batch of essays can be sent through."""

from enum import StrEnum

__all__ = ["PhaseName"]


class PhaseName(StrEnum):
    """A phase of a batch's pipeline; requesting one implies the phases it depends on."""

    SPELLCHECK = "spellcheck"
    AI_FEEDBACK = "ai_feedback"
    CJ_ASSESSMENT = "cj_assessment"
    NLP = "nlp"
    STUDENT_MATCHING = "student_matching"
