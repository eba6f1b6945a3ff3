"""Conversations: from messages to a prompt by the model's template, and from its text to reasoning and tool calls."""
