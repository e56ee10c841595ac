"""The service: a page and a JSON API in front of one detector (docs/serving.md). Needs the extra `[serve]`."""
