"""Conversations: an immutable history of turns, the answers of a model to it, tools that it may call, and its file."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .context import Context
    from .conversation import Conversation
    from .recording import Recording
    from .tools import Tool, ToolResult, ToolStatus
    from .turns import Answer, Role, Turn

_NAMES = {
    "Conversation": "conversation",
    "Context": "context",
    "Recording": "recording",
    "Tool": "tools",
    "ToolResult": "tools",
    "ToolStatus": "tools",
    "Answer": "turns",
    "Role": "turns",
    "Turn": "turns",
}

__all__ = ["Answer", "Context", "Conversation", "Recording", "Role", "Tool", "ToolResult", "ToolStatus", "Turn"]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
