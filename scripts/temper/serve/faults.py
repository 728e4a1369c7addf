"""What a request can fail with, in TGI 3.3.7's words: status, text and error type.

Fault becomes JSON {"error", "error_type"}; Rejection, for a body that is not a request at all, plain text.
"""

from __future__ import annotations


class Fault(Exception):
    """A request that was understood and cannot be answered."""

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(text)
        self.status, self.kind, self.text = status, kind, text

    def body(self) -> dict[str, str]:
        """Return the JSON body."""
        return {"error": self.text, "error_type": self.kind}

    def chat_event(self) -> dict[str, dict[str, str | int]]:
        """Return the event a chat stream carries; TGI always says 422 there, whatever the fault."""
        return {"error": {"message": self.text, "http_status_code": 422}}


class Rejection(Exception):
    """A body that cannot be read as a request."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def invalid(message: str) -> Fault:
    """Return the fault for a parameter outside its bounds."""
    return Fault(422, "validation", f"Input validation error: {message}")


def template(message: str) -> Fault:
    """Return the fault for messages the chat template refuses, or for a model without one."""
    return Fault(422, "template_error", f"Template error: {message}")


def tool(message: str) -> Fault:
    """Return the fault for tools that cannot be offered, or a call that cannot be read."""
    return Fault(422, "tool_error", f"Tool error: {message}")


def suffix() -> Fault:
    """Return the fault for a completion that should end in a given text."""
    text = "Suffix is not supported and can be achieved by preprocessing the prompt."
    return Fault(422, "suffix not supported", text)


def too_many_prompts(limit: int) -> Fault:
    """Return the fault for more prompts than max_client_batch_size."""
    text = f"Number of prompts exceeds the maximum allowed batch size of {limit}"
    return Fault(422, "batch size exceeded", text)


def overloaded() -> Fault:
    """Return the fault for a request beyond max_concurrent_requests."""
    return Fault(429, "overloaded", "Model is overloaded")


def generation(message: str) -> Fault:
    """Return the fault for a model that failed while it answered."""
    return Fault(424, "generation", f"Request failed during generation: {message}")


def internal() -> Fault:
    """Return the fault for an error of this program; what it was is in the log only."""
    return Fault(500, "internal", "Internal server error")


def unhealthy() -> Fault:
    """Return the answer of /health when the model does not work."""
    return Fault(503, "healthcheck", "unhealthy")
