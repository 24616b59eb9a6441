"""Webhooks: what is registered, what is sent, and what becomes of it.

Microsoft: "Use webhooks to create external handlers for server events", "Register a webhook".
"""
