"""The routes of OpenAI's HTTP interface, and vLLM's additions to it.

aiohttp serves them. It is kept up with a release every few weeks, brings parser, routing and streaming in one package
that the operator's dependencies contain anyway, cancels a handler whose client left (so that the engine stops working
for it), and leaves the socket to us: connections are counted before they cost anything. Starlette would need a second
package for its server, whose application interface hides the connection; granian brings a runtime of its own.

Fields that would change the answer and are not supported are refused by name (``refused_fields``). Others that nobody
knows, such as labels and hints, are ignored, as vLLM does, and named in the log once.
"""
