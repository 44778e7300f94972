"""What stands at the edge of every HTTP port of the data plane, the runtime's and the router's alike.

API keys and limits, errors in OpenAI's shape, ids of requests, the bounded HTTP protocol and its server. Knows neither
the engine nor FastAPI.
"""
